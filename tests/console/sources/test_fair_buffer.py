"""A bounded memory that is shared fairly."""

from collections import Counter, defaultdict

from hypothesis import given
from hypothesis import strategies as st

from dispatcher.console.sources.fair_buffer import FairBuffer


def test_one_owners_flood_does_not_evict_the_items_of_others() -> None:
    buffer: FairBuffer[str, int] = FairBuffer(1000, 1000)
    for number in range(20):
        buffer.add("quiet", number)
    for number in range(100_000):
        buffer.add("loud", number)
        assert number < 980 or len(buffer) >= 880, "what the quiet one doesn't need is the loud one's"
    assert list(buffer.of("quiet")) == list(range(20))
    assert buffer.of("loud")[-1] == 99_999
    assert 800 < len(buffer) <= 1000
    assert buffer.lost


@given(
    st.lists(st.integers(0, 5), max_size=300),
    st.integers(1, 40),
    st.integers(1, 20),
)
def test_each_owners_newest_items_are_kept_within_the_limit(owners: list[int], most: int, most_each: int) -> None:
    buffer: FairBuffer[int, int] = FairBuffer(most, most_each)
    added: defaultdict[int, list[int]] = defaultdict(list)
    gone: Counter[int] = Counter()
    for number, owner in enumerate(owners):
        added[owner].append(number)
        gone.update(buffer.add(owner, number))
        assert len(buffer) <= most
        assert len(buffer) == len(list(buffer))
    for owner, numbers in added.items():
        kept = list(buffer.of(owner))
        assert len(kept) <= most_each
        assert kept == numbers[len(numbers) - len(kept) :]
        assert sorted(number for number in numbers if gone[number]) == numbers[: len(numbers) - len(kept)]
    assert set(gone.values()) <= {1}
    assert buffer.lost == bool(gone)


def test_removing_an_owner_makes_room() -> None:
    buffer: FairBuffer[str, int] = FairBuffer(10, 10)
    for number in range(5):
        buffer.add("a", number)
        buffer.add("b", number)
    buffer.drop("a")
    buffer.drop("nobody")
    assert (len(buffer), list(buffer.of("a"))) == (5, [])
    buffer.clear()
    assert (len(buffer), buffer.lost) == (0, False)
