"""Settings of brokers, topics and the consumer group: `kafka`."""

import re
from ipaddress import IPv6Address
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, ValidationInfo, model_validator

from dispatcher.config.kafka_security import KafkaSecurity
from dispatcher.config.names import Name
from dispatcher.config.settings_group import SettingsGroup
from dispatcher.config.units import NO_SWITCH, Bytes, Seconds

_HOST = re.compile(r"[^\s/;:@?#\[\]]+")
_SEPARATOR = re.compile(r"[\s;]")
_PORT = re.compile(r"[0-9]{1,5}")
_DEFAULT_PORT = 9092
_MAX_SHOWN = 100
"""Characters of a wrong entry that a message quotes."""
_TOPIC_NAME = re.compile(r"[a-zA-Z0-9._-]+", re.ASCII)


def _topic_name(name: str) -> str:
    if not _TOPIC_NAME.fullmatch(name) or name in (".", ".."):
        raise ValueError("is not a legal topic name: use letters, digits, '.', '_' and '-' only")
    return name


def _fit_for_topics(group_id: str, info: ValidationInfo) -> str:
    if info.data.get("topic_prefix") is None and (not _TOPIC_NAME.fullmatch(group_id) or group_id in (".", "..")):
        raise ValueError(
            "the dispatcher's own topics are named after it, and it is not a legal topic name: set kafka.topic_prefix, "
            "or use letters, digits, '.', '_' and '-' only"
        )
    return group_id


def _bootstrap_servers(text: str) -> str:
    """Returns the servers without blanks and empty entries, each with its port."""
    servers = [_server(one) for one in map(str.strip, text.split(",")) if one]
    if not servers:
        raise ValueError("names no broker: write host:port of one or more, separated by commas")
    return ",".join(servers)


def _server(text: str) -> str:
    shown = repr(text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}…")
    if "://" in text:
        raise ValueError(f"{shown}: write host:port without a scheme; kafka.security.protocol says how to connect")
    if _SEPARATOR.search(text):
        raise ValueError(f"{shown}: is not host:port; commas separate brokers")
    if text.startswith("[") or text.count(":") > 1:
        inner, closed, rest = text.removeprefix("[").partition("]")
        if not _is_ipv6(inner) or text.startswith("[") != bool(closed) or (rest and rest[0] != ":"):
            raise ValueError(f"{shown}: write an IPv6 address with a port as [address]:port")
        host, colon, port = f"[{inner}]", rest[:1], rest[1:]
    else:
        host, colon, port = text.partition(":")
        if not _HOST.fullmatch(host):
            raise ValueError(f"{shown}: is not host:port; commas separate brokers")
    if not colon:
        return f"{host}:{_DEFAULT_PORT}"
    if not _PORT.fullmatch(port) or not 1 <= int(port) <= 65535:
        raise ValueError(f"{shown}: the port must be a number from 1 to 65535")
    return f"{host}:{port}"


def _is_ipv6(text: str) -> bool:
    address, _, zone = text.partition("%")
    try:
        IPv6Address(address)
    except ValueError:
        return False
    return ":" not in zone


TopicName = Annotated[
    Name, AfterValidator(_topic_name), Field(json_schema_extra={"pattern": f"^{_TOPIC_NAME.pattern}$"})
]


class KafkaSettings(SettingsGroup):
    """Brokers, topics and consumer group."""

    bootstrap_servers: Annotated[str, Field(min_length=1), AfterValidator(_bootstrap_servers)]
    """host:port of one or more brokers, separated by commas."""
    topic: TopicName = "delivery-events"
    """Topic of delivery events."""
    topic_prefix: TopicName | None = None
    """Prefix of the names of the dispatcher's own topics: `<topic_prefix>.retry.30s`, `<topic_prefix>.dead`. By default
    the group_id, so that two groups on one topic of events never share parked events. Versions before this
    setting used the topic's name."""
    group_id: Annotated[Name, AfterValidator(_fit_for_topics)] = "feedback-dispatcher"
    """Consumer group. Its members share the partitions; retry tiers are read by `<group_id>.retry`."""
    group_instance_id: Name | None = None
    """Stable name of this member (static membership): a restart within session_timeout causes no rebalance."""
    client_id: Name = "feedback-dispatcher"
    security: KafkaSecurity = KafkaSecurity()
    auto_offset_reset: Literal["earliest", "latest"] = "earliest"
    """Position of the group at its very first start: `latest` skips the records that exist then. Partitions that are
    added later are read from their start. So is the topic if Kafka has forgotten the group's positions
    (`offsets.retention.minutes` without members) and the retry, held, dead-letter or history topics have had records.
    """
    session_timeout: Annotated[Seconds, Field(ge=2, le=1800)] = 12
    """Time without a heartbeat after which the group removes a member; heartbeats are sent every 3 s. After a crash,
    the member's partitions wait for this time and a few seconds more. A process that stood still for longer sends
    nothing until it has joined again. Kafka's brokers refuse less than 6 s by default."""
    commit_interval: Annotated[Seconds, Field(ge=0.01, le=60)] = 0.05
    """Interval between commits. A commit is delayed by up to a second while it would cover fewer records than half the
    requests in flight. A crash repeats the records finished since the last commit, and those in flight."""
    partition_window: Annotated[int, Field(ge=1, le=100_000), NO_SWITCH] = 10_000
    """Maximum distance of a partition's first and last unfinished record; past it, the partition is paused."""
    max_unfinished: Annotated[int, Field(ge=1, le=10_000_000), NO_SWITCH] = 20_000
    """Maximum number of unfinished records in the process: waiting in lanes, or being sent."""
    max_unfinished_bytes: Bytes = 128 * 1024 * 1024
    """Maximum size of all unfinished records together: values, keys and headers. Batches that are decompressed and not
    yet read to their end may have half of it in addition, and one batch more. A batch that would be larger than this
    when it is decompressed, and than 128 MiB, is not read: its partition waits (`records_unreadable`)."""
    fetch_max_bytes: Annotated[Bytes, Field(le=2**31 - 1)] = 8 * 1024 * 1024
    """Maximum size of one fetch response, compressed as in the topic. It has at most 1 MiB of a partition, or one
    batch; what a partition has of it stays in memory until it is read."""
    max_record_bytes: Annotated[Bytes, Field(le=2**31 - 1)] = 1024 * 1024
    """A larger record is dead-lettered as unreadable."""
    idempotence: Literal["auto", "on", "off"] = "auto"
    """Idempotent producer for retry and dead-letter records; `auto`: if the broker supports it."""

    @property
    def prefix(self) -> str:
        """Prefix of the names of the dispatcher's own topics."""
        return self.topic_prefix or self.group_id

    @model_validator(mode="after")
    def _events_are_not_own(self) -> Self:
        own = {f"{self.prefix}.{name}" for name in ("dead", "held", "history", "attempts")}  # attempts: until 0.1
        if self.topic in own or self.topic.startswith(f"{self.prefix}.retry."):
            raise ValueError(f"topic {self.topic} is one of the dispatcher's own topics: set another topic_prefix")
        return self
