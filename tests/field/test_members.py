"""Members that are none any more: two processes of one name, and a process that stood still past its session."""

import asyncio
import os
import signal
from contextlib import AsyncExitStack

import pytest

from dispatcher.service import FENCED
from tests.field.members import SESSION_S, member
from tests.integration.brokers import needs_kafka
from tests.integration.harness import Dispatcher, Stage, slowly, tenants, until
from tests.kafka import topics

pytestmark = [needs_kafka, pytest.mark.timeout(300)]

IN_FLIGHT = 40
"""POSTs at once: `max_in_flight` of these tests."""


def _stop(dispatcher: Dispatcher, number: signal.Signals) -> None:
    assert dispatcher._process is not None
    os.kill(dispatcher._process.pid, number)


async def test_the_first_of_two_processes_with_one_name_reports_it_and_ends(scene: Stage) -> None:
    everybody = tenants(4)
    scene.mount([scene.webhook(tenant) for tenant in everybody])
    delivery = {"max_in_flight": IN_FLIGHT}
    async with scene.dispatcher("a", delivery=delivery) as a, scene.dispatcher("b", delivery=delivery) as b:
        a.start()
        await a.ready()
        await scene.produce(everybody, 100, "before")
        await scene.all_accepted(a)
        b.start()
        assert await a.wait(60) == FENCED
        await b.ready()
        await scene.produce(everybody, 200, "after")
        await scene.all_accepted(b)

        assert "another process has joined group" in a.log
        assert "group_instance_id" in a.log
        assert b.running
        assert scene.receiver.repeats() <= 2 * IN_FLIGHT
        # Alone again it may come back under the same name: it is the second who is shut out now.
        a.start()
        assert await b.wait(60) == FENCED
        await a.ready()


async def test_a_member_that_had_nothing_to_fetch_for_a_month_takes_over(scene: Stage) -> None:
    """More processes than partitions: the spare one never fetches, and aiokafka would count it as stuck."""
    topic = f"{scene.topic}-one"
    await topics.create_topic(scene.bootstrap_servers, topic, partitions=1)
    async with AsyncExitStack() as first, AsyncExitStack() as second:
        members = [(await stack.enter_async_context(member(scene, topic)), stack) for stack in (first, second)]
        await until(lambda: sum(len(one.owned) for one, _ in members) == 1, "an owner", 60)
        (_, leaving), (spare, _) = sorted(members, key=lambda one: not one[0].owned)
        assert spare.client is not None
        spare.client._consumer._subscription._last_fetch_ended -= 31 * 24 * 3600
        await asyncio.sleep(SESSION_S)  # some heartbeats
        await leaving.aclose()
        await until(lambda: bool(spare.owned), "the other one to take over", 60)


@pytest.mark.all_faults
async def test_a_restart_under_the_same_name_joins_the_group(scene: Stage) -> None:
    everybody = tenants(4)
    scene.mount([scene.webhook(tenant) for tenant in everybody])
    async with scene.dispatcher() as dispatcher:
        for wave in range(3):
            dispatcher.start()
            await dispatcher.ready()
            await scene.produce(everybody, 20, f"w{wave}")
            await scene.all_accepted(dispatcher)
            dispatcher.kill9()
    assert "another process" not in dispatcher.all_logs


@pytest.mark.parametrize("instance", ["one", pytest.param(None, marks=pytest.mark.all_faults)])
async def test_a_process_that_stood_still_past_its_session_sends_nothing_that_another_has_sent(
    scene: Stage, instance: str | None
) -> None:
    """It had read far ahead. The other member delivers all of that meanwhile."""
    everybody = tenants(8)
    scene.mount([scene.webhook(tenant) for tenant in everybody])
    for tenant in everybody:
        scene.receiver.behave(f"/{tenant.org}", slowly(0.2))
    delivery = {"max_in_flight": IN_FLIGHT, "lane_max_wait": "60s"}
    kafka = {"session_timeout": f"{SESSION_S}s", "group_instance_id": instance}
    other = {"session_timeout": f"{SESSION_S}s", "group_instance_id": None}
    async with (
        scene.dispatcher("a", kafka=kafka, delivery=delivery) as a,
        scene.dispatcher("b", kafka=other, delivery=delivery) as b,
    ):
        a.start()
        await a.ready()
        await scene.produce(everybody, 1_000)
        await scene.accepted(50, a)
        _stop(a, signal.SIGSTOP)
        b.start()
        await scene.all_accepted(b, 120)
        repeats = scene.receiver.repeats()
        _stop(a, signal.SIGCONT)
        await asyncio.sleep(3)
        await a.ready()
        await scene.produce(everybody, 50, "after")
        await scene.all_accepted(b)

        assert scene.receiver.repeats() - repeats <= IN_FLIGHT
        assert a.running


@pytest.mark.all_faults
async def test_a_paused_process_that_is_alone_in_its_group_continues(scene: Stage) -> None:
    everybody = tenants(8)
    scene.mount([scene.webhook(tenant) for tenant in everybody])
    for tenant in everybody:
        scene.receiver.behave(f"/{tenant.org}", slowly(0.2))
    delivery = {"max_in_flight": IN_FLIGHT, "lane_max_wait": "60s"}
    kafka = {"session_timeout": f"{SESSION_S}s"}
    async with scene.dispatcher(kafka=kafka, delivery=delivery) as dispatcher:
        dispatcher.start()
        await dispatcher.ready()
        await scene.produce(everybody, 1_000)
        await scene.accepted(50, dispatcher)
        _stop(dispatcher, signal.SIGSTOP)
        await asyncio.sleep(SESSION_S + 4)
        _stop(dispatcher, signal.SIGCONT)
        await scene.all_accepted(dispatcher, 90)
        await until(lambda: dispatcher.answers("/readyz"), "to be ready", 60, dispatcher)

        assert scene.receiver.repeats() <= IN_FLIGHT
        assert dispatcher.running


@pytest.mark.all_faults
async def test_a_process_that_stood_still_past_its_session_sends_no_held_event_that_another_has_sent(
    scene: Stage,
) -> None:
    """Its held events wait for requests to slow endpoints. The other member delivers all of them meanwhile."""
    everybody = tenants(4)
    webhooks = [scene.webhook(tenant) for tenant in everybody]
    scene.mount([one | {"paused": True} for one in webhooks])
    for tenant in everybody:
        scene.receiver.behave(f"/{tenant.org}", slowly(0.2))
    delivery = {"max_in_flight": IN_FLIGHT, "lane_max_wait": "60s"}
    kafka = {"session_timeout": f"{SESSION_S}s", "group_instance_id": None}
    async with (
        scene.dispatcher("a", kafka=kafka, delivery=delivery) as a,
        scene.dispatcher("b", kafka=kafka, delivery=delivery) as b,
    ):
        a.start()
        await a.ready()
        await scene.produce(everybody, 800)

        async def are_held() -> bool:
            _, text = await a.get("/metrics")
            return "dispatcher_held_events 800.0" in text

        await until(are_held, "800 held events", 60, a)
        scene.mount(webhooks)
        await scene.accepted(50, a)
        _stop(a, signal.SIGSTOP)
        b.start()
        await scene.all_accepted(b, 120)
        repeats = scene.receiver.repeats()
        _stop(a, signal.SIGCONT)
        await asyncio.sleep(3)
        await a.ready()

        assert scene.receiver.repeats() - repeats <= IN_FLIGHT
        assert a.running
