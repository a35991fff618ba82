"""Faults under load, on a real broker and the real process. Every scenario ends in its ledger: nothing is lost."""

import asyncio
import random
import re
from datetime import UTC, datetime, timedelta

import pytest
import yaml
from aiohttp import web
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType

from dispatcher.demo.child_process import free_ports
from tests.faults import behaviours as bad
from tests.faults.conftest import Tell
from tests.faults.table import Row
from tests.integration.brokers import PASSWORD, USER, needs_kafka
from tests.integration.harness import (
    Behaviour,
    Receiver,
    Stage,
    at_first,
    event,
    slowly,
    status,
    tenants,
    until,
    webhook_id_of,
)
from tests.kafka import topics
from tests.kafka.acls import Operation
from tests.kafka.apache_kafka import ApacheKafka
from tests.kafka.server_properties import Listener

pytestmark = [needs_kafka, pytest.mark.faults, pytest.mark.timeout(300)]

MOST_OF_A_KILL = 2_500
"""Repeats after one SIGKILL: what was in flight, and what was finished since the last commit (1,000, or a second's)."""


def _prepare(scene: Stage, count: int, seconds: float = 0.01) -> None:
    """Mounts webhooks of `count` tenants whose endpoints answer slowly."""
    everybody = tenants(count)
    scene.mount([scene.webhook(tenant) for tenant in everybody])
    for tenant in everybody:
        scene.receiver.behave(f"/{tenant.org}", slowly(seconds))


async def _end(scene: Stage) -> None:
    """Waits a moment, so that repeats can arrive."""
    await asyncio.sleep(1.0)


# Of the process


@pytest.mark.parametrize("kills", [2, pytest.param(20, marks=pytest.mark.all_faults)])
async def test_kills_at_random_moments_lose_nothing(scene: Stage, tell: Tell, kills: int) -> None:
    chance = random.Random(kills)
    everybody = tenants(10)
    _prepare(scene, 10)
    async with scene.dispatcher() as dispatcher:
        for number in range(kills):
            await scene.produce(everybody, 1_500, f"k{number}")
            dispatcher.start()
            before = len(scene.receiver.accepted)
            await scene.accepted(before + chance.randint(1, 1_200), dispatcher)
            await asyncio.sleep(chance.random() / 2)
            dispatcher.kill9()
        dispatcher.start()
        await scene.all_accepted(dispatcher)
        await _end(scene)
    tell(await Row.of(f"kill -9 x{kills}", scene, dispatcher, most_repeats=kills * MOST_OF_A_KILL))


@pytest.mark.all_faults  # one drain is part of the main job's tests
async def test_drains_under_load_repeat_nothing(scene: Stage, tell: Tell) -> None:
    drains = 10
    chance = random.Random(drains)
    everybody = tenants(10)
    _prepare(scene, 10, 0.05)
    async with scene.dispatcher() as dispatcher:
        for number in range(drains):
            await scene.produce(everybody, 1_500, f"d{number}")
            dispatcher.start()
            await scene.accepted(len(scene.receiver.accepted) + chance.randint(1, 800), dispatcher)
            dispatcher.sigterm()
            assert await dispatcher.wait() == 0
        dispatcher.start()
        await scene.all_accepted(dispatcher)
        await _end(scene)
    tell(await Row.of(f"SIGTERM x{drains}", scene, dispatcher, most_repeats=0))


@pytest.mark.all_faults
async def test_three_members_join_and_leave_under_load(scene: Stage, tell: Tell) -> None:
    _prepare(scene, 10)
    dynamic = {"group_instance_id": None, "session_timeout": "6s"}
    async with (
        scene.dispatcher("a", kafka=dynamic) as a,
        scene.dispatcher("b", kafka=dynamic) as b,
        scene.dispatcher("c", kafka=dynamic) as c,
    ):
        producing = asyncio.create_task(_trickle(scene, 12_000, 600))
        a.start()
        await scene.accepted(500, a)
        b.start()
        await b.ready()
        c.start()
        await c.ready()
        await asyncio.sleep(2)
        a.sigterm()
        assert await a.wait() == 0
        a.start()
        await a.ready()
        b.kill9()
        await asyncio.sleep(1)
        b.start()
        await b.ready()
        c.sigterm()
        assert await c.wait() == 0
        await producing
        await scene.all_accepted(a, 90)
        await _end(scene)
    tell(await Row.of("three members join, leave, one is killed", scene, a, b, c, most_repeats=2 * MOST_OF_A_KILL))


