"""OpenTelemetry traces: one span for each event and each attempt, sent to a collector outside the event loop.

The module is imported only if `tracing.enabled` is set, and wraps the other parts from outside: tracing that is
switched off costs nothing. No span holds a payload, an identity, a token, or a URL beyond its host.

An event belongs to the trace of its producer, which the record's `traceparent` names. Without it, the trace id is
derived from the event's original place, so that all spans of an event, through retry topics, restarts and redrives,
are in one trace, and the sampler decides the same each time.
"""

import asyncio
import logging
import os
import re
import threading
from collections import deque
from contextlib import suppress
from contextvars import ContextVar
from dataclasses import replace
from types import TracebackType
from typing import Self, assert_never

import structlog
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http import Compression
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanLimits, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from opentelemetry.trace import Span, SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from requests import PreparedRequest, Session
from requests.auth import AuthBase

from dispatcher import __version__
from dispatcher.config.secrets import RotatingSecret
from dispatcher.config.settings import TracingSettings, fit_for_a_header
from dispatcher.config.webhook_lookup import WebhookLookup
from dispatcher.config.webhook_revision import Webhook
from dispatcher.contract.outcomes import Attempt, Dead, Delivered, Outcome, Parked, Skipped
from dispatcher.contract.records import Origin, ProcessingAttempt, ProcessRecord, Record, RetryState
from dispatcher.contract.tenant import TenantKey
from dispatcher.errors import Draining
from dispatcher.tasks import set_within
from dispatcher.telemetry import metrics
from dispatcher.telemetry.trace_choice import TraceChoice, trace_id

log = structlog.get_logger(__name__)


BATCH = 512
"""Maximum number of spans in one request to the collector."""
INTERVAL_S = 1.0
"""Seconds that a span waits for others before it is sent."""
_LONGEST_TRACESTATE = 512
"""Characters of `tracestate` that W3C Trace Context requires to be passed on; a longer one is left out."""

_event_span: ContextVar[Span] = ContextVar("event_span", default=trace.INVALID_SPAN)
"""Span of the record that the current task processes; invalid if the record is not sampled."""

_TRACEPARENT = re.compile(rb"00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]([0-9a-f])")
"""Version 00 of W3C Trace Context (section 3.2); the second digit of the flags holds the sampled flag."""


class Tracing:
    """Creates the spans. Entering starts the sender; leaving sends the remaining spans within `timeout`."""

    def __init__(self, settings: TracingSettings, exporter: SpanExporter | None = None) -> None:
        """Prepares tracing without starting it. `exporter` replaces the exporter for OTLP over HTTP."""
        logging.getLogger("opentelemetry").setLevel(
            logging.CRITICAL
        )  # it warns at each attempt; the sender logs it once
        self._ids = _TraceIds()
        self._sender = _Sender(exporter or _otlp(settings), settings.queue, settings.timeout)
        sampler = TraceIdRatioBased(settings.sample_ratio)
        self._choice = TraceChoice(sampler.bound, _producers_decision)
        self.is_sampled = self._choice.includes
        """Returns whether a record on the topic of events gets spans: the fast path is kept for all others."""
        provider = TracerProvider(
            sampler=ParentBased(sampler),
            resource=Resource.create(
                {
                    "service.name": settings.service_name,
                    "service.version": __version__,
                    "service.instance.id": os.uname().nodename,
                }
            ),
            id_generator=self._ids,
            span_limits=SpanLimits(max_attribute_length=256),
            shutdown_on_exit=False,
        )
        provider.add_span_processor(self._sender)
        self._tracer = provider.get_tracer("dispatcher", __version__)

    async def __aenter__(self) -> Self:
        self._sender.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._sender.stop()

    def around(self, process: ProcessRecord, events_topic: str | None = None) -> ProcessRecord:
        """Returns `process` with a span around each sampled record.

        `feedback-*` headers of records on the topic of events are ignored.
        """

        async def traced(record: Record, processing: ProcessingAttempt) -> Outcome:
            is_fresh = record.topic == events_topic
            state = RetryState.fresh(record, record.timestamp / 1000) if is_fresh else RetryState.of(record)
            decided = _producers_decision(record)
            if not (self._choice.includes_place(*_place_of(state)) if decided is None else decided):
                _event_span.set(trace.INVALID_SPAN)  # the task may have been created by that of a sampled record
                return await process(record, processing)
            span = self._event(record, state)
            token = _event_span.set(span)
            try:
                outcome = await process(record, processing)
                _set_outcome(span, outcome)
            except Draining:
                span.set_attribute("dispatcher.outcome", "left_to_the_next")
                raise
            except BaseException as error:
                span.set_attribute("error.type", type(error).__name__)
                span.set_status(Status(StatusCode.ERROR))
                raise
            else:
                return outcome
            finally:
                _event_span.reset(token)
                span.end()

        return traced

    def around_webhooks(self, webhooks: WebhookLookup) -> WebhookLookup:
        """Returns `webhooks`, wrapped so that each look-up sets the tenant on the event's span."""
        return _TenantOnSpan(webhooks)

    def start_attempt(self, host: str, port: int, number: str, webhook_id: str) -> Span | None:
        """Starts the span of one POST, as a child of the event's span. Returns None if the event is not sampled."""
        event = _event_span.get()
        if not event.is_recording():
            return None
        return self._tracer.start_span(
            "POST",
            context=trace.set_span_in_context(event, Context()),
            kind=SpanKind.CLIENT,
            attributes={
                "http.request.method": "POST",
                "server.address": host,
                "server.port": port,
                "dispatcher.attempt": int(number or 0),
                "dispatcher.webhook_id": webhook_id,
            },
        )

    def _event(self, record: Record, retry_state: RetryState) -> Span:
        self._ids.next_trace = trace_id(*_place_of(retry_state))  # the SDK reads it at once if the record has no trace
        return self._tracer.start_span(
            f"process {record.topic}",
            context=_parent(record),
            kind=SpanKind.CONSUMER,
            attributes={
                "messaging.system": "kafka",
                "messaging.operation.name": "process",
                "messaging.operation.type": "process",
                "messaging.destination.name": record.topic,
                "messaging.destination.partition.id": str(record.partition),
                "messaging.kafka.offset": record.offset,
                "dispatcher.origin": str(retry_state.origin),
                "dispatcher.parks": retry_state.parks,
            },
        )


