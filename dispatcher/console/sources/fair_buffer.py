"""A bounded memory of what came last, shared fairly: one owner's flood never takes the place of another's few. Pure."""

from collections import deque
from collections.abc import Hashable, Iterator, Sequence
from typing import Generic, TypeVar

O = TypeVar("O", bound=Hashable)  # noqa: E741
T = TypeVar("T")

_EMPTIED_TO = 0.9
"""Room is made for a tenth at once, so that making it costs little for each thing that comes."""


class Shelves(Generic[O, T]):
    """A shelf of things for each owner, the newest last.

    At most `most` things in all, and `most_each` an owner. Where it gets too full, the fullest shelves lose their
    oldest things, down to one height: whoever has less than that loses nothing.
    """

    def __init__(self, most: int, most_each: int) -> None:
        self._most = most
        self._most_each = most_each
        self._shelves: dict[O, deque[T]] = {}
        self._count = 0
        self.lost = False
        """Whether anything had to go."""

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[T]:
        for shelf in self._shelves.values():
            yield from shelf

    def of(self, owner: O) -> Sequence[T]:
        """An owner's things, the oldest first."""
        return self._shelves.get(owner, ())

    def clear(self) -> None:
        """Forget everything."""
        self._shelves.clear()
        self._count, self.lost = 0, False

    def drop(self, owner: O) -> None:
        """Forget an owner's things."""
        self._count -= len(self._shelves.pop(owner, ()))

    def add(self, owner: O, thing: T) -> list[T]:
        """Put a thing on its owner's shelf; gives what had to go for it."""
        shelf = self._shelves.get(owner)
        if shelf is None:
            shelf = self._shelves[owner] = deque()
        shelf.append(thing)
        self._count += 1
        gone = self._lowered(owner, self._most_each) if len(shelf) > self._most_each else []
        if self._count > self._most:
            height = self._height()
            for name in list(self._shelves):
                gone += self._lowered(name, height)
        self.lost = self.lost or bool(gone)
        return gone

    def _lowered(self, owner: O, height: int) -> list[T]:
        shelf = self._shelves[owner]
        gone = [shelf.popleft() for _ in range(len(shelf) - height)]
        self._count -= len(gone)
        if not shelf:
            del self._shelves[owner]
        return gone

    def _height(self) -> int:
        """The most things on a shelf with which all of them together have room."""
        room = int(self._most * _EMPTIED_TO)
        heights = sorted(map(len, self._shelves.values()))
        for done, height in enumerate(heights):
            left = len(heights) - done
            if height * left >= room:
                return room // left
            room -= height
        return heights[-1]
