"""Spans: what they say, whose children they are, and that a collector can do nothing to a delivery."""

import asyncio
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from prometheus_client import REGISTRY

from dispatcher.config.secrets import Secret
from dispatcher.config.settings import TracingSettings
from dispatcher.config.webhook_revision import Webhook
from dispatcher.contract.outcomes import (
    Attempt,
    Dead,
    DeadReason,
    Delivered,
    FailureReason,
    Outcome,
    Parked,
    ParkReason,
    Skipped,
    SkipReason,
)
from dispatcher.contract.records import AssignmentEpoch, Origin, ProcessingAttempt, Record, RetryState
from dispatcher.contract.tenant import TenantKey
from dispatcher.errors import Draining, StoreUnavailable
from dispatcher.telemetry import tracing as module
from dispatcher.telemetry.trace_choice import TraceChoice, trace_id
from dispatcher.telemetry.tracing import Tracing
from dispatcher.transport.endpoint import Endpoint
from dispatcher.transport.request import Request
from dispatcher.transport.traced import TracedTransport
from tests.integration.harness import until
from tests.tracing.collector import Collector, attributes
from tests.unit.examples import a_record

PRODUCERS = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
UNSAMPLED = PRODUCERS[:-1] + "0"
TRACE = bytes.fromhex(PRODUCERS.split("-")[1])

Answers = Callable[[Request], Attempt]


@pytest.fixture
async def collector() -> AsyncIterator[Collector]:
    async with Collector() as one:
        yield one


def settings_for(collector: Collector, **changes: object) -> TracingSettings:
    return TracingSettings.model_validate(
        {"enabled": True, "endpoint": collector.url, "sample_ratio": 1, "timeout": "2s"} | changes
    )


def record(*headers: tuple[str, bytes], offset: int = 7) -> Record:
    return a_record(b"{}", None, headers, "events", 3, offset, 1_753_171_200_000)


class Scripted:
    """A transport that returns scripted answers and keeps the requests."""

    def __init__(self, *answers: Attempt) -> None:
        self.answers = list(answers)
        self.requests: list[Request] = []

    async def post(self, request: Request) -> Attempt:
        self.requests.append(request)
        return self.answers.pop(0)

    def header(self, name: str) -> list[str]:
        return [value for request in self.requests for key, value in request.headers if key == name]


class NoWebhooks:
    async def get(self, tenant: TenantKey) -> Webhook | None:
        return None


def request(number: int = 1, *headers: tuple[str, str]) -> Request:
    endpoint = Endpoint.at("https://hooks.luma.example/secret-path?token=1")
    own = (("webhook-id", "msg_1"), ("webhook-attempt", str(number)), *headers)
    return Request(endpoint, own, b"{}", timeout_s=10, connect_timeout_s=3)


async def through(
    tracing: Tracing, one: Record, process: Callable[[Record, ProcessingAttempt], Awaitable[Outcome]]
) -> Outcome | BaseException:
    """Processes one record in a task of its own, as the consumer does."""
    task = asyncio.create_task(tracing.around(process)(one, ProcessingAttempt(AssignmentEpoch())))  # type: ignore[arg-type]
    (result,) = await asyncio.gather(task, return_exceptions=True)
    return result


def outcome(value: Outcome) -> Callable[[Record, ProcessingAttempt], Awaitable[Outcome]]:
    async def process(_record: Record, _processing: ProcessingAttempt) -> Outcome:
        return value

    return process


async def deliver(tracing: Tracing, one: Record, transport: Scripted, count: int = 1, *own: tuple[str, str]) -> None:
    traced = TracedTransport(transport, tracing)

    async def process(_record: Record, _processing: ProcessingAttempt) -> Outcome:
        await tracing.around_webhooks(NoWebhooks()).get(TenantKey("9E1@AdobeOrg", "prod"))
        for number in range(1, count + 1):
            await traced.post(request(number, *own))
        return Delivered(count)

    await through(tracing, one, process)


