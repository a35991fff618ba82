"""Adapts aiohttp's connections for `aiohttp_client`: our dialer opens them, and answers are read leniently."""

import asyncio
import time
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Final

import aiohttp
from aiohttp.client_proto import ResponseHandler
from aiohttp.client_reqrep import ConnectionKey
from aiohttp.connector import Connection
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.tracing import Trace

from dispatcher.contract.outcomes import Phases
from dispatcher.transport.answer_head import (
    MAX_RESPONSE,
    MAX_RESPONSE_HEAD,
    AnswerHead,
    HeadReader,
)
from dispatcher.transport.certificate_expiry import certificate_expiry
from dispatcher.transport.dial import Dialer
from dispatcher.transport.resolved_addresses import ResolvedAddresses
from dispatcher.transport.tls_sessions import TlsContext, TlsObject, remember_session, tls_of

KEEPALIVE_S = 60.0
_IGNORED_HEAD: Final = 8 * 1024
"""Bytes that a head may have beyond its names and values: status line, separators, 1xx answers."""
_DIALLING_GRACE_S: Final = 5.0
"""Seconds beyond the deadline in which the dialer reports that it passed. Only the dialer knows the reason."""


class Handler(ResponseHandler):
    """aiohttp's connection. It also records how it was opened, and parses the head of each response a second time."""

    phases = Phases()
    below: asyncio.Transport | None = None
    """The transport under TLS. Its write buffer holds what the peer has not taken of the request."""
    retires_at = float("inf")
    """Time from which it is not used again; seconds of the monotonic clock."""
    answer: ResolvedAddresses | None = None
    """The latest DNS answer for the host; None if it isn't resolved here."""
    tls: TlsObject | None = None
    certificate_expires: float | None = None
    """When the peer's certificate expires, in Unix time. Read with the first answer that is kept."""
    is_resumed = False
    requests = 0
    resting = False
    """No request is in progress: bytes that arrive now would be taken for the answer to the next one."""
    raw = 0
    """Bytes received since the request."""
    head: AnswerHead | None = None
    """The head of the current answer, once it is complete."""
    body = b""
    """Bytes that arrived behind the head when it became complete; behind an odd head, what is kept of the body."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop)
        self._reader = HeadReader()
        self._keep = 0
        self._is_held = False
        """The answer is held back from aiohttp's parser, which may refuse it, until its body has been kept."""
        self._body_wait_s = 0.0
        self._held_until: asyncio.TimerHandle | None = None

    @property
    def was_dropped_after_resumption(self) -> bool:
        """True if the server ended a connection with a resumed TLS session before it answered the first request."""
        return self.is_resumed and self.requests == 1 and not self.raw

    @property
    def is_over(self) -> bool:
        """True if the connection is too old or its host has moved: it must not be used again."""
        address = self.phases.address
        outdated = self.answer is not None and address is not None and self.answer.is_outdated(address)
        return outdated or time.monotonic() >= self.retires_at

    def on_request(self, keep: int, body_wait_s: float) -> None:
        """Resets what the last request left; called before a request is written, with values of the `Request`."""
        self._keep, self._body_wait_s, self._is_held = keep, body_wait_s, False
        self.resting, self.raw, self.head, self.body = False, 0, None, b""
        self._reader = HeadReader()
        self.requests += 1

    def data_received(self, data: bytes) -> None:
        if data and not self.raw and self.tls is not None:
            self._note_first_byte(self.tls)
        self.raw += len(data)
        if self.resting and data:  # aiohttp calls it with nothing, too
            self.close()
        elif self.raw > MAX_RESPONSE and self.transport is not None:
            self.transport.abort()
        elif not data or (self.head is not None and not self._is_held):
            super().data_received(data)
        elif self.head is None:
            self._begin_answer(data)
        else:
            self._keep_odd_body(self.head, data)

    def connection_lost(self, exc: BaseException | None) -> None:
        self._release()
        super().connection_lost(exc)

    def _note_first_byte(self, tls: TlsObject) -> None:
        """Reads what can't be read any more once the peer has ended the connection."""
        if self._keep and self.certificate_expires is None:
            self.certificate_expires = certificate_expiry(tls)
        if self.requests == 1:
            remember_session(tls)

    def _begin_answer(self, data: bytes) -> None:
        """Holds a head back until it is complete, so that a head that aiohttp refuses can be read leniently."""
        try:
            self.head = self._reader.feed(data)
        except ValueError as error:
            self.set_exception(HttpProcessingError(message=str(error)))
            if self.transport is not None:
                self.transport.abort()
            return
        if self.head is not None:
            self._is_held = True
            self.body = self._reader.begun[self.head.end :]
            if self.head.is_odd and self._keep and self.head.has_clear_end:
                self._held_until = self._loop.call_later(self._body_wait_s, self._release)
                self._keep_odd_body(self.head, b"")
            else:
                self._release()
        elif len(self._reader.begun) > MAX_RESPONSE_HEAD + _IGNORED_HEAD and self.transport is not None:
            self.set_exception(HttpProcessingError(message="headers without end"))
            self.transport.abort()

    def _keep_odd_body(self, head: AnswerHead, data: bytes) -> None:
        limit = head.limit(self._keep)
        self._reader.begun += data
        self.body = self._reader.begun[head.end : head.end + limit]
        if len(self.body) >= limit:
            self._release()

    def _release(self) -> None:
        """Passes an answer that was held back to aiohttp's parser."""
        if self._held_until is not None:
            self._held_until.cancel()
            self._held_until = None
        if self._is_held:
            self._is_held = False
            super().data_received(self._reader.begun)


