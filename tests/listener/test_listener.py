"""An HTTP port against peers that never finish, never read, or come in great numbers."""

import asyncio
import socket
from collections.abc import AsyncIterator, Callable, MutableMapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from ipaddress import ip_network
from typing import Any

import pytest
from aiohttp import web
from pydantic import ValidationError
from structlog.testing import capture_logs

from dispatcher import listener
from dispatcher.config.console_settings import ConsoleSettings
from dispatcher.config.settings import OpsSettings
from dispatcher.errors import DispatcherError
from dispatcher.listener import Listener, Networks, connection
from dispatcher.listener import port as port_module
from dispatcher.listener.sockets import listening_sockets
from tests.listener.waiting import until

HEAD = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
POST = b"POST /body HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\n"


@dataclass
class Client:
    """One connection."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    @classmethod
    async def opened(cls, port: int, *, local: str = "127.0.0.1", host: str = "127.0.0.1") -> "Client":
        return cls(*await asyncio.open_connection(host, port, local_addr=(local, 0)))

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    async def answer(self) -> bytes:
        """The head of the next answer, and its body."""
        async with asyncio.timeout(60):
            head = await self.reader.readuntil(b"\r\n\r\n")
            length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0] or b"0")
            return head + await self.reader.readexactly(length)

    async def rest(self) -> bytes:
        """What comes until the server closes the connection."""
        received = b""
        async with asyncio.timeout(60):
            with suppress(ConnectionError):
                while data := await self.reader.read(65536):
                    received += data
        return received

    @property
    def is_open(self) -> bool:
        return not self.reader.at_eof() and self.reader.exception() is None


@dataclass
class Port:
    """A running listener, and those who connect to it."""

    listener: Listener
    clients: list[Client] = field(default_factory=list)

    async def client(self, **options: str) -> Client:
        client = await Client.opened(self.listener.port, **options)
        self.clients.append(client)
        return client


@asynccontextmanager
async def running(*, trusted: Networks = (), limit: int = 0, limit_of_peer: int = 0) -> AsyncIterator[Port]:
    waiting = asyncio.Event()

    async def answer(request: web.Request) -> web.Response:
        return web.Response(text=f"hello {request.remote}")

    async def read(request: web.Request) -> web.Response:
        return web.Response(body=await request.read())

    async def wait(_: web.Request) -> web.Response:
        await waiting.wait()
        return web.Response(text="waited")

    async def much(_: web.Request) -> web.Response:
        return web.Response(body=bytes(64 * 1024 * 1024))

    app = web.Application()
    app.add_routes([web.get("/", answer), web.post("/body", read), web.get("/wait", wait), web.get("/much", much)])
    one = Listener(app, setting="ops", host="127.0.0.1", port=0, trusted=trusted, shutdown_s=0.1)
    one.limit = limit or one.limit
    one.limit_of_peer = limit_of_peer or one.limit_of_peer
    async with one:
        port = Port(one)
        try:
            yield port
        finally:
            waiting.set()
            for client in port.clients:
                client.writer.close()


Shorten = Callable[..., None]


@pytest.fixture
def shorten(monkeypatch: pytest.MonkeyPatch) -> Shorten:
    """Returns a function that makes limits on time short, by name. All are long before.

    A test calls it when everything that must happen within the limit is done.
    """

    def to(seconds: float, *names: str) -> None:
        for name in names:
            monkeypatch.setattr(connection, name, seconds)

    monkeypatch.setattr(port_module, "_SWEEP_S", 0.02)
    to(3600.0, "HEAD_S", "IDLE_S", "BODY_S", "REQUEST_S")
    return partial(to, 0.3)


async def test_requests_on_one_connection_are_answered() -> None:
    async with running() as port:
        client = await port.client()
        for _ in range(3):
            client.send(HEAD)
            assert (await client.answer()).endswith(b"hello 127.0.0.1")
        client.send(HEAD + HEAD + POST + b"12345" + HEAD)
        answers = [await client.answer() for _ in range(4)]
        assert [answer.rpartition(b"\r\n")[2] for answer in answers] == [b"hello 127.0.0.1"] * 2 + [b"12345"] + [
            b"hello 127.0.0.1"
        ]


@pytest.mark.parametrize(
    "beginning",
    [
        b"",
        b"G",
        b"GET / HTTP/1.1\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nX-Slow: ",
        b"\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\n\r",
    ],
)
async def test_a_head_that_never_ends_ends_the_connection(beginning: bytes, shorten: Shorten) -> None:
    async with running() as port:
        client = await port.client()
        client.send(beginning)
        shorten("HEAD_S")
        assert (await client.rest()).startswith(b"HTTP/1.1 408 ")
        await until(lambda: port.listener.connections == 0)


async def test_a_head_that_trickles_has_no_longer(shorten: Shorten) -> None:
    async with running() as port:
        client = await port.client()
        shorten("HEAD_S")
        client.send(b"GET / HTTP/1.1\r\nHost: x\r\n")
        async with asyncio.timeout(60):
            while client.is_open:
                client.send(b"X-A: b\r\n")
                await asyncio.sleep(0.02)
                with suppress(TimeoutError, ConnectionError):
                    async with asyncio.timeout(0.01):
                        await client.reader.read(1000)
        assert port.listener.connections == 0


async def test_the_head_of_a_later_request_has_no_longer(shorten: Shorten) -> None:
    async with running() as port:
        client = await port.client()
        client.send(HEAD)
        await client.answer()
        client.send(b"GET / HTTP/1.1\r\n")
        shorten("HEAD_S")
        assert (await client.rest()).startswith(b"HTTP/1.1 408 ")


async def test_an_idle_connection_ends_without_a_word(shorten: Shorten) -> None:
    async with running() as port:
        client = await port.client()
        client.send(HEAD)
        await client.answer()
        shorten("IDLE_S")
        assert await client.rest() == b""


@pytest.mark.parametrize("body", [b"", b"123"])
async def test_a_body_that_never_ends_ends_the_connection(body: bytes, shorten: Shorten) -> None:
    shorten("BODY_S")
    async with running() as port:
        client = await port.client()
        client.send(POST + body)
        assert await client.rest() == b""
        await until(lambda: port.listener.connections == 0)


async def test_a_peer_that_does_not_read_its_answer_is_cut_off(shorten: Shorten) -> None:
    async with running() as port:
        with socket.create_connection(("127.0.0.1", port.listener.port)) as client:
            await asyncio.get_running_loop().run_in_executor(
                None, client.sendall, b"GET /much HTTP/1.1\r\nHost: x\r\n\r\n"
            )
            await until(lambda: port.listener.connections == 1)
            shorten("REQUEST_S")
            await until(lambda: port.listener.connections == 0)


async def test_a_slow_request_does_not_count_as_a_slow_head(shorten: Shorten) -> None:
    async with running() as port:
        client = await port.client()
        client.send(b"GET /wait HTTP/1.1\r\nHost: x\r\n\r\n")
        await until(lambda: [one.is_waiting for one in port.listener._connections] == [False])
        shorten("HEAD_S", "IDLE_S", "BODY_S")
        await asyncio.sleep(1)  # three times every other limit
        assert client.is_open
        assert port.listener.connections == 1


async def test_a_peer_has_a_quarter_and_its_oldest_unfinished_connection_makes_room() -> None:
    async with running(limit_of_peer=3) as port:
        first, second, third = [await port.client() for _ in range(3)]
        for client in (first, second, third):
            client.send(b"GET / HTTP/1.1\r\n")
        await until(lambda: port.listener.connections == 3)
        fourth = await port.client()
        fourth.send(HEAD)
        assert (await fourth.answer()).startswith(b"HTTP/1.1 200 ")
        assert await first.rest() == b""
        assert second.is_open
        other = await port.client(local="127.0.0.2")
        other.send(HEAD)
        assert (await other.answer()).startswith(b"HTTP/1.1 200 ")
        assert port.listener.connections == 4


async def test_requests_in_progress_are_not_ended_for_new_connections() -> None:
    async with running(limit_of_peer=2) as port:
        busy = [await port.client() for _ in range(2)]
        for client in busy:
            client.send(b"GET /wait HTTP/1.1\r\nHost: x\r\n\r\n")
        await until(lambda: not any(one.is_waiting for one in port.listener._connections))
        refused = await port.client()
        assert await refused.rest() == b""
        assert all(client.is_open for client in busy)


async def test_the_port_as_a_whole_has_a_limit() -> None:
    async with running(limit=4) as port:
        for number in range(40):
            await port.client(local=f"127.0.0.{number + 1}")
        last = await port.client(local="127.0.0.77")
        last.send(HEAD)
        assert (await last.answer()).startswith(b"HTTP/1.1 200 ")
        assert port.listener.connections <= 4


async def test_a_trusted_proxy_may_open_connections_for_many_clients() -> None:
    async with running(trusted=[ip_network("127.0.0.9/32")], limit_of_peer=2) as port:
        clients = [await port.client(local="127.0.0.9") for _ in range(10)]
        for client in clients:
            client.send(HEAD)
            await client.answer()
        assert port.listener.connections == 10


@pytest.mark.parametrize("trusted", ["127.0.0.9/32", "127.0.0.8/31", "2001:db8::/32", "::ffff:127.0.0.9/128"])
async def test_trusting_one_proxy_does_not_trust_others(trusted: str) -> None:
    async with running(trusted=[ip_network(trusted)], limit_of_peer=2) as port:
        clients = [await port.client(local="127.0.0.7") for _ in range(6)]
        await until(lambda: sum(client.is_open for client in clients) == 2)
        assert port.listener.connections == 2


async def test_closed_connections_are_reported_together_and_not_each(
    shorten: Shorten, monkeypatch: pytest.MonkeyPatch
) -> None:
    shorten("HEAD_S")
    with capture_logs() as lines:
        async with running() as port:

            def reports() -> list[MutableMapping[str, Any]]:
                return [line for line in lines if line["event"].startswith("connections were closed")]

            for _ in range(3):
                client = await port.client()
                assert (await client.rest()).startswith(b"HTTP/1.1 408 ")
            await until(lambda: len(reports()) == 1)
            await asyncio.sleep(0.2)  # ten sweeps
            assert len(reports()) == 1, "the next one is due in a minute"
            monkeypatch.setattr(port_module, "_REPORT_EVERY_S", 0.0)
            await until(lambda: len(reports()) == 2)
            await asyncio.sleep(0.2)
            assert len(reports()) == 2, "nothing was closed since"
    assert sum(line["head_timeout"] for line in reports()) == 3
    assert {line["port"] for line in reports()} == {"ops"}


def test_the_limit_leaves_descriptors_for_deliveries(monkeypatch: pytest.MonkeyPatch) -> None:
    for soft, limit in ((64, 16), (1024, 128), (65536, 512), (-1, 512)):
        monkeypatch.setattr(port_module.resource, "getrlimit", lambda _, soft=soft: (soft, soft))
        assert listener.limit_of_port() == limit


@pytest.mark.parametrize(
    ("address", "peer"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("2001:db8:1:2:3::4", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("", ""),
    ],
)
def test_a_peer_is_an_address_or_a_household(address: str, peer: str) -> None:
    assert listener.peer_of(address) == peer


async def test_without_a_host_it_listens_on_ipv4_and_ipv6() -> None:
    app = web.Application()
    app.router.add_get("/", _answered)
    async with Listener(app, setting="ops", host=None, port=0) as one:
        hosts = [("127.0.0.1", "127.0.0.1")] + ([("::1", "::1")] if _has_ipv6() else [])
        for host, local in hosts:
            client = await Client.opened(one.port, host=host, local=local)
            client.send(HEAD)
            assert (await client.answer()).startswith(b"HTTP/1.1 200 ")
            client.writer.close()


async def test_a_port_in_use_is_one_line_that_names_the_setting() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        for host in ("127.0.0.1", None):
            with pytest.raises(DispatcherError) as caught:
                await Listener(web.Application(), setting="ops", host=host, port=port).__aenter__()
            assert "\n" not in str(caught.value)
            assert f"ops.port {port}: another process has the port" in str(caught.value)


@pytest.mark.parametrize("host", ["192.0.2.1", "no.such.host.invalid"])
async def test_an_address_of_another_host_is_one_line_too(host: str) -> None:
    with pytest.raises(DispatcherError, match="choose an address of this host"):
        await Listener(web.Application(), setting="console", host=host, port=0).__aenter__()


async def _answered(_: web.Request) -> web.Response:
    return web.Response(text="hello")


def _has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as sock:
            sock.bind(("::1", 0))
    except OSError:
        return False
    return True


@pytest.mark.parametrize("host", ["a..b", "x" * 70, "\u00fc..", "a\0b"])
def test_a_host_that_no_name_can_be_is_a_clear_error(host: str) -> None:
    for group in (OpsSettings, ConsoleSettings):
        with pytest.raises(ValidationError, match="must be an IP address or a host name"):
            group(host=host)
    with pytest.raises(DispatcherError, match=r"can't listen on ops\.host .*; choose an address"):
        listening_sockets("ops", host, 0)
