"""A Kafka record, and the headers that a parked or dead one carries. No Kafka client is named here."""

import math
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Final

from dispatcher.contract.outcomes import Outcome
from dispatcher.contract.values import slots_dataclass
from dispatcher.errors import Draining

RecordHeaders = Sequence[tuple[str, bytes | None]]
"""Kafka headers: a value may be null."""

PREFIX: Final = "feedback-"
OLDEST_EVENT_S: Final = 365 * 86_400.0
"""A record's timestamp that is older is implausible: no topic of events keeps records this long."""
LOG_APPEND_TIME: Final = 1
"""`timestamp_type` of a record whose timestamp is the broker's."""
_ORIGIN_TOPIC: Final = PREFIX + "origin-topic"


@slots_dataclass
class Record:
    """One record as it was read."""

    topic: str
    partition: int
    offset: int
    timestamp: int
    """Milliseconds since 1970, of the producer or the broker; -1 if the record has none."""
    key: bytes | None
    value: bytes | None
    headers: RecordHeaders
    timestamp_type: int = 0
    """0: the producer's; 1: the broker's (`LogAppendTime`)."""


@slots_dataclass
class Origin:
    """The event's first place in Kafka. It is the same on every hop, so that the webhook-id is too."""

    topic: str
    partition: int
    offset: int

    def __str__(self) -> str:
        return f"{self.topic}/{self.partition}/{self.offset}"


@slots_dataclass
class RetryState:
    """An event's attempts and waits so far; stored in `feedback-*` headers."""

    origin: Origin
    first_seen: float
    """Unix seconds of the first attempt or the first parking, whichever came first: the age limit counts from here."""
    attempts: int = 0
    """POSTs made, over all hops."""
    parks: int = 0
    """Times parked, with or without an attempt."""
    not_before: float = 0.0
    """Unix seconds; a parked record is due then."""
    last_status: int | None = None
    reason: str = ""
    origin_timestamp: int = 0
    """Milliseconds since 1970, of the original record; 0 if it is not known."""
    refusals: int = 0
    """POSTs whose payload the endpoint refused: the fourth one is the last."""

    def headers(self) -> list[tuple[str, bytes]]:
        """Returns the state as record headers."""
        fields = {
            "origin-topic": self.origin.topic,
            "origin-partition": str(self.origin.partition),
            "origin-offset": str(self.origin.offset),
            "first-seen": f"{self.first_seen:.3f}",
            "attempts": str(self.attempts),
            "parks": str(self.parks),
            "not-before": f"{self.not_before:.3f}",
            "last-status": "" if self.last_status is None else str(self.last_status),
            "reason": self.reason,
            "origin-timestamp": str(self.origin_timestamp),
            "refusals": str(self.refusals),
        }
        return [(PREFIX + name, value.encode()) for name, value in fields.items()]

    @staticmethod
    def fresh(record: Record, now: float) -> "RetryState":
        """Returns the state of a record that was just read from the topic of events. Its headers are ignored."""
        origin = Origin(record.topic, record.partition, record.offset)
        return RetryState(origin, round(now, 3), origin_timestamp=max(0, record.timestamp))

    @staticmethod
    def of(record: Record) -> "RetryState":
        """Reads the headers of a record on one of the dispatcher's own topics.

        Without headers, the record's own place and time are its origin and age. A header that can't be read counts as
        absent: it is better to count an event's attempts again from zero than not to deliver it.
        """
        own = RetryState.fresh(record, record.timestamp / 1000)
        if not record.headers:
            return own
        # A header's value may be null in Kafka, whatever a client's types say.
        found = {name: value or b"" for name, value in record.headers if name.startswith(PREFIX)}
        if _ORIGIN_TOPIC not in found:
            return own
        status = _whole(found, "last-status", -1)
        return RetryState(
            origin=Origin(
                found[_ORIGIN_TOPIC].decode(errors="replace"),
                _whole(found, "origin-partition", record.partition),
                _whole(found, "origin-offset", record.offset),
            ),
            first_seen=_seconds(found, "first-seen", own.first_seen),
            attempts=_whole(found, "attempts", 0),
            parks=_whole(found, "parks", 0),
            not_before=_seconds(found, "not-before", 0.0),
            last_status=None if status < 0 else status,
            reason=found.get(PREFIX + "reason", b"").decode(errors="replace"),
            origin_timestamp=_whole(found, "origin-timestamp", 0),
            refusals=_whole(found, "refusals", 0),
        )


