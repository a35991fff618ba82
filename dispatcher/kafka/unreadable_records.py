"""Handles records that aiokafka can't decode: header names that aren't UTF-8, and batches that are corrupt.

Patches, applied once by `aiokafka_patches`:
- A header name that isn't UTF-8 is decoded with U+FFFD in place of its invalid bytes, as the Java client does. aiokafka
  raises instead, and its compiled decoder has no option for this, so such a batch is decoded again in Python.
- A batch that can't be decoded (checksum, compression, structure) holds up its own partition only: it is fetched again
  every 5 s, and reported as `records_unreadable`. aiokafka raises the error in the middle of a poll, which drops the
  records that the same poll has already taken from other partitions, and moves their positions past them.
  A consumer that need not have every record passes over the batch, see `pass_over_unreadable`.
- A fetch that the broker refuses because of the log itself is reported. aiokafka only logs it, and repeats it for ever.
- The memory of decompressed batches is bounded, see `open_batches`. So are the bytes that one
  poll takes of a partition.
"""

import asyncio
import struct
import sys
from collections.abc import Awaitable, Callable
from functools import wraps
from typing import Any, Final
from weakref import WeakKeyDictionary

import structlog
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka import errors as kafka_errors
from aiokafka.client import AIOKafkaClient
from aiokafka.consumer import fetcher as fetching
from aiokafka.consumer.fetcher import Fetcher, FetchResult, PartitionRecords
from aiokafka.record.default_records import _DefaultRecordBatchPy
from aiokafka.record.legacy_records import LegacyRecordBatch
from aiokafka.record.memory_records import MemoryRecords

from dispatcher.contract.kafka_problems import KafkaReason
from dispatcher.kafka import decoded_records, open_batches
from dispatcher.kafka.fetch_gaps import fetched_partitions
from dispatcher.kafka.open_batches import OPEN_BATCHES, BatchTooLarge, NoRoomForBatch
from dispatcher.kafka.partition import size_of
from dispatcher.kafka.problems import KafkaProblems, partition_name
from dispatcher.telemetry import metrics

PAUSE_S: Final = 5.0
"""Time after which a partition with an unreadable batch is fetched again."""
TOO_LARGE_PAUSE_S: Final = 60.0
"""The same for a batch that is too large: it stays so until a restart, and decompressing it blocks the event loop."""
MOST_TAKEN: Final = 1024 * 1024
"""Bytes of a partition's records that one poll takes, or one record: as many as an uncompressed fetch returns."""
LOG_ERRORS: Final = frozenset({-1, 2, 56, 76})
"""UNKNOWN_SERVER_ERROR, CORRUPT_MESSAGE, KAFKA_STORAGE_ERROR and UNSUPPORTED_COMPRESSION_TYPE of the protocol."""
_BATCH_HEADER: Final = struct.Struct(">qiibIhi")
"""Base offset, length, leader epoch, magic, checksum, attributes, last offset delta: the start of a batch (KIP-98)."""
_LEGACY_HEADER: Final = struct.Struct(">qiib")
_CODEC: Final = 0x07
"""Bits of a batch's attributes that name its compression; 0 is none."""

Send = Callable[..., Awaitable[Any]]
ProblemsOf = Callable[[Any], KafkaProblems | None]
OnPassedOver = Callable[[TopicPartition, int, int], None]
"""Receives the partition, the first offset that is passed over, and the offset after the last."""

log = structlog.get_logger(__name__)
_passing_over: "WeakKeyDictionary[AIOKafkaClient, OnPassedOver]" = WeakKeyDictionary()


def apply(problems_of: ProblemsOf) -> None:
    """Patches aiokafka's classes. `problems_of` returns where the problems of an `AIOKafkaClient` are reported."""
    open_batches.apply()
    decoded_records.apply()
    fetching.MemoryRecords = RecordsWithBytes
    PartitionRecords.__next__ = _next_record
    FetchResult.getall = _take_records
    Fetcher.fetched_records = _raising_between_polls(Fetcher.fetched_records)
    Fetcher._set_error = _pausing_unreadable_partitions(Fetcher._set_error, problems_of)  # noqa: SLF001
    AIOKafkaClient.send = _reporting_log_errors(AIOKafkaClient.send, problems_of)


