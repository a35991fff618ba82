"""One record to its outcome: what is parked, where, with which headers; what dies; what raises, and is tried again."""

import asyncio
import json
import math
from typing import Any

import pytest
from prometheus_client import REGISTRY

from dispatcher.contract.outcomes import (
    Attempt,
    Dead,
    DeadReason,
    Delivered,
    FailureReason,
    Parked,
    ParkReason,
    Skipped,
    SkipReason,
)
from dispatcher.contract.reason_texts import WAITING
from dispatcher.contract.records import Origin, Record, RetryState
from dispatcher.errors import BrakeEngaged, Draining, NotWritten, StoreUnavailable
from dispatcher.flow import decision
from tests.build_form import interpreted_only
from tests.published import DATA
from tests.unit.delivering.builders import WALL, Bench, wall
from tests.unit.examples import EMAIL_EVENT, ORIGIN, TENANT, a_record, email_event, record, webhook
from tests.unit.virtual_time import virtual_time

NOW_MS = int(WALL * 1000)


def fresh(event: Any = EMAIL_EVENT, **fields: Any) -> Record:
    return record(event, **({"timestamp": NOW_MS} | fields))


def parked_since(first_seen: float) -> Record:
    """An event in the first tier that was attempted first at that unix time."""
    headers = dict(RetryState(ORIGIN, first_seen, parks=1, reason="attempt_failed").headers())
    return fresh(headers=headers, topic=f"{ORIGIN.topic}.retry.30s")


@virtual_time
async def test_an_event_arrives_as_the_reference_payload() -> None:
    bench = Bench(200)

    assert await bench.process(fresh()) == Delivered(1)
    (request,) = bench.transport.requests
    assert json.loads(request.body) == json.loads((DATA / "feedback-v1.json").read_bytes())
    assert bench.producer.topics == {}


@virtual_time
async def test_the_webhooks_payload_version_is_used() -> None:
    bench = Bench(200)
    bench.store.put(webhook(payload=2))
    await bench.process(fresh())

    assert "campaignType" in json.loads(bench.transport.requests[0].body)["messageExecution"]


@virtual_time
@pytest.mark.parametrize("answers", [[False] * 3 + [True], [False]], ids=["a few times", "for ever"])
async def test_a_webhook_that_is_outdated_each_time_holds_its_event(answers: list[bool]) -> None:
    bench = Bench(200)
    bench.deliverer.is_current = lambda _: answers.pop(0) if len(answers) > 1 else answers[0]
    async with asyncio.timeout(1):
        outcome = await bench.process(fresh())
    if answers == [True]:
        assert outcome == Delivered(1)
    else:
        assert outcome == Parked(0, ParkReason.UNUSABLE)
        assert bench.transport.requests == []


@virtual_time
@pytest.mark.parametrize(
    ("event", "reason"),
    [
        ({"body": {"xdmEntity": {"eventType": "message.tracking"}}}, SkipReason.NOT_FEEDBACK),
        (email_event(isTestExecution=True), SkipReason.TEST_EXECUTION),
        (email_event(imsOrgId="another"), SkipReason.NO_WEBHOOK),
        (email_event(sandbox={"name": "another"}), SkipReason.NO_WEBHOOK),
        (email_event(feedbackStatus="delay"), SkipReason.STATUS),
    ],
)
async def test_an_event_that_no_webhook_wants_is_skipped(event: dict[str, object], reason: SkipReason) -> None:
    bench = Bench(200)

    assert await bench.process(fresh(event)) == Skipped(reason)
    assert bench.transport.requests == []
    assert bench.producer.topics == {}


