"""Request heads that arrive slowly or never end, at the real ports: ops, ops with TLS, and console."""

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
import trustme
from prometheus_client import REGISTRY

from dispatcher import listener
from dispatcher.config.ops_tls import OpsTls
from dispatcher.config.settings import DeliverySettings, OpsSettings
from dispatcher.delivery.lane_scheduler import LaneScheduler
from dispatcher.health import HealthServer, OpsCallbacks
from dispatcher.listener import connection
from dispatcher.listener import port as port_module
from tests.console.api.conftest import StartConsole
from tests.listener.waiting import read_to_the_end, until

pytestmark = [
    pytest.mark.parametrize("empty_url", ["sqlite"], indirect=True),  # no database has a part in this
    pytest.mark.usefixtures("short"),
]

LINE = b"GET /livez HTTP/1.1\r\n"
REQUEST = LINE + b"Host: x\r\n"
MUCH = 64 * 1024 * 1024
"""More than sockets and buffers between the two sides hold."""


@dataclass
class Port:
    """A port and the way to it."""

    number: int
    setting: str
    tls: ssl.SSLContext | None = None

    async def connect(self, local: str = "127.0.0.1") -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        name = None if self.tls is None else "localhost"
        return await asyncio.open_connection(
            "127.0.0.1", self.number, ssl=self.tls, server_hostname=name, local_addr=(local, 0)
        )

    async def status(self, local: str = "127.0.0.1") -> int:
        """The status of an ordinary request on a connection of its own."""
        reader, writer = await self.connect(local)
        writer.write(REQUEST + b"Connection: close\r\n\r\n")
        answer = await read_to_the_end(reader)
        writer.close()
        return int(answer.split(b" ", 2)[1])

    @property
    def connections(self) -> float:
        return REGISTRY.get_sample_value("dispatcher_http_connections", {"port": self.setting}) or 0.0

    def closed(self, reason: str) -> float:
        labels = {"port": self.setting, "reason": reason}
        return REGISTRY.get_sample_value("dispatcher_http_connections_closed_total", labels) or 0.0


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """A port has few connections. A test that waits for the end of a head's time shortens that once it has connected."""
    monkeypatch.setattr(port_module, "_SWEEP_S", 0.05)
    monkeypatch.setattr(connection, "HEAD_S", 3600.0)
    monkeypatch.setattr(port_module, "MAX_CONNECTIONS", 48)


@asynccontextmanager
async def opened(kind: str, start: StartConsole, directory: Path) -> AsyncIterator[Port]:
    if kind == "console":
        async with start(trusted_proxies=["127.0.0.9/32"]) as console:
            yield Port(console.server.port, "console")
        return
    context, tls = None, None
    if kind == "ops with TLS":
        authority = trustme.CA()
        authority.issue_cert("localhost").private_key_and_cert_chain_pem.write_to_path(directory / "both.pem")
        tls = OpsTls(certificate=directory / "both.pem", key=directory / "both.pem")
        context = ssl.create_default_context()
        authority.configure_trust(context)
    callbacks = OpsCallbacks(list, list, lambda: None, LaneScheduler(DeliverySettings()), lambda: 0, {})
    async with HealthServer(OpsSettings(host="127.0.0.1", port=0, tls=tls), callbacks) as server:
        yield Port(server.port, "ops", context)


@pytest.fixture(params=["ops", "ops with TLS", "console"])
async def port(request: pytest.FixtureRequest, start: StartConsole, tmp_path: Path) -> AsyncIterator[Port]:
    async with opened(request.param, start, tmp_path) as one:
        yield one


@pytest.mark.parametrize(
    "piece",
    [b"G", b"\r\n", b"X: y\r\n", b"X-One: "],
    ids=["one letter", "empty lines", "header lines", "one line"],
)
async def test_pieces_that_keep_coming_gain_no_time(port: Port, piece: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """One piece at a time, each soon after the one before: the time counts from the first one."""
    reader, writer = await port.connect()
    if piece.startswith(b"X"):
        writer.write(LINE)
    await until(lambda: port.connections == 1)
    monkeypatch.setattr(connection, "HEAD_S", 0.5)
    answer = asyncio.create_task(read_to_the_end(reader))
    async with asyncio.timeout(60):
        while not answer.done():
            with suppress(OSError):
                writer.write(piece)
                await writer.drain()
            await asyncio.sleep(0.1)
    assert b"HTTP/1.1 200" not in await answer
    writer.close()
    await until(lambda: port.connections == 0)
    monkeypatch.setattr(connection, "HEAD_S", 3600.0)
    assert await port.status() == 200


@pytest.mark.parametrize(
    ("beginning", "piece"),
    [
        (LINE, b"X-Header: y\r\n" * 1000),
        (LINE + b"X-Header: ", b"y" * 10_000),
        (b"GET /", b"a" * 10_000),
        (b"", b"A" * 10_000),
        (LINE, b" folded" * 1000),
        (LINE + b"Cookie: ", b"a=b; " * 1000),
    ],
    ids=["header lines", "one header", "one path", "one method", "no colon", "cookies"],
)
async def test_a_head_without_end_is_refused_before_its_time_is_over(
    port: Port, beginning: bytes, piece: bytes
) -> None:
    """Its size is bounded, whatever the time: else a fast client would fill the memory."""
    reader, writer = await port.connect()
    sent = len(beginning)
    writer.write(beginning)
    with suppress(OSError):
        async with asyncio.timeout(60):
            while sent < MUCH and not writer.is_closing() and not reader.at_eof():
                writer.write(piece)
                sent += len(piece)
                await writer.drain()
                await asyncio.sleep(0)
    assert sent < MUCH, "all of it was read"
    writer.close()
    await until(lambda: port.connections == 0)
    assert await port.status() == 200


async def test_many_slow_connections_of_one_peer_leave_the_others_alone(port: Port) -> None:
    held = []
    refused = port.closed("peer_limit")
    async with asyncio.timeout(60):
        while port.closed("peer_limit") == refused:
            with suppress(OSError):  # it was closed to make room, perhaps before its handshake ended
                held.append(await port.connect("127.0.0.5"))
                held[-1][1].write(REQUEST)
    assert await port.status("127.0.0.6") == 200
    assert await port.status("127.0.0.5") == 200, "the peer's own requests make room for themselves"
    for _, writer in held:
        writer.close()


async def test_a_trusted_proxy_may_hold_more_than_a_peer_but_no_head_for_longer(
    start: StartConsole, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened("console", start, tmp_path) as port:
        share = max(8, listener.limit_of_port() // 4)
        timeouts = port.closed("head_timeout")
        slow = [await port.connect("127.0.0.9") for _ in range(share + 5)]
        for _, writer in slow:
            writer.write(REQUEST)
        await until(lambda: port.connections == share + 5)
        assert await port.status("127.0.0.9") == 200
        monkeypatch.setattr(connection, "HEAD_S", 0.1)
        await until(lambda: port.closed("head_timeout") == timeouts + share + 5)
        for reader, writer in slow:
            assert (await read_to_the_end(reader)).startswith(b"HTTP/1.1 408 ")
            writer.close()
