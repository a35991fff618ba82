"""Tests a wall clock that is set forwards and back while events are delivered and wait in the tiers."""

from pathlib import Path

import pytest

from tests.faults import behaviours as bad
from tests.faults.conftest import Tell
from tests.faults.table import Row
from tests.integration.brokers import needs_kafka
from tests.integration.harness import Stage, status, tenants

pytestmark = [needs_kafka, pytest.mark.faults, pytest.mark.timeout(200)]

JUMPS_S = (6 * 3600, -6 * 3600, 90, -90, 0)


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


@pytest.mark.all_faults
async def test_a_wall_clock_that_jumps_under_load_loses_and_delays_nothing(scene: Stage, tell: Tell) -> None:
    """Of each wave a quarter is parked at first, so that it is due by one clock and looked at by another."""
    everybody = tenants(10)
    scene.mount([scene.webhook(tenant) for tenant in everybody])
    for tenant in everybody:
        scene.receiver.behave(f"/{tenant.org}", bad.now_and_then(status(503)))
    clock = WallClock(scene.directory / "clock")
    async with scene.dispatcher(retry={"soon_attempts": 0, "max_age": "24h"}) as dispatcher:
        dispatcher.program = ("-m", "tests.faults.jumping_clock", str(clock.file))
        dispatcher.start()
        await dispatcher.ready()
        for wave, seconds in enumerate(JUMPS_S):
            before = len(scene.receiver.accepted)
            await scene.produce(everybody, 600, f"j{wave}")
            await scene.accepted(before + 200, dispatcher)
            clock.set(seconds)
        await scene.all_accepted(dispatcher, 60)
    tell(await Row.of("wall clock jumps by hours and back", scene, dispatcher, most_repeats=0))
