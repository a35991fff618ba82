"""The completed-offset tracker: what may be committed, and what the next owner skips."""

import base64
import random
import time
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dispatcher.kafka.offset_tracker import MAX_METADATA_BYTES, OffsetTracker, decode_runs, encode_runs


def tracker_of(first_result: range, finished: set[int]) -> OffsetTracker:
    tracker = OffsetTracker()
    for offset in first_result:
        tracker.start(offset)
    for offset in finished:
        tracker.finish(offset)
    return tracker


def named(tracker: OffsetTracker, metadata: str) -> set[int]:
    """Every offset that the metadata names as finished."""
    assert tracker.position is not None
    return {offset for first, last in decode_runs(tracker.position, metadata) for offset in range(first, last + 1)}


def test_before_any_record_there_is_nothing_to_commit() -> None:
    tracker = OffsetTracker()

    assert tracker.position is None
    assert tracker.metadata() == ""


def test_the_position_waits_for_the_first_unfinished() -> None:
    tracker = tracker_of(range(10, 15), {11, 12, 14})
    assert (tracker.position, tracker.unfinished, tracker.span) == (10, 2, 5)
    assert list(tracker.finished_beyond()) == [(11, 12), (14, 14)]

    tracker.finish(10)
    assert (tracker.position, tracker.unfinished, tracker.span) == (13, 1, 2)
    tracker.finish(13)
    assert (tracker.position, tracker.unfinished, tracker.span) == (15, 0, 0)
    assert tracker.metadata() == ""


def test_the_position_passes_over_gaps() -> None:
    """Compaction and transactions leave offsets that never appear."""
    tracker = OffsetTracker(5)
    for offset in (8, 20, 21, 40):
        tracker.start(offset)
    assert tracker.position == 8
    tracker.finish(21)
    tracker.finish(8)

    assert tracker.position == 20
    assert list(tracker.finished_beyond()) == [(21, 21)]


def test_a_gap_within_a_run_does_not_split_it() -> None:
    tracker = OffsetTracker()
    for offset in (1, 5, 9, 10):
        tracker.start(offset)
    tracker.finish(5)
    tracker.finish(9)

    assert list(tracker.finished_beyond()) == [(5, 9)]


def test_offsets_must_rise() -> None:
    tracker = tracker_of(range(3), set())

    with pytest.raises(ValueError, match="offsets of a partition rise"):
        tracker.start(2)


def test_a_restored_tracker_skips_what_its_commit_names_and_nothing_else() -> None:
    old = tracker_of(range(100, 200), {101, 102, 150, *range(160, 190)})
    assert old.position is not None
    new = OffsetTracker(old.position, decode_runs(old.position, old.metadata()))
    skipped = []
    for offset in range(100, 210):
        if new.was_finished(offset):
            skipped.append(offset)
            new.start(offset)
            new.finish(offset)
        else:
            new.start(offset)

    assert skipped == [101, 102, 150, *range(160, 190)]
    assert new.position == 100


def test_what_was_restored_and_not_come_to_yet_is_in_the_next_commit_too() -> None:
    """Two crashes in a row repeat no more than one."""
    tracker = OffsetTracker(10, [(12, 14), (20, 29)])
    assert list(tracker.finished_beyond()) == [(12, 14), (20, 29)]
    tracker.start(10)
    for offset in (11, 12, 13):
        finished = tracker.was_finished(offset)
        tracker.start(offset)
        if finished:
            tracker.finish(offset)

    assert list(tracker.finished_beyond()) == [(12, 13), (14, 14), (20, 29)]
    assert named(tracker, tracker.metadata()) == {12, 13, 14, *range(20, 30)}


def test_the_format_of_the_metadata_is_pinned() -> None:
    """Another version of the dispatcher reads it after a rolling restart."""
    packed = bytes([2, 3, 0x80, 1, 1])
    text = "f1:" + base64.b64encode(zlib.compress(packed, 9)).decode()

    assert decode_runs(100, text) == [(102, 104), (233, 233)]
    assert decode_runs(100, encode_runs(100, [(102, 104), (233, 233)])) == [(102, 104), (233, 233)]


def test_ten_thousand_runs_fit_by_leaving_out_the_far_ones() -> None:
    """Metadata that would not fit names fewer runs, the nearest, and each of them rightly."""
    finished = set(random.Random(1).sample(range(1, 100_000), 50_000))
    tracker = tracker_of(range(100_000), finished)
    metadata = tracker.metadata()
    names = named(tracker, metadata)

    assert len(metadata) <= MAX_METADATA_BYTES
    assert names < finished
    furthest = max(names)
    assert names == {offset for offset in finished if offset <= furthest}
    assert len(names) > 1000


