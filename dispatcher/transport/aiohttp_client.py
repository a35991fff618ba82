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
from dataclasses import replace
from types import SimpleNamespace
from typing import Final, Self

import aiohttp
from aiohttp.http_exceptions import HttpProcessingError
from multidict import CIMultiDict
from yarl import URL

from dispatcher.config.settings import DeliverySettings, EgressSettings
from dispatcher.contract.outcomes import NO_PHASES, Attempt, FailureReason, Phases
from dispatcher.transport import request_head
from dispatcher.transport.aiohttp_connections import PROGRESS, Connector, RequestProgress, Response
from dispatcher.transport.answer_head import (
    MAX_RESPONSE_BODY,
    MAX_RESPONSE_HEAD,
    MAX_RESPONSE_HEADERS,
)
from dispatcher.transport.dial import Dialer
from dispatcher.transport.egress import EgressGuard
from dispatcher.transport.endpoint import Endpoint
from dispatcher.transport.failures import TransportError, clip, describe
from dispatcher.transport.request import USER_AGENT, Request
from dispatcher.transport.resolver import Resolver
from dispatcher.transport.tls_contexts import TlsContexts
from dispatcher.transport.tls_sessions import TlsContext

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
                connector=Connector(dialer, self._limit),
                cookie_jar=aiohttp.DummyCookieJar(),
                skip_auto_headers=("accept", "accept-encoding", "user-agent", "content-type"),
                timeout=aiohttp.ClientTimeout(total=None),
                auto_decompress=False,
                trust_env=False,
                trace_configs=[_tracing()],
                max_field_size=MAX_RESPONSE_HEAD,
                max_headers=MAX_RESPONSE_HEADERS,
                response_class=Response,
            )
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._contexts.close()
        await self._parts.aclose()

    def start_post(self, request: Request, on_result: Callable[[Attempt], None]) -> None:
        """Returns None: aiohttp always needs the task of `post`."""

    async def post(self, request: Request) -> Attempt:
        """Sends one request. Never raises for anything that the network can do.

        Raises:
            ValueError: a header can't be sent; the caller has a bug.
        """
        started = time.monotonic()
        progress = RequestProgress(started, started + request.timeout_s, request.keep_body, request.body_wait_s)
        PROGRESS.set(progress)
        attempt = await self._attempt(request, progress)
        handler = progress.handler
        if handler is not None and handler.was_dropped_after_resumption and attempt.failure in _DROPPED:
            # Some servers accept a TLS session and then end the connection: retry once without a session.
            self._forget_session(request.endpoint)
            progress.handler = None
            attempt = await self._attempt(request, progress)
        return attempt

    async def _attempt(self, request: Request, progress: RequestProgress) -> Attempt:
        phases = None
        try:
            async with asyncio.timeout(progress.deadline - time.monotonic()) as progress.limit:
                return await self._post(request, progress)
        except TimeoutError:
            if progress.connected_at is not None:
                reason, detail = FailureReason.TIMEOUT, f"no whole answer within {request.timeout_s:g} s"
            else:
                reason, detail = FailureReason.CONNECT_TIMEOUT, f"no connection within {request.timeout_s:g} s"
        except TransportError as failed:
            reason, detail, phases = failed.reason, failed.detail_for(request.endpoint), failed.phases
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
        if self._contexts.is_made(endpoint):  # else the bundle has changed meanwhile
            self._contexts.of(endpoint).sessions.forget((endpoint.host, endpoint.port), is_refused=True)

    async def _post(self, request: Request, progress: RequestProgress) -> Attempt:
        endpoint = request.endpoint
        if self._session is None:
            raise RuntimeError("the transport is not open")
        context: TlsContext | bool = True
        if endpoint.scheme == "https":
            await self._contexts.prepare(endpoint, request.timeout_s / 2)
            context = self._contexts.of(endpoint)
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
            body = await _read(response, request.keep_body, request.body_wait_s)
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


async def _read(response: aiohttp.ClientResponse, keep: int, wait_s: float) -> bytes:
    """Reads the body, up to the limits of size and time; returns the first `keep` bytes of it."""
    kept, count = b"", 0
    with contextlib.suppress(aiohttp.ClientPayloadError, TimeoutError):  # cut, or framed in doubt: what came counts
        async with asyncio.timeout(wait_s):
            async for chunk in response.content.iter_any():
                count += len(chunk)
                if len(kept) < keep:
                    kept += chunk[: keep - len(kept)]
                if count > MAX_RESPONSE_BODY:
                    break
    if not response.content.at_eof():
        response.close()
    return kept


def _between(began: float | None, ended: float | None) -> float | None:
    return None if began is None or ended is None else ended - began


def _attempt(
    response: aiohttp.ClientResponse, request: Request, progress: RequestProgress, body: bytes, first_byte: float
) -> Attempt:
    now = time.monotonic()
    head = None if progress.handler is None else progress.handler.head
    phases = Phases()
    if request.keep_body and isinstance(response, Response):
        phases = response.phases if not progress.reused else replace(
            response.phases, dns_s=None, connect_s=None, tls_s=None
        )  # fmt: skip
        phases = replace(
            phases,
            request_s=_between(progress.connected_at, progress.sent_at),
            first_byte_s=_between(progress.sent_at, first_byte),
            body_s=now - first_byte,
            certificate_expires=response.certificate_expires,
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
    """Returns aiohttp's tracing hooks, which record times in each POST's `RequestProgress`."""

    async def dialling(_session: aiohttp.ClientSession, context: SimpleNamespace, _params: object) -> None:
        context.trace_request_ctx.on_dial_start()

    async def connected(_session: aiohttp.ClientSession, context: SimpleNamespace, _params: object) -> None:
        context.trace_request_ctx.on_dial_end()
        context.trace_request_ctx.connected_at = time.monotonic()

    async def reused(_session: aiohttp.ClientSession, context: SimpleNamespace, _params: object) -> None:
        context.trace_request_ctx.connected_at = time.monotonic()
        context.trace_request_ctx.reused = True

    async def sent(_session: aiohttp.ClientSession, context: SimpleNamespace, _params: object) -> None:
        context.trace_request_ctx.sent_at = time.monotonic()

    config = aiohttp.TraceConfig()
    config.on_connection_create_start.append(dialling)
    config.on_connection_create_end.append(connected)
    config.on_connection_reuseconn.append(reused)
    config.on_request_chunk_sent.append(sent)
    return config
