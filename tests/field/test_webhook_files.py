"""Mistakes in webhook files and other reasons to hold events: the real process on a real broker, and nothing is lost."""

import asyncio
import re

import pytest
import yaml

from tests.integration.brokers import needs_kafka
from tests.integration.harness import Dispatcher, Stage, status, tenants, until

pytestmark = [needs_kafka, pytest.mark.timeout(300)]

ALONE = {"kafka": {"group_instance_id": None, "session_timeout": "6s"}}


async def metric(dispatcher: Dispatcher, name: str) -> float:
    """Returns the sum of a metric's series."""
    _, text = await dispatcher.get("/metrics")
    return sum(float(value) for value in re.findall(rf"^{name}(?:{{[^}}]*}})? (\S+)$", text, re.M))


async def reached(dispatcher: Dispatcher, name: str, least: float) -> None:
    """Waits until a metric has reached a value."""

    async def has() -> bool:
        return await metric(dispatcher, name) >= least

    await until(has, f"{name} to be {least:g}", 60, dispatcher)


async def test_a_process_that_joins_after_a_mistake_loses_nothing(scene: Stage) -> None:
    everybody = tenants(5)
    good = [scene.webhook(tenant) for tenant in everybody]
    scene.mount(good)
    async with scene.dispatcher("first", **ALONE) as first, scene.dispatcher("second", **ALONE) as second:
        first.start()
        await first.ready()
        scene.mount([*good[:4], good[4] | {"url": "htps://mistyped.example/"}])
        second.start()
        await second.ready()
        await scene.produce(everybody, 200)
        expected = [name for name, tenant in scene.expected.items() if tenant != everybody[4]]
        await until(lambda: scene.receiver.accepted.keys() >= set(expected), "the good webhooks' events", 60, second)
        await reached(second, "dispatcher_held_events", 1)
        assert (await second.get("/readyz"))[0] == 200
        assert "webhooks[4].url: must begin with https://" in (await second.get("/readyz"))[1]
        assert await metric(second, "dispatcher_config_unusable_webhooks") == 1
        scene.mount(good)
        await scene.all_accepted(second, 120)
        for one in (first, second):
            assert await metric(one, "dispatcher_events_skipped_total") == 0
    assert await scene.dead() == {}
    assert scene.receiver.repeats() == 0


async def test_events_wait_for_a_secret_that_is_not_there_yet_at_the_start(scene: Stage) -> None:
    (tenant,) = tenants(1)
    reference = scene.secret("unused", b"x") | {"file": str(scene.directory / "webhook-secrets" / "late")}
    scene.mount([scene.webhook(tenant, headers={"X-Api-Key": reference})])
    async with scene.dispatcher() as dispatcher:
        dispatcher.start()
        await scene.produce([tenant], 5)
        await reached(dispatcher, "dispatcher_held_events", 5)
        scene.secret("late", b"s3cret")
        await scene.all_accepted(dispatcher)
    assert {arrived.headers["X-Api-Key"] for arrived in scene.receiver.requests} == {"s3cret"}
    assert scene.receiver.repeats() == 0


@pytest.mark.parametrize(
    "broken", ["webhooks: [", pytest.param("- name: no organisation\n", marks=pytest.mark.all_faults)]
)
async def test_unknown_tenants_are_held_while_a_file_can_not_be_read(scene: Stage, broken: str) -> None:
    known, late, nobody = tenants(3)
    text = broken if broken.endswith("[") else f"apiVersion: dispatcher/v1\nwebhooks:\n  {broken}"
    scene.mount([scene.webhook(known)], late=text)
    async with scene.dispatcher() as dispatcher:
        dispatcher.start()
        await scene.produce([known, late], 20)
        await scene.produce([nobody], 7, "nobody")
        await reached(dispatcher, "dispatcher_held_events", 17)
        assert await metric(dispatcher, "dispatcher_config_incomplete") == 1
        assert await metric(dispatcher, "dispatcher_events_skipped_total") == 0
        webhooks = {"apiVersion": "dispatcher/v1", "webhooks": [scene.webhook(late)]}
        scene.mount([scene.webhook(known)], late=yaml.safe_dump(webhooks))
        await scene.accepted(20, dispatcher)
        await reached(dispatcher, "dispatcher_events_skipped_total", 7)
        assert await metric(dispatcher, "dispatcher_config_incomplete") == 0
    assert await scene.dead() == {}


