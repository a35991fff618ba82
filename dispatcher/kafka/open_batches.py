"""Bounds the memory of decompressed batches, over all consumers of the process.

aiokafka decompresses a whole batch at once and keeps it while its records are taken, a few of each partition in turn:
every partition would soon have a decompressed batch that is half read. Patches, applied once by `unreadable_records`:
- A batch is opened only while the open ones have fewer bytes than `OpenBatches.most_bytes`. Until then its partition
  waits, with what was fetched. Each consumer may always have one batch open, so that none waits for another.
- A batch that is larger than `OpenBatches.largest` is not decompressed any further: it counts as unreadable.
- A batch is closed when its last record was taken. If another one needs the room, it is also closed when nothing was
  taken of it for `IDLE_S`, because its partition waits for its tenants: it is decompressed again later.

The order is that of the fetches: partitions that wait come before those whose batch is open, and before those that
were fetched later.
"""

import mmap
import struct
import time
import zlib
from collections.abc import Callable
from importlib import import_module
from typing import Any, Final
from weakref import WeakSet

import cramjam
from aiokafka import codec
from aiokafka.consumer.fetcher import FetchResult
from aiokafka.errors import CorruptRecordException

LARGEST_BATCH: Final = 128 * 1024 * 1024
"""The least value of `OpenBatches.largest`. Ordinary events of 1 MiB, Kafka's default limit of a batch, have 14 MiB."""
SHARE: Final = 2
"""Open batches may take this part (1/n) of `kafka.max_unfinished_bytes`."""
IDLE_S: Final = 5.0
_SMALL: Final = 128 * 1024
"""Compressed bytes of a batch that probably fits into `_scratch`."""
_ISIZE: Final = struct.Struct("<I")
_BLOCK_LENGTH: Final = struct.Struct(">i")
_XERIAL_HEADER: Final = 16
_DECODERS: Final = ("gzip_decode", "snappy_decode", "lz4_decode", "zstd_decode")
_MODULES: Final = (
    "aiokafka.record.default_records", "aiokafka.record.legacy_records",
    "aiokafka.record._crecords.default_records", "aiokafka.record._crecords.legacy_records",
)  # fmt: skip

_scratch: Final = bytearray(1024 * 1024)
DecompressInto = Callable[[Any, Any], int]


class BatchTooLarge(CorruptRecordException):  # type: ignore[misc]  # aiokafka has no types
    """A batch takes more memory than the process may use for it."""

    def __init__(self, most: int) -> None:
        super().__init__(f"it has more than {most} bytes when it is decompressed")


class NoRoomForBatch(Exception):
    """A batch has to wait until others are closed. Its partition is not at fault."""


