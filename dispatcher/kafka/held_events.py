"""Reads held events: passes over those that still wait, and has those processed whose tenant was released.

A member of a group of its own, `<group_id>.held`. Which events are next `held_partition` knows. Reading what still
waits is paced, so that a million held events cost the other tenants a few per cent while they are read, and nothing
afterwards.
"""

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import Final

import structlog
from aiokafka import TopicPartition
from aiokafka.errors import KafkaError, OffsetOutOfRangeError
from aiokafka.structs import ConsumerRecord

from dispatcher.config.settings import KafkaSettings
from dispatcher.contract.outcomes import Outcome
from dispatcher.contract.records import AssignmentEpoch, ProcessingAttempt, Record, RetryState
from dispatcher.contract.tenant import TenantKey
from dispatcher.errors import BrakeEngaged, Draining, NotWritten, StillHeld, StoreUnavailable
from dispatcher.kafka.commit_metadata import Fingerprint, decode_metadata, encode_metadata
from dispatcher.kafka.connection import stopped, until_answered
from dispatcher.kafka.held_partition import HeldPartition
from dispatcher.kafka.held_topic import HeldTopic, Snapshot, is_snapshot, metadata_of, snapshot_offset, tenant_of
from dispatcher.kafka.membership import Assignments, GroupClient, join
from dispatcher.kafka.offset_tracker import OffsetTracker
from dispatcher.tasks import unless
from dispatcher.telemetry import metrics

log = structlog.get_logger(__name__)

Process = Callable[[Record, ProcessingAttempt], Awaitable[Outcome]]
IsHeld = Callable[[TenantKey], bool]

BATCH: Final = 200
PASSED_A_SECOND: Final = 10_000
"""Records that only wait are read no faster: a million take less than two minutes."""
MOST_IN_FLIGHT: Final = 1_000
"""Held events that are processed at once, all tenants together."""
REVIEW_S: Final = 10.0
"""Every tenant is asked about this often, beside changes of the configuration."""
COMMIT_S: Final = 1.0
COMMIT_WITHIN_S: Final = 10.0
LEAVE_S: Final = 5.0
"""At a rebalance, time for requests under way."""
FIRST_REPEAT_S: Final = 1.0
LONGEST_REPEAT_S: Final = 30.0
PROBE_MS: Final = 3_000
REST_S: Final = 2.0
"""A tenant whose event could not be sent without an attempt rests at least so long."""


@dataclass(slots=True, eq=False)
class _Assigned:
    """One assignment of one partition."""

    tp: TopicPartition
    epoch: AssignmentEpoch = field(default_factory=AssignmentEpoch)
    state: HeldPartition | None = None
    """None until the committed position is known."""
    buffer: deque[ConsumerRecord[bytes, bytes]] = field(default_factory=deque)
    tasks: set["asyncio.Task[None]"] = field(default_factory=set)
    committed: tuple[int, Snapshot] | None = None
    last: ConsumerRecord[bytes, bytes] | None = None
    """The last record that was read: it identifies the log."""
    is_dirty: bool = True


