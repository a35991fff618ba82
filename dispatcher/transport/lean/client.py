"""The lean HTTP client: what changes per event is rendered, written, and the answer's status read. Nothing more."""

import asyncio
import time
from dataclasses import replace
from typing import Self
from weakref import WeakKeyDictionary, WeakSet

from dispatcher.outcomes import NO_PHASES, Attempt, FailureReason, Phases
from dispatcher.settings import DeliverySettings, EgressSettings
from dispatcher.transport import tls
from dispatcher.transport.dial import Dialer
from dispatcher.transport.egress import EgressGuard
from dispatcher.transport.failures import Failed
from dispatcher.transport.lean.connection import Connection
from dispatcher.transport.lean.pool import Destination, Pool, Stack
from dispatcher.transport.request import Endpoint, Request
from dispatcher.transport.resolver import Resolver
from dispatcher.transport.tls import TlsContexts, certificate_expiry
from dispatcher.transport.wire import HeaderBlock


class _Kept:
    """What is derived of an endpoint and kept while it lives."""

    __slots__ = ("block", "destination", "look_again", "stack")

    def __init__(self, endpoint: Endpoint) -> None:
        self.block = HeaderBlock(endpoint)
        self.look_again = 0.0
        self.destination: Destination
        self.stack: Stack


class LeanTransport:
    """Sends POSTs by HTTP/1.1 connections of our own. An async context manager; leaving it closes every connection.

    It does not limit how many connections are open at once: that is `delivery.max_in_flight`, which delivery keeps.
    As many may rest.
    """

    def __init__(self, delivery: DeliverySettings, egress: EgressSettings) -> None:
        self._resolver = Resolver(egress, EgressGuard(egress))
        self._contexts = TlsContexts(egress.ca_bundle)
        self._dialer = Dialer(egress, self._resolver, self._contexts)
        self._pool = Pool(delivery.max_in_flight)
        self._connections: WeakSet[Connection] = WeakSet()
        self._kept: WeakKeyDictionary[Endpoint, _Kept] = WeakKeyDictionary()

    async def __aenter__(self) -> Self:
        await self._resolver.__aenter__()
        return self

    async def __aexit__(self, *_: object) -> None:
        self._pool.close()
        for connection in list(self._connections):
            connection.fail(FailureReason.RESET, "the transport was closed")
        await self._resolver.__aexit__()
        await asyncio.sleep(0)  # the transports' `connection_lost`

    async def post(self, request: Request) -> Attempt:
        """Send one request. Never raises for anything that the network can do.

        Raises:
            ValueError: a header that can't be sent: a bug of the caller's.
        """
        started = time.monotonic()
        kept = self._kept.get(request.endpoint)
        if kept is None:
            kept = self._kept[request.endpoint] = _Kept(request.endpoint)
        data = kept.block.render(request.content_type, len(request.body), request.headers) + request.body
        connection: Connection | None = None
        reused = False
        try:
            if started >= kept.look_again:
                self._look_at(kept, request.endpoint, started)
            connection = self._pool.take(kept.stack)
            if connection is None:
                connection = await self._open(kept.destination, request)
            else:
                reused = True
            await connection.exchange(data, started + request.timeout_s, request.keep_body)
        except Failed as failed:
            elapsed = time.monotonic() - started
            phases = failed.phases or NO_PHASES
            return Attempt(elapsed, failure=failed.reason, detail=failed.detail, reused=reused, phases=phases)
        except BaseException:
            if connection is not None:
                connection.abort()  # cancelled: nobody waits for what is still to come
            raise
        now = time.monotonic()
        attempt = Attempt(
            now - started,
            connection.status,
            None,
            "",
            reused,
            connection.retry_after,
            connection.webhook_delivery,
            connection.body,
            _phases(connection, reused, now) if request.keep_body else NO_PHASES,
        )
        if connection.usable:
            self._pool.put(kept.stack, connection, now)
        return attempt

    def _look_at(self, kept: _Kept, endpoint: Endpoint, now: float) -> None:
        """The endpoint's TLS context may be another one, when the operator's CA bundle changed."""
        context = self._contexts.of(endpoint) if endpoint.scheme == "https" else None
        kept.destination = Destination(endpoint.scheme, endpoint.host, endpoint.port, context)
        kept.stack = self._pool.stack_of(kept.destination)
        kept.look_again = now + tls.BUNDLE_CHECK_S

    async def _open(self, destination: Destination, request: Request) -> Connection:
        scheme, host, port, context = destination
        try:
            async with asyncio.timeout(request.timeout_s):
                dialled = await self._dialer.dial(
                    scheme, host, port, context, request.connect_timeout_s, lambda: Connection(self._pool.forget)
                )
        except TimeoutError:
            detail = f"no connection within {request.timeout_s:g} s"
            raise Failed(FailureReason.CONNECT_TIMEOUT, detail) from None
        connection = dialled.protocol
        connection.phases, connection.below = dialled.phases, dialled.below
        self._connections.add(connection)
        return connection


def _phases(connection: Connection, reused: bool, now: float) -> Phases:
    made = connection.phases
    if reused:
        made = replace(made, dns_s=None, connect_s=None, tls_s=None)
    return replace(
        made,
        first_byte_s=connection.first_byte_at - connection.sent_at,
        body_s=now - connection.first_byte_at,
        certificate_expires=None if connection.tls is None else certificate_expiry(connection.tls),
    )
