"""The circuit breaker: what opens it, for how long, and what closes it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dispatcher.delivery.breaker import Breaker, BreakerPolicy, BreakerState

CLOSED, OPEN, HALF_OPEN = BreakerState.CLOSED, BreakerState.OPEN, BreakerState.HALF_OPEN


def attempt(breaker: Breaker, now: float, *, failed: bool, connect: bool = False) -> BreakerState | None:
    """One admitted attempt."""
    assert breaker.admits(now)
    probe = breaker.began()
    return breaker.record(now, failed=failed, connect_failure=connect, probe=probe)


def opened(now: float = 1000.0) -> Breaker:
    breaker = Breaker()
    for _ in range(5):
        attempt(breaker, now, failed=True, connect=True)
    assert breaker.state is OPEN
    return breaker


@pytest.mark.parametrize(("good", "bad", "expected"), [(0, 9, CLOSED), (0, 10, OPEN), (3, 7, OPEN), (4, 9, CLOSED),
                                                       (30, 69, CLOSED), (30, 70, OPEN)])  # fmt: skip
def test_it_opens_at_ten_attempts_of_which_seventy_percent_fail(good: int, bad: int, expected: BreakerState) -> None:
    breaker = Breaker()
    for _ in range(good):
        attempt(breaker, 1000, failed=False)
    for number in range(bad):
        assert breaker.state is CLOSED, f"open after {number} failures"
        attempt(breaker, 1000, failed=True)

    assert breaker.state is expected


def test_failures_of_over_a_minute_ago_do_not_count() -> None:
    breaker = Breaker()
    for _ in range(9):
        attempt(breaker, 1000, failed=True)

    assert attempt(breaker, 1075, failed=True) is None
    assert breaker.state is CLOSED


def test_failures_spread_over_a_minute_do() -> None:
    breaker = Breaker()
    for number in range(10):
        attempt(breaker, 1200 + number * 5, failed=True)

    assert breaker.state is OPEN


def test_five_connect_failures_in_a_row_open_it() -> None:
    """However many attempts went well before; one that reached the endpoint ends the row, also by failing."""
    breaker = Breaker()
    for _ in range(50):
        attempt(breaker, 1000, failed=False)
    for reached in (False, True):
        for _ in range(4):
            attempt(breaker, 1000, failed=True, connect=True)
        attempt(breaker, 1000, failed=reached)
    for _ in range(4):
        attempt(breaker, 1000, failed=True, connect=True)
    assert breaker.state is CLOSED

    assert attempt(breaker, 1000, failed=True, connect=True) is OPEN


def test_a_success_never_opens_it() -> None:
    breaker = Breaker(BreakerPolicy(min_attempts=1, failing_share=0.0))

    assert attempt(breaker, 1000, failed=False) is None


def test_open_it_admits_nothing_for_thirty_seconds() -> None:
    breaker = opened(1000)

    assert not breaker.admits(1000)
    assert not breaker.admits(1029.9)
    assert breaker.retry_in_s(1010) == 20
    assert breaker.admits(1030)
    assert breaker.state is HALF_OPEN
    assert breaker.retry_in_s(1030) == 0


def test_half_open_it_admits_one_at_a_time() -> None:
    breaker = opened(1000)
    assert breaker.admits(1030)
    probe = breaker.began()

    assert probe
    assert not breaker.admits(1031)
    assert breaker.record(1032, failed=False, probe=probe) is None
    assert breaker.admits(1032)
    assert not Breaker().began(), "closed, nothing is a probe"


def test_two_successes_close_it() -> None:
    breaker = opened(1000)

    assert attempt(breaker, 1030, failed=False) is None
    assert breaker.state is HALF_OPEN
    assert attempt(breaker, 1030, failed=False) is CLOSED
    assert breaker.admits(1030)


def test_each_failed_probe_doubles_the_time_to_fifteen_minutes() -> None:
    breaker, now, waits = opened(1000), 1000.0, []
    for _ in range(8):
        waits.append(breaker.retry_in_s(now))
        now += waits[-1]
        assert attempt(breaker, now, failed=True) is OPEN

    assert waits == [30, 60, 120, 240, 480, 900, 900, 900]


def test_a_success_between_two_failed_probes_does_not_shorten_the_time() -> None:
    breaker = opened(1000)
    attempt(breaker, 1030, failed=False)
    attempt(breaker, 1030, failed=True)

    assert breaker.retry_in_s(1030) == 60
    attempt(breaker, 1090, failed=False)
    assert breaker.state is HALF_OPEN, "the successes count from zero again"


def test_closed_again_it_starts_afresh() -> None:
    breaker = opened(1000)
    attempt(breaker, 1030, failed=True)
    attempt(breaker, 1090, failed=False)
    attempt(breaker, 1090, failed=False)
    for _ in range(4):
        attempt(breaker, 1090, failed=True, connect=True)
    assert breaker.state is CLOSED

    attempt(breaker, 1090, failed=True, connect=True)
    assert breaker.retry_in_s(1090) == 30


def test_a_probe_that_was_cancelled_lets_the_next_one_go() -> None:
    breaker = opened(1000)
    assert breaker.admits(1030)
    breaker.cancel(probe=breaker.began())

    assert breaker.state is HALF_OPEN
    assert breaker.admits(1030)


def test_an_attempt_from_before_the_opening_does_not_count_as_a_probe() -> None:
    """It may end while it is half open: neither does it free the probe's place nor is it counted as one."""
    breaker = Breaker()
    old = [breaker.began() for _ in range(3)]
    for _ in range(5):
        attempt(breaker, 1000, failed=True, connect=True)
    assert breaker.record(1001, failed=True, probe=old[0]) is None
    assert breaker.retry_in_s(1001) == 29

    assert breaker.admits(1030)
    probe = breaker.began()
    breaker.cancel(probe=old[1])
    assert not breaker.admits(1031), "the probe is still under way"
    assert breaker.record(1031, failed=True, probe=old[2]) is None
    assert breaker.state is HALF_OPEN
    assert breaker.record(1032, failed=False, probe=probe) is None
    assert attempt(breaker, 1032, failed=False) is CLOSED


