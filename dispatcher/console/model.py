"""What the console tells, as values, and who is asked for it: the API and the pages both stand on this.

Times are Unix seconds unless a name says otherwise. Nothing here holds a secret; what may hold personal data says so.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from dispatcher.config.webhooks import Channel, WebhookConfig
from dispatcher.contract.records import Origin
from dispatcher.contract.tenant import TenantKey
from dispatcher.stores.sql.records import Orgs, Role


@dataclass(frozen=True, slots=True)
class Person:
    """Who asks, once authenticated."""

    id: str
    """Stable: `token:<id>` or `oidc:<subject>`; what the audit has as actor is `name`."""
    name: str
    role: Role
    orgs: Orgs
    """Organisations that exist for them; None for all."""

    @property
    def is_admin(self) -> bool:
        """May change things, and see recipients' addresses."""
        return self.role is Role.ADMIN

    def may_see(self, org: str) -> bool:
        """Whether an organisation exists for them."""
        return self.orgs is None or org in self.orgs


# Attempts, from the attempt log

Window = Literal["1h", "24h", "7d"]


@dataclass(frozen=True, slots=True)
class AttemptFact:
    """One POST, as the attempt log has it."""

    at: float
    tenant: TenantKey
    event_id: str
    """The `webhook-id`."""
    message_status: str
    channel: str
    attempt: int
    """From 1."""
    status: int | None
    """HTTP status; None where no answer came."""
    reason: str
    """As in the metrics: `http_2xx`, `timeout`, `tls`, …"""
    detail: str
    verdict: str
    """`delivered`, `retry_soon`, `retry_later`, `disable_endpoint` or `dead`."""
    elapsed_ms: float
    reused: bool
    origin: Origin | None = None
    """Where the event first stood, for `explain`; None in records of older versions."""
    answer: str = ""
    """Beginning of what answered an attempt that failed; empty where the dispatchers don't keep it."""


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
    """What became of a tenant's attempts over a window: for the chart."""

    window: Window
    bucket_s: float
    buckets: tuple[Bucket, ...]
    """Oldest first, without gaps; the last one is still filling."""
    p50_ms: float | None = None
    """Of the answers in the window; None where there was none."""
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
    """Which attempts, the newest first."""

    event_id: str | None = None
    outcome: Literal["delivered", "failed", "dead"] | None = None
    before: str | None = None
    """The cursor of the page before."""
    limit: int = 50
    """At most 200."""


@dataclass(frozen=True, slots=True)
class AttemptPage:
    items: tuple[AttemptFact, ...]
    next: str | None
    """Cursor of the next page; None at the end of what is kept."""


class Attempts(Protocol):
    """The attempt log, followed and kept in bounded memory."""

    @property
    def problem(self) -> str | None:
        """Why what is told may be incomplete (the log is off, the broker is away, still reading); None: nothing."""
        ...

    def outcomes(self, tenant: TenantKey, window: Window) -> Outcomes:
        """For the chart. All zero where nothing is known."""
        ...

    def search(self, tenant: TenantKey, query: AttemptQuery) -> AttemptPage:
        """The latest attempts that are kept."""
        ...

    def last_delivery(self, tenant: TenantKey) -> float | None:
        """When the endpoint last took an event."""
        ...

    def failing(self, tenant: TenantKey) -> tuple[AttemptFact, int, int] | None:
        """What is wrong lately: the latest failed attempt, how many of the last 40 attempts failed with its
        reason, and how many of them there were. None where the last attempt was delivered or nothing is known."""
        ...


# Lanes, from the running dispatchers

State = Literal["active", "unstable", "disabled", "paused"]
"""`paused`: by its administrator (`enabled: false`)."""


@dataclass(frozen=True, slots=True)
class LaneFact:
    """A tenant's lane over all running dispatchers: the worst of each."""

    state: State
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


class LaneStates(Protocol):
    """Asks the running dispatchers, with a deadline; remembers for a second or two."""

    async def of(self, tenant: TenantKey) -> LaneFact | None:
        """None where no dispatcher has sent anything lately, or none answers."""
        ...

    async def enable(self, tenant: TenantKey) -> None:
        """Not everywhere possible: dispatchers learn of a reactivated webhook from the store, too."""
        ...


# What waits, from the retry topics


