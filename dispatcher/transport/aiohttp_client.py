"""Implements the HTTP client with aiohttp: every POST returns one `Attempt`, whatever the network does.

aiohttp parses, pools and writes. Connections come from the dialer, so aiohttp's resolver, proxy support and TLS
defaults are never used. Redirects, cookies, decompression and the environment's proxies are off. The table `FAILURE_OF`
translates foreign exceptions; any other exception is a bug and propagates.
"""

import asyncio
import contextlib
import ssl
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from contextvars import ContextVar
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Final, Self

import aiohttp
from aiohttp.client_proto import ResponseHandler
from aiohttp.client_reqrep import ConnectionKey
from aiohttp.connector import Connection
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.tracing import Trace
from multidict import CIMultiDict
from yarl import URL

from dispatcher.config.settings import DeliverySettings, EgressSettings
from dispatcher.contract.outcomes import NO_PHASES, Attempt, FailureReason, Phases
from dispatcher.transport import request_head
from dispatcher.transport.answer_head import (
    MAX_RESPONSE,
    MAX_RESPONSE_BODY,
    MAX_RESPONSE_HEAD,
    MAX_RESPONSE_HEADERS,
    AnswerHead,
    read_answer_head,
)
from dispatcher.transport.dial import Dialer
from dispatcher.transport.egress import EgressGuard
from dispatcher.transport.failures import TransportError, clip, describe
from dispatcher.transport.request import USER_AGENT, Endpoint, Request
from dispatcher.transport.resolver import ResolvedAddresses, Resolver
from dispatcher.transport.tls import TlsContext, TlsContexts, certificate_expiry, remember_session

KEEPALIVE_S = 60.0
_IGNORED_HEAD: Final = 8 * 1024
"""Bytes that a head may have beyond its names and values: status line, separators, 1xx answers."""
_DROPPED: Final = frozenset({FailureReason.RESET, FailureReason.TLS})
_SPARE_CONNECTIONS = 64
"""Connections beyond max_in_flight, so that test events and token requests don't queue behind deliveries."""

FAILURE_OF: tuple[tuple[type[Exception], FailureReason], ...] = (  # first match wins
    (ssl.SSLError, FailureReason.TLS),
    (aiohttp.ServerDisconnectedError, FailureReason.RESET),
    (aiohttp.ClientResponseError, FailureReason.PROTOCOL),
    (aiohttp.ClientPayloadError, FailureReason.RESET),
    (HttpProcessingError, FailureReason.PROTOCOL),
    (aiohttp.ClientError, FailureReason.RESET),
    (OSError, FailureReason.RESET),
)


