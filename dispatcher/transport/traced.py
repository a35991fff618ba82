"""A transport with a span around each POST; the endpoint is told of it, so that its trace continues ours."""

from collections.abc import Callable
from dataclasses import replace
from typing import Protocol

from dispatcher.contract.outcomes import Attempt
from dispatcher.telemetry.tracing import Tracing, end_attempt, traceparent
from dispatcher.transport.request import Request


class Transport(Protocol):
    """Sends one POST."""

    async def post(self, request: Request) -> Attempt: ...


class TracedTransport:
    """Sends with another transport."""

    def __init__(self, transport: Transport, tracing: Tracing) -> None:
        self._transport = transport
        self._tracing = tracing

    def begin(self, request: Request, ended: Callable[[Attempt], None]) -> None:
        """Never: a span needs the task of `post`."""

    async def post(self, request: Request) -> Attempt:
        """Send it, with the span's `traceparent` in place of the record's."""
        told = dict(request.headers)
        span = self._tracing.begin_attempt(
            request.endpoint.host,
            request.endpoint.port,
            told.get("webhook-attempt", ""),
            told.get("webhook-id", ""),
        )
        headers = (*(pair for pair in request.headers if pair[0] != "traceparent"), ("traceparent", traceparent(span)))
        try:
            attempt = await self._transport.post(replace(request, headers=headers))
        except BaseException:
            span.end()  # let go: nothing came of it
            raise
        return end_attempt(span, attempt)
