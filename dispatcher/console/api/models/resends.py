"""Models of jobs that send events again."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from dispatcher.config.webhooks import Channel
from dispatcher.console.api.models.base import AnyCase, Moment, ResponseModel, TenantFilter, TimeFilter, Typed, Word
from dispatcher.console.model import Time
from dispatcher.console.resend_model import RedriveModel, SkippedCount

_MAX_IDS = 500


class ResendRequest(TimeFilter):
    """Selects events of a webhook to send again: by id, or by the time at which they were delivered or died."""

    event_ids: Annotated[tuple[Word, ...], Field(max_length=_MAX_IDS)] = ()
    """Values of `webhook-id`. All other filters but `include` are ignored then."""
    since: Moment | None = None
    """Required without `event_ids`."""
    message_statuses: Annotated[tuple[Word, ...], Field(max_length=20)] = ()
    channels: Annotated[tuple[Annotated[Channel, AnyCase], ...], Field(max_length=2)] = ()
    reasons: Annotated[tuple[Word, ...], Field(max_length=20)] = ()
    """Why they died (`expired`), or how they were delivered (`http_2xx`)."""
    campaign: Typed | None = None
    """Campaign id, looked up as in the history: the first reading that a delivered or a dead event of the tenant has
    counts for both."""
    include: Annotated[tuple[Literal["delivered", "dead"], ...], Field(min_length=1, max_length=2)] = (
        "delivered",
        "dead",
    )

    checked_at: Moment | None = None
    """Leaves out delivered events that were sent again at this time or later, as dead ones always are. Give the time
    of your check, and the same one if you repeat a request that had no answer: nothing is sent twice. To go on after a
    job that was stopped or has failed, give `until` and `checked_at` of its `resume`."""

    @model_validator(mode="after")
    def _is_bounded(self) -> Self:
        if not self.event_ids and self.since is None:
            raise ValueError("give event_ids, or since")
        return self


class ResendCheckModel(ResponseModel):
    """The events that a resend would send."""

    delivered: int
    """Delivered events that are still in the topic of events."""
    delivered_is_at_least: bool
    """true if more than 10,000 match, which are not counted any further: a resend sends all of them."""
    left_out: int
    """Delivered events that match and are not sent, because they were sent again since `checked_at`."""
    sent_before: int
    """How many of `delivered` were sent again already, after the delivery that matches. They are sent once more."""
    sent_before_since: Time | None
    """When the first of them was. Give it as `checked_at` to leave them out."""
    dead: int
    """Dead events that were not sent again yet."""
    dead_is_at_least: bool
    """true if there wasn't time to count them all in the dead-letter topic: a resend sends all that match."""
    gone: int
    """Delivered events that the topic of events no longer has."""
    delivered_since: Time | None
    """Time from which on deliveries are kept (`history.keep.delivered`), if `since` is earlier. Those before can't
    be found."""
    would_be_skipped: tuple[SkippedCount, ...]
    """How many of `delivered` and `dead` the webhook would skip, because its channels, events or campaigns lack their
    values now. They are sent nevertheless; a dead one counts as sent again then. Lower bounds while `is_complete`
    of the list of dead events is false, or if `delivered_is_at_least`."""
    warnings: tuple[str, ...]
    """Why the events may fail again, as sentences: endpoint failing, webhook paused, …"""


class ResendJobs(ResponseModel):
    """Jobs that were started: one for delivered events, one for dead ones.

    If only one could be started, the other is `failed` and has a `problem`.
    """

    items: tuple[RedriveModel, ...]


class RedriveList(TenantFilter):
    """Query parameters of the list of jobs."""


class RedrivePage(ResponseModel):
    """Jobs that send events again, running and finished ones of the last 30 days, the newest first.

    At most 200, and 100 of a tenant.
    """

    items: tuple[RedriveModel, ...]
