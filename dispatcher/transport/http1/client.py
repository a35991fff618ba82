"""Implements the HTTP/1.1 client for this one job: renders what changes per event, writes it, reads the status."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Final, Self

from dispatcher.config.settings import DeliverySettings, EgressSettings
from dispatcher.contract.outcomes import NO_PHASES, Attempt, FailureReason, Phases
from dispatcher.transport import tls_contexts
from dispatcher.transport.dial import Dialer
from dispatcher.transport.egress import EgressGuard
from dispatcher.transport.endpoint import Endpoint
from dispatcher.transport.failures import TransportError
from dispatcher.transport.http1.connection import Connection
from dispatcher.transport.http1.destination import Destination, Stack
from dispatcher.transport.http1.pool import Pool
from dispatcher.transport.request import Request
from dispatcher.transport.request_head import HeaderBlock
from dispatcher.transport.resolver import Resolver
from dispatcher.transport.tls_contexts import TlsContexts

DNS_CHECK_S: Final = 2.5
"""Seconds between an endpoint's checks for an outdated DNS answer. Answers older than 10 s are looked up again."""
_DROPPED: Final = frozenset({FailureReason.RESET, FailureReason.TLS})
"""Failures of a connection that the server ended."""


class _PreparedEndpoint:
    """Data that is derived from an endpoint and kept for the endpoint's lifetime."""

    __slots__ = ("block", "destination", "look_again", "stack")

    def __init__(self, endpoint: Endpoint) -> None:
        self.block = HeaderBlock(endpoint)
        self.look_again = 0.0
        """Time of the next look at the CA bundle and the DNS answer; 0 before the first."""
        self.destination: Destination
        self.stack: Stack

    def rendered(self, request: Request) -> bytes:
        """Returns head and body as they are sent."""
        return self.block.render(request.content_type, len(request.body), request.headers) + request.body


class Http1Exchange:
    """A request in progress on a connection."""

    __slots__ = ("_connection", "_ended", "_is_over", "_keep", "_pool", "_reused", "_stack", "_started")

    def __init__(
        self, pool: Pool, stack: Stack, connection: Connection, keep: int, started: float,
        ended: Callable[[Attempt], None], *, reused: bool,
    ) -> None:  # fmt: skip
        self._pool = pool
        self._stack = stack
        self._connection = connection
        self._keep = keep
        self._started = started
        self._ended = ended
        self._reused = reused
        self._is_over = False
        """Another request may have the connection by now."""

    def send(self, data: bytes, timeout_s: float, body_wait_s: float) -> None:
        """Writes the request."""
        self._connection.exchange(data, self._started + timeout_s, self._keep, self._answered, body_wait_s)

    def abort(self) -> None:
        """Closes the connection without calling `ended`. Does nothing once the exchange has ended."""
        if not self._is_over:
            self._is_over = True
            self._connection.abort()

    def _answered(self, failed: TransportError | None) -> None:
        self._is_over = True
        if failed is not None:
            self._ended(_failed(failed, self._started, reused=self._reused))
            return
        connection, now = self._connection, time.monotonic()
        attempt = Attempt(
            now - self._started, connection.status, None, "", self._reused, connection.retry_after,
            connection.webhook_delivery, connection.body,
            _phases(connection, self._reused, now) if self._keep else NO_PHASES,
            www_authenticate=connection.www_authenticate,
        )  # fmt: skip
        if connection.usable:
            self._pool.put(self._stack, connection, now)
        self._ended(attempt)


