"""Writes records and waits until the broker has acknowledged them: acks=all, idempotent if the broker supports it.

An idempotent producer numbers the records of each partition. A refused record leaves a gap in these numbers, and the
broker refuses everything behind the gap as out of order: aiokafka doesn't renumber. Therefore:
- A producer that got a refusal is replaced before its next write. What is under way on the old one may finish.
- A topic that refused a record is *suspect* for a minute. Its writes (if the size was refused: those of that size and
  above) go through a second producer without numbers, so that one bad topic doesn't replace the producer of the others
  over and over.
- If a batch is refused for its size, each of its records is written once more in a batch of its own: only the record
  that is refused alone is too large.
"""

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Final, Self

import structlog
from aiokafka import AIOKafkaProducer
from aiokafka.errors import (
    BrokerResponseError,
    InvalidProducerIdMapping,
    KafkaError,
    LeaderNotAvailableError,
    MessageSizeTooLargeError,
    OutOfOrderSequenceNumber,
    ProducerFenced,
    RecordListTooLargeError,
    UnknownError,
    UnknownProducerId,
    UnsupportedVersionError,
)

from dispatcher.config.kafka_settings import KafkaSettings
from dispatcher.contract.kafka_problems import KafkaReason
from dispatcher.contract.records import LOG_APPEND_TIME, RecordHeaders
from dispatcher.errors import NotWritten, RecordTooLarge
from dispatcher.kafka.broker_access import peer_of
from dispatcher.kafka.connection import connection_arguments, stopped, until_answered
from dispatcher.kafka.connection_errors import explain
from dispatcher.kafka.partition_choice import PartitionChoice
from dispatcher.kafka.problems import KafkaProblems
from dispatcher.tasks import retrieve_error
from dispatcher.telemetry import metrics

log = structlog.get_logger(__name__)

WRITE_S: Final = 60.0
"""Time for one write, connecting included. A producer that needs longer is replaced, and the caller may then write a
record that the old producer had sent already. Therefore a broker that is away for a shorter time is waited for. The old
producer reads addresses and credentials again, too (`reconnecting`)."""
LEADER_S: Final = 5.0
"""Time in which a partition of the topic has to get a leader. Nothing is sent until then: the write can be repeated."""
LEADER_AGAIN_S: Final = 0.5
SUSPECT_S: Final = 60.0
REPLACED_S: Final = 1.0
"""Time that replaced producers get to close once the others are closed."""
LOG_EVERY_S: Final = 60.0
"""A topic that refuses every write is logged this often."""
HEADER_ROOM: Final = 64 * 1024
"""Bytes that the dispatcher's headers and the batch may add to a record."""
RECORD_OVERHEAD: Final = 100
"""Bytes of a batch with one record, beside key, value and headers."""

_SIZE_REFUSED = (MessageSizeTooLargeError, RecordListTooLargeError)
_NUMBERS_REFUSED = (OutOfOrderSequenceNumber, UnknownProducerId, InvalidProducerIdMapping, ProducerFenced)
"""The record was not written, and the fault is an earlier one's."""


def largest_record(max_record_bytes: int) -> int:
    """Returns the bytes of the largest record that is written: twice the largest event, and room for headers."""
    return max_record_bytes * 2 + HEADER_ROOM


@dataclass(frozen=True, slots=True)
class _Write:
    topic: str
    key: bytes | None
    value: bytes | None
    headers: RecordHeaders
    partition: int | None

    @property
    def size(self) -> int:
        headers = sum(len(name.encode()) + len(value or b"") + 10 for name, value in self.headers)
        return RECORD_OVERHEAD + len(self.key or b"") + len(self.value or b"") + headers


@dataclass(slots=True)
class _Suspect:
    """A topic that refused a write."""

    from_bytes: int
    """Writes of this size and above are refused, as far as known; 0: all."""
    until: float