def end_attempt(span: Span, attempt: Attempt) -> Attempt:
    """Ends the span of a POST with its result. Returns the attempt with its trace id."""
    if attempt.status is not None:
        span.set_attribute("http.response.status_code", attempt.status)
    span.set_attribute("dispatcher.connection_reused", attempt.reused)
    if attempt.failure is not None or attempt.status is None or attempt.status >= 300:
        span.set_attribute("error.type", attempt.failure.value if attempt.failure else str(attempt.status))
        span.set_status(Status(StatusCode.ERROR))
    span.end()
    return replace(attempt, trace_id=f"{span.get_span_context().trace_id:032x}")


def traceparent(span: Span) -> str:
    """Returns the span as a `traceparent` header (W3C Trace Context)."""
    context = span.get_span_context()
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags & 0xFF:02x}"


class _TenantOnSpan:
    def __init__(self, webhooks: WebhookLookup) -> None:
        self._webhooks = webhooks

    async def get(self, tenant: TenantKey) -> Webhook | None:
        span = _event_span.get()
        span.set_attribute("dispatcher.org", tenant.org)
        span.set_attribute("dispatcher.sandbox", tenant.sandbox)
        return await self._webhooks.get(tenant)


def _set_outcome(span: Span, outcome: Outcome) -> None:
    if not span.is_recording():
        return
    match outcome:
        case Delivered():
            span.set_attribute("dispatcher.outcome", "delivered")
            span.set_attribute("dispatcher.attempts", outcome.attempts)
        case Skipped():
            span.set_attribute("dispatcher.outcome", "skipped")
            span.set_attribute("dispatcher.reason", outcome.reason.value)
        case Parked():
            span.set_attribute("dispatcher.outcome", "parked")
            span.set_attribute("dispatcher.reason", outcome.reason.value)
            if outcome.tier is not None:
                span.set_attribute("dispatcher.tier", outcome.tier)
        case Dead():
            span.set_attribute("dispatcher.outcome", "dead")
            span.set_attribute("dispatcher.reason", outcome.reason.value)
            span.set_attribute("error.type", outcome.reason.value)
            span.set_status(Status(StatusCode.ERROR))
        case _:
            assert_never(outcome)


_PROPAGATOR = TraceContextTextMapPropagator()


def _parent(record: Record) -> Context:
    """Returns the producer's span from the record's headers; a header that can't be read counts as absent."""
    found: dict[str, str] = {}
    for name, value in record.headers:
        if name in ("traceparent", "tracestate") and value and len(value) <= _LONGEST_TRACESTATE:
            found[name] = value.decode("ascii", errors="replace")
    return _PROPAGATOR.extract(found, Context()) if "traceparent" in found else Context()


