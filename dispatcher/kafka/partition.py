"""What a consumer remembers of its partitions, and how much the process may have unfinished."""

import asyncio
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Protocol

from aiokafka import TopicPartition
from aiokafka.structs import ConsumerRecord

from dispatcher import metrics, series
from dispatcher.delivery.flights import Flight
from dispatcher.delivery.parcels import Tried
from dispatcher.kafka.offset_tracker import OffsetTracker
from dispatcher.outcomes import Outcome
from dispatcher.records import Claim, Turn

AHEAD_S = 2.0
LEAST_AHEAD = 1000
MEASURED_S = 0.25
BATCH = 100
"""Once it is full, reading goes on when so many have ended: beginning them together is quicker than one by one."""


@dataclass(slots=True)
class Budget:
    """What a consumer may have unfinished. Reads ahead no further than two seconds of recent work.

    An event then never waits long because the process is busy, and one that does wait long has its own lane to blame.
    """

    most_records: int
    most_bytes: int
    records: int = 0
    bytes: int = 0
    limit: int = field(init=False)
    is_full: bool = field(init=False)
    """No record may be begun now."""
    _finished: int = 0
    _since: float | None = None

    def __post_init__(self) -> None:
        self.limit = min(LEAST_AHEAD, self.most_records)
        self.is_full = self.records >= self.limit or self.bytes >= self.most_bytes

    def begin(self, size: int) -> None:
        """A record of so many bytes is begun."""
        self.records += 1
        self.bytes += size
        if self.records >= self.limit or self.bytes >= self.most_bytes:
            self.is_full = True

    def end(self, size: int, now: float) -> None:
        """It ended. `now`: seconds of a steady clock."""
        self.records -= 1
        self.bytes -= size
        self._finished += 1
        if self._since is None:
            self._since = now
        elapsed = now - self._since
        if elapsed >= MEASURED_S:
            wanted = int(self._finished / elapsed * AHEAD_S)
            # Up at once, down by halves: a short stall is no reason to stop reading.
            self.limit = max(min(LEAST_AHEAD, self.most_records), min(self.most_records, max(wanted, self.limit // 2)))
            self._finished, self._since = 0, now
        if self.is_full:
            room = min(BATCH, self.limit // 10)
            self.is_full = self.records > self.limit - max(1, room) or self.bytes >= self.most_bytes


class Ends(Protocol):
    """Whoever begins records: hears of their end, or takes them the full way."""

    def finished(self, work: "Work") -> None: ...
    def full_way(self, work: "Work", begun: Tried | None) -> None: ...
    def ended(self, work: "Work") -> None: ...


class Work(Turn):
    """One go at one record: by a flight, or by a task."""

    __slots__ = ("_ends", "flight", "partition", "record", "size", "task")

    def __init__(self, ends: Ends, partition: "Partition", record: "ConsumerRecord[bytes, bytes]") -> None:
        self.claim = partition.claim
        self.started = False
        self.partition = partition
        self.record = record
        self.size = len(record.value or b"")
        self.flight: Flight | None = None
        self.task: asyncio.Task[None] | None = None
        self._ends = ends

    @property
    def running(self) -> "asyncio.Task[None] | None":
        """The task that has to be awaited once it is cancelled."""
        return self.task or (None if self.flight is None else self.flight.task)

    def cancel(self) -> None:
        """Let it go, unfinished."""
        if self.task is not None:
            self.task.cancel()
        elif self.flight is not None:
            self.flight.cancel()
            if self.flight.task is None:
                self._ends.ended(self)

    # What `express` tells

    def finished(self, _: Outcome, /) -> None:
        """The record has its outcome."""
        self._ends.finished(self)

    def full_way(self, tried: Tried | None) -> None:
        """It needs a task."""
        self.flight = None
        self._ends.full_way(self, tried)

    def released(self) -> None:
        """A flight that was cancelled has ended."""
        self._ends.ended(self)


@dataclass(slots=True, eq=False)
class Partition:
    """One assignment of one partition."""

    tp: TopicPartition
    claim: Claim = field(default_factory=Claim)
    tracker: OffsetTracker = field(default_factory=OffsetTracker)
    buffer: deque[ConsumerRecord[bytes, bytes]] = field(default_factory=deque)
    """Fetched, not begun."""
    restored: bool = False
    """The committed position and its metadata are known."""
    works: "dict[int, Work]" = field(default_factory=dict)
    """What is begun and not ended, by offset."""
    due_timer: asyncio.TimerHandle | None = None
    committed: tuple[int, str] | None = None
    end: int = 0
    """The partition's end, as the broker last told it."""

    consumed: series.Count = field(init=False)

    def __post_init__(self) -> None:
        self.consumed = metrics.EVENTS_CONSUMED.labels(self.tp.topic)

    def to_commit(self) -> tuple[int, str] | None:
        """Position and metadata, where they differ from the last commit."""
        position = self.tracker.position
        if position is None or not self.restored:
            return None
        state = (position, self.tracker.metadata())
        return None if state == self.committed else state

    def end_claim(self) -> None:
        """It is given up: nothing more of it is begun, and what was fetched for that is let go."""
        self.claim.active = False
        self.buffer.clear()
        if self.due_timer is not None:
            self.due_timer.cancel()

    @property
    def oldest(self) -> float | None:
        """Unix time of the oldest record that is begun and not ended; None with none."""
        return min((work.record.timestamp / 1000 for work in self.works.values()), default=None)

    def observe(self) -> None:
        """Set its gauges, for a scrape."""
        position = self.tracker.position
        if position is not None:
            lag = max(0, max(self.end, self.tracker.highest + 1) - position)
            metrics.LAG.labels(self.tp.topic, str(self.tp.partition)).set(lag)
            metrics.FINISHED_OFFSET.labels(self.tp.topic, str(self.tp.partition)).set(position)

    def forget(self) -> None:
        """Its gauges are another process's now."""
        for gauge in (metrics.LAG, metrics.FINISHED_OFFSET):
            with suppress(KeyError):
                gauge.remove(self.tp.topic, str(self.tp.partition))
