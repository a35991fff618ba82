"""Only the topics that are needed are requested: on a large cluster, decoding all of them takes seconds."""

import asyncio
from io import BytesIO
from typing import Any

import pytest
from aiokafka.client import AIOKafkaClient
from aiokafka.conn import AIOKafkaConnection
from aiokafka.protocol.metadata import MetadataResponse_v5
from hypothesis import given
from hypothesis import strategies as st

from dispatcher.config.settings import Settings
from dispatcher.kafka.connection import admin_client
from dispatcher.kafka.former_topics import find_former_topics
from dispatcher.kafka.probe_requests import MetadataResponseV8
from dispatcher.kafka.producer import Producer
from dispatcher.kafka.topic_comparison import known_topics
from dispatcher.kafka.topic_lookup import TopicSizesV8, all_topics, described_topics
from dispatcher.kafka.topic_reader import open_topics, partitions_of
from tests.integration.brokers import needs_kafka
from tests.kafka import topics
from tests.kafka.apache_kafka import ApacheKafka

INT32 = st.integers(-(2**31), 2**31 - 1)
TEXT = st.none() | st.text(max_size=5)
NUMBERS = st.lists(INT32, max_size=3)
PARTITION = st.tuples(st.integers(-1, 100), INT32, INT32, INT32, NUMBERS, NUMBERS, NUMBERS)
TOPIC = st.tuples(
    st.sampled_from([0, 3, 5, 29]), st.text(max_size=8), st.booleans(), st.lists(PARTITION, max_size=4), INT32
)
ANSWER = st.builds(
    MetadataResponseV8,
    INT32,
    st.lists(st.tuples(INT32, st.text(max_size=5), INT32, TEXT), max_size=3),
    TEXT,
    INT32,
    st.lists(TOPIC, max_size=4),
    INT32,
)


@given(ANSWER)
def test_the_own_decoder_reads_names_and_numbers_of_partitions(answer: MetadataResponseV8) -> None:
    found = TopicSizesV8.decode(BytesIO(answer.encode()))
    there = {topic[1]: len(topic[3]) for topic in answer.topics if topic[0] in (0, 5)}
    assert (found.throttle_time_ms, found.partitions) == (answer.throttle_time_ms, there)


@given(ANSWER, st.data())
def test_an_answer_that_is_cut_is_an_odd_answer(answer: MetadataResponseV8, data: st.DataObject) -> None:
    encoded = answer.encode()
    size = data.draw(st.integers(0, len(encoded) - 5))  # the last four bytes aren't read
    try:
        TopicSizesV8.decode(encoded[:size])
    except ValueError:
        pass


def _settings(broker: ApacheKafka) -> Settings:
    return Settings.model_validate(
        {
            "apiVersion": "dispatcher/v1",
            "kafka": {"bootstrap_servers": broker.bootstrap_servers, "topic": "needed", "group_id": "g-lookup"},
            "webhooks": {"path": "/nowhere"},
        }
    )


@pytest.fixture
def answered(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Returns the topics that aiokafka's decoder has read, one entry for each time."""
    names: list[str] = []
    handle = AIOKafkaConnection._handle_frame

    def noting(connection: Any, frame: bytes) -> None:
        future = connection._requests[0][2]
        handle(connection, frame)
        answer = future.result() if future.done() and not future.exception() else None
        if isinstance(answer, MetadataResponse_v5 | MetadataResponseV8):
            names.extend(topic[1] for topic in answer.topics)

    monkeypatch.setattr(AIOKafkaConnection, "_handle_frame", noting)
    return names


@needs_kafka
async def test_other_topics_of_the_cluster_are_never_decoded(mortal: ApacheKafka, answered: list[str]) -> None:
    for name in ("needed", "unrelated"):
        await topics.create_topic(mortal.bootstrap_servers, name)
    settings = _settings(mortal)
    answered.clear()
    assert [tp.topic for tp in await partitions_of(settings.kafka, ["needed"])] == ["needed"]
    assert (await known_topics(settings)).events_partitions == 1
    await find_former_topics(settings)
    async with open_topics(settings.kafka, ["needed"]) as reader:
        await _refreshed(reader._consumer._client)
    async with Producer(settings.kafka) as producer:
        (client,) = producer._clients.values()
        await _refreshed(client.client.client)
        await producer.write("needed", b"k", b"v", [], "sample")
    assert "needed" in answered
    assert "unrelated" not in answered


async def _refreshed(client: AIOKafkaClient) -> None:
    """Waits for the request for metadata that aiokafka makes once a minute."""
    async with asyncio.timeout(10):
        assert await client.force_metadata_update()


@needs_kafka
async def test_no_topic_is_created_by_looking_for_it(mortal: ApacheKafka) -> None:
    await topics.create_topic(mortal.bootstrap_servers, "needed-too", partitions=3)
    async with admin_client(_settings(mortal).kafka) as admin:
        found = await described_topics(admin, ["needed-too", "not-there"])
        assert {name: len(partitions) for name, partitions in found.items()} == {"needed-too": 3}
        everything = await all_topics(admin)
    assert everything["needed-too"] == 3
    assert "not-there" not in everything
