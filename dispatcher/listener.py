"""Serves HTTP on a port that strangers can reach: it limits the time and the number of connections.

aiohttp's server closes only idle connections, after an hour. A peer that opens connections and never finishes a request
head would keep them forever, until the process has no file descriptor left for a delivery. Here a connection has
`HEAD_S` for a request head, `BODY_S` for a body, `REQUEST_S` for a whole request and its answer, and `IDLE_S`
between two requests. A port has at most `limit_of_port()` connections, a peer a quarter of them. If a bound is
reached, the connection that has waited longest for a request head makes room for the new one. A TLS handshake counts as
part of the first request head.
"""

import asyncio
import errno
import os
import resource
import socket
import ssl
from collections import Counter, OrderedDict
from collections.abc import Coroutine, Iterator, Sequence
from contextlib import contextmanager, suppress
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from types import TracebackType
from typing import Final, Self, cast

import structlog
from aiohttp import web

from dispatcher.errors import DispatcherError
from dispatcher.server_certificate import ServerCertificate
from dispatcher.tasks import end
from dispatcher.telemetry import metrics
from dispatcher.transport.failures import is_local

HEAD_S: Final = 10.0
"""Seconds for a request head, from its first byte; a new connection has as long to begin one."""
IDLE_S: Final = 75.0
"""Seconds between two requests of a connection; longer than the 60 s for which reverse proxies keep one."""
BODY_S: Final = 30.0
"""Seconds for a request body, from the end of its head."""
REQUEST_S: Final = 120.0
"""Seconds for a request, its handler and its answer; a test event takes at most half of it."""
MAX_CONNECTIONS: Final = 512
"""Most connections of a port, if the process has descriptors for so many."""
MIN_CONNECTIONS: Final = 16
SHARE_OF_DESCRIPTORS: Final = 8
"""A port may use one in so many of the process's file descriptors: the rest is for deliveries, Kafka and stores."""
MAX_HEAD_LINE: Final = 8190
MAX_HEADERS: Final = 100
BACKLOG: Final = 64
"""Connections that the kernel may complete before they are accepted; each takes a descriptor for a moment."""

CLOSE_REASONS: Final = (
    "head_timeout", "body_timeout", "request_timeout", "idle", "peer_limit", "port_limit", "tls_failed",
)  # fmt: skip

_SWEEP_S: Final = 0.5
_ACCEPT_AGAIN_S: Final = 0.5
_GOODBYE_S: Final = 1.0
"""Seconds that a peer has to end a TLS connection that was closed here."""
_REPORT_EVERY_S: Final = 60.0
_TIMED_OUT: Final = b"HTTP/1.1 408 Request Timeout\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"

Networks = Sequence[IPv4Network | IPv6Network]

log = structlog.get_logger(__name__)


def limit_of_port() -> int:
    """Returns the most connections of one port: an eighth of the soft limit on file descriptors, 16 to 512."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return MAX_CONNECTIONS
    return max(MIN_CONNECTIONS, min(MAX_CONNECTIONS, soft // SHARE_OF_DESCRIPTORS))


def address_of(text: str) -> IPv4Address | IPv6Address | None:
    """Returns the IP address, without a zone, an IPv4-mapped one as IPv4; None if the text is no address."""
    try:
        address = ip_address(text.partition("%")[0])
    except ValueError:
        return None
    return address.ipv4_mapped or address if isinstance(address, IPv6Address) else address


def peer_of(text: str) -> str:
    """Returns what counts as one peer: an IPv4 address, or the /64 of an IPv6 address, which one host has."""
    address = address_of(text)
    if isinstance(address, IPv6Address):
        return str(ip_network((int(address), 64), strict=False))
    return "" if address is None else str(address)


def listen_refusal(where: str, error: OSError, addresses: str) -> str:
    """Returns why a port can't be listened on, and the cure. `addresses`: what to choose if the address is at fault."""
    if error.errno == errno.EADDRINUSE:
        return f"can't listen on {where}: another process has the port; end it, or choose another port"
    if error.errno == errno.EACCES:
        return f"can't listen on {where}: not permitted; choose a port above 1023"
    why = os.strerror(error.errno) if error.errno and error.errno > 0 else str(error)
    return f"can't listen on {where}: {why}; choose {addresses}"


