"""Reads held events: passes over those that still wait, and processes those whose tenant was released.

It is a member of a group of its own, `<group_id>.held`. `held_partition` knows which events are next. Reading events
that still wait is paced, so that a million held events cost the other tenants a few per cent while they are read, and
nothing afterwards. `GroupSession` gives it the same protections as the other consumers: it starts no request while the
group may have given its partitions to another member, and it reports its problems.
"""

import asyncio
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from typing import Final

import structlog
from aiokafka import TopicPartition
from aiokafka.errors import IllegalStateError, OffsetOutOfRangeError

from dispatcher.config.kafka_settings import KafkaSettings
from dispatcher.contract.records import AssignmentEpoch, Lease, ProcessRecord
from dispatcher.contract.tenant import TenantKey
from dispatcher.kafka.connection import stopped
from dispatcher.kafka.group_coordinator import FencedMember
from dispatcher.kafka.group_session import FIRST_REPEAT_S, GroupSession
from dispatcher.kafka.groups import held_group
from dispatcher.kafka.held_commits import HeldAssignment, HeldCommitter
from dispatcher.kafka.held_pace import ReadingPace
from dispatcher.kafka.held_partition import HeldPartition
from dispatcher.kafka.held_processing import HeldProcessor, IsHeld
from dispatcher.kafka.held_start import HeldStart, bounds_of, find_start, is_same_log
from dispatcher.kafka.held_topic import HeldTopic, waiting_event
from dispatcher.kafka.log_reports import report_cut_off, report_kept, report_removed
from dispatcher.kafka.membership import Assignments, GroupClient, JoinGroup, join
from dispatcher.kafka.problems import KafkaProblems, partition_name
from dispatcher.tasks import Backoff, together_until
from dispatcher.telemetry import metrics
from dispatcher.telemetry.event_log import EventLog

log = structlog.get_logger(__name__)

BATCH: Final = 200
"""Records of one fetch, at most."""
REVIEW_S: Final = 10.0
"""Every tenant's state is checked this often, in addition to changes of the configuration."""
COMMIT_S: Final = 1.0
"""Time between two commits. After a failed one it doubles, up to `LONGEST_REPEAT_S`."""
LEAVE_S: Final = 5.0
"""At a rebalance, time for requests under way."""
LONGEST_REPEAT_S: Final = 30.0
CHECK_AGAIN_S: Final = 15.0
"""Time after which an unanswered check of a partition is repeated."""
LEAVE_COMMIT_S: Final = 10.0
"""Deadline of the last commit, with its snapshots."""


