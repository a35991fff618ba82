"""Reads topics, processes each record to its outcome, and commits only what is finished.

The records of a partition carry its `AssignmentEpoch`, which ends with the assignment: nothing is committed for a
partition that isn't ours, and nothing is sent once the group may have given it to another member. `log_check` finds the
offset to read a partition from, `feeding` decides when a record is begun, `processing` brings it to its outcome, and
`committing` decides when to commit.

Order of stopping: the epochs end; records of which nothing was sent yet are cancelled; the others get time to finish;
the positions are committed; the member leaves the group.
"""

import asyncio
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from functools import partial
from typing import Final

import structlog
from aiokafka import TopicPartition
from aiokafka.errors import NoOffsetForPartitionError, OffsetOutOfRangeError

from dispatcher.config.kafka_settings import KafkaSettings
from dispatcher.contract.records import LOG_APPEND_TIME, AssignmentEpoch, Lease, ProcessRecord, Record
from dispatcher.kafka.commit_metadata import FinishedHere
from dispatcher.kafka.committing import Committer
from dispatcher.kafka.connection import stopped
from dispatcher.kafka.feeding import DueIn, Feeder
from dispatcher.kafka.first_start import FindEarlierStart, GonePositions
from dispatcher.kafka.group_session import GroupSession
from dispatcher.kafka.log_check import LogChecker
from dispatcher.kafka.log_reports import LogLoss, report_cut_off, report_kept
from dispatcher.kafka.membership import Assignments, GroupClient, JoinGroup, join
from dispatcher.kafka.open_transactions import note_open_transaction
from dispatcher.kafka.partition import Partition
from dispatcher.kafka.problems import KafkaProblems
from dispatcher.kafka.processing import FastPath, RecordProcessor
from dispatcher.kafka.read_ahead import ReadAheadLimit
from dispatcher.tasks import set_within, together_until, with_end
from dispatcher.telemetry import metrics
from dispatcher.telemetry.event_log import EventLog

log = structlog.get_logger(__name__)

REVOKE_WAIT_S: Final = 5.0
"""At a rebalance, time for requests under way: the whole group waits for it."""
BATCH: Final = 500
"""Records of one poll, at most."""