class Http1Transport:
    """Sends POSTs on its own HTTP/1.1 connections. An async context manager; leaving it closes every connection.

    It does not limit how many connections are open at once: the deliverer enforces `delivery.max_in_flight`. As many
    may be idle.
    """

    def __init__(self, delivery: DeliverySettings, egress: EgressSettings) -> None:
        self._resolver = Resolver(egress, EgressGuard(egress))
        self._contexts = TlsContexts(egress.ca_bundle)
        self._dialer = Dialer(egress, self._resolver, self._contexts, delivery.connection_max_age)
        self._pool = Pool(delivery.max_in_flight)
        self._connections: set[Connection] = set()
        """All that are open; each removes itself when it is lost."""

    async def __aenter__(self) -> Self:
        await self._resolver.__aenter__()
        return self

    async def __aexit__(self, *_: object) -> None:
        self._pool.close()
        for connection in list(self._connections):
            connection.fail(FailureReason.RESET, "the transport was closed")
        await self._contexts.close()
        await self._resolver.__aexit__()
        await asyncio.sleep(0)  # the transports' `connection_lost`

    async def post(self, request: Request) -> Attempt:
        """Sends one request. Never raises for anything that the network can do.

        Raises:
            ValueError: a header can't be sent; the caller has a bug.
        """
        answer: asyncio.Future[Attempt] = asyncio.get_running_loop().create_future()
        exchange = self.start_post(request, partial(_settle, answer))
        if exchange is not None:
            return await _answer_or_abort(answer, exchange)
        started = time.monotonic()
        try:
            if request.endpoint.scheme == "https":
                await self._contexts.prepare(request.endpoint, request.timeout_s / 2)
            kept = self._prepared(request.endpoint, started, makes_context=True)
            connection, attempt = await self._exchange(kept, request, started)
            if connection.was_dropped_after_resumption and attempt.failure in _DROPPED:
                # Some servers accept a TLS session and then end the connection: retry once without a session.
                _forget_session(kept.destination)
                _, attempt = await self._exchange(kept, request, started)
        except TransportError as failed:
            return _failed(failed, started, reused=False, detail=failed.detail_for(request.endpoint))
        return attempt

    async def _exchange(self, kept: _PreparedEndpoint, request: Request, started: float) -> tuple[Connection, Attempt]:
        """Opens a connection and sends the request on it.

        Raises:
            TransportError: there is no connection.
        """
        answer: asyncio.Future[Attempt] = asyncio.get_running_loop().create_future()
        connection = await self._open(kept.destination, request, started)
        if not connection.usable:  # lost before this task resumed; nothing would end the exchange but its deadline
            lost = TransportError(
                FailureReason.RESET, "the connection was closed before the request", connection.phases
            )
            return connection, _failed(lost, started, reused=False)
        exchange = Http1Exchange(
            self._pool, kept.stack, connection, request.keep_body, started, partial(_settle, answer), reused=False
        )
        exchange.send(kept.rendered(request), request.timeout_s, request.body_wait_s)
        return connection, await _answer_or_abort(answer, exchange)

    def start_post(self, request: Request, on_result: Callable[[Attempt], None]) -> Http1Exchange | None:
        """Sends the request on an idle connection without awaiting. Calls `on_result` once, unless it is aborted.

        Returns None, and sends nothing, if no connection is idle: `post` opens one, or says why it can't.

        Raises:
            ValueError: as `post`.
        """
        started = time.monotonic()
        try:
            kept = self._prepared(request.endpoint, started, makes_context=False)
        except TransportError:
            return None  # `post` reports it
        data = kept.rendered(request)
        connection = self._pool.take(kept.stack, started)
        if connection is None:
            return None
        exchange = Http1Exchange(self._pool, kept.stack, connection, request.keep_body, started, on_result, reused=True)
        exchange.send(data, request.timeout_s, request.body_wait_s)
        return exchange

    def _prepared(self, endpoint: Endpoint, now: float, *, makes_context: bool) -> _PreparedEndpoint:
        kept = endpoint.derived.get(self)
        if not isinstance(kept, _PreparedEndpoint):
            kept = endpoint.derived[self] = _PreparedEndpoint(endpoint)
        if now >= kept.look_again:
            if not makes_context and endpoint.scheme == "https" and not self._contexts.is_made(endpoint):
                raise TransportError(FailureReason.LOCAL, "its TLS context is to be made first")
            self._look_at(kept, endpoint, now)
        return kept

    def _look_at(self, kept: _PreparedEndpoint, endpoint: Endpoint, now: float) -> None:
        """Applies a changed CA bundle of the operator and a moved endpoint."""
        context = self._contexts.of(endpoint) if endpoint.scheme == "https" else None
        if not kept.look_again or kept.destination.context is not context:
            kept.destination = Destination(endpoint.scheme, endpoint.host, endpoint.port, context)
            kept.stack = self._pool.stack_of(kept.destination)
        kept.stack.answer = self._dialer.watch(endpoint.host)
        kept.look_again = now + min(tls_contexts.BUNDLE_CHECK_S, DNS_CHECK_S)

    def _connection(self) -> Connection:
        return Connection(self._pool.forget, self._connections.discard)

    async def _open(self, destination: Destination, request: Request, started: float) -> Connection:
        scheme, host, port, context = destination
        dialled = await self._dialer.dial(
            scheme, host, port, context, request.connect_timeout_s, started + request.timeout_s, self._connection
        )
        connection = dialled.protocol
        connection.phases, connection.below = dialled.phases, dialled.below
        connection.is_resumed = dialled.is_resumed
        connection.retires_at = self._dialer.retirement(time.monotonic())
        if connection.usable:
            self._connections.add(connection)
        return connection


def _settle(answer: "asyncio.Future[Attempt]", attempt: Attempt) -> None:
    if not answer.done():  # otherwise it was cancelled
        answer.set_result(attempt)


async def _answer_or_abort(answer: "asyncio.Future[Attempt]", exchange: Http1Exchange) -> Attempt:
    try:
        return await answer
    except BaseException:
        exchange.abort()  # cancelled: no caller waits for the answer
        raise


def _forget_session(destination: Destination) -> None:
    if destination.context is not None:
        destination.context.sessions.forget((destination.host, destination.port), is_refused=True)


def _failed(failed: TransportError, started: float, *, reused: bool, detail: str = "") -> Attempt:
    return Attempt(
        time.monotonic() - started, failure=failed.reason, detail=detail or failed.detail, reused=reused,
        phases=failed.phases or NO_PHASES,
    )  # fmt: skip


def _phases(connection: Connection, reused: bool, now: float) -> Phases:
    made = connection.phases
    if reused:
        made = replace(made, dns_s=None, connect_s=None, tls_s=None)
    return replace(
        made,
        request_s=connection.request_s,
        first_byte_s=connection.first_byte_at - connection.sent_at,
        body_s=now - connection.first_byte_at,
        certificate_expires=connection.certificate_expires,
    )
