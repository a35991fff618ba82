"""Slow evidence: a tenant becomes unstable within half an hour, disabled after a day, active when it recovers."""

import pytest

from dispatcher.delivery.endpoint_health import EndpointHealth, TenantState

ACTIVE, UNSTABLE, DISABLED = TenantState.ACTIVE, TenantState.UNSTABLE, TenantState.DISABLED
HOUR = 3600.0
BEGIN = 1000.0


def fail_until(evidence: EndpointHealth, begin: float, end: float, every: float = 60.0) -> float:
    now = begin
    while now < end:
        evidence.record(now, failed=True)
        now += every
    return now


@pytest.mark.parametrize(("good", "bad", "expected"), [(0, 9, ACTIVE), (0, 10, UNSTABLE), (2, 8, ACTIVE),
                                                       (2, 9, UNSTABLE), (10, 40, ACTIVE), (10, 41, UNSTABLE)])  # fmt: skip
def test_unstable_is_over_eighty_percent_of_at_least_ten(good: int, bad: int, expected: TenantState) -> None:
    evidence = EndpointHealth()
    evidence.record(BEGIN, failed=True)
    for number in range(good):
        evidence.record(BEGIN + number, failed=False)
    for number in range(bad - 1):
        evidence.record(BEGIN + 60 + number, failed=True)

    assert evidence.state is expected


def test_failures_of_over_half_an_hour_ago_do_not_make_it_unstable() -> None:
    evidence = EndpointHealth()
    for number in range(9):
        evidence.record(BEGIN + number, failed=True)
    evidence.record(BEGIN + 33 * 60, failed=True)

    assert evidence.state is ACTIVE


def test_disabled_takes_a_whole_day_of_failing() -> None:
    evidence = EndpointHealth()
    fail_until(evidence, BEGIN, BEGIN + 24 * HOUR)
    assert evidence.state is UNSTABLE

    assert evidence.record(BEGIN + 24 * HOUR, failed=True) is DISABLED


def test_rare_successes_do_not_keep_it_from_being_disabled() -> None:
    evidence = EndpointHealth()
    for number in range(25 * 60):
        evidence.record(BEGIN + number * 60, failed=number % 10 != 0)

    assert evidence.state is DISABLED


def test_one_good_hour_within_the_day_does() -> None:
    """The short window has no failure left then: the day starts again."""
    evidence = EndpointHealth()
    now = fail_until(evidence, BEGIN, BEGIN + 12 * HOUR)
    for _ in range(600):
        evidence.record(now, failed=False)
        now += 6
    while now < BEGIN + 30 * HOUR:
        for second in range(10):
            evidence.record(now + second, failed=True)
        now += 600

    assert evidence.state is UNSTABLE


def test_ten_failures_long_after_a_single_one_do_not_disable() -> None:
    """In between nothing was sent: that isn't evidence."""
    evidence = EndpointHealth()
    evidence.record(BEGIN, failed=True)
    for number in range(12):
        evidence.record(BEGIN + 72 * HOUR + number, failed=True)

    assert evidence.state is UNSTABLE


def test_it_recovers_when_the_short_window_does() -> None:
    evidence = EndpointHealth()
    now = fail_until(evidence, BEGIN, BEGIN + 20 * 60)
    assert evidence.state is UNSTABLE
    for _ in range(20):
        evidence.record(now, failed=False)

    assert evidence.state is ACTIVE


def test_a_tenant_that_never_fails_costs_nothing_and_is_quiet() -> None:
    evidence = EndpointHealth()
    for number in range(1000):
        assert evidence.record(BEGIN + number, failed=False) is ACTIVE

    assert evidence.is_quiet(BEGIN + 1000)
    assert evidence == EndpointHealth()


def test_evidence_is_quiet_once_the_short_window_is_empty() -> None:
    evidence = EndpointHealth()
    fail_until(evidence, BEGIN, BEGIN + 15 * 60)
    assert evidence.state is UNSTABLE

    assert not evidence.is_quiet(BEGIN + 20 * 60)
    assert evidence.is_quiet(BEGIN + 50 * 60)


