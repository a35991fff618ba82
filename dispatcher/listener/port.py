"""Serves HTTP on a port that strangers can reach: it limits the time and the number of connections.

aiohttp's server closes only idle connections, after an hour. A peer that opens connections and never finishes a request
head would keep them forever, until the process has no file descriptor left for a delivery. Here a connection has
`HEAD_S` for a request head, `BODY_S` for a body, `REQUEST_S` for a whole request and its answer, and `IDLE_S`
between two requests. A port has at most `limit_of_port()` connections, a peer a quarter of them. If a bound is
reached, the connection that has waited longest for a request head makes room for the new one. A TLS handshake counts as
part of the first request head.
"""

import asyncio
import resource
import socket
import ssl
from collections import Counter, OrderedDict
from collections.abc import Coroutine
from types import TracebackType
from typing import Final, Self

import structlog
from aiohttp import web

from dispatcher.listener.connection import GuardedConnection
from dispatcher.listener.peers import Networks, address_of
from dispatcher.listener.sockets import listening_sockets
from dispatcher.server_certificate import ServerCertificate
from dispatcher.tasks import cancel_and_wait
from dispatcher.telemetry import metrics
from dispatcher.transport.failures import is_local

MAX_CONNECTIONS: Final = 512
"""Maximum number of connections of a port, unless the process has too few file descriptors."""
MIN_CONNECTIONS: Final = 16
SHARE_OF_DESCRIPTORS: Final = 8
"""A port may use an eighth of the process's file descriptors; the rest is for deliveries, Kafka and stores."""
MAX_HEAD_LINE: Final = 8190
MAX_HEADERS: Final = 100
BACKLOG: Final = 64
"""Connections that the kernel may complete before they are accepted; each takes a descriptor for a moment."""

CLOSE_REASONS: Final = (
    "head_timeout", "body_timeout", "request_timeout", "idle", "peer_limit", "port_limit", "tls_failed",
)  # fmt: skip

_SWEEP_S: Final = 0.5
_ACCEPT_AGAIN_S: Final = 0.5
_REPORT_EVERY_S: Final = 60.0
_TIMED_OUT: Final = b"HTTP/1.1 408 Request Timeout\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"

log = structlog.get_logger(__name__)


def limit_of_port() -> int:
    """Returns the most connections of one port: an eighth of the soft limit on file descriptors, 16 to 512."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return MAX_CONNECTIONS
    return max(MIN_CONNECTIONS, min(MAX_CONNECTIONS, soft // SHARE_OF_DESCRIPTORS))


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
        self._connections: OrderedDict[GuardedConnection, None] = OrderedDict()
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
            for sock in listening_sockets(self._setting, self._host, self.port):
                self.port = int(sock.getsockname()[1])
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
        await cancel_and_wait(*accepting)
        for connection in [one for one in self._connections if one.is_in_handshake]:
            connection.close()
        await self._runner.cleanup()
        await cancel_and_wait(*self._tasks)

    # Connections

    def _accept(self) -> GuardedConnection:
        return GuardedConnection(self)

    def _start_task(self, work: Coroutine[object, object, None], name: str) -> asyncio.Task[None]:
        """Runs a coroutine in a task that is cancelled when the listener stops."""
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
                connection = GuardedConnection(self)
                self._start_task(connection.secure(accepted, certificate.context), "handshake")

    def count_failed_handshake(self, error: OSError) -> None:
        """Counts a peer that does not speak TLS as this port does. A peer that only goes away is not counted."""
        if isinstance(error, ssl.SSLError):
            self._count("tls_failed")
            self._tls_error = (error.reason or type(error).__name__)[:100]

    def new_handler(self) -> web.RequestHandler:
        server = self._runner.server
        if server is None:
            raise RuntimeError("the listener is not running")
        return server()

    def admit(self, connection: GuardedConnection) -> bool:
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

    def _close(self, connection: GuardedConnection, reason: str) -> None:
        self._count(reason)
        self.forget(connection)
        connection.close(answer=_TIMED_OUT if reason == "head_timeout" else b"")

    def forget(self, connection: GuardedConnection) -> None:
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
