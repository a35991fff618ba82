"""A clock that is set is named, and ends no event."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dispatcher.contract.kafka_problems import KafkaReason
from dispatcher.kafka.clock_check import FASTEST, JUMP_REPORTED_S, ClockCheck
from dispatcher.kafka.problems import KafkaProblems

HOUR_S = 3600.0


class Clocks:
    """A wall clock that can be set, and a steady one."""

    def __init__(self, wrong_s: float = 0.0) -> None:
        self.steady = 100.0
        self.wrong_s = wrong_s
        self.problems = KafkaProblems(lambda: self.steady)
        self.check = ClockCheck(self.problems, lambda: self.wall, lambda: self.steady)

    @property
    def wall(self) -> float:
        return 1.8e9 + self.steady + self.wrong_s

    def passes(self, seconds: float) -> None:
        self.steady += seconds
        self.check.check()

    def details(self) -> list[str]:
        assert {problem.reason for problem in self.problems.current} <= {KafkaReason.CLOCK}
        return [problem.detail for problem in self.problems.current]


@pytest.mark.parametrize(("jump_s", "how"), [(-6 * HOUR_S, "went back by 6h"), (25 * HOUR_S, "went forward by 25h")])
def test_a_clock_that_is_set_is_named_until_it_is_right_again(jump_s: float, how: str) -> None:
    clocks = Clocks()
    clocks.passes(500)
    assert clocks.details() == []
    clocks.wrong_s = jump_s
    clocks.passes(5)
    (detail,) = clocks.details()
    assert how in detail
    clocks.passes(600)
    assert len(clocks.details()) == 1
    clocks.wrong_s = 0.0
    clocks.passes(5)
    assert clocks.details() == []


@pytest.mark.parametrize("jump_s", [-6 * HOUR_S, 6 * HOUR_S])
def test_a_clock_that_stays_as_it_was_set_is_taken_for_right_after_an_hour(jump_s: float) -> None:
    clocks = Clocks()
    clocks.wrong_s = jump_s
    clocks.passes(5)
    clocks.passes(JUMP_REPORTED_S - 10)
    assert len(clocks.details()) == 1
    clocks.passes(20)
    assert clocks.details() == []
    clocks.wrong_s = 0.0
    clocks.passes(5)
    assert len(clocks.details()) == 1


def test_a_clock_that_drifts_is_not_reported() -> None:
    clocks = Clocks()
    for _ in range(1000):
        clocks.wrong_s -= 1
        clocks.passes(60)
    assert clocks.details() == []


def test_a_jump_forward_takes_no_event_more_than_a_third_of_its_time() -> None:
    clocks = Clocks()
    began = clocks.check.age_now()
    clocks.wrong_s = 48 * HOUR_S
    clocks.passes(0)
    assert clocks.check.age_now() == began
    for _ in range(16 * 12 - 1):
        clocks.passes(300)
    assert clocks.check.age_now() - began < 24 * HOUR_S
    clocks.passes(300)
    assert clocks.check.age_now() - began == pytest.approx(24 * HOUR_S)


@given(st.lists(st.tuples(st.floats(0, 1e5), st.floats(-1e6, 1e6)), max_size=20))
def test_the_clock_of_ages_is_never_ahead_and_never_hurries(steps: list[tuple[float, float]]) -> None:
    clocks = Clocks()
    before = clocks.check.age_now()
    for seconds, jump_s in steps:
        clocks.steady += seconds
        clocks.wrong_s += jump_s
        now = clocks.check.age_now()
        assert now <= clocks.wall
        assert now <= before + FASTEST * seconds + 1e-3
        before = now
    clocks.wrong_s = max(0.0, clocks.wrong_s)
    clocks.steady += 1e9
    assert clocks.check.age_now() == clocks.wall, "it follows in the end"


@pytest.mark.parametrize(("wrong_s", "how"), [(3 * HOUR_S, "3h behind this machine's"), (-3 * HOUR_S, "3h ahead of")])
def test_a_clock_that_is_wrong_from_the_start_is_named_by_an_own_write(wrong_s: float, how: str) -> None:
    clocks = Clocks(wrong_s)
    brokers = clocks.wall - wrong_s
    clocks.check.note_own_append(int((clocks.wall - 100) * 1000))  # the acknowledgement came late
    assert clocks.details() == []
    clocks.check.note_own_append(int(brokers * 1000))
    (detail,) = clocks.details()
    assert f"the brokers' clock is {how}" in detail
    clocks.passes(60)
    assert clocks.details() == []


def test_a_record_from_the_future_of_the_brokers_clock_is_named_for_a_while() -> None:
    clocks = Clocks()
    clocks.check.note_append(int((clocks.wall + 59) * 1000))
    clocks.check.note_append(-1)
    assert clocks.details() == []
    clocks.check.note_append(int((clocks.wall + 7200) * 1000))
    (detail,) = clocks.details()
    assert "the brokers' clock is 2h ahead" in detail
    clocks.passes(60)
    assert clocks.details() == []
