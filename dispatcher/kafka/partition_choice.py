"""Chooses the partition of a record whose order among others doesn't matter: one that can be written. Pure.

aiokafka's partitioner hashes a key over all partitions, also those without a leader, so the events of one key would
never be parked while one broker is away. Here the key decides only while its partition works:
- A partition without a leader is not chosen.
- A partition whose write failed is left out for a while. Then one write tries it again.
- A partition on which many writes wait (its leader hangs, or too few replicas are in sync) gets no more than these.
"""

from collections import Counter
from collections.abc import Collection
from typing import Final

from aiokafka.partitioner import DefaultPartitioner

AVOIDED_S: Final = 60.0
"""Time for which a partition is left out after a failed write."""
MOST_WAITING: Final = 100
"""Writes that may wait on a partition before the least busy one is chosen."""

_Place = tuple[str, int]


class PartitionChoice:
    """Knows which partitions were written lately, and which could not be."""

    def __init__(self) -> None:
        self._waiting: Counter[_Place] = Counter()
        """Writes that are under way."""
        self._avoided: dict[_Place, float] = {}
        """Time until which a partition is left out, since a write failed."""
        self._by_key = DefaultPartitioner()

    def begin(self, topic: str, key: bytes | None, known: Collection[int], led: Collection[int], now: float) -> int:
        """Returns the partition for a write that begins. Call `end` after it.

        Args:
            known: all partitions of the topic.
            led: those that have a leader, at least one.
            now: seconds of any clock.
        """
        usable = sorted(led)
        if self._avoided:
            usable = [one for one in usable if now >= self._avoided.get((topic, one), now)] or usable
        chosen = int(self._by_key(key, sorted(known), usable))
        if chosen not in usable or self._waiting[topic, chosen] >= MOST_WAITING:
            chosen = min(usable, key=lambda one: self._waiting[topic, one])
        place = (topic, chosen)
        if place in self._avoided:
            self._avoided[place] = now + AVOIDED_S  # one write tries it; the others wait for its result
        self._waiting[place] += 1
        return chosen

    def end(self, topic: str, partition: int) -> None:
        """Counts a write as over, whatever came of it."""
        self._waiting[topic, partition] -= 1
        if not self._waiting[topic, partition]:
            del self._waiting[topic, partition]

    def on_written(self, topic: str, partition: int) -> None:
        """Notes that the partition can be written."""
        self._avoided.pop((topic, partition), None)

    def on_failed(self, topic: str, partition: int, now: float) -> None:
        """Leaves the partition out for a while."""
        self._avoided[topic, partition] = now + AVOIDED_S
