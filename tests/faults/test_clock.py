"""Tests a wall clock that is set forwards and back while events are delivered and wait in the tiers."""

import asyncio
from collections.abc import Mapping
from pathlib import Path

import pytest

from dispatcher.kafka.topics import held_topic, retry_topics
from tests.faults import behaviours as bad
from tests.faults.conftest import Tell
from tests.faults.table import Row
from tests.field.readiness import reports, reports_nothing
from tests.integration.brokers import needs_kafka
from tests.integration.harness import Stage, status, tenants, until
from tests.integration.impatient import arguments
from tests.kafka import topics

pytestmark = [needs_kafka, pytest.mark.faults, pytest.mark.timeout(300)]

JUMPS_S = (6 * 3600, -6 * 3600, 90, -90, 0)
EDITED = {"X-Edited": "yes"}
"""Headers of a webhook: its edit closes the breaker, which would stay open for half a minute."""
REVIEW = "dispatcher.kafka.held_events:REVIEW_S"
EAGER = {REVIEW: 1.0, "dispatcher.kafka.clock_check:EVERY_S": 1.0}


class WallClock:
    """The clock of a dispatcher that was started by `jumping_clock`."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.set(0)

    def set(self, seconds: float) -> None:
        """Makes the clock wrong by this number of seconds from now on."""
        new = self.file.with_suffix(".new")
        new.write_text(str(seconds))
        new.replace(self.file)

    def program(self, waits: Mapping[str, float]) -> tuple[str, ...]:
        """Returns the program of a dispatcher with this clock and, by `module:NAME`, other waits."""
        return ("-m", "tests.faults.jumping_clock", str(self.file), *arguments(waits))


@pytest.mark.all_faults
async def test_a_wall_clock_that_jumps_under_load_loses_and_delays_nothing(scene: Stage, tell: Tell) -> None:
    """Of each wave a quarter is parked at first, so that it is due by one clock and looked at by another."""
    everybody = tenants(10)
    scene.mount([scene.webhook(tenant) for tenant in everybody])
    for tenant in everybody:
        scene.receiver.behave(f"/{tenant.org}", bad.now_and_then(status(503)))
    clock = WallClock(scene.directory / "clock")
    async with scene.dispatcher(retry={"soon_attempts": 0, "max_age": "24h"}) as dispatcher:
        dispatcher.program = clock.program({})
        dispatcher.start()
        await dispatcher.ready()
        for wave, seconds in enumerate(JUMPS_S):
            before = len(scene.receiver.accepted)
            await scene.produce(everybody, 600, f"j{wave}")
            await scene.accepted(before + 200, dispatcher)
            clock.set(seconds)
        await scene.all_accepted(dispatcher, 60)
    tell(await Row.of("wall clock jumps by hours and back", scene, dispatcher, most_repeats=0))


async def test_a_wall_clock_that_is_set_is_named_and_ends_no_waiting_event(scene: Stage) -> None:
    """A jump beyond the age limit would make every event that is parked or held a dead letter."""
    held, parked = tenants(2)
    scene.mount([scene.webhook(held) | {"paused": True}, scene.webhook(parked)])
    scene.receiver.behave(f"/{parked.org}", status(503))
    clock = WallClock(scene.directory / "clock")
    async with scene.dispatcher(retry={"soon_attempts": 0, "max_age": "24h", "tiers": ["1s"]}) as dispatcher:
        dispatcher.program = clock.program(EAGER)
        dispatcher.start()
        await dispatcher.ready()
        await scene.produce([held, parked], 20)

        async def waiting() -> bool:
            names = held_topic(scene.prefix), retry_topics(scene.prefix, [1.0])[0]
            ends = [sum((await topics.end_offsets(scene.bootstrap_servers, name)).values()) for name in names]
            return ends[0] == 10 and ends[1] >= 10

        await until(waiting, "ten held and ten parked", 60, dispatcher)
        for hours, how in ((48, "forward by 48h"), (-6, "back by 6h")):
            clock.set(hours * 3600)
            await reports(dispatcher, "clock", f"this machine's clock went {how}", ready=True, timeout_s=60)
            await asyncio.sleep(EAGER[REVIEW] + 3)
            assert await scene.dead() == {}
            clock.set(0)
            await reports_nothing(dispatcher, 60)
        scene.receiver.behave(f"/{parked.org}", None)
        scene.mount([scene.webhook(held), scene.webhook(parked, headers=EDITED)])
        await scene.all_accepted(dispatcher, 60)
    assert await scene.dead() == {}


@pytest.mark.all_faults
async def test_a_clock_ahead_of_the_brokers_from_the_start_is_named_though_nothing_is_delivered(scene: Stage) -> None:
    """Their time is known if one of the dispatcher's topics carries it."""
    (tenant,) = tenants(1)
    scene.mount([scene.webhook(tenant)])
    scene.receiver.behave(f"/{tenant.org}", status(503))
    for tier in scene.tier_topics:
        await topics.set_config(scene.bootstrap_servers, tier, {"message.timestamp.type": "LogAppendTime"})
    clock = WallClock(scene.directory / "clock")
    clock.set(3 * 3600)
    async with scene.dispatcher(retry={"soon_attempts": 0}) as dispatcher:
        dispatcher.program = clock.program({})
        dispatcher.start()
        await scene.produce([tenant], 5)
        await reports(dispatcher, "clock", "the brokers' clock is 3h behind this machine's", ready=True, timeout_s=60)


@pytest.mark.all_faults
async def test_a_clock_behind_the_brokers_is_named(scene: Stage) -> None:
    """Their time is known if the topic's records carry it."""
    (tenant,) = tenants(1)
    scene.mount([scene.webhook(tenant)])
    await topics.set_config(scene.bootstrap_servers, scene.topic, {"message.timestamp.type": "LogAppendTime"})
    clock = WallClock(scene.directory / "clock")
    clock.set(-7200)
    async with scene.dispatcher() as dispatcher:
        dispatcher.program = clock.program({})
        dispatcher.start()
        for number in range(10):  # for a moment, the broker still stamps records as it did before the change
            await scene.produce([tenant], 5, f"event-{number}")
            await scene.all_accepted(dispatcher, 60)
        await reports(dispatcher, "clock", "the brokers' clock is 2h ahead of this machine's", ready=True, timeout_s=60)
