"""Opens every connection to an endpoint: resolves, checks, connects, tunnels and performs the TLS handshake.

Both HTTP clients get their connections here, so neither can reach an address that the guard did not check. With the
operator's proxy and `resolve: local` the name is resolved and checked here, and CONNECT names the address; with
`resolve: proxy` CONNECT names the host, and the guard has checked its name only. TLS, SNI and the certificate check use
the host, inside the tunnel.
"""

import asyncio
import random
import socket
import ssl
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Final, Generic, TypeVar

import structlog

from dispatcher.config.secrets import RotatingSecret
from dispatcher.config.settings import EgressSettings
from dispatcher.contract.outcomes import FailureReason, Phases
from dispatcher.telemetry import metrics
from dispatcher.transport.certificate_expiry import note_expiry, note_refusal
from dispatcher.transport.egress import ProxyAddress
from dispatcher.transport.failures import TransportError, clip, connect_failure, describe, is_unknown_ca
from dispatcher.transport.happy_eyeballs import connect_first
from dispatcher.transport.resolved_addresses import ResolvedAddresses
from dispatcher.transport.resolver import Resolver
from dispatcher.transport.tls_contexts import TlsContexts
from dispatcher.transport.tls_sessions import DIALLED, HostAndPort, TlsContext, TlsObject, tls_of
from dispatcher.transport.tls_transport import TlsTransport, shake_hands
from dispatcher.transport.tunnel import open_tunnel

P = TypeVar("P", bound=asyncio.Protocol)

AGE_JITTER: Final = 0.2
"""A connection's age limit is shorter by up to this share, so that connections opened together don't end together."""


PASSWORD_CHECK_S: Final = 10.0
"""Seconds between two readings of the egress proxy's password; after a failure of the proxy it is read at once."""

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Dialled(Generic[P]):
    """A connection ready for a request, and how it was opened."""

    transport: asyncio.Transport
    below: asyncio.Transport
    """The transport under TLS, or the same transport without TLS. Its buffer holds what the peer has not taken yet."""
    protocol: P
    phases: Phases
    is_resumed: bool
    """TLS resumed a session. If the server drops the connection before it answers, it may not want that."""


