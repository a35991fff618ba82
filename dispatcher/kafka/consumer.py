"""Reads a topic, processes each record to its outcome, and commits only what is finished.

Each record is an `InFlightRecord`. The fast path processes it without a task if nothing has to be awaited; otherwise,
or if the fast path falls back, the record gets a task of its own. The records of a partition carry the assignment's
`AssignmentEpoch`: once it has ended, nothing of that partition is committed. Stop order: end the epoch, cancel records
that have had no visible effect yet, give the others time to finish, commit the position, leave the group.
"""

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from functools import cached_property, partial
from itertools import islice, takewhile
from typing import Protocol

import structlog
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import CommitFailedError, IllegalStateError, KafkaError
from aiokafka.structs import ConsumerRecord

from dispatcher.config.settings import KafkaSettings
from dispatcher.contract.outcomes import Outcome
from dispatcher.contract.records import ProcessingAttempt, Record
from dispatcher.delivery.direct_attempt import DirectAttempt
from dispatcher.delivery.pending_delivery import AttemptResult
from dispatcher.errors import BrakeEngaged, Draining, NotWritten, StoreUnavailable
from dispatcher.kafka.committed_offsets import Committed
from dispatcher.kafka.connection import stopped, until_answered
from dispatcher.kafka.membership import Assignments, join
from dispatcher.kafka.offset_tracker import OffsetTracker, Run
from dispatcher.kafka.partition import InFlightRecord, Partition, ReadAheadLimit
from dispatcher.kafka.problems import KafkaProblems
from dispatcher.tasks import set_within, unless
from dispatcher.telemetry import metrics

log = structlog.get_logger(__name__)

Process = Callable[[Record, ProcessingAttempt], Awaitable[Outcome]]
Connect = Callable[[Assignments], Coroutine[object, object, "AIOKafkaConsumer[bytes, bytes]"]]
"""Joins the group and gives the started client, which tells of assignments."""
DueIn = Callable[[Record, float], float]
"""Seconds until a record is due, of the record and the unix time."""

WATCH_S = 5.0
COMMIT_S = 10.0
REVOKE_WAIT_S = 5.0
"""At a rebalance, time for requests under way: the whole group waits for it."""
BATCH = 500
"""Records of one poll."""
BEGUN_AT_ONCE = 100
"""Records that are begun in one turn of the event loop: a few milliseconds, in which nothing else happens."""
AT_A_TURN = 50
"""Records of one partition that are begun before the next partition's turn."""
COMMIT_RECORDS = 1000
"""So many finished are committed before the interval is over."""
FIRST_REPEAT_S = 1.0
LONGEST_REPEAT_S = 30.0


class Shortcut(Protocol):
    """Begins records without a task: `fast_path`."""

    def begin(self, record: Record, processing: ProcessingAttempt, owner: InFlightRecord, /) -> DirectAttempt | None:
        """See to a record as far as that goes without waiting; the flight that is under way then, if any is."""
        ...

    def go_on(
        self, record: Record, processing: ProcessingAttempt, first_result: AttemptResult, /
    ) -> Awaitable[Outcome]:
        """`process` for a record whose first attempt was made."""
        ...


class CommittedOffsets(Protocol):
    """Knows what a group has committed."""

    async def read(self, partitions: Sequence[TopicPartition]) -> dict[TopicPartition, tuple[int, list[Run]]]:
        """Committed position and the runs finished beyond it; a partition that nothing is known of is left out."""
        ...


