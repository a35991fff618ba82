"""The console's data model. The API and the pages both use it; the modules in `sources` provide it.

Classes whose base is `ApiValue` are returned by the API as they are: their fields and docstrings are the schemas of the
OpenAPI document. Times are Unix seconds here and RFC 3339 in the API. No value contains a secret. Values that may
contain personal data say so.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Annotated, ClassVar, Literal

from pydantic import ConfigDict, Field, GetPydanticSchema, PlainSerializer
from pydantic_core import core_schema

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


# What the values that the API returns have in common


class ApiValue:
    """Base of dataclasses that the API returns."""

    __slots__ = ()
    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(
        use_attribute_docstrings=True, json_schema_serialization_defaults_required=True
    )


def to_datetime(seconds: float) -> datetime:
    """Converts Unix seconds to the API's times."""
    return datetime.fromtimestamp(seconds, UTC)


Time = Annotated[float, PlainSerializer(to_datetime, return_type=datetime)]
"""Unix seconds; RFC 3339 in the API."""


@dataclass(frozen=True, slots=True)
class OriginModel(ApiValue):
    """Position of an event's original record in Kafka."""

    topic: str
    partition: int
    offset: int


def origin_model(origin: Origin) -> OriginModel:
    """Converts a position to its form in the API."""
    return OriginModel(origin.topic, origin.partition, origin.offset)


ApiOrigin = Annotated[
    Origin,
    GetPydanticSchema(lambda source, _: core_schema.is_instance_schema(source)),
    PlainSerializer(origin_model, return_type=OriginModel),
]
"""A position; an `OriginModel` in the API."""


# Attempts, from the history

Window = Literal["1h", "24h", "7d"]


@dataclass(frozen=True, slots=True)
class AttemptModel(ApiValue):
    """One POST."""

    at: Time
    tenant: Annotated[TenantKey, Field(exclude=True)]
    event_id: str
    """The `webhook-id`."""
    message_status: str
    channel: str
    attempt: int
    """From 1."""
    status: int | None
    """HTTP status, if there was a response."""
    reason: str
    """As in the metrics: `http_2xx`, `timeout`, `tls`, …"""
    detail: str
    verdict: str
    """`delivered`, `retry_soon`, `retry_later`, `disable_endpoint` or `dead`."""
    elapsed_ms: float
    reused: bool
    """On a kept-alive connection."""
    origin: ApiOrigin | None = None
    """Missing in records of older versions."""
    answer: str = ""
    """Beginning of the response body, if the attempt failed and the dispatchers keep bodies (`history.answers`)."""

    @property
    def began_at(self) -> float:
        """When the request began: `at` is when it ended."""
        return self.at - self.elapsed_ms / 1000


@dataclass(frozen=True, slots=True)
class BucketModel(ApiValue):
    """Attempts of one span of time: an event that is tried or sent again counts each time."""

    start: Time
    delivered: int = 0
    failed: int = 0
    """Failed attempts that are retried."""
    dead: int = 0


@dataclass(frozen=True, slots=True)
class Outcomes:
    """Counts of a tenant's attempts over a window, for the chart."""

    window: Window
    bucket_s: float
    buckets: tuple[BucketModel, ...]
    """Oldest first, without gaps; the last one is still filling."""
    p50_ms: float | None = None
    """Of the responses in the window; None if there were none."""
    p95_ms: float | None = None
    is_completed: bool = False
    """The history store has added what the topic no longer has."""

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
    items: tuple[AttemptModel, ...]
    next: str | None
    """Cursor of the next page; None at the end of the kept attempts."""


# Lanes, from the running dispatchers

State = Literal["active", "unstable", "failing", "disabled", "paused", "off", "unknown"]
"""`paused`: events are held until an administrator resumes it. `off`: events are skipped (`enabled: false`)."""


@dataclass(frozen=True, slots=True)
class LaneModel(ApiValue):
    """The tenant's lane over all running dispatchers: the worst value of each field, counts added up."""

    state: Literal["active", "unstable", "disabled"]
    """The state that these dispatchers judge by their own attempts; `/state` is judged by those of all."""
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
class TierModel(ApiValue):
    """Events that wait in a retry tier, or that are held for one reason."""

    tier: str
    """`30s`; `held` for events that wait for a change of configuration."""
    events: int
    next_due: Time | None
    is_at_least: bool = False
    """There may be more."""
    reason: str | None = None
    """Why events are held: `paused`, `unusable`. Retry tiers have none."""
    expires_at: Time | None = None
    """When the oldest of these events reaches the age limit and is dead, unless it is sent before."""


