"""Position at which a partition of held events is read from: after this process or another one, and of another log."""

import asyncio
from dataclasses import replace
from typing import cast

import pytest
from aiokafka import TopicPartition
from aiokafka.errors import OffsetOutOfRangeError
from structlog.testing import capture_logs

from dispatcher.contract.kafka_problems import KafkaReason
from dispatcher.contract.records import Record
from dispatcher.contract.tenant import TenantKey
from dispatcher.kafka.commit_metadata import Fingerprint, encode_metadata, start_metadata
from dispatcher.kafka.held_start import ANSWER_S, Committed, HeldStart, find_start, is_same_log
from dispatcher.kafka.held_topic import Directory, Progress, Snapshot, SnapshotOffsets, UnfinishedRange
from dispatcher.kafka.log_reports import LogLoss
from dispatcher.kafka.membership import Bounds, GroupClient
from dispatcher.kafka.offset_tracker import OffsetTracker
from dispatcher.kafka.problems import KafkaProblems
from dispatcher.telemetry import metrics
from tests.unit.examples import a_record
from tests.unit.virtual_time import seconds_taken, virtual_time

TP = TopicPartition("g.held", 1)
TENANT = TenantKey("a", "prod")
SNAPSHOT = Snapshot({TENANT: Progress(9, 12, (9,))})
DIRECTORY = Directory(12, {TENANT: UnfinishedRange(5, 11, 1.8e9, 3)})


def record(offset: int, content: Snapshot | Directory | None = None, value: bytes = b"value") -> Record:
    if content is None:
        return a_record(value, offset=offset)
    return a_record(content.encode(), None, (("feedback-held-snapshot", b"1"),), offset=offset)


class Log:
    """A partition with records at the offsets from 5 to 19, and its group's commit, as the client shows them."""

    def __init__(self, committed: Committed | None = None) -> None:
        self.committed = committed
        self.bounds_told = Bounds(5, 20)
        self.records = {offset: record(offset) for offset in range(5, 20)}
        self.position: int | None = None
        self.seeks: list[int] = []
        self.is_silent = False
        """No fetch is answered."""
        self.answers_after_s = 0.0
        self.throttled_fetches = 0
        """Number of fetches that are not answered in time, because the broker slows the client down."""
        self.was_throttled = False
        self.fetched_end: int | None = None
        self.problems = KafkaProblems()

    def begin_at(self, offset: int) -> None:
        """Retention removes what is before the offset."""
        self.bounds_told = Bounds(offset, self.bounds_told.end)
        self.records = {at: one for at, one in self.records.items() if at >= offset}

    def end_at(self, offset: int) -> None:
        self.bounds_told = Bounds(self.bounds_told.start, offset)
        self.records = {at: one for at, one in self.records.items() if at < offset}

    async def find_start(self, left: HeldStart | None = None) -> HeldStart:
        return await find_start(cast(GroupClient, self), TP, left, self.problems, "g.held")

    async def is_same(self, known: HeldStart) -> bool:
        return await is_same_log(cast(GroupClient, self), TP, known, self.bounds_told)

    def reasons(self) -> list[KafkaReason]:
        return [one.reason for one in self.problems.current]

    # What a group's client answers

    async def committed_metadata(self, _: list[TopicPartition]) -> dict[TopicPartition, Committed]:
        await asyncio.sleep(self.answers_after_s)
        return {} if self.committed is None else {TP: self.committed}

    async def bounds(self, _: list[TopicPartition]) -> dict[TopicPartition, Bounds]:
        await asyncio.sleep(self.answers_after_s)
        return {TP: self.bounds_told}

    def seek(self, _: TopicPartition, offset: int) -> None:
        self.position, self.fetched_end = offset, None
        self.seeks.append(offset)

    def is_throttled(self, _: TopicPartition) -> bool:
        return self.was_throttled

    def fetched_end_of(self, _: TopicPartition) -> int | None:
        return self.fetched_end

    def position_of(self, _: TopicPartition) -> int | None:
        return self.position

    async def getmany(
        self, _: TopicPartition, *, timeout_ms: int, max_records: int
    ) -> dict[TopicPartition, list[Record]]:
        self.was_throttled = self.throttled_fetches > 0
        self.throttled_fetches -= 1
        if self.is_silent or self.was_throttled or self.position is None:
            await asyncio.sleep(timeout_ms / 1000)
            return {}
        self.fetched_end = self.bounds_told.end
        if not self.bounds_told.start <= self.position <= self.bounds_told.end:
            raise OffsetOutOfRangeError({TP: self.position})
        found = [one for at, one in sorted(self.records.items()) if at >= self.position][:max_records]
        self.position = found[-1].offset + 1 if found else self.bounds_told.end  # goes on over what was compacted
        return {TP: found} if found else {}


