"""The dead-letter brake of one partition."""

from hypothesis import given
from hypothesis import strategies as st

from dispatcher.flow.dead_letter_brake import DeadLetterBrake


def test_it_engages_after_as_many_deaths_as_it_permits() -> None:
    brake = DeadLetterBrake(3)

    assert [brake.take_token() for _ in range(5)] == [True, True, True, False, False]
    assert brake.engaged


def test_a_record_that_ends_otherwise_makes_room_for_one_death() -> None:
    brake = DeadLetterBrake(1)
    assert brake.take_token()
    assert brake.engaged
    brake.put_back_token()

    assert not brake.engaged
    assert brake.take_token()
    assert not brake.take_token()


def test_good_records_never_save_up_more_than_a_full_bucket() -> None:
    brake = DeadLetterBrake(2)
    for _ in range(100):
        brake.put_back_token()

    assert [brake.take_token() for _ in range(3)] == [True, True, False]


def test_an_operator_can_release_the_brake() -> None:
    brake = DeadLetterBrake(2)
    brake.take_token(), brake.take_token()
    assert brake.engaged
    brake.release()

    assert [brake.take_token() for _ in range(3)] == [True, True, False]


def test_zero_means_no_brake() -> None:
    brake = DeadLetterBrake(0)

    assert all(brake.take_token() for _ in range(1000))
    assert not brake.engaged


@given(st.lists(st.booleans(), max_size=300), st.integers(2, 20))
def test_while_deaths_are_at_most_half_it_never_engages(pairs: list[bool], most: int) -> None:
    """Each death is followed or preceded by a record that ends well."""
    brake = DeadLetterBrake(most)
    for death_first in pairs:
        if death_first:
            assert brake.take_token()
        brake.put_back_token()
        if not death_first:
            assert brake.take_token()
