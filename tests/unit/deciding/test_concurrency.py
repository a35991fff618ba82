"""How many requests at once an endpoint gets."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dispatcher.delivery.concurrency import AdaptiveLimit


def limit(start: float = 16, most: int = 64) -> AdaptiveLimit:
    return AdaptiveLimit(limit=start, most=most)


def test_at_first_it_doubles_each_round_trip() -> None:
    adaptive = limit(4)
    for _ in range(4):
        adaptive.succeeded(0.1, was_full=True)

    assert adaptive.now == 8


def test_after_an_overload_it_grows_by_one_each_round_trip() -> None:
    adaptive = limit(16)
    adaptive.overloaded(began_at=0, now=1)
    assert adaptive.now == 8
    for _ in range(9):
        adaptive.succeeded(0.1, was_full=True)

    assert adaptive.now == 9


def test_it_never_passes_its_most() -> None:
    adaptive = limit(60)
    for _ in range(100):
        adaptive.succeeded(0.1, was_full=True)

    assert adaptive.now == 64


def test_a_limit_that_is_not_in_use_does_not_grow() -> None:
    adaptive = limit()
    for _ in range(100):
        adaptive.succeeded(0.1, was_full=False)

    assert adaptive.now == 16


def test_the_limit_does_not_grow_while_latency_rises() -> None:
    adaptive = limit()
    adaptive.succeeded(0.1, was_full=True)
    before = adaptive.limit
    for _ in range(20):
        adaptive.succeeded(0.5, was_full=True)

    assert adaptive.limit == before


def test_milliseconds_are_noise_not_load() -> None:
    adaptive = limit()
    adaptive.succeeded(0.002, was_full=True)
    adaptive.succeeded(0.04, was_full=True)

    assert adaptive.now == 18


def test_one_overload_halves_once_for_all_that_were_under_way_together() -> None:
    adaptive = limit(64)
    for began in (10.0, 10.5, 11.0):
        adaptive.overloaded(began_at=began, now=12.0)
    assert adaptive.now == 32

    adaptive.overloaded(began_at=12.1, now=13.0)
    assert adaptive.now == 16


def test_it_is_never_below_one() -> None:
    adaptive = limit(2)
    for number in range(10):
        adaptive.overloaded(began_at=number, now=number)

    assert adaptive.now == 1


def test_after_an_outage_it_begins_again_from_one_and_grows_fast() -> None:
    adaptive = limit(64)
    adaptive.overloaded(began_at=0, now=1)
    adaptive.ramp()
    assert adaptive.now == 1
    for _ in range(7):
        adaptive.succeeded(0.1, was_full=True)

    assert adaptive.now == 8


def test_the_usual_latency_believes_faster_at_once_and_slower_late() -> None:
    adaptive = limit()
    adaptive.succeeded(1.0, was_full=False)
    adaptive.succeeded(2.0, was_full=False)
    assert 1.0 < adaptive.usual_s < 1.05
    adaptive.succeeded(0.1, was_full=False)
    assert adaptive.usual_s < 0.9


@given(st.lists(st.tuples(st.sampled_from("sofr"), st.floats(0, 30), st.booleans()), max_size=80), st.integers(1, 64))
def test_whatever_happens_it_is_between_one_and_its_most(steps: list[tuple[str, float, bool]], start: int) -> None:
    adaptive, now = limit(start), 0.0
    for what, elapsed, full in steps:
        now += elapsed
        if what == "r":
            adaptive.ramp()
        elif what == "o":
            adaptive.overloaded(began_at=now - elapsed, now=now)
        else:
            adaptive.succeeded(elapsed, was_full=full)
        assert 1 <= adaptive.now <= 64


@pytest.mark.parametrize(
    ("usual", "elapsed", "grows"),
    [(1.0, 2.0, True), (1.0, 2.001, False), (0.01, 0.06, True), (0.01, 0.0601, False), (0.04, 0.0899, True)],
)
def test_latency_holds_up_to_twice_its_usual_value_or_50_ms_above(usual: float, elapsed: float, grows: bool) -> None:
    adaptive = limit(16)
    adaptive.succeeded(usual, was_full=False)
    adaptive.succeeded(elapsed, was_full=True)

    assert adaptive.now == (17 if grows else 16)


def test_once_latency_does_not_hold_it_grows_slowly() -> None:
    adaptive = limit(16)
    adaptive.succeeded(1.0, was_full=False)
    adaptive.succeeded(5.0, was_full=True)
    for _ in range(15):
        adaptive.succeeded(1.0, was_full=True)
    assert adaptive.now == 16, "one more in a round trip, no longer one more with each answer"


def test_an_overload_of_a_request_that_began_with_the_last_halving_halves_again() -> None:
    adaptive = limit(64)
    adaptive.overloaded(began_at=1.0, now=2.0)
    adaptive.overloaded(began_at=1.999, now=3.0)
    assert adaptive.now == 32
    adaptive.overloaded(began_at=2.0, now=3.0)
    assert adaptive.now == 16
