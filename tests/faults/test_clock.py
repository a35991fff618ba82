"""The wall clock of the process jumps: an operator sets it, a time server steps it, a machine wakes from sleep.

libfaketime stands before the C library's clocks, so that the jump happens under the running process. Monotonic time goes
on as it does in such a case.
"""

import asyncio
import os
import re
from datetime import datetime
from itertools import chain
from pathlib import Path

import pytest

from tests.faults.conftest import Tell
from tests.faults.table import Row
from tests.integration.brokers import needs_kafka
from tests.integration.harness import Stage, at_first, status, tenants

LIBRARY = next(chain(*(Path(base).glob("*/faketime/libfaketime.so.1") for base in ("/usr/lib", "/usr/lib64"))), None)
COUNT = 2_000

pytestmark = [needs_kafka, pytest.mark.faults, pytest.mark.timeout(180)]


class Clock:
    """The wall clock of a process that is started with `env`."""

    def __init__(self, directory: Path) -> None:
        if LIBRARY is None:
            if os.environ.get("CI") == "true":
                pytest.fail("CI makes the clock jump; libfaketime is not installed: make system")
            pytest.skip("libfaketime is not installed: make system")
        self._file = directory / "offset"
        self.set(0)
        self.env = {
            "LD_PRELOAD": str(LIBRARY), "FAKETIME_TIMESTAMP_FILE": str(self._file), "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1", "DONT_FAKE_MONOTONIC": "1",
        }  # fmt: skip

    def set(self, offset_s: int) -> None:
        """Let it go wrong by so much from now on."""
        beside = self._file.with_suffix(".new")
        beside.write_text(f"{offset_s:+d}s\n")
        beside.replace(self._file)


async def test_a_clock_that_jumps_ahead_and_back_loses_and_repeats_nothing(
    scene: Stage, tell: Tell, tmp_path: Path
) -> None:
    clock = Clock(tmp_path)
    fine, failing_first = tenants(8)[:4], tenants(8)[4:]
    scene.mount([scene.webhook(tenant) for tenant in (*fine, *failing_first)])
    for tenant in failing_first:  # parked once: it is due by a clock that is another one by then
        scene.receiver.behave(f"/{tenant.org}", at_first(status(404)))
    async with scene.dispatcher() as dispatcher:
        dispatcher.env = clock.env
        dispatcher.start()
        await dispatcher.ready()
        for number, offset_s in enumerate((0, 1200, -1200, 30, 0)):
            clock.set(offset_s)
            await scene.produce([*fine, *failing_first], COUNT // 5, f"{number}-")
            await asyncio.sleep(1)
        await scene.all_accepted(dispatcher, 60)
    stamps = [datetime.fromisoformat(stamp) for stamp in re.findall(r'"timestamp": ?"([^"]+)"', dispatcher.log)]
    assert (max(stamps) - min(stamps)).total_seconds() > 2_000, "the process saw its clock jump"
    tell(await Row.of("clock jumps by 20 min, ahead and back", scene, dispatcher, most_repeats=0))
