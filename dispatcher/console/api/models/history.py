"""Models of the history of events."""

from typing import Annotated, Literal, Self

from pydantic import Field, StringConstraints, model_validator

from dispatcher.console.api.models.base import (
    AnyCase,
    CursorQuery,
    RequestModel,
    ResponseModel,
    TimeFilter,
    Typed,
    Word,
)
from dispatcher.console.model import ApiOrigin, Time, Window

OutcomeName = Literal["attempt", "delivered", "skipped", "parked", "held", "dead", "redriven"]
HashHex = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{32}$")]
_Words = Annotated[tuple[Word, ...], Field(max_length=20)]


class HistorySearchOrder(CursorQuery, TimeFilter):
    """Selects history entries, the newest first. Give a tenant (org and sandbox), an id, a campaign or a recipient."""

    org: Word | None = None
    sandbox: Word | None = None
    id: Typed | None = None
    """Webhook-id, XDM `_id`, requestId, messageExecutionID or campaignID.

    If no event has it as it is, it is looked up without what was pasted with it (quotation marks, brackets, a label),
    then UUIDs and webhook-ids in their other case.
    """
    recipient: Typed | None = None
    """Address or number that the message was sent to; it is hashed and not stored."""
    recipient_hash: HashHex | None = None
    campaign: Typed | None = None
    """The campaignID, looked up as `id` is."""
    outcomes: Annotated[tuple[Annotated[OutcomeName, AnyCase], ...], Field(max_length=7)] = ()
    reasons: _Words = ()
    message_statuses: _Words = ()
    channels: _Words = ()

    @model_validator(mode="after")
    def _is_bounded(self) -> Self:
        if (self.org is None) != (self.sandbox is None):
            raise ValueError("org and sandbox belong together: give both, or neither")
        if not any((self.org, self.id, self.recipient, self.recipient_hash, self.campaign)):
            raise ValueError("give org and sandbox, an id, a recipient or a campaign")
        return self


class HistoryEntryModel(ResponseModel):
    """One entry of an event's history."""

    at: Time
    org: str | None
    sandbox: str | None
    outcome: OutcomeName
    reason: str
    text: str
    """The entry as a sentence."""
    webhook_id: str | None
    event_id: str | None
    request_id: str | None
    message_execution_id: str | None
    campaign_id: str | None
    recipient_hash: str | None
    channel: str | None
    message_status: str | None
    attempt: int | None
    status: int | None
    duration_ms: float | None
    due_at: Time | None
    detail: str
    headers: dict[str, str]
    answer: str
    count: int
    """Number of events that the entry counts."""
    origin: ApiOrigin | None


class HistoryPageModel(ResponseModel):
    """A page of history entries, the newest first."""

    items: tuple[HistoryEntryModel, ...]
    next: str | None
    """Cursor for `before`; null at the end."""
    problem: str | None
    """Why this may be incomplete."""


class EventHistory(ResponseModel):
    """The history of one event, the oldest entry first, at most the last 500 entries."""

    items: tuple[HistoryEntryModel, ...]
    is_cut: bool
    """Earlier entries were left out."""
    is_end_forgotten: bool
    """The last entry isn't the event's end, and is older than ends are kept: how the event ended isn't known."""


class SkippedQuery(RequestModel):
    """Selects a window of time."""

    window: Window = "24h"
    """How far the counts go back."""


class CountModel(ResponseModel):
    """Events of one outcome, reason and channel."""

    outcome: OutcomeName
    reason: str
    channel: str
    events: int
    """How often it happened. `skipped` counts an event once. An event that is sent again is `redriven` each time, and
    `delivered` or `dead` each time it ends. `attempt`, `parked` and `held` happen several times to some events."""
    text: str
    """The reason as a sentence."""
    remedy: str
    """The change that makes such events be sent; empty if none is needed."""


class CountsModel(ResponseModel):
    """Numbers of a webhook's events by outcome and reason, in quarters of an hour that begin within the window."""

    window: Window
    items: tuple[CountModel, ...]


class Erasure(RequestModel):
    """Selects the person whose entries are erased: give either."""

    recipient: Typed | None = None
    recipient_hash: HashHex | None = None

    @model_validator(mode="after")
    def _one(self) -> Self:
        if (self.recipient is None) == (self.recipient_hash is None):
            raise ValueError("give either recipient or recipient_hash")
        return self


class Erased(ResponseModel):
    """Result of an erasure."""

    entries: int
    """0 if there was no entry with this recipient: check that it is written as the events have it."""
