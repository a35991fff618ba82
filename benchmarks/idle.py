"""What a resting connection of the lean transport holds in memory: `python -m benchmarks.idle URL CA COUNT` prints kilobytes.

The URL must answer late, so that COUNT requests at once need as many connections.
"""

import asyncio
import gc
import sys

import psutil
import uvloop

from dispatcher.config.settings import DeliverySettings, EgressSettings
from dispatcher.transport import open_transport
from dispatcher.transport.endpoint import Endpoint
from dispatcher.transport.request import Request


async def measure(url: str, ca: str, count: int) -> float:
    """Kilobytes a connection: what the process grew by, when the requests are over and only connections are left."""
    delivery = DeliverySettings.model_validate({"transport": "lean", "max_in_flight": count, "connect_timeout": 30})
    egress = EgressSettings.model_validate({"allow": ["127.0.0.0/8", "localhost"], "ca_bundle": ca})
    request = Request(Endpoint.at(url), (), b"x" * 662, 30, 30)
    process = psutil.Process()
    async with open_transport(delivery, egress) as transport:

        async def at_once(many: int) -> int:
            answers = await asyncio.gather(*[transport.post(request) for _ in range(many)])
            assert all(one.status == 204 for one in answers), answers
            gc.collect()
            return int(process.memory_info().rss)

        before = await at_once(10)
        return (await at_once(count) - before) / (count - 10) / 1000


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        print(runner.run(measure(sys.argv[1], sys.argv[2], int(sys.argv[3]))))
