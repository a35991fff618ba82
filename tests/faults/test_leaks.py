"""Nothing is left behind: sockets and files of the process after a load are those after the same load before."""

import re

import psutil
import pytest

from tests.faults import behaviours as bad
from tests.integration.brokers import needs_kafka
from tests.integration.harness import Dispatcher, Stage, slowly, status, tenants, until

pytestmark = [needs_kafka, pytest.mark.faults, pytest.mark.timeout(150)]


async def _descriptors(dispatcher: Dispatcher) -> int:
    """Open descriptors once nothing is under way."""

    async def idle() -> bool:
        _, text = await dispatcher.get("/metrics")
        values = dict(re.findall(r"^(dispatcher_(?:unfinished_records|deliveries_in_flight)) ([\d.]+)$", text, re.M))
        return len(values) == 2 and not any(map(float, values.values()))

    await until(idle, "nothing under way", 30, dispatcher)
    (process,) = [one for one in psutil.Process().children() if str(dispatcher.path) in one.cmdline()]
    return process.num_fds()


async def test_a_load_with_failures_leaves_no_socket_behind(scene: Stage) -> None:
    everybody = tenants(8)
    scene.mount([scene.webhook(tenant) for tenant in everybody])
    for number, tenant in enumerate(everybody):
        failing = (status(503), bad.reset_mid_body, slowly(0.05))[number % 3]
        scene.receiver.behave(f"/{tenant.org}", failing if number % 3 == 2 else bad.now_and_then(failing))
    after: list[int] = []
    async with scene.dispatcher(delivery={"lane_start": 4, "lane_max": 4}) as dispatcher:
        dispatcher.start()
        for wave in range(3):
            await scene.produce(everybody, 400, f"w{wave}")
            await scene.all_accepted(dispatcher, 60)
            after.append(await _descriptors(dispatcher))
    kept_alive = 4 * len(everybody)
    assert after[2] <= after[0] + kept_alive, after
    assert after[2] <= after[1] + 8, f"it does not grow from wave to wave: {after}"
