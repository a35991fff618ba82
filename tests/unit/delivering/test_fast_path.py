"""Checks that the fast path finishes an event as the slow path would, and returns every other event unchanged."""

import asyncio
import json
from dataclasses import dataclass, field
from typing import Any

import pytest
from prometheus_client import REGISTRY

from dispatcher.contract.outcomes import (
    Attempt,
    Delivered,
    FailureReason,
    Outcome,
    Parked,
    ParkReason,
    Skipped,
    SkipReason,
)
from dispatcher.contract.records import Origin, Record, RetryState
from dispatcher.delivery.breaker import BreakerState
from dispatcher.delivery.direct_attempt import DirectAttempt
from dispatcher.delivery.pending_delivery import AttemptResult
from dispatcher.telemetry import metrics
from dispatcher.transport.request import Request
from tests.build_form import interpreted_only
from tests.unit.delivering.builders import WALL, Bench, ScriptedTransport
from tests.unit.delivering.test_deliverer import FETCHED
from tests.unit.examples import EMAIL_EVENT, ORIGIN, SMS_EVENT, TENANT, email_event, record, webhook
from tests.unit.virtual_time import settle, virtual_time

NOW_MS = int(WALL * 1000)


@dataclass
class Owner:
    """Sees one record through as a consumer does."""

    bench: Bench
    record: Record
    outcome: Outcome | None = None
    result: list[AttemptResult | None] = field(default_factory=list)
    is_released: bool = False
    task: "asyncio.Task[None] | None" = None

    def on_finished(self, outcome: Outcome, /) -> None:
        assert self.outcome is None
        self.outcome = outcome

    def on_fallback(self, result: AttemptResult | None) -> None:
        self.result.append(result)
        self.task = asyncio.create_task(self._go_on(result))

    def on_cancelled(self) -> None:
        self.is_released = True

    async def _go_on(self, result: AttemptResult | None) -> None:
        processing, fast_path = self.bench.processing(), self.bench.fast_path
        going = self.bench.process(self.record) if result is None else fast_path.resume(self.record, processing, result)
        self.on_finished(await going)


def start(bench: Bench, event: Any = EMAIL_EVENT, **fields: Any) -> tuple[Owner, DirectAttempt | None]:
    one = record(event, **({"timestamp": NOW_MS} | fields))
    owner = Owner(bench, one)
    return owner, bench.fast_path.start(one, bench.processing(), owner)


def sent_headers(request: Request) -> list[tuple[str, str]]:
    """The headers, but for the time."""
    return [(name, value) for name, value in request.headers if name != "webhook-timestamp"]


def free(bench: Bench) -> bool:
    """No permit is taken."""
    return " 0/" in repr(bench.lanes)


@virtual_time
async def test_an_event_is_delivered_without_a_task_of_its_own() -> None:
    bench = Bench(204)
    owner, direct_attempt = start(bench)

    assert direct_attempt is not None
    assert direct_attempt.task is None
    await asyncio.sleep(1)
    assert owner.outcome == Delivered(1)
    assert owner.result == []
    assert free(bench)


@virtual_time
@pytest.mark.parametrize("event", [EMAIL_EVENT, SMS_EVENT])
async def test_the_request_is_that_of_the_slow_path(event: Any) -> None:
    requests: list[Request] = []
    for short in (True, False):
        bench = Bench(200)
        one = record(event, timestamp=NOW_MS)
        if short:
            owner, _ = start(bench, event)
            await asyncio.sleep(1)
            assert owner.result == []
        else:
            await bench.process(one)
        requests += bench.transport.requests

    short_one, full_one = requests
    assert short_one.body == full_one.body
    assert sent_headers(short_one) == sent_headers(full_one)


