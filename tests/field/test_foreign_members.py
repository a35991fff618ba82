"""A program that isn't a dispatcher in one of its consumer groups: it takes events, and the dispatcher says so."""

import asyncio
import subprocess
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest
from aiokafka import AIOKafkaConsumer
from aiokafka.coordinator.assignors.roundrobin import RoundRobinPartitionAssignor

from tests.commands import running
from tests.field.readiness import kafka_reasons, reports, reports_nothing
from tests.integration.brokers import needs_kafka
from tests.integration.harness import Dispatcher, Stage, tenants, until
from tests.integration.impatient import impatient
from tests.kafka import maven, topics

pytestmark = [needs_kafka, pytest.mark.timeout(480)]

JAVA_S = 180
"""Deadline for a Java client on a busy machine."""
PROBING_OFTEN = impatient({"dispatcher.kafka.probe:EVERY_S": 2.0})
MOVED_LINE = "a client that isn't a dispatcher has committed a position"


@asynccontextmanager
async def _reader(
    scene: Stage, topic: str, group_id: str, client_id: str, taken: list[object] | None = None
) -> AsyncIterator[AIOKafkaConsumer]:
    """Reads and commits in the group while the context lasts. What it reads is added to `taken`."""
    consumer = AIOKafkaConsumer(
        topic, bootstrap_servers=scene.bootstrap_servers, group_id=group_id, client_id=client_id,
        auto_offset_reset="earliest", auto_commit_interval_ms=500,
        partition_assignment_strategy=(RoundRobinPartitionAssignor,),
    )  # fmt: skip
    await consumer.start()

    async def read() -> None:
        while True:
            for records in (await consumer.getmany(timeout_ms=200)).values():
                (taken if taken is not None else []).extend(records)

    reading = asyncio.create_task(read())
    try:
        yield consumer
    finally:
        reading.cancel()
        await consumer.stop()


@asynccontextmanager
async def _java_member(scene: Stage, protocol: str, topic: str, group_id: str) -> AsyncIterator[None]:
    """Runs a member of Kafka's own client while the context lasts; `protocol`: consumer (KIP-848) or share."""
    source = str(Path(maven.__file__).with_name("Member.java"))
    command = ["java", "-Xmx128m", "-cp", maven.class_path(), source]
    process = await asyncio.create_subprocess_exec(
        *command, protocol, scene.bootstrap_servers, group_id, topic,
        stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        yield
    finally:
        await process.communicate(b"end")


async def _checked(dispatcher: Dispatcher) -> str:
    """Returns what `check --kafka` prints."""
    ran = await running.called("check", "--kafka", "-c", dispatcher.path)
    return " ".join((ran.out + ran.err).split())


@pytest.mark.parametrize("suffix", ["", pytest.param(".held", marks=pytest.mark.all_faults)])
@pytest.mark.parametrize("is_first", [False, pytest.param(True, marks=pytest.mark.all_faults)])
async def test_a_member_of_the_new_consumer_protocol_is_named(scene: Stage, suffix: str, *, is_first: bool) -> None:
    """It converts the group (KIP-848) and takes partitions, whatever assignors the dispatchers have."""
    (tenant,) = tenants(1)
    scene.mount([scene.webhook(tenant)])
    group_id, topic = f"{scene.group_id}{suffix}", f"{scene.group_id}.held" if suffix else scene.topic
    async with AsyncExitStack() as parts:
        dispatcher = await parts.enter_async_context(scene.dispatcher(kafka={"group_instance_id": None}))
        dispatcher.program = PROBING_OFTEN
        if not is_first:
            dispatcher.start()
            await dispatcher.ready()
        async with _java_member(scene, "consumer", topic, group_id):
            if is_first:
                await asyncio.sleep(8)
                dispatcher.start()
            await reports(dispatcher, "group_shared", "of client java-consumer", ready=True, timeout_s=JAVA_S)
            assert f"of client java-consumer at 127.0.0.1 also reads in group {group_id}" in await _checked(dispatcher)
        await until(lambda: _is_alone(dispatcher), "the member to be gone", JAVA_S, dispatcher)


async def _is_alone(dispatcher: Dispatcher) -> bool:
    return "java-consumer" not in (await kafka_reasons(dispatcher)).get("group_shared", "")


async def test_a_share_group_of_the_same_name_is_named_with_the_cure_even_without_members(scene: Stage) -> None:
    (tenant,) = tenants(1)
    scene.mount([scene.webhook(tenant)])
    async with scene.dispatcher(kafka={"group_instance_id": None}) as dispatcher:
        sentence = f"group {scene.group_id}: is a share group"
        async with _java_member(scene, "share", scene.topic, scene.group_id):
            async with asyncio.timeout(JAVA_S):
                while sentence not in (printed := await _checked(dispatcher)):
                    await asyncio.sleep(1)
            assert "kafka-share-groups.sh --delete" in printed
            assert f"group {scene.group_id}: can be joined" not in printed
        assert sentence in await _checked(dispatcher), "the broker keeps the group"
        dispatcher.start()
        await reports(dispatcher, "group_protocol", sentence)


@pytest.mark.parametrize("suffix", ["", pytest.param(".held", marks=pytest.mark.all_faults)])
async def test_a_foreign_member_is_named_and_so_is_what_it_took(scene: Stage, suffix: str) -> None:
    """In the group of events, and in one of the dispatcher's others."""
    (tenant,) = tenants(1)
    scene.mount([scene.webhook(tenant) | {"paused": bool(suffix)}])
    group_id, topic = f"{scene.group_id}{suffix}", f"{scene.group_id}.held" if suffix else scene.topic
    async with scene.dispatcher(kafka={"group_instance_id": None}) as dispatcher:
        dispatcher.program = PROBING_OFTEN
        dispatcher.start()
        await dispatcher.ready()
        await scene.produce([tenant], 60, "own")
        # Held events stay unread: of those, only the start is committed.
        await until(lambda: _is_committed(scene, topic, group_id, 0 if suffix else 60), "its positions", 60, dispatcher)
        taken: list[object] = []
        async with _reader(scene, topic, group_id, "another-application", taken) as reader:
            await until(lambda: reader.assignment(), "its partitions", 60, dispatcher)
            await reports(dispatcher, "group_shared", "of client another-application", ready=True)
            await scene.produce([tenant], 40, "taken")
            await until(lambda: taken, "the reader to take some", 60, dispatcher)  # it commits these in the end
        await until(lambda: MOVED_LINE in dispatcher.log, "what it took to be named", 60, dispatcher)


async def _is_committed(scene: Stage, topic: str, group_id: str, records: int) -> bool:
    """Returns True if the group has committed positions that are beyond this many records."""
    found = await topics.committed(scene.bootstrap_servers, group_id)
    positions = [state.offset for tp, state in found.items() if tp.topic == topic]
    return bool(positions) and sum(positions) >= records


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
        await reports_nothing(one, 60)
        await reports_nothing(other, 60)
        other.sigterm()
        await other.wait()
        async with _reader(scene, scene.topic, scene.group_id, "feedback-dispatcher") as reader:
            await until(lambda: reader.assignment(), "its partitions", 60, one)
            await asyncio.sleep(25)
            assert "group_shared" not in await kafka_reasons(one)
    for dispatcher in (one, other):
        assert "group_shared" not in dispatcher.all_logs
