"""Dead events and redrives."""

from datetime import datetime
from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from dispatcher.console.api.models.base import Cursor, Limit, Moment, RequestModel, ResponseModel, Word
from dispatcher.console.api.models.deliveries import OriginModel
from dispatcher.contract.outcomes import DeadReason

MAX_IDS = 1000


Reasons = Annotated[tuple[DeadReason, ...], Field(max_length=2 * len(DeadReason))]


class DeadFilter(RequestModel):
    """Filters of dead events; all must match."""

    reasons: Reasons = ()
    message_status: Word | None = None
    since: Moment | None = None
    until: Moment | None = None


class DeadList(DeadFilter):
    """Query of dead events."""

    org: Word | None = None
    """Needs `sandbox`."""
    sandbox: Word | None = None
    """Needs `org`."""
    redriven: Literal["no", "yes", "both"] = "no"
    """Whether a redrive has sent them again."""
    before: Cursor | None = None
    limit: Limit = 50


class DeadEventModel(ResponseModel):
    """A dead event."""

    id: str
    org: str | None
    sandbox: str | None
    event_id: str | None
    died_at: datetime
    first_seen: datetime | None
    reason: str
    detail: str
    attempts: int
    last_status: int | None
    message_status: str | None
    channel: str | None
    recipient: str | None
    """Masked for viewers."""
    redriven: bool
    origin: OriginModel


class DeadEventPage(ResponseModel):
    """A page of the dead events, the newest first."""

    items: tuple[DeadEventModel, ...]
    total: int
    next: str | None
    is_complete: bool
    """false if there are more than the console keeps, or they are still being read."""
    problem: str | None


class ChosenEvents(RequestModel):
    """Some dead events."""

    select: Literal["ids"]
    ids: Annotated[
        tuple[Annotated[str, StringConstraints(pattern=r"^[0-9]{1,10}-[0-9]{1,19}$")], ...],
        Field(min_length=1, max_length=MAX_IDS),
    ]


class MatchingEvents(DeadFilter):
    """All dead events of the tenant that match and were not sent again yet."""

    select: Literal["matching"]


class RedriveOrder(RequestModel):
    """Selection of the dead events to send again."""

    org: Word
    sandbox: Word
    events: Annotated[ChosenEvents | MatchingEvents, Field(discriminator="select")]


class RedriveModel(ResponseModel):
    """A redrive that is queued, running or finished."""

    id: str
    org: str
    sandbox: str
    by: str
    started_at: datetime
    total: int
    sent: int
    already: int
    """Sent again by an earlier redrive."""
    gone: int
    """Selected, but no longer in the dead-letter topic, or in the topic of events."""
    state: Literal["waiting", "running", "done", "stopped", "failed"]
    """`waiting`: queued behind other redrives."""
    kind: Literal["dead", "delivered"]
    """What is sent again: dead events, or delivered ones."""
    stopping: bool
    """true once the job was stopped; its running batch is still finished."""
    finished_at: datetime | None
    problem: str


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