def test_it_is_quiet_with_nothing_in_the_window_or_long_after_it_was_open() -> None:
    breaker = Breaker()
    assert breaker.is_quiet(0)
    assert breaker.is_quiet(1000)
    attempt(breaker, 1000, failed=True)
    assert not breaker.is_quiet(1001)
    assert not breaker.is_quiet(1049)
    assert breaker.is_quiet(1075)
    assert not opened(1000).is_quiet(1900)
    assert opened(1000).is_quiet(1930), "no event has come since: what it knew is old"


@given(st.lists(st.tuples(st.floats(0, 400), st.booleans(), st.booleans()), max_size=60))
def test_half_open_there_is_never_a_second_probe_and_open_never_an_attempt(
    steps: list[tuple[float, bool, bool]],
) -> None:
    """Attempts that begin when admitted and end in any order, after any time."""
    breaker, now, under_way = Breaker(), 1000.0, list[bool]()
    for elapsed, end, failed in steps:
        now += elapsed
        if end and under_way:
            breaker.record(now, failed=failed, connect_failure=failed, probe=under_way.pop(len(under_way) // 2))
        elif breaker.admits(now):
            assert breaker.state is not OPEN
            under_way.append(breaker.began())
        assert sum(under_way) <= 1


@pytest.mark.parametrize(("later", "expected"), [(9, OPEN), (49, OPEN), (59, OPEN), (60, CLOSED), (75, CLOSED)])
def test_failures_count_for_the_minute_of_their_bucket(later: float, expected: BreakerState) -> None:
    """Six buckets of ten seconds: nine failures in one of them, and a tenth later."""
    breaker = Breaker()
    for _ in range(9):
        attempt(breaker, 1000, failed=True)
    attempt(breaker, 1000 + later, failed=True)

    assert breaker.state is expected


def test_attempts_and_failures_of_all_buckets_are_summed() -> None:
    breaker = Breaker()
    for number in range(6):
        attempt(breaker, 1000 + number, failed=False)
    for number in range(13):
        attempt(breaker, 1010 + 3 * number, failed=True)
        assert breaker.state is CLOSED, f"{number + 1} of {number + 7} failed"

    assert attempt(breaker, 1049, failed=True) is OPEN, "14 of 20"


def test_old_buckets_are_forgotten_one_by_one() -> None:
    breaker = Breaker()
    for bucket in range(30):
        attempt(breaker, 1000 + 10 * bucket, failed=True)
        attempt(breaker, 1000 + 10 * bucket, failed=False)  # half of them fail, for minutes
    assert breaker.state is CLOSED
    failures = 0
    while breaker.state is CLOSED:
        attempt(breaker, 1300, failed=True)
        failures += 1

    assert failures == 7, "five buckets are left, with 5 failures in 10 attempts: 12 of 17 are 70 %"