def commit(position: int, last_read: int | None = None, named: SnapshotOffsets | None = None) -> Committed:
    """A commit of a reader whose last record was the one at `last_read`."""
    fingerprint = None if last_read is None else Fingerprint.of(record(last_read))
    log_only = encode_metadata(OffsetTracker(position), fingerprint)
    return position, ",".join(filter(None, (log_only, (named or SnapshotOffsets()).encode())))


def fresh(start: int, committed: Committed | None) -> HeldStart:
    """A start at the log's start, with nothing known about the log."""
    return HeldStart(start, Snapshot({}), None, committed, log_start=start)


def resets(loss: LogLoss) -> float:
    return float(metrics.LOG_RESETS.labels(TP.topic, loss.value)._value.get())


def removed() -> float:
    return float(metrics.RECORDS_REMOVED_UNREAD.labels(TP.topic)._value.get())


# The group's commit


async def test_without_a_commit_it_begins_at_the_logs_start_and_nothing_is_reported() -> None:
    log = Log()
    assert await log.find_start() == fresh(5, None)
    assert log.seeks == []
    assert log.reasons() == []


async def test_a_commit_of_this_log_is_continued_at_its_position() -> None:
    log = Log(commit(8, last_read=15))
    assert await log.find_start() == HeldStart(8, Snapshot({}), Fingerprint.of(record(15)), log.committed)
    assert log.seeks == [15], "the record that the commit names is compared"
    assert log.reasons() == []


@pytest.mark.parametrize("place", ["another record", "compacted", "end", "beyond the end"])
async def test_a_commit_of_another_log_is_reported_and_read_from_the_logs_start(place: str) -> None:
    log, before = Log(commit(8, last_read=15)), resets(LogLoss.REPLACED)
    if place == "another record":
        log.records[15] = record(15, value=b"other")
    elif place == "compacted":
        log.records[16] = replace(log.records.pop(15), offset=16)
    else:
        log.end_at(15 if place == "end" else 14)
    assert await log.find_start() == fresh(5, log.committed)
    assert log.reasons() == [KafkaReason.TOPIC_REPLACED]
    assert "read again from offset 5" in log.problems.current[0].detail
    assert resets(LogLoss.REPLACED) == before + 1


@pytest.mark.usefixtures("_with_logs")
@pytest.mark.parametrize(("end", "loss"), [(15, LogLoss.REPLACED), (14, LogLoss.TRUNCATED)])
async def test_a_log_that_ends_before_the_position_was_truncated(end: int, loss: LogLoss) -> None:
    log, before = Log(commit(15, last_read=16)), resets(loss)
    log.end_at(end)
    with capture_logs() as lines:
        assert (await log.find_start()).position == 5
    assert resets(loss) == before + 1
    assert [(line["position"], line["begins_at"]) for line in lines if line["log_level"] == "error"] == [(15, 5)]


async def test_an_end_below_the_position_is_not_believed_while_the_named_record_is_there() -> None:
    """A new leader answers with the end that it has confirmed so far."""
    log = Log(commit(17, last_read=16))
    log.bounds_told = Bounds(5, 16)
    assert (await log.find_start()).position == 17
    assert log.reasons() == []


@pytest.mark.parametrize(("position", "begins_at"), [(20, 20), (21, 5)])
async def test_a_commit_that_names_no_log_is_believed_up_to_the_logs_end(position: int, begins_at: int) -> None:
    """Tools that set a position write no metadata, and neither does this process if the broker takes none."""
    log = Log(commit(position))
    found = await log.find_start()
    assert (found.position, found.fingerprint) == (begins_at, None)
    assert log.reasons() == [KafkaReason.TOPIC_REPLACED] * (begins_at == 5)


