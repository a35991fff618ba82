"""The operator's settings (`dispatcher.yaml`): grouped, frozen, each with its unit and the reason for its number.

A misspelt key stops the start. Each part of the program is given its own group, never the tree. Durations are in
seconds, sizes in bytes, once read.
"""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from dispatcher.secrets import Name, Secret
from dispatcher.units import Bytes, Seconds

Port = Annotated[int, Field(ge=0, le=65535)]


class _Group(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class KafkaSecurity(_Group):
    """How the connection to the brokers is secured."""

    protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = "PLAINTEXT"
    mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] | None = None
    """SASL mechanism, for the SASL_ protocols."""
    username: Name | None = None
    password: Secret | None = None
    ca: Path | None = None
    """PEM bundle to verify the brokers with; the system's by default."""
    certificate: Path | None = None
    """Client certificate chain (mTLS), PEM."""
    key: Path | None = None
    """The client certificate's private key, PEM."""

    @model_validator(mode="after")
    def _what_the_protocol_needs(self) -> Self:
        if self.protocol.startswith("SASL") and (
            self.mechanism is None or self.username is None or self.password is None
        ):
            raise ValueError(f"protocol {self.protocol} needs mechanism, username and password")
        if (self.certificate is None) != (self.key is None):
            raise ValueError("certificate and key belong together: give both")
        return self


class KafkaSettings(_Group):
    """Where the events come from."""

    bootstrap_servers: Annotated[str, Field(min_length=1)]
    """host:port of one or more brokers, separated by commas."""
    topic: Name = "delivery-events"
    """Topic of delivery events; the retry and dead-letter topics are named after it."""
    group_id: Name = "feedback-dispatcher"
    """Consumer group. Its members share the partitions; retry tiers are read by `<group_id>.retry`."""
    group_instance_id: Name | None = None
    """Stable name of this member (static membership): a restart within session_timeout causes no rebalance."""
    client_id: Name = "feedback-dispatcher"
    security: KafkaSecurity = KafkaSecurity()
    auto_offset_reset: Literal["earliest", "latest"] = "earliest"
    """Where a partition without a committed offset is read from. `latest` passes over what was there before."""
    session_timeout: Annotated[Seconds, Field(ge=2)] = 45
    """A member that was silent for so long is out of the group. 45 s outlasts a rolling restart of one pod. Kafka's
    brokers refuse less than 6 s unless told otherwise."""
    commit_interval: Seconds = 1
    """Finished offsets are committed this often: what a crash repeats at most, beside what was in flight."""
    partition_window: Annotated[int, Field(ge=1, le=100_000)] = 10_000
    """Unfinished records of one partition, first to last; past it the partition is paused."""
    max_unfinished: Annotated[int, Field(ge=1)] = 20_000
    """Unfinished records of the process, waiting in lanes or being sent."""
    max_unfinished_bytes: Bytes = 128 * 1024 * 1024
    """Their values' bytes, together."""
    fetch_max_bytes: Bytes = 8 * 1024 * 1024
    """Most bytes of one answer to a fetch: bounds what is buffered beyond the unfinished records."""
    max_record_bytes: Bytes = 1024 * 1024
    """A larger record is dead-lettered as unreadable."""
    idempotence: Literal["auto", "on", "off"] = "auto"
    """Idempotent producer for retry and dead-letter records; auto: where the broker can."""


class WebhookSettings(_Group):
    """Where the webhooks are configured."""

    store: Literal["yaml", "sql"] = "yaml"
    path: Path | None = None
    """Directory of YAML files, for store yaml."""
    url: Secret | None = None
    """Database URL, for store sql: `sqlite+aiosqlite:///path` or `postgresql+asyncpg://…`."""
    encryption_keys: list[Secret] = Field(default_factory=list)
    """Fernet keys for secrets at rest, for store sql: the first encrypts, all decrypt."""
    cache_ttl: Seconds = 30
    """How long a cached webhook is used before the store is asked again."""
    negative_ttl: Seconds = 5
    """The same for a tenant that has none."""
    cache_size: Annotated[int, Field(ge=1)] = 100_000
    """Tenants kept in the cache."""
    reload_interval: Seconds = 10
    """How often files are compared by content, beside the watch on their directories."""

    @model_validator(mode="after")
    def _what_the_store_needs(self) -> Self:
        if self.store == "yaml" and self.path is None:
            raise ValueError("store yaml needs path, the directory of webhook files")
        if self.store == "sql" and self.url is None:
            raise ValueError("store sql needs url, the database's")
        return self


class DeliverySettings(_Group):
    """How requests are sent."""

    max_in_flight: Annotated[int, Field(ge=1, le=10_000)] = 500
    """Requests under way at once, all tenants together."""
    timeout: Annotated[Seconds, Field(ge=1, le=30)] = 10
    """One attempt in all, DNS and the body of the answer included; a webhook can set its own."""
    connect_timeout: Annotated[Seconds, Field(le=30)] = 3
    """TCP connect and TLS handshake, within `timeout`."""
    drain_timeout: Annotated[Seconds, Field(le=600)] = 25
    """After SIGTERM, time for the requests under way to finish."""
    lane_start: Annotated[int, Field(ge=1, le=1_000)] = 16
    """Requests at once to a tenant that nothing is known of yet."""
    lane_max: Annotated[int, Field(ge=1, le=1_000)] = 64
    """Most requests at once to one tenant."""
    lane_max_wait: Seconds = 5
    """An event that its own lane has let wait so long is parked in the first tier, and holds up nobody."""
    max_body: Bytes = 256_000
    """A larger feedback payload is dead-lettered."""
    transport: Literal["aiohttp", "lean"] = "aiohttp"
    """HTTP client: aiohttp, or the one made for this job."""


