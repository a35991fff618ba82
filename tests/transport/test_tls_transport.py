"""The TLS transport on a real socket, on both event loops: nothing that is written is lost, and each end is reported once."""

import asyncio
import hashlib
import os
import socket
import ssl
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trustme
import uvloop

from dispatcher.transport.tls import endpoint_context, new_context
from dispatcher.transport.tls_transport import TlsTransport, shake_hands
from tests.transport.conftest import server_context
from tests.transport.servers import Endpoint as Server
from tests.transport.servers import Peer, Script, what_was_sent_arrives

LARGE = os.urandom(8_000_000)
"""More than the sockets of both sides take."""
ANSWER = (b"HTTP/1.1 413 Content Too Large\r\n", b"content-length: 2\r\n\r\n", b"no")
Run = Callable[[Coroutine[object, object, None]], None]


class Noted(asyncio.Protocol):
    """Notes what the transport calls."""

    def __init__(self) -> None:
        self.received = b""
        self.calls: list[str] = []
        self.ends: list[Exception | None] = []
        self.ended = asyncio.Event()
        self.came = asyncio.Event()
        self.resumed = asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.calls.append("made")

    def data_received(self, data: bytes) -> None:
        self.received += data
        self.came.set()

    def eof_received(self) -> None:
        self.calls.append("eof")

    def pause_writing(self) -> None:
        self.calls.append("pause")

    def resume_writing(self) -> None:
        self.calls.append("resume")
        self.resumed.set()

    def connection_lost(self, exc: Exception | None) -> None:
        self.calls.append("lost")
        self.ends.append(exc)
        self.ended.set()