async def test_an_event_and_its_attempts_are_below_the_producers_span(collector: Collector) -> None:
    transport = Scripted(Attempt(0.1, status=503), Attempt(0.1, status=200, reused=True))
    async with Tracing(settings_for(collector)) as tracing:
        state = ("tracestate", b"vendor=abc")
        await deliver(tracing, record(("traceparent", PRODUCERS.encode()), state), transport, 2)

    (event,) = collector.named("process events")
    first, second = collector.named("POST")
    assert {span.trace_id for span in collector.spans} == {TRACE}
    assert event.parent_span_id.hex() == PRODUCERS.split("-")[2]
    assert event.trace_state == "vendor=abc"
    assert first.parent_span_id == second.parent_span_id == event.span_id
    assert [event.kind, first.kind] == [event.SPAN_KIND_CONSUMER, first.SPAN_KIND_CLIENT]
    assert attributes(event) == {
        "messaging.system": "kafka",
        "messaging.operation.name": "process",
        "messaging.operation.type": "process",
        "messaging.destination.name": "events",
        "messaging.destination.partition.id": "3",
        "messaging.kafka.offset": 7,
        "dispatcher.origin": "events/3/7",
        "dispatcher.parks": 0,
        "dispatcher.org": "9E1@AdobeOrg",
        "dispatcher.sandbox": "prod",
        "dispatcher.outcome": "delivered",
        "dispatcher.attempts": 2,
    }
    of_attempt = {
        "http.request.method": "POST",
        "server.address": "hooks.luma.example",
        "server.port": 443,
        "dispatcher.webhook_id": "msg_1",
    }
    failed = {"dispatcher.connection_reused": False, "error.type": "503"}
    assert attributes(first) == of_attempt | {"dispatcher.attempt": 1, "http.response.status_code": 503} | failed
    succeeded = {"dispatcher.attempt": 2, "http.response.status_code": 200, "dispatcher.connection_reused": True}
    assert attributes(second) == of_attempt | succeeded
    assert first.status.code == first.status.STATUS_CODE_ERROR
    assert second.status.code == second.status.STATUS_CODE_UNSET
    assert transport.header("traceparent") == [f"00-{TRACE.hex()}-{span.span_id.hex()}-01" for span in (first, second)]


async def test_the_records_own_traceparent_is_not_sent_twice(collector: Collector) -> None:
    transport = Scripted(Attempt(0.1, status=200))
    async with Tracing(settings_for(collector)) as tracing:
        one = record(("traceparent", PRODUCERS.encode()))
        await deliver(tracing, one, transport, 1, ("traceparent", PRODUCERS), ("authorization", "Bearer x"))
    assert len(transport.header("traceparent")) == 1
    assert transport.header("traceparent") != [PRODUCERS]
    assert transport.header("authorization") == ["Bearer x"]


async def test_an_event_that_its_producer_does_not_sample_has_no_span_and_keeps_its_traceparent(
    collector: Collector,
) -> None:
    transport = Scripted(Attempt(0.1, status=200))
    async with Tracing(settings_for(collector)) as tracing:
        one = record(("traceparent", UNSAMPLED.encode()))
        await deliver(tracing, one, transport, 1, ("traceparent", UNSAMPLED))
    assert collector.spans == []
    assert transport.header("traceparent") == [UNSAMPLED]


async def test_a_request_outside_of_any_event_has_no_span(collector: Collector) -> None:
    transport = Scripted(Attempt(0.1, status=200))
    async with Tracing(settings_for(collector)) as tracing:
        await TracedTransport(transport, tracing).post(request())
    assert collector.spans == []
    assert transport.header("traceparent") == []


@pytest.mark.parametrize(
    "expected", [b"", b"00-1", b"\xff" * 55, b"00-" + b"0" * 32 + b"-b7ad6b7169203331-01", PRODUCERS.encode() * 20]
)
async def test_a_traceparent_that_cannot_be_read_counts_as_absent(collector: Collector, expected: bytes) -> None:
    async with Tracing(settings_for(collector)) as tracing:
        await deliver(tracing, record(("traceparent", expected)), Scripted(Attempt(0.1, status=200)))
    (event,) = collector.named("process events")
    assert event.parent_span_id == b""


async def test_every_hop_of_an_event_is_in_one_trace(collector: Collector) -> None:
    """Without a producer's trace: parked, read again, redriven; and another event in another one."""
    retry_state = RetryState(Origin("events", 3, 7), 1_753_171_200.0, attempts=1, parks=1)
    parked = a_record(b"{}", None, tuple(retry_state.headers()), "events.retry.30s", 0, 99, 1_753_171_230_000)
    async with Tracing(settings_for(collector)) as tracing:
        await through(tracing, record(), outcome(Parked(0, ParkReason.BREAKER_OPEN)))
        await through(tracing, parked, outcome(Delivered(2)))
        await through(tracing, record(offset=8), outcome(Delivered(1)))
    (first,) = collector.of(lambda expected: expected["dispatcher.outcome"] == "parked")
    (second,) = collector.named("process events.retry.30s")
    (other,) = collector.of(lambda expected: expected["messaging.kafka.offset"] == 8)
    assert first.trace_id == second.trace_id != other.trace_id
    assert attributes(second)["dispatcher.origin"] == "events/3/7"
    assert attributes(second)["dispatcher.parks"] == 1


