"""The ops port: what changes something is for an operator on the process's own host, and for no web page there."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from dispatcher.cli.ops_client import ask
from dispatcher.config.secrets import Secret, SecretSource
from dispatcher.config.settings import DeliverySettings, OpsSettings
from dispatcher.contract.tenant import TenantKey
from dispatcher.delivery.lane_scheduler import LaneScheduler
from dispatcher.health import HealthServer, OpsCallbacks

LUMA = TenantKey("luma@AdobeOrg", "prod")
CHANGES = (f"/lanes/{LUMA.org}/{LUMA.sandbox}/enable", "/brakes/release")


class Ops:
    """A running ops endpoint with one suspended lane; counts brakes that were released."""

    def __init__(self) -> None:
        self.lanes = LaneScheduler(DeliverySettings())
        self.lane = self.lanes.lane(LUMA)
        self.lane.suspend()
        self.released = 0

    def release(self) -> int:
        self.released += 1
        return 1

    @asynccontextmanager
    async def running(self, **settings: Any) -> AsyncIterator[str]:
        callbacks = OpsCallbacks(list, list, lambda: None, self.lanes, self.release, {})
        async with HealthServer(OpsSettings(host="127.0.0.1", port=0, **settings), callbacks) as server:
            yield f"http://127.0.0.1:{server.port}"

    @property
    def is_untouched(self) -> bool:
        return self.lane.endpoint.suspended and not self.released


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
async def test_other_hosts_are_refused(path: str) -> None:
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


OPEN = ("/livez", "/readyz", "/")
OF_TENANTS = ("/lanes", f"/lanes/{LUMA.org}/{LUMA.sandbox}", "/configz")
TOKEN = "a-token-of-at-least-thirty-two-bytes"


async def got(url: str, token: str | None = None, local: str = "127.0.0.2", scheme: str = "Bearer") -> int:
    headers = {} if token is None else {"Authorization": f"{scheme} {token}"}
    connector = aiohttp.TCPConnector(local_addr=(local, 0))
    async with aiohttp.ClientSession(connector=connector) as session, session.get(url, headers=headers) as answer:
        return answer.status


async def test_tenants_data_is_closed_to_other_hosts_by_default() -> None:
    async with Ops().running() as base:
        assert {path: await got(base + path) for path in OF_TENANTS} == dict.fromkeys(OF_TENANTS, 403)
        assert {await got(base + path, local="127.0.0.1") for path in OF_TENANTS} == {200}
        assert {await got(base + path) for path in (*OPEN, "/metrics")} == {200}


async def test_a_token_opens_it_and_closes_the_metrics() -> None:
    async with Ops().running(token=Secret(TOKEN.encode())) as base:
        for path in (*OF_TENANTS, "/metrics"):
            assert await got(base + path, TOKEN) == 200
            assert await got(base + path, TOKEN, scheme="bearer") == 200
            assert await got(base + path) == 401
            for wrong in ("", TOKEN[:-1], f"{TOKEN}x"):
                assert await got(base + path, wrong) == 401
            assert await got(base + path, TOKEN, scheme="Basic") == 401
            assert await got(base + path, local="127.0.0.1") == 200
        assert {await got(base + path) for path in OPEN} == {200}, "probes have no token"


async def test_a_token_does_not_allow_changes_from_other_hosts() -> None:
    ops = Ops()
    async with ops.running(token=Secret(TOKEN.encode())) as base:
        for path in CHANGES:
            assert await posted(base + path, {"Authorization": f"Bearer {TOKEN}"}, local="127.0.0.2") == 403
    assert ops.is_untouched


async def test_a_rotated_token_needs_no_restart(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text(TOKEN)
    async with Ops().running(token=Secret(TOKEN.encode(), {"file": "token"}, file)) as base:
        file.write_text(TOKEN.upper())
        assert (await got(f"{base}/lanes", TOKEN.upper()), await got(f"{base}/lanes", TOKEN)) == (200, 401)
        file.unlink()
        assert await got(f"{base}/lanes", TOKEN.upper()) == 200, "the last good one"


async def test_a_token_that_is_not_utf_8_is_refused() -> None:
    async with Ops().running(token=Secret(TOKEN.encode())) as base:
        port = int(base.rpartition(":")[2])
        reader, writer = await asyncio.open_connection("127.0.0.1", port, local_addr=("127.0.0.2", 0))
        writer.write(b"GET /lanes HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer \xff\r\nConnection: close\r\n\r\n")
        async with asyncio.timeout(60):
            assert (await reader.readline()).startswith(b"HTTP/1.1 401 ")
        writer.close()


@pytest.mark.parametrize("padding", [" ", "\t", " \n", "\n\n"])
async def test_blanks_around_a_token_do_not_count(tmp_path: Path, padding: str) -> None:
    file = tmp_path / "token"
    file.write_text(TOKEN + padding)
    given = {"host": "127.0.0.1", "port": 0, "token": {"file": str(file)}}
    settings = OpsSettings.model_validate(given, context=SecretSource(tmp_path).as_context())
    async with Ops().running(token=settings.token) as base:
        assert await got(f"{base}/lanes", TOKEN) == 200
        assert await got(f"{base}/lanes", TOKEN + " ") == 200
        assert await got(f"{base}/lanes", TOKEN + "x") == 401
        status, _ = await ask(base, "/lanes", settings)
        assert status == 200
