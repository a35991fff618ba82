"""The demo's side of Kafka: creates topics, produces events at an even pace, and reads back what happened to them."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final, Self

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from dispatcher.config.loader import load_settings
from dispatcher.contract.history import HistoryEntry, decode_record
from dispatcher.contract.records import PREFIX
from dispatcher.demo.accounts import Said
from dispatcher.demo.planning import Planned
from dispatcher.kafka.redrive import MARK
from dispatcher.kafka.topics import create_topics, dead_letter_topic, history_topic

PARTITIONS = 4


async def make_topics(config: Path) -> None:
    """Creates the topic of events and the topics that `dispatcher topics --create` creates."""
    settings = load_settings(config, {})
    admin = AIOKafkaAdminClient(bootstrap_servers=settings.kafka.bootstrap_servers)
    await admin.start()
    try:
        await admin.create_topics([NewTopic(settings.kafka.topic, PARTITIONS, 1)])
    finally:
        await admin.close()
    await create_topics(settings, replication=1, partitions=PARTITIONS)


@asynccontextmanager
async def _producer(brokers: str) -> AsyncIterator[AIOKafkaProducer]:
    producer = AIOKafkaProducer(bootstrap_servers=brokers, acks="all", linger_ms=2)
    await producer.start()
    try:
        yield producer
    finally:
        await producer.stop()


async def produce(
    brokers: str,
    topic: str,
    events: Iterator[Planned],
    per_second: float,
    on_event: Callable[[Planned], None],
    stop: asyncio.Event,
) -> None:
    """Writes the events at an even pace until there are no more or `stop` is set; at the end all are acknowledged.

    Args:
        on_event: called with each event just before it is sent.
    """
    loop = asyncio.get_running_loop()
    async with _producer(brokers) as producer:
        began = loop.time()
        for number, event in enumerate(events):
            late = began + number / per_second - loop.time()
            if late > 0.005:
                await asyncio.sleep(late)
            if stop.is_set():
                break
            on_event(event)
            await producer.send(topic, event.value, key=event.event_id.encode())
        await producer.flush()


class Outcomes:
    """Reads what the dispatcher wrote about events, in the dead-letter topic and in the history topic.

    Use as an async context manager.
    """

    def __init__(self, brokers: str, group: str) -> None:
        self.dead: Final[dict[str, str]] = {}
        """The reason of each record in the dead-letter topic, by its key."""
        self.history: Final[dict[str, Said]] = {}
        """The last entry of each event, by webhook-id."""
        self._last_at: Final[dict[str, int]] = {}
        self._dead_topic = dead_letter_topic(group)
        topics = (self._dead_topic, history_topic(group))
        self._partitions = [TopicPartition(topic, number) for topic in topics for number in range(PARTITIONS)]
        self._consumer = AIOKafkaConsumer(bootstrap_servers=brokers, enable_auto_commit=False)

    async def __aenter__(self) -> Self:
        await self._consumer.start()
        self._consumer.assign(self._partitions)
        await self._consumer.seek_to_beginning()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._consumer.stop()

    async def read(self) -> None:
        """Reads what was written since the last time."""
        ends = await self._consumer.end_offsets(self._partitions)
        while not await self._is_at(ends):
            for tp, records in (await self._consumer.getmany(timeout_ms=200)).items():
                for record in records:
                    if tp.topic != self._dead_topic:
                        for run in decode_record(record.value).runs:
                            self._add(run.entries)
                    elif (key := (record.key or b"").decode(errors="replace")) != MARK:
                        self.dead[key] = dict(record.headers).get(PREFIX + "reason", b"").decode()

    async def _is_at(self, ends: dict[TopicPartition, int]) -> bool:
        """Returns True if everything was read. This broker reports too low an end; what came with a fetch is right."""
        for tp, end in ends.items():
            if await self._consumer.position(tp) < max(end, self._consumer.highwater(tp) or 0):
                return False
        return True

    def _add(self, entries: Iterable[HistoryEntry]) -> None:
        for entry in entries:
            event = entry.webhook_id
            if event is not None and entry.at >= self._last_at.get(event, 0):
                self._last_at[event] = entry.at
                self.history[event] = entry.outcome, entry.reason
