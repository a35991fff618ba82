"""The reader of held events as a member of its group, against a broker in memory."""

import asyncio
import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any, cast

import pytest
from aiokafka import TopicPartition
from aiokafka.errors import (
    GroupAuthorizationFailedError,
    KafkaConnectionError,
    LeaderNotAvailableError,
    OffsetMetadataTooLargeError,
)
from structlog.testing import capture_logs

from dispatcher.config.kafka_settings import KafkaSettings
from dispatcher.contract.kafka_problems import KafkaReason
from dispatcher.contract.outcomes import Delivered, Outcome
from dispatcher.contract.records import AssignmentEpoch, Lease, Origin, ProcessingAttempt, Record, RetryState
from dispatcher.contract.tenant import TenantKey
from dispatcher.errors import NotWritten, RecordTooLarge, StillHeld
from dispatcher.kafka import held_commits, held_events, held_processing
from dispatcher.kafka.group_coordinator import FencedMember
from dispatcher.kafka.held_events import HeldEvents
from dispatcher.kafka.held_partition import ROOM
from dispatcher.kafka.held_topic import HeldTopic, SnapshotOffsets, tenant_headers
from dispatcher.kafka.log_reports import LogLoss
from dispatcher.kafka.problems import KafkaProblems
from dispatcher.telemetry import metrics
from tests.unit.simulation.broker import Broker, Member
from tests.unit.virtual_time import virtual_time

TENANT, OTHER = TenantKey("a", "prod"), TenantKey("b", "prod")
TOPIC = "g.held"
ZERO, ONE = TopicPartition(TOPIC, 0), TopicPartition(TOPIC, 1)


class Bench:
    """A reader of held events, its broker, and the records that it processed."""

    def __init__(self) -> None:
        self.now = asyncio.get_running_loop().time
        chance = random.Random(0)
        self.broker = Broker(chance, lambda: 1.8e9 + self.now())
        chance.choice = lambda options: options[0]  # type: ignore[method-assign]
        chance.random = lambda: 1.0  # type: ignore[method-assign]
        chance.randint = lambda _, most: most  # type: ignore[method-assign]
        self.group = self.broker.group("g.held", (TOPIC,))
        self.settings = KafkaSettings.model_validate({"bootstrap_servers": "none:1", "group_id": "g"})
        self.problems = KafkaProblems(self.now)
        self.held = {TENANT}
        self.sent: list[int] = []
        self.wait_s = 0.0
        """Seconds for which a record waits in its lane before its request is sent."""
        self.fenced_calls = 0
        self.members: list[Member] = []
        self.silent: set[TopicPartition] = set()
        """No fetch of these partitions is answered."""
        self.refusals: list[Exception] = []
        """Raised by the next writes of snapshots."""
        self.snapshots = 0
        """Written."""
        self.write_s = 0.0
        """Seconds that a snapshot's write takes."""
        self.waits: list[StillHeld] = []
        """Raised by the next records that are processed."""
        self.reader = self.new_reader()
        self.topic = TOPIC

    def new_reader(self) -> HeldEvents:
        return HeldEvents(
            self.settings, cast(HeldTopic, self), self._process, self.held.__contains__, 1e6, 5.0,
            clock=lambda: 1.8e9 + self.now(), problems=self.problems, on_fenced=self._fenced,
            lease=Lease(now=self.now), connect=cast(Any, self._join),
        )  # fmt: skip

    async def _join(self, listener: Any) -> Member:
        member = Member(self.group, listener)
        taken = member._taken
        member._taken = lambda tps, most: taken([tp for tp in tps if tp not in self.silent], most)  # type: ignore[method-assign]
        self.members.append(member)
        return member

    async def write_snapshot(self, partition: int, snapshot: Any) -> int:
        await asyncio.sleep(self.write_s)
        if self.refusals:
            raise self.refusals.pop()
        self.snapshots += 1
        return self.broker.append(
            TOPIC, bytes([partition]), snapshot.encode(), [("feedback-held-snapshot", b"1")]
        ).offset

    async def write_again(self, record: Record) -> None:
        self.hold(1)

    async def _process(self, record: Record, attempt: ProcessingAttempt) -> Outcome:
        await asyncio.sleep(self.wait_s)
        if self.waits:
            raise self.waits.pop()
        attempt.start()
        self.sent.append(record.offset)
        return Delivered(1)

    def _fenced(self) -> None:
        self.fenced_calls += 1

    def hold(self, count: int, tp: TopicPartition = ONE, tenant: TenantKey = TENANT) -> None:
        for number in range(count):
            state = RetryState(Origin("t", 0, number), 1.8e9, parks=1, reason="paused")
            self.broker.append(TOPIC, bytes([tp.partition]), b"value", [*state.headers(), *tenant_headers(tenant)])

    def release(self) -> None:
        self.held.clear()
        self.reader.notice()

    async def start(self) -> "asyncio.Task[None]":
        task = asyncio.create_task(self.reader.run())
        await asyncio.sleep(1)
        self.reader.heard(self.now())
        return task

    async def stop(self, task: "asyncio.Task[None]") -> None:
        self.reader.stop()
        await asyncio.wait_for(task, 60)
        await self.group.settled()

    def reasons(self) -> set[KafkaReason]:
        return {problem.reason for problem in self.problems.current}


