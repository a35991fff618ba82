"""Formatting of times, reasons and charts."""

import pytest

from dispatcher.config.units import parse_rate
from dispatcher.console import formatting
from dispatcher.console.model import AttemptModel, BucketModel, Outcomes
from dispatcher.console.pages.charts import HEIGHT, chart_of, sparkline_of
from dispatcher.contract import reason_texts
from dispatcher.contract.history import HistoryEntry, HistoryOutcome
from dispatcher.contract.outcomes import CONFIGURATION_REASONS, DeadReason, FailureReason, ParkReason, SkipReason
from dispatcher.contract.tenant import TenantKey
from dispatcher.stores.sql.records import AuditAction


def _fact(reason: str, status: int | None) -> AttemptModel:
    return AttemptModel(0.0, TenantKey("o", "s"), "m", "sent", "sms", 1, status, reason, "", "dead", 1.0, False)


@pytest.mark.parametrize(
    ("failed", "seen", "expected"),
    [
        (38, 40, "Your server answered 401 to 38 of the last 40 requests."),
        (12, 12, "Your server answered 401 to all of the last 12 requests."),
        (1, 1, "Your server answered 401 to the last request."),
    ],
)
def test_failing_requests_are_described_in_a_sentence(failed: int, seen: int, expected: str) -> None:
    assert formatting.failing_sentence(_fact("http_4xx", 401), failed, seen) == expected


@pytest.mark.parametrize("reason", list(FailureReason))
def test_every_failure_has_its_sentence_and_word(reason: FailureReason) -> None:
    shown_text = formatting.failing_sentence(_fact(reason, None), 2, 3)
    assert "2 of the last 3 requests" in shown_text
    assert not shown_text.startswith("Something")
    assert formatting.answer(_fact(reason, None)) != reason


def test_the_end_of_a_held_events_life_is_not_called_its_due_time() -> None:
    held = HistoryEntry(0, HistoryOutcome.HELD, reason="paused", due_at=1_790_000_000_000)
    assert formatting.describe_entry(held)[0] == "Held: the webhook is paused; expires on 21 Sep 2026, 14:13:20 UTC"


def test_every_reason_and_action_has_a_word() -> None:
    assert set(formatting.ACTIONS) == set(AuditAction)
    assert set(reason_texts.SKIPPED) == set(SkipReason)
    assert set(reason_texts.WAITING) == set(ParkReason)
    assert set(reason_texts.DEAD) == set(DeadReason)
    assert set(reason_texts.FAILED) == set(FailureReason)
    assert set(reason_texts.HELD_REMEDIES) == set(CONFIGURATION_REASONS)


@pytest.mark.parametrize("reason", ParkReason)
def test_what_held_an_event_until_it_died_is_known_by_the_words_of_its_death(reason: ParkReason) -> None:
    """Also of up to version 0.2.0, and with more words behind."""
    for detail in (reason_texts.WAITING[reason], reason.value, f"{reason_texts.WAITING[reason]}: no key decrypts it"):
        assert reason_texts.remedy_of_death("expired", detail) == reason_texts.HELD_REMEDIES.get(reason, "")
    assert reason_texts.remedy_of_death("rejected", reason_texts.WAITING[reason]) == ""
    assert reason_texts.remedy_of_death("of a later version", "") == ""


@pytest.mark.parametrize("reason", sorted(DeadReason))
def test_a_death_has_a_remedy_unless_its_last_attempt_has(reason: DeadReason) -> None:
    by_attempt = {"rejected", "redirected", "egress_denied", "expired"}
    assert bool(reason_texts.remedy_of_death(reason, "answered 404")) == (reason not in by_attempt)


@pytest.mark.parametrize(
    ("reason", "detail", "expected"),
    [
        ("expired", "breaker_open", "last: the circuit breaker is open because nearly every request fails"),
        ("expired", "answered 503", "last: answered 503"),
        ("rejected", "answered 422", "answered 422"),
        ("unreadable", "held", "held"),
        ("expired", "", ""),
    ],
)
def test_the_detail_of_a_dead_event_is_worded_by_its_reason(reason: str, detail: str, expected: str) -> None:
    assert formatting.death(reason, detail) == expected


@pytest.mark.parametrize(
    ("age", "expected"),
    [(0, "just now"), (59, "59 s ago"), (60, "1 min ago"), (7300, "2 h ago"), (200_000, "2 d ago"), (-90, "in 1 min")],
)
def test_ages(age: float, expected: str) -> None:
    assert formatting.ago(1e9 - age, now=1e9) == expected


@pytest.mark.parametrize(("share", "expected"), [(1.0, "100 %"), (0.99999, "99.9 %"), (0.00001, "0.1 %"), (0.0, "0 %")])
def test_a_share_is_not_rounded_to_all_or_nothing(share: float, expected: str) -> None:
    assert formatting.percent(share) == expected


@pytest.mark.parametrize("rate", [100.0, 0.5, 1000 / 3600, 12.25])
def test_a_rate_is_read_back(rate: float) -> None:
    assert parse_rate(formatting.rate(rate)) == pytest.approx(rate)


def test_one_dead_event_among_thousands_is_seen() -> None:
    chart = chart_of(Outcomes("1h", 60.0, (BucketModel(0.0, 9000, 0, 1), BucketModel(60.0))))
    kinds = {piece.kind: piece.height for piece in chart.bars[0].pieces}
    assert kinds["dead"] >= 1
    assert kinds["delivered"] == pytest.approx(HEIGHT * 9000 / chart.top, abs=0.01)
    assert chart.bars[1].pieces == ()
    assert chart.top == 10_000


def test_bars_stay_within_the_chart() -> None:
    for number in (1, 3, 4, 5, 9, 10, 11, 99, 100, 101, 999_999):
        chart = chart_of(Outcomes("1h", 60.0, (BucketModel(0.0, number - number // 3, 0, number // 3),)))
        assert all(0 <= piece.y <= HEIGHT for piece in chart.bars[0].pieces)
        assert number <= chart.top <= max(4, 2 * number)
        assert chart.top % 2 == 0


def test_a_sparkline_loses_nothing() -> None:
    buckets = tuple(BucketModel(60.0 * at, at, at % 3, at % 2) for at in range(97))
    chart = sparkline_of(Outcomes("24h", 900.0, buckets))
    assert len(chart.bars) <= 25
    assert chart.top == max(
        sum(one.delivered + one.failed + one.dead for one in buckets[at : at + 5]) for at in range(0, 97, 5)
    )


def test_an_empty_window_has_an_empty_chart() -> None:
    assert chart_of(Outcomes("1h", 60.0, ())).bars == ()
    assert sparkline_of(Outcomes("24h", 60.0, ())).bars == ()


@pytest.mark.parametrize(("place", "word"), [(0, "at"), (5, "since")])
def test_a_chart_with_a_single_bar_is_described_in_words(place: int, word: str) -> None:
    buckets = tuple(BucketModel(3600.0 * number, int(number == place), 0, 0) for number in range(6))
    assert sparkline_of(Outcomes("24h", 3600.0, buckets)).alone == f"{word} {formatting.clock(3600.0 * place)}"
    assert sparkline_of(Outcomes("24h", 3600.0, (*buckets, BucketModel(6 * 3600.0, 1, 0, 0)))).alone == ""


def test_a_chart_says_what_its_axis_counts() -> None:
    assert chart_of(Outcomes("24h", 900.0, (BucketModel(0.0, 1, 0, 0),))).unit == "Requests in 15m"
