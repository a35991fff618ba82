"""The ledger run: four members, kills, broker faults, and tenants that misbehave. Every event is accounted for.

`make faults` prints the events that were lost, and for each kill its repeats and the POSTs in flight at that moment.
"""

import asyncio
import os
import random
import re
import statistics
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.faults import behaviours as bad
from tests.faults.conftest import Tell
from tests.faults.table import Row
from tests.integration.brokers import needs_kafka
from tests.integration.conftest import mortal
from tests.integration.harness import Behaviour, Dispatcher, Stage, slowly, stage, status, tenants, until
from tests.kafka.apache_kafka import ApacheKafka

__all__ = ["mortal"]

pytestmark = [needs_kafka, pytest.mark.faults, pytest.mark.all_faults, pytest.mark.timeout(2_400)]

EVENTS = int(os.environ.get("LEDGER_EVENTS", "100000"))
"""Smaller numbers help while the test itself is changed."""
KILLS = int(os.environ.get("LEDGER_KILLS", "20"))
MEMBERS = 4
MOST_REPEATS = max(EVENTS // 20, 1_000)
WAVE = EVENTS // (KILLS + 2)
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


@dataclass(frozen=True)
class Kill:
    """One SIGKILL of a member."""

    in_flight: int
    """POSTs in flight in the member, by its metric: at most a second old."""
    repeats: int
    """Events that all members repeated until the next kill."""


async def _in_flight(dispatcher: Dispatcher) -> int:
    _, text = await dispatcher.get("/metrics")
    found = re.search(r"^dispatcher_deliveries_in_flight (\S+)$", text, re.M)
    return 0 if found is None else int(float(found[1]))


def _backlog(scene: Stage) -> int:
    """Returns the number of events that no endpoint has accepted, without those of the dead tenant."""
    return sum(scene.expected[name] != DEAD for name in scene.missing())


def _prepare(scene: Stage) -> None:
    scene.mount([scene.webhook(tenant) for tenant in EVERYBODY])
    for tenant, behaviour in zip(EVERYBODY, MISBEHAVING.values(), strict=False):
        scene.receiver.behave(f"/{tenant.org}", behaviour)
    for tenant in EVERYBODY[len(MISBEHAVING) :]:
        scene.receiver.behave(f"/{tenant.org}", slowly(0.01))


async def _broker_fault(number: int, broker: ApacheKafka) -> None:
    """The broker restarts in order after a third of the kills, and is killed after two thirds."""
    if number == KILLS // 3:
        await broker.restart()
    elif number == 2 * KILLS // 3:
        broker.kill()
        await asyncio.sleep(1)
        await broker.start()


async def test_every_event_is_accounted_for_after_kills_and_broker_faults(
    mortal: ApacheKafka, tmp_path: Path, tell: Tell
) -> None:
    chance = random.Random(1)
    kills: list[Kill] = []
    async with AsyncExitStack() as stack, stage(mortal.bootstrap_servers, tmp_path, partitions=12) as scene:
        _prepare(scene)
        # Static members: a killed one gets its partitions back at once, and its repeats show before the next kill.
        members = [scene.dispatcher(f"m{n}", kafka={"group_instance_id": f"m{n}"}) for n in range(MEMBERS)]
        for member in members:
            await stack.enter_async_context(member)
            member.start()
        for member in members:
            await member.ready(90)
        await scene.produce(EVERYBODY, WAVE, "first")
        for number in range(KILLS):
            await scene.produce(EVERYBODY, WAVE, f"w{number}")
            backlog = chance.randint(WAVE // 8, WAVE // 2)
            await until(lambda most=backlog: _backlog(scene) <= most, "a shorter backlog", 300, members[0])
            victim = members[number % MEMBERS]
            before, in_flight = scene.receiver.repeats(), await _in_flight(victim)
            victim.kill9()
            victim.start()
            await victim.ready(120)
            await _broker_fault(number, mortal)
            await asyncio.sleep(2)
            kills.append(Kill(in_flight, scene.receiver.repeats() - before))
        await scene.produce(EVERYBODY, EVENTS - len(scene.expected), "last")
        await until(lambda: not _backlog(scene), "every event but the dead tenant's", 900, members[0])
        scene.receiver.behave(f"/{DEAD.org}", None)
        await scene.all_accepted(members[0], 900)
        await asyncio.sleep(2)
        row = await Row.of(f"ledger: {MEMBERS} members, kill -9 x{KILLS}", scene, *members, most_repeats=MOST_REPEATS)
    lost, repeats = row.lost, [one.repeats for one in kills]
    print(f"\nlost {lost} of {len(scene.expected)}; median of repeats per kill {statistics.median(repeats):g}")
    for number, one in enumerate(kills):
        print(f"kill {number:2}: POSTs in flight {one.in_flight:4}, repeats {one.repeats:5}")
    tell(row)
