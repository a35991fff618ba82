"""Compares two people's edits of a webhook field by field: the saved values with those entered in the form."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from pydantic import JsonValue

from dispatcher.console.formatting import value_text
from dispatcher.console.pages.fields import LISTS, SECRETS, TEXTS
from dispatcher.console.pages.form import WebhookForm
from dispatcher.stores.sql.audit import AuditLog
from dispatcher.stores.sql.records import AuditAction, AuditQuery, Orgs, StoredWebhook

MAX_ENTRIES: Final = 200
"""Entries of the audit that are looked at, the newest first."""
_NEW_VERSION: Final = frozenset({AuditAction.EDIT, AuditAction.ENABLE, AuditAction.PAUSE, AuditAction.RESUME})


@dataclass(frozen=True, slots=True)
class FieldConflict:
    """A field that was changed while it was being edited."""

    key: str
    before: str
    """Its value before."""
    saved: str
    """Its value now."""
    by: str
    """The person who saved it last."""
    entered: str | None
    """The value that the second editor entered; None if the form can't show it in one line."""
    can_take: bool
    """True if `take_saved` can put the saved value into the form."""


async def conflicts_of(
    form: WebhookForm, webhook: StoredWebhook, since: int, audit: AuditLog, orgs: Orgs
) -> list[FieldConflict]:
    """Returns the fields that were changed since version `since` and differ from the form."""
    found: dict[str, FieldConflict] = {}
    entries = await audit.search(AuditQuery(webhook_id=webhook.id, limit=MAX_ENTRIES), orgs=orgs)
    versions = [one for one in entries if one.action in _NEW_VERSION][: webhook.version - since]
    for entry in reversed(versions):
        for key, change in entry.changes.items():
            if isinstance(change, Mapping) and "before" in change:
                before = found[key].before if key in found else value_text(change["before"])
                found[key] = _conflict(key, before, value_text(change.get("after")), entry.actor, form)
    return [one for one in found.values() if one.entered is None or one.entered != _saved_text(one, webhook.document)]


def take_saved(form: WebhookForm, key: str, document: Mapping[str, JsonValue]) -> None:
    """Puts the saved value of a field into the form."""
    saved = WebhookForm.of_document(document)
    if key in TEXTS:
        form.texts[key] = saved.texts[key]
    elif key in LISTS:
        form.lists[key] = saved.lists[key]


def _conflict(key: str, before: str, saved: str, by: str, form: WebhookForm) -> FieldConflict:
    can_take = key in LISTS or (key in TEXTS and key not in SECRETS)
    entered = ", ".join(form.lists[key]) if key in LISTS else form.texts[key] if can_take else None
    return FieldConflict(key, before, saved, by, entered, can_take)


def _saved_text(conflict: FieldConflict, document: Mapping[str, JsonValue]) -> str:
    saved = WebhookForm.of_document(document)
    return ", ".join(saved.lists[conflict.key]) if conflict.key in LISTS else saved.texts[conflict.key]
