"""Limits how far a process reads ahead: the number and size of its unfinished records."""

from dataclasses import dataclass, field
from typing import Final

from dispatcher.kafka.partition import Partition

AHEAD_S: Final = 2.0
"""Seconds of recent work that are read ahead."""
LEAST_AHEAD = 1000
"""Lowest limit on unfinished records, unless `most_records` is lower."""
MEASURED_S: Final = 0.25
"""Seconds over which the throughput is measured."""
RESUME_AFTER: Final = 100
"""Number of records that end before reading goes on after a full limit: beginning several at once is faster."""
REPEATED_SHARE: Final = 4
"""The repeated records of a partition take at most this part (1/n) of what the limits leave free."""


@dataclass(slots=True)
class ReadAheadLimit:
    """Limits the unfinished records of a consumer: it reads ahead no further than two seconds of recent work.

    So an event never waits long because the process is busy; if one does wait long, its own lane is the cause. Records
    that are repeated (the dead-letter brake, a refused write, a store that doesn't answer) are not work ahead: they
    count only for the memory they take.
    """

    most_records: int
    most_bytes: int
    records: int = 0
    """Unfinished records, without those that are repeated."""
    repeated: int = 0
    """Records that could not get their outcome so far and are repeated until they do."""
    bytes: int = 0
    """Size of all unfinished records."""
    limit: int = field(init=False)
    is_full: bool = field(init=False)
    """No record may be begun now."""
    _ahead: int = field(init=False)
    """Records of two seconds of recent work."""
    _finished: int = 0
    _since: float | None = None

    def __post_init__(self) -> None:
        self._ahead = LEAST_AHEAD
        self._set_limit()
        self.is_full = self.records >= self.limit or self.bytes >= self.most_bytes

    def _set_limit(self) -> None:
        self.limit = min(self._ahead, self.most_records - self.repeated)

    def add(self, size: int) -> None:
        """Counts a record of `size` bytes whose processing begins."""
        self.records += 1
        self.bytes += size
        if self.records >= self.limit or self.bytes >= self.most_bytes:
            self.is_full = True

    def remove(self, size: int, now: float) -> None:
        """Subtracts a finished record, and adapts the limit to recent throughput. `now`: monotonic seconds."""
        self.records -= 1
        self.bytes -= size
        self._finished += 1
        if self._since is None:
            self._since = now
        elapsed = now - self._since
        if elapsed >= MEASURED_S:
            wanted = int(self._finished / elapsed * AHEAD_S)
            # Up at once, down by halves: a short stall must not stop reading.
            self._ahead = max(LEAST_AHEAD, min(self.most_records, max(wanted, self._ahead // 2)))
            self._set_limit()
            self._finished, self._since = 0, now
        if self.is_full:
            room = min(RESUME_AFTER, self.limit // 10)
            self.is_full = self.records > self.limit - max(1, room) or self.bytes >= self.most_bytes

    def set_aside(self) -> None:
        """Counts an unfinished record as repeated from now on."""
        self.records -= 1
        self.repeated += 1
        self._set_limit()
        self.is_full = self.records >= self.limit or self.bytes >= self.most_bytes

    def take_back(self) -> None:
        """Counts a repeated record as any other: it has its outcome, or its assignment has ended."""
        self.records += 1
        self.repeated -= 1
        self._set_limit()

    def has_share_for(self, partition: Partition) -> bool:
        """Returns False if the partition's repeated records take their share: a quarter of what is free.

        However many partitions are stopped, that leaves room for the others: of n of them, each takes 1 / (n + 4).
        """
        free = self.most_records - self.records - self.repeated
        free_bytes = self.most_bytes - self.bytes
        return (
            REPEATED_SHARE * len(partition.repeated) < free and REPEATED_SHARE * partition.repeated_bytes < free_bytes
        )
