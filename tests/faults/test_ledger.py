"""The ledger run: four members, kills, broker faults, and tenants that misbehave. Every event is accounted for.

`make faults` prints the events that were lost, and for each kill its repeats and the POSTs in flight at that moment.
"""

import asyncio
import os
import random
import statistics
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import yaml
from aiohttp import web

from dispatcher.contract.events import DeliveryEvent, read_event
from dispatcher.contract.records import RetryState
from tests.faults import behaviours as bad
from tests.faults.conftest import Tell
from tests.faults.ledger import Fault, Parked, Repeats, attribute
from tests.faults.table import Row
from tests.integration.brokers import needs_kafka
from tests.integration.harness import Behaviour, Receiver, Stage, slowly, stage, status, tenants, until
from tests.kafka import topics
from tests.kafka.apache_kafka import ApacheKafka
from tests.stores.kubelet import MountedVolume

pytestmark = [needs_kafka, pytest.mark.faults, pytest.mark.all_faults, pytest.mark.timeout(2_400)]

EVENTS = int(os.environ.get("LEDGER_EVENTS", "100000"))
"""Smaller numbers help while the test itself is changed."""
KILLS = int(os.environ.get("LEDGER_KILLS", "20"))
MEMBERS = 4
SESSION_S = 12.0
STEP = EVENTS // (KILLS + 2)
"""Events of the healthy tenants are accepted from one kill to the next, in the mean."""
BACKLOG = 2_000
"""Events of the healthy tenants that wait at any time: every kill meets a busy process."""
EVERYBODY = tenants(40)
MISBEHAVING: dict[str, Behaviour] = {
    "503 now and then": bad.now_and_then(status(503)),
    "429 now and then": bad.now_and_then(status(429, retry_after="1")),
    "reset now and then": bad.now_and_then(bad.reset_before_the_answer),
    "cut answers now and then": bad.now_and_then(bad.reset_mid_error_body),
    "slow": slowly(0.3),
    "very slow": slowly(1.0),
    "garbage now and then": bad.now_and_then(bad.garbage),
    "dead until the end": status(503),
}
"""The behaviour of a fifth of the tenants."""

DEAD = EVERYBODY[len(MISBEHAVING) - 1]
GOOD = (len(EVERYBODY) - len(MISBEHAVING)) / len(EVERYBODY)
"""Share of the events whose endpoints behave."""


@dataclass
class Member:
    """One of the processes. Each of its runs has webhooks whose URLs name it, so that requests show who sent them."""

    scene: Stage
    number: int

    def __post_init__(self) -> None:
        self.name = f"m{self.number}"
        self._volume = MountedVolume(self.scene.directory / f"{self.name}.webhooks.d")
        self._runs = 0
        # Static members: a killed one gets its partitions back at once, and its repeats show before the next kill.
        # Long timeouts: an answer that a loaded machine gives too late would be a repeat that no fault explains.
        self.dispatcher = self.scene.dispatcher(
            self.name,
            kafka={"group_instance_id": self.name},
            delivery={"connect_timeout": "30s", "timeout": "30s"},
            webhooks={"path": str(self._volume.path)},
        )

    @property
    def sender(self) -> str:
        """The query of the URLs of the present run."""
        return f"{self.name}-{self._runs}"

    def start(self) -> None:
        """Starts the next run."""
        self._runs += 1
        webhooks = [self.scene.webhook(tenant, f"/{tenant.org}?{self.sender}") for tenant in EVERYBODY]
        text = yaml.safe_dump({"apiVersion": "dispatcher/v1", "webhooks": webhooks})
        self._volume.update({"webhooks.yaml": text})
        self.dispatcher.start()


@dataclass
class Healthy:
    """The endpoints that behave: each accepts after 10 ms."""

    requests: int = 0

    async def __call__(self, request: web.Request, receiver: Receiver) -> web.StreamResponse:
        await asyncio.sleep(0.01)
        self.requests += 1
        return receiver.accept(request)


async def _keep_busy(scene: Stage, healthy: Healthy) -> None:
    """Produces all events, no faster than they are accepted."""
    while len(scene.expected) < EVENTS:
        if len(scene.expected) * GOOD - healthy.requests < BACKLOG:
            await scene.produce(EVERYBODY, min(400, EVENTS - len(scene.expected)), f"e{len(scene.expected)}")
        await asyncio.sleep(0.1)


async def _reach(healthy: Healthy, requests: int, member: Member) -> None:
    await until(lambda: healthy.requests >= requests, "the moment of the next kill", 300, member.dispatcher)


def _prepare(scene: Stage) -> Healthy:
    healthy = Healthy()
    for tenant, behaviour in zip(EVERYBODY, MISBEHAVING.values(), strict=False):
        scene.receiver.behave(f"/{tenant.org}", behaviour)
    for tenant in EVERYBODY[len(MISBEHAVING) :]:
        scene.receiver.behave(f"/{tenant.org}", healthy)
    return healthy


