"""When a log has to be compared, because nothing was fetched of it for a while."""

import pytest
from aiokafka import TopicPartition

from dispatcher.kafka.fetch_gaps import GAP_S, FetchGaps

TP, OTHER = TopicPartition("t", 0), TopicPartition("t", 1)
NOT_LEADER, OUT_OF_RANGE = 6, 1


class Answers:
    """Answers to fetches, on a clock of their own."""

    def __init__(self) -> None:
        self.now = 100.0
        self.gaps = FetchGaps(lambda: self.now)

    def after(self, *waits_s: float, error: int = 0, tp: TopicPartition = TP) -> int:
        """Notes answers after these waits. Returns the gaps of the partition so far."""
        for wait_s in waits_s:
            self.now += wait_s
            self.gaps.note(tp, error)
        return self.gaps.count(tp)


def test_answers_that_follow_each_other_leave_no_gap() -> None:
    answers = Answers()

    assert answers.after(1000.0) == 0, "the first of all"
    assert answers.after(*[0.02] * 50, GAP_S, 0.5) == 0


@pytest.mark.parametrize("wait_s", [GAP_S + 0.1, 4.0, 3600.0])
def test_a_long_wait_is_one_gap_of_its_own_partition(wait_s: float) -> None:
    answers = Answers()
    answers.after(0.02, tp=OTHER)

    assert answers.after(0.02, wait_s) == 1
    assert answers.after(0.02, 0.02) == 1
    assert answers.after(wait_s) == 2, "and again, after answers that came soon"
    assert answers.gaps.count(OTHER) == 0


def test_an_error_is_a_gap_however_short_once_it_is_over() -> None:
    answers = Answers()

    assert answers.after(0.02) == 0
    assert answers.after(*[0.02] * 50, error=NOT_LEADER) == 0, "nothing can be compared yet"
    assert answers.after(0.02) == 1
    assert answers.after(0.02, 0.02) == 1


def test_a_position_out_of_range_leaves_no_gap() -> None:
    answers = Answers()
    answers.after(0.02)
    answers.after(0.02, error=OUT_OF_RANGE)

    assert answers.after(0.02) == 0


def test_a_link_on_which_every_fetch_takes_long_has_one_gap() -> None:
    answers = Answers()

    assert answers.after(0.02, 3.0) == 1
    assert answers.after(*[3.0, 4.0, 5.0] * 10) == 1
    assert answers.after(20.0) == 2, "a wait that is long even there"


def test_waits_that_grow_slowly_are_a_gap_nevertheless() -> None:
    assert Answers().after(0.5, 0.9, 1.7, 3.3) == 1
