"""A bounded buffer of the latest items, shared fairly: an owner with many items never evicts another's few. Pure."""

from collections import deque
from collections.abc import Hashable, Iterator, Sequence
from typing import Generic, TypeVar

O = TypeVar("O", bound=Hashable)  # noqa: E741
T = TypeVar("T")

_EMPTIED_TO = 0.9
"""Eviction frees a tenth of the buffer at once, so that its cost per item is small."""


class FairBuffer(Generic[O, T]):
    """Keeps the latest items of each owner.

    It holds at most `most` items in total, and `most_each` of an owner. If it is full, the owners with most items lose
    their oldest ones, down to a common number; owners with fewer items lose nothing.
    """

    def __init__(self, most: int, most_each: int) -> None:
        self._most = most
        self._most_each = most_each
        self._buffers: dict[O, deque[T]] = {}
        self._count = 0
        self.lost = False
        """True if any item was evicted since the last `clear`."""

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[T]:
        for buffer in self._buffers.values():
            yield from buffer

    def of(self, owner: O) -> Sequence[T]:
        """Returns an owner's items, the oldest first."""
        return self._buffers.get(owner, ())

    def clear(self) -> None:
        """Removes everything."""
        self._buffers.clear()
        self._count, self.lost = 0, False

    def drop(self, owner: O) -> None:
        """Removes an owner's items."""
        self._count -= len(self._buffers.pop(owner, ()))

    def add(self, owner: O, item: T) -> list[T]:
        """Adds an item of an owner. Returns the items that were evicted for it."""
        buffer = self._buffers.get(owner)
        if buffer is None:
            buffer = self._buffers[owner] = deque()
        buffer.append(item)
        self._count += 1
        gone = self._trim(owner, self._most_each) if len(buffer) > self._most_each else []
        if self._count > self._most:
            height = self._height_limit()
            for name in list(self._buffers):
                gone += self._trim(name, height)
        self.lost = self.lost or bool(gone)
        return gone

    def _trim(self, owner: O, height: int) -> list[T]:
        buffer = self._buffers[owner]
        gone = [buffer.popleft() for _ in range(len(buffer) - height)]
        self._count -= len(gone)
        if not buffer:
            del self._buffers[owner]
        return gone

    def _height_limit(self) -> int:
        """Returns the number of items per owner with which everything fits."""
        room = int(self._most * _EMPTIED_TO)
        heights = sorted(map(len, self._buffers.values()))
        for done, height in enumerate(heights):
            left = len(heights) - done
            if height * left >= room:
                return room // left
            room -= height
        return heights[-1]
