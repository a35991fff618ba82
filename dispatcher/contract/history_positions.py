"""How far the history topic is stored. Pure.

The store keeps the positions itself, in the transaction that stores the entries. So a store that is new, or that was
restored from a backup, says which records it lacks, whatever the consumer group has committed.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

TopicAndPartition = tuple[str, int]


@dataclass(frozen=True, slots=True)
class StoredPositions:
    """The first record of each partition that the store lacks."""

    next: Mapping[TopicAndPartition, int] = field(default_factory=dict)
    trusts_commits: bool = False
    """A version without positions filled the store: partitions without one are stored as far as they are committed."""

    def start(self, place: TopicAndPartition, committed: int | None) -> int:
        """Returns the offset to read from: 0, which may be before the start of the log, if the store has nothing.

        A commit that is lower than the position counts: the group was set back, or the topic recreated.
        """
        committed = committed or 0
        return min(committed, self.next.get(place, committed if self.trusts_commits else 0))


@dataclass(frozen=True, slots=True)
class Move:
    """The change of one partition's position that storing a batch makes."""

    before: int | None
    """Position that the reader has; None: none."""
    after: int
