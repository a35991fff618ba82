"""Nothing is left behind: tasks, sockets and files of the process after a load are those after the same load before."""

import pytest

from tests.faults import behaviours as bad
from tests.integration.brokers import needs_kafka
from tests.integration.harness import Left, Stage, slowly, status, tenants

pytestmark = [needs_kafka, pytest.mark.faults, pytest.mark.timeout(300)]


async def test_a_load_with_failures_leaves_no_socket_behind(scene: Stage) -> None:
    everybody = tenants(8)
    scene.mount([scene.webhook(tenant) for tenant in everybody])
    for number, tenant in enumerate(everybody):
        failing = (status(503), bad.reset_mid_error_body, slowly(0.05))[number % 3]
        scene.receiver.behave(f"/{tenant.org}", failing if number % 3 == 2 else bad.now_and_then(failing))
    after: list[Left] = []
    async with scene.dispatcher(delivery={"lane_start": 4, "lane_max": 4}) as dispatcher:
        dispatcher.start()
        for wave in range(4):
            await scene.produce(everybody, 400, f"w{wave}")
            await scene.all_accepted(dispatcher, 60)
            if wave:  # the first one opens connections to the broker, each with a task, when they are first used
                after.append(await dispatcher.least_left())
    kept_alive = 4 * len(everybody)
    assert after[2].files <= after[0].files + kept_alive, after
    assert after[2].files <= after[1].files + 8, f"it does not grow from wave to wave: {after}"
    assert after[2].tasks <= after[0].tasks + 2, after
