"""A bounded memory that is shared fairly."""

from collections import Counter, defaultdict

from hypothesis import given
from hypothesis import strategies as st

from dispatcher.console.sources.fair_buffer import Shelves


def test_a_flood_takes_nobody_elses_place() -> None:
    shelves: Shelves[str, int] = Shelves(1000, 1000)
    for number in range(20):
        shelves.add("quiet", number)
    for number in range(100_000):
        shelves.add("loud", number)
        assert number < 980 or len(shelves) >= 880, "what the quiet one doesn't need is the loud one's"
    assert list(shelves.of("quiet")) == list(range(20))
    assert shelves.of("loud")[-1] == 99_999
    assert 800 < len(shelves) <= 1000
    assert shelves.lost


@given(
    st.lists(st.integers(0, 5), max_size=300),
    st.integers(1, 40),
    st.integers(1, 20),
)
def test_what_is_kept_is_each_owners_newest_and_never_too_much(owners: list[int], most: int, most_each: int) -> None:
    shelves: Shelves[int, int] = Shelves(most, most_each)
    added: defaultdict[int, list[int]] = defaultdict(list)
    gone: Counter[int] = Counter()
    for number, owner in enumerate(owners):
        added[owner].append(number)
        gone.update(shelves.add(owner, number))
        assert len(shelves) <= most
        assert len(shelves) == len(list(shelves))
    for owner, numbers in added.items():
        kept = list(shelves.of(owner))
        assert len(kept) <= most_each
        assert kept == numbers[len(numbers) - len(kept) :]
        assert sorted(number for number in numbers if gone[number]) == numbers[: len(numbers) - len(kept)]
    assert set(gone.values()) <= {1}
    assert shelves.lost == bool(gone)


def test_an_owner_who_is_dropped_makes_room() -> None:
    shelves: Shelves[str, int] = Shelves(10, 10)
    for number in range(5):
        shelves.add("a", number)
        shelves.add("b", number)
    shelves.drop("a")
    shelves.drop("nobody")
    assert (len(shelves), list(shelves.of("a"))) == (5, [])
    shelves.clear()
    assert (len(shelves), shelves.lost) == (0, False)
