"""Sends requests on one HTTP/1.1 connection, one at a time, and parses each answer within limits and a deadline.

A connection is reused only after exactly one whole answer to each request. Bytes after the answer or between requests,
an answer before the request was written, `connection: close`, and a body that is longer than what is read, cut off or
framed ambiguously make it unusable. The status counts once the head is complete (docs/verdicts.md). One timer serves
all deadlines; it is set again only if a deadline is earlier than the last one.
"""

import asyncio
import ssl
import time
from collections.abc import Callable
from typing import Final, cast

import httptools

from dispatcher.contract.outcomes import FailureReason, Phases
from dispatcher.transport.answer_head import (
    BODYLESS,
    MAX_INTERIM,
    MAX_RESPONSE,
    MAX_RESPONSE_BODY,
    MAX_RESPONSE_HEAD,
    MAX_RESPONSE_HEADERS,
    HeadReader,
    kept_value,
)
from dispatcher.transport.certificate_expiry import certificate_expiry
from dispatcher.transport.failures import TransportError, clip, describe
from dispatcher.transport.request import BODY_WAIT_S
from dispatcher.transport.tls_sessions import TlsObject, remember_session, tls_of

_IGNORED_HEAD: Final = 8 * 1024
"""Bytes that a head may have beyond its names and values: status line, separators, 1xx answers."""


Ended = Callable[[TransportError | None], None]
"""Callback for the end of an exchange: None after an answer, else the failure."""


