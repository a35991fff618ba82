"""`dispatcher topics --create` makes the topics that are ours, and never the topic of events."""

from collections.abc import AsyncIterator

import pytest

from dispatcher.config.settings import Settings
from dispatcher.kafka.connection import admin_client
from dispatcher.kafka.topics import create_topics
from tests.kafka import topics
from tests.kafka.apache_kafka import ApacheKafka


@pytest.fixture(scope="module")
async def broker() -> AsyncIterator[ApacheKafka]:
    """A broker that creates each topic that it is asked about, as many do."""
    async with ApacheKafka() as running:
        yield running


def _settings(broker: ApacheKafka, topic: str) -> Settings:
    return Settings.model_validate(
        {
            "apiVersion": "dispatcher/v1",
            "kafka": {"bootstrap_servers": broker.bootstrap_servers, "topic": topic},
            "webhooks": {"path": "/nowhere"},
            "retry": {"tiers": ["30s"]},
        }
    )


async def test_the_topic_of_events_is_its_producers_business(broker: ApacheKafka) -> None:
    settings = _settings(broker, "not-there-yet")
    done = await create_topics(settings, replication=1)
    assert done == {"not-there-yet.retry.30s": "created", "not-there-yet.dead": "created"}
    async with admin_client(settings.kafka) as admin:
        assert "not-there-yet" not in await admin.list_topics()


async def test_ours_get_as_many_partitions_and_are_left_alone_once_there(broker: ApacheKafka) -> None:
    await topics.create_topic(broker.bootstrap_servers, "orders", partitions=3)
    settings = _settings(broker, "orders")
    assert set((await create_topics(settings, replication=1)).values()) == {"created"}
    assert set((await create_topics(settings, replication=1)).values()) == {"exists"}
    async with admin_client(settings.kafka) as admin:
        described = {found["topic"]: len(found["partitions"]) for found in await admin.describe_topics()}
    assert (described["orders.retry.30s"], described["orders.dead"]) == (3, 3)
