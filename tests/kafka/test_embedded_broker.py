"""Tests that the demo's broker does what the demo needs, and has the faults that its module lists."""

from collections.abc import AsyncIterator
from pathlib import Path

import psutil
import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.errors import UnknownError

from dispatcher.config.settings import Settings
from dispatcher.demo.broker import EmbeddedBroker
from dispatcher.kafka.check import check_kafka
from tests.kafka import topics

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(60)]


@pytest.fixture(scope="module")
async def broker() -> AsyncIterator[EmbeddedBroker]:
    """Yields one broker for the module."""
    async with EmbeddedBroker() as running:
        yield running


async def test_a_group_goes_on_where_it_left_off(broker: EmbeddedBroker) -> None:
    """Produce, read in a group, commit, leave; the next member gets what was not committed, and nothing else."""
    async with AIOKafkaProducer(bootstrap_servers=broker.bootstrap_servers) as producer:
        for number in range(5):
            await producer.send_and_wait("orders", b"%d" % number, headers=[("n", b"")], partition=0)
    partition = TopicPartition("orders", 0)
    async with _member(broker) as first:
        assert await _values(first) == [b"0", b"1", b"2", b"3", b"4"]
        await first.commit({partition: (3, "dropped")})
    async with _member(broker) as second:
        assert await _values(second) == [b"3", b"4"]
        assert await second.committed(partition) == 3
    async with topics.admin_client(broker.bootstrap_servers) as admin:
        found = await admin.list_consumer_group_offsets("group", partitions=[partition])

    assert found[partition].metadata == ""


async def test_a_member_that_is_not_described_is_not_called_foreign(broker: EmbeddedBroker, tmp_path: Path) -> None:
    """The broker names no client, host or subscription: the dispatcher's own members were called foreign."""
    await topics.create_topic(broker.bootstrap_servers, "watched")
    settings = Settings.model_validate(
        {
            "apiVersion": "dispatcher/v1",
            "kafka": {"bootstrap_servers": broker.bootstrap_servers, "topic": "watched", "group_id": "group"},
            "webhooks": {"path": tmp_path},
        }
    )
    async with _member(broker, "watched") as member:
        await _values(member)
        report = await check_kafka(settings)
    assert "also reads in group" not in " ".join(report.problems)


async def test_topics_are_created_as_requested(broker: EmbeddedBroker) -> None:
    """With the partitions that the request names; by itself the broker makes four."""
    await topics.create_topic(broker.bootstrap_servers, "three", partitions=3)

    assert await topics.end_offsets(broker.bootstrap_servers, "three") == {0: 0, 1: 0, 2: 0}


async def test_an_idempotent_producer_is_refused_at_its_start(broker: EmbeddedBroker) -> None:
    """If this fails, tansu can do it now: correct the module's docstring and the dispatcher that works around it."""
    producer = AIOKafkaProducer(bootstrap_servers=broker.bootstrap_servers, enable_idempotence=True)
    try:
        with pytest.raises(UnknownError):
            await producer.start()
    finally:
        await producer.stop()


async def test_an_end_is_reported_too_low_after_a_batch_of_several(broker: EmbeddedBroker) -> None:
    """If this fails, tansu can do it now: correct the module's docstring and what reads on past the end."""
    async with AIOKafkaProducer(bootstrap_servers=broker.bootstrap_servers) as producer:
        batch = producer.create_batch()
        for _ in range(3):
            batch.append(key=None, value=b"", timestamp=None)
        await (await producer.send_batch(batch, "batches", partition=0))

        assert (await topics.end_offsets(broker.bootstrap_servers, "batches"))[0] == 1


async def test_nothing_is_left_when_it_stops() -> None:
    """Neither the process nor an address."""
    async with EmbeddedBroker() as broker:
        port = int(broker.bootstrap_servers.rpartition(":")[2])
        assert port in _listening()

    assert port not in _listening()
    with pytest.raises(RuntimeError, match="not been started"):
        _ = broker.bootstrap_servers


def _member(broker: EmbeddedBroker, topic: str = "orders") -> AIOKafkaConsumer:
    return AIOKafkaConsumer(
        topic,
        bootstrap_servers=broker.bootstrap_servers,
        group_id="group",
        enable_auto_commit=False,
        auto_offset_reset="earliest",
        session_timeout_ms=2_000,  # joining takes half of it
        heartbeat_interval_ms=500,
    )


async def _values(consumer: AIOKafkaConsumer) -> list[bytes]:
    """Returns the values of one poll, at most 10 s from now."""
    found = await consumer.getmany(timeout_ms=10_000)
    return [record.value for records in found.values() for record in records]


def _listening() -> set[int]:
    found = psutil.net_connections("tcp4")
    return {at.laddr.port for at in found if at.laddr and at.status == psutil.CONN_LISTEN}