HEADERS: list[tuple[tuple[str, bytes], ...]] = [
    (),
    (("other", b"x"),),
    (("traceparent", PRODUCERS.encode()),),
    (("traceparent", UNSAMPLED.encode()),),
    (("traceparent", PRODUCERS.encode()), ("tracestate", b"vendor=abc")),
    (("traceparent", PRODUCERS.encode()), ("traceparent", UNSAMPLED.encode())),
    (("traceparent", UNSAMPLED.encode()), ("traceparent", b"")),
    (("traceparent", PRODUCERS[:-2].encode() + b"03"),),  # a flag of level 2 beside
    (("traceparent", PRODUCERS[:-2].encode() + b"fe"),),
    (("traceparent", PRODUCERS[:-2].encode() + b"0a"),),
    (("traceparent", b"01" + PRODUCERS[2:].encode() + b"-more"),),  # a later version
    (("traceparent", b"ff" + PRODUCERS[2:].encode()),),
    (("traceparent", PRODUCERS.encode() + b"-more"),),
    (("traceparent", PRODUCERS.upper().encode()),),
    (("traceparent", b" " + PRODUCERS.encode() + b"\n"),),
    (("traceparent", b"00-" + b"0" * 32 + b"-b7ad6b7169203331-01"),),
    (("traceparent", b"00-0af7651916cd43dd8448eb211c80319c-" + b"0" * 16 + b"-01"),),
    (("traceparent", b"\xff" * 55),),
    (("traceparent", PRODUCERS.encode() * 20),),
]


@pytest.mark.parametrize("headers", HEADERS, ids=str)
@pytest.mark.parametrize("timestamp", [1_753_171_200_123, 0, -1])
async def test_the_early_decision_is_the_one_of_the_sdks_sampler(
    collector: Collector, headers: tuple[tuple[str, bytes], ...], timestamp: int
) -> None:
    sampler = ParentBased(TraceIdRatioBased(0.5))
    seen = set()
    async with Tracing(settings_for(collector, sample_ratio=0.5)) as tracing:
        for offset in range(40):
            one = a_record(b"{}", None, headers, "events", 3, offset, timestamp)
            state = RetryState.fresh(one, one.timestamp / 1000)
            result = sampler.should_sample(module._parent(one), trace_id(*module._place_of(state)), "process events")
            assert tracing.is_sampled(one) is result.decision.is_sampled()
            seen.add(result.decision.is_sampled())
    assert len(seen) == (2 if module._producers_decision(one) is None else 1)


@pytest.mark.parametrize("above", [-(2**32), -1, 0, 1, 2**32])
@pytest.mark.parametrize("offset", [7, 2**31, 2**63 - 1])
def test_the_lot_alone_decides_as_the_whole_trace_id_does(offset: int, above: int) -> None:
    origin = Origin("events", 3, offset)
    choice = TraceChoice((trace_id(origin, 5) & (2**64 - 1)) + above, lambda _: None)
    assert choice.includes_place(origin, 5) is (above > 0)
    assert choice.includes(a_record(b"{}", None, (), "events", 3, offset, 5)) is (above > 0)


@pytest.mark.parametrize(("ratio", "sampled"), [(0, False), (1, True)])
async def test_a_ratio_of_none_or_all_is_exact(collector: Collector, ratio: float, sampled: bool) -> None:
    async with Tracing(settings_for(collector, sample_ratio=ratio)) as tracing:
        assert {tracing.is_sampled(record(offset=offset)) for offset in range(1000)} == {sampled}