@virtual_time
@pytest.mark.parametrize(
    ("event", "reason"),
    [
        ({"body": {"xdmEntity": {"eventType": "message.tracking"}}}, SkipReason.NOT_FEEDBACK),
        (email_event(isTestExecution=True), SkipReason.TEST_EXECUTION),
        (email_event(imsOrgId="another"), SkipReason.NO_WEBHOOK),
        (email_event(feedbackStatus="delay"), SkipReason.STATUS),
        (email_event(campaignType="RetryState"), SkipReason.CAMPAIGN),
    ],
)
async def test_an_event_that_no_webhook_wants_is_skipped_at_once(event: Any, reason: SkipReason) -> None:
    bench = Bench(200)
    owner, direct_attempt = start(bench, event)

    assert direct_attempt is None
    assert owner.outcome == Skipped(reason)
    assert bench.transport.requests == []


@virtual_time
@pytest.mark.parametrize("value", [None, b"{", b'{"body":1}', b'{"a":1,"a":2}', b"\xff"])
async def test_an_unreadable_record_falls_back(value: bytes | None) -> None:
    bench = Bench(200)
    owner, direct_attempt = start(bench, value)

    assert direct_attempt is None
    assert owner.result == [None]
    assert owner.task is not None
    await owner.task
    assert len(bench.dead()) == 1


@virtual_time
async def test_a_retry_state_in_the_headers_of_a_fresh_record_is_not_believed() -> None:
    """The producers of events could otherwise choose their webhook-ids and attempts."""
    bench = Bench(200)
    retry_state = RetryState(Origin("delivery-events", 0, 5), WALL - 60, attempts=3, parks=1, not_before=WALL)
    _, direct_attempt = start(bench, headers=dict(retry_state.headers()))

    assert direct_attempt is not None
    assert direct_attempt.pending.origin == Origin(ORIGIN.topic, ORIGIN.partition, ORIGIN.offset)
    await asyncio.sleep(1)
    assert bench.transport.sent("webhook-attempt") == ["1"]


@virtual_time
async def test_an_unavailable_store_is_left_to_the_slow_path() -> None:
    bench = Bench(200)
    bench.store.away = True
    owner, direct_attempt = start(bench)

    assert direct_attempt is None
    assert owner.result == [None]
    assert owner.task is not None
    owner.task.cancel()
    await asyncio.wait([owner.task])