class HeldEvents:
    """Consumes the topic of held events: `run` reads until `stop`. `notice` makes it check every tenant again."""

    def __init__(
        self,
        settings: KafkaSettings,
        topic: HeldTopic,
        process: ProcessRecord,
        is_held: IsHeld,
        max_age_s: float,
        drain_timeout_s: float,
        clock: Callable[[], float] = time.time,
        problems: KafkaProblems | None = None,
        on_fenced: Callable[[], None] | None = None,
        lease: Lease | None = None,
        connect: JoinGroup | None = None,
        event_log: EventLog | None = None,
    ) -> None:
        """Prepares the consumer without connecting; `run` joins the group.

        Args:
            process: processes a record; raises StillHeld if its event has to wait again.
            is_held: returns whether a tenant's events have to wait.
            max_age_s: older events are processed whether or not their tenant is released, and become dead letters.
            drain_timeout_s: time for requests under way after `stop`.
            clock: unix time.
            problems, on_fenced, lease, connect, event_log: as for `Consumer`.
        """
        self.group_id = held_group(settings.group_id)
        self.session = GroupSession(
            settings, self.group_id, problems, lease=lease, on_fenced=on_fenced, event_log=event_log
        )
        self._connect = connect or partial(
            join, settings, (topic.topic,), self.group_id, problems=self.session.problems
        )
        self._topic = topic
        self._is_held = is_held
        self._max_age_s = max_age_s
        self._drain_timeout_s = drain_timeout_s
        self._clock = clock
        self._client: GroupClient | None = None
        self._assigned: dict[TopicPartition, HeldAssignment] = {}
        self._finished_here: dict[TopicPartition, HeldStart] = {}
        """What is finished of revoked partitions, which may come back before another member commits."""
        self._orphans: list[HeldAssignment] = []
        """Assignments whose log is gone, with events in flight."""
        self._check_again_at = 0.0
        """Loop time before which no unanswered check of a partition is repeated."""
        self._processor = HeldProcessor(process, topic, is_held, self.session, settings.max_unfinished_bytes)
        self._pace = ReadingPace()
        self._review_due = asyncio.Event()
        self._committer = HeldCommitter(topic, settings, self.group_id, self.session.problems)

    def __repr__(self) -> str:
        return f"<HeldEvents {self.group_id} {len(self._assigned)} partitions, {self._processor.in_flight} in flight>"

    def notice(self) -> None:
        """Checks every tenant again, because the configuration changed or a tenant was enabled by hand."""
        self._review_due.set()

    def stop(self) -> None:
        """Begins to drain; `run` returns when that is done."""
        self.session.stopping.set()

    async def run(self) -> None:
        """Reads until `stop`, then drains, commits and leaves the group. Waits for a broker that is away."""
        client = self._client = await self.session.connect(lambda: self._connect(Assignments(self)))
        if client is None:
            return
        try:
            work = {
                "read": self.session.poll(lambda: self._read(client)),
                "commit": self._commit_regularly(client),
                "review": self._review_regularly(),
                "watch": self.session.watch(client, self._assigned.keys),
            }
            await together_until(self.session.stopping, {f"{name} {self.group_id}": one for name, one in work.items()})
            await asyncio.gather(
                self._leave(list(self._assigned.values()), self._drain_timeout_s),
                self._finish_orphans(self._drain_timeout_s),
            )
        finally:
            await self._leave(list(self._assigned.values()), 0.0)
            await self._finish_orphans(0.0)
            self._client = None
            await stopped(client)

    # Assignments

    def heard(self, at: float) -> None:
        """Extends the lease: the group answered what was sent at this time of the lease's clock."""
        self.session.heard(at)

    async def assigned(self, tps: Iterable[TopicPartition]) -> None:
        """Replaces the set of this member's partitions; `_read` looks up their positions."""
        tps = set(tps)
        await self._leave([one for tp, one in self._assigned.items() if tp not in tps], 0.0)
        self._add(tps)
        self.session.on_assigned()

    def _add(self, tps: Iterable[TopicPartition]) -> None:
        for tp in tps:
            epoch = AssignmentEpoch(lease=self.session.lease)
            self._assigned.setdefault(tp, HeldAssignment(tp, epoch, start=self._finished_here.pop(tp, None)))

    async def revoked(self, tps: Iterable[TopicPartition]) -> None:
        """Releases partitions: waits briefly for requests in progress, commits, and cancels the rest."""
        leaving = [self._assigned[tp] for tp in tps if tp in self._assigned]
        if self._client is not None and self._client.was_deleted(self._topic.topic):
            self._keep(leaving)
        else:
            await self._leave(leaving, LEAVE_S)

    def _keep(self, leaving: Iterable[HeldAssignment]) -> None:
        """Ends assignments whose log is gone, but finishes their events in flight."""
        self._orphans = [one for one in self._orphans if one.tasks]
        for one in leaving:
            one.is_orphan = True
            one.buffer.clear()
            if one.tasks:
                self._orphans.append(one)
                report_kept(self.group_id, one.tp, len(one.tasks))
        self._forget(leaving)

    async def _leave(self, leaving: list[HeldAssignment], within_s: float) -> None:
        """Cancels records of which no request was sent, waits for the others, and commits unless `within_s` is 0."""
        for one in leaving:
            one.epoch.active = False
            one.buffer.clear()
            for task, attempt in list(one.tasks.items()):
                if not attempt.started:
                    task.cancel()
        tasks = [task for one in leaving for task in one.tasks]
        if tasks and within_s:
            await asyncio.wait(tasks, timeout=within_s)
        try:
            if within_s and self.session.fenced is None:
                async with asyncio.timeout(LEAVE_COMMIT_S):
                    await self._committer.commit(self._client, leaving)
        except TimeoutError:
            log.warning("held events may be repeated: the last commit took too long", group=self.group_id)
        finally:
            self._forget(leaving)
        if tasks:
            await asyncio.wait(tasks, timeout=1)

    async def _finish_orphans(self, within_s: float) -> None:
        """Waits for the events of logs that are gone, and counts those that are cut off."""
        tasks = [task for one in self._orphans for task in one.tasks]
        if tasks:
            await asyncio.wait(tasks, timeout=within_s)
        for one in self._orphans:
            if one.tasks:
                report_cut_off(self.group_id, one.tp, len(one.tasks))
            for task in list(one.tasks):
                task.cancel()
        self._orphans.clear()

    def _forget(self, leaving: Iterable[HeldAssignment]) -> None:
        """Ends these assignments, and keeps what is finished of them."""
        for one in leaving:
            for task in () if one.is_orphan else list(one.tasks):
                task.cancel()
            if self._assigned.get(one.tp) is one:
                del self._assigned[one.tp]
            if (finished := one.what_is_finished()) is not None:
                self._finished_here[one.tp] = finished

    async def _check_all(self, client: GroupClient) -> None:
        """Finds the positions that are unknown, and checks the logs that may have been replaced.

        A partition whose check isn't answered waits, and the others are read. Such a check takes seconds, in which
        nothing is read: it ends the round, and only one of them is repeated every 15 s.
        """
        loop = asyncio.get_running_loop()
        for one in sorted(self._assigned.values(), key=lambda one: one.unanswered_at):
            if one.unanswered_at and loop.time() < self._check_again_at:
                return
            try:
                if one.state is None:
                    await self._restore(client, one)
                elif one.source != client.source_of(one.tp):
                    await self._check_log(client, one, one.state)
                one.unanswered_at = 0.0
            except (FencedMember, IllegalStateError):
                raise
            except Exception as error:  # noqa: BLE001  (the session reports whatever it is)
                one.unanswered_at = loop.time()
                self._check_again_at = one.unanswered_at + CHECK_AGAIN_S
                log.warning("a partition of held events waits: its log can't be read", partition=partition_name(one.tp))
                self.session.report(error)
                return

    async def _restore(self, client: GroupClient, one: HeldAssignment) -> None:
        """Finds the position of a partition and begins to read there."""
        one.source = client.source_of(one.tp)
        start = await find_start(client, one.tp, one.start, self.session.problems, self.group_id)
        client.seek(one.tp, one.begin(start, self._max_age_s).cursor)
        self.notice()  # tenants that the directory names may be released

    async def _check_log(self, client: GroupClient, one: HeldAssignment, state: HeldPartition) -> None:
        """Checks whether the log was replaced. If it wasn't, passes over the records that retention has removed.

        Called after a change of the leader or of the connection to it, and if the log doesn't have the position.
        """
        source, was_out_of_range = client.source_of(one.tp), one.source is None
        bounds = await bounds_of(client, one.tp)
        is_cut_off = was_out_of_range and state.cursor > bounds.end
        if not is_cut_off and (
            one.start is None
            or await is_same_log(client, one.tp, replace(one.start, fingerprint=one.fingerprint), bounds)
        ):
            if (first := one.remove_before(bounds.start)) < bounds.start:
                report_removed(
                    self.session.problems, self.group_id, one.tp, first, bounds.start, bounds.start - first
                )  # fmt: skip
            client.seek(one.tp, one.buffer[-1].offset + 1 if one.buffer else state.cursor)
            one.source = source
        else:  # start again in the new log; events in flight from the old one are finished
            self._keep([one])
            self._add({one.tp} & client.assignment())

    # Reading

    async def _read(self, client: GroupClient) -> None:
        """Fetches once and handles the records. Then rests, the longer the more records were passed over."""
        self.session.on_poll(asyncio.get_running_loop().time())
        try:
            await self._fetch(client)
        except OffsetOutOfRangeError as error:  # the log is another one, or retention has passed the position
            for tp in error.args[0]:
                if tp in self._assigned:
                    log.info("a log of held events is checked: it lacks the position", partition=partition_name(tp))
                    self._assigned[tp].source = None
            await asyncio.sleep(FIRST_REPEAT_S)
        except IllegalStateError:
            log.info("partition was revoked while its position was looked up", group=self.group_id)
            await asyncio.sleep(FIRST_REPEAT_S)
        passed = sum([self._take(one) for one in self._assigned.values()])
        await asyncio.sleep(self._pace.rest_s(passed))

    async def _fetch(self, client: GroupClient) -> None:
        await self._check_all(client)
        now = asyncio.get_running_loop().time()
        for one in self._assigned.values():
            place = one.state.next_seek(now) if one.state is not None else None
            if place is not None:
                one.buffer.clear()
                client.seek(one.tp, place)
        assigned = client.assignment()
        wanted = [
            tp for tp, one in self._assigned.items()
            if one.state and not one.buffer and tp in assigned and one.source == client.source_of(tp)
        ]  # fmt: skip
        if not wanted:
            client.raise_coordination_error()
            await asyncio.sleep(0.02 if self._assigned else 0.25)
            return
        waits = any(one.buffer for one in self._assigned.values())
        fetched = await client.getmany(*wanted, timeout_ms=20 if waits else 250, max_records=BATCH)
        for tp, records in fetched.items():
            one_read = self._assigned.get(tp)
            if one_read is not None and one_read.source == client.source_of(tp):
                one_read.buffer.extend(records)  # else it is fetched again once the log is known to be the same

    def _take(self, one: HeldAssignment) -> int:
        """Starts the buffered records that may be processed, none once the lease is over. Returns how many wait on."""
        state, passed, wall, now = one.state, 0, self._clock(), asyncio.get_running_loop().time()
        seen: set[TenantKey] = set()
        while state is not None and one.buffer and one.epoch.active and not self.session.lease.is_over:
            record = one.buffer[0]
            if record.offset < state.cursor:  # the topic was truncated or recreated
                state = one.state = self._restarted_state(one, record.offset)
            event = waiting_event(record)
            if event is None:
                state.skip(record.offset)
            else:
                key, first_seen = event
                seen.add(key)
                is_taken = state.offer(record.offset, key, first_seen, wall, now, has_room=self._processor.has_room)
                if is_taken is None:
                    break
                if is_taken:
                    self._processor.start(one, state, key, record)
                passed += not is_taken
            one.buffer.popleft()
            one.is_dirty = True
            if one.last is None or record.offset > one.last.offset:
                one.last = record
        for key in seen:
            if state is not None:
                state.set_released(key, is_released=not self._is_held(key))
        return passed

    def _restarted_state(self, one: HeldAssignment, offset: int) -> HeldPartition:
        """Returns an empty state that begins at `offset`, for a log that was truncated or recreated."""
        log.warning(
            "the topic of held events went back: reading it again", partition=partition_name(one.tp), offset=offset
        )
        return HeldPartition(offset, {}, self._max_age_s)

    # Reviewing

    async def _review_regularly(self) -> None:
        while True:
            self._review_due.clear()
            wall = self._clock()
            for one in list(self._assigned.values()):
                state = one.state
                if state is None:
                    continue
                state.release_aged(wall)
                for number, key in enumerate(state.tenants):
                    state.set_released(key, is_released=not self._is_held(key))
                    if number % 1_000 == 999:
                        await asyncio.sleep(0)
            try:
                async with asyncio.timeout(REVIEW_S):
                    await self._review_due.wait()
            except TimeoutError:
                continue

    # Committing

    async def _commit_regularly(self, client: GroupClient) -> None:
        backoff = Backoff(COMMIT_S, LONGEST_REPEAT_S)
        while True:
            await backoff.wait()
            if await self._committer.commit(client, [one for one in self._assigned.values() if one.epoch.active]):
                backoff.reset()

    def observe(self) -> None:
        """Sets the gauges for a scrape."""
        metrics.HELD_EVENTS.set(sum(one.state.events for one in self._assigned.values() if one.state is not None))