@virtual_time
async def test_a_failed_event_is_parked_unchanged_with_its_retry_state() -> None:
    bench = Bench(503)
    headers = {"imsOrgId": b"o", "x": b"1"}
    outcome = await bench.process(fresh(headers=headers, key=b"k"))
    (kept,) = bench.written("retry.30s")

    assert outcome == Parked(0, ParkReason.ATTEMPT_FAILED)
    assert (kept.key, kept.value) == (b"k", fresh().value)
    assert kept.headers[:2] == (("imsOrgId", b"o"), ("x", b"1"))
    state = RetryState.of(kept)
    assert state.not_before == pytest.approx(wall() + 30, abs=0.1)
    assert state == RetryState(
        origin=ORIGIN, first_seen=WALL, attempts=4, parks=1, not_before=state.not_before,
        last_status=503, reason="attempt_failed", origin_timestamp=NOW_MS,
    )  # fmt: skip


@virtual_time
async def test_each_parking_goes_a_tier_further_and_the_last_repeats() -> None:
    bench = Bench(404)
    current, tiers = fresh(), []
    for _ in range(6):
        outcome = await bench.process(current)
        assert isinstance(outcome, Parked)
        tiers.append(outcome.tier)
        (current,) = bench.producer.topics.popitem()[1]

    assert tiers == [0, 1, 2, 3, 3, 3]
    retry_state = RetryState.of(current)
    assert (retry_state.attempts, retry_state.parks, retry_state.origin) == (6, 6, ORIGIN)
    assert bench.transport.sent("webhook-attempt") == ["1", "2", "3", "4", "5", "6"]
    assert len(set(bench.transport.sent("webhook-id"))) == 1
    assert [name for name, _ in current.headers].count("feedback-attempts") == 1


@virtual_time
async def test_a_hold_picks_its_tier() -> None:
    bench = Bench(Attempt(0.05, status=503, retry_after="400"))

    assert await bench.process(fresh()) == Parked(2, ParkReason.ATTEMPT_FAILED)
    assert await bench.process(fresh()) == Parked(2, ParkReason.RETRY_AFTER)


@virtual_time
async def test_a_parking_without_an_attempt_uses_none_up() -> None:
    bench = Bench(410)
    await bench.process(fresh())
    outcome = await bench.process(fresh())

    assert outcome == Parked(0, ParkReason.SUSPENDED)
    assert [retry_state.attempts for _, retry_state in bench.parked()] == [1, 0]


@virtual_time
@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (501, DeadReason.REJECTED), (505, DeadReason.REJECTED),
        (301, DeadReason.REDIRECTED), (307, DeadReason.REDIRECTED),
        (Attempt(0.1, status=503, webhook_delivery="abort-message"), DeadReason.ABORTED),
        (FailureReason.URL_DENIED, DeadReason.EGRESS_DENIED),
    ],
)  # fmt: skip
async def test_an_undeliverable_event_is_dead_lettered_with_its_reason(answer: Any, reason: DeadReason) -> None:
    bench = Bench(answer)

    assert await bench.process(fresh(key=b"k", headers={"x": b"1"})) == Dead(reason)
    (kept,) = bench.written("dead")
    (headers,) = bench.dead()
    assert (kept.key, kept.value, kept.headers[0]) == (b"k", fresh().value, ("x", b"1"))
    assert headers["reason"] == reason
    assert headers["attempts"] == "1"
    assert headers["origin-offset"] == str(ORIGIN.offset)
    assert headers["last-status"] == (
        "" if isinstance(answer, FailureReason) else str(getattr(answer, "status", answer))
    )
    assert headers["detail"]


@virtual_time
@pytest.mark.parametrize(
    "value", [None, b"", b"{", b"\xff", b"[]", b'{"a":' * 600 + b"1" + b"}" * 600, b"x" * 1_000_001]
)
async def test_an_unreadable_record_is_dead_lettered_unchanged(value: bytes | None) -> None:
    bench = Bench(200)

    assert await bench.process(a_record(value, key=None)) == Dead(DeadReason.UNREADABLE)
    (kept,) = bench.written("dead")
    assert (kept.key, kept.value) == (None, value)
    (headers,) = bench.dead()
    assert headers["reason"] == "unreadable"
    assert 0 < len(headers["detail"]) <= 1000


