"""Which log a position describes: what is looked at, what is believed, what is discarded."""

import pytest
from aiokafka import TopicPartition
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from dispatcher.contract.kafka_problems import KafkaReason
from dispatcher.contract.records import Record
from dispatcher.kafka.commit_metadata import (
    AT_START,
    CommittedPosition,
    Fingerprint,
    decode_metadata,
    encode_metadata,
    start_metadata,
)
from dispatcher.kafka.log_check import next_probe, removed_unread
from dispatcher.kafka.log_reports import LogLoss, report_if_foreign, report_lost_log, report_removed
from dispatcher.kafka.membership import Bounds
from dispatcher.kafka.offset_tracker import OffsetTracker, encode_runs
from dispatcher.kafka.problems import KafkaProblems
from dispatcher.telemetry import metrics
from tests.unit.examples import a_record

FINGERPRINT = Fingerprint(29, 1_700_000_000_000, 0xDEADBEEF)


def record(offset: int, value: bytes | None = b"value", key: bytes | None = b"key", timestamp: int = 5) -> Record:
    return a_record(value, key, (), "t", 0, offset, timestamp)


def tracker_at(position: int, *finished: tuple[int, int]) -> OffsetTracker:
    return OffsetTracker(position, finished)


# Fingerprints


@pytest.mark.parametrize(
    "other",
    [
        record(8),
        record(7, b"other"),
        record(7, key=b"other"),
        record(7, timestamp=6),
        record(7, None),
        record(7, key=None),
    ],
)
def test_fingerprints_of_records_differ_by_offset_timestamp_key_and_value(other: Record) -> None:
    assert Fingerprint.of(record(7)) == Fingerprint.of(record(7))
    assert Fingerprint.of(record(7)) != Fingerprint.of(other)


def test_the_format_of_the_metadata_is_pinned() -> None:
    """Another version of the dispatcher reads it after a rolling restart."""
    text = "f2:AICgq/75Yt6tvu8=,@29"
    assert encode_metadata(tracker_at(29), FINGERPRINT) == text
    assert decode_metadata(29, text) == CommittedPosition(29, (), FINGERPRINT)


def test_metadata_of_versions_before_does_not_name_its_position_and_is_believed() -> None:
    assert decode_metadata(29, "f2:AICgq/75Yt6tvu8=") == CommittedPosition(29, (), FINGERPRINT)
    assert decode_metadata(9, AT_START) == CommittedPosition(9, is_start=True)
    with_runs = "f2:AICgq/75Yt6tvu8=," + encode_runs(29, [(31, 33)])
    assert decode_metadata(29, with_runs) == CommittedPosition(29, ((31, 33),), FINGERPRINT)


@pytest.mark.parametrize("offset", [0, 28, 30, 500])
@pytest.mark.parametrize(
    "metadata",
    [
        encode_metadata(tracker_at(29), FINGERPRINT),
        encode_metadata(tracker_at(29, (31, 33)), FINGERPRINT),
        encode_metadata(tracker_at(29, (31, 33)), None),
        start_metadata(29, 29),
        start_metadata(29, 12),
    ],
)
def test_metadata_of_another_position_says_nothing(offset: int, metadata: str) -> None:
    """MirrorMaker 2 commits a translated offset with the metadata of the source: that describes another log."""
    assert decode_metadata(offset, metadata) == CommittedPosition(offset)
    assert decode_metadata(29, metadata) != CommittedPosition(29)


def test_metadata_without_a_fingerprint_is_what_versions_before_wrote() -> None:
    assert decode_metadata(5, encode_runs(5, [(7, 9)])) == CommittedPosition(5, ((7, 9),))
    assert decode_metadata(5, encode_metadata(tracker_at(5, (7, 9)), None)) == CommittedPosition(5, ((7, 9),))


def test_a_start_that_the_position_has_left_behind_is_named() -> None:
    assert start_metadata(9, 5) == "f2:start:5,@9"
    assert decode_metadata(9, "f2:start:5,@9") == CommittedPosition(5, is_start=True, passed=9)
    assert decode_metadata(9, "f2:start:5") == CommittedPosition(5, is_start=True, passed=9)
    for text in ("f2:start:", "f2:start:10", "f2:start:-1", "f2:start:x", "f2:start:\u0663", "f2:start:" + "9" * 30):
        assert decode_metadata(9, text) == CommittedPosition(9), "damaged"