@virtual_time
async def test_a_member_whose_session_is_over_starts_no_held_event_until_the_group_answers() -> None:
    bench = Bench()
    bench.hold(5)
    task = await bench.start()
    await asyncio.sleep(bench.settings.session_timeout + 1)
    bench.release()
    await asyncio.sleep(30)
    assert bench.sent == []
    assert bench.reasons() == {KafkaReason.SESSION_LOST}
    bench.reader.heard(bench.now())
    await asyncio.sleep(5)

    assert bench.sent == [0, 1, 2, 3, 4]
    assert bench.reasons() == set()
    assert bench.group.covers(ONE)[0] == 5
    await bench.stop(task)


@virtual_time
async def test_an_event_that_waits_in_its_lane_is_not_sent_after_the_session_and_is_sent_once_it_is_renewed() -> None:
    """The process stood still while events waited in their lane: another member may have sent them meanwhile."""
    bench = Bench()
    bench.hold(3)
    bench.wait_s = bench.settings.session_timeout + 5
    task = await bench.start()
    bench.release()
    await asyncio.sleep(3 * bench.wait_s)
    assert bench.sent == []
    bench.wait_s = 0.0
    bench.reader.heard(bench.now())
    await asyncio.sleep(5)

    assert sorted(bench.sent) == [0, 1, 2]
    await bench.stop(task)


@virtual_time
async def test_a_fenced_reader_reports_it_and_stops_without_joining_again() -> None:
    bench = Bench()
    bench.hold(3)
    task = await bench.start()

    async def fenced(*_: object, **__: object) -> object:
        raise FencedMember("another process has joined group g.held as one")

    bench.members[0].getmany = fenced  # type: ignore[assignment,method-assign]
    await asyncio.wait_for(task, 30)

    assert bench.reader.session.fenced == "another process has joined group g.held as one"
    assert bench.fenced_calls == 1
    assert bench.reasons() == {KafkaReason.MEMBER_FENCED}
    assert len(bench.members) == 1


@virtual_time
async def test_a_fenced_reader_without_partitions_reports_it_too() -> None:
    bench = Bench()
    task = await bench.start()
    await bench.reader.revoked(list(bench.reader._assigned))

    def fenced() -> None:
        raise FencedMember("another process has joined group g.held as one")

    bench.members[0].raise_coordination_error = fenced  # type: ignore[method-assign]
    await asyncio.wait_for(task, 30)
    assert bench.fenced_calls == 1


@virtual_time
async def test_a_broker_that_is_away_is_reported_and_the_reader_goes_on_when_it_is_back() -> None:
    bench = Bench()
    bench.hold(3)
    task = await bench.start()
    bench.broker.faults.away = True
    await asyncio.sleep(15)
    assert KafkaReason.UNREACHABLE in bench.reasons()
    bench.broker.faults.away = False
    await asyncio.sleep(10)
    assert bench.reader.session.broker_answers
    bench.reader.heard(bench.now())
    bench.release()
    await asyncio.sleep(5)

    assert bench.sent == [0, 1, 2]
    await asyncio.sleep(30)  # until a commit is tried again
    bench.reader.heard(bench.now())
    assert bench.reasons() == set()
    await bench.stop(task)


@virtual_time
async def test_a_revocation_waits_for_no_event_of_which_no_request_was_sent() -> None:
    bench = Bench()
    bench.hold(3)
    bench.wait_s = 1000.0
    task = await bench.start()
    bench.release()
    await asyncio.sleep(2)
    before = bench.now()
    await bench.stop(task)

    assert bench.now() - before < 2
    assert bench.sent == []