def place_of(record: Record) -> str:
    """Returns the record's place for messages: `topic/partition/offset`."""
    return f"{record.topic}/{record.partition}/{record.offset}"


@dataclass(slots=True)
class ProcessingAttempt:
    """One attempt to process a record. Until `started` is set, the consumer may stop it without any visible effect."""

    epoch: "AssignmentEpoch"
    started: bool = False
    resume: Callable[[], Awaitable[Outcome]] | None = None
    """What is left to do once an attempt was judged. Processing that failed goes on here: no POST is made twice."""
    read_at: float = field(default_factory=time.time)
    """Unix seconds at which processing began."""

    def start(self) -> None:
        """Marks the attempt as visible outside, before a request goes out or a record is written.

        Raises:
            Draining: this process may no longer own the partition, or is stopping. Nothing has happened yet.
        """
        epoch = self.epoch
        if not epoch.active or epoch.lease.now() >= epoch.lease.ends_at:
            raise Draining
        self.started = True


ProcessRecord = Callable[[Record, ProcessingAttempt], Awaitable[Outcome]]
"""Brings a record to its outcome. If it raises, the record has none and is processed again."""


STEADY_CLOCK: Final[Callable[[], float]] = (
    partial(time.clock_gettime, time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic
)
"""Seconds of a clock that can't be set. On Linux they pass while the machine is suspended, as for the group."""


@dataclass(slots=True)
class Lease:
    """The time for which a member is sure to keep its partitions: one session after the last answered heartbeat.

    After a longer pause of the process or silence of the broker, another member may own them without this process
    knowing it.
    """

    ends_at: float = math.inf
    """Seconds of `now`."""
    now: Callable[[], float] = STEADY_CLOCK

    @property
    def is_over(self) -> bool:
        """True if another member may own the partitions by now."""
        return self.now() >= self.ends_at


@dataclass(slots=True)
class AssignmentEpoch:
    """The right to process a partition's records, from its assignment to its revocation."""

    active: bool = True
    lease: Lease = field(default_factory=Lease)


def event_time(record: Record, read_at: float, now: float) -> float:
    """Returns the unix time from which a record's age counts in metrics: its timestamp, or `read_at`.

    A timestamp is ignored if it is missing, in the future, or over a year old, such as one that counts seconds. The age
    limit of an event doesn't depend on it, see `RetryState.first_seen`.
    """
    seen = record.timestamp / 1000
    return seen if now - OLDEST_EVENT_S <= seen <= now else min(read_at, now)


def was_parked(headers: RecordHeaders) -> bool:
    """Returns True if the event was parked or dead before: its record comes from a retry topic or the dead letters."""
    return any(name == _ORIGIN_TOPIC for name, _ in headers)


def without_retry_state(headers: RecordHeaders) -> list[tuple[str, bytes | None]]:
    """Returns the headers that the producer of the event wrote."""
    return [(name, value) for name, value in headers if not name.startswith(PREFIX)]


def _whole(found: dict[str, bytes], name: str, otherwise: int) -> int:
    text = found.get(PREFIX + name, b"")
    return int(text) if text.isdigit() and len(text) < 19 else otherwise


def _seconds(found: dict[str, bytes], name: str, otherwise: float) -> float:
    try:
        value = float(found.get(PREFIX + name, b""))
    except ValueError:
        return otherwise
    return value if math.isfinite(value) else otherwise