def pass_over_unreadable(consumer: "AIOKafkaConsumer[bytes, bytes]", on_passed_over: OnPassedOver) -> None:
    """Makes a consumer continue after batches that can't be decoded. Each is logged and counted.

    `on_passed_over` is called before the next poll returns, when the records before the batch were returned.
    """
    _passing_over[consumer._client] = on_passed_over  # noqa: SLF001


class RecordsWithBytes:
    """aiokafka's `MemoryRecords` that keeps the bytes it decodes, so that they can be decoded again."""

    __slots__ = ("_next_batch", "_position", "batch_end", "content", "has_next", "size_in_bytes")

    def __init__(self, content: bytes) -> None:
        records = MemoryRecords(content)
        self.content = content
        self.has_next = records.has_next
        self.size_in_bytes = records.size_in_bytes
        self.batch_end = 0
        """The offset after the batch that was returned last, by its header."""
        self._next_batch = records.next_batch
        self._position = 0

    def next_batch(self) -> Any:
        """Returns the next batch. Call it only after `has_next` returned True.

        Raises:
            NoRoomForBatch: it can't be opened yet.
        """
        header = _BatchHeader(self.content, self._position)
        OPEN_BATCHES.before_batch(is_compressed=header.is_compressed)
        self._position = header.end
        self.batch_end = header.next_offset
        return self._next_batch()


class _BatchHeader:
    """The start of a batch, decoded."""

    __slots__ = ("end", "is_compressed", "magic", "next_offset")

    def __init__(self, content: Any, position: int) -> None:
        if len(content) - position < _BATCH_HEADER.size:  # of the oldest formats, without key and value
            content, position = bytes(content[position:]).ljust(_BATCH_HEADER.size, b"\0"), 0
        base, length, _, self.magic, _, attributes, delta = _BATCH_HEADER.unpack_from(content, position)
        self.end = position + 12 + int(length)
        """Where the content goes on."""
        if self.magic < 2:
            attributes, delta = content[position + 17], 0
        self.is_compressed = bool(attributes & _CODEC)
        self.next_offset = int(base + 1 + delta)


class TolerantRecords:
    """The batches of `content` that end after `from_offset`. Header names may be any bytes."""

    def __init__(self, content: bytes, from_offset: int) -> None:
        self.content = content
        self._content = memoryview(content)
        self._from_offset = from_offset
        self._position = 0
        self.batch_end = from_offset

    def rest(self) -> bytes:
        """Returns the content from the next batch on."""
        self.has_next()
        return bytes(self._content[self._position :])

    def has_next(self) -> bool:
        """Returns True if there is another complete batch."""
        while self._end() is not None:
            if self._next_offset() > self._from_offset:
                return True
            self._position = self._end() or 0
        return False

    def offset_after_next(self) -> int:
        """Returns an offset behind `from_offset`: the one after the next batch, or its first if that is behind."""
        if not self.has_next():
            return self._from_offset + 1
        base, *_ = _LEGACY_HEADER.unpack_from(self._content, self._position)
        return int(base) if base > self._from_offset else self._next_offset()

    def next_batch(self) -> Any:
        """Returns the next batch. Call it only after `has_next` returned True."""
        start, end = self._position, self._end()
        header = _BatchHeader(self._content, start)
        OPEN_BATCHES.before_batch(is_compressed=header.is_compressed)
        self.batch_end = header.next_offset
        self._position = len(self._content) if end is None else end
        batch = self._content[start:end]
        return TolerantBatch(batch) if header.magic >= 2 else LegacyRecordBatch(batch, header.magic)

    def _end(self) -> int | None:
        if len(self._content) - self._position < _BATCH_HEADER.size:
            return None
        _, length, *_ = _LEGACY_HEADER.unpack_from(self._content, self._position)
        end = self._position + 12 + int(length)
        return end if self._position < end <= len(self._content) else None

    def _next_offset(self) -> int:
        return _BatchHeader(self._content, self._position).next_offset


class TolerantBatch(_DefaultRecordBatchPy):  # type: ignore[misc]  # aiokafka has no types
    """A batch whose header names are decoded with U+FFFD in place of invalid bytes."""

    def _maybe_uncompress(self) -> None:
        super()._maybe_uncompress()
        self._buffer: bytearray = _TolerantBytes(self._buffer)


class _TolerantBytes(bytearray):
    def __getitem__(self, key: Any) -> Any:
        found = super().__getitem__(key)
        return _TolerantBytes(found) if isinstance(key, slice) else found

    def decode(self, encoding: str = "utf-8", errors: str = "replace") -> str:
        return super().decode(encoding, errors)


