"""Batches that are large when they are decompressed: all are delivered, in a bounded memory."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiokafka import AIOKafkaProducer

from tests.integration.brokers import needs_kafka
from tests.integration.harness import Stage, event, stage, tenants, until, webhook_id_of
from tests.kafka.apache_kafka import ApacheKafka

pytestmark = [needs_kafka, pytest.mark.timeout(300)]

PARTITIONS, EVENTS = 24, 200
PADDING = "x" * 30_000
BATCH_BYTES = EVENTS * len(PADDING)
MIB = 1024 * 1024


@pytest.fixture
async def scene(mortal: ApacheKafka, tmp_path: Path) -> AsyncIterator[Stage]:
    async with stage(mortal.bootstrap_servers, tmp_path, PARTITIONS) as made:
        yield made


async def test_many_partitions_with_large_batches_are_delivered_in_bounded_memory(scene: Stage) -> None:
    """Decompressed, the batches have 144 MB, and as much again if their records are read ahead."""
    (tenant,) = tenants(1)
    scene.mount([scene.webhook(tenant)])
    async with scene.dispatcher(kafka={"max_unfinished_bytes": 8 * MIB}) as dispatcher:
        dispatcher.start()
        await dispatcher.ready()
        await asyncio.sleep(1)
        idle = dispatcher.peak_rss
        dispatcher.sigterm()
        await dispatcher.wait()
        for partition in range(PARTITIONS):
            names = [f"{partition}-{number}" for number in range(EVENTS)]
            await send_batch(
                scene, [json.dumps(json.loads(event(tenant, name)) | {"more": PADDING}).encode() for name in names],
                partition,
            )  # fmt: skip
            scene.expected |= {webhook_id_of(tenant, name): tenant for name in names}
        dispatcher.start()
        await scene.all_accepted(dispatcher, 120)
        grown = dispatcher.peak_rss - idle
    assert await scene.lost() == 0
    assert grown < PARTITIONS * BATCH_BYTES, f"{grown / MIB:.0f} MiB"


async def test_a_batch_that_is_too_large_holds_up_its_own_partition_and_is_named(scene: Stage) -> None:
    (tenant,) = tenants(1)
    scene.mount([scene.webhook(tenant)])
    await send_batch(scene, [b" " * 600 * MIB], 1, "gzip")
    for number in range(PARTITIONS):
        if number != 1:
            scene.expected[webhook_id_of(tenant, f"e-{number}")] = tenant
            await scene.send(event(tenant, f"e-{number}"), partition=number)
    async with scene.dispatcher() as dispatcher:
        dispatcher.start()
        await scene.all_accepted(dispatcher)
        await until(lambda: "records_unreadable" in dispatcher.log, "the problem", 60, dispatcher)
        ready = (await dispatcher.get("/readyz"))[1]
        assert f"{scene.topic}/1: the batch at offset 0 can't be decoded" in ready
        assert "raise kafka.max_unfinished_bytes" in ready
        assert dispatcher.peak_rss < 500 * MIB
    assert await scene.lost() == 0


async def send_batch(scene: Stage, values: list[bytes], partition: int, compression: str = "zstd") -> None:
    """Writes the values as one batch."""
    most = sum(map(len, values)) + 1000 * len(values)
    async with AIOKafkaProducer(
        bootstrap_servers=scene.bootstrap_servers, compression_type=compression, max_request_size=most,
        max_batch_size=most,
    ) as producer:  # fmt: skip
        batch = producer.create_batch()
        for value in values:
            assert batch.append(key=None, value=value, timestamp=None) is not None
        batch.close()
        await (await producer.send_batch(batch, scene.topic, partition=partition))
