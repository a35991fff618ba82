"""Starts processing fetched records, a few of each partition in turn, while the read-ahead limit allows it."""

import asyncio
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from itertools import islice, takewhile
from typing import Final

from dispatcher.contract.records import Lease, Record
from dispatcher.kafka.partition import Partition
from dispatcher.kafka.read_ahead import ReadAheadLimit
from dispatcher.tasks import set_within

DueIn = Callable[[Record, float], float]
"""Seconds until a record is due, of the record and the unix time."""
BeginRecord = Callable[[Partition, Record], None]

BEGUN_AT_ONCE: Final = 100
"""Records that are begun in one turn of the event loop: a few milliseconds, in which nothing else happens."""
AT_A_TURN: Final = 50
"""Records of one partition that are begun before the next partition's turn."""


class Feeder:
    """Begins the records of one consumer."""

    def __init__(
        self,
        read_ahead: ReadAheadLimit,
        window: int,
        begin: BeginRecord,
        lease: Lease,
        due_in_s: DueIn | None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Starts without records. `window`: most unfinished records of a partition. `due_in_s`: None without delays."""
        self._read_ahead = read_ahead
        self._window = window
        self._begin = begin
        self._lease = lease
        self._due_in_s = due_in_s
        self._clock = clock
        self._buffered: deque[Partition] = deque()
        """Partitions with records to begin, in the order of their turn."""
        self._scheduled = False
        self._changed = asyncio.Event()
        """A partition can be read that could not."""

    def queue(self, partition: Partition) -> None:
        """Adds a partition with fetched records to the rotation."""
        if partition not in self._buffered:
            self._buffered.append(partition)

    def schedule(self) -> None:
        """Calls `feed` in the event loop's next iteration, once."""
        if not self._scheduled:
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self.feed)

    def on_room(self) -> None:
        """Schedules `feed` after a record has ended, if another one can start."""
        if self._buffered and not self._read_ahead.is_full:
            self.schedule()

    def wake(self) -> None:
        """Makes `wait` return: a partition can be read."""
        self._changed.set()
        self.schedule()

    async def wait(self, most_s: float) -> None:
        """Waits until another partition can be read, at most `most_s` seconds."""
        self._changed.clear()
        await set_within(self._changed, most_s)
        self.feed()  # the limit is shared: it does not report when another consumer frees a part of it

    def feed(self) -> None:
        """Starts as many records as the limits allow, at most a few milliseconds' worth."""
        self._scheduled = False
        begun = 0
        for _ in range(len(self._buffered)):
            partition = self._buffered.popleft()
            for _ in range(self._room(partition)):
                if self._read_ahead.is_full:
                    break
                self._begin(partition, partition.buffer.popleft())
                begun += 1
            if partition.buffer and partition.epoch.active:
                self._buffered.append(partition)
            else:
                self._changed.set()
            if begun >= BEGUN_AT_ONCE:
                break
        if begun and self._buffered:
            self.schedule()

    def _room(self, partition: Partition) -> int:
        """Returns how many of the partition's records may be started now, a few at a time."""
        if not partition.buffer or not partition.restored or not partition.epoch.active or self._lease.is_over:
            return 0
        if partition.repeated and not self._read_ahead.has_share_for(partition):
            return 0
        tracker, window = partition.tracker, self._window
        most = min(window - tracker.unfinished, 10 * window - tracker.span, len(partition.buffer), AT_A_TURN)
        if self._due_in_s is None:
            return most
        due = takewhile(partial(self._is_due, self._due_in_s, partition), islice(partition.buffer, max(0, most)))
        return sum(1 for _ in due)

    def _is_due(self, due_in_s: DueIn, partition: Partition, record: Record) -> bool:
        wait = due_in_s(record, self._clock())
        if wait > 0 and partition.due_timer is None:

            def due() -> None:
                partition.due_timer = None
                self.schedule()

            partition.due_timer = asyncio.get_running_loop().call_later(min(wait, 1.0), due)
        return wait <= 0