@virtual_time
async def test_a_bug_before_anything_is_sent_is_left_to_the_slow_path(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(200)
    with monkeypatch.context() as patch:
        patch.setattr(bench.store, "get_cached", lambda tenant: 1 / 0)
        owner, direct_attempt = start(bench)

    assert direct_attempt is None
    assert owner.result == [None]
    assert owner.task is not None
    await owner.task
    assert owner.outcome == Delivered(1)


@virtual_time
async def test_a_failed_first_attempt_counts_and_the_slow_path_continues_from_it() -> None:
    bench = Bench(503, 503, 200, chance=lambda: 1.0)
    owner, _ = start(bench)
    await asyncio.sleep(30)

    assert owner.outcome == Delivered(3)
    assert [None if one is None else one.number for one in owner.result] == [1]
    assert bench.transport.sent("webhook-attempt") == ["1", "2", "3"]
    assert len(set(bench.transport.sent("webhook-id"))) == 1
    assert free(bench)


@virtual_time
async def test_an_answer_that_parks_is_parked_with_one_attempt() -> None:
    bench = Bench(404)
    owner, _ = start(bench)
    await asyncio.sleep(1)

    assert owner.outcome == Parked(0, ParkReason.ATTEMPT_FAILED)
    ((_, retry_state),) = bench.parked()
    assert (retry_state.attempts, retry_state.last_status) == (1, 404)


@virtual_time
async def test_410_suspends_the_lane_and_parks_waiting_events_without_an_attempt() -> None:
    bench = Bench(410, delivery={"lane_start": 1})
    first, _ = start(bench)
    second, _ = start(bench, offset=42)
    await asyncio.sleep(1)

    assert first.outcome == Parked(0, ParkReason.SUSPENDED)
    assert second.outcome == Parked(0, ParkReason.SUSPENDED)
    assert sorted(retry_state.attempts for _, retry_state in bench.parked()) == [0, 1]


@virtual_time
async def test_a_webhook_edited_while_the_event_waits_is_the_one_that_is_used() -> None:
    bench = Bench(200, delivery={"lane_start": 1, "lane_max": 1}, takes_s=0.5)
    first, _ = start(bench)
    second, _ = start(bench, offset=42)
    bench.store.put(webhook(url="https://edited.example/"))
    await asyncio.sleep(5)

    assert (first.outcome, second.outcome) == (Delivered(1), Delivered(1))
    assert [one.endpoint.host for one in bench.transport.requests] == ["hooks.luma.example", "edited.example"]
    assert second.result == [None]


@virtual_time
async def test_events_of_a_lane_are_sent_in_order_within_its_limit() -> None:
    bench = Bench(200, delivery={"lane_start": 2, "lane_max": 2})
    owners = [start(bench, email_event(_id=f"e{number}"), offset=number)[0] for number in range(6)]
    await settle()
    assert bench.transport.under_way == 2
    await asyncio.sleep(5)

    assert [owner.outcome for owner in owners] == [Delivered(1)] * 6
    assert bench.transport.times == sorted(bench.transport.times)
    assert free(bench)


@virtual_time
async def test_a_waiting_attempt_can_be_cancelled_and_sends_nothing() -> None:
    bench = Bench(200, delivery={"lane_start": 1, "lane_max": 1})
    start(bench)
    owner, direct_attempt = start(bench, offset=42)
    assert direct_attempt is not None
    direct_attempt.cancel()
    await asyncio.sleep(5)

    assert owner.outcome is None
    assert owner.result == []
    assert len(bench.transport.requests) == 1
    assert free(bench)


@virtual_time
@pytest.mark.parametrize("rests", [True, False], ids=["on a connection", "in a task"])
async def test_cancelling_an_attempt_in_progress_releases_its_permit(rests: bool) -> None:
    bench = Bench(200)
    bench.transport.rests = rests
    owner, direct_attempt = start(bench)
    await settle()
    assert direct_attempt is not None
    assert (direct_attempt.task is None) is rests
    assert not free(bench)
    direct_attempt.cancel()
    await asyncio.sleep(5)

    assert owner.outcome is None
    assert owner.is_released is not rests
    assert free(bench)


@virtual_time
async def test_without_an_idle_connection_a_task_makes_the_attempt() -> None:
    bench = Bench(200)
    bench.transport.rests = False
    owner, direct_attempt = start(bench)

    assert direct_attempt is not None
    assert direct_attempt.task is not None
    await direct_attempt.task
    assert owner.outcome == Delivered(1)
    assert owner.result == []


@virtual_time
async def test_a_refused_fetched_token_is_fetched_again_within_the_first_attempt() -> None:
    bench = Bench(401, 200)
    bench.store.put(webhook(**FETCHED))
    owner, _ = start(bench)
    await asyncio.sleep(5)
    await bench.deliverer.close()

    assert owner.outcome == Delivered(1)
    assert bench.transport.sent("authorization") == ["Bearer token-1", "Bearer token-2"]
    assert bench.transport.sent("webhook-attempt") == ["1", "1"]


class Broken(ScriptedTransport):
    """A bug, once."""

    def start_post(self, request: Request, on_result: Any) -> Any:
        if not self.requests:
            self.requests.append(request)
            raise ValueError("a header that can't be sent")
        return super().start_post(request, on_result)


@virtual_time
async def test_a_bug_on_the_fast_path_is_counted_and_the_slow_path_decides() -> None:
    bench = Bench(transport=Broken(200))
    before = metrics.ERRORS.labels("lanes")._value.get()
    owner, direct_attempt = start(bench)
    await asyncio.sleep(1)

    assert direct_attempt is None
    assert metrics.ERRORS.labels("lanes")._value.get() == before + 1
    assert owner.result == [None]
    assert owner.outcome == Delivered(1)
    assert free(bench)


class AlwaysBroken(ScriptedTransport):
    """A bug that this tenant's requests always meet."""

    def start_post(self, request: Request, on_result: Any) -> Any:
        raise TypeError("a certificate that can't be decoded")

    async def post(self, request: Request) -> Attempt:
        raise TypeError("a certificate that can't be decoded")


@virtual_time
async def test_an_event_whose_attempts_meet_a_bug_is_parked() -> None:
    """Unfinished, it would hold its partition, and so the events of all tenants."""
    bench = Bench(transport=AlwaysBroken(200))
    before = metrics.ERRORS.labels("lanes")._value.get()
    owner, _ = start(bench)
    await asyncio.sleep(60)

    assert isinstance(owner.outcome, Parked)
    assert metrics.ERRORS.labels("lanes")._value.get() > before
    assert free(bench)
    assert bench.lanes.lane(TENANT).endpoint.breaker.state is BreakerState.CLOSED, "the endpoint is not to blame"


@virtual_time
async def test_a_reset_on_a_connection_that_rested_is_tried_again_at_once() -> None:
    bench = Bench(Attempt(0.01, failure=FailureReason.RESET, reused=True), 200)
    owner, _ = start(bench)
    await asyncio.sleep(1)

    assert owner.outcome == Delivered(2)
    first, second = bench.transport.times
    assert second - first == pytest.approx(bench.transport.takes_s, abs=0.001)
    assert json.loads(bench.transport.requests[0].body) == json.loads(bench.transport.requests[1].body)


@virtual_time
async def test_cancelling_an_attempt_before_the_first_step_of_its_task_releases_its_permit() -> None:
    bench = Bench(200)
    bench.transport.rests = False
    owner, direct_attempt = start(bench)
    assert direct_attempt is not None
    direct_attempt.cancel()  # within the same turn of the event loop: the task never runs
    await asyncio.sleep(5)

    assert owner.is_released
    assert owner.outcome is None
    assert bench.transport.requests == []
    assert free(bench)


@interpreted_only
@virtual_time
@pytest.mark.parametrize("rests", [True, False], ids=["on a connection", "in a task"])
async def test_a_bug_after_an_answer_leaves_the_record_to_the_slow_path(
    rests: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = Bench(200)
    bench.transport.rests = rests

    def broken(*_: object) -> AttemptResult:
        monkeypatch.undo()
        raise ValueError("an answer that can't be judged")

    monkeypatch.setattr(bench.deliverer, "conclude", broken)
    before = metrics.ERRORS.labels("lanes")._value.get()
    owner, _ = start(bench)
    await asyncio.sleep(5)

    assert metrics.ERRORS.labels("lanes")._value.get() == before + 1
    assert owner.result == [None]
    assert owner.outcome == Delivered(1)
    assert free(bench)


IMPLAUSIBLE = [0, -1, NOW_MS // 1000, NOW_MS * 1000, NOW_MS + 60_000, NOW_MS - 366 * 86_400_000]


@virtual_time
@pytest.mark.parametrize("timestamp", [*IMPLAUSIBLE, NOW_MS - 5_000])
async def test_the_end_to_end_time_counts_from_the_reading_if_the_timestamp_is_implausible(timestamp: int) -> None:
    """It is missing, in seconds or microseconds, in the future, or older than any topic keeps records."""
    bench, place = Bench(200), {"retried": "no"}

    def observed() -> float:
        return REGISTRY.get_sample_value("dispatcher_event_end_to_end_duration_seconds_sum", place) or 0.0

    before = observed()
    one, processing = record(EMAIL_EVENT, timestamp=timestamp), bench.processing()
    processing.read_at = WALL - 5.0
    bench.fast_path.start(one, processing, Owner(bench, one))
    await asyncio.sleep(1)
    assert observed() - before == pytest.approx(5.0, abs=0.5)
    before = observed()
    assert await bench.process(one) == Delivered(1)
    assert observed() - before == pytest.approx(0.0 if timestamp in IMPLAUSIBLE else 6.0, abs=0.5)
