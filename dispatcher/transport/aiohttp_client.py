"""The HTTP client that stands on aiohttp: one POST, one `Attempt`, whatever the network does.

aiohttp parses, pools and writes; connections come from the dialer, so that its resolver, its proxy support and its TLS
defaults are never asked. Off: redirects, cookies, decompression, the environment's proxies. Foreign exceptions end in
the table `FAILURE_OF`; what is not in it is a bug and propagates.
"""

import asyncio
import ssl
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Self

import aiohttp
from aiohttp.client_proto import ResponseHandler
from aiohttp.client_reqrep import ConnectionKey
from aiohttp.connector import Connection
from aiohttp.http_parser import RawResponseMessage
from aiohttp.tracing import Trace
from multidict import CIMultiDict
from yarl import URL

from dispatcher.config.settings import DeliverySettings, EgressSettings
from dispatcher.contract.outcomes import NO_PHASES, Attempt, FailureReason, Phases
from dispatcher.transport import request_head
from dispatcher.transport.dial import Dialer
from dispatcher.transport.egress import EgressGuard
from dispatcher.transport.failures import TransportError, clip, describe
from dispatcher.transport.request import USER_AGENT, Request
from dispatcher.transport.resolver import Resolver
from dispatcher.transport.tls import TlsContext, TlsContexts, certificate_expiry, remember_session

KEEPALIVE_S = 60.0
_MAX_RAW = 1024 * 1024
"""Bytes of one answer in all, with chunk sizes and extensions: bounds what the count of body bytes does not see."""
_SPARE_CONNECTIONS = 64
"""Beyond max_in_flight: test events and token requests don't queue behind deliveries."""

FAILURE_OF: tuple[tuple[type[Exception], FailureReason], ...] = (  # first match wins
    (ssl.SSLError, FailureReason.TLS),
    (aiohttp.ServerDisconnectedError, FailureReason.RESET),
    (aiohttp.ClientResponseError, FailureReason.PROTOCOL),
    (aiohttp.ClientPayloadError, FailureReason.RESET),
    (aiohttp.http_exceptions.HttpProcessingError, FailureReason.PROTOCOL),
    (aiohttp.ClientError, FailureReason.RESET),
    (OSError, FailureReason.RESET),
)


class _Handler(ResponseHandler):
    """aiohttp's connection, which knows how it came about."""

    phases = Phases()
    below: asyncio.Transport | None = None
    """The transport under TLS, which knows what of the request the peer has not taken."""
    remembered = False
    """Its TLS session is kept for the next connection."""
    interim = 0
    """1xx answers since the last answer."""
    resting = False
    """No request is under way: bytes that come now would be taken for the next one's answer."""
    raw = 0
    """Bytes that came since the request."""

    @property
    def is_overlong(self) -> bool:
        """The answer was cut off."""
        return self.raw > _MAX_RAW

    def data_received(self, data: bytes) -> None:
        self.raw += len(data)
        if self.resting and data:  # aiohttp calls it with nothing, too
            self.close()
        elif self.is_overlong and self.transport is not None:
            self.transport.abort()
        else:
            super().data_received(data)

    def feed_data(self, data: tuple[RawResponseMessage, aiohttp.StreamReader], size: int = 0) -> None:
        """Take an answer's head; too many interim ones would keep the event loop busy and the memory growing."""
        self.interim = self.interim + 1 if data[0].code < 200 else 0
        if self.interim <= request_head.MAX_INTERIM:
            super().feed_data(data, size)
        elif self.transport is not None:
            self.transport.abort()
            self.set_exception(aiohttp.http_exceptions.HttpProcessingError(message="too many interim answers"))


class _Connector(aiohttp.BaseConnector):
    """aiohttp's pool over our dialer."""

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
        dialled.protocol.phases, dialled.protocol.below = dialled.phases, dialled.below
        return dialled.protocol

    async def connect(
        self, req: aiohttp.ClientRequest, traces: list[Trace], timeout: aiohttp.ClientTimeout
    ) -> Connection:
        connection = await super().connect(req, traces, timeout)
        if isinstance(connection.protocol, _Handler):
            connection.protocol.resting = False
            connection.protocol.raw = 0
        return connection

    def _release(self, key: ConnectionKey, protocol: ResponseHandler, *, should_close: bool = False) -> None:
        if isinstance(protocol, _Handler):
            protocol.resting = True
            below = protocol.below
            should_close |= below is not None and below.get_write_buffer_size() > 0  # answered too early
        super()._release(key, protocol, should_close=should_close)


