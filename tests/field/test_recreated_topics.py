"""A topic that is deleted and created again: what was read of the old one is delivered, and the new one from its start."""

import asyncio
import os
import signal

import pytest

from tests.field.lost_logs import create_anew
from tests.field.readiness import holds, log_lines
from tests.integration.brokers import PASSWORD, USER, needs_kafka
from tests.integration.harness import Stage, at_first, event, status, tenants, until, webhook_id_of
from tests.integration.impatient import impatient
from tests.kafka import topics
from tests.kafka.acls import Operation
from tests.kafka.apache_kafka import ApacheKafka
from tests.kafka.server_properties import Listener

pytestmark = [needs_kafka, pytest.mark.timeout(300)]

ALL_FAULTS = pytest.mark.all_faults
(TENANT,) = tenants(1)
GONE_LINE = "the log of a partition is gone: what was read of it is still delivered"
LOST_LINE = "the log of a partition is not the one that was read before"


async def _produce(scene: Stage, count: int, prefix: str) -> None:
    """Produces to partition 0, without waiting for one event before the next."""
    producer = await scene.producer()
    sent = []
    for number in range(count):
        sent.append(await producer.send(scene.topic, event(TENANT, f"{prefix}{number}"), partition=0))
        scene.expected[webhook_id_of(TENANT, f"{prefix}{number}")] = TENANT
    await asyncio.gather(*sent)


@pytest.mark.parametrize("partitions", [4, *(pytest.param(count, marks=ALL_FAULTS) for count in (2, 6))])
async def test_what_was_read_of_a_topic_is_delivered_after_its_recreation(
    scene: Stage, mortal: ApacheKafka, partitions: int
) -> None:
    """Its only copy is in memory. As many partitions as before, fewer, and more."""
    scene.mount([scene.webhook(TENANT, rate_limit="5/s")])
    async with scene.dispatcher(delivery={"lane_max_wait": "60s"}) as dispatcher:
        dispatcher.program = impatient({"dispatcher.kafka.connection:METADATA_S": 5.0})  # by which it finds the new one
        dispatcher.start()
        await dispatcher.ready()
        await _produce(scene, 80, "old")
        await scene.accepted(5, dispatcher)
        await scene.close()
        await create_anew(mortal, scene.topic, partitions=partitions)
        scene.mount([scene.webhook(TENANT, rate_limit="20/s")])
        await _produce(scene, 10, "new")
        await scene.all_accepted(dispatcher, 120)
        assert GONE_LINE in dispatcher.log


@ALL_FAULTS
async def test_parked_events_that_wait_in_memory_outlive_their_tier(scene: Stage, mortal: ApacheKafka) -> None:
    scene.mount([scene.webhook(TENANT)])
    scene.receiver.behave(f"/{TENANT.org}", at_first(status(503)))
    tier = "15s"
    await topics.create_topic(scene.bootstrap_servers, f"{scene.prefix}.retry.{tier}", partitions=4)
    async with scene.dispatcher(retry={"soon_attempts": 0, "tiers": [tier]}) as dispatcher:
        dispatcher.start()
        await dispatcher.ready()
        await _produce(scene, 5, "parked")
        await until(lambda: len(scene.receiver.seen) == 5, "every event to be tried once", 60, dispatcher)
        await asyncio.sleep(2)  # the retry consumer reads them
        await create_anew(mortal, f"{scene.prefix}.retry.{tier}")
        await scene.all_accepted(dispatcher, 90)
        assert GONE_LINE in dispatcher.log


@ALL_FAULTS
async def test_held_events_in_flight_outlive_their_topic(scene: Stage, mortal: ApacheKafka) -> None:
    scene.mount([scene.webhook(TENANT) | {"paused": True}])
    async with scene.dispatcher(delivery={"lane_max_wait": "60s"}) as dispatcher:
        dispatcher.start()
        await dispatcher.ready()
        await _produce(scene, 60, "held")
        await holds(dispatcher, 60)
        scene.mount([scene.webhook(TENANT, rate_limit="4/s")])
        await scene.accepted(3, dispatcher)
        await create_anew(mortal, f"{scene.prefix}.held")
        scene.mount([scene.webhook(TENANT, rate_limit="20/s")])
        await scene.all_accepted(dispatcher, 90)