class _Handler(ResponseHandler):
    """aiohttp's connection, extended: it keeps how it was opened and reads an answer's head beside aiohttp's parser."""

    phases = Phases()
    below: asyncio.Transport | None = None
    """The transport under TLS. Its write buffer holds what the peer has not taken of the request."""
    retires_at = float("inf")
    """From then on it is not used again; seconds of the monotonic clock."""
    answer: ResolvedAddresses | None = None
    """The latest DNS answer for the host; None if it isn't resolved here."""
    tls: ssl.SSLObject | None = None
    is_resumed = False
    requests = 0
    resting = False
    """No request is in progress: bytes that arrive now would be taken for the answer to the next one."""
    raw = 0
    """Bytes received since the request."""
    head: AnswerHead | None = None
    """The head of the current answer, once it is complete."""
    body = b""
    """Bytes that arrived behind the head when it became complete."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop)
        self._begun = b""

    @property
    def was_dropped_after_resumption(self) -> bool:
        """The server ended a connection with a resumed TLS session before it answered the first request."""
        return self.is_resumed and self.requests == 1 and not self.raw

    @property
    def is_over(self) -> bool:
        """True if the connection is too old or its host has moved: it must not be used again."""
        address = self.phases.address
        outdated = self.answer is not None and address is not None and self.answer.is_outdated(address)
        return outdated or time.monotonic() >= self.retires_at

    def on_request(self) -> None:
        """Resets what the last request left; called before a request is written."""
        self.resting, self.raw, self.head, self.body, self._begun = False, 0, None, b"", b""
        self.requests += 1

    def data_received(self, data: bytes) -> None:
        self.raw += len(data)
        if self.resting and data:  # aiohttp calls it with nothing, too
            self.close()
        elif self.raw > MAX_RESPONSE and self.transport is not None:
            self.transport.abort()
        elif self.head is not None or not data:
            super().data_received(data)
        else:
            self._begin_answer(data)

    def _begin_answer(self, data: bytes) -> None:
        """Holds a head back until it is complete, so that a head that aiohttp refuses can be read leniently."""
        self._begun += data
        try:
            self.head = read_answer_head(self._begun)
        except ValueError as error:
            self.set_exception(HttpProcessingError(message=str(error)))
            if self.transport is not None:
                self.transport.abort()
            return
        if self.head is not None:
            self.body = self._begun[self.head.end :]
            super().data_received(self._begun)
        elif len(self._begun) > MAX_RESPONSE_HEAD + _IGNORED_HEAD and self.transport is not None:
            self.set_exception(HttpProcessingError(message="headers without end"))
            self.transport.abort()


class _Connector(aiohttp.BaseConnector):
    """aiohttp's connection pool, with connections from our dialer."""

    allowed_protocol_schema_set = frozenset({"http", "https"})

    def __init__(self, dialer: Dialer, limit: int) -> None:
        super().__init__(keepalive_timeout=KEEPALIVE_S, limit=limit, limit_per_host=limit)
        self._dialer = dialer

    async def _create_connection(
        self, req: aiohttp.ClientRequest, _traces: list[Trace], timeout: aiohttp.ClientTimeout
    ) -> ResponseHandler:
        url = req.url
        context = req.ssl if isinstance(req.ssl, TlsContext) else None
        dialled = await self._dialer.dial(
            url.scheme,
            (url.raw_host or "").strip("[]"),
            url.port or 443,
            context,
            timeout.sock_connect or 0,
            lambda: _Handler(self._loop),
        )
        protocol = dialled.protocol
        protocol.phases, protocol.below, protocol.is_resumed = dialled.phases, dialled.below, dialled.is_resumed
        tls = dialled.transport.get_extra_info("ssl_object")
        protocol.tls = tls if isinstance(tls, ssl.SSLObject) else None
        protocol.retires_at = self._dialer.retirement(time.monotonic())
        protocol.answer = self._dialer.watch((url.raw_host or "").strip("[]"))
        return protocol

    async def connect(
        self, req: aiohttp.ClientRequest, traces: list[Trace], timeout: aiohttp.ClientTimeout
    ) -> Connection:
        answer = self._dialer.watch((req.url.raw_host or "").strip("[]"))
        for protocol, _ in self._conns.get(req.connection_key, ()):
            if isinstance(protocol, _Handler):
                protocol.answer = answer
                if protocol.is_over:
                    protocol.close()  # aiohttp passes over closed ones
        connection = await super().connect(req, traces, timeout)
        if isinstance(connection.protocol, _Handler):
            connection.protocol.on_request()
            _PROGRESS.get().handler = connection.protocol
        return connection

    def _release(self, key: ConnectionKey, protocol: ResponseHandler, *, should_close: bool = False) -> None:
        if isinstance(protocol, _Handler):
            protocol.resting = True
            below = protocol.below
            should_close |= below is not None and below.get_write_buffer_size() > 0  # answered too early
            should_close |= protocol.is_over or (protocol.head is not None and protocol.head.is_odd)
        super()._release(key, protocol, should_close=should_close)


class _Response(aiohttp.ClientResponse):
    """aiohttp's response, extended: it keeps the connection's phases after the connection returned to the pool."""

    phases = Phases()
    tls: ssl.SSLObject | None = None

    async def start(self, connection: Connection) -> aiohttp.ClientResponse:
        handler = connection.protocol
        answer = await super().start(connection)
        if isinstance(handler, _Handler):
            self.phases, self.tls = handler.phases, handler.tls
            if self.tls is not None and handler.requests == 1:
                remember_session(self.tls)
        return answer


@dataclass(slots=True)
class _RequestProgress:
    """Progress of one POST, reported by aiohttp's tracing."""

    started: float
    connected_at: float | None = None
    reused: bool = False
    sent_at: float | None = None
    handler: _Handler | None = None