async def _fault(what: str, scene: Stage, members: Sequence[Member], victim: Member | None = None) -> Fault:
    """Measures for half a second what goes on, right before the fault."""
    before = len(scene.receiver.accepted)
    began = time.monotonic()
    await asyncio.sleep(0.5)
    concerned = members if victim is None else [victim]
    in_flight = sum([await one.dispatcher.in_flight() for one in concerned])
    now = time.monotonic()
    rate = (len(scene.receiver.accepted) - before) / (now - began) * len(concerned) / len(members)
    if victim is None:
        return Fault(what, now, now, in_flight, rate)
    return Fault(what, now, now, in_flight, rate, victim.sender)


def _over(fault: Fault) -> Fault:
    """Returns the fault with its end: rebalances and lost acknowledgements belong to it, a session long."""
    return replace(fault, until=time.monotonic() + SESSION_S)


async def _broker_fault(number: int, broker: ApacheKafka, scene: Stage, members: Sequence[Member]) -> list[Fault]:
    """The broker restarts in order after a third of the kills, and is killed after two thirds."""
    if number == KILLS // 3:
        fault = await _fault("broker restarted", scene, members)
        await broker.restart()
        return [_over(fault)]
    if number == 2 * KILLS // 3:
        fault = await _fault("broker killed", scene, members)
        broker.kill()
        await asyncio.sleep(1)
        await broker.start()
        return [_over(fault)]
    return []


async def test_every_event_is_accounted_for_after_kills_and_broker_faults(
    mortal: ApacheKafka, tmp_path: Path, tell: Tell
) -> None:
    chance = random.Random(1)
    faults: list[Fault] = []
    async with AsyncExitStack() as stack, stage(mortal.bootstrap_servers, tmp_path, partitions=12) as scene:
        healthy = _prepare(scene)
        members = [Member(scene, number) for number in range(MEMBERS)]
        for member in members:
            await stack.enter_async_context(member.dispatcher)
            member.start()
        for member in members:
            await member.dispatcher.ready(300)
        producing = asyncio.create_task(_keep_busy(scene, healthy))
        stack.callback(producing.cancel)
        for number in range(KILLS):
            await _reach(healthy, int((number + chance.uniform(0.5, 1.5)) * STEP * GOOD), members[0])
            victim = members[number % MEMBERS]
            fault = await _fault(f"kill {number}", scene, members, victim)
            victim.dispatcher.kill9()
            victim.start()
            await victim.dispatcher.ready(300)
            faults.append(_over(fault))
            faults += await _broker_fault(number, mortal, scene, members)
        await producing
        most = len([name for name, tenant in scene.expected.items() if tenant == DEAD])
        await until(
            lambda: len(scene.missing()) <= most, "every event but the dead tenant's", 900, members[0].dispatcher
        )
        scene.receiver.behave(f"/{DEAD.org}", None)
        await scene.all_accepted(members[0].dispatcher, 900)
        await asyncio.sleep(2)
        dispatchers = [one.dispatcher for one in members]
        row = await Row.of(f"ledger: {MEMBERS} members, kill -9 x{KILLS}", scene, *dispatchers, most_repeats=EVENTS)
        parked = await _parked(scene)
    repeats = attribute(scene.receiver.of_event, parked, faults)
    _print(row, faults, repeats)
    tell(row)
    assert not repeats.unexplained
    kills = [one for one in faults if one.sender is not None]
    assert statistics.median(one.in_flight for one in kills) > 0, "the kills met idle processes: nothing is proven"
    assert statistics.median(repeats.of_fault[one.what] for one in kills) <= statistics.median(
        one.bound for one in kills
    )


async def _parked(scene: Stage) -> dict[str, list[Parked]]:
    """Returns the records in the retry topics of every event that was accepted more than once."""
    found: dict[str, list[Parked]] = {}
    behind = time.time() - time.monotonic()
    for topic in scene.tier_topics:
        async for record in topics.records_of(scene.bootstrap_servers, topic):
            state = RetryState.of(record)
            event = read_event(record, state.origin)
            if isinstance(event, DeliveryEvent) and scene.receiver.accepted[event.webhook_id] > 1:
                parked = Parked(state.parks, record.timestamp / 1000 - behind)
                found.setdefault(event.webhook_id, []).append(parked)
    return found


def _print(row: Row, faults: Sequence[Fault], repeats: Repeats) -> None:
    print(f"\nlost {row.lost} of {row.events}; repeats {row.repeats}")
    for one in faults:
        print(
            f"{one.what:16}: repeats {repeats.of_fault[one.what]:5} (parked twice {repeats.parked[one.what]:3}), "
            f"POSTs in flight {one.in_flight:4}, "
            f"{one.per_second:6.0f} events/s, bound {one.bound:5.0f}, "
            f"longest uncommitted {repeats.longest_uncommitted.get(one.what, 0):5.1f} s"
        )
    print(f"unexplained: {len(repeats.unexplained)} {repeats.unexplained[:10]}")
