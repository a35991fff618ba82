"""Models of sending events again: which events, how many, and the jobs that send them.

Delivered events come from the history store and the topic of events, dead ones from the dead-letter topic.
"""

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from dispatcher.console.model import ApiValue, Time
from dispatcher.contract.outcomes import SkipReason
from dispatcher.contract.tenant import TenantKey


@dataclass(frozen=True, slots=True)
class ResendQuery:
    """Selects events of one tenant: by id, or all that match the other fields."""

    event_ids: tuple[str, ...] = ()
    """Values of `webhook-id`; the other fields are ignored then."""
    since: float | None = None
    """Unix seconds of the delivery, or of the death."""
    until: float | None = None
    reasons: frozenset[str] = frozenset()
    """Reasons of the delivery (`http_2xx`) or of the death (`expired`)."""
    message_statuses: frozenset[str] = frozenset()
    channels: frozenset[str] = frozenset()
    campaign_id: str | None = None
    checked_at: float | None = None
    """Unix seconds: leaves out delivered events that were sent again since, by an order that was given twice."""


@dataclass(frozen=True, slots=True)
class SkippedCount(ApiValue):
    """Events that the webhook would skip if they were sent again now."""

    reason: SkipReason
    """The rule that they fail: `channel`, `status` or `campaign`."""
    events: int


@dataclass(frozen=True, slots=True)
class ResendCheck:
    """The delivered events that a resend would send."""

    events: int
    gone: int
    """Selected, but no longer in the topic of events."""
    is_at_least: bool = False
    """True if more events match than were counted: a resend sends all of them."""
    skipped: tuple[SkippedCount, ...] = ()
    """How many of them the webhook would skip."""
    left_out: int = 0
    """Matching ones that are not among `events`, because they were sent again since `ResendQuery.checked_at`."""
    sent_before: int = 0
    """How many of `events` were sent again already, after the delivery that matches."""
    sent_before_since: float | None = None
    """Unix seconds of the first time that one of them was."""


@dataclass(frozen=True, slots=True)
class DeadCount:
    """How many dead events a redrive would send again."""

    events: int
    is_at_least: bool = False
    """True if there wasn't time to read all of the dead-letter topic."""


@dataclass(frozen=True, slots=True)
class ResumePoint(ApiValue):
    """The point that a job of delivered events has reached. The same order with these two values sends what is left."""

    until: Time
    checked_at: Time


@dataclass(frozen=True, slots=True)
class RedriveModel(ApiValue):
    """A redrive that is queued, running or finished."""

    id: str
    org: str
    sandbox: str
    by: str
    started_at: Time
    total: int
    sent: int = 0
    already: int = 0
    """Sent again by an earlier redrive."""
    gone: int = 0
    """Selected, but no longer in the dead-letter topic, or in the topic of events."""
    unreadable: int = 0
    """Selected, but not sent: they still can't be read as events."""
    truncated: int = 0
    """Selected, but not sent: only a part of them is kept."""
    too_large: int = 0
    """Not sent: the retry topic accepts no record of their size."""
    state: Literal["waiting", "running", "done", "stopped", "failed"] = "running"
    """`waiting`: queued behind other redrives."""
    problem: str = ""
    """Why the job has failed. `interrupted: …` if its console was killed, or could not reach the database."""
    kind: Literal["dead", "delivered"] = "dead"
    """Which events are sent again: dead ones, or delivered ones."""
    stopping: bool = False
    """Whether a person has stopped the job while its running batch is still finished."""
    finished_at: Time | None = None
    total_is_at_least: bool = False
    """Whether `total` grows: further events are looked for when those that were found have been sent."""
    resume: ResumePoint | None = None
    """Where to go on if the job is stopped or fails, for a job of delivered events; null if nothing is left."""
    query: Annotated[ResendQuery | None, Field(exclude=True)] = None
    """The order of a job of delivered events."""

    @property
    def tenant(self) -> TenantKey:
        return TenantKey(self.org, self.sandbox)

    @property
    def is_over(self) -> bool:
        """True if the job has finished, with or without success."""
        return self.state in ("done", "stopped", "failed")
