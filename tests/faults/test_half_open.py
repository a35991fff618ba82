"""Connections to the ops port that never finish a request: deliveries and probes don't notice them."""

import asyncio
import re
from contextlib import suppress

import pytest

from tests.integration.brokers import needs_kafka
from tests.integration.harness import Dispatcher, Stage, slowly, tenants, until

pytestmark = [needs_kafka, pytest.mark.timeout(300)]

DESCRIPTORS = 512
PEERS, EACH = 40, 15
"""More connections than the process has descriptors, from more peers than share the port."""

# The soft and the hard limit, so that the process can't raise it.
_LIMITED = f"""
import resource, runpy, sys
resource.setrlimit(resource.RLIMIT_NOFILE, ({DESCRIPTORS}, {DESCRIPTORS}))
sys.argv[0] = "dispatcher"
runpy.run_module("dispatcher", run_name="__main__", alter_sys=False)
"""
BEGINNINGS = (
    b"",
    b"GET /livez HTTP/1.1\r\nHost: x\r\nX-Slow: ",
    b"POST /brakes/release HTTP/1.1\r\nContent-Length: 9\r\n\r\n",
)


async def _hold(port: int, peer: str, beginning: bytes) -> None:
    """Opens one connection after another, begins a request, and waits until the server has enough of it."""
    while True:
        with suppress(OSError):
            reader, writer = await asyncio.open_connection("127.0.0.1", port, local_addr=(peer, 0))
            try:
                writer.write(beginning)
                await reader.read()
            finally:
                writer.close()
        await asyncio.sleep(0.5)


async def _metric(dispatcher: Dispatcher, pattern: str) -> float:
    _, text = await dispatcher.get("/metrics")
    return sum(float(value) for value in re.findall(rf"^{pattern} ([\d.e+]+)$", text, re.M))


async def test_half_open_connections_leave_deliveries_untouched(scene: Stage) -> None:
    everybody = tenants(6)
    scene.mount([scene.webhook(tenant) for tenant in everybody])
    for tenant in everybody[:2]:
        scene.receiver.behave(f"/{tenant.org}", slowly(0.05))
    async with scene.dispatcher() as dispatcher:
        dispatcher.program = ("-c", _LIMITED)
        dispatcher.start()
        await dispatcher.ready()
        async with asyncio.TaskGroup() as strangers:
            tasks = [
                strangers.create_task(
                    _hold(dispatcher.ops_port, f"127.0.1.{number % PEERS + 1}", BEGINNINGS[number % len(BEGINNINGS)])
                )
                for number in range(PEERS * EACH)
            ]
            closed = r'dispatcher_http_connections_closed_total\{port="ops",reason="port_limit"\}'

            async def full() -> bool:
                return await _metric(dispatcher, closed) > PEERS

            await until(full, "a port that is full", 60, dispatcher)
            for wave in range(3):
                await scene.produce(everybody, 200, f"w{wave}")
                assert await dispatcher.answers("/livez")
                await scene.all_accepted(dispatcher, 60)
            assert await _metric(dispatcher, r'dispatcher_http_connections\{port="ops"\}') <= DESCRIPTORS // 8
            assert await _metric(dispatcher, "process_open_fds") < DESCRIPTORS // 2
            assert await _metric(dispatcher, r'dispatcher_delivery_attempts_total\{outcome="retryable",[^}]*\}') == 0
            assert await _metric(dispatcher, r'dispatcher_circuit_breaker_transitions_total\{to="open"\}') == 0
            for task in tasks:
                task.cancel()
    assert max(scene.receiver.seen.values()) == 1, "every event was delivered at the first attempt"
