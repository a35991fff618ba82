"""An endpoint that sends TLS messages without data and without end costs its own attempt only.

OpenSSL handles such messages within one call, for as long as there are more.
"""

import asyncio
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import trustme

from dispatcher.contract.outcomes import FailureReason
from dispatcher.transport import Transport
from dispatcher.transport.tls import new_context
from dispatcher.transport.tls_sessions import EndlessTls
from dispatcher.transport.tls_transport import MOST_OVERHEAD, MOST_RECEIVED, TlsTransport, shake_hands
from tests.transport.conftest import post_to, server_context

HELLO_REQUESTS = (b"\x16\x03\x03\x40\x00" + bytes(16_384)) * 16
"""TLS records of 4,096 messages each, to which a client that has begun a handshake needs no answer."""
SOCKETS_HOLD = 32_000_000
"""More bytes than the sockets of both sides take while the client reads nothing."""


@contextmanager
def flooding(flood: Callable[[socket.socket], None]) -> Iterator[int]:
    """Yields the port of a server that handles each connection in a thread, until the client ends it."""

    def handle(peer: socket.socket) -> None:
        with suppress(OSError), peer:
            flood(peer)

    def accept() -> None:
        with suppress(OSError):
            while True:
                threading.Thread(target=handle, args=listener.accept()[:1], daemon=True).start()

    listener = socket.create_server(("127.0.0.1", 0))
    accepting = threading.Thread(target=accept)
    accepting.start()
    try:
        yield listener.getsockname()[1]
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        accepting.join()
        listener.close()


async def test_a_handshake_without_end_is_ended(transport: Transport) -> None:
    sent = []

    def flood(peer: socket.socket) -> None:
        peer.recv(65536)
        while True:
            sent.append(peer.send(HELLO_REQUESTS))

    with flooding(flood) as port:
        attempt = await transport.post(post_to(f"https://127.0.0.1:{port}/"))
    assert (attempt.status, attempt.failure) == (None, FailureReason.TLS)
    assert attempt.detail == "TLS: endless handshake"
    assert sum(sent) < SOCKETS_HOLD


def sends_tickets(authority: trustme.CA) -> Callable[[socket.socket], None]:
    context = server_context(authority)
    context.num_tickets = 10_000_000

    def flood(peer: socket.socket) -> None:
        context.wrap_socket(peer, server_side=True)  # sends the tickets when the handshake is done

    return flood


async def test_session_tickets_without_end_are_ended(transport: Transport, authority: trustme.CA) -> None:
    with flooding(sends_tickets(authority)) as port:
        attempt = await transport.post(post_to(f"https://127.0.0.1:{port}/"))
    assert (attempt.status, attempt.failure) == (None, FailureReason.TLS)
    assert attempt.detail == "TLS: endless messages without data"


async def test_a_flood_is_read_in_many_turns_of_the_event_loop(authority: trustme.CA) -> None:
    """Other connections have their turns in between."""
    loop, ended, turns = asyncio.get_running_loop(), asyncio.Event(), 0

    class Reading(asyncio.Protocol):
        def connection_lost(self, exc: Exception | None) -> None:
            assert isinstance(exc, EndlessTls)
            ended.set()

    with flooding(sends_tickets(authority)) as port, socket.socket() as sock:
        sock.setblocking(False)
        await loop.sock_connect(sock, ("127.0.0.1", port))
        tls = new_context(authority.cert_pem.bytes()).wrap(("127.0.0.1", port))
        await shake_hands(sock, tls)
        TlsTransport(sock, tls, Reading())
        async with asyncio.timeout(60):
            while not ended.is_set():
                turns += 1
                await asyncio.sleep(0)
    assert turns >= MOST_OVERHEAD // MOST_RECEIVED
