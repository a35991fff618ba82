"""When an event is tried again: quick tries, tiers, Retry-After, the age limit."""

import datetime
import email.utils
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dispatcher.config.settings import RetrySettings
from dispatcher.delivery.retry_policy import RetryPolicy, retry_after_s

POLICY = RetryPolicy.of(RetrySettings.model_validate({}))
NOW = 1_753_171_200.0  # Tue, 22 Jul 2025 08:00:00 GMT
DAY = 86_400.0
CHANCE = st.floats(0, 1)


def test_the_default_schedule_is_the_designs() -> None:
    assert POLICY == RetryPolicy((30, 120, 300, 900), 86_400, 3, 15)


@given(st.sampled_from(range(4)), CHANCE)
def test_no_record_waits_longer_than_its_tier_ever_lets_one_wait(tier: int, chance: float) -> None:
    assert POLICY.due_in_s(tier, chance) <= POLICY.longest_wait_s(POLICY.tiers[tier]) + 1e-9


def test_the_longest_wait_of_a_tier_is_its_delay_and_a_fifth() -> None:
    assert [POLICY.longest_wait_s(tier) for tier in POLICY.tiers] == pytest.approx([36, 144, 360, 1080])
    assert POLICY.due_in_s(0, 1.0) == pytest.approx(POLICY.longest_wait_s(30))
    assert POLICY.due_in_s(0, 0.0) == pytest.approx(24)


def test_the_standard_webhooks_schedule() -> None:
    policy = RetryPolicy.of(RetrySettings.model_validate({"profile": "standard-webhooks"}))

    assert policy.tiers == (5, 300, 1800, 7200, 18_000, 36_000, 50_400, 72_000, 86_400)
    assert policy.max_age_s == 80 * 3600


def test_parkings_go_up_the_tiers_and_the_last_repeats() -> None:
    assert [POLICY.tier(parks) for parks in range(7)] == [0, 1, 2, 3, 3, 3, 3]


@pytest.mark.parametrize(
    ("parks", "hold", "tier"),
    [(0, 0, 0), (0, 29, 0), (0, 119, 0), (0, 120, 1), (0, 299, 1), (0, 300, 2), (0, 899, 2), (0, 900, 3),
     (0, 10**9, 3), (2, 30, 2), (3, 900, 3), (1, 900, 3)],
)  # fmt: skip
def test_a_hold_picks_the_longest_tier_within_it_and_never_an_earlier_one(parks: int, hold: float, tier: int) -> None:
    assert POLICY.tier(parks, hold) == tier


@given(st.integers(0, 3), CHANCE)
def test_a_delay_varies_by_a_fifth_and_never_by_more(tier: int, chance: float) -> None:
    due = POLICY.due_in_s(tier, chance)

    assert 0.8 * POLICY.tiers[tier] - 1e-6 <= due <= POLICY.longest_wait_s(POLICY.tiers[tier]) + 1e-6


def test_chance_spreads_over_the_whole_of_the_jitter() -> None:
    assert [POLICY.due_in_s(0, chance) for chance in (0, 0.5, 1)] == pytest.approx([24, 30, 36])


@given(st.integers(0, 10), CHANCE)
def test_a_quick_try_waits_with_full_jitter(result: int, chance: float) -> None:
    wait = POLICY.soon_wait_s(result, at_once=False, jitter=chance)

    assert 0 <= wait <= min(7.5, 0.5 * 2**result)


def test_quick_tries_wait_twice_as_long_each_time() -> None:
    waits = [POLICY.soon_wait_s(result, at_once=False, jitter=1) for result in range(6)]

    assert waits == [0.5, 1, 2, 4, 7.5, 7.5]


def test_only_the_first_quick_try_is_made_at_once_and_only_after_a_reset() -> None:
    assert POLICY.soon_wait_s(0, at_once=True, jitter=1) == 0
    assert POLICY.soon_wait_s(1, at_once=True, jitter=1) == 1
    assert POLICY.soon_wait_s(0, at_once=False, jitter=1) == 0.5


