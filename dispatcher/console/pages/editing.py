"""State of the form that creates and edits a webhook, and what is said if the webhook was changed meanwhile. Pure."""

from dataclasses import dataclass, field

from dispatcher.console.model import TestResultModel
from dispatcher.console.pages.form import WebhookForm
from dispatcher.console.pages.testing import Sample
from dispatcher.errors import EditConflict
from dispatcher.stores.sql.records import StoredWebhook


@dataclass(slots=True)
class Editing:
    """State of the form for one response."""

    form: WebhookForm
    webhook: StoredWebhook | None
    version: int = 0
    """The webhook's version that the browser loaded."""
    sample: Sample = field(default_factory=Sample)
    is_changed: bool = False
    """True if the form contains unsaved input."""
    status: int = 200
    notice: str = ""
    existing_id: str = ""
    """Id of the webhook that the organisation and sandbox already have."""
    test: TestResultModel | None = None
    path: str = ""
    """Path that the form is posted to, if it is not the request's own."""
    conflict_since: int = 0
    """The version before what another editor saved meanwhile; 0 without a conflict."""

    is_deleted: bool = False
    """True if `webhook` was deleted meanwhile, and can be restored."""

    def note_deleted(self, deleted: StoredWebhook | None) -> None:
        """Prepares the response to an edit of a webhook that is gone: it is restored first, or created again.

        Args:
            deleted: the webhook; None if it can't be restored.
        """
        self.webhook, self.is_deleted, self.status = deleted, deleted is not None, 404
        if deleted is not None:
            self.notice = (
                f"This webhook was deleted by {deleted.updated_by} meanwhile. What you typed is still here: "
                "restore the webhook, then save."
            )
            return
        self.version, self.path = 0, "/webhooks/new"
        self.notice = (
            "There is no such webhook any more. It was deleted for good, or you can't see it any more. What you typed "
            "is still here, and creates a new webhook if you save it; stored secrets are gone."
        )

    def note_restored(self, restored: StoredWebhook) -> None:
        """Prepares the response to the restoration: what was edited before the deletion is a conflict, as always."""
        deleted_version = restored.version - 1
        if self.version == deleted_version - 1:
            self.version = restored.version
        self.webhook, self.is_deleted, self.status = restored, False, 200
        self.notice = "The webhook is restored. What you typed isn't saved yet."

    def note_conflict(self, error: EditConflict) -> None:
        """Prepares the response to an edit of an older version: the next one replaces what was saved meanwhile."""
        self.notice = (
            f"This webhook was {error}. What you typed is still here; saving once more puts it in place of what "
            "was saved meanwhile."
        )
        self.conflict_since = self.conflict_since or self.version
        self.version, self.status = error.current_version, 412
