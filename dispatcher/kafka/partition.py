"""What a consumer remembers of its partitions, and how much the process may have unfinished."""

import asyncio
from collections import deque
from dataclasses import dataclass, field

from aiokafka import TopicPartition
from aiokafka.structs import ConsumerRecord

from dispatcher.kafka.offset_tracker import OffsetTracker
from dispatcher.records import Claim, Turn


@dataclass(slots=True)
class Budget:
    """What the whole process may have unfinished; shared by its consumers."""

    most_records: int
    most_bytes: int
    records: int = 0
    bytes: int = 0

    def has_room(self) -> bool:
        return self.records < self.most_records and self.bytes < self.most_bytes


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