@given(
    st.integers(0, 2**62), st.integers(-1, 2**62), st.integers(-1, 2**62), st.integers(0, 2**32 - 1),
    st.lists(st.tuples(st.integers(1, 2**30), st.integers(1, 2**30)), max_size=30),
)  # fmt: skip
def test_metadata_comes_back(
    position: int, offset: int, timestamp: int, checksum: int, steps: list[tuple[int, int]]
) -> None:
    runs, at = [], position
    for distance, length in steps:
        runs.append((at + distance, at + distance + length - 1))
        at += distance + length
    fingerprint = Fingerprint(max(0, offset), timestamp, checksum)
    text = encode_metadata(tracker_at(position, *runs), fingerprint)

    assert decode_metadata(position, text) == CommittedPosition(position, tuple(runs), fingerprint)


@pytest.mark.parametrize("most", [0, 1, 18, 19, 20, 21, 22, 32, 40, 63, 64, 100, 300])
def test_however_little_the_broker_takes_the_metadata_fits_and_is_right(most: int) -> None:
    finished = [(first, first) for first in range(7, 900, 3)]
    text = encode_metadata(tracker_at(5, *finished), FINGERPRINT, most)
    read = decode_metadata(5, text)

    assert len(text) <= most
    assert set(read.finished) <= set(finished)
    assert read.fingerprint == (FINGERPRINT if most >= 19 else None)
    assert not read.finished or read.fingerprint is not None, "runs without the log that they describe"


@given(st.text() | st.text().map("f2:".__add__) | st.binary().map(lambda data: f"f2:{data.hex()},f1:x"))
def test_any_text_as_metadata_never_raises(text: str) -> None:
    assert decode_metadata(7, text).position == 7


@pytest.mark.parametrize(
    "text", ["f2:", "f2:,", "f2:AAAA", "f2:!!!!", "f2:AICgq/75Yt6tvu8=x", "f2:AICgq/75Yt6tvg==", "f2:ä"]
)
def test_a_damaged_fingerprint_says_nothing_and_neither_do_the_runs_with_it(text: str) -> None:
    assert decode_metadata(7, text) == CommittedPosition(7)


# What is looked at


@pytest.mark.parametrize(
    ("claim", "bounds", "offset", "is_beyond_end"),
    [
        (CommittedPosition(30, (), FINGERPRINT), Bounds(0, 30), 29, False),
        (CommittedPosition(30, (), FINGERPRINT), Bounds(29, 60), 29, False),
        (CommittedPosition(5, ((6, 29),), FINGERPRINT), Bounds(0, 30), 29, False),
        (CommittedPosition(5, ((6, 29),), FINGERPRINT), Bounds(0, 29), 29, True),
        (CommittedPosition(30, (), FINGERPRINT), Bounds(0, 29), 29, True),
        (CommittedPosition(30, (), FINGERPRINT), Bounds(0, 0), 29, True),
        (CommittedPosition(30, (), FINGERPRINT), Bounds(30, 60), None, False),
        (CommittedPosition(30), Bounds(0, 60), 29, False),
        (CommittedPosition(30), Bounds(30, 30), None, False),
        (CommittedPosition(0), Bounds(0, 60), None, False),
        (CommittedPosition(5, ((6, 29),)), Bounds(0, 20), 4, True),
    ],
)
def test_the_record_that_is_looked_at(
    claim: CommittedPosition, bounds: Bounds, offset: int | None, is_beyond_end: bool
) -> None:
    """That of the fingerprint; else the last one before the position; none if the log begins after it."""
    probe = next_probe(claim, bounds, 100.0)

    assert (None if probe is None else probe.offset) == offset
    assert probe is None or (probe.is_beyond_end is is_beyond_end and probe.gives_up_at > 100.0)


@pytest.mark.parametrize(
    ("claim", "start", "removed"),
    [
        (CommittedPosition(10), 10, 0),
        (CommittedPosition(10), 5, 0),
        (CommittedPosition(10), 11, 1),
        (CommittedPosition(10), 40, 30),
        (CommittedPosition(5, ((6, 29),)), 40, 11),
        (CommittedPosition(5, ((6, 29), (50, 60))), 40, 11),
        (CommittedPosition(5, ((6, 29),)), 10, 1),
        (CommittedPosition(5, ((6, 6), (8, 8))), 9, 2),
        (CommittedPosition(5, passed=9), 9, 0),
        (CommittedPosition(5, passed=9), 12, 3),
    ],
)
def test_unread_records_removed_by_retention_are_counted_without_finished_ones(
    claim: CommittedPosition, start: int, removed: int
) -> None:
    assert removed_unread(claim, start) == removed