def _next_record(records: Any) -> Any:
    """Replaces `PartitionRecords.__next__`: decodes a batch again if a header name isn't UTF-8."""
    try:
        return next(records._records_iterator)  # noqa: SLF001
    except StopIteration:
        records._records_iterator = None  # noqa: SLF001
        raise
    except (UnicodeDecodeError, kafka_errors.CorruptRecordException) as error:
        content = getattr(records._records, "content", None)  # noqa: SLF001
        if content is None or not isinstance(error.__cause__ or error, UnicodeDecodeError):
            raise
        records._records = TolerantRecords(content, records.next_fetch_offset)  # noqa: SLF001
        records._records_iterator = records._unpack_records()  # noqa: SLF001
    return next(records)


def _take_records(result: Any, max_records: int | None = None) -> list[Any]:
    """Replaces `FetchResult.getall`: returns the records before an unreadable batch and keeps the error for later.

    Returns none if the next batch can't be opened yet.
    """
    if getattr(result, "error", None) is not None:
        return []
    records = result._partition_records  # noqa: SLF001
    if records is None:
        return []
    if not result.check_assignment(result._topic_partition):  # noqa: SLF001
        result._partition_records = records  # noqa: SLF001
        _drop(result)
        return []
    found: list[Any] = []
    OPEN_BATCHES.begin_reading(result)
    try:
        _take(records, found, sys.maxsize if max_records is None else max_records)
    except StopIteration:
        result._update_position()  # noqa: SLF001
        _drop(result)
        return found
    except NoRoomForBatch:
        records._records_iterator = records._unpack_records()  # noqa: SLF001
    except Exception as error:  # noqa: BLE001 (decompression raises errors of many libraries)
        OPEN_BATCHES.release(result)
        result.error = error.with_traceback(None)  # its frames refer to the batch
    else:
        if result.open_bytes and records.next_fetch_offset >= records._records.batch_end:  # noqa: SLF001
            OPEN_BATCHES.release(result)
            records._records_iterator = records._unpack_records()  # noqa: SLF001
    finally:
        OPEN_BATCHES.end_reading()
    result._update_position()  # noqa: SLF001
    return found


def _take(records: Any, found: list[Any], most: int) -> None:
    """Appends the next records to `found`: at most `most`, and hardly more than twice `MOST_TAKEN` bytes."""
    while len(found) < most and OPEN_BATCHES.opened <= MOST_TAKEN:  # what is not compressed is bounded by the fetch
        found.append(next(records))
    left = MOST_TAKEN
    while len(found) < most and left > 0:
        record = next(records)
        found.append(record)
        left -= size_of(record)


def _drop(result: Any) -> None:
    """Frees what is left of a result: aiokafka forgets it next."""
    OPEN_BATCHES.release(result)
    result._partition_records = None  # noqa: SLF001


def _make_room(results: Any) -> None:
    """Closes idle batches, of any consumer. Those of `results` that wait come before those whose batch is open."""
    for result in OPEN_BATCHES.idle():
        OPEN_BATCHES.release(result)
        records = result._partition_records  # noqa: SLF001
        rest = TolerantRecords(records._records.content, records.next_fetch_offset).rest()  # noqa: SLF001
        records._records = RecordsWithBytes(rest)  # noqa: SLF001
        records._records_iterator = records._unpack_records()  # noqa: SLF001
    for tp in [tp for tp, result in results.items() if getattr(result, "open_bytes", 0)]:
        results.move_to_end(tp)


def _raising_between_polls(fetched_records: Send) -> Send:
    @wraps(fetched_records)
    async def patched(fetcher: Any, *arguments: Any, **named: Any) -> Any:
        for tp, result in list(fetcher._records.items()):  # noqa: SLF001
            error = getattr(result, "error", None)
            if error is None:
                continue
            del fetcher._records[tp]  # noqa: SLF001
            fetcher._set_error(tp, _unreadable_batch(tp, result._partition_records, error))  # noqa: SLF001
        if OPEN_BATCHES.is_full:
            _make_room(fetcher._records)  # noqa: SLF001
        return await fetched_records(fetcher, *arguments, **named)

    return patched