async def test_no_usable_file_at_the_start_ends_it_with_78_before_it_joins(scene: Stage) -> None:
    scene.volume.update({"a.yaml": "webhooks: [", "b.yaml": "apiVersion: dispatcher/v2\nwebhooks: []\n"})
    async with scene.dispatcher() as dispatcher:
        dispatcher.start()
        assert await dispatcher.wait() == 78
        assert "a.yaml:1: not valid YAML" in dispatcher.log
        assert "partitions assigned" not in dispatcher.log


@pytest.mark.all_faults
async def test_a_paused_webhook_keeps_its_events_over_kills_and_delivers_each_once(scene: Stage) -> None:
    paused, other, third = tenants(3)
    webhooks = [scene.webhook(tenant) for tenant in (paused, other, third)]
    scene.mount([webhooks[0] | {"paused": True}, webhooks[1] | {"paused": True}, webhooks[2]])
    async with scene.dispatcher() as dispatcher:
        dispatcher.start()
        await scene.produce([paused, other, third], 600)
        await reached(dispatcher, "dispatcher_held_events", 400)
        await scene.accepted(200, dispatcher)
        await asyncio.sleep(2)  # for a commit
        dispatcher.kill9()
        dispatcher.start()
        await reached(dispatcher, "dispatcher_held_events", 400)
        scene.mount([webhooks[0], webhooks[1] | {"paused": True}, webhooks[2]])
        await scene.accepted(400, dispatcher)
        await asyncio.sleep(2.5)
        dispatcher.kill9()
        dispatcher.start()
        await reached(dispatcher, "dispatcher_held_events", 200)
        await asyncio.sleep(1)
        assert len(scene.receiver.accepted) == 400
        scene.mount(webhooks)
        await scene.all_accepted(dispatcher)
    assert scene.receiver.repeats() == 0, "what was delivered beyond the position is remembered"


@pytest.mark.all_faults
async def test_a_suspended_webhooks_events_wait_for_its_edit(scene: Stage) -> None:
    gone, other = tenants(2)
    scene.receiver.behave(f"/{gone.org}", status(410))
    scene.mount([scene.webhook(gone), scene.webhook(other)])
    async with scene.dispatcher() as dispatcher:
        dispatcher.start()
        await scene.produce([gone, other], 200)
        await scene.accepted(100, dispatcher)
        await reached(dispatcher, "dispatcher_held_events", 100)
        posts = len(scene.receiver.at(f"/{gone.org}"))
        await asyncio.sleep(12)  # longer than the tenants are reviewed
        assert len(scene.receiver.at(f"/{gone.org}")) == posts, "a held event is not sent now and then"
        scene.mount([scene.webhook(gone, "/new"), scene.webhook(other)])
        await scene.all_accepted(dispatcher)
    assert await scene.dead() == {}


@pytest.mark.all_faults
async def test_a_held_event_dies_at_the_age_limit(scene: Stage) -> None:
    paused, other = tenants(2)
    scene.mount([scene.webhook(paused, paused=True), scene.webhook(other)])
    async with scene.dispatcher(retry={"max_age": "15s"}) as dispatcher:
        dispatcher.start()
        await dispatcher.ready()
        await scene.produce([paused, other], 20)

        async def all_dead() -> bool:
            return len(await scene.dead()) == 10

        await until(all_dead, "the held events to be dead", 60, dispatcher)
    assert set((await scene.dead()).values()) == {"expired"}