@pytest.mark.parametrize(
    ("claim", "end"),
    [
        (CommittedPosition(10), 10),
        (CommittedPosition(10, ((12, 14), (20, 29))), 30),
        (CommittedPosition(10, ((12, 14),), FINGERPRINT), 30),
        (CommittedPosition(40, (), FINGERPRINT), 40),
    ],
)
def test_the_least_end_of_a_log_that_a_claim_can_describe(claim: CommittedPosition, end: int) -> None:
    assert claim.end == end


# Reports


@pytest.mark.usefixtures("_with_logs")
@pytest.mark.parametrize("loss", list(LogLoss))
def test_a_lost_log_is_counted_logged_and_named(loss: LogLoss) -> None:
    problems, topic = KafkaProblems(), f"lost-{loss.value}"
    with capture_logs() as logs:
        report_lost_log(problems, "g", TopicPartition(topic, 3), loss, position=30, start=4)

    assert metrics.LOG_RESETS.labels(topic, loss.value)._value.get() == 1
    (problem,) = problems.current
    assert problem.reason == KafkaReason.TOPIC_REPLACED
    assert problem.detail == f"the log of {topic}/3 was {loss.value}: read again from offset 4"
    (line,) = [one for one in logs if one["log_level"] == "error"]
    assert line["event"].startswith("the log of a partition is not the one that was read before")
    wanted = {"group": "g", "partition": f"{topic}/3", "reason": loss.value, "position": 30, "begins_at": 4}
    assert wanted.items() <= line.items()


@pytest.mark.usefixtures("_with_logs")
def test_removed_records_are_counted_logged_and_named_with_their_number() -> None:
    problems = KafkaProblems()
    with capture_logs() as logs:
        report_removed(problems, "g", TopicPartition("removed", 1), position=5, start=40, removed=11)

    assert metrics.RECORDS_REMOVED_UNREAD.labels("removed")._value.get() == 11
    (problem,) = problems.current
    assert problem.reason == KafkaReason.RECORDS_EXPIRED
    assert problem.detail == "retention removed 11 unread records of removed/1, before offset 40"
    (line,) = [one for one in logs if one["log_level"] == "error"]
    assert line["event"] == "records were removed from a partition before they were read: lost"
    assert {"partition": "removed/1", "records": 11, "position": 5, "log_start": 40}.items() <= line.items()
    assert "DispatcherRecordsRemovedUnread" in line["cure"]


@pytest.mark.usefixtures("_with_logs")
@pytest.mark.parametrize(
    ("before", "now", "is_foreign"),
    [
        (CommittedPosition(30, (), FINGERPRINT), CommittedPosition(40), True),
        (CommittedPosition(30, (), FINGERPRINT), CommittedPosition(40, (), FINGERPRINT), False),
        (CommittedPosition(30, (), FINGERPRINT), CommittedPosition(40, is_start=True), False),
        (CommittedPosition(30, (), FINGERPRINT), CommittedPosition(30), False),
        (CommittedPosition(30, (), FINGERPRINT), CommittedPosition(0), False),
        (CommittedPosition(30, (), FINGERPRINT), None, False),
        (CommittedPosition(30), CommittedPosition(40), False),
        (None, CommittedPosition(40), False),
    ],
)
def test_a_position_that_moved_forward_and_lost_its_fingerprint_is_reported(
    before: CommittedPosition | None, now: CommittedPosition | None, is_foreign: bool
) -> None:
    """One that went back was set by an operator, for a replay, or was lost."""
    problems = KafkaProblems()
    with capture_logs() as logs:
        report_if_foreign(problems, "g", TopicPartition("t", 3), before, now)

    assert [one.reason for one in problems.current] == [KafkaReason.GROUP_SHARED] * is_foreign
    lines = [one for one in logs if one["log_level"] == "error"]
    assert len(lines) == is_foreign
    if is_foreign:
        assert {"partition": "t/3", "position_before": 30, "position": 40}.items() <= lines[0].items()