async def test_a_position_without_metadata_does_not_count_as_the_logs_start() -> None:
    log = Log((8, ""))
    assert await log.find_start() == HeldStart(8, Snapshot({}), None, log.committed)


@pytest.mark.parametrize("metadata", [commit(17, last_read=16)[1], commit(17, 16, SnapshotOffsets(7, 6))[1]])
async def test_metadata_of_another_position_says_nothing_of_the_log_or_its_snapshots(metadata: str) -> None:
    """MirrorMaker 2 commits a translated offset with the metadata of the source: its offsets are of another log."""
    log = Log((12, metadata))
    log.records[6], log.records[7] = record(6, DIRECTORY), record(7, SNAPSHOT)
    assert await log.find_start() == HeldStart(12, Snapshot({}), None, log.committed)
    assert log.seeks == []
    assert log.reasons() == []


@pytest.mark.parametrize(
    ("log_start", "begins_at", "reason"),
    [
        (9, 9, KafkaReason.TOPIC_REPLACED),
        (10, 10, None),
        (13, 13, KafkaReason.RECORDS_EXPIRED),
    ],
)
async def test_a_log_of_which_nothing_was_read_is_another_one_if_it_begins_lower(
    log_start: int, begins_at: int, reason: KafkaReason | None
) -> None:
    log = Log((10, start_metadata(10, 10)))
    log.begin_at(log_start)
    assert await log.find_start() == fresh(begins_at, log.committed), "the next commit says so of the new start"
    assert log.reasons() == ([] if reason is None else [reason])


@pytest.mark.parametrize(("log_start", "lost"), [(7, 0), (8, 0), (9, 1), (15, 7), (16, 8)])
async def test_events_that_retention_removed_before_they_were_finished_are_counted(log_start: int, lost: int) -> None:
    log, before = Log(commit(8, last_read=15)), removed()
    log.begin_at(log_start)
    found = await log.find_start()
    assert (found.position, found.log_start) == (max(8, log_start), None)
    assert found.fingerprint == Fingerprint.of(record(15))
    assert removed() == before + lost
    assert log.reasons() == [KafkaReason.RECORDS_EXPIRED] * bool(lost)


@pytest.mark.parametrize(("log_start", "is_same"), [(15, False), (16, True)])
async def test_a_record_that_retention_has_removed_is_not_compared(log_start: int, *, is_same: bool) -> None:
    log = Log()
    log.records[15] = record(15, value=b"other")
    log.begin_at(log_start)
    known = HeldStart(8, Snapshot({}), Fingerprint.of(record(15)), None)
    assert await log.is_same(known) is is_same
    assert log.seeks == ([] if is_same else [15])


# What this process has finished


LEFT = HeldStart(10, SNAPSHOT, Fingerprint.of(record(15)), commit(8, last_read=12), directory=DIRECTORY)


async def test_records_finished_here_count_if_no_other_member_has_committed_since() -> None:
    log = Log(LEFT.committed)
    assert await log.find_start(LEFT) == LEFT
    log = Log()
    assert await log.find_start(replace(LEFT, committed=None)) == replace(LEFT, committed=None)
    assert log.reasons() == []


@pytest.mark.parametrize("committed", [commit(8, last_read=13), commit(9, last_read=12), commit(4), None])
async def test_records_finished_here_do_not_count_after_another_commit(committed: Committed | None) -> None:
    """Another member's commit, or an operator's."""
    log = Log(committed)
    found = await log.find_start(LEFT)
    assert found == await Log(committed).find_start()
    assert found.snapshot == Snapshot({})
    assert found.directory is None


async def test_records_finished_in_another_log_do_not_count() -> None:
    log = Log(LEFT.committed)
    log.records[15] = record(15, value=b"other")
    found = await log.find_start(LEFT)
    assert found == HeldStart(8, Snapshot({}), Fingerprint.of(record(12)), log.committed), "the commit still fits"
    assert log.reasons() == []
    log.records[12] = record(12, value=b"other")
    assert await log.find_start(LEFT) == fresh(5, log.committed)
    assert log.reasons() == [KafkaReason.TOPIC_REPLACED]