class UnreadableBatch(kafka_errors.CorruptRecordException):  # type: ignore[misc]  # aiokafka has no types
    """A batch can't be decoded. `offset`: the next one to read; `end`: the one after the batch, by its header."""

    def __init__(self, tp: TopicPartition, offset: int, cause: BaseException, end: int | None = None) -> None:
        what = f"{type(cause).__name__}: {cause.args[0] if cause.args else ''}"[:200]
        super().__init__(f"{tp.topic}/{tp.partition}: the batch at offset {offset} can't be decoded ({what})")
        self.__cause__ = cause
        self.offset = offset
        self.end = offset + 1 if end is None else end

    def __str__(self) -> str:
        return str(self.args[0])


def _unreadable_batch(tp: TopicPartition, records: Any, cause: BaseException) -> UnreadableBatch:
    offset = records.next_fetch_offset
    content = getattr(records._records, "content", None)  # noqa: SLF001
    end = None if content is None else TolerantRecords(content, offset).offset_after_next()
    return UnreadableBatch(tp, offset, cause, end)


def _state_of(fetcher: Any, tp: TopicPartition) -> Any:
    """Returns aiokafka's state of a partition, or None if it is not assigned."""
    assignment = fetcher._subscriptions.subscription.assignment  # noqa: SLF001
    return assignment.state_value(tp) if assignment is not None and tp in assignment.tps else None


def _pass_over(fetcher: Any, tp: TopicPartition, error: BaseException, on_passed_over: OnPassedOver) -> None:
    """Continues after an unreadable batch. Does nothing if the partition was revoked or sought since the fetch."""
    state = _state_of(fetcher, tp)
    if state is None or not state.has_valid_position:
        return
    first = end = state.position
    if not isinstance(error, UnreadableBatch):
        end += 1  # aiokafka goes past a record that it takes for too large
    elif error.offset == first:
        is_past_log = state.highwater is not None and error.end > state.highwater  # a wrong number in the header
        end = first + 1 if is_past_log else error.end
        fetcher.seek_to(tp, end)
    if end > first:
        metrics.RECORDS_PASSED_OVER.inc(end - first)
        log.warning("records can't be decoded and are passed over", problem=str(error)[:300], first=first, end=end)
        on_passed_over(tp, first, end)


def _pausing_unreadable_partitions(set_error: Callable[..., None], problems_of: ProblemsOf) -> Callable[..., None]:
    @wraps(set_error)
    def patched(fetcher: Any, tp: TopicPartition, error: BaseException) -> None:
        problems = problems_of(fetcher._client)  # noqa: SLF001
        is_unreadable = isinstance(error, UnreadableBatch | kafka_errors.RecordTooLargeError)
        on_passed_over = None if fetcher._client is None else _passing_over.get(fetcher._client)  # noqa: SLF001
        if is_unreadable and on_passed_over is not None:
            _pass_over(fetcher, tp, error, on_passed_over)
            return
        if problems is None or not is_unreadable:
            set_error(fetcher, tp, error)
            return
        state = _state_of(fetcher, tp)
        if state is None:
            return
        loop = asyncio.get_running_loop()
        detail, cure, pause_s = str(error), "restore its log from a replica", PAUSE_S
        if not isinstance(error, UnreadableBatch):
            loop.call_soon(state.seek, state.position)  # aiokafka goes past a record that it takes for too large
            detail = f"{tp.topic}/{tp.partition}: the broker returned no complete batch at offset {state.position}"
        elif isinstance(error.__cause__, BatchTooLarge):
            cure, pause_s = "raise kafka.max_unfinished_bytes and the limit of memory", TOO_LARGE_PAUSE_S
        problems.report(
            KafkaReason.RECORDS_UNREADABLE,
            f"{detail}: the partition waits; {cure}, or remove the records up to it",
            source=partition_name(tp),
            lasts_s=3 * pause_s,
        )
        state.pause()
        loop.call_later(pause_s, state.resume)

    return patched


def _reporting_log_errors(send: Send, problems_of: ProblemsOf) -> Send:
    @wraps(send)
    async def patched(client: Any, node_id: Any, request: Any, **named: Any) -> Any:
        response = await send(client, node_id, request, **named)
        for tp, code in fetched_partitions(request, response):
            if code in LOG_ERRORS and (problems := problems_of(client)) is not None:
                place = partition_name(tp)
                problems.report(
                    KafkaReason.RECORDS_UNREADABLE,
                    f"{place}: broker {node_id} can't read its log ({kafka_errors.for_code(code).__name__}): "
                    "check the broker's log and disk",
                    source=place,
                    lasts_s=3 * PAUSE_S,
                )
        return response

    return patched
