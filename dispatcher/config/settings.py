"""The operator's settings (`dispatcher.yaml`): frozen models in groups, with units and reasons for the defaults.

A misspelt key prevents the start. Each part of the program gets its own group, never all settings. The models hold
durations in seconds and sizes in bytes.
"""

from pathlib import Path
from typing import Annotated, Final, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, StringConstraints, model_validator

from dispatcher.config.console_settings import ConsoleSettings
from dispatcher.config.kafka_settings import KafkaSettings
from dispatcher.config.names import MAX_NAME, Name
from dispatcher.config.notification_settings import NotificationSettings
from dispatcher.config.ops_tls import OpsTls
from dispatcher.config.secrets import PaddedTextSecret, Secret, TextSecret
from dispatcher.config.settings_group import ListenHost, LongKey, LongText, Port, SettingsGroup
from dispatcher.config.units import NO_SWITCH, Bytes, Seconds
from dispatcher.config.web_addresses import checked_url


def fit_for_a_header(value: Secret) -> Secret:
    """Returns the secret. Raises ValueError if it can't be a header's value."""
    if any(byte < 0x20 or byte > 0x7E for byte in value.reveal()):
        raise ValueError("must be visible ASCII, without a line break")
    return value


class WebhookSecretSettings(SettingsGroup):
    """Files and environment variables that secret references in webhook files may name."""

    files: tuple[Path, ...] | None = None
    """Directories of secret files. By default the webhooks' own directory and /run/secrets/webhooks. Links are resolved
    first, and a file that these settings refer to is refused wherever it is."""
    env: tuple[Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$", max_length=200)], ...] = (
        "WEBHOOK_",
    )
    """Prefixes of names of environment variables. Names that begin with DISPATCHER_ are always refused."""


class WebhookSettings(SettingsGroup):
    """Store of the webhooks, and its cache."""

    store: Literal["yaml", "sql"] = "yaml"
    """`yaml`: files in the directory `path`. `sql`: the database at `url`, which the console edits."""
    path: Path | None = None
    """Directory of YAML files, for store yaml."""
    url: PaddedTextSecret | None = None
    """Database URL, for store sql: `sqlite+aiosqlite:///path` or `postgresql+asyncpg://…`."""
    secrets: WebhookSecretSettings = WebhookSecretSettings()
    encryption_keys: list[Secret] = Field(default_factory=list)
    """Fernet keys for secrets at rest, for store sql: the first encrypts, all decrypt."""
    cache_ttl: Seconds = 30
    """Time for which a cached webhook is used before the store is queried again."""
    negative_ttl: Seconds = 5
    """Time for which a tenant without a webhook is cached."""
    cache_size: Annotated[int, Field(ge=1), NO_SWITCH] = 100_000
    """Maximum number of tenants in the cache."""
    reload_interval: Seconds = 10
    """Interval at which files are compared by content, in addition to the watch on their directories."""

    @model_validator(mode="after")
    def _what_the_store_needs(self) -> Self:
        if self.store == "yaml" and self.path is None:
            raise ValueError("store yaml needs path, the directory of webhook files")
        if self.store == "sql" and self.url is None:
            raise ValueError("store sql needs url, the URL of the database")
        return self


class DeliverySettings(SettingsGroup):
    """Limits of requests to the endpoints."""

    max_in_flight: Annotated[int, Field(ge=1, le=10_000), NO_SWITCH] = 500
    """Maximum number of requests in flight, for all tenants together."""
    timeout: Annotated[Seconds, Field(ge=1, le=30)] = 10
    """Time for one attempt, DNS and the body of the response included. A webhook can set its own."""
    connect_timeout: Annotated[Seconds, Field(le=30)] = 3
    """Time for the TCP connection and the TLS handshake, within `timeout`. A webhook can set its own."""
    connection_max_age: Annotated[Seconds, Field(ge=1, le=86_400)] = 300
    """A kept-alive connection is not used again after 0.8 to 1 times this time, so that load follows endpoints that
    scale or move. One whose address DNS no longer names isn't used again in any case."""
    drain_timeout: Annotated[Seconds, Field(le=600)] = 25
    """Time for the requests in flight to finish after SIGTERM."""
    lane_start: Annotated[int, Field(ge=1, le=1_000), NO_SWITCH] = 16
    """Initial limit of concurrent requests to one tenant."""
    lane_max: Annotated[int, Field(ge=1, le=1_000), NO_SWITCH] = 64
    """Maximum number of concurrent requests to one tenant."""
    lane_max_wait: Seconds = 5
    """Time after which an event that waits in its lane is parked in the first tier, so that it delays no other."""
    max_body: Bytes = 256_000
    """A larger feedback payload is dead-lettered."""
    transport: Literal["aiohttp", "lean"] = "lean"
    """HTTP client: `lean` is made for this job, `aiohttp` is general-purpose."""


