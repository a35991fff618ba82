"""Queries of the attempt memory, and its bounds."""

import itertools
import tracemalloc
from collections import Counter
from dataclasses import replace

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dispatcher.console.model import AttemptModel, AttemptQuery
from dispatcher.console.sources.attempt_counts import SPANS, Failing, Ring, TenantCounts
from dispatcher.console.sources.attempts import AttemptMemory, read_attempts
from dispatcher.contract.records import Origin
from dispatcher.contract.tenant import TenantKey
from dispatcher.errors import NotFound

LUMA, OTHER = TenantKey("luma@AdobeOrg", "prod"), TenantKey("other@AdobeOrg", "prod")
NOW = 1_790_000_000.0


def attempt(verdict: str = "delivered", **changes: object) -> AttemptModel:
    status = {"delivered": 200, "dead": 400}.get(verdict, 503)
    fact = AttemptModel(
        at=NOW, tenant=LUMA, event_id="msg_1", message_status="sent", channel="email", attempt=1, status=status,
        reason=f"http_{status // 100}xx", detail="", verdict=verdict, elapsed_ms=20.0, reused=True,
        origin=Origin("events", 1, 2),
    )  # fmt: skip
    return replace(fact, **changes)  # type: ignore[arg-type]


def memory(*facts: AttemptModel, **bounds: int) -> AttemptMemory:
    made = AttemptMemory(clock=lambda: NOW, **bounds)
    for fact in facts:
        made.add(fact)
    return made


def test_attempts_are_counted_in_their_bucket_of_each_window() -> None:
    attempts = memory(
        attempt(), attempt("dead", at=NOW - 120), attempt("retry_soon", at=NOW - 7200), attempt(at=NOW - 3 * 86_400)
    )
    hour, day, week = (attempts.outcomes(LUMA, window) for window in ("1h", "24h", "7d"))
    assert (hour.delivered, hour.failed, hour.dead) == (1, 0, 1)
    assert (day.delivered, day.failed, day.dead) == (1, 1, 1)
    assert (week.delivered, week.failed, week.dead) == (2, 1, 1)
    assert hour.buckets[-1].delivered == 1
    assert hour.buckets[-3].dead == 1
    for outcomes in (hour, day, week):
        assert len(outcomes.buckets) == SPANS[outcomes.window][0]
        starts = [bucket.start for bucket in outcomes.buckets]
        assert all(after - before == outcomes.bucket_s for before, after in itertools.pairwise(starts))
        assert starts[-1] <= NOW < starts[-1] + outcomes.bucket_s


def test_the_counts_of_an_unknown_tenant_are_zero() -> None:
    attempts = memory(attempt())
    outcomes = attempts.outcomes(OTHER, "24h")
    assert (len(outcomes.buckets), outcomes.delivered, outcomes.p50_ms) == (96, 0, None)
    assert attempts.search(OTHER, AttemptQuery()).items == ()
    assert (attempts.last_delivery(OTHER), attempts.failing(OTHER, 0.0)) == (None, None)


