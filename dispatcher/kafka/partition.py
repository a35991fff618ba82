"""What a consumer remembers of its partitions, and how much the process may have unfinished."""

import asyncio
from collections import deque
from dataclasses import dataclass, field

from aiokafka import TopicPartition
from aiokafka.structs import ConsumerRecord

from dispatcher.kafka.offset_tracker import OffsetTracker
from dispatcher.records import Claim, Turn

AHEAD_S = 2.0
LEAST_AHEAD = 1000
MEASURED_S = 0.25


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
    _finished: int = 0
    _since: float | None = None

    def __post_init__(self) -> None:
        self.limit = min(LEAST_AHEAD, self.most_records)

    def has_room(self) -> bool:
        return self.records < self.limit and self.bytes < self.most_bytes

    def begin(self, size: int) -> None:
        """A record of so many bytes is begun."""
        self.records += 1
        self.bytes += size

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
    tasks: "dict[asyncio.Task[None], Turn]" = field(default_factory=dict)
    timestamps: dict[int, int] = field(default_factory=dict)
    """Milliseconds of each unfinished record, by offset."""
    due_timer: asyncio.TimerHandle | None = None
    committed: tuple[int, str] | None = None
    end: int = 0
    """The partition's end, as the broker last told it."""

    def to_commit(self) -> tuple[int, str] | None:
        """Position and metadata, where they differ from the last commit."""
        position = self.tracker.position
        if position is None or not self.restored:
            return None
        state = (position, self.tracker.metadata())
        return None if state == self.committed else state