@dataclass(slots=True, eq=False)
class _ClientInUse:
    """One aiokafka producer, and how many writes are under way on it."""

    client: AIOKafkaProducer
    is_numbered: bool
    on_append: Callable[[int], None] | None = None
    """Called with times (milliseconds since 1970) at which a broker appended records, of topics that keep this time."""
    writes: int = 0
    idle: asyncio.Event = field(default_factory=asyncio.Event)

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Counts a write as under way, looking up its partition included: the client isn't closed meanwhile."""
        self.writes += 1
        self.idle.clear()
        try:
            yield
        finally:
            self.writes -= 1
            if not self.writes:
                self.idle.set()

    async def send(self, write: _Write, partition: int, *, alone: bool) -> int:
        """Writes one record to a partition and returns its offset. With `alone` it gets a batch of its own."""
        if alone or (write.key is None and write.value is None):  # `send` asserts that one of them is there
            return await self._send_alone(write, partition)
        written = await self.client.send_and_wait(
            write.topic, write.value, write.key, partition, headers=list(write.headers)
        )
        return self._noted(written)

    def _noted(self, written: Any) -> int:
        """Returns the offset of a record. Notes its time if that is the broker's."""
        if self.on_append is not None and written.timestamp_type == LOG_APPEND_TIME and written.timestamp > 0:
            self.on_append(written.timestamp)
        return int(written.offset)

    async def find(self, topic: str, partition: int) -> None:
        """Requests newer metadata if the partition is unknown, because aiokafka asserts that it is known.

        Raises:
            KafkaError: the topic has no such partition.
        """
        if partition not in await self.client.partitions_for(topic):
            await self.client.client.force_metadata_update()
            if partition not in await self.client.partitions_for(topic):
                raise KafkaError(f"it has no partition {partition}")

    async def partitions(self, topic: str) -> tuple[set[int], set[int]]:
        """Returns all partitions of the topic, and those that have a leader: at least one.

        Raises:
            LeaderNotAvailableError: none has got a leader within a few seconds.
            KafkaError: the topic can't be looked up.
        """
        give_up_at = time.monotonic() + LEADER_S
        while True:
            known: set[int] = set(await self.client.partitions_for(topic))
            led: set[int] = set(self.client.client.cluster.available_partitions_for_topic(topic) or ())
            if led:
                return known, led
            if time.monotonic() > give_up_at:
                raise LeaderNotAvailableError(f"no partition of {topic} has a leader")
            await self.client.client.force_metadata_update()
            await asyncio.sleep(LEADER_AGAIN_S)

    async def _send_alone(self, write: _Write, partition: int) -> int:
        batch = self.client.create_batch()
        batch.append(key=write.key, value=write.value, timestamp=None, headers=list(write.headers))
        batch.close()
        sent = await self.client.send_batch(batch, write.topic, partition=partition)
        sent.add_done_callback(retrieve_error)  # a write that ends before its batch reports its own error
        await asyncio.wait({sent})  # cancelled with this write, it would lose the batch's error
        return self._noted(sent.result())

    async def close(self) -> None:
        """Closes after the current writes have ended; drops records that no caller waits for any more."""
        if self.writes:
            try:
                async with asyncio.timeout(WRITE_S + 5):
                    await self.idle.wait()
            except TimeoutError:
                log.warning("kafka producer is closed with writes under way", writes=self.writes)
        _drop_unsent(self.client._message_accumulator)  # noqa: SLF001  (`stop` would wait for batches for ever)
        await stopped(self.client)


def _drop_unsent(accumulator: Any) -> None:
    """Fails all batches. The writes whose records they hold have timed out, and were reported and counted then."""
    queued = [batch for batches in accumulator._batches.values() for batch in batches]  # noqa: SLF001
    batches = [*queued, *accumulator._pending_batches]  # noqa: SLF001
    accumulator.fail_all(KafkaError("the producer was replaced"))
    accumulator._batches.clear()  # noqa: SLF001  (the sender must not send what has failed)
    for batch in batches:
        # Only writes that are still under way wait for these.
        retrieve_error(batch.future)
        retrieve_error(batch._drain_waiter)  # noqa: SLF001


class _PendingBatches(set[Any]):
    """The batches that a producer is sending. Removes those that are no longer there without an error.

    aiokafka removes a batch when it fails and when it is to be sent once more. If a batch that waits for that fails,
    because its producer is closed, it raises KeyError: in a callback, or in the task that sends, which then ends.
    """

    def remove(self, element: Any) -> None:
        self.discard(element)