class Listener:
    """One port and its connections. Enter to listen; leaving waits for requests under way.

    Args:
        setting: prefix of the settings' names in messages, `ops` or `console`.
        host: the address to listen on; None for all addresses, IPv4 and IPv6.
        port: the port; 0 takes a free one.
        trusted: peers that stand for many clients (reverse proxies): they have no bound of their own.
        shutdown_s: seconds that requests under way have when the listener stops.
        certificate: serves TLS with it, and follows its files; None for plain HTTP.
    """

    def __init__(
        self,
        app: web.Application,
        *,
        setting: str,
        host: str | None,
        port: int,
        trusted: Networks = (),
        shutdown_s: float = 2.0,
        certificate: ServerCertificate | None = None,
    ) -> None:
        self._setting = setting
        self._certificate = certificate
        self._host = host
        self._trusted = tuple(trusted)
        self.port = port
        """The port in use, after entering."""
        self.limit = limit_of_port()
        """Most connections of the port."""
        self.limit_of_peer = max(8, self.limit // 4)
        self._runner = web.AppRunner(
            app,
            access_log=None,
            shutdown_timeout=shutdown_s,
            auto_decompress=False,
            max_line_size=MAX_HEAD_LINE,
            max_field_size=MAX_HEAD_LINE,
            max_headers=MAX_HEADERS,
        )
        self._connections: OrderedDict[_GuardedConnection, None] = OrderedDict()
        self._of_peer: Counter[str] = Counter()
        self._tasks: set[asyncio.Task[None]] = set()
        """The sweeper, what follows the certificate, and handshakes under way."""
        self._servers: list[asyncio.Server] = []
        self._closed: Counter[str] = Counter()
        self._reported_at: float | None = None
        self._tls_error = ""

    async def __aenter__(self) -> Self:
        """Starts to listen.

        Raises:
            DispatcherError: the address or port can't be used; the message names the settings.
        """
        metrics.CONNECTIONS.labels(self._setting).set(0)
        for reason in CLOSE_REASONS:
            metrics.CONNECTIONS_CLOSED.labels(self._setting, reason)
        await self._runner.setup()
        try:
            for sock in self._sockets():
                if self._certificate is None:
                    server = await asyncio.get_running_loop().create_server(self._accept, sock=sock, backlog=BACKLOG)
                    self._servers.append(server)
                else:
                    sock.listen(BACKLOG)
                    self._start_task(self._accept_tls(sock, self._certificate), "accepting")
        except BaseException:
            await self._stop()
            raise
        self._start_task(self._sweep(), "connections")
        if self._certificate is not None:
            self._start_task(self._certificate.follow(), "certificate")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._stop()

    @property
    def connections(self) -> int:
        """How many connections are open now."""
        return len(self._connections)

    async def _stop(self) -> None:
        for server in self._servers:
            server.close()
        accepting = [task for task in self._tasks if task.get_name().endswith("accepting")]
        await end(*accepting)
        for connection in [one for one in self._connections if one.is_in_handshake]:
            connection.close()
        await self._runner.cleanup()
        await end(*self._tasks)

    def _sockets(self) -> list[socket.socket]:
        """Opens the listening sockets; for all addresses one of IPv4 and one of IPv6, if the host has IPv6."""
        sockets: list[socket.socket] = []
        try:
            for family, address in self._addresses():
                with _without_ipv6(self._host is None and family == socket.AF_INET6):
                    sockets.append(self._bound(family, (address[0], self.port, *address[2:])))
        except OSError as error:
            for sock in sockets:
                sock.close()
            where = f"{self._setting}.host {self._host or '(all addresses)'}, {self._setting}.port {self.port}"
            raise DispatcherError(listen_refusal(where, error, "an address of this host, or null for all")) from error
        return sockets

    def _addresses(self) -> Sequence[tuple[int, tuple[str | int, ...]]]:
        if self._host is None:
            on_ipv4, on_ipv6 = (socket.AF_INET, ("0.0.0.0", 0)), (socket.AF_INET6, ("::", 0))  # noqa: S104  (host null means all addresses)
            return [on_ipv4, on_ipv6] if socket.has_ipv6 else [on_ipv4]
        found = socket.getaddrinfo(self._host, self.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        return list(dict.fromkeys((int(one[0]), tuple(map(_plain, one[4]))) for one in found))

    def _bound(self, family: int, address: tuple[str | int, ...]) -> socket.socket:
        sock = socket.socket(family, socket.SOCK_STREAM)
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            sock.setblocking(False)
            sock.bind(address)
        except BaseException:
            sock.close()
            raise
        self.port = int(sock.getsockname()[1])
        return sock

    # Connections

    def _accept(self) -> "_GuardedConnection":
        return _GuardedConnection(self)

    def _start_task(self, work: Coroutine[object, object, None], name: str) -> asyncio.Task[None]:
        """Runs something until it ends or the listener stops."""
        task = asyncio.create_task(work, name=f"{self._setting} {name}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _accept_tls(self, sock: socket.socket, certificate: ServerCertificate) -> None:
        """Accepts connections until cancelled. asyncio's server would show one only after its handshake."""
        loop = asyncio.get_running_loop()
        with sock:
            while True:
                try:
                    accepted, _ = await loop.sock_accept(sock)
                except OSError as error:
                    if is_local(error):  # no file descriptor is free
                        await asyncio.sleep(_ACCEPT_AGAIN_S)
                    continue
                accepted.setblocking(False)
                connection = _GuardedConnection(self)
                self._start_task(connection.secure(accepted, certificate.context), "handshake")

    def count_failed_handshake(self, error: OSError) -> None:
        """Counts a peer that does not speak TLS as this port does. One that only goes away is nothing of note."""
        if isinstance(error, ssl.SSLError):
            self._count("tls_failed")
            self._tls_error = (error.reason or type(error).__name__)[:100]

    def new_handler(self) -> web.RequestHandler:
        server = self._runner.server
        if server is None:
            raise RuntimeError("the listener is not running")
        return server()

    def admit(self, connection: "_GuardedConnection") -> bool:
        """Returns False if the connection is one too many and no waiting connection can make room for it."""
        peer = connection.peer
        is_bound = not self._is_trusted(connection.address)
        if is_bound and self._of_peer[peer] >= self.limit_of_peer and not self._make_room("peer_limit", peer):
            return False
        if len(self._connections) >= self.limit and not self._make_room("port_limit", None):
            return False
        self._connections[connection] = None
        self._of_peer[peer] += 1
        metrics.CONNECTIONS.labels(self._setting).set(len(self._connections))
        return True

    def _make_room(self, reason: str, peer: str | None) -> bool:
        for connection in self._connections:  # in the order of their opening
            if connection.is_waiting and peer in (None, connection.peer):
                self._close(connection, reason)
                return True
        self._count(reason)
        return False

    def _close(self, connection: "_GuardedConnection", reason: str) -> None:
        self._count(reason)
        self.forget(connection)
        connection.close(answer=_TIMED_OUT if reason == "head_timeout" else b"")

    def forget(self, connection: "_GuardedConnection") -> None:
        if connection in self._connections:
            del self._connections[connection]
            self._of_peer[connection.peer] -= 1
            if self._of_peer[connection.peer] <= 0:
                del self._of_peer[connection.peer]
            metrics.CONNECTIONS.labels(self._setting).set(len(self._connections))

    def _is_trusted(self, peer: str) -> bool:
        address = address_of(peer) if self._trusted else None
        return address is not None and any(address in network for network in self._trusted)

    def _count(self, reason: str) -> None:
        metrics.CONNECTIONS_CLOSED.labels(self._setting, reason).inc()
        self._closed[reason] += 1

    async def _sweep(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(_SWEEP_S)
            now = loop.time()
            for connection in list(self._connections):
                reason = connection.overdue(now)
                if reason:
                    self._close(connection, reason)
            self._report(now)

    def _report(self, now: float) -> None:
        """Logs the connections that were closed early, at most once a minute. Idle connections are not reported."""
        self._closed.pop("idle", None)
        if self._closed and (self._reported_at is None or now - self._reported_at >= _REPORT_EVERY_S):
            self._reported_at = now
            log.warning(
                "connections were closed: their peers did not finish a request in time, opened too many, or did not "
                "speak TLS as this port does",
                port=self._setting,
                open=len(self._connections),
                **dict(self._closed),
                **({"tls_error": self._tls_error} if self._tls_error else {}),
            )
            self._tls_error = ""
            self._closed.clear()


class _GuardedConnection(asyncio.Protocol):
    """Sits between a transport and aiohttp's protocol, and knows what the connection waits for."""

    def __init__(self, listener: Listener) -> None:
        self._listener = listener
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
        """What counts as one peer."""

    @property
    def is_waiting(self) -> bool:
        """True while no request is under way, whole or in parts of its body."""
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
        """Closes the connection; `answer` is sent before, if the peer reads."""
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
        stream = cast("asyncio.Transport", transport)  # uvloop's is none by its class
        is_new = self._socket is None
        if is_new:
            self._opened_by(transport.get_extra_info("peername"))
        self._transport, self._socket = stream, None
        if self._is_closed or (is_new and not self._listener.admit(self)):
            stream.abort()
            return
        self._handler = self._listener.new_handler()
        self._handler.connection_made(stream)

    def _opened_by(self, peername: object) -> None:
        self.address = str(peername[0]) if isinstance(peername, tuple) and peername else ""
        self.peer = peer_of(self.address)
        self._head_since = self._phase_since = self._loop.time()

    async def secure(self, accepted: socket.socket, context: ssl.SSLContext) -> None:
        """Makes a TLS connection of an accepted socket. Its time is that of the first request head (`HEAD_S`).

        The connection counts from before the handshake: peers that never end one have the same limits as others.
        """
        with suppress(OSError):  # it has gone already
            self._opened_by(accepted.getpeername())
        self._socket = accepted
        if not self._listener.admit(self):
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
            self._listener.count_failed_handshake(error)
            self._listener.forget(self)

    def data_received(self, data: bytes) -> None:
        """Called by asyncio."""
        if self._handler is None:
            return
        if self._head_since is None and self.is_waiting:
            self._head_since = self._loop.time()
        self._handler.data_received(data)
        if not self.is_waiting:
            self._head_since = None

    def eof_received(self) -> bool | None:
        """Called by asyncio."""
        if self._handler is not None:
            self._handler.eof_received()
        return None

    def connection_lost(self, error: Exception | None) -> None:
        """Called by asyncio."""
        self._listener.forget(self)
        if self._handler is not None:
            self._handler.connection_lost(error)
        self._transport = None

    def pause_writing(self) -> None:
        """Called by asyncio."""
        if self._handler is not None:
            self._handler.pause_writing()

    def resume_writing(self) -> None:
        """Called by asyncio."""
        if self._handler is not None:
            self._handler.resume_writing()


def _plain(part: object) -> str | int:
    return part if isinstance(part, int) else str(part)


@contextmanager
def _without_ipv6(may_lack: bool) -> Iterator[None]:
    """Skips an address that can't be opened because the host has no IPv6."""
    try:
        yield
    except OSError as error:
        if not may_lack or error.errno not in (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL, errno.EPROTONOSUPPORT):
            raise
        log.info("this host has no IPv6: listening on IPv4 only")