class RetrySettings(SettingsGroup):
    """Schedule of retries after a failed delivery."""

    profile: Literal["default", "standard-webhooks"] = "default"
    """`standard-webhooks`: 5s 5m 30m 2h 5h 10h 14h 20h 24h, up to 80 h. Explicit tiers or max_age override it."""
    tiers: tuple[Annotated[Seconds, Field(ge=0.1, le=86_400)], ...] = Field(default=(), max_length=16)
    """Delays; each has a topic, and the last one repeats. Default profile: 30s 2m 5m 15m."""
    max_age: Seconds = 0.0  # replaced by the value of the profile below
    """Age, counted from the first attempt, at which an event that still fails is dead. Default profile: 24h."""
    soon_attempts: Annotated[int, Field(ge=0, le=10), NO_SWITCH] = 3
    """Number of quick retries after the first failure, before the tiers."""
    soon_within: Seconds = 15
    """Time for the quick retries, from the first failure."""

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


class DeadLetterSettings(SettingsGroup):
    """Brake that stops a partition when too many of its events become dead letters."""

    brake: Annotated[int, Field(ge=0), NO_SWITCH] = 500
    """Excess of unreadable and internal dead letters over other outcomes at which a partition stops and an alert fires,
    so that a topic is never drained into the dead letters. 0: no brake."""


class ProxySettings(SettingsGroup):
    """The operator's egress proxy, reached by CONNECT."""

    url: Annotated[str, Field(min_length=1)]
    """`http://proxy:3128` or `https://proxy:3128`."""
    username: (
        Annotated[str, StringConstraints(min_length=1, max_length=MAX_NAME, pattern=r"^[^:\x00-\x1f\x7f]+$")] | None
    ) = None
    """User name for the proxy (Basic authentication); without a colon."""
    password: TextSecret | None = None
    """Password for the proxy."""
    resolve: Literal["local", "proxy"] = "local"
    """Place where the endpoints' names are resolved. `local`: the dispatcher resolves them, checks every address, and
    requests a tunnel to the checked address. `proxy`: the dispatcher requests a tunnel to the host name, for networks
    whose pods have no public DNS. It then sees no addresses: it checks names and address literals only, and the proxy
    must refuse connections to internal addresses."""

    @model_validator(mode="after")
    def _a_pair(self) -> Self:
        if (self.username is None) != (self.password is None):
            raise ValueError("username and password belong together: give both")
        return self


def _proxy_by_url(value: object) -> object:
    return {"url": value} if isinstance(value, str) else value


class EgressSettings(SettingsGroup):
    """Addresses that requests may go to. Private, loopback and other special addresses are denied by default."""

    allow: tuple[str, ...] = ()
    """CIDR blocks, host suffixes (`.svc.example`) or host names that are allowed in spite of the defaults. A name only
    allows private, loopback and carrier-grade NAT addresses. Metadata services, link-local and multicast addresses need
    a CIDR block."""
    deny: tuple[str, ...] = ()
    """CIDR blocks, host suffixes or host names that are always denied: deny overrides allow."""
    ports: tuple[Annotated[int, Field(ge=1, le=65535), NO_SWITCH], ...] = ()
    """Ports that may be connected to; by default 443, 8443 and 1024 to 65535."""
    allow_http: bool = False
    """Allows plain HTTP; for tests only."""
    ca_bundle: Path | None = None
    """PEM bundle to verify endpoints with; the system's by default."""
    proxy: Annotated[
        ProxySettings | None, BeforeValidator(_proxy_by_url, json_schema_input_type=ProxySettings | str | None)
    ] = None
    """Egress proxy, reached by CONNECT: `{url: http://proxy:3128}`, or the URL alone."""
    nameservers: tuple[str, ...] = ()
    """DNS servers as ip:port, in place of the system's resolver."""


class OpsSettings(SettingsGroup):
    """The operators' endpoint: /livez /readyz /metrics /configz /lanes."""

    host: ListenHost | None = None
    """Address to listen on; null: all addresses, IPv4 and IPv6."""
    port: Port = 9090
    """Port to listen on. 0 takes a free port, which the log names."""
    token: LongText | None = None
    """Bearer token of at least 32 bytes for `/metrics`, `/configz` and `/lanes` from other hosts; the console sends it
    to the dispatchers. Without one `/metrics` is open, and `/configz` and `/lanes` answer the process's own host
    only."""
    tls: OpsTls | None = None
    """TLS for the port: `{certificate: PATH, key: PATH}`. Null: plain HTTP."""


class LogSettings(SettingsGroup):
    """Format and level of the log."""

    format: Literal["json", "console"] = "json"
    """`json`: one object per line. `console`: lines for people, with colours in a terminal."""
    level: Annotated[Literal["debug", "info", "warning", "error"], AfterValidator(str.lower)] = "info"
    """Lowest level of the lines that are logged."""


