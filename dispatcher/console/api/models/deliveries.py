"""Models of a webhook's deliveries."""

from typing import Literal

from dispatcher.console.api.models.base import CursorQuery, RequestModel, ResponseModel, Word
from dispatcher.console.model import AttemptModel, BucketModel, LaneModel, State, TierModel, Time, Window


class OutcomesQuery(RequestModel):
    """The time window in which attempts are counted."""

    window: Window = "24h"
    """How far the counts go back."""


class OutcomesModel(ResponseModel):
    """Counts of the attempts by outcome: an event that is tried or sent again counts each time."""

    window: Window
    bucket_s: float
    buckets: tuple[BucketModel, ...]
    """Oldest first, without gaps; the last one is still filling."""
    delivered: int
    failed: int
    dead: int
    p50_ms: float | None
    p95_ms: float | None
    last_delivery: Time | None
    known_since: Time | None
    """Earlier attempts of the window are not known; null if all are."""
    problem: str | None
    """Why this may be incomplete."""


class AttemptList(CursorQuery):
    """Query parameters of the list of attempts."""

    event_id: Word | None = None
    """Id of an event, its `webhook-id`."""
    outcome: Literal["delivered", "failed", "dead"] | None = None
    """What the attempt led to."""


class AttemptPageModel(ResponseModel):
    """A page of the attempts, the newest first."""

    items: tuple[AttemptModel, ...]
    next: str | None
    problem: str | None
    """Why this may be incomplete."""


class StateModel(ResponseModel):
    """The webhook's state, derived from the reports of all dispatchers."""

    state: State
    """`active`: events arrive. `unstable`: most requests fail. `failing`: nothing arrives. `disabled`: sending stopped
    until the webhook is edited or enabled. `paused`: events are held. `off`: events are skipped. `unknown`: no
    dispatcher answers, or nothing was sent yet."""
    since: Time | None
    """When the state began; null if that is unknown."""
    reasons: tuple[str, ...]
    """Sentences about what is wrong and what to change; empty if nothing is wrong."""
    last_delivery: Time | None
    dead: int
    """Events that died within 24 hours and were not sent again."""


class LaneAnswer(ResponseModel):
    """The lane; null if no dispatcher has one for the tenant, or none answers."""

    lane: LaneModel | None


class WaitingModel(ResponseModel):
    """Tiers in which events wait."""

    tiers: tuple[TierModel, ...]