@pytest.fixture(params=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Run:
    """Runs a coroutine to its end on one of the event loops."""

    def running(test: Coroutine[object, object, None]) -> None:
        factory = uvloop.new_event_loop if request.param == "uvloop" else None
        with asyncio.Runner(loop_factory=factory) as runner:
            runner.run(asyncio.wait_for(test, 60))

    return running


async def connect(port: int, ca: Path, protocol: asyncio.Protocol) -> TlsTransport:
    context = endpoint_context(ca)
    sock = socket.socket()
    sock.setblocking(False)
    await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", port))
    tls = context.wrap(("127.0.0.1", port))
    await shake_hands(sock, tls)
    return TlsTransport(sock, tls, protocol)


@asynccontextmanager
async def connected(
    script: Script, authority: trustme.CA, ca: Path, protocol: asyncio.Protocol
) -> AsyncIterator[tuple[TlsTransport, Server]]:
    """Yields a transport to a server that is played by the script."""
    async with Server(script, server_context(authority)).running() as server:
        transport = await connect(server.port, ca, protocol)
        sock = transport.get_extra_info("socket")
        try:
            yield transport, server
        finally:
            transport.abort()
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        assert sock.fileno() == -1, "the socket is left open"


async def digest_of(peer: Peer, size: int) -> bytes:
    return hashlib.sha256(await peer.reader.readexactly(size)).digest()


def test_what_the_socket_does_not_take_at_once_is_sent_later(run: Run, authority: trustme.CA, ca_bundle: Path) -> None:
    may_read = asyncio.Event()

    async def script(peer: Peer) -> None:
        await may_read.wait()
        await peer.send(await digest_of(peer, len(LARGE) + 5))

    async def test() -> None:
        noted = Noted()
        async with connected(script, authority, ca_bundle, noted) as (transport, _):
            transport.write(LARGE)
            transport.write(bytearray(b"after"))
            assert 0 < transport.get_write_buffer_size() < 1.01 * len(LARGE)
            assert noted.calls == ["made", "pause"]
            may_read.set()
            await noted.came.wait()
            assert noted.received == hashlib.sha256(LARGE + b"after").digest()
            assert noted.calls == ["made", "pause", "resume"]
            assert transport.get_write_buffer_size() == 0

    run(test())


def test_a_large_answer_arrives_whole_while_a_request_is_written(
    run: Run, authority: trustme.CA, ca_bundle: Path
) -> None:
    async def script(peer: Peer) -> None:
        async with asyncio.TaskGroup() as both:
            received = both.create_task(digest_of(peer, len(LARGE)))
            both.create_task(peer.send(LARGE))
        await peer.send(received.result())
        await peer.until_closed()

    async def test() -> None:
        noted = Noted()
        async with connected(script, authority, ca_bundle, noted) as (transport, _):
            transport.write(LARGE)
            while len(noted.received) < len(LARGE) + 32:
                noted.came.clear()
                await noted.came.wait()
            assert noted.received == LARGE + hashlib.sha256(LARGE).digest()

    run(test())


def test_reading_stops_and_goes_on(run: Run, authority: trustme.CA, ca_bundle: Path) -> None:
    async def script(peer: Peer) -> None:
        await peer.reader.readexactly(1)
        await peer.send(b"one")
        await peer.reader.readexactly(1)

    async def test() -> None:
        noted = Noted()
        async with connected(script, authority, ca_bundle, noted) as (transport, _):
            transport.pause_reading()
            transport.pause_reading()
            assert not transport.is_reading()
            transport.write(b"1")
            await what_was_sent_arrives()
            assert noted.received == b""
            transport.resume_reading()
            await noted.came.wait()
            assert noted.received == b"one"
            assert transport.is_reading()

    run(test())


def test_close_sends_what_was_written_and_announces_the_end(run: Run, authority: trustme.CA, ca_bundle: Path) -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    may_read = threading.Event()

    def read_to_the_end() -> bytes:
        # A server of its own: that of uvloop loses bytes which came with the end.
        with server_context(authority).wrap_socket(listener.accept()[0], server_side=True) as peer:
            may_read.wait(60)
            received = hashlib.sha256()
            while data := peer.recv(65536):  # raises an error if the end is not announced
                received.update(data)
            return received.digest()

    async def test() -> None:
        noted, loop = Noted(), asyncio.get_running_loop()
        reading = loop.run_in_executor(None, read_to_the_end)
        transport = await connect(listener.getsockname()[1], ca_bundle, noted)
        transport.write(LARGE)
        transport.close()
        transport.close()
        transport.write(b"too late")
        assert transport.is_closing()
        assert noted.ends == []
        may_read.set()
        await noted.ended.wait()
        assert noted.ends == [None]
        assert await reading == hashlib.sha256(LARGE).digest()

    with listener:
        run(test())


async def _ends_with_notice(peer: Peer) -> None:
    await peer.reader.readexactly(1)
    peer.writer.close()
    await peer.until_closed()


async def _ends_without_notice(peer: Peer) -> None:
    await peer.reader.readexactly(1)
    peer.end()


async def _resets(peer: Peer) -> None:
    await peer.reader.readexactly(1)
    peer.reset()


@pytest.mark.parametrize(
    ("ending", "reported"),
    [
        (_ends_with_notice, ["made", "eof", "lost"]),
        (_ends_without_notice, ["made", "eof", "lost"]),
        (_resets, ["made", "lost"]),
    ],
)
def test_the_end_of_the_peer_is_reported_once(
    run: Run, authority: trustme.CA, ca_bundle: Path, ending: Callable[[Peer], Awaitable[None]], reported: list[str]
) -> None:
    async def test() -> None:
        noted = Noted()
        async with connected(ending, authority, ca_bundle, noted) as (transport, _):
            transport.write(b"1")
            await noted.ended.wait()
            transport.write(b"2")
            transport.abort()
            transport.close()
            await what_was_sent_arrives()
        assert noted.calls == reported
        assert [type(end) for end in noted.ends] == [type(None) if "eof" in reported else ConnectionResetError]

    run(test())


def test_an_answer_that_came_before_a_write_failed_is_read(run: Run, authority: trustme.CA, ca_bundle: Path) -> None:
    """A server that refuses a request early answers, and resets the connection: its answer says why."""
    is_reset = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.reader.readexactly(1)
        for part in ANSWER:
            await peer.send(part)  # a TLS record each
        peer.reset()
        is_reset.set()

    async def test() -> None:
        noted = Noted()
        async with connected(script, authority, ca_bundle, noted) as (transport, _):
            transport.pause_reading()
            transport.write(b"1")
            await is_reset.wait()
            await what_was_sent_arrives()
            transport.write(LARGE)
            await noted.ended.wait()
        assert noted.received == b"".join(ANSWER)
        assert noted.calls == ["made", "eof", "lost"]

    run(test())


def test_a_bug_of_the_protocol_ends_its_connection_and_is_reported(
    run: Run, authority: trustme.CA, ca_bundle: Path
) -> None:
    async def script(peer: Peer) -> None:
        await peer.reader.readexactly(1)
        await peer.send(b"x")
        await peer.until_closed()

    class Broken(Noted):
        def data_received(self, data: bytes) -> None:
            raise KeyError("a bug")

    async def test() -> None:
        reported: list[object] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: reported.append(type(context["exception"])))
        broken = Broken()
        async with connected(script, authority, ca_bundle, broken) as (transport, _):
            transport.write(b"1")
            await broken.ended.wait()
        assert reported == [KeyError]
        assert isinstance(broken.ends[0], KeyError)

    run(test())


def test_the_certificate_is_that_of_the_peer(run: Run, authority: trustme.CA, ca_bundle: Path) -> None:
    async def test() -> None:
        async with connected(Peer.until_closed, authority, ca_bundle, Noted()) as (transport, _):
            tls = transport.get_extra_info("ssl_object")
            assert isinstance(tls, ssl.SSLObject)
            assert tls.getpeercert()["subjectAltName"][0] == ("IP Address", "127.0.0.1")
            assert transport.get_extra_info("sslcontext") is tls.context
            assert transport.get_extra_info("nothing", 5) == 5

    run(test())


def test_a_cancelled_handshake_leaves_no_watched_descriptor(run: Run) -> None:
    """A number that is watched can't be used again when the system gives it to another connection."""

    async def test() -> None:
        silent = socket.create_server(("127.0.0.1", 0))
        with silent:
            for _ in range(2):
                sock = socket.create_connection(silent.getsockname())
                sock.setblocking(False)
                context = new_context()
                tls, fd = context.wrap(("hooks.example", 443)), sock.fileno()
                with pytest.raises(TimeoutError):
                    await asyncio.wait_for(shake_hands(sock, tls), 0.05)
                assert not asyncio.get_running_loop().remove_reader(fd)
                assert not asyncio.get_running_loop().remove_writer(fd)
                sock.close()

    run(test())