# Dead events, from the dead-letter topic


@dataclass(frozen=True, slots=True)
class DeadEventModel(ApiValue):
    """A dead event."""

    id: str
    """`<partition>-<offset>` in the dead-letter topic."""
    org: str | None
    sandbox: str | None
    event_id: str | None
    """The `webhook-id`, unless the record can't be read."""
    died_at: Time
    first_seen: Time | None
    reason: str
    """Why the event died; empty if another program wrote the record."""
    detail: str
    attempts: int
    last_status: int | None
    message_status: str | None
    channel: str | None
    recipient: str | None
    """Personal data: masked for viewers."""
    redriven: bool
    """Whether a redrive has sent the event again."""
    origin: ApiOrigin
    campaign_id: str | None = None
    can_be_sent: bool = True
    """false if a redrive leaves the event: it can't be read, is too large, or only a part of it is kept."""

    @property
    def tenant(self) -> TenantKey | None:
        """The event's tenant; None if the record can't be read."""
        return None if self.org is None or self.sandbox is None else TenantKey(self.org, self.sandbox)


@dataclass(frozen=True, slots=True)
class DeadQuery:
    """Selects dead events, the newest first. Always limited to the caller's organisations."""

    tenant: TenantKey | None = None
    event_ids: frozenset[str] = frozenset()
    """Values of `webhook-id`."""
    reasons: frozenset[str] = frozenset()
    message_statuses: frozenset[str] = frozenset()
    channels: frozenset[str] = frozenset()
    campaign_id: str | None = None
    since: float | None = None
    until: float | None = None
    redriven: bool | None = False
    """None: both."""
    sendable: bool = False
    """Only those that a redrive can send."""
    before: str | None = None
    limit: int = 50


@dataclass(frozen=True, slots=True)
class DeadPage:
    items: tuple[DeadEventModel, ...]
    total: int
    """How many of the kept events match."""
    next: str | None
    by_tenant: Mapping[TenantKey, int] = field(default_factory=dict)
    """How many of the kept events of each tenant match; some unreadable records have no tenant."""
    sendable: Mapping[TenantKey, int] = field(default_factory=dict)
    """How many of those a redrive can send."""
    is_complete: bool = True
    """False if the topic holds more than is kept, or is still being read."""


@dataclass(frozen=True, slots=True)
class DeadRecord:
    """A dead event's record as it is in the dead-letter topic. It may contain personal data: for operators only."""

    key: bytes | None = field(repr=False)
    value: bytes | None = field(repr=False)
    headers: tuple[tuple[str, bytes | None], ...] = field(repr=False)
    """Those of the original record, then the dispatcher's own."""


# Test events


@dataclass(frozen=True, slots=True)
class StepModel(ApiValue):
    """One step of a test request."""

    name: Literal["address", "connect", "tls", "token", "request", "first_byte", "answer"]
    ok: bool | None
    """No value if the step was not reached or not needed."""
    ms: float | None = None
    detail: str = ""
    """`203.0.113.7`, `TLSv1.3, certificate until 2027-01-31`, …"""


@dataclass(frozen=True, slots=True)
class HeaderModel(ApiValue):
    """A header that was sent; secrets are masked."""

    name: str
    value: str


def _header_models(headers: Sequence[tuple[str, str]]) -> tuple[HeaderModel, ...]:
    return tuple(HeaderModel(name, value) for name, value in headers)


@dataclass(frozen=True, slots=True)
class TestResultModel(ApiValue):
    """The result of a test event. A preview has `event_id`, `request` and `body` only."""

    __test__: ClassVar[bool] = False

    steps: tuple[StepModel, ...]
    event_id: str
    verdict: str
    """As in an attempt."""
    reason: str
    status: int | None
    elapsed_ms: float
    verdict_in_words: str
    """A sentence about what the dispatcher would do with a real event."""
    remedy: str
    """The change to make; empty if the event was delivered."""
    answer: str
    """The first 2,048 bytes of the response body, as text; never markup."""
    request: Annotated[
        tuple[tuple[str, str], ...], PlainSerializer(_header_models, return_type=tuple[HeaderModel, ...])
    ] = ()
    """Headers that were sent, secrets masked."""
    body: str = ""
    """The payload that was sent; a sample event contains no personal data."""
