"""Models of a webhook's deliveries."""

from datetime import datetime
from typing import Literal

from dispatcher.console.api.models.base import Cursor, Limit, RequestModel, ResponseModel, Word


class OutcomesQuery(RequestModel):
    """The window of the counts."""

    window: Literal["1h", "24h", "7d"] = "24h"


class BucketModel(ResponseModel):
    """Attempts of one span of time."""

    start: datetime
    delivered: int
    failed: int
    """Failed attempts that are retried."""
    dead: int


class OutcomesModel(ResponseModel):
    """Counts of the attempts by outcome."""

    window: Literal["1h", "24h", "7d"]
    bucket_s: float
    buckets: tuple[BucketModel, ...]
    """Oldest first, without gaps; the last one is still filling."""
    delivered: int
    failed: int
    dead: int
    p50_ms: float | None
    p95_ms: float | None
    last_delivery: datetime | None
    problem: str | None
    """Why this may be incomplete."""


class AttemptList(RequestModel):
    """Query of attempts."""

    event_id: Word | None = None
    outcome: Literal["delivered", "failed", "dead"] | None = None
    before: Cursor | None = None
    limit: Limit = 50


class OriginModel(ResponseModel):
    """Position of an event's original record in Kafka."""

    topic: str
    partition: int
    offset: int


class AttemptModel(ResponseModel):
    """One POST."""

    at: datetime
    event_id: str
    message_status: str
    channel: str
    attempt: int
    status: int | None
    reason: str
    detail: str
    verdict: str
    elapsed_ms: float
    reused: bool
    """On a kept-alive connection."""
    origin: OriginModel | None
    answer: str
    """Beginning of the response body, if the attempt failed and the dispatchers keep bodies (`history.answers`)."""


class AttemptPageModel(ResponseModel):
    """A page of the attempts, the newest first."""

    items: tuple[AttemptModel, ...]
    next: str | None
    problem: str | None
    """Why this may be incomplete."""


class LaneModel(ResponseModel):
    """The tenant's lane over all running dispatchers."""

    state: Literal["active", "unstable", "disabled"]
    """What these dispatchers decide by their own evidence; `/state` is that of all together."""
    breaker: Literal["closed", "half_open", "open"]
    breaker_retry_in_s: float
    suspended: bool
    held_for_s: float
    in_flight: int
    waiting: int
    concurrency_limit: int
    usual_latency_s: float
    instances: int


class StateModel(ResponseModel):
    """The webhook's state by the evidence of all dispatchers."""

    state: Literal["active", "unstable", "failing", "disabled", "paused", "off", "unknown"]
    """`active`: events arrive. `unstable`: most requests fail. `failing`: nothing arrives. `disabled`: sending stopped
    until the webhook is edited or enabled. `paused`: events are held. `off`: events are skipped. `unknown`: no
    dispatcher answers, or nothing was sent yet."""
    since: datetime | None
    """When the state began; null if that is unknown."""
    reasons: tuple[str, ...]
    """What is wrong, and what to change, as sentences; empty if nothing is."""
    last_delivery: datetime | None
    dead: int
    """Events that died within 24 hours and were not sent again."""


class LaneAnswer(ResponseModel):
    """The lane; null if no dispatcher has one for the tenant, or none answers."""

    lane: LaneModel | None


class TierModel(ResponseModel):
    """Events that wait in a retry tier, or that are held for one reason."""

    tier: str
    """`30s`; `held` for events that wait for a change of configuration."""
    reason: str | None
    """Why events are held; null in the retry tiers."""
    events: int
    next_due: datetime | None
    expires_at: datetime | None
    """When the oldest of these events reaches the age limit and is dead, unless it is sent before."""
    is_at_least: bool
    """There may be more."""


class WaitingModel(ResponseModel):
    """Tiers in which events wait."""

    tiers: tuple[TierModel, ...]
