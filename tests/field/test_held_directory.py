"""What is committed of held events: a restart reads no waiting one again, and repeats only what it has to."""

import time

import pytest
from aiokafka import TopicPartition

from dispatcher.contract.records import Origin, RetryState
from dispatcher.contract.tenant import TenantKey
from dispatcher.kafka.held_commits import DIRECTORY_EVERY
from dispatcher.kafka.held_topic import SnapshotOffsets, tenant_headers
from dispatcher.kafka.topics import held_topic
from tests.integration.brokers import PASSWORD, USER, needs_kafka
from tests.integration.harness import Stage, event, tenants, until, webhook_id_of
from tests.kafka import topics
from tests.kafka.acls import Operation
from tests.kafka.apache_kafka import ApacheKafka
from tests.kafka.server_properties import Listener

pytestmark = [needs_kafka, pytest.mark.all_faults, pytest.mark.timeout(300)]

WAITING, RELEASED = tenants(2)


async def _hold(scene: Stage, tenant: TenantKey, count: int, partition: int = 0) -> None:
    producer = await scene.producer()
    for number in range(count):
        state = RetryState(Origin(scene.topic, 0, number), time.time(), parks=1, reason="paused")
        headers = [*state.headers(), *tenant_headers(tenant)]
        name = f"held-{partition}-{number}"
        await producer.send(held_topic(scene.prefix), event(tenant, name), headers=headers, partition=partition)
        scene.expected[webhook_id_of(tenant, name)] = tenant
    await producer.flush()


async def test_a_restart_sends_what_was_released_meanwhile_and_reads_no_waiting_event_again(scene: Stage) -> None:
    paused = [scene.webhook(tenant) | {"paused": True} for tenant in (WAITING, RELEASED)]
    usable = [scene.webhook(tenant) for tenant in (WAITING, RELEASED)]
    scene.mount(paused)
    await _hold(scene, WAITING, DIRECTORY_EVERY + 500)
    await _hold(scene, RELEASED, 1)
    directory_at = DIRECTORY_EVERY + 501

    async def has_directory() -> bool:
        found = await topics.committed(scene.bootstrap_servers, f"{scene.group_id}.held")
        state = found.get(TopicPartition(held_topic(scene.prefix), 0))
        return state is not None and SnapshotOffsets.of(state.metadata).directory is not None

    async with scene.dispatcher() as dispatcher:
        dispatcher.start()
        await dispatcher.ready()
        await until(has_directory, "the commit that names a directory", 60, dispatcher)
        dispatcher.sigterm()
        await dispatcher.wait()
        assert not scene.receiver.accepted
        scene.mount([paused[0], usable[1]])
        dispatcher.start()
        await scene.accepted(1, dispatcher, 60)
        assert await has_directory()
        dispatcher.kill9()
        scene.mount(usable)
        dispatcher.start()
        await scene.all_accepted(dispatcher, 60)
        end = (await topics.end_offsets(scene.bootstrap_servers, held_topic(scene.prefix)))[0]
        assert end > directory_at
        assert scene.receiver.repeats() <= 1, "the released one, if the kill came before its commit"
    assert await scene.dead() == {}


async def test_a_topic_of_held_events_that_may_not_be_written_holds_up_no_commit(
    scene: Stage, mortal: ApacheKafka
) -> None:
    """Partition 0 needs a snapshot, since one of its events waits. Partition 1 needs none."""
    topic = held_topic(scene.prefix)
    scene.mount([scene.webhook(tenant) | {"paused": True} for tenant in (WAITING, RELEASED)])
    await _hold(scene, WAITING, 1)
    await _hold(scene, RELEASED, 20)
    await _hold(scene, RELEASED, 20, partition=1)
    (scene.directory / "password").write_text(PASSWORD)
    security = {
        "protocol": "SASL_PLAINTEXT", "mechanism": "SCRAM-SHA-512", "username": USER,
        "password": {"file": str(scene.directory / "password")},
    }  # fmt: skip
    address = mortal.address(Listener.SASL_PLAINTEXT)

    async def is_committed() -> bool:
        found = await topics.committed(scene.bootstrap_servers, f"{scene.group_id}.held")
        state = found.get(TopicPartition(topic, 1))
        return state is not None and state.offset == 20

    async with scene.dispatcher(kafka={"bootstrap_servers": address, "security": security}) as dispatcher:
        dispatcher.start()
        await dispatcher.ready()
        await mortal.deny(USER, Operation.WRITE, topic)
        try:
            scene.mount([scene.webhook(WAITING) | {"paused": True}, scene.webhook(RELEASED)])
            await scene.accepted(40, dispatcher, 60)
            await until(is_committed, "the commit of partition 1", 60, dispatcher)
            dispatcher.sigterm()
            await dispatcher.wait()
        finally:
            await mortal.permit(USER, Operation.WRITE, topic)
        scene.mount([scene.webhook(WAITING), scene.webhook(RELEASED)])
        dispatcher.start()
        await scene.all_accepted(dispatcher, 60)
    assert scene.receiver.repeats() <= 20, "partition 0 had no snapshot"
