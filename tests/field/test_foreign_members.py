"""A program that isn't a dispatcher in one of its consumer groups: it takes events, and the dispatcher says so."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from aiokafka import AIOKafkaConsumer
from aiokafka.coordinator.assignors.roundrobin import RoundRobinPartitionAssignor

from tests.field.readiness import kafka_reasons, reports, reports_nothing
from tests.integration.brokers import needs_kafka
from tests.integration.harness import Stage, tenants, until

pytestmark = [needs_kafka, pytest.mark.timeout(240)]

MOVED_LINE = "a client that isn't a dispatcher has committed a position"


@asynccontextmanager
async def _reader(scene: Stage, topic: str, group_id: str, client_id: str) -> AsyncIterator[AIOKafkaConsumer]:
    """Reads and commits in the group while the context lasts."""
    consumer = AIOKafkaConsumer(
        topic, bootstrap_servers=scene.bootstrap_servers, group_id=group_id, client_id=client_id,
        auto_offset_reset="earliest", auto_commit_interval_ms=500,
        partition_assignment_strategy=(RoundRobinPartitionAssignor,),
    )  # fmt: skip
    await consumer.start()

    async def read() -> None:
        while True:
            await consumer.getmany(timeout_ms=200)

    reading = asyncio.create_task(read())
    try:
        yield consumer
    finally:
        reading.cancel()
        await consumer.stop()


@pytest.mark.parametrize("suffix", ["", pytest.param(".held", marks=pytest.mark.all_faults)])
async def test_a_foreign_member_is_named_and_so_is_what_it_took(scene: Stage, suffix: str) -> None:
    """In the group of events, and in one of the dispatcher's others."""
    (tenant,) = tenants(1)
    scene.mount([scene.webhook(tenant) | {"paused": bool(suffix)}])
    group_id, topic = f"{scene.group_id}{suffix}", f"{scene.group_id}.held" if suffix else scene.topic
    async with scene.dispatcher(kafka={"group_instance_id": None}) as dispatcher:
        dispatcher.start()
        await dispatcher.ready()
        await scene.produce([tenant], 60, "own")
        await asyncio.sleep(5)  # it commits
        async with _reader(scene, topic, group_id, "another-application") as reader:
            await until(lambda: reader.assignment(), "its partitions", 60, dispatcher)
            await reports(dispatcher, "group_shared", "of client another-application", ready=True)
            await scene.produce([tenant], 40, "taken")
            await asyncio.sleep(3)
        await until(lambda: MOVED_LINE in dispatcher.log, "what it took to be named", 60, dispatcher)


@pytest.mark.all_faults
async def test_members_of_other_versions_and_other_pods_are_not_foreign(scene: Stage) -> None:
    """The version before has the same client id, and no mark; a pod of this version may have another client id."""
    (tenant,) = tenants(1)
    scene.mount([scene.webhook(tenant)])
    one = scene.dispatcher("one", kafka={"group_instance_id": None})
    other = scene.dispatcher("other", kafka={"group_instance_id": None, "client_id": "another-pod"})
    async with one, other:
        for dispatcher in (one, other):
            dispatcher.start()
            await dispatcher.ready()
        await asyncio.sleep(25)  # several looks
        await reports_nothing(one, 30)
        await reports_nothing(other, 30)
        other.sigterm()
        await other.wait()
        async with _reader(scene, scene.topic, scene.group_id, "feedback-dispatcher") as reader:
            await until(lambda: reader.assignment(), "its partitions", 60, one)
            await asyncio.sleep(25)
            assert "group_shared" not in await kafka_reasons(one)
    for dispatcher in (one, other):
        assert "group_shared" not in dispatcher.all_logs