class MetricsSettings(SettingsGroup):
    """Metrics with tenant labels."""

    tenant_labels: Literal["off", "org", "org_sandbox"] = "org"
    """Tenant labels of the metrics that have any."""
    max_tenant_series: Annotated[int, Field(ge=0, le=10_000), NO_SWITCH] = 200
    """Maximum number of tenants with series of their own; the rest are counted under `_other`."""
    worst_tenants: Annotated[int, Field(ge=0, le=100), NO_SWITCH] = 20
    """Number of tenants with series for the age of their oldest pending event and the expiry of their endpoint's
    certificate: those with the oldest event or the first expiry. 0: none."""


class TracingSettings(SettingsGroup):
    """OpenTelemetry traces: a span for each event and each attempt. Needs the extra `otel`, which the image has."""

    enabled: bool = False
    """Sends traces to the collector at `endpoint`."""
    endpoint: Annotated[str, AfterValidator(checked_url)] = "http://localhost:4318"
    """Base URL of a collector that accepts OTLP over HTTP; spans are sent to its path `/v1/traces`."""
    headers: dict[
        Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-]{1,64}$")],
        Annotated[Secret, AfterValidator(fit_for_a_header)],
    ] = Field(default_factory=dict)
    """Headers for the collector, such as `authorization`."""
    ca: Path | None = None
    """PEM bundle to verify the collector with; public authorities by default."""
    sample_ratio: Annotated[float, Field(ge=0, le=1), NO_SWITCH] = 0.01
    """Share of events that are traced, unless the producer has decided it in `traceparent`. A traced event costs
    several times the CPU time; the others cost a little more than without tracing (docs/operating.md)."""
    service_name: Name = "feedback-dispatcher"
    queue: Annotated[int, Field(ge=1, le=1_000_000), NO_SWITCH] = 10_000
    """Maximum number of spans that wait to be sent; further ones are dropped and counted. No delivery waits."""
    timeout: Annotated[Seconds, Field(le=60)] = 5
    """Time for one request to the collector, and for the remaining spans when the process ends."""


class HistoryKeepSettings(SettingsGroup):
    """How long the history store keeps entries. PostgreSQL drops whole days, so up to one day longer."""

    failed: Annotated[Seconds, Field(ge=60)] = 30 * 86_400.0
    """Failed attempts, and events that are parked, held, dead or redriven; also how such an event ended, delivered or
    skipped."""
    delivered: Annotated[Seconds, Field(ge=60)] = 86_400.0
    """Events that were delivered at once."""
    skipped: Annotated[Seconds, Field(ge=60)] = 86_400.0
    """Events that were skipped at once."""


class HistorySettings(SettingsGroup):
    """The history of events: a topic that dispatchers write to, and a store that the console searches."""

    store: Literal["sql", "none"] = "sql"
    """`sql`: the database at `url`; without a url there is no history. `none`: dispatchers write the topic for your own
    sink, and the console has nothing to search."""
    url: PaddedTextSecret | None = None
    """Database URL: `sqlite+aiosqlite:///path` or `postgresql+asyncpg://…`. Tables are made when they are missing."""
    keep: HistoryKeepSettings = HistoryKeepSettings()
    recipient_key: LongKey | None = None
    """At least 32 bytes that key the hash of recipients' addresses; the same everywhere. Without it entries hold no
    trace of recipients, and no message is found by its address."""
    answers: bool = False
    """Keeps the first 2,048 bytes of the response to a failed attempt. E-mail addresses, international phone numbers
    and tokens are masked. Other personal data in a response is kept, so this is off by default."""
    embedded: bool = True
    """`dispatcher console` fills the store itself. Set false if `dispatcher history` runs on its own."""

    @property
    def is_on(self) -> bool:
        """True if dispatchers write the history topic."""
        return self.store == "none" or self.url is not None

    @property
    def has_store(self) -> bool:
        """True if a history worker fills a store."""
        return self.store == "sql" and self.url is not None


_RENAMED: Final = {"attempt_log": "history.url", "attempt_log_answers": "history.answers"}


class Settings(SettingsGroup):
    """All settings of the operator: the content of `dispatcher.yaml`."""

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
    tracing: TracingSettings = TracingSettings()
    history: HistorySettings = HistorySettings()
    notifications: NotificationSettings = NotificationSettings()

    @model_validator(mode="before")
    @classmethod
    def _renamed(cls, values: object) -> object:
        if isinstance(values, dict):
            for old, new in _RENAMED.items():
                if old in values:
                    raise ValueError(f"{old} is replaced by {new}: remove {old}, see docs/history.md")
        return values