class Dialer:
    """Opens connections to endpoints."""

    def __init__(
        self, settings: EgressSettings, resolver: Resolver, contexts: TlsContexts, connection_max_age_s: float
    ) -> None:
        self._resolver = resolver
        self._contexts = contexts
        self._proxy_settings = settings.proxy
        self._proxy = None if settings.proxy is None else ProxyAddress.of(settings.proxy)
        password = None if settings.proxy is None else settings.proxy.password
        self._password = None if password is None else RotatingSecret(password, "egress.proxy.password")
        self._reread_at = time.monotonic() + PASSWORD_CHECK_S
        self._max_age_s = connection_max_age_s

    def watch(self, host: str) -> ResolvedAddresses | None:
        """Returns the latest DNS answer for a host without waiting; None if it isn't resolved here."""
        return None if self._proxy is not None and self._proxy.resolves else self._resolver.watch(host)

    def retirement(self, now: float) -> float:
        """Returns the time until which a connection that is opened at `now` may be reused."""
        return now + self._max_age_s * (1 - AGE_JITTER * random.random())  # noqa: S311  (spreads load, hides nothing)

    async def dial(
        self,
        scheme: str,
        host: str,
        port: int,
        context: TlsContext | None,
        timeout_s: float,
        deadline: float,
        factory: Callable[[], P],
    ) -> Dialled[P]:
        """Returns a new connection, TLS done if a context is given.

        `timeout_s` is for connect and TLS, not for DNS; `deadline`, by the monotonic clock, is for all of it. Both are
        enforced here, because only the dialer knows what it is waiting for: its own proxy and threads aren't evidence.

        If a TLS handshake that offered a session fails, the session is forgotten and the server dialled once more
        without it, within the same time.

        Raises:
            TransportError: any reason but TIMEOUT, RESET and TOKEN.
        """
        route = await self._route(scheme, host, port, context, timeout_s, deadline)
        dialled = DIALLED.set((host, port))  # before any socket: uvloop keeps the context in which one was created
        try:
            async with asyncio.timeout(route.timeout_s):
                try:
                    return await self._once(route, factory)
                except TransportError as failed:
                    if not (route.offers_session and _may_be_the_session(failed)):
                        raise
                    route.forget_session()
                return await self._once(route, factory)
        except asyncio.CancelledError:
            route.forget_session(is_refused=False)
            raise
        except TimeoutError:
            route.forget_session(is_refused=route.timeout_s == timeout_s)  # the deadline may leave too little time
            is_ours = self._proxy is not None and not route.is_tunnelled
            reason = FailureReason.PROXY if is_ours else FailureReason.CONNECT_TIMEOUT
            raise TransportError(reason, f"no connection within {route.timeout_s:.2g} s", route.phases) from None
        except TransportError as failed:
            failed.phases = route.phases
            raise
        finally:
            DIALLED.reset(dialled)

    async def _route(
        self, scheme: str, host: str, port: int, context: TlsContext | None, timeout_s: float, deadline: float
    ) -> "_Route":
        """Resolves and checks the host; if the proxy resolves, only checks it."""
        started = time.monotonic()
        now = started
        if self._proxy is not None and self._proxy.resolves:
            self._resolver.check(scheme, host, port)
            addresses: tuple[str, ...] = (host,)
            phases = Phases()
        else:
            addresses = await self._resolver.resolve(scheme, host, port, deadline - started)
            now = time.monotonic()
            phases = Phases(dns_s=now - started, address=addresses[0])
        return _Route(host, port, context, addresses, phases, min(timeout_s, max(deadline - now, 0.0)))

    def _once(self, route: "_Route", factory: Callable[[], P]) -> Coroutine[object, object, Dialled[P]]:
        return self._directly(route, factory) if self._proxy is None else self._through(self._proxy, route, factory)

    async def _directly(self, route: "_Route", factory: Callable[[], P]) -> Dialled[P]:
        loop, started = asyncio.get_running_loop(), time.monotonic()
        try:
            sock, address = await connect_first(route.addresses, route.port, route.timeout_s)
        except OSError as error:
            raise connect_failure(error) from error
        phases = route.phases = replace(route.phases, connect_s=time.monotonic() - started, address=address)
        if route.context is not None:
            return await _with_tls_on(sock, route, route.context, phases, factory)
        try:
            transport, protocol = await loop.create_connection(factory, sock=sock)
        except BaseException:
            sock.close()
            raise
        return Dialled(transport, transport, protocol, phases, is_resumed=False)

    async def _through(self, proxy: ProxyAddress, route: "_Route", factory: Callable[[], P]) -> Dialled[P]:
        if route.context is None:
            raise TransportError(FailureReason.PROXY, "the proxy tunnels HTTPS only")
        route.is_tunnelled = False
        await self._refresh_password()
        proxy = self._proxy or proxy
        started = time.monotonic()
        outer = None
        if proxy.tls:
            await self._contexts.prepare(None, route.timeout_s)
            outer = self._contexts.of_operator()
        try:
            entrances = await self._resolver.lookup(proxy.host)
        except TransportError as error:
            reason = FailureReason.PROXY if error.reason is FailureReason.DNS else error.reason
            raise TransportError(reason, error.detail) from error
        try:
            tunnel, target = await open_tunnel(proxy, entrances, outer, route.addresses, route.port, route.timeout_s)
        except TransportError as failed:
            if failed.reason is FailureReason.PROXY:
                self._reread_at = 0.0  # perhaps the password was changed
            raise
        route.is_tunnelled = True
        address = None if proxy.resolves else target
        phases = route.phases = replace(route.phases, connect_s=time.monotonic() - started, address=address)
        return await _with_tls_above(tunnel, route, route.context, phases, factory)

    async def _refresh_password(self) -> None:
        """Reads the proxy's password again, so that a rotation needs no restart."""
        settings, now = self._proxy_settings, time.monotonic()
        if settings is None or self._password is None or now < self._reread_at:
            return
        self._reread_at = now + PASSWORD_CHECK_S
        password = await asyncio.to_thread(self._password.current)
        self._proxy = ProxyAddress.of(settings.model_copy(update={"password": password}))