class RetrySettings(_Group):
    """When a failed delivery is tried again."""

    profile: Literal["default", "standard-webhooks"] = "default"
    """`standard-webhooks`: 5s 5m 30m 2h 5h 10h 14h 20h 24h, up to 80 h. Explicit tiers or max_age win."""
    tiers: tuple[Annotated[Seconds, Field(ge=0.1, le=86_400)], ...] = Field(default=(), max_length=16)
    """Delays, each a topic; the last one repeats. Default profile: 30s 2m 5m 15m."""
    max_age: Seconds = 0.0  # replaced by the profile's below
    """An event that still fails at this age is dead. Default profile: 24h."""
    soon_attempts: Annotated[int, Field(ge=0, le=10)] = 3
    """Quick tries after a first failure, before the tiers."""
    soon_within: Seconds = 15
    """Time for the quick tries, from the first failure."""

    @model_validator(mode="before")
    @classmethod
    def _profile(cls, values: object) -> object:
        if not isinstance(values, dict):
            return values
        if values.get("profile") == "standard-webhooks":
            defaults = {"tiers": ["5s", "5m", "30m", "2h", "5h", "10h", "14h", "20h", "24h"], "max_age": "80h"}
        else:
            defaults = {"tiers": ["30s", "2m", "5m", "15m"], "max_age": "24h"}
        return defaults | values

    @model_validator(mode="after")
    def _rising(self) -> Self:
        if not self.tiers or list(self.tiers) != sorted(set(self.tiers)):
            raise ValueError("tiers must be at least one, each longer than the one before")
        return self


class DeadLetterSettings(_Group):
    """What is given up for good."""

    brake: Annotated[int, Field(ge=0)] = 500
    """Records of one partition that may die as unreadable or internal beyond those that end otherwise; then the
    partition stops and alarms, rather than draining the topic into the dead letters. 0: no brake."""


class EgressSettings(_Group):
    """Where requests may go. Private, loopback and other special addresses are denied unless allowed here."""

    allow: tuple[str, ...] = ()
    """CIDR blocks, host suffixes (`.svc.example`) or host names that are allowed in spite of the defaults. A name opens
    private, loopback and carrier-grade NAT addresses only; metadata services, link-local and multicast take a block."""
    deny: tuple[str, ...] = ()
    """The same, denied in any case: deny wins."""
    ports: tuple[Annotated[int, Field(ge=1, le=65535)], ...] = ()
    """Ports that may be connected to; none given: 443, 8443 and 1024 to 65535."""
    allow_http: bool = False
    """Plain HTTP, for tests only."""
    ca_bundle: Path | None = None
    """PEM bundle to verify endpoints with; the system's by default."""
    proxy: str | None = None
    """Egress proxy, `http://proxy:3128` or `https://…`, reached by CONNECT."""
    nameservers: tuple[str, ...] = ()
    """DNS servers as ip:port, in place of the system's resolver."""


class OpsSettings(_Group):
    """The operators' endpoint: /livez /readyz /metrics."""

    host: str = "0.0.0.0"  # noqa: S104  (scraped from outside the pod)
    port: Port = 9090
    """0 takes a free one, named in the log."""


class ConsoleSettings(_Group):
    """The console and the admin API."""

    host: str = "127.0.0.1"
    port: Port = 8080


class LogSettings(_Group):
    """One line for each event that ends, more at level debug."""

    format: Literal["json", "console"] = "json"
    level: Annotated[Literal["debug", "info", "warning", "error"], AfterValidator(str.lower)] = "info"


class MetricsSettings(_Group):
    """How much the metrics tell of single tenants."""

    tenant_labels: Literal["off", "org", "org_sandbox"] = "org"
    """Labels of the two metrics that have any."""
    max_tenant_series: Annotated[int, Field(ge=0, le=10_000)] = 200
    """Tenants with series of their own; the rest are counted under `_other`."""


class Settings(_Group):
    """`dispatcher.yaml`."""

    apiVersion: Literal["dispatcher/v1"]  # noqa: N815  (the Kubernetes spelling)
    kafka: KafkaSettings
    webhooks: WebhookSettings
    delivery: DeliverySettings = DeliverySettings()
    retry: RetrySettings = RetrySettings.model_validate({})
    dead_letters: DeadLetterSettings = DeadLetterSettings()
    egress: EgressSettings = EgressSettings()
    ops: OpsSettings = OpsSettings()
    console: ConsoleSettings = ConsoleSettings()
    log: LogSettings = LogSettings()
    metrics: MetricsSettings = MetricsSettings()
    attempt_log: bool = False
    """Write one record an attempt to `<topic>.attempts`, without personal data."""