class _Response(aiohttp.ClientResponse):
    """aiohttp's answer, which still knows its connection after that went back to the pool."""

    handler: _Handler | None = None
    phases = Phases()
    tls: ssl.SSLObject | None = None

    async def start(self, connection: Connection) -> aiohttp.ClientResponse:
        handler, transport = connection.protocol, connection.transport
        answer = await super().start(connection)
        if isinstance(handler, _Handler) and transport is not None:
            self.handler = handler
            self.phases = handler.phases
            self.tls = transport.get_extra_info("ssl_object")
            if self.tls is not None and not handler.remembered:
                handler.remembered = True
                remember_session(self.tls)
        return answer


@dataclass(slots=True)
class _Progress:
    """How far one POST came, told by aiohttp's tracing."""

    started: float
    connected_at: float | None = None
    reused: bool = False
    sent_at: float | None = None


class AiohttpTransport:
    """Sends POSTs by aiohttp. An async context manager; leaving it closes every connection."""

    def __init__(self, delivery: DeliverySettings, egress: EgressSettings) -> None:
        self._limit = delivery.max_in_flight + _SPARE_CONNECTIONS
        self._egress = egress
        self._contexts = TlsContexts(egress.ca_bundle)
        self._parts = AsyncExitStack()
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        resolver = await self._parts.enter_async_context(Resolver(self._egress, EgressGuard(self._egress)))
        dialer = Dialer(self._egress, resolver, self._contexts)
        self._session = await self._parts.enter_async_context(
            aiohttp.ClientSession(
                connector=_Connector(dialer, self._limit),
                cookie_jar=aiohttp.DummyCookieJar(),
                skip_auto_headers=("accept", "accept-encoding", "user-agent", "content-type"),
                timeout=aiohttp.ClientTimeout(total=None),
                auto_decompress=False,
                trust_env=False,
                trace_configs=[_tracing()],
                max_field_size=request_head.MAX_RESPONSE_HEAD,
                max_headers=request_head.MAX_RESPONSE_HEADERS,
                response_class=_Response,
            )
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._parts.aclose()

    def begin(self, request: Request, ended: Callable[[Attempt], None]) -> None:
        """Never: aiohttp needs the task of `post`."""

    async def post(self, request: Request) -> Attempt:
        """Send one request. Never raises for anything that the network can do.

        Raises:
            ValueError: a header that can't be sent: a bug of the caller's.
        """
        progress, phases = _Progress(time.monotonic()), None
        try:
            async with asyncio.timeout(request.timeout_s):
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
        return Attempt(
            time.monotonic() - progress.started,
            failure=reason,
            detail=detail,
            reused=progress.reused,
            phases=phases or NO_PHASES,
        )

    async def _post(self, request: Request, progress: _Progress) -> Attempt:
        endpoint = request.endpoint
        if self._session is None:
            raise RuntimeError("the transport is not open")
        context = self._contexts.of(endpoint) if endpoint.scheme == "https" else True
        async with self._session.post(
            URL(endpoint.url, encoded=True),
            data=request.body,
            headers=self._headers(request),
            ssl=context,
            allow_redirects=False,
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=request.connect_timeout_s),
            trace_request_ctx=progress,
        ) as response:
            if sum(len(name) + len(value) for name, value in response.raw_headers) > request_head.MAX_RESPONSE_HEAD:
                response.close()
                raise TransportError(FailureReason.PROTOCOL, "the answer's headers are longer than 32 KiB")
            if not 200 <= response.status <= 599:
                response.close()
                raise TransportError(FailureReason.PROTOCOL, f"status {response.status} is no answer to a POST")
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


async def _read(response: aiohttp.ClientResponse, keep: int) -> bytes:
    """Read the body, up to the limit; the first `keep` bytes of it."""
    kept, count = b"", 0
    try:
        async for chunk in response.content.iter_any():
            count += len(chunk)
            if len(kept) < keep:
                kept += chunk[: keep - len(kept)]
            if count > request_head.MAX_RESPONSE_BODY:
                response.close()
                break
    except aiohttp.ClientPayloadError:
        if not _is_overlong(response):
            raise
    return kept


def _is_overlong(response: aiohttp.ClientResponse) -> bool:
    return isinstance(response, _Response) and response.handler is not None and response.handler.is_overlong


def _between(began: float | None, ended: float | None) -> float | None:
    return None if began is None or ended is None else ended - began


def _attempt(
    response: aiohttp.ClientResponse, request: Request, progress: _Progress, body: bytes, first_byte: float
) -> Attempt:
    now = time.monotonic()
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
        retry_after=_header(response, "retry-after"),
        webhook_delivery=_header(response, "webhook-delivery"),
        body=body,
        phases=phases,
    )


def _header(response: aiohttp.ClientResponse, name: str) -> str | None:
    value = response.headers.get(name)
    return None if value is None else value[: request_head.MAX_KEPT_VALUE]


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
    """Tells each POST's `_Progress` how far it came."""

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
