"""Stopping and losing partitions while endpoints hang, and a broker that hangs itself. Nothing is lost."""

import asyncio

import pytest

from tests.faults.conftest import Tell
from tests.faults.table import Row
from tests.integration.brokers import needs_kafka
from tests.integration.harness import Stage, slowly, status, tenants, until
from tests.kafka.apache_kafka import ApacheKafka

pytestmark = [needs_kafka, pytest.mark.faults, pytest.mark.timeout(300)]

CUT_OFF = 3
"""The exit status after a second signal."""


async def test_a_second_sigterm_stops_at_once_and_loses_nothing(scene: Stage, tell: Tell) -> None:
    """Requests that hang past the second signal are cut off, and the next run sends them again."""
    everybody = tenants(4)
    scene.mount([scene.webhook(tenant, timeout="30s") for tenant in everybody])
    for tenant in everybody:
        scene.receiver.behave(f"/{tenant.org}", slowly(25))
    async with scene.dispatcher() as dispatcher:
        dispatcher.start()
        await scene.produce(everybody, 20)
        await until(lambda: len(scene.receiver.seen) == 20, "every request under way", 60, dispatcher)
        dispatcher.sigterm()
        await until(lambda: "stopping: finishing" in dispatcher.log, "the drain to begin", 60, dispatcher)
        assert dispatcher.running, "it waits for the requests under way"
        dispatcher.sigterm()
        assert await dispatcher.wait(60) == CUT_OFF
        for tenant in everybody:
            scene.receiver.behave(f"/{tenant.org}", None)
        dispatcher.start()
        await scene.all_accepted(dispatcher)
    tell(await Row.of("second SIGTERM while requests hang", scene, dispatcher, most_repeats=20))


async def test_a_second_sigterm_ends_every_consumer_that_drains(scene: Stage, tell: Tell) -> None:
    """Events of the topic and of a retry tier hang: both consumers are cancelled in the middle of their ends."""
    everybody = tenants(6)
    parked, fresh = everybody[:3], everybody[3:]
    scene.mount([scene.webhook(tenant, timeout="30s") for tenant in everybody])
    for tenant in parked:
        scene.receiver.behave(f"/{tenant.org}", status(503))
    for tenant in fresh:
        scene.receiver.behave(f"/{tenant.org}", slowly(25))
    async with scene.dispatcher(retry={"soon_attempts": 0}) as dispatcher:
        dispatcher.start()
        await scene.produce(parked, 3, "parked")
        await until(lambda: dispatcher.log.count("event parked") >= 3, "every event parked", 60, dispatcher)
        for tenant in parked:
            scene.receiver.behave(f"/{tenant.org}", slowly(25))
        refused = scene.receiver.seen.total()
        await scene.produce(fresh, 3, "fresh")
        await until(lambda: scene.receiver.seen.total() >= refused + 6, "requests of both topics", 60, dispatcher)
        dispatcher.sigterm()
        await until(lambda: "stopping: finishing" in dispatcher.log, "the drain to begin", 60, dispatcher)
        dispatcher.sigterm()
        assert await dispatcher.wait(60) == CUT_OFF
        assert "Traceback" not in dispatcher.log
        for tenant in everybody:
            scene.receiver.behave(f"/{tenant.org}", None)
        dispatcher.start()
        await scene.all_accepted(dispatcher)
    tell(await Row.of("second SIGTERM while both topics' requests hang", scene, dispatcher, most_repeats=12))


@pytest.mark.all_faults
async def test_partitions_revoked_while_requests_hang_lose_nothing(scene: Stage, tell: Tell) -> None:
    """The group does not wait for the endpoint: what hangs past the revocation is the new owner's to send."""
    everybody = tenants(4)
    scene.mount([scene.webhook(tenant, timeout="30s") for tenant in everybody])
    for tenant in everybody:
        scene.receiver.behave(f"/{tenant.org}", slowly(12))
    dynamic = {"group_instance_id": None, "session_timeout": "6s"}
    async with scene.dispatcher("a", kafka=dynamic) as a, scene.dispatcher("b", kafka=dynamic) as b:
        a.start()
        await a.ready()
        await scene.produce(everybody, 40)
        await until(lambda: len(scene.receiver.seen) == 40, "every request under way", 60, a)
        b.start()
        await b.ready()
        await scene.all_accepted(b)
        await asyncio.sleep(13)  # what a was cut off from has been answered too by then
    tell(await Row.of("partitions revoked while requests hang", scene, a, b, most_repeats=40))


@pytest.mark.all_faults
async def test_a_broker_that_hangs_for_a_while_loses_nothing(scene: Stage, mortal: ApacheKafka, tell: Tell) -> None:
    """It neither answers nor closes a connection; the process stays alive, and goes on afterwards."""
    everybody = tenants(10)
    scene.mount([scene.webhook(tenant) for tenant in everybody])
    async with scene.dispatcher() as dispatcher:
        dispatcher.start()
        await dispatcher.ready()
        await scene.produce(everybody, 2_000, "before")
        await scene.accepted(200, dispatcher)
        mortal.pause()
        try:
            await asyncio.sleep(15)
            assert await dispatcher.answers("/livez")
        finally:
            mortal.resume()
        await scene.produce(everybody, 2_000, "after")
        await scene.all_accepted(dispatcher, 90)
    tell(await Row.of("broker hangs for 15 s", scene, dispatcher, most_repeats=2_500))