@virtual_time
@pytest.mark.parametrize("error", [TimeoutError(), LeaderNotAvailableError(), KafkaConnectionError()])
async def test_a_partition_that_does_not_answer_holds_up_no_other(error: Exception) -> None:
    """Its brokers are away, at the start or later, or its disk is; it goes on once it answers."""
    bench = Bench()
    other = TopicPartition(TOPIC, 0)
    bench.held.clear()
    bench.hold(3)
    bench.hold(3, other)
    away = {other}
    join = bench._join

    async def joined(listener: Any) -> Member:
        member = await join(listener)
        bounds = member.bounds

        async def answered(tps: Any) -> Any:
            if away & set(tps):
                raise error
            return await bounds(tps)

        member.bounds = answered  # type: ignore[method-assign]
        return member

    bench._join = joined  # type: ignore[method-assign]
    bench.reader = bench.new_reader()
    task = await bench.start()
    for _ in range(8):
        bench.reader.heard(bench.now())
        await asyncio.sleep(5)
    assert bench.group.covers(ONE)[0] == 3
    assert other not in bench.group.commits
    offline = isinstance(error, LeaderNotAvailableError)
    assert bench.reasons() == {KafkaReason.PARTITION_OFFLINE if offline else KafkaReason.UNREACHABLE}
    away.clear()
    for _ in range(6):
        bench.reader.heard(bench.now())
        await asyncio.sleep(5)
    assert bench.group.covers(other)[0] == 3
    await bench.stop(task)


@virtual_time
async def test_an_edit_lifts_the_rest_that_an_endpoint_had_asked_for() -> None:
    """The tenant's address was wrong, and its answer was Retry-After: a day. The new one gets the events soon."""
    bench = Bench()
    bench.held.clear()
    bench.waits.append(StillHeld("its lane waits", 86_400))
    bench.hold(3)
    task = await bench.start()
    bench.reader.notice()
    for _ in range(24):
        bench.reader.heard(bench.now())
        await asyncio.sleep(5)
    assert sorted(bench.sent) == [0, 1, 2]
    await bench.stop(task)


def raising(error: Exception) -> Callable[..., Any]:
    """Returns a coroutine function that raises this."""

    async def raises(*_: object, **__: object) -> object:
        raise error

    return raises


@virtual_time
async def test_an_odd_answer_does_not_end_the_reader() -> None:
    """aiokafka raises KeyError and AttributeError on answers that it doesn't know."""
    bench = Bench()
    bench.hold(3)
    bench.broker.faults.metadata_unreadable = True
    task = await bench.start()
    for _ in range(4):
        await asyncio.sleep(5)
        bench.reader.heard(bench.now())
    assert KafkaReason.UNEXPECTED in bench.reasons()
    bench.broker.faults.metadata_unreadable = False
    bench.release()
    for name in ("commit", "getmany", "end_offsets"):
        working = getattr(bench.members[0], name)
        setattr(bench.members[0], name, raising(AttributeError("an odd answer")))
        for _ in range(4):
            await asyncio.sleep(5)
            bench.reader.heard(bench.now())
        setattr(bench.members[0], name, working)
    for _ in range(12):
        await asyncio.sleep(5)
        bench.reader.heard(bench.now())
    assert bench.sent == [0, 1, 2]
    assert bench.group.commits[ONE][0] == 3
    assert bench.reasons() == set()
    await bench.stop(task)