_PROGRESS: ContextVar[_RequestProgress] = ContextVar("_PROGRESS")
"""Progress of the POST that the current task makes: aiohttp's connector does not receive the request's context."""


class AiohttpTransport:
    """Sends POSTs with aiohttp. An async context manager; leaving it closes every connection."""

    def __init__(self, delivery: DeliverySettings, egress: EgressSettings) -> None:
        self._limit = delivery.max_in_flight + _SPARE_CONNECTIONS
        self._max_age_s = delivery.connection_max_age
        self._egress = egress
        self._contexts = TlsContexts(egress.ca_bundle)
        self._parts = AsyncExitStack()
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        resolver = await self._parts.enter_async_context(Resolver(self._egress, EgressGuard(self._egress)))
        dialer = Dialer(self._egress, resolver, self._contexts, self._max_age_s)
        self._session = await self._parts.enter_async_context(
            aiohttp.ClientSession(
                connector=_Connector(dialer, self._limit),
                cookie_jar=aiohttp.DummyCookieJar(),
                skip_auto_headers=("accept", "accept-encoding", "user-agent", "content-type"),
                timeout=aiohttp.ClientTimeout(total=None),
                auto_decompress=False,
                trust_env=False,
                trace_configs=[_tracing()],
                max_field_size=MAX_RESPONSE_HEAD,
                max_headers=MAX_RESPONSE_HEADERS,
                response_class=_Response,
            )
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._parts.aclose()

    def start_post(self, request: Request, on_result: Callable[[Attempt], None]) -> None:
        """Returns None always: aiohttp needs the task of `post`."""

    async def post(self, request: Request) -> Attempt:
        """Sends one request. Never raises for anything that the network can do.

        Raises:
            ValueError: a header can't be sent; the caller has a bug.
        """
        progress = _RequestProgress(time.monotonic())
        _PROGRESS.set(progress)
        attempt = await self._attempt(request, progress)
        handler = progress.handler
        if handler is not None and handler.was_dropped_after_resumption and attempt.failure in _DROPPED:
            # Some servers accept a TLS session and then end the connection: retry once without a session.
            self._forget_session(request.endpoint)
            progress.handler = None
            attempt = await self._attempt(request, progress)
        return attempt

    async def _attempt(self, request: Request, progress: _RequestProgress) -> Attempt:
        phases = None
        try:
            async with asyncio.timeout(progress.started + request.timeout_s - time.monotonic()):
                return await self._post(request, progress)
        except TimeoutError:
            if progress.connected_at is not None:
                reason, detail = FailureReason.TIMEOUT, f"no whole answer within {request.timeout_s:g} s"
            else:
                reason, detail = FailureReason.CONNECT_TIMEOUT, f"no connection within {request.timeout_s:g} s"
        except TransportError as failed:
            reason, detail, phases = failed.reason, failed.detail, failed.phases
        except tuple(kind for kind, _ in FAILURE_OF) as error:
            reason, detail = _failure(error)
        head = None if progress.handler is None else progress.handler.head
        if progress.handler is not None and head is not None:  # the status counts, however the body is framed or cut
            return Attempt(
                time.monotonic() - progress.started,
                status=head.status,
                reused=progress.reused,
                retry_after=head.retry_after,
                webhook_delivery=head.webhook_delivery,
                www_authenticate=head.www_authenticate,
                body=progress.handler.body[: request.keep_body],
            )
        return Attempt(
            time.monotonic() - progress.started,
            failure=reason,
            detail=detail,
            reused=progress.reused,
            phases=phases or NO_PHASES,
        )

    def _forget_session(self, endpoint: Endpoint) -> None:
        self._contexts.of(endpoint).sessions.forget((endpoint.host, endpoint.port), is_refused=True)

    async def _post(self, request: Request, progress: _RequestProgress) -> Attempt:
        endpoint = request.endpoint
        if self._session is None:
            raise RuntimeError("the transport is not open")
        context = self._contexts.of(endpoint) if endpoint.scheme == "https" else True
        async with self._session.post(
            _url_of(endpoint),
            data=request.body,
            headers=self._headers(request),
            ssl=context,
            allow_redirects=False,
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=request.connect_timeout_s),
            trace_request_ctx=progress,
        ) as response:
            first_byte = time.monotonic()
            body = await _read(response, request.keep_body)
            return _attempt(response, request, progress, body, first_byte)

    def _headers(self, request: Request) -> CIMultiDict[str]:
        derived = request.endpoint.derived
        block = derived.get(self)
        if not isinstance(block, request_head.HeaderBlock):
            block = derived[self] = request_head.HeaderBlock(request.endpoint)
        return CIMultiDict(
            [
                ("host", block.authority),
                ("content-type", request.content_type),
                ("user-agent", USER_AGENT),
                ("content-length", str(len(request.body))),
                *request_head.checked(request.headers),
                *block.endpoint_headers,
            ]
        )