def test_a_disabled_tenant_is_never_forgotten() -> None:
    evidence = EndpointHealth()
    fail_until(evidence, BEGIN, BEGIN + 25 * HOUR)
    assert evidence.state is DISABLED

    assert not evidence.is_quiet(BEGIN + 1000 * HOUR)


def test_a_probe_in_a_quarter_of_an_hour_is_enough_to_disable() -> None:
    """A dead endpoint gets no more attempts than this once its breaker is open."""
    evidence = EndpointHealth()
    fail_until(evidence, BEGIN, BEGIN + 600, every=30)
    assert evidence.state is UNSTABLE
    now = fail_until(evidence, BEGIN + 900, BEGIN + 23 * HOUR, every=900)
    assert evidence.state is UNSTABLE
    fail_until(evidence, now, BEGIN + 25 * HOUR, every=900)

    assert evidence.state is DISABLED


def test_disabled_is_for_good() -> None:
    evidence = EndpointHealth()
    fail_until(evidence, BEGIN, BEGIN + 25 * HOUR)
    for number in range(1000):
        evidence.record(BEGIN + 25 * HOUR + number, failed=False)

    assert evidence.state is DISABLED


ALIGNED = 100 * HOUR
"""A time at which a minute and an hour begin."""


@pytest.mark.parametrize(("minutes", "expected"), [(29, UNSTABLE), (30, UNSTABLE), (31, ACTIVE)])
def test_the_short_window_is_half_an_hour_to_the_minute(minutes: int, expected: TenantState) -> None:
    evidence = EndpointHealth()
    for _ in range(9):
        evidence.record(ALIGNED, failed=True)

    assert evidence.record(ALIGNED + minutes * 60, failed=True) is expected


@pytest.mark.parametrize(("hours", "expected"), [(23, UNSTABLE), (24, DISABLED), (25, UNSTABLE)])
def test_the_long_window_is_a_day_to_the_hour(hours: int, expected: TenantState) -> None:
    """A day of failing needs a failure at both of its ends; what is older than a day is forgotten."""
    evidence = EndpointHealth()
    evidence.record(ALIGNED, failed=True)
    for _ in range(12):
        evidence.record(ALIGNED + hours * HOUR, failed=True)

    assert evidence.state is expected


@pytest.mark.parametrize(("good", "expected"), [(2, DISABLED), (3, UNSTABLE)])
def test_a_day_of_failing_is_over_eighty_percent_of_its_attempts(good: int, expected: TenantState) -> None:
    evidence = EndpointHealth()
    evidence.record(ALIGNED, failed=True)
    for _ in range(good):
        evidence.record(ALIGNED, failed=False)
    for _ in range(10):
        evidence.record(ALIGNED + 24 * HOUR, failed=True)  # 11 failures in 13 attempts, or in 14

    assert evidence.state is expected


def test_a_day_of_few_attempts_proves_nothing() -> None:
    evidence = EndpointHealth()
    for hour in range(0, 25, 3):
        evidence.record(ALIGNED + hour * HOUR, failed=True)  # 9 in all

    assert evidence.state is ACTIVE
    assert evidence.record(ALIGNED + 24 * HOUR, failed=True) is DISABLED


def test_a_failure_among_enough_successes_ends_the_instability() -> None:
    evidence = EndpointHealth()
    for _ in range(10):
        evidence.record(ALIGNED, failed=True)
    assert evidence.state is UNSTABLE
    evidence.record(ALIGNED + 40 * 60, failed=True)
    assert evidence.state is UNSTABLE, "one failed probe doesn't prove a recovery"
    for number in range(9):
        evidence.record(ALIGNED + 41 * 60 + number, failed=False)

    assert evidence.state is ACTIVE


def test_good_health_for_half_an_hour_forgets_the_failures_before_it() -> None:
    evidence = EndpointHealth()
    evidence.record(ALIGNED, failed=True)
    evidence.record(ALIGNED + 60, failed=False)
    assert evidence.failing_since == ALIGNED, "a success right after a failure doesn't prove a recovery"
    evidence.record(ALIGNED + 31 * 60, failed=False)

    assert evidence == EndpointHealth()