class Consumer:
    """Reads some topics as a member of a consumer group."""

    def __init__(
        self,
        settings: KafkaSettings,
        topics: Sequence[str],
        group_id: str,
        process: Process,
        read_ahead: ReadAheadLimit,
        drain_timeout_s: float,
        due_in_s: DueIn | None = None,
        fast_path: Shortcut | None = None,
        connect: Connect | None = None,
        committed: CommittedOffsets | None = None,
        clock: Callable[[], float] = time.time,
        problems: KafkaProblems | None = None,
    ) -> None:
        """`due_in_s`: where records have to wait, how long; None where they never do.

        `fast_path` begins what needs no task; None where everything does.
        `connect` and `committed` stand in for aiokafka's consumer and admin client, `clock` for unix time.
        `problems`: where what is wrong with Kafka is reported.
        """
        self._problems = problems or KafkaProblems()
        self._settings = settings
        self._topics = tuple(topics)
        self.group_id = group_id
        self._process = process
        self._read_ahead = read_ahead
        self._drain_timeout_s = drain_timeout_s
        self._due_in_s = due_in_s
        self._fast_path = fast_path
        self._consumer: AIOKafkaConsumer[bytes, bytes] | None = None
        reset = settings.auto_offset_reset if due_in_s is None else "earliest"
        self._connect = connect or partial(join, settings, self._topics, group_id, auto_offset_reset=reset)
        self._committed = committed or Committed(settings, group_id)
        self._clock = clock
        self._partitions: dict[TopicPartition, Partition] = {}
        self._buffered: deque[Partition] = deque()
        """Partitions with records to begin, in the order of their turn."""
        self._feeding = False
        self._wake = asyncio.Event()
        self._commit_lock = asyncio.Lock()
        self._stopping = asyncio.Event()
        self._finished_since_commit = 0
        self._commit_soon = asyncio.Event()
        self._let_go = asyncio.Event()
        """Set with each record that ends after its partition's claim."""
        self.joined = False
        """Whether partitions were assigned at least once, be they none."""
        self.last_poll = 0.0
        """Of the loop's clock."""
        self.broker_answers = False

    def __repr__(self) -> str:
        return f"<Consumer {self.group_id} {len(self._partitions)} partitions, {self.unfinished} unfinished>"

    @cached_property
    def _loop(self) -> asyncio.AbstractEventLoop:
        """The event loop, asked for once: asking takes a system call each time (getpid, until Python 3.12)."""
        return asyncio.get_running_loop()

    @property
    def unfinished(self) -> int:
        """Records begun and not finished."""
        return sum(len(partition.in_flight) for partition in self._partitions.values())

    async def run(self) -> None:
        """Read until `stop`, then drain, commit and leave the group.

        A broker that is away, at the start or later, is waited for. Cancelled, it lets everything go at once: nothing
        is lost, since nothing unfinished is committed.
        """
        connecting = until_answered(f"consumer {self.group_id}", lambda: self._connect(Assignments(self)))
        self._consumer = await unless(self._stopping, connecting)
        if self._consumer is None:
            return
        try:
            async with asyncio.TaskGroup() as tasks:
                polling = tasks.create_task(self._poll(), name=f"poll {self.group_id}")
                committing = tasks.create_task(self._commit_regularly(), name=f"commit {self.group_id}")
                watching = tasks.create_task(self._watch_broker(), name=f"watch {self.group_id}")
                await self._stopping.wait()
                for task in (polling, committing, watching):
                    task.cancel()
            await self._drain()
        finally:
            self._cancel(self._partitions.values())
            await self._close()

    def stop(self) -> None:
        """Begin to drain; `run` returns when that is done."""
        self._stopping.set()

    # Assignments

    async def assigned(self, tps: Iterable[TopicPartition]) -> None:
        """Partitions are ours: learn what their last owner finished, then begin."""
        metrics.REBALANCES.inc()
        partitions = [self._partition(tp) for tp in tps]
        log.info("partitions assigned", group=self.group_id, partitions=[_name(one.tp) for one in partitions])
        known = await self._committed.read([one.tp for one in partitions])
        for partition in partitions:
            if partition.restored or not partition.epoch.active:
                continue
            state = known.get(partition.tp)
            if state is not None:
                partition.tracker = OffsetTracker(*state)
            partition.restored = True
        self.joined = self.broker_answers = True
        self._schedule_feed()

    async def revoked(self, tps: Iterable[TopicPartition]) -> None:
        """Partitions are about to be another's: finish what is under way, briefly; commit; let the rest go."""
        partitions = [self._partitions[tp] for tp in tps if tp in self._partitions]
        if partitions:
            log.info("partitions revoked", group=self.group_id, partitions=[_name(one.tp) for one in partitions])
        await self._finish_under_way(partitions, REVOKE_WAIT_S)
        await self._commit(partitions)
        self._cancel(partitions)
        for partition in partitions:
            self._partitions.pop(partition.tp, None)
            partition.forget()

    def _partition(self, tp: TopicPartition) -> Partition:
        partition = self._partitions.get(tp)
        if partition is None:
            partition = self._partitions[tp] = Partition(tp)
        return partition

    # Reading

    async def _poll(self) -> None:
        """Fetch for the partitions that have nothing left to begin; never wait long, so that none waits for another."""
        wait_s = FIRST_REPEAT_S
        while True:
            try:
                await self._poll_once()
                wait_s = FIRST_REPEAT_S
            except (KafkaError, OSError, TimeoutError) as error:
                log.warning("reading failed", group=self.group_id, error=type(error).__name__, detail=str(error)[:256])
                await asyncio.sleep(wait_s)
                wait_s = min(wait_s * 2, LONGEST_REPEAT_S)

    async def _poll_once(self) -> None:
        if self._consumer is None:
            return
        self.last_poll = asyncio.get_running_loop().time()
        metrics.LAST_POLL.set(time.time())
        blocked = {tp for tp, one in self._partitions.items() if one.buffer}
        wanted = [tp for tp in self._consumer.assignment() if tp not in blocked]
        if blocked and not wanted:
            self._wake.clear()
            await set_within(self._wake, 0.25)
            self._feed()  # a budget that another consumer had used up makes no call when it has room again
            return
        fetched = await self._consumer.getmany(*wanted, timeout_ms=10 if blocked else 250, max_records=BATCH)
        for tp, records in fetched.items():
            partition = self._partition(tp)
            partition.buffer.extend(records)
            self._queue(partition)
        self._feed()

    def _queue(self, partition: Partition) -> None:
        if partition not in self._buffered:
            self._buffered.append(partition)

    def _schedule_feed(self) -> None:
        if not self._feeding:
            self._feeding = True
            self._loop.call_soon(self._feed)

    def _feed(self) -> None:
        """Begin records, a few of each partition by turns, while there is room for them."""
        self._feeding = False
        first_result = 0
        for _ in range(len(self._buffered)):
            partition = self._buffered.popleft()
            for _ in range(self._room(partition)):
                if self._read_ahead.is_full:
                    break
                self._begin(partition, partition.buffer.popleft())
                first_result += 1
            if partition.buffer and partition.epoch.active:
                self._buffered.append(partition)
            else:
                self._wake.set()
            if first_result >= BEGUN_AT_ONCE:
                break
        if first_result and self._buffered:
            self._schedule_feed()

    def _room(self, partition: Partition) -> int:
        """How many of the partition's records may be begun now, a few at a time."""
        if not partition.buffer or not partition.restored or not partition.epoch.active:
            return 0
        tracker, window = partition.tracker, self._settings.partition_window
        most = min(window - tracker.unfinished, 10 * window - tracker.span, len(partition.buffer), AT_A_TURN)
        if self._due_in_s is None:
            return most
        due = takewhile(partial(self._is_due, self._due_in_s, partition), islice(partition.buffer, max(0, most)))
        return sum(1 for _ in due)

    def _is_due(self, due_in_s: DueIn, partition: Partition, record: Record) -> bool:
        wait = due_in_s(record, self._clock())
        if wait > 0 and partition.due_timer is None:

            def due() -> None:
                partition.due_timer = None
                self._schedule_feed()

            partition.due_timer = self._loop.call_later(min(wait, 1.0), due)
        return wait <= 0

    # Records

    def _begin(self, partition: Partition, record: "ConsumerRecord[bytes, bytes]") -> None:
        partition.consumed.inc()
        tracker = partition.tracker
        already = tracker.was_finished(record.offset)
        tracker.begin(record.offset)
        if already:
            tracker.finish(record.offset)
            metrics.EVENTS_RESUMED.inc()
            return
        item = partition.in_flight[record.offset] = InFlightRecord(self, partition, record)
        self._read_ahead.begin(item.size)
        if self._fast_path is None:
            self.start_slow_path(item, None)
        else:
            item.direct_attempt = self._fast_path.begin(record, item, item)

    async def _see_through(self, item: InFlightRecord, first_result: AttemptResult | None) -> None:
        """Process the record until it has an outcome; then, and only then, its offset is done."""
        record, wait_s = item.record, FIRST_REPEAT_S
        while True:
            try:
                if first_result is None or self._fast_path is None:
                    await self._process(record, item)
                else:
                    await self._fast_path.go_on(record, item, first_result)
            except Draining:
                return
            except (StoreUnavailable, NotWritten, BrakeEngaged) as error:
                log.warning("record kept for another try", place=_place(record), why=str(error)[:256])
            except Exception:
                metrics.ERRORS.labels("consumer").inc()
                log.exception("record kept for another try because of a bug", place=_place(record))
            else:
                self._done(item)
                return
            item.started, first_result = False, None
            metrics.EVENTS_REPEATED.inc()
            await asyncio.sleep(wait_s)
            wait_s = min(wait_s * 2, LONGEST_REPEAT_S)

    def _done(self, item: InFlightRecord) -> None:
        """The record has its outcome."""
        item.partition.tracker.finish(item.record.offset)
        self._finished_since_commit += 1
        if self._finished_since_commit >= COMMIT_RECORDS:
            self._commit_soon.set()

    # What becomes of a work, as it tells itself

    def record_finished(self, item: InFlightRecord) -> None:
        """It has its outcome, and is over."""
        self._done(item)
        self.record_ended(item)

    def start_slow_path(self, item: InFlightRecord, first_result: AttemptResult | None) -> None:
        """It needs a task."""
        item.task = self._loop.create_task(self._see_through(item, first_result))
        item.task.add_done_callback(partial(self._task_ended, item))

    def record_ended(self, item: InFlightRecord) -> None:
        """It is over, with an outcome or without."""
        partition = item.partition
        del partition.in_flight[item.record.offset]
        item.direct_attempt = None  # each knows the other: let go, neither waits for the garbage collector
        self._read_ahead.end(item.size, self._loop.time())
        if self._buffered and not self._read_ahead.is_full:
            self._schedule_feed()
        if not partition.epoch.active:
            self._let_go.set()

    def _task_ended(self, item: InFlightRecord, task: "asyncio.Task[None]") -> None:
        self.record_ended(item)
        if not task.cancelled() and task.exception() is not None:
            metrics.ERRORS.labels("consumer").inc()
            log.error("record's task failed", place=_place(item.record), exc_info=task.exception())

    # Committing

    async def _commit_regularly(self) -> None:
        """Once an interval, or sooner when much is finished."""
        while True:
            await set_within(self._commit_soon, self._settings.commit_interval)
            self._commit_soon.clear()
            await self._commit(self._partitions.values())

    async def _commit(self, partitions: Iterable[Partition]) -> None:
        async with self._commit_lock:
            states = {one: state for one in partitions if (state := one.to_commit()) is not None}
            if not states or self._consumer is None:
                return
            self._finished_since_commit = 0
            try:
                async with asyncio.timeout(COMMIT_S):  # without a broker, aiokafka would wait for ever
                    await self._consumer.commit({one.tp: state for one, state in states.items()})
            except (CommitFailedError, IllegalStateError) as error:
                # The group has moved on; the new owner begins at the last commit that went through.
                metrics.COMMIT_FAILURES.inc()
                log.warning("commit came too late", group=self.group_id, detail=str(error)[:256])
                return
            except (KafkaError, OSError, TimeoutError) as error:
                metrics.COMMIT_FAILURES.inc()
                log.warning("commit failed", group=self.group_id, error=type(error).__name__, detail=str(error)[:256])
                return
            metrics.COMMITS.inc()
            for partition, state in states.items():
                partition.committed = state

    # Stopping

    async def _drain(self) -> None:
        partitions = list(self._partitions.values())
        under_way = await self._finish_under_way(partitions, self._drain_timeout_s)
        await self._commit(partitions)
        unfinished = sum(one.tracker.unfinished for one in partitions)
        log.info("drained", group=self.group_id, cut_off=under_way, left_for_the_next=unfinished)

    async def _finish_under_way(self, partitions: Sequence[Partition], most_s: float) -> int:
        """Let go what nobody outside has seen, wait for the rest; gives how many had to be cut off."""
        for partition in partitions:
            partition.end_epoch()
            for item in [item for item in partition.in_flight.values() if not item.started]:
                item.cancel()
        give_up_at = self._loop.time() + most_s
        while under_way := sum(len(partition.in_flight) for partition in partitions):
            self._let_go.clear()
            if not await set_within(self._let_go, give_up_at - self._loop.time()):
                break
        return under_way

    def _cancel(self, partitions: Iterable[Partition]) -> None:
        for partition in partitions:
            partition.end_epoch()
            for item in list(partition.in_flight.values()):
                item.cancel()

    async def _close(self) -> None:
        in_flight = [item for partition in self._partitions.values() for item in partition.in_flight.values()]
        tasks = [item.running for item in in_flight if item.running is not None]
        if tasks:
            await asyncio.wait(tasks, timeout=1)
        self._partitions.clear()
        if self._consumer is not None:
            consumer, self._consumer = self._consumer, None
            await stopped(consumer)

    # Watching

    async def _watch_broker(self) -> None:
        """Ask for the ends of our partitions now and then: tells the lag, and whether the brokers answer at all."""
        while True:
            await asyncio.sleep(WATCH_S)
            tps = list(self._partitions)
            if self._consumer is None or not tps:
                continue
            try:
                async with asyncio.timeout(WATCH_S):
                    ends = await self._consumer.end_offsets(tps)
            except (KafkaError, OSError, TimeoutError) as error:
                if self.broker_answers:
                    log.warning("kafka does not answer", group=self.group_id, error=type(error).__name__)
                self.broker_answers = False
                continue
            self.broker_answers = True
            for tp, end in ends.items():
                if tp in self._partitions:
                    self._partitions[tp].end = end

    def observe(self) -> float | None:
        """Set the gauges, for a scrape.

        Gives the unix time of the oldest unfinished record; None with none, and where records have to wait anyway.
        """
        for topic in self._topics:
            own = [one for one in self._partitions.values() if one.tp.topic == topic]
            metrics.ASSIGNED.labels(topic).set(len(own))
            metrics.PAUSED.labels(topic).set(sum(bool(one.buffer) for one in own))
        for partition in self._partitions.values():
            partition.observe()
        if self._due_in_s is not None:
            return None
        return min((at for one in self._partitions.values() if (at := one.oldest) is not None), default=None)


def _name(tp: TopicPartition) -> str:
    return f"{tp.topic}/{tp.partition}"


def _place(record: Record) -> str:
    return f"{record.topic}/{record.partition}/{record.offset}"
