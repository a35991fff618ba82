"""The console's data model. The API and the pages both use it; the modules in `sources` provide it.

Times are Unix seconds unless a name says otherwise. No value contains a secret. Values that may contain personal data
say so.
"""

from dataclasses import dataclass, field
from typing import Literal

from dispatcher.contract.records import Origin
from dispatcher.contract.tenant import TenantKey
from dispatcher.stores.sql.records import Orgs, Role


@dataclass(frozen=True, slots=True)
class Person:
    """The authenticated caller."""

    id: str
    """Stable: `token:<id>` or `oidc:<subject>`. The audit log's actor is `name`."""
    name: str
    role: Role
    orgs: Orgs
    """Organisations that the person can see; None for all."""

    @property
    def is_admin(self) -> bool:
        """True if the person may change things and see recipients' addresses."""
        return self.role is Role.ADMIN

    def may_see(self, org: str) -> bool:
        """Returns True if the person can see the organisation."""
        return self.orgs is None or org in self.orgs


# Attempts, from the attempt log

Window = Literal["1h", "24h", "7d"]


@dataclass(frozen=True, slots=True)
class AttemptFact:
    """One POST, as recorded in the attempt log."""

    at: float
    tenant: TenantKey
    event_id: str
    """The `webhook-id`."""
    message_status: str
    channel: str
    attempt: int
    """From 1."""
    status: int | None
    """HTTP status; None if there was no response."""
    reason: str
    """As in the metrics: `http_2xx`, `timeout`, `tls`, …"""
    detail: str
    verdict: str
    """`delivered`, `retry_soon`, `retry_later`, `disable_endpoint` or `dead`."""
    elapsed_ms: float
    reused: bool
    origin: Origin | None = None
    """Position of the event's original record, for `explain`; None in records of older versions."""
    answer: str = ""
    """Beginning of the response body of a failed attempt; empty if the dispatchers don't keep it."""


@dataclass(frozen=True, slots=True)
class Bucket:
    """Attempts of one span of time."""

    start: float
    delivered: int = 0
    failed: int = 0
    """To be tried again."""
    dead: int = 0


@dataclass(frozen=True, slots=True)
class Outcomes:
    """Counts of a tenant's attempts over a window, for the chart."""

    window: Window
    bucket_s: float
    buckets: tuple[Bucket, ...]
    """Oldest first, without gaps; the last one is still filling."""
    p50_ms: float | None = None
    """Of the responses in the window; None if there were none."""
    p95_ms: float | None = None

    @property
    def delivered(self) -> int:
        return sum(bucket.delivered for bucket in self.buckets)

    @property
    def failed(self) -> int:
        return sum(bucket.failed for bucket in self.buckets)

    @property
    def dead(self) -> int:
        return sum(bucket.dead for bucket in self.buckets)


@dataclass(frozen=True, slots=True)
class AttemptQuery:
    """Selects attempts, the newest first."""

    event_id: str | None = None
    outcome: Literal["delivered", "failed", "dead"] | None = None
    before: str | None = None
    """The cursor that the previous page returned."""
    limit: int = 50
    """At most 200."""


@dataclass(frozen=True, slots=True)
class AttemptPage:
    items: tuple[AttemptFact, ...]
    next: str | None
    """Cursor of the next page; None at the end of the kept attempts."""


# Lanes, from the running dispatchers

State = Literal["active", "unstable", "failing", "disabled", "paused", "off", "unknown"]
"""`paused`: events are held until an administrator resumes it. `off`: events are skipped (`enabled: false`)."""


@dataclass(frozen=True, slots=True)
class LaneFact:
    """A tenant's lane over all running dispatchers: the worst value of each field, counts added up."""

    state: Literal["active", "unstable", "disabled"]
    breaker: Literal["closed", "half_open", "open"]
    breaker_retry_in_s: float
    suspended: bool
    held_for_s: float
    in_flight: int
    waiting: int
    concurrency_limit: int
    usual_latency_s: float
    instances: int
    """Dispatchers that have a lane for the tenant."""


# Waiting events, from the retry topics


@dataclass(frozen=True, slots=True)
class WaitingTier:
    """A tenant's events in one retry tier, or those that are held for one reason."""

    tier: str
    """`30s`; `held` for events that wait for a change of configuration."""
    events: int
    next_due: float | None
    is_at_least: bool = False
    """True if there are more records than were counted."""
    reason: str | None = None
    """Why events are held: `paused`, `unusable`. None in the retry tiers."""
    expires_at: float | None = None
    """When the oldest of the events reaches the age limit and is dead; None if that is unknown."""