@dataclass(frozen=True, slots=True)
class WaitingTier:
    """A tenant's events in one retry tier."""

    tier: str
    """`30s`"""
    events: int
    next_due: float | None
    is_at_least: bool = False
    """There are more records than were looked at."""


class Waiting(Protocol):
    """The retry topics, from their groups' positions to their ends. Bounded; remembered for some seconds."""

    async def of(self, tenant: TenantKey) -> Sequence[WaitingTier]:
        """Tiers in which events wait. Raises DispatcherError where the broker can't be asked."""
        ...


# Dead events, from the dead-letter topic


@dataclass(frozen=True, slots=True)
class DeadFact:
    """A dead event. `recipient` is personal data: mask it for whoever is no admin."""

    id: str
    """`<partition>-<offset>` in the dead-letter topic."""
    tenant: TenantKey | None
    event_id: str | None
    """The `webhook-id`; None where the record can't be read."""
    died_at: float
    first_seen: float | None
    reason: str
    """A `DeadReason`; empty where somebody else wrote the record."""
    detail: str
    attempts: int
    last_status: int | None
    message_status: str | None
    channel: str | None
    recipient: str | None
    redriven: bool
    """Was sent again since."""
    origin: Origin


@dataclass(frozen=True, slots=True)
class DeadQuery:
    """Which dead events, the newest first. Always within the asker's organisations."""

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
    """How many match among those that are kept."""
    next: str | None
    is_complete: bool = True
    """False: the topic holds more than is kept, or is still being read."""


@dataclass(frozen=True, slots=True)
class RedriveJob:
    """A redrive under way or done."""

    id: str
    tenant: TenantKey
    by: str
    started_at: float
    total: int
    sent: int = 0
    already: int = 0
    """Sent again by an earlier redrive."""
    gone: int = 0
    """Chosen, but the topic keeps them no longer."""
    state: Literal["waiting", "running", "done", "failed"] = "running"
    """Waiting: others are carried out first."""
    problem: str = ""

    @property
    def is_over(self) -> bool:
        """Nothing more will come of it."""
        return self.state in ("done", "failed")


class DeadEvents(Protocol):
    """The dead-letter topic, followed and kept in bounded memory; and the way back out of it."""

    @property
    def problem(self) -> str | None:
        """As in `Attempts`."""
        ...

    def search(self, query: DeadQuery, *, orgs: Orgs) -> DeadPage: ...

    def get(self, dead_id: str, *, orgs: Orgs) -> DeadFact:
        """Raises NotFound."""
        ...

    def count(self, tenant: TenantKey, since: float) -> int:
        """Dead and not sent again."""
        ...

    async def redrive(
        self, tenant: TenantKey, *, ids: frozenset[str] | None, query: DeadQuery, by: str, orgs: Orgs
    ) -> RedriveJob:
        """Send some (`ids`) or all that match back to the topic of events.

        Returns when it has begun, or waits for its turn behind others.

        Raises:
            NotFound: an id is none of this tenant's dead events, or the tenant none of the asker's.
            DispatcherError: the broker can't be reached, or a redrive of the tenant is under way.
        """
        ...

    def job(self, job_id: str, *, orgs: Orgs) -> RedriveJob:
        """Raises NotFound."""
        ...


# Test events


@dataclass(frozen=True, slots=True)
class Step:
    """One rung of the ladder."""

    name: Literal["address", "connect", "tls", "token", "request", "first_byte", "answer"]
    ok: bool | None
    """None: not reached, or not needed."""
    ms: float | None = None
    detail: str = ""
    """`203.0.113.7`, `TLSv1.3, certificate until 2027-01-31`, …"""


@dataclass(frozen=True, slots=True)
class TestResult:
    """What became of a test event."""

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
    """What to change; empty where it was delivered."""
    answer: str
    """The first 2,048 bytes of the answer's body, as text; never markup."""
    request: tuple[tuple[str, str], ...] = field(default=())
    """Headers that were sent, secrets masked."""
    body: str = ""
    """The payload that was sent; of a sample event, without anybody's data."""


class TestEvents(Protocol):
    """Sends a sample event on the real delivery path."""

    async def send(self, config: WebhookConfig, channel: Channel, message_status: str) -> TestResult:
        """Never raises for what the endpoint or network does; takes at most the webhook's timeout, twice over."""
        ...

    def preview(self, config: WebhookConfig, channel: Channel, message_status: str) -> TestResult:
        """The exact request, without sending it: no steps, no answer."""
        ...