@virtual_time
async def test_a_bug_in_the_last_commit_of_a_partition_does_not_end_its_reading(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bench = Bench()
    bench.hold(1)
    bench.hold(4, tenant=OTHER)
    task = await bench.start()
    await asyncio.sleep(5)
    one = bench.reader._assigned[ONE]
    one.committed, one.is_dirty = None, True  # its newest commit was refused
    with monkeypatch.context() as patched:
        patched.setattr(bench.members[0], "commit", raising(AssertionError("a bug")))
        await bench.reader.revoked([ONE])
    assert ONE not in bench.reader._assigned
    await bench.reader.assigned([ONE, TopicPartition(TOPIC, 0)])
    bench.release()
    for _ in range(6):
        bench.reader.heard(bench.now())
        await asyncio.sleep(5)
    assert 0 in bench.sent
    await bench.stop(task)


@virtual_time
async def test_leaving_takes_little_time_though_nothing_can_be_written() -> None:
    """A longer wait would end in SIGKILL, and at a rebalance hold up the whole group."""
    bench = Bench()
    bench.hold(1)
    bench.hold(4, tenant=OTHER)
    bench.write_s = 3_600
    task = await bench.start()
    await asyncio.sleep(5)
    began = bench.now()
    await bench.stop(task)
    assert bench.now() - began < 2 * held_events.LEAVE_COMMIT_S


@virtual_time
async def test_held_events_that_retention_removed_are_reported_as_lost() -> None:
    bench = Bench()
    bench.hold(10)
    task = await bench.start()
    await asyncio.sleep(3)
    await bench.stop(task)
    before = metrics.RECORDS_REMOVED_UNREAD.labels(TOPIC)._value.get()
    bench.broker.remove_before(ONE, 4)
    again = Bench()
    again.broker.partitions, again.broker.starts, again.broker.ends = (
        bench.broker.partitions, bench.broker.starts, bench.broker.ends,
    )  # fmt: skip
    again.group.commits = bench.group.commits
    task = await again.start()
    again.release()
    await asyncio.sleep(3)

    assert again.sent == [4, 5, 6, 7, 8, 9]
    assert again.reasons() == {KafkaReason.RECORDS_EXPIRED}
    assert metrics.RECORDS_REMOVED_UNREAD.labels(TOPIC)._value.get() == before + 4
    await again.stop(task)


# Positions


def resets() -> float:
    return sum(metrics.LOG_RESETS.labels(TOPIC, reason.value)._value.get() for reason in LogLoss)


async def reading_again(bench: Bench) -> "asyncio.Task[None]":
    """Another process, after the first one's end, with the same broker."""
    bench.reader = bench.new_reader()
    return await bench.start()


@virtual_time
@pytest.mark.parametrize(("left", "grown"), [(5, 0), (5, 3), (5, 30), (0, 0), (0, 4), (0, 30)])
async def test_a_tail_that_is_lost_while_the_process_is_down_is_noticed_and_what_is_left_is_processed(
    left: int, grown: int
) -> None:
    """The commit's own position is low, since one event waits, and its fingerprint is high."""
    bench, before = Bench(), resets()
    bench.hold(10)
    task = await bench.start()
    await asyncio.sleep(3)
    await bench.stop(task)
    assert bench.group.commits[ONE][0] == 0
    bench.broker.truncate(ONE, left)
    bench.hold(grown)
    bench.held.clear()
    task = await reading_again(bench)
    await asyncio.sleep(20)

    assert bench.sent == list(range(left + grown))
    assert resets() == before + 1
    await bench.stop(task)
    assert bench.group.covers(ONE)[0] == left + grown


@virtual_time
@pytest.mark.parametrize("running", [False, True])
@pytest.mark.parametrize("grown", [4, 10, 20])
async def test_a_log_that_is_lost_before_anything_of_it_was_read_is_read_from_its_start(
    grown: int, running: bool
) -> None:
    """No record can be named then as the log's fingerprint: where it began is known."""
    bench, before = Bench(), resets()
    bench.hold(10)
    bench.broker.remove_before(ONE, 10)
    bench.held.clear()
    task = await bench.start()
    await asyncio.sleep(3)
    assert bench.group.commits[ONE] == (10, "f2:start,@10")
    if not running:
        await bench.stop(task)
    bench.broker.truncate(ONE, 0)
    bench.hold(grown)
    if running:
        bench.reader.heard(bench.now())
    else:
        task = await reading_again(bench)
    await asyncio.sleep(20)

    assert bench.sent == list(range(grown))
    assert resets() == before + 1
    await bench.stop(task)


@virtual_time
async def test_a_log_of_which_nothing_was_read_and_that_is_still_the_same_is_continued() -> None:
    bench, before = Bench(), resets()
    bench.hold(10)
    bench.broker.remove_before(ONE, 10)
    bench.held.clear()
    task = await bench.start()
    await asyncio.sleep(3)
    await bench.stop(task)
    bench.hold(5)
    bench.broker.remove_before(ONE, 12)
    task = await reading_again(bench)
    await asyncio.sleep(20)

    assert bench.sent == [12, 13, 14]
    assert resets() == before
    await bench.stop(task)


@virtual_time
async def test_a_leader_that_knows_too_little_of_the_end_for_a_moment_repeats_nothing() -> None:
    """A new leader answers with the end that it has confirmed, which may lie below the position."""
    bench, before = Bench(), resets()
    bench.hold(10)
    bench.held.clear()
    task = await bench.start()
    await asyncio.sleep(3)
    await bench.stop(task)
    assert bench.sent == list(range(10))
    bench.broker.ends[ONE] -= 3
    bench.silent = {ZERO, ONE}
    task = await reading_again(bench)
    bench.broker.ends[ONE] += 3
    bench.silent.clear()
    bench.group.wake()
    bench.hold(2)
    await asyncio.sleep(5)

    assert bench.sent == list(range(12))
    assert resets() == before
    await bench.stop(task)


@virtual_time
async def test_a_leader_that_does_not_answer_for_a_while_repeats_nothing() -> None:
    bench, before = Bench(), resets()
    bench.hold(10)
    bench.held.clear()
    task = await bench.start()
    await asyncio.sleep(3)
    await bench.stop(task)
    bench.reader = bench.new_reader()
    bench.silent = {ZERO, ONE}
    task = await bench.start()
    await asyncio.sleep(20)
    bench.silent.clear()
    bench.hold(2)
    bench.reader.heard(bench.now())
    await asyncio.sleep(20)

    assert bench.sent == list(range(12))
    assert resets() == before
    await bench.stop(task)


@virtual_time
@pytest.mark.usefixtures("_with_logs")
@pytest.mark.parametrize("running", [False, True])
@pytest.mark.parametrize(("silent", "other"), [(ZERO, ONE), (ONE, ZERO)])
async def test_a_partition_whose_log_cannot_be_checked_holds_up_no_other_one(
    silent: TopicPartition, other: TopicPartition, *, running: bool
) -> None:
    """Its leader is away, or the record that its commit names can't be read."""
    bench, before = Bench(), resets()
    bench.held.clear()
    bench.hold(3, silent)
    bench.hold(5, other)
    task = await bench.start()
    await asyncio.sleep(3)
    bench.sent.clear()
    bench.silent = {silent}
    if running:
        bench.broker.sources[silent] += 1
    else:
        await bench.stop(task)
        task = await reading_again(bench)
    bench.hold(2, silent)
    bench.hold(2, other)
    with capture_logs() as lines:
        await asyncio.sleep(5)
    assert bench.sent == [5, 6]
    waits = [line["partition"] for line in lines if line["event"].startswith("a partition of held events waits")]
    assert waits == [f"{TOPIC}/{silent.partition}"]
    at_once = 0
    for count in range(1, 31):
        bench.reader.heard(bench.now())
        bench.hold(1, other)
        await asyncio.sleep(1)
        at_once += len(bench.sent) == count + 2
    assert at_once > 20, "its check is repeated seldom, since it costs the others seconds"
    assert bench.sent == list(range(5, 37))
    bench.silent.clear()
    await asyncio.sleep(held_events.CHECK_AGAIN_S + 3)
    assert bench.sent == [*range(5, 37), 3, 4]
    assert resets() == before
    await bench.stop(task)


@virtual_time
@pytest.mark.parametrize("committed_before", [False, True])
async def test_what_was_finished_is_not_processed_again_though_its_commit_was_refused(
    *, committed_before: bool
) -> None:
    bench = Bench()
    bench.hold(4)
    bench.held.clear()
    task = await bench.start()
    if committed_before:
        await asyncio.sleep(3)
        assert bench.group.commits[ONE][0] == 4
    bench.hold(6)
    bench.group.generation += 1  # the group has moved on: no commit goes through
    await asyncio.sleep(0.5)
    assert bench.sent == list(range(10))
    bench.group.rebalance_soon()
    await bench.group.settled()
    bench.reader.heard(bench.now())
    await asyncio.sleep(5)

    assert bench.sent == list(range(10))
    assert bench.group.covers(ONE)[0] == 10
    await bench.stop(task)


@virtual_time
async def test_a_position_that_was_set_back_by_hand_is_replayed() -> None:
    bench = Bench()
    bench.hold(10)
    bench.held.clear()
    task = await bench.start()
    await asyncio.sleep(3)
    bench.group.commits[ONE] = (4, "")
    bench.group.generation += 1
    bench.group.rebalance_soon()
    await bench.group.settled()
    bench.reader.heard(bench.now())
    await asyncio.sleep(5)

    assert bench.sent == [*range(10), *range(4, 10)]
    await bench.stop(task)


@virtual_time
async def test_a_position_that_is_out_of_range_concerns_its_partition_only() -> None:
    bench = Bench()
    other = TopicPartition(TOPIC, 0)
    bench.hold(10)
    bench.hold(5, other)
    task = await bench.start()
    await asyncio.sleep(3)
    bench.broker.remove_before(ONE, 8)
    bench.members[0].positions[ONE] = 2
    state = bench.reader._assigned[other].state
    bench.held.clear()
    await asyncio.sleep(10)

    assert bench.reader._assigned[other].state is state
    assert sorted(bench.sent) == [0, 1, 2, 3, 4, 8, 9]
    await bench.stop(task)


@virtual_time
@pytest.mark.parametrize("moved", [False, True])
async def test_retention_repeats_no_event_that_is_in_flight_and_passes_over_what_is_gone(*, moved: bool) -> None:
    """Also if the partition has another leader at the same time."""
    bench, before = Bench(), resets()
    lost = metrics.RECORDS_REMOVED_UNREAD.labels(TOPIC)._value.get()
    bench.hold(10)
    bench.hold(5, tenant=OTHER)
    bench.wait_s = 8.0
    task = await bench.start()
    assert bench.reader._processor.in_flight == 5
    bench.broker.remove_before(ONE, 4)
    bench.broker.sources[ONE] += moved
    with capture_logs() as lines:
        bench.release()
        for _ in range(8):
            bench.reader.heard(bench.now())
            await asyncio.sleep(5)

    assert sorted(bench.sent) == list(range(4, 15))
    assert bench.reasons() == {KafkaReason.RECORDS_EXPIRED}
    assert metrics.RECORDS_REMOVED_UNREAD.labels(TOPIC)._value.get() == lost + 4
    assert not [line for line in lines if "is gone" in line["event"]]
    assert resets() == before
    assert bench.group.covers(ONE)[0] >= 15
    assert (state := bench.reader._assigned[ONE].state) is not None
    assert state.events == 0
    await bench.stop(task)


@virtual_time
async def test_an_event_in_flight_that_has_to_wait_again_and_that_retention_has_removed_is_written_again() -> None:
    bench = Bench()
    bench.hold(5)
    bench.held.clear()
    bench.wait_s = 8.0
    bench.waits.append(StillHeld("its lane waits", 2.0))
    task = await bench.start()
    bench.hold(10)
    bench.broker.remove_before(ONE, 10)
    for _ in range(16):
        bench.reader.heard(bench.now())
        await asyncio.sleep(5)

    assert len([offset for offset in bench.sent if offset < 5]) == 4
    assert sorted(bench.sent)[4:] == list(range(10, 16))
    assert bench.group.covers(ONE)[0] == 16
    await bench.stop(task)


@virtual_time
async def test_retention_past_everything_in_flight_is_noted_and_reading_goes_on() -> None:
    bench, before = Bench(), resets()
    bench.hold(5)
    bench.held.clear()
    bench.wait_s = 8.0
    task = await bench.start()
    bench.hold(10)
    bench.broker.remove_before(ONE, 10)
    with capture_logs() as lines:
        for _ in range(6):
            bench.reader.heard(bench.now())
            await asyncio.sleep(5)

    assert sorted(bench.sent) == [0, 1, 2, 3, 4, *range(10, 15)]
    assert not [line for line in lines if "is gone" in line["event"]]
    assert bench.reasons() == {KafkaReason.RECORDS_EXPIRED}
    assert resets() == before
    assert bench.group.covers(ONE)[0] == 15
    await bench.stop(task)


@virtual_time
@pytest.mark.parametrize("grown", [3, 10, 30])
async def test_a_log_that_is_lost_while_it_is_read_is_read_from_its_start(grown: int) -> None:
    """Also if it has grown past the old position before anything was fetched of it."""
    bench, before = Bench(), resets()
    bench.hold(10)
    bench.held.clear()
    task = await bench.start()
    await asyncio.sleep(3)
    bench.broker.truncate(ONE, 0)
    bench.hold(grown)
    bench.reader.heard(bench.now())
    await asyncio.sleep(10)

    assert bench.sent == [*range(10), *range(grown)]
    assert resets() == before + 1
    await bench.stop(task)


@virtual_time
async def test_another_connection_or_leader_alone_repeats_nothing_and_cuts_nothing_off() -> None:
    bench, before = Bench(), resets()
    bench.wait_s = 8.0
    bench.held.clear()
    task = await bench.start()
    for _ in range(3):
        bench.hold(5)
        await asyncio.sleep(1)
        bench.broker.sources[ONE] += 1
        bench.reader.heard(bench.now())
        await asyncio.sleep(1)
    bench.reader.heard(bench.now())
    await asyncio.sleep(10)

    assert sorted(bench.sent) == list(range(15))
    assert resets() == before
    await bench.stop(task)


@virtual_time
async def test_a_change_of_leader_while_fetched_records_wait_for_room_repeats_nothing() -> None:
    bench = Bench()
    bench.wait_s = 3.0
    bench.held.clear()
    bench.hold(ROOM + 60)
    task = await bench.start()
    for _ in range(6):
        bench.broker.sources[ONE] += 1
        bench.reader.heard(bench.now())
        await asyncio.sleep(2)

    assert sorted(bench.sent) == list(range(ROOM + 60))
    await bench.stop(task)


@virtual_time
async def test_retention_past_everything_that_was_read_does_not_count_as_another_log() -> None:
    bench, before = Bench(), resets()
    bench.hold(10)
    bench.held.clear()
    task = await bench.start()
    await asyncio.sleep(3)
    await bench.stop(task)
    bench.hold(5)
    bench.broker.remove_before(ONE, 12)
    task = await reading_again(bench)
    await asyncio.sleep(5)

    assert bench.sent == [*range(10), 12, 13, 14]
    assert resets() == before
    await bench.stop(task)


@virtual_time
async def test_partitions_that_an_assignment_no_longer_names_are_dropped() -> None:
    """A partition whose position was looked up again meanwhile was not revoked."""
    bench = Bench()
    bench.wait_s = 1000.0
    bench.hold(3)
    bench.held.clear()
    task = await bench.start()
    await asyncio.sleep(1)
    assert bench.reader._assigned[ONE].tasks
    await bench.reader.assigned([TopicPartition(TOPIC, 0)])

    assert set(bench.reader._assigned) == {TopicPartition(TOPIC, 0)}
    assert bench.reader._processor.in_flight == 0
    await bench.stop(task)


@virtual_time
async def test_the_bytes_of_held_events_that_are_processed_at_once_are_bounded() -> None:
    """Of all tenants together; a record of any size is let in while there is room."""
    bench = Bench()
    bench.settings = bench.settings.model_copy(update={"max_unfinished_bytes": held_processing.BYTES_SHARE * 5_000})
    bench.reader = bench.new_reader()
    bench.wait_s = 1.0
    for tenant in (TENANT, OTHER):
        for number in range(20):
            state = RetryState(Origin("t", 0, number), 1.8e9, parks=1, reason="paused")
            headers = [*state.headers(), *tenant_headers(tenant), ("large", b"x" * 2_000)]
            bench.broker.append(TOPIC, bytes([ONE.partition]), b"value", headers)
    bench.held.clear()
    most = 0
    task = await bench.start()
    for _ in range(400):
        bench.reader.heard(bench.now())
        most = max(most, bench.reader._processor.in_flight)
        await asyncio.sleep(0.1)
    assert sorted(bench.sent) == list(range(40))
    assert most == 2, "each takes over 3 kB with its headers"
    assert bench.reader._processor.bytes_in_flight == 0
    await bench.stop(task)


# Snapshots


@virtual_time
async def test_a_restart_reads_no_event_again_that_still_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also the second one, which has written nothing of what it found."""
    monkeypatch.setattr(held_commits, "DIRECTORY_EVERY", 20)
    bench = Bench()
    bench.hold(30)
    bench.hold(3, tenant=OTHER)
    bench.held.add(OTHER)
    task = await bench.start()
    await asyncio.sleep(3)
    for _ in range(2):
        await bench.stop(task)
        position, metadata = bench.group.commits[ONE]
        assert position == 0
        assert SnapshotOffsets.of(metadata).directory == 33
        task = await reading_again(bench)
        await asyncio.sleep(3)
        state = bench.reader._assigned[ONE].state
        assert state is not None
        assert (state.cursor, state.events) == (34, 33)
        assert bench.snapshots == 1
    bench.held.remove(OTHER)
    bench.reader.heard(bench.now())
    await asyncio.sleep(2 * held_events.REVIEW_S)
    assert bench.sent == [30, 31, 32]
    bench.reader.heard(bench.now())
    bench.release()
    await asyncio.sleep(5)

    assert sorted(bench.sent) == list(range(33))
    assert bench.group.covers(ONE)[0] >= 33
    await bench.stop(task)


@virtual_time
async def test_a_restart_sends_released_events_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(held_commits, "DIRECTORY_EVERY", 10)
    bench = Bench()
    bench.hold(10)
    task = await bench.start()
    await asyncio.sleep(3)
    await bench.stop(task)
    bench.held.clear()
    task = await reading_again(bench)
    await asyncio.sleep(2)

    assert bench.sent == list(range(10))
    await bench.stop(task)


@virtual_time
async def test_without_its_directory_a_partition_is_read_from_the_position(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(held_commits, "DIRECTORY_EVERY", 10)
    bench = Bench()
    bench.hold(10)
    task = await bench.start()
    await asyncio.sleep(3)
    await bench.stop(task)
    records = bench.broker.partitions[ONE]
    records[-1] = replace(records[-1], headers=())
    bench.held.clear()
    task = await reading_again(bench)
    await asyncio.sleep(5)

    assert [offset for offset in bench.sent if offset < 10] == list(range(10))
    await bench.stop(task)


@virtual_time
@pytest.mark.parametrize("error", [NotWritten("no"), RecordTooLarge("no"), KeyError("an odd answer")])
async def test_a_snapshot_that_is_refused_once_holds_up_no_commit(error: Exception) -> None:
    bench = Bench()
    bench.hold(1)
    bench.hold(4, tenant=OTHER)
    bench.refusals.append(error)
    task = await bench.start()
    await asyncio.sleep(5)

    position, metadata = bench.group.commits[ONE]
    assert bench.sent == [1, 2, 3, 4]
    assert position == 0
    assert SnapshotOffsets.of(metadata).progress is None
    await asyncio.sleep(2 * held_commits.SNAPSHOT_AGAIN_S)
    _, metadata = bench.group.commits[ONE]
    assert SnapshotOffsets.of(metadata).progress == (None if isinstance(error, RecordTooLarge) else 5)
    bench.reader.heard(bench.now())
    bench.release()
    await asyncio.sleep(5)
    assert bench.group.covers(ONE)[0] >= 5
    await bench.stop(task)


@virtual_time
@pytest.mark.parametrize("write_s", [0.0, 60.0])
async def test_a_partition_whose_snapshots_cannot_be_written_holds_up_no_commit(write_s: float) -> None:
    """It has no leader perhaps. Its own commits name the newest snapshot that was written: that stays true."""
    bench = Bench()
    bench.hold(1)
    bench.hold(4, tenant=OTHER)
    task = await bench.start()
    await asyncio.sleep(5)
    assert SnapshotOffsets.of(bench.group.commits[ONE][1]).progress == 5
    bench.refusals, bench.write_s = [NotWritten("no leader") for _ in range(100)], write_s
    bench.hold(3, tenant=OTHER)
    for number in range(1, 13):
        bench.hold(5, ZERO, OTHER)
        await asyncio.sleep(5)
        bench.reader.heard(bench.now())
        assert bench.group.commits[ZERO][0] == 5 * number
    assert SnapshotOffsets.of(bench.group.commits[ONE][1]).progress == 5
    await bench.stop(task)
    task = await reading_again(bench)
    bench.release()
    await asyncio.sleep(5)
    repeated = [6, 7, 8]
    assert sorted(bench.sent) == sorted([*range(60), 0, 1, 2, 3, 4, *repeated, *repeated])
    await bench.stop(task)


@virtual_time
async def test_an_orderly_stop_commits_though_a_snapshot_cannot_be_written() -> None:
    bench = Bench()
    bench.hold(1)
    bench.hold(4, tenant=OTHER)
    bench.hold(5, ZERO, OTHER)
    bench.refusals = [NotWritten("no leader") for _ in range(100)]
    task = await bench.start()
    await asyncio.sleep(0.5)
    await bench.stop(task)
    assert bench.group.commits[ZERO][0] == 5


@virtual_time
@pytest.mark.parametrize("limit", [0, 10, 30])
async def test_commits_go_through_though_the_broker_refuses_long_metadata(limit: int) -> None:
    bench = Bench()
    bench.hold(1)
    bench.hold(4, tenant=OTHER)
    task = await bench.start()
    commit = bench.members[0].commit

    async def strict(offsets: dict[TopicPartition, tuple[int, str]]) -> None:
        if any(len(metadata) > limit for _, metadata in offsets.values()):
            raise OffsetMetadataTooLargeError
        await commit(offsets)

    bench.members[0].commit = strict  # type: ignore[method-assign]
    bench.hold(3, tenant=OTHER)
    await asyncio.sleep(5)
    bench.release()
    await asyncio.sleep(5)
    assert bench.group.commits[ONE][0] >= 8
    assert len(bench.group.commits[ONE][1]) <= limit
    await bench.stop(task)


@virtual_time
async def test_a_commit_before_the_position_is_known_leaves_the_first_one_to_come() -> None:
    bench = Bench()
    one = held_commits.HeldAssignment(ONE, AssignmentEpoch())
    committer = held_commits.HeldCommitter(cast(HeldTopic, bench), bench.settings, "g.held", bench.problems)
    assert await committer.commit(None, [one])
    assert one.is_dirty


@virtual_time
async def test_commits_that_are_refused_are_a_problem_until_one_succeeds() -> None:
    bench = Bench()
    task = await bench.start()
    commit = bench.members[0].commit

    async def refused(_: Any) -> None:
        raise GroupAuthorizationFailedError("g.held")

    bench.members[0].commit = refused  # type: ignore[method-assign]
    bench.hold(3)
    bench.release()
    await asyncio.sleep(30)
    (problem,) = [one for one in bench.problems.current if one.reason == KafkaReason.COMMIT_REFUSED]
    assert not problem.stops_reading
    assert "offsets of group g.held can't be committed" in problem.detail
    bench.members[0].commit = commit  # type: ignore[method-assign]
    await asyncio.sleep(30)
    assert not bench.problems.reports(KafkaReason.COMMIT_REFUSED)
    await bench.stop(task)
