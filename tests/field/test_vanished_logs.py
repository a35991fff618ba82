"""Logs and topics that vanish or shrink under a running process: it goes on, says so, and loses nothing that was there."""

import re

import pytest
from aiokafka import AIOKafkaProducer, TopicPartition

from tests.field.lost_logs import create_anew, remove_before
from tests.field.readiness import holds, reports, reports_nothing
from tests.integration.brokers import needs_kafka
from tests.integration.harness import Stage, at_first, event, status, tenants, until, webhook_id_of
from tests.kafka import topics
from tests.kafka.apache_kafka import ApacheKafka

pytestmark = [needs_kafka, pytest.mark.timeout(300)]


@pytest.mark.all_faults
async def test_a_former_topic_may_be_deleted_while_it_is_read(scene: Stage, mortal: ApacheKafka) -> None:
    """As the notice advises. The retry consumer reads the other topics on."""
    (tenant,) = tenants(1)
    scene.mount([scene.webhook(tenant)])
    former = f"{scene.topic}.retry.1s"
    await topics.create_topic(scene.bootstrap_servers, former, partitions=2)
    async with AIOKafkaProducer(bootstrap_servers=scene.bootstrap_servers) as producer:
        await producer.send_and_wait(former, event(tenant, "parked"), partition=1)
    scene.expected[webhook_id_of(tenant, "parked")] = tenant
    await topics.commit(scene.bootstrap_servers, f"{scene.group_id}.retry", TopicPartition(former, 0), 0)
    async with scene.dispatcher(retry={"soon_attempts": 0}) as dispatcher:
        dispatcher.start()
        await scene.all_accepted(dispatcher)
        await topics.delete_topic(scene.bootstrap_servers, former)
        scene.receiver.behave(f"/{tenant.org}", at_first(status(503)))
        await scene.produce([tenant], 4, "after")
        await scene.all_accepted(dispatcher)
        await reports_nothing(dispatcher, 90)
    assert await scene.lost() == 0


@pytest.mark.all_faults
async def test_a_topic_recreated_with_fewer_partitions_is_read_on(scene: Stage, mortal: ApacheKafka) -> None:
    """The topic of events, then the tier that parked events wait in."""
    everybody = tenants(20)
    scene.mount([scene.webhook(tenant) for tenant in everybody])
    for tenant in everybody:
        scene.receiver.behave(f"/{tenant.org}", at_first(status(503)))
    async with scene.dispatcher(retry={"soon_attempts": 0}) as dispatcher:
        dispatcher.start()
        await scene.produce(everybody, 40, "before")
        await scene.all_accepted(dispatcher)
        for number, topic in enumerate((scene.topic, scene.tier_topics[0])):
            await scene.close()
            await create_anew(mortal, topic, partitions=2)
            await scene.produce(everybody, 40, f"after{number}")
            await scene.all_accepted(dispatcher, 90)

        async def everything_committed() -> bool:
            return await scene.committed() == await topics.end_offsets(scene.bootstrap_servers, scene.topic)

        await until(everything_committed, "everything to be committed", 60, dispatcher)
        assert dispatcher.running
    assert await scene.lost() == 0


@pytest.mark.all_faults
async def test_held_events_that_retention_removed_are_counted_and_the_tenant_goes_on(
    scene: Stage, mortal: ApacheKafka
) -> None:
    """Some are gone and some are still there; they are found again by this process and by the next one."""
    paused, other = tenants(2)
    webhooks = [scene.webhook(paused), scene.webhook(other)]
    scene.mount([webhooks[0] | {"paused": True}, webhooks[1]])
    held = f"{scene.prefix}.held"
    async with scene.dispatcher() as dispatcher:
        dispatcher.start()
        await dispatcher.ready()
        await scene.produce([paused, other], 80)
        await holds(dispatcher, 40)
        ends = await topics.end_offsets(scene.bootstrap_servers, held)
        removed = 0
        for partition, end in ends.items():
            await remove_before(mortal, held, end // 2, partition)
            removed += end // 2
        scene.mount(webhooks)
        await until(lambda: len(scene.missing()) <= removed, "those that are left", 60, dispatcher)
        assert 0 < len(scene.missing()) <= removed
        await reports(dispatcher, "records_expired", "retention removed", ready=True)
        _, text = await dispatcher.get("/metrics")
        counted = re.findall(r"^dispatcher_kafka_records_removed_unread_total\{.*held.*\} (\S+)$", text, re.M)
        assert sum(map(float, counted)) >= len(scene.missing())
        for name in scene.missing():
            del scene.expected[name]
        await scene.produce([paused, other], 20, "after")
        await scene.all_accepted(dispatcher)
        assert scene.receiver.repeats() == 0