@virtual_time
async def test_headers_that_make_no_sense_stop_nothing() -> None:
    """Names of ours with values of another's, and a value that is null: the event is delivered all the same."""
    bench = Bench(200)
    headers: Any = (("feedback-origin-topic", None), ("feedback-attempts", None), ("x", None), ("imsOrgId", None))

    assert await bench.process(a_record(fresh().value, headers=headers, timestamp=NOW_MS)) == Delivered(1)


@interpreted_only
@virtual_time
@pytest.mark.parametrize("stage", ["read_event", "eligibility", "encode_feedback"])
async def test_a_bug_of_ours_kills_the_record_not_the_others(stage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise one record would hold up its partition until a fixed version is deployed."""

    def bug(*_: object) -> None:
        raise KeyError("canary")

    bench = Bench(200)
    with monkeypatch.context() as patched:
        patched.setattr(decision, stage, bug)
        assert await bench.process(fresh()) == Dead(DeadReason.INTERNAL)
    assert bench.dead()[0]["reason"] == "internal"
    assert bench.dead()[0]["detail"] == "KeyError"

    assert await bench.process(fresh()) == Delivered(1)


@virtual_time
async def test_a_payload_over_the_limit_is_dead() -> None:
    bench = Bench(200, max_body=2000)

    assert await bench.process(fresh(email_event(offers="x" * 2000))) == Dead(DeadReason.TOO_LARGE)
    assert await bench.process(fresh()) == Delivered(1)


@virtual_time
async def test_an_event_that_still_fails_at_the_age_limit_is_dead() -> None:
    """It would be too old when it is due: it dies now, not then."""
    bench = Bench(404)
    day = 86_400
    old, young = parked_since(WALL - day + 110), parked_since(WALL - day + 130)

    assert await bench.process(young) == Parked(1, ParkReason.ATTEMPT_FAILED)
    assert await bench.process(old) == Dead(DeadReason.EXPIRED)
    (headers,) = bench.dead()
    assert headers["detail"] == "answered 404"
    assert headers["attempts"] == "1"


@virtual_time
@pytest.mark.parametrize("timestamp", [NOW_MS // 1000, NOW_MS - 25 * 3_600_000, 0, -1, NOW_MS * 1000])
async def test_the_age_of_a_fresh_event_begins_with_its_first_attempt_whatever_its_timestamp(timestamp: int) -> None:
    """Timestamps in seconds or microseconds, none, and those of a replay or a backlog."""
    bench = Bench(404)

    assert await bench.process(fresh(timestamp=timestamp)) == Parked(0, ParkReason.ATTEMPT_FAILED)
    ((_, retry_state),) = bench.parked()
    assert retry_state.first_seen == pytest.approx(WALL, abs=0.1)
    assert retry_state.origin_timestamp == max(0, timestamp)
    (parked,) = bench.written("retry.30s")
    later = record(parked.value, dict(parked.headers), topic=parked.topic, timestamp=NOW_MS)
    assert await bench.process(later) == Parked(1, ParkReason.ATTEMPT_FAILED)
    assert bench.parked()[-1][1].first_seen == retry_state.first_seen, "kept from hop to hop"


@virtual_time
async def test_a_retry_state_is_believed_on_own_topics_only() -> None:
    bench = Bench(404)
    forged = RetryState(Origin("x", 0, 1), WALL - 10**9, attempts=50, parks=90, not_before=WALL + 10**9)

    assert await bench.process(fresh(headers=dict(forged.headers()))) == Parked(0, ParkReason.ATTEMPT_FAILED)
    ((_, retry_state),) = bench.parked()
    assert (retry_state.origin, retry_state.attempts, retry_state.parks) == (ORIGIN, 1, 1)
    assert bench.transport.sent("webhook-attempt") == ["1"]


@virtual_time
async def test_an_event_that_its_tier_does_not_accept_is_dead_as_too_large() -> None:
    bench = Bench(404)
    bench.producer.too_large = {f"{ORIGIN.topic}.retry.30s": 100}

    assert await bench.process(fresh()) == Dead(DeadReason.TOO_LARGE)
    (headers,) = bench.dead()
    assert "retry.30s accepts no record" in headers["detail"]
    assert (headers["attempts"], headers["parks"], headers["last-status"]) == ("1", "0", "404")


@virtual_time
async def test_a_dead_event_is_counted_for_its_tenant_and_is_no_longer_waiting() -> None:
    bench = Bench(404)
    tenants = bench.pipeline._tenants
    tenants.configure([TENANT])
    name = "dispatcher_tenant_events_total"
    labels = {"org": TENANT.org, "sandbox": "", "outcome": "dead_lettered"}
    before = REGISTRY.get_sample_value(name, labels) or 0
    old = parked_since(WALL - 86_390)
    tenants.worst.parked(TENANT, WALL - 86_390, WALL)
    assert TENANT in tenants.worst._waiting

    assert await bench.process(old) == Dead(DeadReason.EXPIRED)
    assert REGISTRY.get_sample_value(name, labels) == before + 1
    assert TENANT not in tenants.worst._waiting


@virtual_time
async def test_an_event_that_was_never_sent_and_expires_says_in_words_why_it_waited() -> None:
    bench = Bench(503)
    lane = bench.lanes.lane(TENANT)
    while lane.endpoint.refusal(bench.lanes.now(), 0.0) is None:
        lane.endpoint.breaker.record(bench.lanes.now(), failed=True)

    assert await bench.process(parked_since(WALL - 86_390)) == Dead(DeadReason.EXPIRED)
    (headers,) = bench.dead()
    assert headers["detail"] == WAITING[ParkReason.BREAKER_OPEN]


@virtual_time
async def test_an_old_event_that_can_be_delivered_is() -> None:
    bench = Bench(200)

    assert await bench.process(fresh(timestamp=NOW_MS - 10**9)) == Delivered(1)


@virtual_time
async def test_the_age_counts_from_the_first_place_over_all_hops() -> None:
    bench = Bench(404)
    retry_state = RetryState(
        Origin("delivery-events", 0, 1), WALL - 86_390, attempts=50, parks=90, reason="attempt_failed"
    )
    parked = record(EMAIL_EVENT, dict(retry_state.headers()), topic="delivery-events.retry.15m", timestamp=NOW_MS)

    assert await bench.process(parked) == Dead(DeadReason.EXPIRED)
    assert bench.dead()[0]["attempts"] == "51"


@virtual_time
@pytest.mark.parametrize("topic", ["retry.30s", "dead"])
async def test_a_topic_that_cannot_be_written_raises_and_nothing_is_lost(topic: str) -> None:
    bench = Bench(404 if topic.startswith("retry") else 501)
    bench.producer.refuses = {f"{ORIGIN.topic}.{topic}"}
    with pytest.raises(NotWritten):
        await bench.process(fresh())
    assert bench.producer.topics == {}

    bench.producer.refuses = set()
    await bench.process(fresh())
    assert len(bench.written(topic)) == 1


def taken(bench: Bench) -> Record:
    """The one parked record, out of its topic."""
    (record,) = bench.producer.topics.popitem()[1]
    assert isinstance(record, Record)
    return record


@virtual_time
async def test_an_event_whose_payload_is_refused_is_dead_after_four_posts_within_minutes() -> None:
    bench = Bench(422)
    record, outcomes = fresh(), []
    for refusals in range(4):
        outcomes.append(await bench.process(record))
        if refusals < 3:
            record = taken(bench)
            retry_state = RetryState.of(record)
            assert retry_state.refusals == refusals + 1
            await asyncio.sleep(retry_state.not_before - wall())

    assert outcomes == [*(Parked(tier, ParkReason.ATTEMPT_FAILED) for tier in range(3)), Dead(DeadReason.REJECTED)]
    assert bench.transport.sent("webhook-attempt") == ["1", "2", "3", "4"]
    assert bench.transport.times[-1] - bench.transport.times[0] < 10 * 60


@virtual_time
async def test_a_bad_deployment_ends_before_its_events_die() -> None:
    """Events that waited for hours behind another failure still have their four tries, in the first tiers."""
    bench = Bench(422, 422, 200)
    retry_state = RetryState(ORIGIN, WALL - 3600, attempts=7, parks=9, last_status=503)
    record = fresh(headers=dict(retry_state.headers()), topic=bench.retry_topics.topics[-1])
    assert await bench.process(record) == Parked(0, ParkReason.ATTEMPT_FAILED)
    assert await bench.process(taken(bench)) == Parked(1, ParkReason.ATTEMPT_FAILED)
    assert await bench.process(taken(bench)) == Delivered(10)


@virtual_time
async def test_a_name_that_resolves_to_a_denied_address_is_tried_again() -> None:
    bench = Bench(FailureReason.EGRESS_DENIED, 200)
    assert await bench.process(fresh()) == Parked(0, ParkReason.ATTEMPT_FAILED)
    assert len(bench.transport.requests) == 1, "no quick tries"
    assert await bench.process(taken(bench)) == Delivered(2)


@virtual_time
async def test_a_store_that_is_away_raises_before_anything_is_sent() -> None:
    bench = Bench(200)
    bench.store.away = True
    with pytest.raises(StoreUnavailable):
        await bench.process(fresh())

    assert bench.transport.requests == []


@virtual_time
async def test_events_of_a_webhook_that_can_not_be_used_wait_in_the_tiers_until_it_can() -> None:
    """They hold up no partition: that would stop the other tenants' events behind them."""
    bench = Bench(200)
    bench.store.unusable = True
    assert await bench.process(fresh()) == Parked(0, ParkReason.UNUSABLE)
    (tier, retry_state), *_ = bench.parked()
    assert (tier, retry_state.attempts, retry_state.reason) == ("30s", 0, "unusable")
    assert await bench.process(parked_since(WALL - 86_400)) == Dead(DeadReason.EXPIRED)
    assert bench.dead()[0]["detail"] == f"{WAITING[ParkReason.UNUSABLE]}: no key decrypts it"
    assert bench.transport.requests == []

    bench.store.unusable = False
    assert await bench.process(bench.written("retry.30s")[0]) == Delivered(1)


@virtual_time
async def test_an_unreadable_record_dies_while_the_store_is_away() -> None:
    bench = Bench(200)
    bench.store.away = True

    assert await bench.process(fresh(b"{")) == Dead(DeadReason.UNREADABLE)


@virtual_time
@pytest.mark.parametrize(("answer", "value"), [(404, fresh().value), (400, fresh().value), (200, b"{")])
async def test_nothing_is_written_for_a_partition_that_is_ours_no_more(answer: int, value: bytes) -> None:
    bench = Bench(answer)
    bench.epoch.active = False
    with pytest.raises(Draining):
        await bench.process(a_record(value))

    assert bench.transport.requests == []
    assert bench.producer.topics == {}


@virtual_time
async def test_a_refused_event_is_not_parked_for_a_partition_that_is_ours_no_more() -> None:
    bench = Bench(410)
    await bench.process(fresh())
    bench.epoch.active = False
    with pytest.raises(Draining):
        await bench.process(fresh())

    assert len(bench.parked()) == 1, "the first one"


@virtual_time
async def test_a_webhook_that_is_edited_while_its_event_waits_is_used_as_it_is_then() -> None:
    bench = Bench(200, takes_s=1, delivery={"lane_start": 1, "lane_max": 1})
    first = asyncio.create_task(bench.process(fresh()))
    second = asyncio.create_task(bench.process(fresh(offset=42)))
    third = asyncio.create_task(bench.process(fresh(email_event(feedbackStatus="error"), offset=43)))
    await asyncio.sleep(0.5)
    bench.store.put(webhook(url="https://new.example/", events=["bounce"], payload=2))

    assert await asyncio.gather(first, second, third) == [Delivered(1), Delivered(1), Skipped(SkipReason.STATUS)]
    assert [request.endpoint.host for request in bench.transport.requests] == ["hooks.luma.example", "new.example"]


@virtual_time
async def test_an_edit_between_two_quick_tries_is_followed_at_once_and_the_attempts_count_on() -> None:
    bench = Bench(503, 200)
    task = asyncio.create_task(bench.process(fresh()))
    await asyncio.sleep(0.06)
    bench.store.put(webhook(url="https://new.example/"))

    assert await task == Delivered(2)
    assert [request.endpoint.host for request in bench.transport.requests] == ["hooks.luma.example", "new.example"]
    assert bench.transport.sent("webhook-attempt") == ["1", "2"]


@virtual_time
async def test_a_webhook_that_is_removed_while_its_event_waits_gets_nothing_more() -> None:
    bench = Bench(200, takes_s=1, delivery={"lane_start": 1, "lane_max": 1})
    first = asyncio.create_task(bench.process(fresh()))
    second = asyncio.create_task(bench.process(fresh(offset=42)))
    await asyncio.sleep(0.5)
    del bench.store.webhooks[TENANT]

    assert await asyncio.gather(first, second) == [Delivered(1), Skipped(SkipReason.NO_WEBHOOK)]


@virtual_time
async def test_the_brake_stops_a_partition_from_dying() -> None:
    bench = Bench(200, brake=3)
    for offset in range(3):
        assert await bench.process(fresh(b"{", offset=offset)) == Dead(DeadReason.UNREADABLE)
    for offset in range(3, 6):
        with pytest.raises(BrakeEngaged):
            await bench.process(fresh(b"{", offset=offset))
    assert len(bench.written("dead")) == 3
    assert await bench.process(fresh(b"{", partition=9)) == Dead(DeadReason.UNREADABLE), "each partition has its own"

    assert await bench.process(fresh()) == Delivered(1), "good events go on"
    assert await bench.process(fresh(b"{")) == Dead(DeadReason.UNREADABLE), "and make room for one"
    bench.pipeline.brakes[ORIGIN.topic, ORIGIN.partition].release()
    for _ in range(3):
        await bench.process(fresh(b"{"))


@virtual_time
async def test_deaths_that_are_the_tenants_doing_do_not_engage_the_brake() -> None:
    bench = Bench(501, brake=2)
    for _ in range(50):
        assert await bench.process(fresh()) == Dead(DeadReason.REJECTED)


@virtual_time
async def test_a_dead_letter_topic_that_is_away_does_not_engage_the_brake() -> None:
    """The same few records come again and again while it is: they have not died."""
    bench = Bench(200, brake=3)
    bench.producer.refuses = {"*"}
    for _ in range(50):
        with pytest.raises(NotWritten):
            await bench.process(fresh(b"{"))
    bench.producer.refuses = set()

    assert await bench.process(fresh(b"{")) == Dead(DeadReason.UNREADABLE)


@virtual_time
async def test_a_parked_record_is_due_within_its_tier_whatever_its_header_or_the_clock_says() -> None:
    bench = Bench(200)

    def due_in(not_before: float, topic: str = "retry.30s", now: float = WALL) -> float:
        retry_state = RetryState(ORIGIN, WALL, parks=1, not_before=not_before)
        parked = record(EMAIL_EVENT, dict(retry_state.headers()), topic=f"{ORIGIN.topic}.{topic}")
        return bench.retry_topics.due_in_s(parked, now)

    assert due_in(WALL + 20) == 20
    assert due_in(WALL - 5) == -5
    assert due_in(WALL + 36 + 30) == 66, "the replica that parked it may have a clock that is a little ahead"
    assert due_in(WALL + 10**6) <= 0
    assert due_in(WALL + 10**6, "retry.15m") <= 0
    assert due_in(WALL + 1080, "retry.15m") == 1080
    for waited in range(0, 100, 10):
        assert due_in(WALL + 6 * 3600, now=WALL + waited) <= 0, "parked six hours ahead, before the clock was set back"
    assert due_in(math.inf) <= 0
    assert bench.retry_topics.due_in_s(record(EMAIL_EVENT, topic=f"{ORIGIN.topic}.retry.2m"), WALL) <= 0
