"""Tracing and the fast path: sampled records take the slow path with their spans, all others stay on the fast path."""

import asyncio
from contextvars import Context

import pytest

from dispatcher.config.settings import TracingSettings
from dispatcher.contract.outcomes import Delivered, Outcome
from dispatcher.contract.records import Record
from dispatcher.delivery.pending_delivery import AttemptResult
from dispatcher.flow.fast_path import FastPath
from dispatcher.telemetry.tracing import Tracing
from dispatcher.transport.traced import TracedTransport
from tests.tracing.collector import Collector, attributes
from tests.unit.delivering.builders import Bench, ScriptedTransport, wall
from tests.unit.examples import EMAIL_EVENT, record

SAMPLED = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
UNSAMPLED = SAMPLED[:-1] + "0"


class Listener:
    """Follows one record as the consumer does: a record that falls back is processed in a task with spans."""

    def __init__(self, traced: "TracedBench", one: Record) -> None:
        self.outcome: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        self.fell_back = False
        self._traced = traced
        self._record = one

    def on_finished(self, outcome: Outcome, /) -> None:
        self.outcome.set_result(outcome)

    def on_fallback(self, result: AttemptResult | None) -> None:
        self.fell_back = True
        self._task = asyncio.create_task(self._slow_path(result), context=Context())

    def on_cancelled(self) -> None:
        self.outcome.cancel()

    async def _slow_path(self, result: AttemptResult | None) -> None:
        processing = self._traced.bench.processing()
        if result is None:
            self.on_finished(await self._traced.process(self._record, processing))
        else:
            self.on_finished(await self._traced.fast_path.resume(self._record, processing, result))


class TracedBench:
    """A process's pipeline with tracing around it, as `Service` assembles it."""

    def __init__(self, tracing: Tracing, transport: ScriptedTransport) -> None:
        self.bench = Bench(transport=TracedTransport(transport, tracing), delivery={"lane_start": 1, "lane_max": 1})  # type: ignore[arg-type]
        self.process = tracing.around(self.bench.pipeline.process, "events")
        self.fast_path = FastPath(
            self.bench.pipeline, self.bench.store, self.bench.deliverer, 1_000_000, 256_000, tracing.is_sampled
        )

    def start(self, traceparent: str, offset: int) -> Listener:
        headers = {"traceparent": traceparent.encode()}
        one = record(EMAIL_EVENT, headers, timestamp=int(wall() * 1000), topic="events", offset=offset)
        listener = Listener(self, one)
        self.fast_path.start(one, self.bench.processing(), listener)
        return listener


def settings_for(collector: Collector) -> TracingSettings:
    return TracingSettings.model_validate(
        {"enabled": True, "endpoint": collector.url, "sample_ratio": 0, "timeout": "2s"}
    )


@pytest.mark.parametrize("has_idle_connection", [True, False])
async def test_only_sampled_records_leave_the_fast_path_and_have_spans(has_idle_connection: bool) -> None:
    transport = ScriptedTransport(200)
    transport.rests = has_idle_connection
    async with Collector() as collector, Tracing(settings_for(collector)) as tracing:
        traced = TracedBench(tracing, transport)
        for offset, (traceparent, falls_back) in enumerate([(UNSAMPLED, False), (SAMPLED, True), (UNSAMPLED, False)]):
            listener = traced.start(traceparent, offset)
            assert await listener.outcome == Delivered(1)
            assert listener.fell_back is falls_back
    (event,) = collector.named("process events")
    (post,) = collector.named("POST")
    assert attributes(event)["messaging.kafka.offset"] == 1
    assert post.parent_span_id == event.span_id
    first, second, third = transport.sent("traceparent")
    assert (first, third) == (UNSAMPLED, UNSAMPLED)
    assert second == f"00-{event.trace_id.hex()}-{post.span_id.hex()}-01"


async def test_a_post_that_starts_in_a_sampled_events_task_has_no_span_of_that_event() -> None:
    """The sampled event's failed attempt releases its permit, and starts the next event, before its own retry."""
    transport = ScriptedTransport(503, 200)
    async with Collector() as collector, Tracing(settings_for(collector)) as tracing:
        traced = TracedBench(tracing, transport)
        sampled = traced.start(SAMPLED, 0)
        while not transport.requests:
            await asyncio.sleep(0.001)
        transport.rests = False
        others = [traced.start(UNSAMPLED, offset) for offset in range(1, 4)]
        assert not transport.requests[1:], "they wait for the permit"
        outcomes = await asyncio.gather(*(listener.outcome for listener in (sampled, *others)))
    assert outcomes == [Delivered(2), Delivered(1), Delivered(1), Delivered(1)]
    assert not any(listener.fell_back for listener in others)
    assert [attributes(span)["dispatcher.attempt"] for span in collector.named("POST")] == [1, 2]
    assert transport.sent("traceparent").count(UNSAMPLED) == len(others)