class HeldEvents:
    """The consumer of the topic of held events. `run` is its life; `notice` tells it of changes."""

    def __init__(
        self,
        settings: KafkaSettings,
        topic: HeldTopic,
        process: Process,
        is_held: IsHeld,
        max_age_s: float,
        drain_timeout_s: float,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._settings = settings
        self._topic = topic
        self._process = process
        self._is_held = is_held
        self._max_age_s = max_age_s
        self._drain_timeout_s = drain_timeout_s
        self._clock = clock
        self.group_id = f"{settings.group_id}.held"
        self._consumer: GroupClient | None = None
        self._assigned: dict[TopicPartition, _Assigned] = {}
        self._in_flight = 0
        self._stopping = asyncio.Event()
        self._news = asyncio.Event()
        self._commit_lock = asyncio.Lock()
        self.last_poll = 0.0
        """Of the loop's clock."""

    def __repr__(self) -> str:
        return f"<HeldEvents {self.group_id} {len(self._assigned)} partitions, {self._in_flight} in flight>"

    def notice(self) -> None:
        """The configuration has changed, or a tenant was enabled by hand: ask about every tenant again."""
        self._news.set()

    def stop(self) -> None:
        """Begin to drain; `run` returns when that is done."""
        self._stopping.set()

    async def run(self) -> None:
        """Read until `stop`, then drain, commit and leave the group. A broker that is away is waited for."""
        connect = partial(join, self._settings, (self._topic.topic,), self.group_id)
        connecting = until_answered(f"consumer {self.group_id}", lambda: connect(Assignments(self)))
        self._consumer = await unless(self._stopping, connecting)
        if self._consumer is None:
            return
        try:
            async with asyncio.TaskGroup() as tasks:
                running = [
                    tasks.create_task(self._regularly(self._read, 0.0), name=f"read {self.group_id}"),
                    tasks.create_task(self._regularly(self._commit_all, COMMIT_S), name=f"commit {self.group_id}"),
                    tasks.create_task(self._review_regularly(), name=f"review {self.group_id}"),
                ]
                await self._stopping.wait()
                for task in running:
                    task.cancel()
            await self._give_up(list(self._assigned.values()), self._drain_timeout_s)
        finally:
            await self._give_up(list(self._assigned.values()), 0.0)
            consumer, self._consumer = self._consumer, None
            if consumer is not None:
                await stopped(consumer)

    async def _regularly(self, step: Callable[[], Awaitable[None]], every_s: float) -> None:
        wait_s = FIRST_REPEAT_S
        while True:
            try:
                await step()
                wait_s = FIRST_REPEAT_S
                await asyncio.sleep(every_s)
            except (KafkaError, OSError, TimeoutError, NotWritten) as error:
                log.warning("held events can't be read", error=type(error).__name__, detail=str(error)[:256])
                await asyncio.sleep(wait_s)
                wait_s = min(wait_s * 2, LONGEST_REPEAT_S)

    # Assignments

    def heard(self, _: float) -> None:
        """The group answered a heartbeat."""

    async def assigned(self, tps: Iterable[TopicPartition]) -> None:
        """Partitions are ours: `_read` learns their positions."""
        for tp in tps:
            self._assigned.setdefault(tp, _Assigned(tp))

    async def revoked(self, tps: Iterable[TopicPartition]) -> None:
        """Partitions are about to be another's: finish what is under way, briefly; commit; let the rest go."""
        await self._give_up([self._assigned[tp] for tp in tps if tp in self._assigned], LEAVE_S)

    async def _give_up(self, leaving: list[_Assigned], within_s: float) -> None:
        for one in leaving:
            one.epoch.active = False
            one.buffer.clear()
        tasks = [task for one in leaving for task in one.tasks]
        if tasks and within_s:
            await asyncio.wait(tasks, timeout=within_s)
        if within_s:
            try:
                await self._commit(leaving)
            except (KafkaError, OSError, TimeoutError, NotWritten) as error:
                log.warning("commit failed", group=self.group_id, error=type(error).__name__, detail=str(error)[:256])
        for one in leaving:
            for task in list(one.tasks):
                task.cancel()
            self._assigned.pop(one.tp, None)
        if tasks:
            await asyncio.wait(tasks, timeout=1)

    async def _restore(self, one: _Assigned) -> None:
        """Find where the partition is read from: the committed position, if this is the log that it describes."""
        client = self._consumer
        if client is None:
            return
        async with asyncio.timeout(COMMIT_WITHIN_S):
            known = await client.committed_metadata([one.tp])
            bounds = (await client.bounds([one.tp]))[one.tp]
        position, metadata = known.get(one.tp, (bounds.start, ""))
        fingerprint = decode_metadata(position, metadata).fingerprint
        snapshot: Snapshot | None = None
        is_same = position <= bounds.end
        if is_same and fingerprint is not None and fingerprint.offset >= bounds.start:
            record = await self._record_at(client, one.tp, fingerprint.offset)
            is_same = record is not None and Fingerprint.of(record) == fingerprint
        if not is_same:
            log.warning("the log of held events is another one: reading it anew", partition=one.tp.partition)
            position = bounds.start
        elif (offset := snapshot_offset(metadata.rpartition(",")[2])) is not None:
            record = await self._record_at(client, one.tp, offset)
            snapshot = None if record is None else Snapshot.of(record)
            if snapshot is None:
                log.warning("held events may be repeated: their snapshot is gone", partition=one.tp.partition)
        position = max(position, bounds.start)
        client.seek(one.tp, position)
        one.state = HeldPartition(position, {} if snapshot is None else snapshot.tenants, self._max_age_s)

    async def _record_at(
        self, client: GroupClient, tp: TopicPartition, offset: int
    ) -> "ConsumerRecord[bytes, bytes] | None":
        client.seek(tp, offset)
        found = await client.getmany(tp, timeout_ms=PROBE_MS, max_records=1)
        records = found.get(tp, [])
        return records[0] if records and records[0].offset == offset else None

    # Reading

    async def _read(self) -> None:
        consumer, now = self._consumer, asyncio.get_running_loop().time()
        if consumer is None:
            return
        self.last_poll = now
        for one in [one for one in self._assigned.values() if one.state is None]:
            await self._restore(one)
        for one in self._assigned.values():
            place = one.state.turn(now) if one.state is not None else None
            if place is not None:
                one.buffer.clear()
                consumer.seek(one.tp, place)
        assigned = consumer.assignment()
        wanted = [tp for tp, one in self._assigned.items() if one.state and not one.buffer and tp in assigned]
        if wanted:
            waits = any(one.buffer for one in self._assigned.values())
            try:
                fetched = await consumer.getmany(*wanted, timeout_ms=20 if waits else 250, max_records=BATCH)
            except OffsetOutOfRangeError:
                for one in self._assigned.values():  # the log is another one, or retention has passed our position
                    one.state = None
                    one.buffer.clear()
                raise
            for tp, records in fetched.items():
                if tp in self._assigned:
                    self._assigned[tp].buffer.extend(records)
        else:
            await asyncio.sleep(0.02 if self._assigned else 0.25)
        passed = sum([self._take(one) for one in self._assigned.values()])
        await asyncio.sleep(passed / PASSED_A_SECOND)

    def _take(self, one: _Assigned) -> int:
        """Process what may be, of what was read. Returns how many records were passed over."""
        state, passed, wall, now = one.state, 0, self._clock(), asyncio.get_running_loop().time()
        seen: set[TenantKey] = set()
        while state is not None and one.buffer and one.epoch.active:
            record = one.buffer[0]
            if record.offset < state.cursor:  # the topic was truncated or made anew
                state = one.state = self._begun_anew(one, record.offset)
            if is_snapshot(record.headers):
                state.skip(record.offset)
            else:
                key = tenant_of(record.headers)
                seen.add(key)
                has_room = self._in_flight < MOST_IN_FLIGHT
                first_seen = RetryState.of(record).first_seen
                is_taken = state.claim(record.offset, key, first_seen, wall, now, has_room=has_room)
                if is_taken is None:
                    break
                if is_taken:
                    self._begin(one, state, key, record)
                passed += not is_taken
            one.buffer.popleft()
            one.is_dirty = True
            if one.last is None or record.offset > one.last.offset:
                one.last = record
        for key in seen:
            if state is not None:
                state.release(key, released=not self._is_held(key))
        return passed

    def _begun_anew(self, one: _Assigned, offset: int) -> HeldPartition:
        log.warning("the topic of held events goes back: reading it anew", partition=one.tp.partition, offset=offset)
        return HeldPartition(offset, {}, self._max_age_s)

    def _begin(
        self, one: _Assigned, state: HeldPartition, key: TenantKey, record: "ConsumerRecord[bytes, bytes]"
    ) -> None:
        self._in_flight += 1
        task = asyncio.get_running_loop().create_task(self._see_through(one, state, key, record))
        one.tasks.add(task)
        task.add_done_callback(partial(self._ended, one))

    def _ended(self, one: _Assigned, task: "asyncio.Task[None]") -> None:
        self._in_flight -= 1
        one.tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            metrics.ERRORS.labels("consumer").inc()
            log.error("held record's task failed", exc_info=task.exception())

    async def _see_through(
        self, one: _Assigned, state: HeldPartition, key: TenantKey, record: "ConsumerRecord[bytes, bytes]"
    ) -> None:
        """Process the record until it has an outcome or has to wait again."""
        wait_s = FIRST_REPEAT_S
        while True:
            try:
                await self._process(record, ProcessingAttempt(one.epoch))
            except Draining:
                return
            except StillHeld as held:
                state.give_back(key, record.offset, asyncio.get_running_loop().time() + max(REST_S, held.for_s))
                state.release(key, released=not self._is_held(key))
                return
            except (StoreUnavailable, NotWritten, BrakeEngaged) as error:
                log.warning("held record kept for another try", offset=record.offset, why=str(error)[:256])
            except Exception:
                metrics.ERRORS.labels("consumer").inc()
                log.exception("held record kept for another try because of a bug", offset=record.offset)
            else:
                state.finish(key, record.offset)
                one.is_dirty = True
                return
            await asyncio.sleep(wait_s)
            wait_s = min(wait_s * 2, LONGEST_REPEAT_S)

    # Reviewing

    async def _review_regularly(self) -> None:
        while True:
            self._news.clear()
            wall = self._clock()
            for one in list(self._assigned.values()):
                state = one.state
                if state is None:
                    continue
                state.look_at_ages(wall)
                for number, key in enumerate(state.tenants):
                    state.release(key, released=not self._is_held(key))
                    if number % 1_000 == 999:
                        await asyncio.sleep(0)
            try:
                async with asyncio.timeout(REVIEW_S):
                    await self._news.wait()
            except TimeoutError:
                continue

    # Committing

    async def _commit_all(self) -> None:
        await self._commit([one for one in self._assigned.values() if one.epoch.active])

    async def _commit(self, partitions: Iterable[_Assigned]) -> None:
        async with self._commit_lock:
            offsets: dict[TopicPartition, tuple[int, str]] = {}
            states: dict[TopicPartition, tuple[int, Snapshot]] = {}
            for one in partitions:
                if one.state is None or not one.is_dirty:
                    continue
                one.is_dirty = False
                position, snapshot = states[one.tp] = one.state.to_commit()
                if states[one.tp] == one.committed:
                    del states[one.tp]
                    continue
                at = await self._topic.write_snapshot(one.tp.partition, snapshot) if snapshot.tenants else None
                fingerprint = None if one.last is None else Fingerprint.of(one.last)
                parts = [encode_metadata(OffsetTracker(position), fingerprint), "" if at is None else metadata_of(at)]
                offsets[one.tp] = (position, ",".join(filter(None, parts)))
            if not offsets or self._consumer is None:
                return
            try:
                async with asyncio.timeout(COMMIT_WITHIN_S):
                    await self._consumer.commit(offsets)
            except BaseException:
                for tp in offsets:
                    if tp in self._assigned:
                        self._assigned[tp].is_dirty = True
                raise
            for tp, committed in states.items():
                if tp in self._assigned:
                    self._assigned[tp].committed = committed

    def observe(self) -> None:
        """Set the gauges, for a scrape."""
        metrics.HELD_EVENTS.set(sum(one.state.events for one in self._assigned.values() if one.state is not None))
