"""What operators change by hand with Kafka's own tools: offsets that are set, tiers that are deleted."""

from collections.abc import Sequence

import pytest
from aiokafka import TopicPartition

from tests.integration.brokers import needs_kafka
from tests.integration.harness import Dispatcher, Stage, at_first, status, tenants, until
from tests.integration.impatient import impatient
from tests.kafka import topics

pytestmark = [needs_kafka, pytest.mark.timeout(300)]

EVERYBODY = tenants(4)


async def _set_offsets(scene: Stage, offset: int, metadata: Sequence[str]) -> None:
    """Sets the offset of each of the four partitions, each with metadata of its own."""
    for partition, text in enumerate(metadata):
        tp = TopicPartition(scene.topic, partition)
        await topics.commit(scene.bootstrap_servers, scene.group_id, tp, offset, text)


async def _stop(dispatcher: Dispatcher) -> None:
    dispatcher.sigterm()
    assert await dispatcher.wait() == 0


@pytest.mark.parametrize(
    "metadata", [("", "set by hand", "v1;", "v9:AAAA"), ("", "\x00" * 60, "é" * 500, "v1;")], ids=["words", "bytes"]
)
async def test_offsets_that_were_set_back_are_read_again(scene: Stage, metadata: Sequence[str]) -> None:
    """To send events again, say. Metadata that another program wrote counts as none."""
    scene.mount([scene.webhook(tenant) for tenant in EVERYBODY])
    async with scene.dispatcher(kafka={"group_instance_id": None}) as dispatcher:
        dispatcher.start()
        await scene.produce(EVERYBODY, 80)
        await scene.all_accepted(dispatcher)
        await _stop(dispatcher)
        await _set_offsets(scene, 0, metadata)
        dispatcher.start()
        await until(lambda: scene.receiver.repeats() == 80, "all events once more", 60, dispatcher)
        await scene.produce(EVERYBODY, 20, "later")
        await scene.all_accepted(dispatcher)
        await dispatcher.ready()
        assert scene.receiver.repeats() == 80


async def test_an_offset_beyond_the_end_is_refused_as_a_position(scene: Stage) -> None:
    """The log is read from its start, and this is reported."""
    scene.mount([scene.webhook(tenant) for tenant in EVERYBODY])
    async with scene.dispatcher(kafka={"group_instance_id": None}) as dispatcher:
        dispatcher.start()
        await dispatcher.ready()
        await _stop(dispatcher)
        await scene.produce(EVERYBODY, 40, "down")
        await _set_offsets(scene, 1_000_000, [""] * 4)
        dispatcher.start()
        await scene.all_accepted(dispatcher)
        await dispatcher.ready()
        assert "the log of a partition is not the one that was read before" in dispatcher.log


async def test_a_deleted_tier_is_named_and_parks_again_once_it_is_there(scene: Stage) -> None:
    scene.mount([scene.webhook(tenant) for tenant in EVERYBODY])
    async with scene.dispatcher(retry={"soon_attempts": 0}) as dispatcher:
        dispatcher.program = impatient(
            {"dispatcher.kafka.connection:METADATA_S": 5.0}
        )  # by which it finds the new tier
        dispatcher.start()
        await scene.produce(EVERYBODY, 20, "before")
        await scene.all_accepted(dispatcher)
        for topic in scene.tier_topics:
            await topics.delete_topic(scene.bootstrap_servers, topic)
        for tenant in EVERYBODY:
            scene.receiver.behave(f"/{tenant.org}", at_first(status(503)))
        await scene.produce(EVERYBODY, 20, "while")

        async def named() -> bool:
            return scene.tier_topics[0] in (await dispatcher.get("/readyz"))[1]

        await until(named, "the topic to be named", 60, dispatcher)
        assert dispatcher.running
        for topic in scene.tier_topics:
            await topics.create_topic(scene.bootstrap_servers, topic, partitions=4)
        await scene.all_accepted(dispatcher, 90)
        await until(lambda: dispatcher.answers("/readyz"), "to be ready", 60, dispatcher)
        assert await scene.dead() == {}
