"""Records that a Kafka client can't decode: an odd header name is delivered; a corrupt batch holds up one partition."""

from pathlib import Path

import pytest
from aiokafka import AIOKafkaProducer, TopicPartition

from tests.integration.brokers import needs_kafka
from tests.integration.harness import Stage, event, tenants, until, webhook_id_of
from tests.kafka import raw_batches
from tests.kafka.apache_kafka import ApacheKafka

pytestmark = [needs_kafka, pytest.mark.timeout(300)]

MARK = b"corrupt-this"


async def test_a_header_name_that_is_not_utf8_is_delivered(scene: Stage) -> None:
    (tenant,) = tenants(1)
    scene.mount([scene.webhook(tenant)])
    async with (
        AIOKafkaProducer(bootstrap_servers=scene.bootstrap_servers) as producer,
        scene.dispatcher() as dispatcher,
    ):
        for number in range(3):
            await raw_batches.send(producer, TopicPartition(scene.topic, 0), event(tenant, f"odd-{number}"))
            scene.expected[webhook_id_of(tenant, f"odd-{number}")] = tenant
        dispatcher.start()
        await scene.produce([tenant], 4)
        await scene.all_accepted(dispatcher)
        await dispatcher.ready()


@pytest.mark.all_faults
async def test_a_corrupt_batch_holds_up_its_own_partition_and_is_named(scene: Stage, mortal: ApacheKafka) -> None:
    (tenant,) = tenants(1)
    scene.mount([scene.webhook(tenant)])
    marked = event(tenant, MARK.decode())
    async with AIOKafkaProducer(bootstrap_servers=scene.bootstrap_servers) as producer:
        for number in range(40):
            scene.expected[webhook_id_of(tenant, f"e-{number}")] = tenant
            await producer.send_and_wait(scene.topic, event(tenant, f"e-{number}"), partition=number % 4)
        await producer.send_and_wait(scene.topic, marked, partition=1)
        await producer.send_and_wait(scene.topic, event(tenant, "after"), partition=1)
    (log,) = mortal.directory.rglob(f"{scene.topic}-1/00000000000000000000.log")
    place = log.read_bytes().index(MARK)
    _overwrite(log, place, b"Corrupt")
    async with scene.dispatcher() as dispatcher:
        dispatcher.start()
        await scene.all_accepted(dispatcher)
        await until(lambda: "records_unreadable" in dispatcher.log, "the problem", 60, dispatcher)
        named = f"{scene.topic}/1: the batch at offset 10 can't be decoded"
        assert named in (await dispatcher.get("/readyz"))[1]
        async with AIOKafkaProducer(bootstrap_servers=scene.bootstrap_servers) as producer:
            for partition in (0, 2, 3):
                scene.expected[webhook_id_of(tenant, f"later-{partition}")] = tenant
                await producer.send_and_wait(scene.topic, event(tenant, f"later-{partition}"), partition=partition)
        await scene.all_accepted(dispatcher)
        _overwrite(log, place, MARK)
        for name in (MARK.decode(), "after"):
            scene.expected[webhook_id_of(tenant, name)] = tenant
        await scene.all_accepted(dispatcher)

        async def solved() -> bool:
            return 'reason="records_unreadable"} 0.0' in (await dispatcher.get("/metrics"))[1]

        await until(solved, "the problem to be solved", 60, dispatcher)


def _overwrite(log: Path, place: int, content: bytes) -> None:
    """Changes the broker's log as a bad disk does: it sends its log's bytes without looking at them."""
    with log.open("r+b") as file:
        file.seek(place)
        file.write(content)