def test_an_event_expires_only_past_the_age_limit() -> None:
    assert not POLICY.expired(NOW, NOW + DAY)
    assert POLICY.expired(NOW, NOW + DAY + 0.001)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (None, None),
        ("", None),
        ("0", 1),
        ("1", 1),
        ("  17 ", 17),
        ("86400", DAY),
        ("86401", DAY),
        ("9999999999", DAY),
        ("99999999999999999999999999", DAY),
        ("9" * 400, DAY),
        ("0" * 400 + "5", 5),
        ("-5", None),
        ("+5", None),
        ("1.5", 1.5),
        ("120.", 120),
        (".5", 1),
        ("0.25", 1),
        ("12.75 ", 12.75),
        ("1.2.3", None),
        (".", None),
        ("1,5", None),
        ("120, 240", None),
        ("7 s", None),
        ("1e3", None),
        ("1_000", None),
        ("٣", None),
        ("soon", None),
        ("Infinity", None),
        ("NaN", None),
        ("\x00", None),
        ("Tue, 22 Jul 2025 08:02:00 GMT", 120),
        ("Tuesday, 22-Jul-25 08:02:00 GMT", 120),
        ("Tue Jul 22 08:02:00 2025", 120),
        ("Tue, 22 Jul 2025 08:02:00 -0000", 120),
        ("Tue, 22 Jul 2025 10:02:00 +0200", 120),
        ("Tue, 22 Jul 2025 07:59:00 GMT", 1),
        ("Thu, 01 Jan 1970 00:00:00 GMT", 1),
        ("Fri, 31 Dec 9999 23:59:59 GMT", DAY),
        ("Fri, 31 Dec 99999 23:59:59 GMT", None),
        ("Tue, 32 Jul 2025 08:02:00 GMT", None),
        ("Tue, 22 Jul 2025 08:02:00 +9999999999999999", None),
        ("22", 22),
    ],
)
def test_retry_after(value: str | None, seconds: float | None) -> None:
    """Seconds or any of the three dates of RFC 9110, section 5.6.7, all of them GMT; else as if it were not there."""
    assert retry_after_s(value, NOW, DAY) == seconds


def test_a_date_without_a_zone_is_gmt_wherever_we_run(monkeypatch: pytest.MonkeyPatch) -> None:

    monkeypatch.setenv("TZ", "Asia/Tokyo")
    time.tzset()
    try:
        assert retry_after_s("Tue Jul 22 08:02:00 2025", NOW, DAY) == 120
    finally:
        monkeypatch.undo()
        time.tzset()


@given(st.text(max_size=40) | st.from_regex(r"[A-Z][a-z]{2}, \d{1,2} [A-Z][a-z]{2} \d{1,5} \d\d:\d\d:\d\d \S{0,9}"))
def test_whatever_retry_after_says_the_hold_is_within_bounds(value: str) -> None:
    seconds = retry_after_s(value, NOW, DAY)

    assert seconds is None or 1 <= seconds <= DAY


@given(st.datetimes(min_value=datetime.datetime(1971, 1, 1), max_value=datetime.datetime(2100, 1, 1)))
def test_every_http_date_is_read(when: datetime.datetime) -> None:
    when = when.replace(tzinfo=datetime.UTC, microsecond=0)
    value = email.utils.format_datetime(when, usegmt=True)

    assert retry_after_s(value, NOW, DAY) == max(1, min(DAY, when.timestamp() - NOW))


@pytest.mark.parametrize(
    ("status", "first_seen", "most_s"),
    [
        (503, None, DAY), (429, None, DAY), (404, None, 3600), (400, None, 3600), (408, None, 3600), (499, None, 3600),
        (500, None, DAY), (503, NOW - DAY + 100, 100), (404, NOW - DAY + 100, 100), (404, NOW - DAY + 7200, 3600),
        (429, NOW - DAY + 7200, 7200), (503, NOW - 2 * DAY, 1), (None, None, DAY),
    ],
)  # fmt: skip
def test_a_hold_ends_with_the_events_age_and_after_an_hour_of_a_4xx(
    status: int | None, first_seen: float | None, most_s: float
) -> None:
    assert POLICY.max_hold_s(status, first_seen, NOW) == most_s