def _url_of(endpoint: Endpoint) -> URL:
    url = URL(endpoint.url, encoded=True)
    if endpoint.target.endswith("?"):
        url._cache["raw_path_qs"] = endpoint.target  # noqa: SLF001  (yarl drops a question mark without a query)
    return url


async def _read(response: aiohttp.ClientResponse, keep: int) -> bytes:
    """Reads the body, up to the limit; returns the first `keep` bytes of it."""
    kept, count = b"", 0
    with contextlib.suppress(aiohttp.ClientPayloadError):  # cut, or framed in doubt: what came counts
        async for chunk in response.content.iter_any():
            count += len(chunk)
            if len(kept) < keep:
                kept += chunk[: keep - len(kept)]
            if count > MAX_RESPONSE_BODY:
                response.close()
                break
    return kept


def _between(began: float | None, ended: float | None) -> float | None:
    return None if began is None or ended is None else ended - began


def _attempt(
    response: aiohttp.ClientResponse, request: Request, progress: _RequestProgress, body: bytes, first_byte: float
) -> Attempt:
    now = time.monotonic()
    head = None if progress.handler is None else progress.handler.head
    phases = Phases()
    if request.keep_body and isinstance(response, _Response):
        phases = response.phases if not progress.reused else replace(
            response.phases, dns_s=None, connect_s=None, tls_s=None
        )  # fmt: skip
        phases = replace(
            phases,
            request_s=_between(progress.connected_at, progress.sent_at),
            first_byte_s=_between(progress.sent_at, first_byte),
            body_s=now - first_byte,
            certificate_expires=None if response.tls is None else certificate_expiry(response.tls),
        )
    return Attempt(
        now - progress.started,
        status=response.status,
        reused=progress.reused,
        retry_after=None if head is None else head.retry_after,
        webhook_delivery=None if head is None else head.webhook_delivery,
        www_authenticate=None if head is None else head.www_authenticate,
        body=body,
        phases=phases,
    )


def _failure(error: Exception) -> tuple[FailureReason, str]:
    inner: BaseException | None = error
    while inner is not None:  # aiohttp wraps TLS alerts that come after the handshake
        if isinstance(inner, ssl.SSLError):
            return FailureReason.TLS, describe(inner)
        inner = inner.__cause__
    reason = next(reason for kind, reason in FAILURE_OF if isinstance(error, kind))
    if reason is FailureReason.PROTOCOL:
        return reason, "the answer is not HTTP, or passes the limits on headers"
    if isinstance(error, aiohttp.ServerDisconnectedError):
        return reason, "the connection was closed before the answer"
    if isinstance(error, aiohttp.ClientPayloadError):
        return reason, "the answer broke off in its body"
    return reason, clip(describe(error))


def _tracing() -> aiohttp.TraceConfig:
    """Returns aiohttp's tracing hooks, which record times in each POST's `_RequestProgress`."""

    async def connected(_session: aiohttp.ClientSession, context: SimpleNamespace, _params: object) -> None:
        context.trace_request_ctx.connected_at = time.monotonic()

    async def reused(_session: aiohttp.ClientSession, context: SimpleNamespace, _params: object) -> None:
        context.trace_request_ctx.connected_at = time.monotonic()
        context.trace_request_ctx.reused = True

    async def sent(_session: aiohttp.ClientSession, context: SimpleNamespace, _params: object) -> None:
        context.trace_request_ctx.sent_at = time.monotonic()

    config = aiohttp.TraceConfig()
    config.on_connection_create_end.append(connected)
    config.on_connection_reuseconn.append(reused)
    config.on_request_chunk_sent.append(sent)
    return config
