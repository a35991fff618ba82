"""Writes records and waits until the broker has acknowledged them: acks=all, idempotent if the broker supports it.

An idempotent producer gives the records of each partition sequence numbers. A refused record leaves a gap in them, and
the broker refuses everything behind the gap as out of order: aiokafka doesn't renumber. Therefore:
- An idempotent producer that got a refusal is replaced before its next write. What is under way on the old one may
  finish.
- A topic that refused a record is *suspect* for a minute. Its writes (if the size was refused: those of that size and
  above) go through a second producer, which isn't idempotent, so that one bad topic doesn't replace the producer of the
  others over and over.
- If a batch is refused for its size, each of its records is written once more in a batch of its own: only the record
  that is refused alone is too large.
"""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Self

import structlog
from aiokafka.errors import (
    BrokerResponseError,
    InvalidProducerIdMapping,
    KafkaError,
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
from dispatcher.contract.records import RecordHeaders
from dispatcher.errors import NotWritten, RecordTooLarge
from dispatcher.kafka.broker_access import peer_of
from dispatcher.kafka.connection import until_answered
from dispatcher.kafka.connection_errors import explain_error
from dispatcher.kafka.partition_choice import PartitionChoice
from dispatcher.kafka.problems import KafkaProblems
from dispatcher.kafka.producer_client import WRITE_S, ProducerClient, Write, connect
from dispatcher.tasks import cancel_and_wait
from dispatcher.telemetry import metrics

log = structlog.get_logger(__name__)

SUSPECT_S: Final = 60.0
"""Time for which a topic that refused a record is suspect."""
REPLACED_S: Final = 1.0
"""Time that replaced producers get to close once the others are closed."""
LOG_EVERY_S: Final = 60.0
"""A topic that refuses every write is logged this often."""
HEADER_ROOM: Final = 64 * 1024
"""Bytes that the dispatcher's headers and the batch may add to a record."""

_SIZE_REFUSED = (MessageSizeTooLargeError, RecordListTooLargeError)
_SEQUENCE_REFUSED = (OutOfOrderSequenceNumber, UnknownProducerId, InvalidProducerIdMapping, ProducerFenced)
"""The record was not written because of its sequence number: an earlier record was refused."""


def largest_record(max_record_bytes: int) -> int:
    """Returns the bytes of the largest record that is written: twice the largest event, and room for headers."""
    return max_record_bytes * 2 + HEADER_ROOM


@dataclass(slots=True)
class _Suspect:
    """A topic that refused a write."""

    from_bytes: int
    """Writes of this size and above are refused, as far as known; 0: all."""
    until: float


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
        self._clients: dict[bool, ProducerClient] = {}
        """By whether it is the idempotent one; if the broker knows no idempotence, that one isn't either."""
        self._connecting = asyncio.Lock()
        self._choice = PartitionChoice()
        self._suspects: dict[str, _Suspect] = {}
        self._logged: dict[str, float] = {}
        self._closing: set[asyncio.Task[None]] = set()
        self._is_open = False

    async def __aenter__(self) -> Self:
        self._clients[True] = await until_answered("producer", self._connect_idempotent, self._settings, self._problems)
        self._is_open = True
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._is_open = False
        clients = [*self._clients.values()]
        self._clients.clear()
        if clients:
            await asyncio.gather(*(client.close() for client in clients))
        if self._closing:
            _, late = await asyncio.wait(self._closing, timeout=REPLACED_S)
            await cancel_and_wait(*late)

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
        write = Write(topic, key, value, headers, partition)
        size = write.size
        if size > self._largest:
            raise self._too_large(topic, size)
        try:
            return await self._write_or_repeat(write, size, asyncio.get_running_loop().time() + WRITE_S)
        except _SIZE_REFUSED:
            raise self._too_large(topic, size) from None
        except (KafkaError, TimeoutError, OSError) as error:
            metrics.PRODUCE_FAILURES.labels(kind).inc()
            reason, why = explain_error(error, peer_of(self._settings, self._settings.bootstrap_servers))
            self._report_failure(topic, type(error).__name__, why, is_refused=isinstance(error, BrokerResponseError))
            if reason is KafkaReason.CLOCK:
                self._problems.report(reason, f"topic {topic}: {why}", source=topic, lasts_s=SUSPECT_S)
            raise NotWritten(f"topic {topic} took no record: {why}") from error

    def _too_large(self, topic: str, size: int) -> RecordTooLarge:
        self._report_failure(topic, "RecordTooLarge", f"it accepts no record of {size} bytes", is_refused=True)
        return RecordTooLarge(f"{topic} accepts no record of {size} bytes (max.message.bytes)")

    async def _write_or_repeat(self, write: Write, size: int, deadline: float) -> int:
        """Writes a record; once more without idempotence if its batch or its sequence number was refused."""
        alone = False
        try:
            return await self._send(write, deadline, idempotent=not self._is_suspect(write.topic, size))
        except _SIZE_REFUSED:
            self._mark_suspect(write.topic, size)
            alone = True
        except _SEQUENCE_REFUSED:
            pass
        except (KafkaError, TimeoutError):
            self._mark_suspect(write.topic, 0)
            raise
        return await self._send(write, deadline, idempotent=False, alone=alone)

    async def _send(self, write: Write, deadline: float, *, idempotent: bool, alone: bool = False) -> int:
        async with asyncio.timeout_at(deadline):
            client = await self._get_client(idempotent=idempotent)
        with client.in_use():
            async with asyncio.timeout_at(deadline):
                if write.partition is not None:
                    await client.require_partition(write.topic, write.partition)
                    known = led = {write.partition}
                else:
                    known, led = await client.partitions(write.topic)
            try:
                with self._chosen_partition(write, known, led) as partition:
                    async with asyncio.timeout_at(deadline):
                        return await client.send(write, partition, alone=alone)
            except (KafkaError, TimeoutError) as error:
                # Without sequence numbers a refusal leaves no gap; any other failure may lie with the connections.
                if client.is_idempotent or not isinstance(error, BrokerResponseError):
                    self._replace(client, type(error).__name__)
                raise

    @contextmanager
    def _chosen_partition(self, write: Write, known: set[int], led: set[int]) -> Iterator[int]:
        """Yields the partition for one write, and reports to `partition_choice` whether it could be written."""
        choice, now = self._choice, asyncio.get_running_loop().time
        partition = choice.begin(write.topic, write.key, known, led, now())
        try:
            yield partition
        except (*_SIZE_REFUSED, *_SEQUENCE_REFUSED):
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

    def _mark_suspect(self, topic: str, size: int) -> None:
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

    # Clients

    async def _get_client(self, *, idempotent: bool) -> ProducerClient:
        found = self._clients.get(idempotent)
        if found is not None:
            return found
        async with self._connecting:
            found = self._clients.get(idempotent)
            if found is None:
                found = await (self._connect_idempotent() if idempotent else self._connect(is_idempotent=False))
                self._clients[idempotent] = found
            return found

    def _replace(self, client: ProducerClient, why: str) -> None:
        """Closes a client in the background; the next write gets a new one."""
        for idempotent, current in list(self._clients.items()):
            if current is client:
                del self._clients[idempotent]
                log.info("kafka producer is replaced", why=why)
                task = asyncio.create_task(client.close(), name="close a replaced producer")
                self._closing.add(task)
                task.add_done_callback(self._closed)

    def _closed(self, task: "asyncio.Task[None]") -> None:
        self._closing.discard(task)
        if not task.cancelled() and task.exception() is not None:
            metrics.ERRORS.labels("task").inc()
            log.error("a replaced producer was not closed in order", exc_info=task.exception())

    async def _connect_idempotent(self) -> ProducerClient:
        if self._settings.idempotence == "off":
            return await self._connect(is_idempotent=False)
        try:
            return await self._connect(is_idempotent=True)
        except KafkaError as error:
            if self._settings.idempotence == "on" or not _means_unsupported(error):
                raise
            log.warning("the broker has no idempotent producers: a lost acknowledgement may write a record twice")
            return await self._connect(is_idempotent=False)

    async def _connect(self, *, is_idempotent: bool) -> ProducerClient:
        return await connect(
            self._settings, self._problems, self._on_append, max_request_size=self._largest, is_idempotent=is_idempotent
        )


def _means_unsupported(error: Exception) -> bool:
    # A broker that doesn't know InitProducerId says so with UNSUPPORTED_VERSION, the embedded one with code -1.
    return isinstance(error, UnsupportedVersionError | UnknownError)