@pytest.mark.parametrize("partition", [0, 1, 99])
@pytest.mark.parametrize("ms_apart", [0, 1, 7, 1000])
@pytest.mark.parametrize("first", [0, 2**31 - 5_000, 10**15])
def test_the_share_of_traced_events_is_the_ratio_in_any_partition(first: int, ms_apart: int, partition: int) -> None:
    records = [
        a_record(b"{}", None, (), "events", partition, first + number, 1_753_171_200_123 + ms_apart * number)
        for number in range(10_000)
    ]
    for ratio in (0.001, 0.01, 0.1, 0.5):
        choice = TraceChoice(TraceIdRatioBased(ratio).bound, lambda _: None)
        deviation = (len(records) * ratio * (1 - ratio)) ** 0.5
        assert abs(sum(map(choice.includes, records)) - len(records) * ratio) < 5 * deviation


async def test_the_share_of_traced_events_is_the_one_set(collector: Collector) -> None:
    async with Tracing(settings_for(collector, sample_ratio=0.25)) as tracing:
        for offset in range(800):
            await through(tracing, record(offset=offset), outcome(Delivered(1)))
    assert 120 < len(collector.spans) < 280


@pytest.mark.parametrize(
    ("value", "expected", "fails"),
    [
        (Delivered(1), {"dispatcher.outcome": "delivered", "dispatcher.attempts": 1}, False),
        (Skipped(SkipReason.CHANNEL), {"dispatcher.outcome": "skipped", "dispatcher.reason": "channel"}, False),
        (
            Parked(1, ParkReason.RETRY_AFTER),
            {"dispatcher.outcome": "parked", "dispatcher.reason": "held", "dispatcher.tier": 1},
            False,
        ),
        (
            Dead(DeadReason.UNREADABLE),
            {"dispatcher.outcome": "dead", "dispatcher.reason": "unreadable", "error.type": "unreadable"},
            True,
        ),
    ],
)
async def test_every_outcome_is_in_the_span(
    collector: Collector, value: Outcome, expected: dict[str, object], fails: bool
) -> None:
    async with Tracing(settings_for(collector)) as tracing:
        assert await through(tracing, record(), outcome(value)) == value
    (event,) = collector.spans
    assert expected.items() <= attributes(event).items()
    assert (event.status.code == event.status.STATUS_CODE_ERROR) is fails


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (StoreUnavailable("with details"), {"error.type": "StoreUnavailable"}),
        (Draining(), {"dispatcher.outcome": "left_to_the_next"}),
        (asyncio.CancelledError(), {"error.type": "CancelledError"}),
    ],
)
async def test_an_exception_of_the_pipeline_propagates_and_is_in_the_span(
    collector: Collector, error: BaseException, expected: dict[str, object]
) -> None:
    async def process(_record: Record, _processing: ProcessingAttempt) -> Outcome:
        raise error

    async with Tracing(settings_for(collector)) as tracing:
        assert isinstance(await through(tracing, record(), process), type(error))
    (event,) = collector.spans
    assert expected.items() <= attributes(event).items()
    assert not event.events, "no message, no stack trace: they may quote what they are about"


async def test_an_attempt_has_a_traceparent_only_if_the_trace_is_sampled(collector: Collector) -> None:
    async with Tracing(settings_for(collector)) as tracing:
        for expected, trace in ((PRODUCERS, TRACE.hex()), (UNSAMPLED, None)):
            attempts: list[Attempt] = []

            async def process(
                _record: Record, _processing: ProcessingAttempt, found: list[Attempt] = attempts
            ) -> Outcome:
                failed = Attempt(0.1, failure=FailureReason.TLS, detail="x")
                found.append(await TracedTransport(Scripted(failed), tracing).post(request()))
                return Delivered(1)

            await through(tracing, record(("traceparent", expected.encode())), process)
            assert attempts == [Attempt(0.1, failure=FailureReason.TLS, detail="x", trace_id=trace)]
    (post,) = collector.named("POST")
    assert attributes(post)["error.type"] == "tls"


async def test_no_span_says_more_of_a_url_than_its_host(collector: Collector) -> None:
    async with Tracing(settings_for(collector)) as tracing:
        await deliver(tracing, record(), Scripted(Attempt(0.1, status=200)))
    text = "".join(map(str, collector.spans))
    assert "hooks.luma.example" in text
    assert "secret-path" not in text
    assert "token=1" not in text


