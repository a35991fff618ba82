"""Adds a span to each POST of a sampled event. The endpoint receives the span as `traceparent`."""

from collections.abc import Callable
from dataclasses import replace

from dispatcher.contract.outcomes import Attempt
from dispatcher.telemetry.tracing import Tracing, end_attempt, traceparent
from dispatcher.transport.request import Exchange, Request, Transport


class TracedTransport:
    """Sends requests with another transport and records spans."""

    def __init__(self, transport: Transport, tracing: Tracing) -> None:
        self._transport = transport
        self._tracing = tracing

    def start_post(self, request: Request, on_result: Callable[[Attempt], None]) -> Exchange | None:
        """Sends without a span: only the fast path calls this, and sampled events don't take it."""
        return self._transport.start_post(request, on_result)

    async def post(self, request: Request) -> Attempt:
        """Sends the request. If the event is sampled, the span's `traceparent` replaces the record's."""
        own = dict(request.headers)
        span = self._tracing.start_attempt(
            request.endpoint.host,
            request.endpoint.port,
            own.get("webhook-attempt", ""),
            own.get("webhook-id", ""),
        )
        if span is None:
            return await self._transport.post(request)
        headers = (*(pair for pair in request.headers if pair[0] != "traceparent"), ("traceparent", traceparent(span)))
        try:
            attempt = await self._transport.post(replace(request, headers=headers))
        except BaseException:
            span.end()  # cancelled: there is no result
            raise
        return end_attempt(span, attempt)