class Connection(asyncio.Protocol):
    """A connection and its current exchange.

    Calls `on_idle_end` if it ends between requests, and `on_lost` when its transport has closed.
    """

    __deletable__ = ("_parser",)

    def __init__(self, on_idle_end: Callable[["Connection"], None], on_lost: Callable[["Connection"], None]) -> None:
        self.usable = True
        """True if the next request may be sent on it."""
        self.requests = 0
        self.phases = Phases()
        self.below: asyncio.Transport | None = None
        """The transport under TLS. Its write buffer holds what the peer has not taken of the request."""
        self.retires_at = float("inf")
        """Time from which it is not used again; seconds of the monotonic clock."""
        self.is_resumed = False
        """True if TLS resumed a session."""
        self.status = 0
        self.retry_after: str | None = None
        self.webhook_delivery: str | None = None
        self.www_authenticate: str | None = None
        self.body = b""
        self.request_s = self.sent_at = self.first_byte_at = 0.0
        """If the answer is kept: seconds to write the request, when that was done, and when the answer began."""
        self.certificate_expires: float | None = None
        """When the peer's certificate expires, in Unix time. Read with the first answer that is kept."""
        self._on_idle_end = on_idle_end
        self._on_lost = on_lost
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._ended: Ended | None = None
        """Callback of the request in progress; None between requests."""
        self._raw = 0
        """Bytes received since the request."""
        self._wanted = 0
        """Bytes of the body to wait for after a head that the strict parser refused."""
        self._deadline = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = float("inf")

    def __repr__(self) -> str:
        state = "busy" if self._ended is not None else "idle" if self.usable else "closed"
        return f"<Connection {state} requests={self.requests}>"

    def exchange(self, data: bytes, deadline: float, keep: int, ended: Ended, body_wait_s: float = BODY_WAIT_S) -> None:
        """Writes a request. Calls `ended` once, with the error, or with None after an answer: attributes then hold it.

        Waits until `deadline` (monotonic seconds) for the answer, and at most `body_wait_s` for the body after its
        head. Keeps the first `keep` bytes of the body. `ended` may use the connection again. After `abort` it is not
        called.
        """
        self.requests += 1
        self.status = 0
        self.retry_after = self.webhook_delivery = self.www_authenticate = None
        self.body = b""
        self.first_byte_at = 0.0
        self._keep = keep
        self._raw = self._head = self._count = self._received = self._interim = 0
        self._body_wait_s = body_wait_s
        self._head_done = self._complete = self._awaits_body = False
        self._length = self._coding = b""
        """Values of the headers that frame the body."""
        self._odd: HeadReader | None = None
        """Reads the head once the strict parser has refused it."""
        self._begun = b""
        """The bytes received of an incomplete head."""
        self._problem = ""
        self._ended = ended
        self._set_deadline(deadline)
        began = time.monotonic() if keep else 0.0
        if self._transport is not None:
            self._transport.write(data)
        if keep:
            self.sent_at = time.monotonic()
            self.request_s = self.sent_at - began

    def rest(self, until: float) -> None:
        """Marks the connection idle: it closes at `until` unless a request is sent before."""
        self._set_deadline(until)

    def abort(self) -> None:
        """Closes at once. An exchange in progress ends without its callback."""
        self.usable = False
        self._ended = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._transport is not None:
            self._transport.abort()

    @property
    def was_dropped_after_resumption(self) -> bool:
        """True if the server ended a connection with a resumed TLS session before it answered the first request."""
        return self.is_resumed and self.requests <= 1 and not self._raw and not self.usable

    @property
    def tls(self) -> TlsObject | None:
        """The TLS layer, if there is one."""
        return None if self._transport is None else tls_of(self._transport)

    # --- deadline

    def _set_deadline(self, deadline: float) -> None:
        self._deadline = deadline
        if deadline < self._timer_at:
            if self._timer is not None:
                self._timer.cancel()
            self._timer_at = deadline
            self._timer = self._loop.call_later(deadline - time.monotonic(), self._on_timer)

    def _on_timer(self) -> None:
        self._timer, self._timer_at = None, float("inf")
        if time.monotonic() < self._deadline - 0.001:
            self._set_deadline(self._deadline)
        elif self._ended is None:
            self._end_idle()
        elif self._head_done:
            self._finish_broken()
        else:
            self.fail(FailureReason.TIMEOUT, "no whole answer in time")

    # --- asyncio's protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is none by inheritance

    def data_received(self, data: bytes) -> None:
        if self._ended is None:
            self._end_idle()
            return
        if not self._raw and (self._keep or self.requests == 1):
            self._note_first_byte()
        self._raw += len(data)
        if self._odd is not None:
            self._read_oddly(self._odd, data)
        else:
            try:
                self._parser.feed_data(data)
            except (httptools.HttpParserError, httptools.HttpParserUpgrade):
                self._refused(data)
            else:
                if not self._head_done:
                    self._begun += data
        if self._complete:
            self._finish()
        elif self._problem:
            self.fail(FailureReason.PROTOCOL, self._problem)
        elif not self._head_done and self._raw > MAX_RESPONSE_HEAD + _IGNORED_HEAD:
            self.fail(FailureReason.PROTOCOL, "the answer's headers are longer than 32 KiB")
        elif self._raw > MAX_RESPONSE:
            self._finish_broken()
        elif self._head_done and not self._awaits_body:
            self._awaits_body = True
            self._set_deadline(min(self._deadline, time.monotonic() + self._body_wait_s))

    def _note_first_byte(self) -> None:
        """Reads what can't be read any more once the peer has ended the connection."""
        self.first_byte_at = time.monotonic()
        tls = self.tls
        if tls is not None and self._keep and self.certificate_expires is None:
            self.certificate_expires = certificate_expiry(tls)
        if tls is not None and self.requests == 1:
            remember_session(tls)

    def _refused(self, data: bytes) -> None:
        """Handles bytes that the strict parser refuses: the status counts if it is known, or `HeadReader` reads it."""
        self.usable = False
        if self._complete or self._problem:
            return
        if self._head_done:
            self._complete = True
        else:
            self._odd = HeadReader()
            self._read_oddly(self._odd, self._begun + data)

    def _read_oddly(self, reader: HeadReader, data: bytes) -> None:
        if self._head_done:
            self._keep_odd_body(data)
            return
        try:
            head = reader.feed(data)
        except ValueError as error:
            self._problem = clip(f"the answer is not HTTP/1.1 ({error})")
            return
        if head is not None:
            self.status, self.retry_after, self.webhook_delivery, self.www_authenticate = head[:4]
            self._head_done = True
            self._wanted = head.limit(self._keep)
            self._keep_odd_body(reader.begun[head.end :])
            self._complete |= not head.has_clear_end

    def _keep_odd_body(self, data: bytes) -> None:
        """Completes the answer once the bytes that are kept of its body have come."""
        self.body += data[: self._wanted - len(self.body)]
        self._complete = len(self.body) >= self._wanted

    def connection_lost(self, exc: Exception | None) -> None:
        self.usable = False
        if self._ended is None:
            self._end_idle()
        elif self._head_done:
            self._finish()  # the status counts, whatever the body lacks
        elif isinstance(exc, ssl.SSLError):
            self.fail(FailureReason.TLS, describe(exc))
        else:
            where = "in the head of" if self._raw else "before"
            how = "closed" if exc is None else "reset"
            self.fail(FailureReason.RESET, f"the connection was {how} {where} the answer")
        self._transport = None
        del self._parser  # it holds on to us
        self._on_lost(self)

    # --- httptools' callbacks; bytes after a whole answer are ignored

    def on_message_begin(self) -> None:
        if self._complete:
            self.usable = False

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._complete:
            return
        self._count += 1
        self._head += len(name) + len(value)
        if self._count > MAX_RESPONSE_HEADERS or self._head > MAX_RESPONSE_HEAD:
            if self._head_done:  # trailers
                self.usable, self._complete = False, True
            else:
                self._problem = "the answer has over 100 headers, or over 32 KiB of them"
            return
        if self._head_done:
            return  # a trailer
        size = len(name)  # first, because it is cheaper than lower()
        if size == 11 and self.retry_after is None and name.lower() == b"retry-after":
            self.retry_after = kept_value(value)
        elif size == 14 and name.lower() == b"content-length":
            self._length = value
        elif size == 17 and name.lower() == b"transfer-encoding":
            self._coding = value
        elif size == 16:
            lower = name.lower()
            if lower == b"webhook-delivery" and self.webhook_delivery is None:
                self.webhook_delivery = kept_value(value)
            elif lower == b"www-authenticate" and self.www_authenticate is None:
                self.www_authenticate = kept_value(value)

    def on_headers_complete(self) -> None:
        if self._complete:
            return
        self.status = self._parser.get_status_code()
        if self.status == 101 or not 100 <= self.status <= 599:
            self._problem = f"the answer has status {self.status}, which isn't an answer to a POST"
        self._head_done = self.status >= 200
        if self.status != 200 and (self.status in BODYLESS or not self._head_done):
            if self._coding or self._length not in (b"", b"0"):
                self.usable = False  # the parser takes the bytes of the announced body for a further answer
            self._length = self._coding = b""

    def on_body(self, data: bytes) -> None:
        if self._complete:
            return
        self._received += len(data)
        if len(self.body) < self._keep:
            self.body += data[: self._keep - len(self.body)]
        if self._received > MAX_RESPONSE_BODY:
            self.usable, self._complete = False, not self._problem

    def on_message_complete(self) -> None:
        if self._complete or self._problem:
            return
        if not self._head_done:  # 1xx: the answer is still to come (RFC 9110, section 15.2)
            self._interim += 1
            self._count = self._head = 0
            self.retry_after = self.webhook_delivery = self.www_authenticate = None
            if self._interim > MAX_INTERIM:
                self._problem = f"over {MAX_INTERIM} interim answers"
            return
        self._complete = True
        if not self._parser.should_keep_alive():
            self.usable = False

    # --- ends

    def _finish(self) -> None:
        ended, self._ended = self._ended, None
        transport = self._transport
        if transport is not None:
            if self.below is not None and self.below.get_write_buffer_size():
                self.usable = False  # answered before the whole request was written
            if not self.usable:
                self.abort()
        if ended is not None:
            ended(None)

    def _finish_broken(self) -> None:
        """Ends an exchange with a known status and an endless body: the answer counts, the connection is closed."""
        self.usable = False
        self._finish()

    def fail(self, reason: FailureReason, detail: str) -> None:
        """Closes at once and reports the exchange in progress as failed."""
        ended = self._ended
        self.abort()
        if ended is not None:
            ended(TransportError(reason, detail))

    def _end_idle(self) -> None:
        self.abort()
        self._on_idle_end(self)
