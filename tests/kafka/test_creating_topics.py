"""`dispatcher topics --create` creates the own topics and never the topic of events, and says what topics lack."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from dispatcher.config.settings import Settings
from dispatcher.errors import DispatcherError
from dispatcher.kafka import topics as topics_module
from dispatcher.kafka.connection import admin_client
from dispatcher.kafka.topic_comparison import KnownTopics, known_topics
from dispatcher.kafka.topics import FoundTopic, create_topics, found_topics
from tests.kafka import topics
from tests.kafka.apache_kafka import ApacheKafka


@pytest.fixture(scope="module")
async def broker() -> AsyncIterator[ApacheKafka]:
    """Yields a broker that creates each topic that a request names, as many do."""
    async with ApacheKafka() as running:
        yield running


def _settings(broker: ApacheKafka, topic: str) -> Settings:
    return Settings.model_validate(
        {
            "apiVersion": "dispatcher/v1",
            "kafka": {"bootstrap_servers": broker.bootstrap_servers, "topic": topic, "group_id": f"g-{topic}"},
            "webhooks": {"path": "/nowhere"},
            "retry": {"tiers": ["30s"]},
        }
    )


async def test_without_the_topic_of_events_none_is_created_unless_the_partitions_are_given(broker: ApacheKafka) -> None:
    settings = _settings(broker, "not-there-yet")
    with pytest.raises(DispatcherError, match=r"no topic not-there-yet \(kafka.topic\).*give --partitions"):
        await create_topics(settings, replication=1)
    async with admin_client(settings.kafka) as admin:
        assert not [name for name in await admin.list_topics() if name.startswith(("not-there-yet", "g-not"))]
    done = await create_topics(settings, replication=1, partitions=2)
    names = ("g-not-there-yet.retry.30s", "g-not-there-yet.held", "g-not-there-yet.dead")
    assert done == dict.fromkeys(names, "created")
    async with admin_client(settings.kafka) as admin:
        assert "not-there-yet" not in await admin.list_topics()


async def test_ours_get_as_many_partitions_and_are_left_alone_once_there(broker: ApacheKafka) -> None:
    await topics.create_topic(broker.bootstrap_servers, "orders", partitions=3)
    settings = _settings(broker, "orders")
    assert set((await create_topics(settings, replication=1)).values()) == {"created"}
    assert set((await create_topics(settings, replication=1)).values()) == {"exists"}
    async with asyncio.timeout(60):
        while await known_topics(settings) != KnownTopics(3, ()):
            await asyncio.sleep(0.1)  # the broker's list of topics is a moment behind
    async with admin_client(settings.kafka) as admin:
        described = {found["topic"]: len(found["partitions"]) for found in await admin.describe_topics()}
    assert (described["g-orders.retry.30s"], described["g-orders.dead"]) == (3, 3)


async def test_a_topic_that_the_list_does_not_have_yet_exists_if_the_broker_answers_so(
    broker: ApacheKafka, monkeypatch: pytest.MonkeyPatch
) -> None:
    await topics.create_topic(broker.bootstrap_servers, "behind")
    settings = _settings(broker, "behind")
    assert set((await create_topics(settings, replication=1)).values()) == {"created"}

    async def behind(*_: object) -> dict[str, FoundTopic]:
        return {"behind": FoundTopic(1, 1, {}, {})}

    monkeypatch.setattr(topics_module, "found_topics", behind)
    assert set((await create_topics(settings, replication=1)).values()) == {"exists"}


async def test_missing_settings_of_existing_topics_are_reported_and_set(broker: ApacheKafka) -> None:
    servers = broker.bootstrap_servers
    await topics.create_topic(servers, "short", partitions=2)
    await topics.create_topic(
        servers, "g-short.retry.30s",
        config={"retention.ms": "1000", "max.message.bytes": "3000000", "segment.bytes": "1048576", "cleanup.policy": "compact"},
    )  # fmt: skip
    await topics.create_topic(servers, "g-short.held", partitions=2, config={"retention.ms": "60000"})
    await topics.create_topic(
        servers, "g-short.dead", partitions=2, config={"max.message.bytes": "20000", "retention.bytes": "1000000"}
    )
    settings = _settings(broker, "short")
    warnings = [str(warning) for warning in (await known_topics(settings)).warnings]
    assert [line[:60] for line in warnings] == [
        "topic g-short.retry.30s: has 1 partitions, fewer than the 2 ",
        "topic g-short.retry.30s: cleanup.policy is compact: of event",
        "topic g-short.retry.30s: keeps records for 1s, and the setti",
        "topic g-short.held: keeps records for 1m, and the settings n",
        "topic g-short.held: accepts records of 1048588 bytes, and an",
        "topic g-short.dead: accepts records of 20000 bytes, and an e",
        "topic g-short.dead: retention.bytes is 1000000: records may ",
    ]
    done = await create_topics(settings, replication=1)
    assert done["g-short.retry.30s"] == "set cleanup.policy=delete, retention.ms=345600000"
    assert done["g-short.dead"] == "set max.message.bytes=2162688"
    async with admin_client(settings.kafka) as admin:
        found = await found_topics(admin, ["g-short.retry.30s", "g-short.dead", "another"])
    assert dict(found["g-short.retry.30s"].own_config) == {
        "cleanup.policy": "delete", "max.message.bytes": "3000000", "retention.ms": "345600000", "segment.bytes": "1048576"
    }  # fmt: skip
    assert found["g-short.dead"].own_config["retention.bytes"] == "1000000"
    assert "another" not in found
    left = [warning.message.split()[0] for warning in (await known_topics(settings)).warnings]
    assert left == ["has", "retention.bytes"]


async def test_missing_topics_are_named(broker: ApacheKafka) -> None:
    found = await known_topics(_settings(broker, "nothing"))
    assert found.events_partitions == 0
    assert [(one.topic, one.message[:10]) for one in found.warnings] == [
        ("g-nothing.retry.30s", "is missing"),
        ("g-nothing.held", "is missing"),
        ("g-nothing.dead", "is missing"),
    ]
