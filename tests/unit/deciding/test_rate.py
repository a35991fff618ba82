"""The token bucket of a tenant's rate limit."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dispatcher.delivery.rate import TokenBucket


def test_a_fresh_bucket_lets_one_pass_at_once() -> None:
    bucket = TokenBucket(0.5)

    assert bucket.wait_s(1000) == 0
    bucket.take(1000)
    assert bucket.wait_s(1000) == pytest.approx(2)
    assert bucket.wait_s(1001.5) == pytest.approx(0.5)
    assert bucket.wait_s(1002) == 0


def test_a_fifth_of_a_seconds_worth_may_pass_at_once() -> None:
    bucket = TokenBucket(100)
    passed = 0
    while bucket.wait_s(1000) == 0:
        bucket.take(1000)
        passed += 1

    assert passed == 20


def test_a_clock_that_steps_back_gives_nothing_twice() -> None:
    bucket = TokenBucket(1)
    bucket.take(1000)

    assert bucket.wait_s(900) == pytest.approx(1)
    assert bucket.wait_s(1000.5) == pytest.approx(0.5)


@given(st.floats(0.1, 500), st.lists(st.floats(0, 3), min_size=1, max_size=200))
def test_over_any_time_no_more_pass_than_the_rate_and_one_burst(per_second: float, gaps: list[float]) -> None:
    bucket, now, passed = TokenBucket(per_second), 1000.0, 0
    for gap in gaps:
        now += gap
        while bucket.wait_s(now) <= 0:
            bucket.take(now)
            passed += 1

    assert passed <= (now - 1000) * per_second + max(1, per_second / 5) + 1e-6