async def _trickle(scene: Stage, count: int, per_second: int) -> None:
    """Produces `count` events, `per_second` of them each second."""
    everybody, piece = tenants(10), per_second // 4
    for number in range(count // piece):
        await scene.produce(everybody, piece, f"t{number}")
        await asyncio.sleep(0.25)


# Of the broker


async def test_the_broker_restarts_while_events_are_parked(scene: Stage, tell: Tell, mortal: ApacheKafka) -> None:
    everybody = tenants(100)
    scene.mount([scene.webhook(tenant) for tenant in everybody])
    for tenant in everybody:
        scene.receiver.behave(f"/{tenant.org}", at_first(status(503)))
    patient = {"connect_timeout": "30s", "timeout": "30s"}  # a loaded machine's failures would open breakers
    async with scene.dispatcher(retry={"soon_attempts": 0}, delivery=patient) as dispatcher:
        await scene.produce(everybody, 800)  # eight for each: too few to open a breaker
        dispatcher.start()
        await until(lambda: len(scene.receiver.seen) >= 200, "the first attempts", 60, dispatcher)
        await mortal.restart()
        await scene.all_accepted(dispatcher, 90)
        await _end(scene)
    # An acknowledgement that the restart swallowed may mean a second copy in the tier.
    tell(await Row.of("broker restarts while parking", scene, dispatcher, most_repeats=800))


@pytest.mark.all_faults
async def test_the_broker_is_killed_under_load_again_and_again(scene: Stage, tell: Tell, mortal: ApacheKafka) -> None:
    _prepare(scene, 10)
    async with scene.dispatcher() as dispatcher:
        await scene.produce(tenants(10), 8_000)
        dispatcher.start()
        for number in range(3):
            await scene.accepted((number + 1) * 1_500, dispatcher)
            mortal.kill()
            await asyncio.sleep(1)
            await mortal.start()
        await scene.all_accepted(dispatcher, 120)
        await _end(scene)
    tell(await Row.of("broker killed x3", scene, dispatcher, most_repeats=3 * MOST_OF_A_KILL))


@pytest.mark.parametrize("kind", ["dead", pytest.param("retry", marks=pytest.mark.all_faults)])
async def test_an_event_whose_next_topic_is_closed_stays_in_flight(
    scene: Stage, tell: Tell, mortal: ApacheKafka, kind: str
) -> None:
    (tenant,) = tenants(1)
    scene.mount([scene.webhook(tenant)])
    (scene.directory / "password").write_text(PASSWORD)
    security = {
        "protocol": "SASL_PLAINTEXT",
        "mechanism": "SCRAM-SHA-256",
        "username": USER,
        "password": {"file": str(scene.directory / "password")},
    }
    kafka = {"bootstrap_servers": mortal.address(Listener.SASL_PLAINTEXT), "security": security}
    closed = scene.dead_topic if kind == "dead" else f"{scene.prefix}.retry.1s"
    stuck_id = webhook_id_of(tenant, "stuck")
    scene.expected[stuck_id] = tenant
    answer = status(501 if kind == "dead" else 503)

    async def only_the_stuck_one(request: web.Request, receiver: Receiver) -> web.StreamResponse:
        stuck = request.headers["webhook-id"] == stuck_id
        return await answer(request, receiver) if stuck else receiver.accept(request)

    scene.receiver.behave(f"/{tenant.org}", only_the_stuck_one)
    await mortal.deny(USER, Operation.WRITE, closed)
    async with scene.dispatcher(kafka=kafka, retry={"soon_attempts": 0}) as dispatcher:
        stuck = await scene.send(event(tenant, "stuck"), partition=0)
        for number in range(100):
            await scene.send(event(tenant, f"behind{number}"), partition=0)
            scene.expected[webhook_id_of(tenant, f"behind{number}")] = tenant
        dispatcher.start()
        await until(lambda: len(scene.missing()) == 1, "those behind it", 60, dispatcher)
        await asyncio.sleep(2.5)
        assert (await scene.committed()).get(0, 0) <= stuck.offset
        assert sum((await topics.end_offsets(scene.bootstrap_servers, closed)).values()) == 0
        assert "record kept for another try" in dispatcher.log
        # A restart meanwhile keeps it too, and repeats none of those behind.
        dispatcher.sigterm()
        assert await dispatcher.wait() == 0
        dispatcher.start()
        await until(lambda: "record kept for another try" in dispatcher.log, "another refused write", 60, dispatcher)
        assert (await scene.committed()).get(0, 0) <= stuck.offset
        await mortal.permit(USER, Operation.WRITE, closed)

        async def passed() -> bool:
            return (await scene.committed()).get(0, 0) == stuck.offset + 101

        await until(passed, "the position to pass it", 60, dispatcher)
        scene.receiver.behave(f"/{tenant.org}", None)
        if kind == "retry":
            await scene.all_accepted(dispatcher)
    tell(await Row.of(f"{kind} topic closed by an ACL", scene, dispatcher, most_repeats=0, dead=int(kind == "dead")))


@pytest.mark.all_faults
@pytest.mark.parametrize(
    ("kind", "wrong"), [("dead", "takes no record of that size"), ("dead", "is missing"), ("retry", "is missing")]
)
async def test_an_event_whose_next_topic_is_wrong_waits_until_it_is_repaired(
    scene: Stage, tell: Tell, kind: str, wrong: str
) -> None:
    (tenant,) = tenants(1)
    scene.mount([scene.webhook(tenant)])
    topic = scene.dead_topic if kind == "dead" else f"{scene.prefix}.retry.1s"
    stuck_id = webhook_id_of(tenant, "stuck")

    async def only_the_stuck_one(request: web.Request, receiver: Receiver) -> web.StreamResponse:
        return web.Response(status=503) if request.headers["webhook-id"] == stuck_id else receiver.accept(request)

    scene.receiver.behave(f"/{tenant.org}", only_the_stuck_one)
    async with topics.admin_client(scene.bootstrap_servers) as admin:
        if wrong == "is missing":
            await admin.delete_topics([topic])
        else:
            await admin.alter_configs([_largest(topic, 200)])
    async with scene.dispatcher(retry={"soon_attempts": 0}) as dispatcher:
        value = b"unreadable" * 100 if kind == "dead" else event(tenant, "stuck")
        stuck = await scene.send(value, partition=0)
        for number in range(50):
            await scene.send(event(tenant, f"behind{number}"), partition=0)
            scene.expected[webhook_id_of(tenant, f"behind{number}")] = tenant
        dispatcher.start()
        await scene.all_accepted(dispatcher)
        await until(lambda: "record kept for another try" in dispatcher.log, "a refused write", 60, dispatcher)
        assert (await scene.committed()).get(0, 0) <= stuck.offset
        if wrong == "is missing":
            await topics.create_topic(scene.bootstrap_servers, topic)
        else:
            async with topics.admin_client(scene.bootstrap_servers) as admin:
                await admin.alter_configs([_largest(topic, 100_000)])

        async def passed() -> bool:
            return (await scene.committed()).get(0, 0) == stuck.offset + 51

        await until(passed, "the position to pass it", 60, dispatcher)
        assert dispatcher.running
        if kind == "retry":
            scene.expected[stuck_id] = tenant
            scene.receiver.behave(f"/{tenant.org}", None)
            await scene.all_accepted(dispatcher)
    buried = await topics.read_all(scene.bootstrap_servers, scene.dead_topic)
    assert [one.value for one in buried] == ([value] if kind == "dead" else [])
    tell(await Row.of(f"{kind} topic {wrong}", scene, dispatcher, most_repeats=0))


def _largest(topic: str, size: int) -> ConfigResource:
    return ConfigResource(ConfigResourceType.TOPIC, topic, configs={"max.message.bytes": str(size)})


async def test_events_that_still_fail_at_the_age_limit_are_dead_lettered(scene: Stage, tell: Tell) -> None:
    failing, fine = tenants(2)
    scene.mount([scene.webhook(failing), scene.webhook(fine)])
    scene.receiver.behave(f"/{failing.org}", status(503))
    async with scene.dispatcher(retry={"soon_attempts": 0, "max_age": "4s"}) as dispatcher:
        dispatcher.start()
        await dispatcher.ready()
        await scene.produce([failing, fine], 8)

        async def all_dead() -> bool:
            return len(await scene.dead()) == 4

        await until(all_dead, "the dead letters", 60, dispatcher)
        assert set((await scene.dead()).values()) == {"expired"}
        assert {scene.expected[name] for name in scene.missing()} == {failing}
    tell(await Row.of("failing until the age limit", scene, dispatcher, most_repeats=0, dead=4))


# Of the receivers

_EVENTS_EACH = 4
"""Fewer than open a breaker: only the effect of the answer itself is tested."""

_ONCE_BAD: dict[str, Behaviour] = {
    "reset before the answer": at_first(bad.reset_before_the_answer),
    "reset mid-body": bad.reset_mid_body,
    "reset mid-body of 503": at_first(bad.reset_mid_error_body),
    "never answers": at_first(bad.never_answer),
    "one byte a second": bad.a_byte_a_second,
    "a gigabyte of 503": at_first(bad.a_huge_body_of_an_error),
    "a gigabyte of 200": bad.accept_with_a_huge_body,
    "garbage": at_first(bad.garbage),
    "endless headers": at_first(bad.endless_headers),
    "keep-alive closed": bad.accept_and_close_keep_alive,
    "429 Retry-After": at_first(status(429, retry_after="1")),
    "503 Retry-After": at_first(status(503, retry_after="2")),
    "401": at_first(status(401)),
    "408": at_first(status(408)),
}

_MOST_ON_CLOSED = sum(range(_EVENTS_EACH))
"""Repeats where connections close just as a request goes out: each time that the rest are sent again, the first of them
has a connection of its own, and its answer."""

_NOT_IN_TIME = {"never answers", "one byte a second"}
"""These wait for the deadline. For the others it is far away: an answer that a busy machine gives late is a repeat.

So is the deadline of connecting, for all of them: five late handshakes in a row would open a breaker for half a minute.
"""


async def test_receivers_that_misbehave_once_get_every_event_in_the_end(scene: Stage, tell: Tell) -> None:
    everybody = dict(zip(tenants(len(_ONCE_BAD)), _ONCE_BAD.items(), strict=True))
    scene.mount(
        [
            scene.webhook(tenant, timeout="5s" if name in _NOT_IN_TIME else "30s", connect_timeout="30s")
            for tenant, (name, _) in everybody.items()
        ]
    )
    for tenant, (_, behaviour) in everybody.items():
        scene.receiver.behave(f"/{tenant.org}", behaviour)
    async with scene.dispatcher(retry={"soon_attempts": 0}) as dispatcher:
        dispatcher.start()
        await scene.produce(list(everybody), _EVENTS_EACH * len(everybody))
        try:
            await scene.all_accepted(dispatcher, 150)
        except AssertionError:
            late = {everybody[scene.expected[name]][0] for name in scene.missing()}
            raise AssertionError(f"not yet delivered: {sorted(late)}\n{dispatcher.log[-6000:]}") from None
        await _end(scene)
    tell(await Row.of("receivers that misbehave in 14 ways", scene, dispatcher, most_repeats=_MOST_ON_CLOSED))


async def test_receivers_that_are_wrong_until_the_webhook_is_edited_lose_nothing(scene: Stage, tell: Tell) -> None:
    everybody = refusing, strange, another_name, expired, gone, moved = tenants(6)
    closed_port, yesterday = free_ports(1)[0], datetime.now(UTC) - timedelta(days=1)
    async with (
        Receiver() as stranger,
        Receiver(scene.receiver.authority, "elsewhere.test") as misnamed,
        Receiver(scene.receiver.authority, valid_until=yesterday) as outdated,
    ):
        scene.mount(
            [
                scene.webhook(refusing, url=f"https://localhost:{closed_port}/"),
                scene.webhook(strange, url=stranger.url("/")),
                scene.webhook(another_name, url=misnamed.url("/")),
                scene.webhook(expired, url=outdated.url("/")),
                scene.webhook(gone, "/gone"),
                scene.webhook(moved, "/moved"),
            ]
        )
        scene.receiver.behave("/gone", status(410))
        scene.receiver.behave("/moved", status(307, location=scene.receiver.url("/elsewhere")))
        async with scene.dispatcher(retry={"soon_attempts": 0}) as dispatcher:
            dispatcher.start()
            await scene.produce(everybody, 4 * len(everybody))

            async def parked() -> bool:
                text = (await dispatcher.get("/metrics"))[1]
                return sum(map(float, re.findall(r"^dispatcher_events_parked_total\{.*\} (\S+)$", text, re.M))) >= 20

            await until(parked, "everything parked", 60, dispatcher)
            dead_of_redirects = {n for n, tenant in scene.expected.items() if tenant == moved}
            assert not scene.receiver.accepted
            assert not stranger.requests
            assert not misnamed.requests
            assert not outdated.requests
            scene.mount([scene.webhook(t, "/mended") for t in everybody])
            await until(lambda: scene.missing() == dead_of_redirects, "the repaired ones", 60, dispatcher)
            await _end(scene)
            assert not scene.receiver.at("/elsewhere")
            assert set((await scene.dead()).values()) == {"redirected"}
    tell(await Row.of("refused, wrong certificates, 410, redirect; edited", scene, dispatcher, most_repeats=0, dead=4))


@pytest.mark.all_faults
async def test_a_third_of_the_tenants_being_dead_costs_the_others_nothing(scene: Stage, tell: Tell) -> None:
    everybody = tenants(20)
    healthy = everybody[6:]
    url = f"https://localhost:{free_ports(1)[0]}/"
    scene.mount([scene.webhook(t, url=url) if t not in healthy else scene.webhook(t) for t in everybody])
    async with scene.dispatcher() as dispatcher:
        await scene.produce(everybody, 6_000)
        dispatcher.start()
        await until(
            lambda: not {n for n in scene.missing() if scene.expected[n] in healthy}, "the healthy", 40, dispatcher
        )
        scene.mount([scene.webhook(tenant) for tenant in everybody])
        await scene.all_accepted(dispatcher, 60)
        await _end(scene)
    tell(await Row.of("30 % of the tenants dead, then repaired", scene, dispatcher, most_repeats=0))


@pytest.mark.all_faults
async def test_a_flood_of_one_tenant_does_not_hold_the_others_up(scene: Stage, tell: Tell) -> None:
    flooding, *others = tenants(20)
    _prepare(scene, 20, 0.02)
    async with scene.dispatcher() as dispatcher:
        await scene.produce([flooding], 9_500, "flood")
        await scene.produce(others, 500, "small")
        dispatcher.start()
        await scene.all_accepted(dispatcher, 90)
        await _end(scene)
    at = scene.receiver.accepted_at
    flood_ends = max(at[name] for name, tenant in scene.expected.items() if tenant == flooding)
    others_end = max(at[name] for name, tenant in scene.expected.items() if tenant != flooding)
    assert others_end <= flood_ends
    tell(await Row.of("flood: 95 % of the events of one tenant", scene, dispatcher, most_repeats=0))


# Of the configuration


async def test_webhook_files_broken_removed_and_edited_under_load_lose_nothing(scene: Stage, tell: Tell) -> None:
    everybody = tenants(10)
    webhooks = [scene.webhook(tenant) for tenant in everybody]
    _prepare(scene, 10)
    async with scene.dispatcher() as dispatcher:
        producing = asyncio.create_task(_trickle(scene, 4_000, 800))
        dispatcher.start()
        await scene.accepted(300, dispatcher)
        scene.volume.update({"webhooks.yaml": "apiVersion: dispatcher/v1\nwebhooks: [{name: broken"})
        await asyncio.sleep(1.5)
        scene.mount(webhooks)
        await asyncio.sleep(0.5)
        scene.mount([one | {"headers": {"X-Edit": "1"}} for one in webhooks])
        await asyncio.sleep(0.5)
        scene.mount(webhooks[:5], renamed=_file(webhooks[5:]))
        await producing
        await scene.all_accepted(dispatcher, 60)
        await _end(scene)
    tell(await Row.of("webhooks broken, repaired, edited, moved to another file", scene, dispatcher, most_repeats=0))


@pytest.mark.all_faults
async def test_a_webhook_file_that_is_removed_and_comes_back_renamed_accounts_for_every_event(
    scene: Stage, tell: Tell
) -> None:
    """Without a webhook an event is skipped, and counted so; the other files' tenants notice nothing."""
    *others, leaving = tenants(10)
    _prepare(scene, 10)
    own = scene.webhook(leaving)
    scene.mount([scene.webhook(tenant) for tenant in others], leaving=_file([own]))
    async with scene.dispatcher() as dispatcher:
        dispatcher.start()
        await dispatcher.ready()
        producing = asyncio.create_task(scene.produce(others, 4_000))
        await scene.produce([leaving], 20, "before")
        await until(lambda: not {n for n in scene.missing() if scene.expected[n] == leaving}, "them", 60, dispatcher)
        scene.mount([scene.webhook(tenant) for tenant in others])
        await until(lambda: '"webhooks":9' in dispatcher.log, "the webhook to be gone", 60, dispatcher)
        for number in range(20):
            await scene.send(event(leaving, f"while{number}"))

        async def skipped() -> bool:
            _, text = await dispatcher.get("/metrics")
            return 'dispatcher_events_skipped_total{reason="no_webhook"} 20.0' in text

        await until(skipped, "the skipped ones to be counted", 60, dispatcher)
        scene.mount([scene.webhook(t) for t in others], returned=_file([own | {"name": "Another name"}]))
        await until(lambda: dispatcher.log.count('"webhooks":10') == 2, "the webhook to be back", 60, dispatcher)
        await scene.produce([leaving], 20, "after")
        await producing
        await scene.all_accepted(dispatcher)
    tell(await Row.of("webhook file removed, back under another name", scene, dispatcher, most_repeats=0))


def _file(webhooks: list[dict[str, object]]) -> str:
    return yaml.safe_dump({"apiVersion": "dispatcher/v1", "webhooks": webhooks})