class Producer:
    """Writes the dispatcher's own records: retry, dead-letter and others. Entering waits until a broker answers."""

    def __init__(
        self,
        settings: KafkaSettings,
        problems: KafkaProblems | None = None,
        on_append: Callable[[int], None] | None = None,
    ) -> None:
        """Prepares a producer without connecting.

        Args:
            problems: receives what prevents writing.
            on_append: called with times (milliseconds since 1970) at which a broker has just appended a record.
        """
        self._settings = settings
        self._on_append = on_append
        self._problems = problems or KafkaProblems()
        self._largest = largest_record(settings.max_record_bytes)
        self._connections: dict[bool, _ClientInUse] = {}
        """By whether it is the one that numbers, as far as the broker can."""
        self._connecting = asyncio.Lock()
        self._choice = PartitionChoice()
        self._suspects: dict[str, _Suspect] = {}
        self._logged: dict[str, float] = {}
        self._closing: set[asyncio.Task[None]] = set()
        self._is_open = False

    async def __aenter__(self) -> Self:
        self._connections[True] = await until_answered(
            "producer", self._connect_numbered, self._settings, self._problems
        )
        self._is_open = True
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._is_open = False
        connections = [*self._connections.values()]
        self._connections.clear()
        if connections:
            await asyncio.gather(*(connection.close() for connection in connections))
        if self._closing:
            _, late = await asyncio.wait(self._closing, timeout=REPLACED_S)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)

    async def write(
        self,
        topic: str,
        key: bytes | None,
        value: bytes | None,
        headers: RecordHeaders,
        kind: str,
        partition: int | None = None,
    ) -> int:
        """Writes one record; returns its offset when the broker has acknowledged it, within 60 s.

        If no partition is given, the key chooses one as long as that can be written (see `partition_choice`).

        Raises:
            RecordTooLarge: the topic doesn't accept a record of this size. Not counted as a failure: the caller writes
                something else instead.
            NotWritten: the record was not written, or not acknowledged in time. The caller keeps the event.
        """
        if not self._is_open:
            raise NotWritten("the producer is not started")
        write = _Write(topic, key, value, headers, partition)
        size = write.size
        if size > self._largest:
            raise self._too_large(topic, size)
        try:
            return await self._deliver(write, size, asyncio.get_running_loop().time() + WRITE_S)
        except _SIZE_REFUSED:
            raise self._too_large(topic, size) from None
        except (KafkaError, TimeoutError, OSError) as error:
            metrics.PRODUCE_FAILURES.labels(kind).inc()
            reason, why = explain(error, peer_of(self._settings, self._settings.bootstrap_servers))
            self._report_failure(topic, type(error).__name__, why, is_refused=isinstance(error, BrokerResponseError))
            if reason is KafkaReason.CLOCK:
                self._problems.report(reason, f"topic {topic}: {why}", source=topic, lasts_s=SUSPECT_S)
            raise NotWritten(f"topic {topic} took no record: {why}") from error

    def _too_large(self, topic: str, size: int) -> RecordTooLarge:
        self._report_failure(topic, "RecordTooLarge", f"it accepts no record of {size} bytes", is_refused=True)
        return RecordTooLarge(f"{topic} accepts no record of {size} bytes (max.message.bytes)")

    async def _deliver(self, write: _Write, size: int, deadline: float) -> int:
        alone = False
        try:
            return await self._send(write, deadline, numbered=not self._is_suspect(write.topic, size))
        except _SIZE_REFUSED:
            self._suspect(write.topic, size)
            alone = True
        except _NUMBERS_REFUSED:
            pass
        except (KafkaError, TimeoutError):
            self._suspect(write.topic, 0)
            raise
        return await self._send(write, deadline, numbered=False, alone=alone)

    async def _send(self, write: _Write, deadline: float, *, numbered: bool, alone: bool = False) -> int:
        async with asyncio.timeout_at(deadline):
            connection = await self._connection(numbered=numbered)
        with connection.in_use():
            async with asyncio.timeout_at(deadline):
                if write.partition is not None:
                    await connection.find(write.topic, write.partition)
                    known = led = {write.partition}
                else:
                    known, led = await connection.partitions(write.topic)
            try:
                with self._partition(write, known, led) as partition:
                    async with asyncio.timeout_at(deadline):
                        return await connection.send(write, partition, alone=alone)
            except (KafkaError, TimeoutError) as error:
                # Without numbers a refusal leaves nothing behind; any other failure may lie with the connections.
                if connection.is_numbered or not isinstance(error, BrokerResponseError):
                    self._replace(connection, type(error).__name__)
                raise

    @contextmanager
    def _partition(self, write: _Write, known: set[int], led: set[int]) -> Iterator[int]:
        """Yields the partition for one write, and notes what comes of it."""
        choice, now = self._choice, asyncio.get_running_loop().time
        partition = choice.begin(write.topic, write.key, known, led, now())
        try:
            yield partition
        except (*_SIZE_REFUSED, *_NUMBERS_REFUSED):
            raise  # another partition refuses it, too, or the fault is an earlier write's
        except (KafkaError, TimeoutError):
            choice.on_failed(write.topic, partition, now())
            raise
        else:
            choice.on_written(write.topic, partition)
        finally:
            choice.end(write.topic, partition)

    # Topics that refuse

    def _is_suspect(self, topic: str, size: int) -> bool:
        suspect = self._suspects.get(topic)
        if suspect is None:
            return False
        if asyncio.get_running_loop().time() > suspect.until:
            del self._suspects[topic]
            return False
        return size >= suspect.from_bytes

    def _suspect(self, topic: str, size: int) -> None:
        known = self._suspects.get(topic)
        from_bytes = size if known is None else min(size, known.from_bytes)
        self._suspects[topic] = _Suspect(from_bytes, asyncio.get_running_loop().time() + SUSPECT_S)

    def _report_failure(self, topic: str, error: str, detail: str, *, is_refused: bool) -> None:
        now = asyncio.get_running_loop().time()
        if now >= self._logged.get(topic, 0.0):
            self._logged[topic] = now + LOG_EVERY_S
            log.warning("record not written", topic=topic, error=error, detail=detail[:256])
        if is_refused:
            text = f"topic {topic} refused a record: {detail}"
            self._problems.report(KafkaReason.WRITE_REFUSED, text, source=topic, lasts_s=SUSPECT_S)

    # Connections

    async def _connection(self, *, numbered: bool) -> _ClientInUse:
        found = self._connections.get(numbered)
        if found is not None:
            return found
        async with self._connecting:
            found = self._connections.get(numbered)
            if found is None:
                found = await (self._connect_numbered() if numbered else self._connect(is_numbered=False))
                self._connections[numbered] = found
            return found

    def _replace(self, connection: _ClientInUse, why: str) -> None:
        """Closes a connection in the background; the next write gets a new one."""
        for numbered, current in list(self._connections.items()):
            if current is connection:
                del self._connections[numbered]
                log.info("kafka producer is replaced", why=why)
                task = asyncio.create_task(connection.close(), name="close a replaced producer")
                self._closing.add(task)
                task.add_done_callback(self._closed)

    def _closed(self, task: "asyncio.Task[None]") -> None:
        self._closing.discard(task)
        if not task.cancelled() and task.exception() is not None:
            metrics.ERRORS.labels("task").inc()
            log.error("a replaced producer was not closed in order", exc_info=task.exception())

    async def _connect_numbered(self) -> _ClientInUse:
        if self._settings.idempotence == "off":
            return await self._connect(is_numbered=False)
        try:
            return await self._connect(is_numbered=True)
        except KafkaError as error:
            if self._settings.idempotence == "on" or not _means_unsupported(error):
                raise
            log.warning("the broker has no idempotent producers: a lost acknowledgement may write a record twice")
            return await self._connect(is_numbered=False)

    async def _connect(self, *, is_numbered: bool) -> _ClientInUse:
        client = AIOKafkaProducer(
            **connection_arguments(self._settings, self._problems),
            acks="all",
            enable_idempotence=is_numbered,
            linger_ms=5,
            max_request_size=self._largest,
        )
        # aiokafka gives up batches that it hasn't sent after `request_timeout_ms`, which is for single requests.
        client._message_accumulator._batch_ttl = WRITE_S  # noqa: SLF001
        client._message_accumulator._pending_batches = _PendingBatches()  # noqa: SLF001
        try:
            await client.start()
        except BaseException:
            await stopped(client)
            raise
        return _ClientInUse(client, is_numbered, self._on_append)


def _means_unsupported(error: Exception) -> bool:
    # A broker that doesn't know InitProducerId says so with UNSUPPORTED_VERSION, the embedded one with code -1.
    return isinstance(error, UnsupportedVersionError | UnknownError)