@dataclass(slots=True)
class _Route:
    host: str
    port: int
    context: TlsContext | None
    addresses: tuple[str, ...]
    """The host itself if the proxy resolves it."""
    phases: Phases
    """The phases completed so far."""
    timeout_s: float
    """Time for connect and TLS, as far as the deadline leaves it."""
    offers_session: bool = False
    is_tunnelled: bool = False
    """The proxy has connected: whatever fails from now on is the endpoint's failure."""

    @property
    def place(self) -> HostAndPort:
        return self.host, self.port

    def forget_session(self, *, is_refused: bool = True) -> None:
        if self.offers_session and self.context is not None:
            self.context.sessions.forget(self.place, is_refused=is_refused)
            self.offers_session = False


def _may_be_the_session(failed: TransportError) -> bool:
    # A certificate is only looked at in a full handshake: there the session was declined, as it should be.
    return failed.reason is FailureReason.TLS and not isinstance(failed.__cause__, ssl.SSLCertVerificationError)


async def _with_tls_on(
    sock: socket.socket, route: _Route, context: TlsContext, phases: Phases, factory: Callable[[], P]
) -> Dialled[P]:
    """Performs the TLS handshake with the route's host on a connected socket, which is closed if it fails."""
    started, protocol = time.monotonic(), factory()
    route.offers_session = context.sessions.get(route.place) is not None
    try:
        with _handshake_failures(route.place):
            tls = context.wrap(route.place)
            await shake_hands(sock, tls)
            phases, is_resumed = _after_handshake(tls, route, phases, started)
    except BaseException:
        sock.close()
        raise
    transport = TlsTransport(sock, tls, protocol)
    return Dialled(transport, transport, protocol, phases, is_resumed)


async def _with_tls_above(
    below: asyncio.Transport, route: _Route, context: TlsContext, phases: Phases, factory: Callable[[], P]
) -> Dialled[P]:
    """Performs the TLS handshake with the route's host in the tunnel `below`, which is closed if it fails."""
    started, protocol, is_resumed = time.monotonic(), factory(), False
    route.offers_session = context.sessions.get(route.place) is not None
    try:
        with _handshake_failures(route.place):
            transport = await asyncio.get_running_loop().start_tls(below, protocol, context, server_hostname=route.host)
            if transport is not None and (tls := tls_of(transport)) is not None:
                phases, is_resumed = _after_handshake(tls, route, phases, started)
        if transport is None:
            raise TransportError(FailureReason.TLS, "closed during the TLS handshake")
    except BaseException:
        below.abort()
        raise
    protocol.connection_made(transport)  # start_tls leaves this to its caller
    return Dialled(transport, below, protocol, phases, is_resumed)


def _after_handshake(tls: TlsObject, route: _Route, phases: Phases, started: float) -> tuple[Phases, bool]:
    """Notes what is known after a handshake. Returns the phases with it, and whether a session was resumed."""
    note_expiry(route.place, tls)
    return replace(phases, tls_s=time.monotonic() - started, tls_version=tls.version()), bool(tls.session_reused)


@contextmanager
def _handshake_failures(place: HostAndPort) -> Iterator[None]:
    """Raises what fails in a handshake as a TransportError."""
    try:
        yield
    except (OSError, ssl.CertificateError) as error:
        note_refusal(place, error)
        raise _handshake_failure(error) from error
    except Exception as error:
        if isinstance(error, TypeError) and isinstance(error.__context__, OSError):
            # TLS within TLS in CPython up to 3.11.7: asyncio trips over reporting the handshake's own failure.
            raise _handshake_failure(error.__context__) from error
        # A bug that this server's handshake or certificate meets: other tenants' events must not wait because of it.
        metrics.ERRORS.labels("transport").inc()
        log.exception("TLS handshake failed because of a bug", host=place[0], port=place[1])
        raise TransportError(FailureReason.TLS, f"the TLS handshake failed: {type(error).__name__}") from error


def _handshake_failure(error: OSError | ssl.CertificateError) -> TransportError:
    if isinstance(error, ConnectionError | ssl.SSLEOFError | ssl.SSLZeroReturnError):
        return TransportError(FailureReason.TLS, clip(f"closed during the TLS handshake ({describe(error)})"))
    return TransportError(FailureReason.TLS, describe(error), is_unknown_ca=is_unknown_ca(error))