async def test_the_collector_gets_headers_and_resource_attributes(
    collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "k8s.pod.name=dispatcher-0")
    monkeypatch.setenv("COLLECTOR_KEY", "Bearer abc")
    headers = {"authorization": Secret(b"Bearer abc")}
    async with Tracing(settings_for(collector, headers=headers, service_name="feedback")) as tracing:
        await through(tracing, record(), outcome(Delivered(1)))
    assert collector.resources[0]["service.name"] == "feedback"
    assert collector.resources[0]["k8s.pod.name"] == "dispatcher-0"
    assert collector.headers[0]["authorization"] == "Bearer abc"
    assert collector.headers[0]["content-type"] == "application/x-protobuf"


def dropped(reason: str) -> float:
    return REGISTRY.get_sample_value("dispatcher_tracing_spans_dropped_total", {"reason": reason}) or 0


class Stuck(SpanExporter):
    """Takes a batch and does not come back until it is let go."""

    def __init__(self) -> None:
        self.batches = 0
        self.let_go = threading.Event()
        self.came_back = threading.Event()

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self.batches += 1
        self.let_go.wait(100)
        self.came_back.set()
        return SpanExportResult.SUCCESS


async def test_a_collector_that_hangs_costs_a_bounded_queue_and_a_bounded_wait(
    collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "INTERVAL_S", 0.01)
    before, exporter = dropped("queue_full"), Stuck()
    tracing = Tracing(settings_for(collector, queue=100, timeout="1s"), exporter)
    async with tracing:
        for offset in range(2000):
            await through(tracing, record(offset=offset), outcome(Delivered(1)))
            while not exporter.batches:
                await asyncio.sleep(0.01)  # until the first one is in the exporter's hands
        assert exporter.batches == 1
        assert dropped("queue_full") - before == 2000 - 1 - 100
        left = dropped("not_taken")
    assert not exporter.came_back.is_set(), "the process did not wait for it"
    exporter.let_go.set()
    assert dropped("not_taken") - left == 100


async def test_a_queue_smaller_than_a_batch_is_sent_before_it_is_full(
    collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "INTERVAL_S", 3600)
    before = dropped("queue_full")
    async with Tracing(settings_for(collector, queue=10)) as tracing:
        for offset in range(5):
            await through(tracing, record(offset=offset), outcome(Delivered(1)))
        async with asyncio.timeout(60):
            while len(collector.spans) < 5:
                await asyncio.sleep(0.01)
    assert dropped("queue_full") == before


async def test_a_collector_that_refuses_is_counted_and_comes_back(
    collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "INTERVAL_S", 0.01)
    collector.status, before = 400, dropped("not_taken")
    async with Tracing(settings_for(collector)) as tracing:
        await through(tracing, record(), outcome(Delivered(1)))
        while dropped("not_taken") == before:
            await asyncio.sleep(0.01)
        collector.status = 200
        await through(tracing, record(offset=8), outcome(Delivered(1)))
    assert [attributes(span)["messaging.kafka.offset"] for span in collector.spans] == [8]
    assert dropped("not_taken") - before == 1


def test_switched_off_nothing_of_opentelemetry_is_imported() -> None:
    program = (
        "import sys, dispatcher.service; print([name for name in sys.modules if name.startswith('opentelemetry')])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "[]\n"


def test_without_the_extra_the_start_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    from dispatcher.service import tracing_problems

    monkeypatch.delitem(sys.modules, "dispatcher.telemetry.tracing")
    monkeypatch.setitem(sys.modules, "opentelemetry", None)
    assert tracing_problems(TracingSettings()) == []
    (problem,) = tracing_problems(TracingSettings(enabled=True))
    assert problem.key == "tracing.enabled"
    assert "feedback-dispatcher[otel]" in problem.message


async def test_the_collector_gets_a_header_as_its_file_has_it_now(collector: Collector, tmp_path: Path) -> None:
    """A rotated token is sent without a restart. What can't be a header, such as half a file, is not."""
    file = tmp_path / "token"
    file.write_text("Bearer first\n")
    headers = {"authorization": Secret(b"Bearer first", file=file)}
    seen: list[str] = []
    async with Tracing(settings_for(collector, headers=headers)) as tracing:
        for content in ("Bearer first\n", "Bearer rotated\n", "two\nlines\n", ""):
            file.write_text(content)
            await through(tracing, record(), outcome(Delivered(1)))
            await until(lambda: len(collector.spans) > len(seen), "the span")
            seen.append(collector.headers[-1]["authorization"])
    assert seen == ["Bearer first", "Bearer rotated", "Bearer rotated", "Bearer rotated"]
