"""A broker that slows its readers down by a quota answers late, for up to ten seconds, which is not an outage."""

import asyncio

import pytest

from tests.field.readiness import kafka_reasons, log_lines, readiness
from tests.integration.brokers import needs_kafka
from tests.integration.harness import Stage, tenants
from tests.kafka import quotas
from tests.kafka.apache_kafka import ApacheKafka

pytestmark = [needs_kafka, pytest.mark.timeout(300)]

WATCHED_S = 20


async def test_a_reader_that_a_quota_slows_down_stays_ready(scene: Stage, mortal: ApacheKafka) -> None:
    everybody = tenants(4)
    scene.mount([scene.webhook(tenant) for tenant in everybody])
    await scene.produce(everybody, 1_000)
    await quotas.set_consumer_byte_rate(mortal.bootstrap_servers, 10_000)
    async with scene.dispatcher(kafka={"fetch_max_bytes": 65_536}) as dispatcher:
        dispatcher.start()
        await dispatcher.ready()
        found: set[tuple[int, tuple[str, ...]]] = set()
        for _ in range(WATCHED_S * 2):
            await asyncio.sleep(0.5)
            status, _ = await readiness(dispatcher)
            found.add((status, tuple(await kafka_reasons(dispatcher))))
        assert found == {(200, ())}, dispatcher.log[-4000:]
        assert len(scene.receiver.accepted) < 1_000, "it is slowed down"
        await quotas.set_consumer_byte_rate(mortal.bootstrap_servers, None)
        await scene.all_accepted(dispatcher, 60)
        late = [
            line for line in log_lines(dispatcher) if "looked up" in line["event"] or "can't be read" in line["event"]
        ]
        assert late == []
