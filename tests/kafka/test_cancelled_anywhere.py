"""A cancellation ends what uses a client of Kafka at whichever await it comes: aiokafka loses some as a client closes."""

from collections.abc import AsyncIterator, Awaitable, Callable
from uuid import uuid4

import pytest
from aiokafka import TopicPartition

from dispatcher.config.kafka_settings import KafkaSettings
from dispatcher.config.settings import Settings
from dispatcher.kafka import topic_reader
from dispatcher.kafka.connection import admin_client, stopped
from dispatcher.kafka.first_start import find_earlier_start
from dispatcher.kafka.membership import Assignments, join
from dispatcher.kafka.probe import KafkaProbe
from dispatcher.kafka.producer import Producer
from dispatcher.kafka.topics import dead_letter_topic
from tests.cancelling import cancelled_everywhere
from tests.integration.brokers import needs_kafka
from tests.kafka import topics
from tests.kafka.apache_kafka import ApacheKafka

pytestmark = [
    needs_kafka,
    pytest.mark.timeout(300),
    # aiokafka leaves a connection to the garbage collector if its bootstrap is cancelled.
    pytest.mark.filterwarnings("ignore:(?i)unclosed:ResourceWarning"),
]

Operation = Callable[[Settings], Awaitable[None]]


@pytest.fixture
async def settings(mortal: ApacheKafka) -> AsyncIterator[Settings]:
    """Settings of a group whose topic of dead letters has a partition."""
    name = "cancelled-anywhere"
    kafka = KafkaSettings(bootstrap_servers=mortal.bootstrap_servers, topic=name, group_id=name)
    settings = Settings.model_validate(
        {"apiVersion": "dispatcher/v1", "kafka": kafka.model_dump(), "webhooks": {"store": "yaml", "path": "/nowhere"}}
    )
    for topic in (name, dead_letter_topic(kafka.prefix)):
        await topics.create_topic(mortal.bootstrap_servers, topic, partitions=1)
    yield settings
    for topic in (name, dead_letter_topic(kafka.prefix)):
        await topics.delete_topic(mortal.bootstrap_servers, topic)


class NoMember:
    """Receives assignments and does nothing with them."""

    async def assigned(self, tps: object) -> None: ...
    async def revoked(self, tps: object) -> None: ...
    def heard(self, at: float) -> None: ...


async def member(settings: Settings) -> None:
    client = await join(settings.kafka, [settings.kafka.topic], f"group-{uuid4()}", Assignments(NoMember()))
    await stopped(client)


async def outsider(settings: Settings) -> None:
    consumer = topic_reader.outside_consumer(settings.kafka)
    try:
        await consumer.start()
        consumer.assign([TopicPartition(settings.kafka.topic, 0)])
        await consumer.getmany(timeout_ms=10)
    finally:
        await stopped(consumer)


async def admin(settings: Settings) -> None:
    async with admin_client(settings.kafka) as client:
        await client.list_topics()


async def earlier_start(settings: Settings) -> None:
    await find_earlier_start(settings)


async def producer(settings: Settings) -> None:
    async with Producer(settings.kafka):
        pass


async def probe(settings: Settings) -> None:
    async with KafkaProbe(settings.kafka, [], []) as looking:
        await looking.look()


async def reader(settings: Settings) -> None:
    async with topic_reader.open_topics(settings.kafka, [settings.kafka.topic]):
        pass


@pytest.mark.parametrize("operation", [member, outsider, admin, earlier_start, producer, probe, reader])
async def test_no_cancellation_is_lost(settings: Settings, operation: Operation) -> None:
    assert await cancelled_everywhere(lambda: operation(settings)) > 3