class Connector(aiohttp.BaseConnector):
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
            PROGRESS.get().deadline,
            lambda: Handler(self._loop),
        )
        protocol = dialled.protocol
        protocol.phases, protocol.below, protocol.is_resumed = dialled.phases, dialled.below, dialled.is_resumed
        protocol.tls = tls_of(dialled.transport)
        protocol.retires_at = self._dialer.retirement(time.monotonic())
        protocol.answer = self._dialer.watch((url.raw_host or "").strip("[]"))
        return protocol

    async def connect(
        self, req: aiohttp.ClientRequest, traces: list[Trace], timeout: aiohttp.ClientTimeout
    ) -> Connection:
        answer = self._dialer.watch((req.url.raw_host or "").strip("[]"))
        for protocol, _ in self._conns.get(req.connection_key, ()):
            if isinstance(protocol, Handler):
                protocol.answer = answer
                if protocol.is_over:
                    protocol.close()  # aiohttp passes over closed ones
        connection = await super().connect(req, traces, timeout)
        if isinstance(connection.protocol, Handler):
            progress = PROGRESS.get()
            connection.protocol.on_request(progress.keep, progress.body_wait_s)
            progress.handler = connection.protocol
        return connection

    def _release(self, key: ConnectionKey, protocol: ResponseHandler, *, should_close: bool = False) -> None:
        if isinstance(protocol, Handler):
            protocol.resting = True
            below = protocol.below
            should_close |= below is not None and below.get_write_buffer_size() > 0  # answered too early
            should_close |= protocol.is_over or (protocol.head is not None and protocol.head.is_odd)
        super()._release(key, protocol, should_close=should_close)


class Response(aiohttp.ClientResponse):
    """aiohttp's response, extended: it keeps the connection's phases after the connection returned to the pool."""

    phases = Phases()
    certificate_expires: float | None = None

    async def start(self, connection: Connection) -> aiohttp.ClientResponse:
        handler = connection.protocol
        answer = await super().start(connection)
        if isinstance(handler, Handler):
            self.phases, self.certificate_expires = handler.phases, handler.certificate_expires
        return answer


@dataclass(slots=True)
class RequestProgress:
    """Progress of one POST, reported by aiohttp's tracing."""

    started: float
    deadline: float
    keep: int
    """Bytes of the answer's body to keep."""
    body_wait_s: float
    """Seconds to wait for the body."""
    connected_at: float | None = None
    reused: bool = False
    sent_at: float | None = None
    handler: Handler | None = None
    limit: asyncio.Timeout | None = None
    """Ends the attempt at its deadline."""

    def on_dial_start(self) -> None:
        """Extends the attempt's deadline while the dialer connects, because the dialer has a deadline of its own."""
        self._reschedule(_DIALLING_GRACE_S)

    def on_dial_end(self) -> None:
        """Restores the attempt's deadline after the dialer has connected."""
        self._reschedule(0.0)

    def _reschedule(self, grace_s: float) -> None:
        if self.limit is not None and not self.limit.expired():
            now = asyncio.get_running_loop().time()
            self.limit.reschedule(now + self.deadline + grace_s - time.monotonic())


PROGRESS: ContextVar[RequestProgress] = ContextVar("PROGRESS")
"""Progress of the POST that the current task makes: aiohttp's connector does not receive the request's context."""
