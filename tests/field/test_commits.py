"""Commits that the broker refuses, the very first position, and what a kill repeats."""

import asyncio
import random
import statistics
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiokafka.admin import NewPartitions

from tests.field.readiness import reports
from tests.integration.brokers import needs_kafka
from tests.integration.harness import LARGEST_RECORD, Stage, slowly, stage, tenants, until
from tests.kafka import topics
from tests.kafka.apache_kafka import ApacheKafka
from tests.kafka.server_properties import KafkaOptions

GONE_LINE = "positions of the group are gone"
pytestmark = [needs_kafka, pytest.mark.timeout(300)]


@pytest.fixture
async def miserly(tmp_path: Path) -> AsyncIterator[Stage]:
    """Yields a stage on a broker that accepts 64 bytes of commit metadata."""
    options = KafkaOptions(message_max_bytes=LARGEST_RECORD, extra={"offset.metadata.max.bytes": "64"})
    async with ApacheKafka(options) as broker, stage(broker.bootstrap_servers, tmp_path) as made:
        yield made


async def test_a_broker_that_takes_little_metadata_still_gets_commits(miserly: Stage) -> None:
    everybody = tenants(20)
    miserly.mount([miserly.webhook(tenant) for tenant in everybody])
    for number, tenant in enumerate(everybody):
        miserly.receiver.behave(f"/{tenant.org}", slowly(random.Random(number).choice((0.01, 0.3, 2.0))))
    async with miserly.dispatcher() as dispatcher:
        dispatcher.start()
        await dispatcher.ready()
        await miserly.produce(everybody, 2_000)
        await miserly.all_accepted(dispatcher)

        async def complete() -> bool:
            ends = await topics.end_offsets(miserly.bootstrap_servers, miserly.topic)
            return await miserly.committed() == ends

        await until(complete, "everything to be committed", 60, dispatcher)
        assert "commit_refused" in dispatcher.log
        assert dispatcher.log.count("can't be committed") == 0
        repeats = miserly.receiver.repeats()
        dispatcher.kill9()
        dispatcher.start()
        await dispatcher.ready()
        await asyncio.sleep(2)
        assert miserly.receiver.repeats() == repeats


@pytest.mark.parametrize("adds_partitions", [False, pytest.param(True, marks=pytest.mark.all_faults)])
async def test_latest_concerns_the_very_first_start_only(scene: Stage, adds_partitions: bool) -> None:
    everybody = tenants(4)
    scene.mount([scene.webhook(tenant) for tenant in everybody])
    await scene.produce(everybody, 20, "before")
    before = set(scene.expected)
    scene.expected.clear()
    async with scene.dispatcher(kafka={"auto_offset_reset": "latest"}) as dispatcher:
        dispatcher.start()
        await dispatcher.ready()
        await until(lambda: _all_committed(scene), "the first positions", 60, dispatcher)
        dispatcher.kill9()  # before anything was read
        await scene.produce(everybody, 20, "down")
        dispatcher.start()
        await scene.all_accepted(dispatcher)
        if adds_partitions:  # members see them when their metadata is minutes old
            async with topics.admin_client(scene.bootstrap_servers) as admin:
                await admin.create_partitions({scene.topic: NewPartitions(6)})
            await scene.close()
            await scene.produce(everybody, 120, "added")
            await scene.all_accepted(dispatcher, 120)

        assert not before & scene.receiver.accepted.keys()


async def test_latest_does_not_concern_a_topic_that_is_created_after_the_start(
    scene: Stage, mortal: ApacheKafka
) -> None:
    (tenant,) = tenants(1)
    scene.mount([scene.webhook(tenant)])
    await topics.delete_topic(scene.bootstrap_servers, scene.topic)
    async with scene.dispatcher(kafka={"auto_offset_reset": "latest"}) as dispatcher:
        dispatcher.start()
        await reports(dispatcher, "topic_missing", scene.topic)
        await until(lambda: "not found in cluster metadata" in dispatcher.log, "the client to see it", 60, dispatcher)
        await topics.create_topic(scene.bootstrap_servers, scene.topic, partitions=4)
        await scene.produce([tenant], 100)
        await scene.all_accepted(dispatcher, 120)


@pytest.mark.parametrize("reset", ["latest", pytest.param("earliest", marks=pytest.mark.all_faults)])
async def test_events_written_while_kafka_forgot_the_groups_positions_are_delivered(scene: Stage, reset: str) -> None:
    """After `offsets.retention.minutes` without members; the dead letters show that it isn't the first start."""
    (tenant,) = tenants(1)
    scene.mount([scene.webhook(tenant)])
    async with scene.dispatcher(kafka={"auto_offset_reset": reset, "group_instance_id": None}) as dispatcher:
        dispatcher.start()
        await dispatcher.ready()
        await until(lambda: _all_committed(scene), "the first positions", 60, dispatcher)
        assert GONE_LINE not in dispatcher.log
        await scene.send(b"junk")
        await scene.produce([tenant], 20, "first")
        await scene.all_accepted(dispatcher)
        dispatcher.sigterm()
        assert await dispatcher.wait() == 0
        for suffix in ("", ".retry", ".held"):
            await topics.delete_group(scene.bootstrap_servers, scene.group_id + suffix)
        await scene.produce([tenant], 20, "down")
        dispatcher.start()
        await scene.all_accepted(dispatcher)
        assert GONE_LINE in dispatcher.log


async def _all_committed(scene: Stage) -> bool:
    return len(await scene.committed()) == 4


@pytest.mark.all_faults
@pytest.mark.parametrize("latency_s", [0.01, 0.05])
async def test_a_kill_repeats_little_more_than_what_was_in_flight(scene: Stage, latency_s: float) -> None:
    """The median of some kills is below the larger of twice the POSTs in flight and 100 ms of throughput."""
    everybody = tenants(10)
    scene.mount([scene.webhook(tenant) for tenant in everybody])
    for tenant in everybody:
        scene.receiver.behave(f"/{tenant.org}", slowly(latency_s))
    found: list[tuple[int, int, float]] = []
    chance = random.Random(1)
    async with scene.dispatcher(delivery={"max_in_flight": 100}) as dispatcher:
        for number in range(9):
            await scene.produce(everybody, 5_000, f"k{number}")
            before, repeats = len(scene.receiver.accepted), scene.receiver.repeats()
            dispatcher.start()
            await scene.accepted(before + 300, dispatcher)
            began, count = asyncio.get_running_loop().time(), len(scene.receiver.accepted)
            await asyncio.sleep(0.2 + chance.random() / 5)
            rate = (len(scene.receiver.accepted) - count) / (asyncio.get_running_loop().time() - began)
            in_flight = await dispatcher.in_flight()
            dispatcher.kill9()
            dispatcher.start()
            await scene.all_accepted(dispatcher)
            dispatcher.kill9()
            found.append((scene.receiver.repeats() - repeats, in_flight, rate))
    print("repeats, in flight, events a second:", found)
    assert all(flying for _, flying, _ in found), "a kill came after the last event"
    repeats_each = [one for one, _, _ in found]
    bounds = [max(2 * flying, rate / 10) for _, flying, rate in found]
    assert statistics.median(repeats_each) <= max(10.0, statistics.median(bounds))