# Dead events, from the dead-letter topic


@dataclass(frozen=True, slots=True)
class DeadFact:
    """A dead event. `recipient` is personal data: mask it for viewers."""

    id: str
    """`<partition>-<offset>` in the dead-letter topic."""
    tenant: TenantKey | None
    event_id: str | None
    """The `webhook-id`; None if the record can't be read."""
    died_at: float
    first_seen: float | None
    reason: str
    """A `DeadReason`; empty if another program wrote the record."""
    detail: str
    attempts: int
    last_status: int | None
    message_status: str | None
    channel: str | None
    recipient: str | None
    redriven: bool
    """True if a redrive sent the event again."""
    origin: Origin


@dataclass(frozen=True, slots=True)
class DeadQuery:
    """Selects dead events, the newest first. Always limited to the caller's organisations."""

    tenant: TenantKey | None = None
    event_id: str | None = None
    reasons: frozenset[str] = frozenset()
    message_status: str | None = None
    since: float | None = None
    until: float | None = None
    redriven: bool | None = False
    """None: both."""
    before: str | None = None
    limit: int = 50


@dataclass(frozen=True, slots=True)
class DeadPage:
    items: tuple[DeadFact, ...]
    total: int
    """How many of the kept events match."""
    next: str | None
    is_complete: bool = True
    """False if the topic holds more than is kept, or is still being read."""


@dataclass(frozen=True, slots=True)
class RedriveJob:
    """A redrive that is queued, running or finished."""

    id: str
    tenant: TenantKey
    by: str
    started_at: float
    total: int
    sent: int = 0
    already: int = 0
    """Sent again by an earlier redrive."""
    gone: int = 0
    """Selected, but no longer in the topic."""
    state: Literal["waiting", "running", "done", "stopped", "failed"] = "running"
    """`waiting`: queued behind other redrives."""
    problem: str = ""
    kind: Literal["dead", "delivered"] = "dead"
    """What is sent again."""
    is_stopping: bool = False
    """True once a person has stopped the job; the running batch is still finished."""
    finished_at: float | None = None

    @property
    def is_over(self) -> bool:
        """True if the job has finished, with or without success."""
        return self.state in ("done", "stopped", "failed")


@dataclass(frozen=True, slots=True)
class DeadRecord:
    """A dead event's record as it is in the dead-letter topic. It may contain personal data: for operators only."""

    key: bytes | None = field(repr=False)
    value: bytes | None = field(repr=False)
    headers: tuple[tuple[str, bytes | None], ...] = field(repr=False)
    """Those of the original record, then the dispatcher's own."""


# Delivered events, from the history store and the topic of events


@dataclass(frozen=True, slots=True)
class ResendQuery:
    """Selects delivered events of one tenant: by id, or all that match the other fields."""

    event_ids: tuple[str, ...] = ()
    """Values of `webhook-id`; the other fields are ignored then."""
    since: float | None = None
    """Unix seconds of the delivery."""
    until: float | None = None
    message_statuses: frozenset[str] = frozenset()
    channels: frozenset[str] = frozenset()
    campaign_id: str | None = None


@dataclass(frozen=True, slots=True)
class ResendCheck:
    """What a resend would send."""

    events: int
    gone: int
    """Selected, but no longer in the topic of events."""
    is_cut: bool = False
    """True if more events match than one job sends."""


# Test events


@dataclass(frozen=True, slots=True)
class Step:
    """One step of a test request."""

    name: Literal["address", "connect", "tls", "token", "request", "first_byte", "answer"]
    ok: bool | None
    """None: not reached, or not needed."""
    ms: float | None = None
    detail: str = ""
    """`203.0.113.7`, `TLSv1.3, certificate until 2027-01-31`, …"""


@dataclass(frozen=True, slots=True)
class TestResult:
    """The result of a test event."""

    steps: tuple[Step, ...]
    event_id: str
    verdict: str
    """As in `AttemptFact`."""
    reason: str
    status: int | None
    elapsed_ms: float
    verdict_in_words: str
    """What the dispatcher would do with a real event."""
    remedy: str
    """What to change; empty if the event was delivered."""
    answer: str
    """The first 2,048 bytes of the response body, as text; never markup."""
    request: tuple[tuple[str, str], ...] = field(default=())
    """Headers that were sent, secrets masked."""
    body: str = ""
    """The payload that was sent; a sample event contains no personal data."""
