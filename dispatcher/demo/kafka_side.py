"""The demo's side of Kafka: creates topics, produces events at an even pace, and reads the dead letters back."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from dispatcher.config.loader import load_settings
from dispatcher.contract.records import PREFIX
from dispatcher.demo.planning import Planned
from dispatcher.kafka.topics import create_topics, dead_letter_topic

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


async def read_dead_letters(brokers: str, group: str) -> dict[str, str]:
    """Returns the reason of each record that is in the dead-letter topic now, by its key."""
    found: dict[str, str] = {}
    partitions = [TopicPartition(dead_letter_topic(group), number) for number in range(PARTITIONS)]
    consumer = AIOKafkaConsumer(bootstrap_servers=brokers, enable_auto_commit=False)
    await consumer.start()
    try:
        consumer.assign(partitions)
        ends = await consumer.end_offsets(partitions)
        await consumer.seek_to_beginning()
        # This broker reports too low an end; what came with a fetch is right.
        while any([await consumer.position(tp) < max(end, consumer.highwater(tp) or 0) for tp, end in ends.items()]):
            for records in (await consumer.getmany(timeout_ms=200)).values():
                for record in records:
                    reason = dict(record.headers).get(PREFIX + "reason", b"")
                    found[(record.key or b"").decode(errors="replace")] = reason.decode()
    finally:
        await consumer.stop()
    return found
