"""Topics whose configuration loses events are named, by `topics`, by `run` and in its readiness; timestamps lose none."""

import time

import pytest
from aiokafka import AIOKafkaProducer

from dispatcher.contract.records import Origin, RetryState
from dispatcher.kafka.topics import retry_topics
from tests.commands import running
from tests.integration.brokers import needs_kafka
from tests.integration.harness import TIERS, Stage, at_first, event, status, tenants, until, webhook_id_of
from tests.kafka import topics

pytestmark = [needs_kafka, pytest.mark.timeout(300)]


@pytest.mark.parametrize("until_solved", [False, pytest.param(True, marks=pytest.mark.all_faults)])
async def test_a_tier_that_keeps_records_for_less_than_its_delay_is_named_and_repaired(
    scene: Stage, until_solved: bool
) -> None:
    scene.mount([scene.webhook(tenants(1)[0])])
    tier = retry_topics(scene.prefix, TIERS)[-1]
    await topics.set_config(scene.bootstrap_servers, tier, {"retention.ms": "1000", "max.message.bytes": "2200000"})
    warning = f"topic {tier}: keeps records for 1s"
    async with scene.dispatcher() as dispatcher:
        ran = await running.dispatcher("topics", "-c", dispatcher.path)
        assert f"warning: {warning}" in ran.err
        dispatcher.start()
        await dispatcher.ready()
        await until(lambda: warning in dispatcher.log, "the warning", 60, dispatcher)
        assert warning in (await dispatcher.get("/readyz"))[1]
        metric = 'dispatcher_kafka_problem{reason="topic_configuration"}'
        assert f"{metric} 1.0" in (await dispatcher.get("/metrics"))[1]
        ran = await running.dispatcher("topics", "-c", dispatcher.path, "--create", "--replication", "1")
        assert ran.status == 0, ran
        assert f"{tier}: set retention.ms=" in ran.out
        assert "warning" not in ran.err
        if not until_solved:  # the running process compares the topics about once a minute
            return

        async def solved() -> bool:
            return f"{metric} 0.0" in (await dispatcher.get("/metrics"))[1]

        await until(solved, "the problem to be solved", 90, dispatcher)


async def test_timestamps_in_seconds_and_of_a_replay_get_the_full_schedule(scene: Stage) -> None:
    (tenant,) = tenants(1)
    scene.mount([scene.webhook(tenant)])
    scene.receiver.behave(f"/{tenant.org}", at_first(status(503), 2))
    now = int(time.time())
    stamps = {"seconds": now, "replay": (now - 25 * 3600) * 1000, "ahead": (now + 3000) * 1000}
    producer = AIOKafkaProducer(bootstrap_servers=scene.bootstrap_servers)
    await producer.start()
    async with scene.dispatcher(retry={"soon_attempts": 0}) as dispatcher:
        dispatcher.start()
        for name, stamp in stamps.items():
            await producer.send_and_wait(scene.topic, event(tenant, name), timestamp_ms=stamp)
            scene.expected[webhook_id_of(tenant, name)] = tenant
        await producer.stop()
        await scene.all_accepted(dispatcher)
        assert await scene.dead() == {}
    parked = await topics.read_all(scene.bootstrap_servers, retry_topics(scene.prefix, TIERS)[1])
    assert {RetryState.of(one).origin_timestamp for one in parked} == set(stamps.values())
    assert all(abs(RetryState.of(one).first_seen - now) < 120 for one in parked)


async def test_a_not_before_that_lies_too_far_ahead_holds_nothing_up(scene: Stage) -> None:
    """Written by a replica with a wrong clock, or by a stranger; and `feedback-*` headers of events are not believed."""
    (tenant,) = tenants(1)
    scene.mount([scene.webhook(tenant)])
    tier = retry_topics(scene.prefix, TIERS)[0]
    far = dict(RetryState(_origin(scene), time.time(), parks=1, not_before=time.time() + 86_400).headers())
    near = dict(RetryState(_origin(scene), time.time(), parks=1, not_before=time.time() + 1).headers())
    producer = AIOKafkaProducer(bootstrap_servers=scene.bootstrap_servers)
    await producer.start()
    for name, headers in (("far", far), ("near", near)):
        await producer.send_and_wait(tier, event(tenant, name), partition=0, headers=list(headers.items()))
        scene.expected[webhook_id_of(tenant, name)] = tenant
    await producer.send_and_wait(scene.topic, event(tenant, "forged"), headers=list(far.items()))
    scene.expected[webhook_id_of(tenant, "forged")] = tenant
    await producer.stop()
    async with scene.dispatcher() as dispatcher:
        dispatcher.start()
        await scene.all_accepted(dispatcher)
    attempts = {one.headers["webhook-id"]: one.headers["webhook-attempt"] for one in scene.receiver.requests}
    assert attempts[webhook_id_of(tenant, "forged")] == "1"


def _origin(scene: Stage) -> Origin:
    return Origin(scene.topic, 0, 10**6)
