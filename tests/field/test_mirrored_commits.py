"""A standby cluster behind MirrorMaker 2: its records have other offsets, its commits the metadata of the source."""

import asyncio

import pytest
from aiokafka import AIOKafkaProducer, TopicPartition

from tests.field.lost_logs import create_anew
from tests.integration.brokers import needs_kafka
from tests.integration.harness import Stage, event, tenants, until, webhook_id_of
from tests.kafka import topics
from tests.kafka.apache_kafka import ApacheKafka

pytestmark = [needs_kafka, pytest.mark.timeout(300)]

(TENANT,) = tenants(1)
REMOVED = 30
"""Records that retention had removed before mirroring began: the offsets in the mirror are lower by their number."""


@pytest.mark.parametrize("behind", [5, pytest.param(0, marks=pytest.mark.all_faults)])
async def test_a_translated_commit_with_the_metadata_of_the_source_is_believed(
    scene: Stage, mortal: ApacheKafka, behind: int
) -> None:
    """What `sync.group.offsets.enabled` commits lies a little behind: only these records are sent again."""
    scene.mount([scene.webhook(TENANT)])
    async with scene.dispatcher(kafka={"group_instance_id": None}) as dispatcher:
        dispatcher.start()
        for number in range(100):
            await scene.send(event(TENANT, f"e{number}"), partition=0)
            scene.expected[webhook_id_of(TENANT, f"e{number}")] = TENANT
        await scene.all_accepted(dispatcher)

        async def is_committed() -> bool:
            return (await scene.committed()).get(0) == 100

        await until(is_committed, "all to be committed", 60, dispatcher)
        dispatcher.sigterm()
        assert await dispatcher.wait() == 0
        tp = TopicPartition(scene.topic, 0)
        state = (await topics.committed(scene.bootstrap_servers, scene.group_id))[tp]
        records = await topics.read_all(scene.bootstrap_servers, scene.topic)
        await create_anew(mortal, scene.topic)
        async with AIOKafkaProducer(bootstrap_servers=scene.bootstrap_servers) as mirror:
            for one in records[REMOVED:]:
                await mirror.send_and_wait(scene.topic, one.value, one.key, 0, one.timestamp, list(one.headers))
        translated = state.offset - REMOVED - behind
        await topics.commit(scene.bootstrap_servers, scene.group_id, tp, translated, state.metadata)

        dispatcher.start()
        await dispatcher.ready()
        await scene.send(event(TENANT, "after"), partition=0)
        scene.expected[webhook_id_of(TENANT, "after")] = TENANT
        await scene.all_accepted(dispatcher)
        await until(lambda: scene.receiver.repeats() >= behind, "the repeats", 60, dispatcher)
        await asyncio.sleep(1)
        assert scene.receiver.repeats() == behind
        assert "is not the one that was read before" not in dispatcher.log
