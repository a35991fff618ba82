"""One connected aiokafka producer: writes single records, and works around what aiokafka lacks for that.

aiokafka asserts what callers can't know (that a partition exists, that a record has a key or a value), and closes a
producer only when every batch was sent. `producer` decides which client writes a record, and when one is replaced.
"""

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final

import structlog
from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError, LeaderNotAvailableError

from dispatcher.config.kafka_settings import KafkaSettings
from dispatcher.contract.records import LOG_APPEND_TIME, RecordHeaders
from dispatcher.kafka.connection import connection_arguments, stopped
from dispatcher.kafka.problems import KafkaProblems
from dispatcher.tasks import retrieve_error

log = structlog.get_logger(__name__)

WRITE_S: Final = 60.0
"""Time for one write, connecting included. A producer that needs longer is replaced, and the caller may then write a
record that the old producer had sent already. Therefore a broker that is away for a shorter time is waited for. The old
producer reads addresses and credentials again, too (`reconnecting`)."""
LEADER_S: Final = 5.0
"""Time in which a partition of the topic has to get a leader. Nothing is sent until then: the write can be repeated."""
LEADER_AGAIN_S: Final = 0.5
RECORD_OVERHEAD: Final = 100
"""Bytes of a batch with one record, beside key, value and headers."""


@dataclass(frozen=True, slots=True)
class Write:
    """One record to write."""

    topic: str
    key: bytes | None
    value: bytes | None
    headers: RecordHeaders
    partition: int | None
    """None: any; `partition_choice` chooses."""

    @property
    def size(self) -> int:
        """About how many bytes the record takes in a batch of its own."""
        headers = sum(len(name.encode()) + len(value or b"") + 10 for name, value in self.headers)
        return RECORD_OVERHEAD + len(self.key or b"") + len(self.value or b"") + headers


@dataclass(slots=True, eq=False)
class ProducerClient:
    """One aiokafka producer, and how many writes are under way on it. `connect` creates one."""

    client: AIOKafkaProducer
    is_idempotent: bool
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

    async def send(self, write: Write, partition: int, *, alone: bool) -> int:
        """Writes one record to a partition and returns its offset. With `alone` it gets a batch of its own."""
        if alone or (write.key is None and write.value is None):  # `send` asserts that one of them is there
            return await self._send_alone(write, partition)
        written = await self.client.send_and_wait(
            write.topic, write.value, write.key, partition, headers=list(write.headers)
        )
        return self._offset_of(written)

    def _offset_of(self, written: Any) -> int:
        """Returns the offset of a written record. Reports when it was appended, if the broker has set its timestamp."""
        if self.on_append is not None and written.timestamp_type == LOG_APPEND_TIME and written.timestamp > 0:
            self.on_append(written.timestamp)
        return int(written.offset)

    async def require_partition(self, topic: str, partition: int) -> None:
        """Makes sure that the client knows the partition, because aiokafka asserts that; gets newer metadata if needed.

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

    async def _send_alone(self, write: Write, partition: int) -> int:
        batch = self.client.create_batch()
        batch.append(key=write.key, value=write.value, timestamp=None, headers=list(write.headers))
        batch.close()
        sent = await self.client.send_batch(batch, write.topic, partition=partition)
        sent.add_done_callback(retrieve_error)  # a write that ends before its batch reports its own error
        await asyncio.wait({sent})  # cancelled with this write, it would lose the batch's error
        return self._offset_of(sent.result())

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


async def connect(
    settings: KafkaSettings,
    problems: KafkaProblems,
    on_append: Callable[[int], None] | None,
    *,
    max_request_size: int,
    is_idempotent: bool,
) -> ProducerClient:
    """Connects an aiokafka producer. `max_request_size`: bytes of the largest record that it may be given.

    Raises:
        KafkaError: no broker answers, or the broker doesn't support what was asked for.
    """
    client = AIOKafkaProducer(
        **connection_arguments(settings, problems),
        acks="all",
        enable_idempotence=is_idempotent,
        linger_ms=5,
        max_request_size=max_request_size,
    )
    # aiokafka gives up batches that it hasn't sent after `request_timeout_ms`, which is for single requests.
    client._message_accumulator._batch_ttl = WRITE_S  # noqa: SLF001
    client._message_accumulator._pending_batches = _PendingBatches()  # noqa: SLF001
    try:
        await client.start()
    except BaseException:
        await stopped(client)
        raise
    return ProducerClient(client, is_idempotent, on_append)


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