async def test_records_finished_here_count_after_retention_removed_more() -> None:
    log, before = Log(LEFT.committed), removed()
    log.begin_at(12)
    assert await log.find_start(LEFT) == replace(LEFT, position=12)
    assert removed() == before + 2


# Snapshots


@pytest.mark.usefixtures("_with_logs")
async def test_the_snapshots_that_a_commit_names_are_read() -> None:
    log = Log(commit(8, 15, SnapshotOffsets(progress=16, directory=18)))
    log.records[16], log.records[18] = record(16, SNAPSHOT), record(18, DIRECTORY)
    with capture_logs() as lines:
        found = await log.find_start()
    assert (found.snapshot, found.directory, found.directory_at) == (SNAPSHOT, DIRECTORY, 18)
    assert lines == []


@pytest.mark.usefixtures("_with_logs")
@pytest.mark.parametrize("place", ["an event", "compacted", "removed", "beyond the end"])
async def test_without_its_snapshots_a_partition_is_read_from_the_position(place: str) -> None:
    log = Log(commit(8, 9, SnapshotOffsets(progress=10, directory=11)))
    log.records[12], log.records[13] = record(12, SNAPSHOT), record(13, DIRECTORY)
    if place == "compacted":
        del log.records[10], log.records[11]
    elif place == "removed":
        log.begin_at(12)
    elif place == "beyond the end":
        log.end_at(10)
    with capture_logs() as lines:
        found = await log.find_start()
    assert (found.snapshot, found.directory, found.directory_at) == (Snapshot({}), None, None)
    assert found.position == (12 if place == "removed" else 8)
    assert [line["event"].partition(":")[0] for line in lines if "gone" in line["event"]] == [
        "held events may be repeated",
        "all held events are read again",
    ]


async def test_a_directory_of_an_unknown_log_is_not_used() -> None:
    log = Log(commit(8, named=SnapshotOffsets(directory=18)))
    log.records[18] = record(18, DIRECTORY)
    found = await log.find_start()
    assert (found.directory, found.directory_at, log.seeks) == (None, None, [])


# Brokers that don't answer


@virtual_time
async def test_a_record_that_the_log_should_have_is_requested_again_later() -> None:
    """A broker that is slow must not look like another log, whatever end it reports: everything would be repeated."""
    log = Log(commit(8, last_read=15))
    log.is_silent = True
    for end in (20, 16, 15, 12):
        log.end_at(end)
        with pytest.raises(TimeoutError):
            await log.find_start()
    assert log.reasons() == []
    log.is_silent = False
    log.end_at(15)
    assert await log.find_start() == fresh(5, log.committed)


@virtual_time
async def test_a_broker_that_slows_the_client_down_is_waited_for() -> None:
    log = Log(commit(8, last_read=15))
    log.throttled_fetches = 4
    assert (await log.find_start()).position == 8
    assert log.reasons() == []


@virtual_time
async def test_a_fetch_without_a_position_says_nothing_of_the_log() -> None:
    """The position is lost while the partition is being taken away."""
    log = Log(commit(8, last_read=15))
    log.seek = lambda *_: None  # type: ignore[method-assign]
    with pytest.raises(TimeoutError):
        await log.find_start()


async def test_a_fetch_that_went_on_over_the_offset_without_a_record_shows_that_it_is_gone() -> None:
    """A marker of a transaction, or compaction, has left nothing at the log's end."""
    log = Log(commit(8, last_read=15))
    log.records = {at: one for at, one in log.records.items() if at < 15}
    assert await log.find_start() == fresh(5, log.committed)


@virtual_time
async def test_a_broker_that_does_not_return_commit_or_bounds_in_time_is_tried_again() -> None:
    log = Log(commit(8, last_read=15))
    log.answers_after_s = ANSWER_S * 0.4
    assert (await log.find_start()).position == 8
    log.answers_after_s = ANSWER_S * 1.5

    async def asked() -> None:
        with pytest.raises(TimeoutError):
            await log.find_start()

    assert ANSWER_S <= await seconds_taken(asked()) < ANSWER_S + 1