class Consumer:
    """Reads some topics as a member of a consumer group."""

    def __init__(
        self,
        settings: KafkaSettings,
        topics: Sequence[str],
        group_id: str,
        process: ProcessRecord,
        read_ahead: ReadAheadLimit,
        drain_timeout_s: float,
        due_in_s: DueIn | None = None,
        fast_path: FastPath | None = None,
        connect: JoinGroup | None = None,
        clock: Callable[[], float] = time.time,
        in_flight: Callable[[], int] = int,
        on_fenced: Callable[[], None] | None = None,
        lease: Lease | None = None,
        problems: KafkaProblems | None = None,
        event_log: EventLog | None = None,
        on_append: Callable[[int], None] | None = None,
        find_earlier_start: FindEarlierStart | None = None,
    ) -> None:
        """Prepares a consumer without connecting; `run` joins the group.

        Args:
            process: brings a record to its outcome.
            read_ahead: counts the unfinished records of the process, and limits them.
            drain_timeout_s: time for requests under way after `stop`.
            due_in_s: returns the seconds that a record has to wait; None if records never wait.
            fast_path: begins records that need no task; None if every record gets one.
            in_flight: returns the number of POSTs in flight in the process; by default none are.
            on_fenced: called when another process has taken this member's place; the consumer stops by itself.
            connect: replaces aiokafka's consumer, for tests.
            clock: unix time.
            lease: replaces the lease on the monotonic clock, for tests.
            problems: collects Kafka problems.
            event_log: limits the lines about records that are processed again.
            on_append: called with times (milliseconds since 1970) at which a broker appended records that were read.
            find_earlier_start: returns what shows that the group was started before, though it has no positions.
        """
        self.session = GroupSession(
            settings, group_id, problems, lease=lease, on_fenced=on_fenced, on_renewed=self._on_renewed,
            event_log=event_log,
        )  # fmt: skip
        problems = self.session.problems
        self._topics = tuple(topics)
        self.group_id = group_id
        self._drain_timeout_s = drain_timeout_s
        self._waits = due_in_s is not None
        self._clock = clock
        self._on_append = on_append
        self._client: GroupClient | None = None
        self._connect = connect or partial(join, settings, self._topics, group_id, problems=problems)
        is_latest = settings.auto_offset_reset == "latest" and not self._waits
        gone_positions = None if find_earlier_start is None else GonePositions(group_id, find_earlier_start)
        self._checker = LogChecker(self, group_id, problems, self._topics if is_latest else (), gone_positions)
        self._committer = Committer(group_id, settings, in_flight, problems)
        self._processor = RecordProcessor(
            process, read_ahead, fast_path, self.session, self._committer.on_finished, self._on_record_ended
        )
        self._feeder = Feeder(
            read_ahead, settings.partition_window, self._processor.begin, self.session.lease, due_in_s, clock
        )
        self._partitions: dict[TopicPartition, Partition] = {}
        self._finished_here: dict[TopicPartition, FinishedHere] = {}
        """Finished offsets of revoked partitions, which may come back before another member commits."""
        self._orphans: list[Partition] = []
        """Records of logs that are gone. They outlive the assignment: no other member can read them."""
        self._ended_late = asyncio.Event()
        """Set when a record ends after its partition's epoch, or in an orphan."""
        _show_at_zero(self._topics)
        self._running_loop: asyncio.AbstractEventLoop | None = None

    def __repr__(self) -> str:
        return f"<Consumer {self.group_id} {len(self._partitions)} partitions, {self.unfinished} unfinished>"

    @property
    def _loop(self) -> asyncio.AbstractEventLoop:
        """The event loop, kept because looking it up takes a system call each time (getpid, until Python 3.12)."""
        if self._running_loop is None:
            self._running_loop = asyncio.get_running_loop()
        return self._running_loop

    @property
    def unfinished(self) -> int:
        """Number of records begun and not finished."""
        return sum(len(partition.in_flight) for partition in (*self._partitions.values(), *self._orphans))

    async def run(self) -> None:
        """Reads until `stop`, then drains, commits and leaves the group.

        Waits for a broker that is away, at the start or later. If cancelled, it cancels everything at once: nothing is
        lost, since nothing unfinished is committed.
        """
        assignments = Assignments(self)
        client = self._client = await self.session.connect(lambda: self._connect(assignments))
        if client is None:
            return
        self._checker.start_at_beginning(assignments.missing_topics)
        await with_end(self._read_until_stopped(client), partial(self._end, client))

    async def _read_until_stopped(self, client: GroupClient) -> None:
        work = {
            "poll": self.session.poll(partial(self._poll, client)),
            "commit": self._committer.run(client, self.owned),
            "positions": self._checker.run(client),
            "watch": self.session.watch(client, self._partitions.keys, self._on_ends),
        }
        await together_until(self.session.stopping, {f"{name} {self.group_id}": one for name, one in work.items()})
        await self._drain(client)

    def stop(self) -> None:
        """Starts the drain; `run` returns when that is done."""
        self.session.stopping.set()

    # Membership: callbacks of aiokafka and `log_check`

    async def assigned(self, tps: Iterable[TopicPartition]) -> None:
        """Adds partitions that the group assigned to this member. `log_check` finds their positions."""
        for tp in tps:
            partition = Partition(
                tp, AssignmentEpoch(lease=self.session.lease), finished_here=self._finished_here.pop(tp, None)
            )
            self._partitions.setdefault(tp, partition)
        log.info("partitions assigned", group=self.group_id, partitions=[str(one) for one in self.owned()])
        self.session.on_assigned()
        self._checker.request()

    async def revoked(self, tps: Iterable[TopicPartition]) -> None:
        """Releases partitions: waits briefly for what is in flight, commits, cancels the rest."""
        partitions = [self._partitions[tp] for tp in tps if tp in self._partitions]
        if partitions:
            log.info("partitions revoked", group=self.group_id, partitions=[str(one) for one in partitions])
        for partition in partitions:
            if self._client is not None and self._client.was_deleted(partition.tp.topic):
                self._keep(partition)
        self._forget([one for one in partitions if one.is_orphan])
        partitions = [one for one in partitions if not one.is_orphan]
        try:
            await self._finish_under_way(partitions, REVOKE_WAIT_S)
            if self._client is not None:
                await self._committer.commit(self._client, partitions)
        finally:
            self._forget(partitions)

    def _forget(self, partitions: Iterable[Partition]) -> None:
        """Ends the assignment of these partitions, and remembers which of their records are finished."""
        self._cancel(one for one in partitions if not one.is_orphan)
        for partition in partitions:
            self._partitions.pop(partition.tp, None)
            if (finished := partition.what_is_finished()) is not None:
                self._finished_here[partition.tp] = finished
            partition.forget()

    def _keep(self, partition: Partition) -> None:
        """Keeps the unfinished records of a log that is gone: they are finished here, as no other member has them."""
        partition.is_orphan = True
        if records := partition.unfinished:
            self._orphans.append(partition)
            report_kept(self.group_id, partition.tp, records)

    def heard(self, at: float) -> None:
        """Extends the lease: the group answered a heartbeat that was sent at this time of the lease's clock."""
        self.session.heard(at)

    def _on_renewed(self) -> None:
        self._feeder.schedule()

    def owned(self) -> Collection[Partition]:
        """Returns the partitions assigned to this member."""
        return self._partitions.values()

    def on_readable(self) -> None:
        """Wakes the feeder: a partition can be read. Its position is committed if it is new."""
        self._committer.request()
        self._feeder.wake()

    def on_log_lost(self, partition: Partition) -> Partition:
        """Replaces a partition whose log is gone by one without state. The old one's records are still finished."""
        successor = self._partitions[partition.tp] = Partition(partition.tp, partition.epoch)
        partition.epoch = AssignmentEpoch(lease=self.session.lease)
        for item in partition.in_flight.values():
            item.epoch = partition.epoch
        self._keep(partition)
        return successor

    # Reading

    async def _poll(self, client: GroupClient) -> None:
        """Fetches for the partitions without buffered records. Returns soon, so that no partition waits for another."""
        try:
            await self._poll_once(client)
        except OffsetOutOfRangeError as error:
            self._suspect(error.args[0])
        except NoOffsetForPartitionError as error:
            self._suspect(error.args)

    async def _poll_once(self, client: GroupClient) -> None:
        self.session.on_poll(self._loop.time())
        metrics.LAST_POLL.set(time.time())
        wanted = [tp for tp, one in self._partitions.items() if one.is_readable and not one.buffer]
        if not wanted:
            client.raise_coordination_error()
            await self._feeder.wait(0.25)
            return
        blocked = len(wanted) < len(self._partitions)
        fetched = await client.getmany(*wanted, timeout_ms=10 if blocked else 250, max_records=BATCH)
        for tp in wanted:
            if (partition := self._partitions.get(tp)) is not None:
                self._take(client, partition, fetched.get(tp, []))
        self._feeder.feed()

    def _take(self, client: GroupClient, partition: Partition, records: "list[Record]") -> None:
        """Buffers the fetched records, unless their log may be another than the one that was read before."""
        if partition.probe is not None:
            self._checker.examine(client, partition, records, client.position_of(partition.tp))
        elif not partition.is_readable:
            return
        elif client.source_of(partition.tp) != partition.source or (
            records and records[0].offset < partition.next_offset
        ):
            self._checker.suspect(partition)  # the records are dropped, and fetched again once the log is checked
        elif records:
            if self._on_append is not None and records[-1].timestamp_type == LOG_APPEND_TIME:
                self._on_append(records[-1].timestamp)
            partition.last_read = records[-1]
            partition.next_offset = records[-1].offset + 1
            partition.buffer.extend(records)
            self._feeder.queue(partition)
        elif partition.note_reached(client.position_of(partition.tp)):
            self._committer.request()

    def _suspect(self, tps: Iterable[TopicPartition]) -> None:
        """Has the logs of these partitions checked: the broker has refused their positions."""
        for tp in tps:
            if tp in self._partitions:
                self._checker.suspect(self._partitions[tp], is_out_of_range=True)

    def _on_record_ended(self, partition: Partition) -> None:
        self._feeder.on_room()
        if partition.is_orphan or not partition.epoch.active:
            self._ended_late.set()
            if partition in self._orphans and not partition.unfinished:
                self._orphans.remove(partition)

    # Stopping

    async def _drain(self, client: GroupClient) -> None:
        partitions = list(self._partitions.values())
        under_way = await self._finish_under_way(partitions, self._drain_timeout_s, self._orphans)
        if self.session.fenced is None:
            await self._committer.commit(client, partitions)
        for orphan in self._orphans:
            if lost := orphan.unfinished:
                report_cut_off(self.group_id, orphan.tp, lost)
        unfinished = sum(one.tracker.unfinished for one in partitions)
        log.info("drained", group=self.group_id, cut_off=under_way, left_for_the_next=unfinished)

    async def _finish_under_way(
        self, partitions: Sequence[Partition], most_s: float, orphans: Sequence[Partition] = ()
    ) -> int:
        """Cancels records of which nothing was sent, and waits for the others. Returns how many are unfinished."""
        for partition in partitions:
            partition.end_epoch()
            for item in [item for item in partition.in_flight.values() if not item.started]:
                item.cancel()
        give_up_at = self._loop.time() + most_s
        while under_way := sum(len(one.in_flight) for one in partitions) + sum(one.unfinished for one in orphans):
            self._ended_late.clear()
            if not await set_within(self._ended_late, give_up_at - self._loop.time()):
                break
        return under_way

    def _cancel(self, partitions: Iterable[Partition]) -> None:
        for partition in partitions:
            partition.end_epoch()
            for item in list(partition.in_flight.values()):
                item.cancel()

    async def _end(self, client: GroupClient) -> None:
        """Cancels what is left, without waiting for it to finish, and leaves the group."""
        everything = (*self._partitions.values(), *self._orphans)
        self._cancel(everything)
        in_flight = [item for partition in everything for item in partition.in_flight.values()]
        tasks = [item.running for item in in_flight if item.running is not None]
        if tasks:
            await asyncio.wait(tasks, timeout=1)
        self._partitions.clear()
        self._client = None
        await stopped(client)

    # Watching

    def _on_ends(self, ends: dict[TopicPartition, int]) -> None:
        """Stores the partitions' ends, for the lag and to notice a log that was truncated."""
        for tp, end in ends.items():
            partition = self._partitions.get(tp)
            if partition is not None:
                if end < partition.end:
                    self._checker.suspect(partition)
                partition.end = end
                if self._client is not None:
                    note_open_transaction(self.session.problems, self._client, partition, self._loop.time())

    def observe(self) -> float | None:
        """Sets the gauges for a scrape.

        Returns the unix time of the oldest unfinished record; None if there is none, or if the consumer delays records.
        """
        for topic in self._topics:
            own = [one for one in self._partitions.values() if one.tp.topic == topic]
            metrics.ASSIGNED.labels(topic).set(len(own))
            metrics.PAUSED.labels(topic).set(sum(bool(one.buffer) for one in own))
        for partition in self._partitions.values():
            partition.observe()
        if self._waits:
            return None
        now = self._clock()
        return min((at for one in self._partitions.values() if (at := one.oldest(now)) is not None), default=None)


def _show_at_zero(topics: Sequence[str]) -> None:
    """Registers the counters of lost records, so that an alert sees the first one as a rise from 0."""
    for topic in topics:
        metrics.RECORDS_REMOVED_UNREAD.labels(topic)
        for reason in LogLoss:
            metrics.LOG_RESETS.labels(topic, reason.value)
