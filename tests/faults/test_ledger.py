"""The ledger run: four members, kills, broker faults, and tenants that misbehave. Every event is accounted for.

`make faults` prints the events that were lost, and for each kill its repeats and the POSTs in flight at that moment.
"""

import asyncio
import os
import random
import re
import statistics
import time
from collections import Counter
from collections.abc import Container, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import pytest

from tests.faults import behaviours as bad
from tests.faults.conftest import Tell
from tests.faults.table import Row
from tests.integration.brokers import needs_kafka
from tests.integration.conftest import mortal
from tests.integration.harness import Behaviour, Dispatcher, Receiver, Stage, slowly, stage, status, tenants, until
from tests.kafka.apache_kafka import ApacheKafka

__all__ = ["mortal"]

pytestmark = [needs_kafka, pytest.mark.faults, pytest.mark.all_faults, pytest.mark.timeout(2_400)]

EVENTS = int(os.environ.get("LEDGER_EVENTS", "100000"))
"""Smaller numbers help while the test itself is changed."""
KILLS = int(os.environ.get("LEDGER_KILLS", "20"))
MEMBERS = 4
SESSION_S = 12.0
UNDER_WAY_S = 3.0
"""A request that a killed member has sent may be accepted so much later."""
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
class Fault:
    """One SIGKILL of a member, or one fault of the broker."""

    what: str
    at: float
    until: float
    """Seconds of the monotonic clock: begin, and when the member or the broker was ready again."""
    in_flight: int
    """POSTs in flight by the metric, in the member that is killed, or in all members."""
    per_second: float
    """Events accepted a second just before, from the member that is killed, or from all members."""

    @property
    def bound(self) -> float:
        """The most repeats that the median fault may cause."""
        return max(2 * self.in_flight, self.per_second / 10)


@dataclass
class Repeats:
    """Which fault each repeat comes from."""

    of_fault: Counter[Fault]
    """The event was accepted before the fault, and again after it."""
    parked_twice: int
    """The fault came between parking and commit, so that two copies of the event were retried."""
    unexplained: list[str]
    """No fault came between the event's first request and the repeat."""

    @classmethod
    def of(cls, receiver: Receiver, faults: Sequence[Fault], parked: Container[str]) -> Self:
        """Looks for the first fault after each event's first acceptance. `parked`: was parked again and again."""
        result = cls(Counter(), 0, [])
        for name, again in receiver.accepted_again:
            first, seen = receiver.accepted_at[name], receiver.seen_at[name]
            after = [one for one in faults if first - UNDER_WAY_S <= one.until and one.at <= again]
            if after:
                result.of_fault[after[0]] += 1
            elif name in parked or any(seen - UNDER_WAY_S <= one.until and one.at <= again for one in faults):
                result.parked_twice += 1
            else:
                result.unexplained.append(name)
        return result


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


async def _fault(what: str, scene: Stage, *members: Dispatcher) -> Fault:
    """Measures for a second what goes on, right before the fault."""
    before = len(scene.receiver.accepted)
    began = time.monotonic()
    await asyncio.sleep(1)
    in_flight = sum([await _in_flight(one) for one in members])
    now = time.monotonic()
    rate = (len(scene.receiver.accepted) - before) / (now - began) * len(members) / MEMBERS
    return Fault(what, now, now, in_flight, rate)


def _over(fault: Fault) -> Fault:
    """Returns the fault with its end: rebalances and lost acknowledgements belong to it, a session long."""
    return replace(fault, until=time.monotonic() + SESSION_S)


async def _broker_fault(number: int, broker: ApacheKafka, scene: Stage, members: Sequence[Dispatcher]) -> list[Fault]:
    """The broker restarts in order after a third of the kills, and is killed after two thirds."""
    if number == KILLS // 3:
        fault = await _fault("broker restarted", scene, *members)
        await broker.restart()
        return [_over(fault)]
    if number == 2 * KILLS // 3:
        fault = await _fault("broker killed", scene, *members)
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
        _prepare(scene)
        # Static members: a killed one gets its partitions back at once, and its repeats show before the next kill.
        # Long timeouts: an answer that a loaded machine gives too late would be a repeat that no fault explains.
        delivery = {"connect_timeout": "30s", "timeout": "30s"}
        members = [
            scene.dispatcher(f"m{n}", kafka={"group_instance_id": f"m{n}"}, delivery=delivery) for n in range(MEMBERS)
        ]
        for member in members:
            await stack.enter_async_context(member)
            member.start()
        for member in members:
            await member.ready(300)
        await scene.produce(EVERYBODY, WAVE, "first")
        for number in range(KILLS):
            await scene.produce(EVERYBODY, WAVE, f"w{number}")
            backlog = chance.randint(WAVE // 8, WAVE // 2)
            await until(lambda most=backlog: _backlog(scene) <= most, "a shorter backlog", 300, members[0])
            victim = members[number % MEMBERS]
            fault = await _fault(f"kill {number}", scene, victim)
            victim.kill9()
            victim.start()
            await victim.ready(300)
            faults.append(_over(fault))
            faults += await _broker_fault(number, mortal, scene, members)
        await scene.produce(EVERYBODY, EVENTS - len(scene.expected), "last")
        await until(lambda: not _backlog(scene), "every event but the dead tenant's", 900, members[0])
        scene.receiver.behave(f"/{DEAD.org}", None)
        await scene.all_accepted(members[0], 900)
        await asyncio.sleep(2)
        row = await Row.of(f"ledger: {MEMBERS} members, kill -9 x{KILLS}", scene, *members, most_repeats=EVENTS)
    parked = {name for name, tenant in scene.expected.items() if tenant == DEAD}
    repeats = Repeats.of(scene.receiver, faults, parked)
    _print(row, faults, repeats)
    tell(row)
    assert not repeats.unexplained
    kills = [one for one in faults if one.what.startswith("kill")]
    assert statistics.median(repeats.of_fault[one] for one in kills) <= statistics.median(one.bound for one in kills)


def _print(row: Row, faults: Sequence[Fault], repeats: Repeats) -> None:
    print(f"\nlost {row.lost} of {row.events}; repeats {row.repeats}, of which parked twice {repeats.parked_twice}")
    for one in faults:
        print(
            f"{one.what:16}: repeats {repeats.of_fault[one]:5}, POSTs in flight {one.in_flight:4}, "
            f"{one.per_second:6.0f} events/s, bound {one.bound:5.0f}"
        )
    print(f"unexplained: {len(repeats.unexplained)} {repeats.unexplained[:10]}")