@pytest.mark.parametrize("most", [0, 1, 3, 11, 12, 20, 100])
def test_however_little_room_there_is_the_metadata_fits_and_is_right(most: int) -> None:
    finished = set(range(1, 4000, 3)) | set(range(2000, 2100))
    tracker = tracker_of(range(4000), finished)
    metadata = tracker.metadata(most)

    assert len(metadata) <= most
    assert named(tracker, metadata) <= finished


def test_the_worst_metadata_is_made_in_little_time() -> None:
    """It is made on the event loop with each commit."""
    finished = set(random.Random(1).sample(range(1, 100_000), 50_000))
    tracker = tracker_of(range(100_000), finished)
    began = time.process_time()
    tracker.metadata()

    assert time.process_time() - began < 1.0  # a seventh of it, usually; a quadratic one takes minutes


@pytest.mark.parametrize(
    "text",
    ["", "f1", "f1:", "f1:!", "f1:AAAA", "f2:" + encode_runs(0, [(1, 2)])[3:], encode_runs(0, [(1, 2)])[:-4],
     "f1:" + base64.b64encode(zlib.compress(b"\x01")).decode(),
     "f1:" + base64.b64encode(zlib.compress(b"\x01\x00")).decode(),
     "f1:" + base64.b64encode(zlib.compress(b"\x80")).decode(),
     "f1:" + base64.b64encode(zlib.compress(b"\xff" * 12 + b"\x01\x01")).decode(),
     "f1:" + base64.b64encode(zlib.compress(b"\x01" * 4_000_000)).decode(),
     "f1:ä", "some other tool's note", "f1:" + "A" * 100_000],
)  # fmt: skip
def test_metadata_of_another_maker_or_damaged_names_no_runs(text: str) -> None:
    assert decode_runs(7, text) == []


@given(st.text() | st.binary().map(lambda data: "f1:" + base64.b64encode(data).decode()))
def test_any_text_as_metadata_never_raises_and_names_no_runs(text: str) -> None:
    """Random text never passes the checksum of zlib."""
    assert decode_runs(7, text) == []


@given(st.binary(max_size=60))
def test_well_packed_garbage_never_raises_and_never_names_what_lies_before_the_position(data: bytes) -> None:
    runs = decode_runs(1000, "f1:" + base64.b64encode(zlib.compress(data)).decode())

    assert all(1000 <= first <= last for first, last in runs)
    assert all(one[1] < other[0] for one, other in zip(runs, runs[1:], strict=False))


RUNS = st.lists(st.tuples(st.integers(0, 2**40), st.integers(1, 2**40)), max_size=50)


@given(st.integers(0, 2**62), RUNS)
def test_runs_come_back_from_their_metadata(position: int, steps: list[tuple[int, int]]) -> None:
    runs, at = [], position
    for distance, length in steps:
        runs.append((at + distance, at + distance + length - 1))
        at += distance + length

    assert decode_runs(position, encode_runs(position, runs)) == runs


@given(st.integers(0, 1000), RUNS.filter(bool), st.data())
def test_damaged_metadata_names_no_wrong_runs(position: int, steps: list[tuple[int, int]], data: st.DataObject) -> None:
    """One character changed: the checksum finds it, or what is left is the same."""
    runs, at = [], position
    for distance, length in steps:
        runs.append((at + distance, at + distance + length - 1))
        at += distance + length
    text = encode_runs(position, runs)
    where = data.draw(st.integers(0, len(text) - 1))
    damaged = text[:where] + data.draw(st.sampled_from("AZaz09+/=:f1 ")) + text[where + 1 :]

    assert decode_runs(position, damaged) in ([], runs)


@pytest.mark.parametrize("position", [0, 1, 30])
def test_nothing_lies_between_a_new_position_and_the_highest_offset(position: int) -> None:
    """Else a partition that was read to its end would show a lag."""
    assert OffsetTracker(position).highest == position - 1


def test_a_restored_run_that_was_just_read_again_is_named_once() -> None:
    tracker = OffsetTracker(3, [(4, 5)])
    for offset in (3, 4, 5):
        already = tracker.was_finished(offset)
        tracker.start(offset)
        if already:
            tracker.finish(offset)

    assert list(tracker.finished_beyond()) == [(4, 5)]
    assert decode_runs(3, tracker.metadata()) == [(4, 5)]


def test_a_number_that_is_cut_off_says_nothing() -> None:
    packed = base64.b64encode(zlib.compress(b"\x01\x01\x81")).decode()
    assert decode_runs(3, f"f1:{packed}") == []