def _producers_decision(record: Record) -> bool | None:
    """Returns the sampled flag of the record's `traceparent`, or None if there is none that can be read."""
    header = None
    for name, value in record.headers:
        if name == "traceparent" and value and len(value) <= _LONGEST_TRACESTATE:
            header = value  # the last one counts, as in `_parent`
    if header is None:
        return None
    known = _TRACEPARENT.fullmatch(header)
    if known is not None:
        return int(known[1], 16) & 1 == 1
    parent = trace.get_current_span(_parent(record)).get_span_context()  # another version, or unreadable
    return parent.trace_flags.sampled if parent.is_valid else None


def _place_of(retry_state: RetryState) -> tuple[Origin, int]:
    """Returns the event's original place, and the timestamp of its record there."""
    return retry_state.origin, retry_state.origin_timestamp or round(retry_state.first_seen * 1000)


class _TraceIds(RandomIdGenerator):
    """Generates random ids of spans and traces; a trace's id is `next_trace` if that is set."""

    def __init__(self) -> None:
        self.next_trace = 0

    def generate_trace_id(self) -> int:
        made, self.next_trace = self.next_trace, 0
        return made or super().generate_trace_id()  # for an attempt outside of any event


class _Sender(SpanProcessor):
    """Sends finished spans from a thread of its own. Never blocks; drops spans when the queue is full.

    The SDK's batch processor is not used, because it drops spans without counting them and can keep the process alive.
    """

    def __init__(self, exporter: SpanExporter, most_waiting: int, timeout_s: float) -> None:
        self._exporter = exporter
        self._most_waiting = most_waiting
        self._enough = min(
            BATCH, (most_waiting + 1) // 2
        )  # half of a small queue, so that it doesn't fill up during a wait
        self._timeout_s = timeout_s
        self._waiting: deque[ReadableSpan] = deque()
        self._wake = threading.Event()
        self._stopping = False
        self._ended = asyncio.Event()
        self._collector_accepts = True
        self._full = metrics.SPANS_DROPPED.labels("queue_full")
        self._not_taken = metrics.SPANS_DROPPED.labels("not_taken")

    def start(self) -> None:
        loop = asyncio.get_running_loop()
        # A daemon thread: a collector that hangs must not keep the process alive.
        threading.Thread(target=self._run, args=(loop,), name="tracing", daemon=True).start()

    def on_end(self, span: ReadableSpan) -> None:
        """Queues a finished span; called on the event loop."""
        if len(self._waiting) >= self._most_waiting:
            self._full.inc()
            return
        self._waiting.append(span)
        if len(self._waiting) >= self._enough:
            self._wake.set()

    async def stop(self) -> None:
        """Sends the remaining spans within the time limit of one request; drops the rest."""
        self._stopping = True
        self._wake.set()
        if not await set_within(self._ended, self._timeout_s):
            self._not_taken.inc(len(self._waiting))
            log.warning("spans left unsent at the end", waiting=len(self._waiting))

    def _run(self, loop: asyncio.AbstractEventLoop) -> None:
        while not self._stopping:
            self._wake.wait(INTERVAL_S)
            self._wake.clear()
            self._send_all()
        self._send_all()
        with suppress(RuntimeError):  # the loop is closed already, so that no task waits
            loop.call_soon_threadsafe(self._ended.set)

    def _send_all(self) -> None:
        while self._waiting:
            batch = [self._waiting.popleft() for _ in range(min(BATCH, len(self._waiting)))]
            try:
                accepted = self._exporter.export(batch) is SpanExportResult.SUCCESS
            except Exception as error:  # noqa: BLE001  (a bug of the exporter costs this batch only)
                log.warning("a batch of spans could not be sent", error=type(error).__name__)
                accepted = False
            if not accepted:
                self._not_taken.inc(len(batch))
            if accepted is not self._collector_accepts:
                self._collector_accepts = accepted
                log.warning("the collector takes spans again" if accepted else "the collector takes no spans")


class _CurrentHeaders(AuthBase):
    """Adds the headers of `tracing.headers` to each request, as their files have them now."""

    def __init__(self, settings: TracingSettings) -> None:
        self._headers = {
            name: RotatingSecret(value, f"tracing.headers.{name}", fit_for_a_header)
            for name, value in settings.headers.items()
        }

    def __call__(self, request: PreparedRequest) -> PreparedRequest:
        for name, secret in self._headers.items():
            request.headers[name] = secret.current().reveal_text()
        return request


def _otlp(settings: TracingSettings) -> SpanExporter:
    session = Session()
    session.auth = _CurrentHeaders(settings)
    return OTLPSpanExporter(
        endpoint=f"{settings.endpoint.rstrip('/')}/v1/traces",
        certificate_file=None if settings.ca is None else str(settings.ca),
        session=session,
        timeout=settings.timeout,
        compression=Compression.Gzip,
    )