class OpenBatches:
    """Counts the bytes of the batches that are decompressed and not yet read to their end.

    An open batch is that of an aiokafka `FetchResult`, which has its size as `open_bytes`.
    """

    def __init__(self, most_bytes: int = LARGEST_BATCH // SHARE, largest: int = LARGEST_BATCH) -> None:
        """Starts without open batches. `most_bytes`: none is opened from there on. `largest`: none may be larger."""
        self.most_bytes = most_bytes
        self.largest = largest
        self.bytes = 0
        """Bytes of all open batches."""
        self._results: WeakSet[Any] = WeakSet()
        """Fetch results whose batch is open."""
        self.opened = 0
        """Bytes of the batches of which records are being taken, in this turn of the event loop."""
        self._reading: Any = None
        """The fetch result of which records are being taken, in this turn of the event loop."""

    def set_limits(self, max_unfinished_bytes: int) -> None:
        """Derives the limits from the setting `kafka.max_unfinished_bytes`."""
        self.most_bytes = max_unfinished_bytes // SHARE
        self.largest = max(LARGEST_BATCH, max_unfinished_bytes)

    @property
    def is_full(self) -> bool:
        """True if a batch may be opened only by a consumer that has none."""
        return self.bytes >= self.most_bytes

    def begin_reading(self, result: Any) -> None:
        """Counts what is opened from now on for this result, until `end_reading`."""
        self._reading = result
        self.opened = result.open_bytes
        result.read_at = time.monotonic()

    def end_reading(self) -> None:
        """Counts nothing until the next `begin_reading`."""
        self._reading = None

    def before_batch(self, *, is_compressed: bool) -> None:
        """Closes the batch of which records are being taken: its end is reached, and another one follows.

        Raises:
            NoRoomForBatch: the next one is compressed and has to wait.
        """
        result = self._reading
        if result is None:
            return
        if result.open_bytes:
            self._count(result, 0)
        if is_compressed and self.is_full and self._has_open(result._assignment):  # noqa: SLF001
            raise NoRoomForBatch

    def on_decompressed(self, size: int) -> None:
        """Counts a batch of this size that was decompressed."""
        if self._reading is not None:
            self._count(self._reading, size)
            self.opened += size

    def release(self, result: Any) -> None:
        """Frees the memory of a result's open batch. Its iterator can't be used any more."""
        self._count(result, 0)
        records = result._partition_records  # noqa: SLF001
        iterator = None if records is None else records._records_iterator  # noqa: SLF001
        if iterator is not None:
            iterator.close()  # refers to the records and they to it: the batch would stay until garbage is collected

    def idle(self) -> list[Any]:
        """Returns the results of whose open batches nothing was taken for `IDLE_S`."""
        before = time.monotonic() - IDLE_S
        return [result for result in self._results if result.read_at < before]

    def _has_open(self, assignment: Any) -> bool:
        """Returns True if the consumer of this assignment has an open batch."""
        return any(one._assignment is assignment for one in self._results)  # noqa: SLF001

    def _count(self, result: Any, size: int) -> None:
        self.bytes += size - result.open_bytes
        result.open_bytes = size
        if size:
            self._results.add(result)
        else:
            self._results.discard(result)


OPEN_BATCHES: Final = OpenBatches()
"""The open batches of this process."""


def apply() -> None:
    """Patches aiokafka: its decoders have a limit and count, and a result that is dropped frees its batch."""
    FetchResult.open_bytes = 0
    FetchResult.__del__ = _free
    own = {name: _counting(decode) for name, decode in zip(_DECODERS, (_gzip, _snappy, _lz4, _zstd), strict=True)}
    for name in _MODULES:
        try:
            module = import_module(name)
        except ImportError:  # aiokafka without its compiled parts
            continue
        for decoder in _DECODERS:
            if hasattr(module, decoder):
                setattr(module, decoder, own[decoder])


def _free(result: Any) -> None:
    OPEN_BATCHES.release(result)


def _counting(decode: Callable[[Any, int], Any]) -> Callable[[Any], Any]:
    def decoded(payload: Any) -> Any:
        content = decode(payload, OPEN_BATCHES.largest)
        OPEN_BATCHES.on_decompressed(len(content))
        return content

    return decoded


def _gzip(payload: Any, most: int) -> bytes:
    rest, size, members = bytes(payload), 0, list[bytes]()
    if len(rest) > _ISIZE.size and _ISIZE.unpack(rest[-_ISIZE.size :])[0] > most:  # the size, by its own account
        raise BatchTooLarge(most)
    while rest:
        member = zlib.decompressobj(wbits=31)
        members.append(member.decompress(rest, most + 1 - size))
        size += len(members[-1])
        if size > most:
            raise BatchTooLarge(most)
        if not member.eof:
            raise EOFError("the compressed content is cut off")
        rest = member.unused_data.lstrip(b"\0")
    return members[0] if len(members) == 1 else b"".join(members)


def _snappy(payload: Any, most: int) -> bytes:
    if sum(cramjam.snappy.decompress_raw_len(block) for block in _snappy_blocks(payload)) > most:
        raise BatchTooLarge(most)
    found: bytes = codec.snappy_decode(payload)
    return found


def _snappy_blocks(payload: Any) -> list[Any]:
    if not codec._detect_xerial_stream(payload):  # noqa: SLF001
        return [payload]
    blocks, left = [], memoryview(payload)[_XERIAL_HEADER:]
    while left:
        end = _BLOCK_LENGTH.size + max(0, _BLOCK_LENGTH.unpack_from(left)[0])
        blocks.append(left[_BLOCK_LENGTH.size : end])
        left = left[end:]
    return blocks


def _lz4(payload: Any, most: int) -> Any:
    return _decompressed(cramjam.lz4.decompress_into, payload, most)


def _zstd(payload: Any, most: int) -> Any:
    return _decompressed(cramjam.zstd.decompress_into, payload, most)


def _decompressed(into: DecompressInto, payload: Any, most: int) -> Any:
    """Decompresses without knowing the size: streams of Java's clients don't contain it."""
    if len(payload) <= _SMALL:
        try:
            return bytes(memoryview(_scratch)[: into(payload, _scratch)])
        except cramjam.DecompressionError as error:
            if not _is_out_of_space(error):
                raise
    target = mmap.mmap(-1, most, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)  # takes memory as it is written to
    try:
        return memoryview(target)[: into(payload, target)]
    except cramjam.DecompressionError as error:
        if not _is_out_of_space(error):
            raise
        raise BatchTooLarge(most) from None


def _is_out_of_space(error: BaseException) -> bool:
    return "write whole buffer" in str(error)
