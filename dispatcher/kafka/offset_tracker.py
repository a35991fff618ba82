"""Tracks which records of one partition are finished. Pure; each assignment creates a new tracker.

Records finish out of order. What may be committed is the *position*: the offset up to which everything that was begun
is finished. What finished beyond it goes into the commit's metadata, so that the next owner of the partition skips
it: a crash repeats only what was under way. Offsets may have gaps (compaction, transactions); a gap counts as
finished, since nothing can appear in it any more.

Metadata is text of at most 4,096 bytes (Kafka's default `offset.metadata.max.bytes`): `f1:` and base64 of the deflated
runs, each two unsigned LEB128 numbers: distance from the end of the previous run (the first from the position), and
length. What does not fit is left out from the far end: fewer runs, never wrong ones.
"""

import base64
import binascii
import zlib
from collections import deque
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Final

MAX_METADATA_BYTES: Final = 4096
_VERSION: Final = "f1:"
_MAX_INFLATED: Final = 1 << 20
_MOST_RUNS: Final = 8_000
"""Runs that are considered for the metadata: more never fit, and looking at them would hold up the event loop."""

Run = tuple[int, int]
"""First and last offset of finished records, both included."""


class OffsetTracker:
    """Tracks the records of one assignment of one partition."""

    def __init__(self, position: int | None = None, finished: Iterable[Run] = ()) -> None:
        """Begins at the committed position, or None if there is none, with the runs that its metadata names."""
        self._position = position
        self._highest = (position or 0) - 1
        """Highest offset that was begun or restored as finished."""
        self._restored: deque[Run] = deque(sorted(finished))
        self._order: deque[int] = deque()
        """Offsets begun and not yet passed by the position, rising."""
        self._done: set[int] = set()
        """The offsets of `_order` that are finished."""

    def __repr__(self) -> str:
        return f"<OffsetTracker position={self._position} unfinished={self.unfinished} span={self.span}>"

    @property
    def position(self) -> int | None:
        """The offset to commit: that of the first record that is not known to be finished. None before any record."""
        return self._position

    @property
    def highest(self) -> int:
        """The highest offset that was begun; one below the position before any record."""
        return self._highest

    @property
    def unfinished(self) -> int:
        """Number of records that were begun and are not finished."""
        return len(self._order) - len(self._done)

    @property
    def span(self) -> int:
        """Number of records from the first unfinished one to the last one begun."""
        return len(self._order)

    def was_finished(self, offset: int) -> bool:
        """Returns True if the last owner finished this record already. Call in rising order, before `start`."""
        while self._restored and self._restored[0][1] < offset:
            self._restored.popleft()
        return bool(self._restored) and self._restored[0][0] <= offset

    def start(self, offset: int) -> None:
        """Marks a record as in progress. Offsets must rise."""
        if offset <= self._highest and self._order:
            raise ValueError(f"offset {offset} after {self._highest}: offsets of a partition rise")
        if not self._order:
            self._position = offset  # nothing is unfinished before it: what lies between is a gap
        self._highest = offset
        self._order.append(offset)

    def pass_gap(self, offset: int) -> bool:
        """Moves the position up to `offset` if nothing is unfinished, as no record lies between; returns True then."""
        if self._order or self._position is None or offset <= self._position:
            return False
        self._position = offset
        self._highest = offset - 1
        return True

    def finish(self, offset: int) -> None:
        """Marks a record as finished: it has its outcome."""
        self._done.add(offset)
        if self._order and self._order[0] == offset:
            self._advance()

    def _advance(self) -> None:
        order, done = self._order, self._done
        while order and order[0] in done:
            passed = order.popleft()
            done.discard(passed)
            self._position = passed + 1
        if order:
            self._position = order[0]  # over a gap

    def finished_beyond(self) -> Iterator[Run]:
        """Runs of finished offsets beyond the position, rising; gaps inside a run count as finished."""
        start: int | None = None
        last = 0
        left = len(self._done)
        for offset in self._order:
            if offset in self._done:
                start = offset if start is None else start
                last = offset
                left -= 1
            elif start is not None:
                yield start, last
                start = None
            if not left:
                break  # most of what is read ahead has not even begun to be sent
        if start is not None:
            yield start, last
        # What an earlier owner finished and we have not come to yet is still finished.
        for first, final in self._restored:
            if final > self._highest:
                yield max(first, self._highest + 1), final

    def metadata(self, most_bytes: int = MAX_METADATA_BYTES) -> str:
        """Returns the commit metadata for the position: as many runs as fit, the nearest first. Empty without runs."""
        runs = list(islice(self.finished_beyond(), _MOST_RUNS))
        if not runs or self._position is None:
            return ""
        fits, too_many = 0, len(runs) + 1
        result = len(runs)
        text = ""
        while too_many - fits > 1:  # how many runs fit is found by halving: the deflated size is not known before
            candidate = encode_runs(self._position, runs[:result])
            if len(candidate) <= most_bytes:
                fits, text = result, candidate
            else:
                too_many = result
            result = (fits + too_many) // 2
        return text


def encode_runs(position: int, runs: Iterable[Run]) -> str:
    """Returns the metadata for runs beyond a position."""
    packed = bytearray()
    at = position
    for first, last in runs:
        packed += _leb128(first - at)
        packed += _leb128(last - first + 1)
        at = last + 1
    return _VERSION + base64.b64encode(zlib.compress(bytes(packed), 9)).decode() if packed else ""


def decode_runs(position: int, metadata: str) -> list[Run]:
    """Returns the runs that `encode_runs` wrote; none for damaged metadata, or that of another version or program."""
    if not metadata.startswith(_VERSION):
        return []
    try:
        inflater = zlib.decompressobj()
        packed = inflater.decompress(base64.b64decode(metadata[len(_VERSION) :], validate=True), _MAX_INFLATED)
        if not inflater.eof:
            return []
        return _unpack(position, packed)
    except (binascii.Error, zlib.error, ValueError):
        return []


def _unpack(position: int, packed: bytes) -> list[Run]:
    numbers = list(_leb128_numbers(packed))
    if len(numbers) % 2:
        raise ValueError("half a run")
    runs: list[Run] = []
    at = position
    for distance, length in zip(numbers[::2], numbers[1::2], strict=True):
        if length == 0:
            raise ValueError("an empty run")
        first = at + distance
        at = first + length
        runs.append((first, at - 1))
    return runs


def _leb128(number: int) -> bytes:
    out = bytearray()
    while True:
        low, number = number & 0x7F, number >> 7
        if not number:
            out.append(low)
            return bytes(out)
        out.append(low | 0x80)


def _leb128_numbers(packed: bytes) -> Iterator[int]:
    number = shift = 0
    for byte in packed:
        number |= (byte & 0x7F) << shift
        if byte & 0x80:
            shift += 7
            if shift > 63:
                raise ValueError("a number of over 64 bits")
        else:
            yield number
            number = shift = 0
    if shift:
        raise ValueError("half a number")
