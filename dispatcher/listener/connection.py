"""Guards a connection of a port: limits the time of its handshake, request heads, bodies and pauses."""

import asyncio
import socket
import ssl
from contextlib import suppress
from typing import Final, Protocol, cast

from aiohttp import web

from dispatcher.listener.peers import peer_of

HEAD_S: Final = 10.0
"""Seconds for a request head, from its first byte; a new connection has as long to begin one."""
IDLE_S: Final = 75.0
"""Seconds between two requests of a connection; longer than the 60 s for which reverse proxies keep one."""
BODY_S: Final = 30.0
"""Seconds for a request body, from the end of its head."""
REQUEST_S: Final = 120.0
"""Seconds for a request, its handler and its answer; a test event takes at most half of it."""

_GOODBYE_S: Final = 1.0
"""Seconds that a peer has to end a TLS connection that was closed here."""


class ConnectionOwner(Protocol):
    """The port that a connection belongs to."""

    def new_handler(self) -> web.RequestHandler: ...

    def admit(self, connection: "GuardedConnection") -> bool: ...

    def forget(self, connection: "GuardedConnection") -> None: ...

    def count_failed_handshake(self, error: OSError) -> None: ...


class GuardedConnection(asyncio.Protocol):
    """Wraps aiohttp's protocol of a connection, and tracks the connection's state for the port's time limits."""

    def __init__(self, owner: ConnectionOwner) -> None:
        self._owner = owner
        self._loop = asyncio.get_running_loop()
        self._handler: web.RequestHandler | None = None
        self._transport: asyncio.Transport | None = None
        self._socket: socket.socket | None = None
        """The accepted socket, during a TLS handshake."""
        self._is_closed = False
        self._head_since: float | None = None
        """When the first byte of a request head came; on a new connection, when that was opened."""
        self._phase: int | None = None
        """Number of the request that is under way; None between two."""
        self._phase_since = 0.0
        self.address = ""
        """The peer's IP address."""
        self.peer = ""
        """Address or network that counts as one peer."""

    @property
    def is_waiting(self) -> bool:
        """True while no request is under way, neither a complete one nor one whose body is still arriving."""
        return self._request_number() is None

    @property
    def is_in_handshake(self) -> bool:
        return self._socket is not None

    def _request_number(self) -> int | None:
        # aiohttp has no public name for any of this; `tests/listener` fails if a new version changes it.
        handler = self._handler
        if handler is None:
            return None
        waiter = handler._waiter  # noqa: SLF001
        queued = len(handler._messages)  # noqa: SLF001
        number: int = handler._request_count - queued  # noqa: SLF001
        is_waiting = (waiter is not None and not waiter.done()) or (number == 0 and not queued)
        return None if is_waiting else number

    def overdue(self, now: float) -> str:
        """Returns why the connection has to be closed at `now`; empty if it may stay."""
        number = self._request_number()
        if number != self._phase:
            self._phase, self._phase_since = number, now
        passed = now - self._phase_since
        if number is None:
            if self._head_since is not None:
                return "head_timeout" if now - self._head_since > HEAD_S else ""
            return "idle" if passed > IDLE_S else ""
        if passed > REQUEST_S:
            return "request_timeout"
        request = None if self._handler is None else self._handler._current_request  # noqa: SLF001
        is_incomplete = request is not None and not request.content.is_eof()
        return "body_timeout" if is_incomplete and passed > BODY_S else ""

    def close(self, answer: bytes = b"") -> None:
        """Closes the connection. Sends `answer` before, if no request is under way and nothing else is unsent."""
        self._is_closed = True
        if self._socket is not None:
            with suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)  # the handshake fails, and its transport closes the socket
        transport = self._transport
        if transport is None:
            return
        is_secure = transport.get_extra_info("sslcontext") is not None
        is_quick = self._handler is not None and self.is_waiting and transport.get_write_buffer_size() == 0
        if is_quick and (answer or not is_secure):
            if answer:
                transport.write(answer)
            transport.close()
        else:
            transport.abort()  # close() would wait for a peer that doesn't read, or doesn't end its TLS connection

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by asyncio; with TLS, after the handshake."""
        stream = cast("asyncio.Transport", transport)  # uvloop has a class of its own
        is_new = self._socket is None
        if is_new:
            self._opened_by(transport.get_extra_info("peername"))
        self._transport, self._socket = stream, None
        if self._is_closed or (is_new and not self._owner.admit(self)):
            stream.abort()
            return
        self._handler = self._owner.new_handler()
        self._handler.connection_made(stream)

    def _opened_by(self, peername: object) -> None:
        self.address = str(peername[0]) if isinstance(peername, tuple) and peername else ""
        self.peer = peer_of(self.address)
        self._head_since = self._phase_since = self._loop.time()

    async def secure(self, accepted: socket.socket, context: ssl.SSLContext) -> None:
        """Performs the TLS handshake on an accepted socket, within the time of the first request head (`HEAD_S`).

        The connection is counted before the handshake, so that peers that never end one have the same limits.
        """
        with suppress(OSError):  # it has gone already
            self._opened_by(accepted.getpeername())
        self._socket = accepted
        if not self._owner.admit(self):
            accepted.close()
            return
        try:
            await self._loop.connect_accepted_socket(
                lambda: self,
                accepted,
                ssl=context,
                ssl_handshake_timeout=HEAD_S,
                ssl_shutdown_timeout=_GOODBYE_S,
            )
        except OSError as error:
            self._owner.count_failed_handshake(error)
            self._owner.forget(self)

    def data_received(self, data: bytes) -> None:
        """Passes received bytes on, and notes when a request begins."""
        if self._handler is None:
            return
        if self._head_since is None and self.is_waiting:
            self._head_since = self._loop.time()
        self._handler.data_received(data)
        if not self.is_waiting:
            self._head_since = None

    def eof_received(self) -> bool | None:
        """Passes on that the client sends no more."""
        if self._handler is not None:
            self._handler.eof_received()
        return None

    def connection_lost(self, error: Exception | None) -> None:
        """Forgets the connection, which has ended."""
        self._owner.forget(self)
        if self._handler is not None:
            self._handler.connection_lost(error)
        self._transport = None

    def pause_writing(self) -> None:
        """Passes on that the client reads too slowly."""
        if self._handler is not None:
            self._handler.pause_writing()

    def resume_writing(self) -> None:
        """Passes on that the client reads again."""
        if self._handler is not None:
            self._handler.resume_writing()
