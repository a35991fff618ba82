"""The only place that opens a socket to an endpoint: resolve, check, connect, tunnel, TLS.

Both HTTP clients get their connections here, so that neither can come to an address the guard did not see. With the
operator's proxy the name is still resolved and checked here, and CONNECT names the checked address; TLS, SNI and
certificate check are with the host, inside the tunnel. (A name that doesn't resolve here is a DNS failure, proxy or
not: what can't be checked isn't connected to.)
"""

import asyncio
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

from dispatcher.config.settings import EgressSettings
from dispatcher.contract.outcomes import FailureReason, Phases
from dispatcher.transport.egress import ProxyAddress
from dispatcher.transport.failures import TransportError, clip, connect_failure, describe
from dispatcher.transport.happy_eyeballs import connect_first
from dispatcher.transport.resolver import Resolver
from dispatcher.transport.tls import TlsContext, TlsContexts, note_expiry
from dispatcher.transport.tunnel import open_tunnel

P = TypeVar("P", bound=asyncio.Protocol)


@dataclass(frozen=True, slots=True)
class Dialled(Generic[P]):
    """A connection ready for a request, and how it came about."""

    transport: asyncio.Transport
    below: asyncio.Transport
    """The transport under TLS; the same where there is none. Its buffer is what the peer has not taken yet."""
    protocol: P
    phases: Phases


class Dialer:
    """Opens connections to endpoints."""

    def __init__(self, settings: EgressSettings, resolver: Resolver, contexts: TlsContexts) -> None:
        self._resolver = resolver
        self._contexts = contexts
        self._proxy = None if settings.proxy is None else ProxyAddress.parse(settings.proxy)

    async def dial(
        self,
        scheme: str,
        host: str,
        port: int,
        context: TlsContext | None,
        timeout_s: float,
        factory: Callable[[], P],
    ) -> Dialled[P]:
        """A new connection, TLS done where a context is given. `timeout_s` is for connect and TLS, not for DNS.

        Raises:
            Failed: any reason but TIMEOUT, RESET and TOKEN.
        """
        started = time.monotonic()
        addresses = await self._resolver.resolve(scheme, host, port)
        phases = Phases(dns_s=time.monotonic() - started, address=addresses[0])
        route = _Route(host, port, context, addresses, phases)
        try:
            async with asyncio.timeout(timeout_s):
                return await (self._directly(route, factory) if self._proxy is None else
                              self._through(self._proxy, route, factory))  # fmt: skip
        except TimeoutError:
            reason = FailureReason.CONNECT_TIMEOUT if self._proxy is None else FailureReason.PROXY
            raise TransportError(reason, f"no connection within {timeout_s:g} s", route.phases) from None
        except TransportError as failed:
            failed.phases = route.phases
            raise

    async def _directly(self, route: "_Route", factory: Callable[[], P]) -> Dialled[P]:
        loop, started = asyncio.get_running_loop(), time.monotonic()
        try:
            sock, address = await connect_first(route.addresses, route.port)
        except OSError as error:
            raise connect_failure(error) from error
        phases = route.phases = replace(route.phases, connect_s=time.monotonic() - started, address=address)
        try:
            if route.context is None:
                transport, protocol = await loop.create_connection(factory, sock=sock)
                return Dialled(transport, transport, protocol, phases)
            below, _ = await loop.create_connection(asyncio.Protocol, sock=sock)
        except BaseException:
            sock.close()
            raise
        return await _with_tls(below, route, route.context, phases, factory)

    async def _through(self, proxy: ProxyAddress, route: "_Route", factory: Callable[[], P]) -> Dialled[P]:
        if route.context is None:
            raise TransportError(FailureReason.PROXY, "the proxy tunnels HTTPS only")
        started = time.monotonic()
        outer = self._contexts.of_operator() if proxy.tls else None
        try:
            entrances = await self._resolver.lookup(proxy.host)
        except TransportError as error:
            raise TransportError(FailureReason.PROXY, error.detail) from error
        tunnel, address = await open_tunnel(proxy, entrances, outer, route.addresses, route.port)
        phases = route.phases = replace(route.phases, connect_s=time.monotonic() - started, address=address)
        return await _with_tls(tunnel, route, route.context, phases, factory)


@dataclass(slots=True)
class _Route:
    host: str
    port: int
    context: TlsContext | None
    addresses: tuple[str, ...]
    phases: Phases
    """As far as it has come."""


async def _with_tls(
    below: asyncio.Transport, route: _Route, context: TlsContext, phases: Phases, factory: Callable[[], P]
) -> Dialled[P]:
    """TLS with the route's host on a connection to one of its addresses; `below` is closed where that fails."""
    started, protocol = time.monotonic(), factory()
    try:
        transport = await asyncio.get_running_loop().start_tls(below, protocol, context, server_hostname=route.host)
    except (OSError, ssl.CertificateError) as error:
        below.abort()
        raise _handshake_failure(error) from error
    except TypeError as error:
        # TLS within TLS in CPython up to 3.11.7: asyncio trips over reporting the handshake's own failure.
        below.abort()
        if not isinstance(error.__context__, OSError):
            raise
        raise _handshake_failure(error.__context__) from error
    except BaseException:
        below.abort()
        raise
    if transport is None:
        raise TransportError(FailureReason.TLS, "closed during the TLS handshake")
    protocol.connection_made(transport)  # start_tls leaves this to its caller
    tls = transport.get_extra_info("ssl_object")
    version = None
    if isinstance(tls, ssl.SSLObject):
        version = tls.version()
        note_expiry(route.host, tls)
    return Dialled(transport, below, protocol, replace(phases, tls_s=time.monotonic() - started, tls_version=version))


def _handshake_failure(error: OSError | ssl.CertificateError) -> TransportError:
    if isinstance(error, ssl.SSLError) or not isinstance(error, ConnectionError):
        return TransportError(FailureReason.TLS, describe(error))
    return TransportError(FailureReason.TLS, clip(f"closed during the TLS handshake ({describe(error)})"))