@ALL_FAULTS
async def test_records_of_a_deleted_topic_that_a_drain_cuts_off_are_counted_under_it(
    scene: Stage, mortal: ApacheKafka
) -> None:
    scene.mount([scene.webhook(TENANT, rate_limit="2/s")])
    async with scene.dispatcher(delivery={"lane_max_wait": "60s", "drain_timeout": "2s"}) as dispatcher:
        dispatcher.start()
        await dispatcher.ready()
        await _produce(scene, 60, "old")
        await scene.accepted(3, dispatcher)
        await scene.close()
        await topics.delete_topic(scene.bootstrap_servers, scene.topic)
        await until(lambda: GONE_LINE in dispatcher.log, "the deletion to be noticed", 60, dispatcher)
        dispatcher.sigterm()
        await dispatcher.wait()
        lost = [one for one in log_lines(dispatcher) if "of a log that is gone were delivered: lost" in one["event"]]
        assert [one["partition"] for one in lost] == [f"{scene.topic}/0"]
        assert lost[0]["records"] == len(scene.missing()) > 0


async def test_a_topic_recreated_while_the_process_is_stopped_is_read_from_its_start(
    scene: Stage, mortal: ApacheKafka
) -> None:
    """The new log has grown past the old position, and leader and connection are the same as before."""
    scene.mount([scene.webhook(TENANT)])
    async with scene.dispatcher() as dispatcher:
        dispatcher.start()
        await dispatcher.ready()
        await _produce(scene, 5, "old")
        await scene.all_accepted(dispatcher)
        await until(lambda: _committed(scene, 5), "the position", 60, dispatcher)
        assert dispatcher._process is not None
        os.kill(dispatcher._process.pid, signal.SIGSTOP)
        try:
            await scene.close()
            await create_anew(mortal, scene.topic)
            await _produce(scene, 60, "new")
            await asyncio.sleep(3)
        finally:
            os.kill(dispatcher._process.pid, signal.SIGCONT)
        await scene.all_accepted(dispatcher)
        assert LOST_LINE in dispatcher.log


@ALL_FAULTS
@pytest.mark.parametrize("topic", ["events", "held"])
async def test_a_topic_recreated_while_reading_it_is_denied_is_read_from_its_start(
    scene: Stage, mortal: ApacheKafka, topic: str
) -> None:
    """The topic of events, and that of held events, whose reader is another one."""
    scene.mount([scene.webhook(TENANT) | {"paused": topic == "held"}])
    name = scene.topic if topic == "events" else f"{scene.prefix}.held"
    (scene.directory / "password").write_text(PASSWORD)
    security = {
        "protocol": "SASL_PLAINTEXT", "mechanism": "SCRAM-SHA-512", "username": USER, "password": {"file": "password"},
    }  # fmt: skip
    kafka = {"bootstrap_servers": mortal.address(Listener.SASL_PLAINTEXT), "security": security}
    async with scene.dispatcher(kafka=kafka) as dispatcher:
        dispatcher.start()
        await dispatcher.ready()
        await _produce(scene, 5, "old")
        if topic == "events":
            await scene.all_accepted(dispatcher)
        else:
            await holds(dispatcher, 5)
            scene.expected.clear()  # they are lost with their topic
        await asyncio.sleep(3)
        await mortal.deny(USER, Operation.READ, name)
        await asyncio.sleep(5)
        await scene.close()
        await create_anew(mortal, name)
        await _produce(scene, 60, "new")
        if topic == "held":
            await _until_written(scene, name, 60)
        await mortal.permit(USER, Operation.READ, name)
        scene.mount([scene.webhook(TENANT)])
        await scene.all_accepted(dispatcher, 120)


async def _committed(scene: Stage, position: int) -> bool:
    return (await scene.committed()).get(0) == position


async def _until_written(scene: Stage, topic: str, count: int) -> None:
    async def are_written() -> bool:
        return sum((await topics.end_offsets(scene.bootstrap_servers, topic)).values()) >= count

    await until(are_written, f"{count} records in {topic}", 60)
