"""The ops port: what changes something is for an operator on the process's own host, and for no web page there."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
import pytest

from dispatcher.config.settings import DeliverySettings, OpsSettings
from dispatcher.contract.tenant import TenantKey
from dispatcher.delivery.lane_scheduler import LaneScheduler
from dispatcher.health import HealthServer, Watched

LUMA = TenantKey("luma@AdobeOrg", "prod")
CHANGES = (f"/lanes/{LUMA.org}/{LUMA.sandbox}/enable", "/brakes/release")


class Ops:
    """A running ops endpoint with one suspended lane; counts brakes that were released."""

    def __init__(self) -> None:
        self.lanes = LaneScheduler(DeliverySettings())
        self.lane = self.lanes.lane(LUMA)
        self.lane.suspend("r1")
        self.released = 0

    def release(self) -> int:
        self.released += 1
        return 1

    @asynccontextmanager
    async def running(self) -> AsyncIterator[str]:
        watched = Watched(list, list, lambda: None, self.lanes, self.release, {})
        async with HealthServer(OpsSettings(host="127.0.0.1", port=0), watched) as server:
            yield f"http://127.0.0.1:{server.port}"

    @property
    def is_untouched(self) -> bool:
        return self.lane.suspended == "r1" and not self.released


async def posted(url: str, headers: dict[str, str], local: str = "127.0.0.1") -> int:
    connector = aiohttp.TCPConnector(local_addr=(local, 0))
    async with aiohttp.ClientSession(connector=connector) as session, session.post(url, headers=headers) as answer:
        return answer.status


@pytest.mark.parametrize("path", CHANGES)
async def test_an_operator_on_the_host_may(path: str) -> None:
    ops = Ops()
    async with ops.running() as base:
        assert await posted(base + path, {}) == 200
    assert not ops.is_untouched


@pytest.mark.parametrize("path", CHANGES)
async def test_nobody_from_elsewhere_may(path: str) -> None:
    ops = Ops()
    async with ops.running() as base:
        assert await posted(base + path, {}, local="127.0.0.2") == 403
        assert await posted(base + path, {"X-Forwarded-For": "127.0.0.1"}, local="127.0.0.2") == 403
    assert ops.is_untouched


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:9090"},  # a name of theirs that leads here now (DNS rebinding) looks like this
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-origin"},
    ],
)
@pytest.mark.parametrize("path", CHANGES)
async def test_no_page_in_a_browser_on_the_host_may(path: str, headers: dict[str, str]) -> None:
    """An operator with a port-forward open visits a page, which posts to localhost: browsers let it."""
    ops = Ops()
    async with ops.running() as base:
        assert await posted(base + path, headers) == 403
    assert ops.is_untouched
