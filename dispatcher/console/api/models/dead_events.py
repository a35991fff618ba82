"""Dead events and redrives."""

from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from dispatcher.config.webhooks import Channel
from dispatcher.console.api.models.base import (
    AnyCase,
    CursorQuery,
    Moment,
    RequestModel,
    ResponseModel,
    TenantFilter,
    TimeFilter,
    Typed,
    Word,
)
from dispatcher.console.model import DeadEventModel
from dispatcher.contract.outcomes import DeadReason

MAX_IDS = 1000


Reasons = Annotated[tuple[Annotated[DeadReason, AnyCase], ...], Field(max_length=2 * len(DeadReason))]


class DeadFilter(TimeFilter):
    """Filters of dead events; all must match."""

    reasons: Reasons = ()
    """Any of these reasons; empty for all."""
    message_status: Word | None = None
    """Feedback status of the event, such as `bounce`."""
    channel: Annotated[Channel, AnyCase] | None = None
    """Channel of the event."""
    campaign: Typed | None = None
    """Campaign id of the event. Quotation marks, a label, percent-encoding and the case of a UUID don't matter: the
    first reading that a dead event of these tenants has is looked up."""
    since: Moment | None = None
    """Only events that died at this time or later."""
    until: Moment | None = None
    """Only events that died before this time."""


class DeadList(DeadFilter, TenantFilter, CursorQuery):
    """Query parameters of the list of dead events."""

    redriven: Literal["no", "yes", "both"] = "no"
    """Whether a redrive has sent them again."""


class DeadEventPage(ResponseModel):
    """A page of the dead events, the newest first."""

    items: tuple[DeadEventModel, ...]
    total: int
    next: str | None
    is_complete: bool
    """false if there are more than the console keeps, or they are still being read."""
    problem: str | None


class ChosenEvents(RequestModel):
    """Dead events selected by id."""

    select: Literal["ids"]
    ids: Annotated[
        tuple[Annotated[str, StringConstraints(pattern=r"^[0-9]{1,10}-[0-9]{1,19}$")], ...],
        Field(min_length=1, max_length=MAX_IDS),
    ]


class MatchingEvents(DeadFilter):
    """All dead events of the tenant that match and have not been sent again."""

    select: Literal["matching"]


class RedriveOrder(RequestModel):
    """Selection of the dead events to send again.

    Those whose channel, status or campaign the webhook doesn't want by now are skipped, and count as sent again:
    `checkResend` counts them before.
    """

    org: Word
    sandbox: Word
    events: Annotated[ChosenEvents | MatchingEvents, Field(discriminator="select")]


class RecordHeader(ResponseModel):
    """A header of a Kafka record."""

    name: str
    value: str | None
    """Base64."""


class DeadRecordModel(ResponseModel):
    """The record of a dead event as it is in the dead-letter topic. It may contain personal data."""

    id: str
    key: str | None
    """Base64."""
    value: str | None
    """Base64."""
    headers: tuple[RecordHeader, ...]
    """Those of the original record, then the dispatcher's own."""