@given(st.lists(st.tuples(st.floats(0, 5000), st.integers(0, 1)), max_size=60), st.integers(1, 12))
def test_a_ring_counts_as_a_list_would(added: list[tuple[float, int]], length: int) -> None:
    ring, kept, newest = Ring(length, 100.0, 2), [], 0
    for at, column in added:
        ring.add(at, column)
        span = int(at // 100)
        newest = max(newest, span)
        kept.append((span, column))
    expected = Counter(one for one in kept if one[0] > newest - length)
    now = newest * 100.0 + 50
    found = {(int(start // 100), column): row[column] for start, row in ring.rows(now) for column in (0, 1)}
    # What came too late to be counted in its turn is left out: never counted wrongly, at most not at all.
    assert all(found.get(key, 0) <= count for key, count in expected.items())
    in_order = [int(at // 100) for at, _ in added] == sorted(int(at // 100) for at, _ in added)
    if in_order:
        assert {key: count for key, count in found.items() if count} == dict(expected)


@given(st.lists(st.floats(1, 30_000), min_size=1, max_size=200))
def test_quantiles_are_right_within_fifteen_percent(latencies: list[float]) -> None:
    counts = TenantCounts()
    for latency in latencies:
        counts.add(attempt(elapsed_ms=latency))
    found_outcomes = counts.outcomes("1h", NOW)
    ordered = sorted(latencies)
    for share, found in ((0.5, found_outcomes.p50_ms), (0.95, found_outcomes.p95_ms)):
        exact = ordered[-(-len(ordered) * int(share * 100) // 100) - 1]
        assert found is not None
        assert exact / 1.15 <= found <= exact * 1.15 + 0.1


def test_only_answers_have_a_latency() -> None:
    attempts = memory(attempt("retry_soon", status=None, reason="timeout", elapsed_ms=10_000.0))
    assert attempts.outcomes(LUMA, "1h").p95_ms is None


def test_the_latest_come_first_page_by_page() -> None:
    attempts = memory(*(attempt(event_id=f"msg_{number}") for number in range(7)))
    pages, before = [], None
    while True:
        page = attempts.search(LUMA, AttemptQuery(before=before, limit=3))
        pages.append([fact.event_id for fact in page.items])
        before = page.next
        if before is None:
            break
        attempts.add(attempt(event_id="meanwhile"))
    assert pages == [["msg_6", "msg_5", "msg_4"], ["msg_3", "msg_2", "msg_1"], ["msg_0"]]
    for wrong in ("", "x", "-1", "9" * 30, "٣"):
        with pytest.raises(NotFound, match="no such page"):
            attempts.search(LUMA, AttemptQuery(before=wrong))


def test_attempts_are_found_by_event_and_by_outcome() -> None:
    attempts = memory(attempt("retry_later"), attempt("disable_endpoint"), attempt("dead", event_id="msg_2"), attempt())
    assert [fact.verdict for fact in attempts.search(LUMA, AttemptQuery(event_id="msg_1")).items] == [
        "delivered", "disable_endpoint", "retry_later",
    ]  # fmt: skip
    found = {
        name: len(attempts.search(LUMA, AttemptQuery(outcome=name)).items) for name in ("delivered", "failed", "dead")
    }  # type: ignore[arg-type]
    assert found == {"delivered": 1, "failed": 2, "dead": 1}


def test_the_recent_trouble_is_the_latest_failure_with_its_count() -> None:
    failed = attempt("retry_later", status=401, reason="http_4xx")
    attempts = memory(*[attempt(at=NOW - 9)] * 10, *[failed] * 38, attempt("retry_soon"), failed)
    assert attempts.failing(LUMA, 0.0) == Failing(failed, alike=39, failed=40, seen=40)
    assert attempts.last_delivery(LUMA) == NOW - 9
    attempts.add(attempt())
    assert attempts.failing(LUMA, 0.0) is None


def test_attempts_that_began_before_a_change_of_the_webhook_do_not_count() -> None:
    """They went to the former address, perhaps; one that took long did, although it ended after the change."""
    slow = attempt("retry_soon", at=NOW + 9, elapsed_ms=10_000)
    attempts = memory(attempt(at=NOW - 70), *[attempt("retry_soon", at=NOW - 60)] * 9, slow)
    assert attempts.failing(LUMA, NOW - 99) == Failing(slow, alike=10, failed=10, seen=11)
    assert attempts.failing(LUMA, NOW) is None
    later = attempt("retry_soon", at=NOW + 9)
    attempts.add(later)
    assert attempts.failing(LUMA, NOW) == Failing(later, alike=1, failed=1, seen=1)
    attempts.add(slow)
    assert attempts.failing(LUMA, NOW) is None, "the latest says nothing, and is not an example"


def test_failures_are_alike_if_reason_and_status_are() -> None:
    unavailable, broken = (attempt("retry_soon", status=one, reason="http_5xx") for one in (503, 500))
    attempts = memory(attempt(at=NOW - 9), *[unavailable] * 3, *[broken] * 8)
    assert attempts.failing(LUMA, 0.0) == Failing(broken, alike=8, failed=11, seen=12)


def test_twenty_thousand_attempts_cost_no_more_than_is_allowed() -> None:
    """Of a hundred tenants and then a hundred others, one of which makes half of all attempts."""
    attempts = memory(most_kept=5000, most_of_tenant=400, most_tenants=101)
    tenants = [TenantKey(f"org{number}", "prod") for number in range(200)]
    tracemalloc.start()
    try:
        for number in range(20_000):
            other = number // 2 % 100 + (100 if number >= 10_000 else 0)
            tenant = tenants[0] if number % 2 else tenants[other]
            attempts.add(attempt(event_id=f"msg_{number:032}", tenant=tenant, at=NOW - number / 1000))
        size, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(attempts) <= 5000
    assert attempts.tenants == 101
    assert size < 8_000_000
    assert attempts.outcomes(tenants[0], "1h").delivered == 10_050
    assert len(attempts.search(tenants[0], AttemptQuery(limit=100)).items) == 100
    assert attempts.outcomes(tenants[50], "1h").delivered == 0  # silent for longest: forgotten
    assert attempts.search(tenants[199], AttemptQuery()).items


ENTRY = {
    "at": int(NOW * 1000), "org": "luma@AdobeOrg", "sandbox": "prod", "webhookId": "msg_1", "messageStatus": "sent",
    "channel": "email", "attempt": 1, "status": 200, "reason": "http_2xx", "verdict": "delivered",
    "durationMs": 20.0, "reused": True, "topic": "events", "partition": 1, "offset": 2, "outcome": "delivered",
}  # fmt: skip


def record(*entries: object, **changes: object) -> bytes:
    """The value of a record of the history topic."""
    return orjson.dumps({"version": 1, "writer": 1, "first": 1, "entries": entries} | changes)


def test_attempts_are_read_from_records_of_history() -> None:
    skipped = ENTRY | {"outcome": "skipped", "reason": "channel"}
    assert read_attempts(record(ENTRY, skipped, ENTRY | {"unknown": [1]}), NOW) == ([attempt(), attempt()], True)
    assert read_attempts(record({key: ENTRY[key] for key in ENTRY if key != "topic"}), NOW) == (
        [attempt(origin=None)],
        True,
    )
    assert read_attempts(record(ENTRY | {"at": 10**15}), NOW) == ([attempt()], True)  # no attempt is in the future
    assert read_attempts(record(ENTRY | {"answer": "x" * 5000}), NOW) == ([attempt(answer="x" * 2048)], True)
    of_a_later_version = ENTRY | {"outcome": "expired"}
    assert read_attempts(record(ENTRY, of_a_later_version, ENTRY), NOW) == ([attempt(), attempt()], False)


@pytest.mark.parametrize(
    "value",
    [None, b"", b"{", b"[]", b"null", b"7", b"{}", record(version=2), record({}), record(first="x"), b"\xff"]
    + [record(ENTRY | {key: wrong}) for key in ENTRY for wrong in ([1], {"a": 1}) if key != "unknown"],
)
def test_unreadable_records_are_counted_and_skipped(value: bytes | None) -> None:
    assert read_attempts(value, NOW) == ([], False)
