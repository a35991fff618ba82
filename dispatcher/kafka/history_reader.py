"""Reads the history topic as a member of the group `<group_id>.history` and gives its records to a store.

A position is committed after its records are stored, and kept in the store, too: what the store lacks is read again,
although it was committed when another store had it. A store that is away is waited for, with the membership kept
alive; records that can't be read are counted and passed over. Repeats are the store's business: it knows its entries.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Final, TypeVar

import structlog
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import CommitFailedError, IllegalStateError, KafkaError
from aiokafka.structs import ConsumerRecord

from dispatcher.config.kafka_settings import KafkaSettings
from dispatcher.contract.history import HistoryRecord, decode_record
from dispatcher.contract.history_positions import Move, StoredPositions, TopicAndPartition
from dispatcher.contract.records import place_of
from dispatcher.errors import DispatcherError, StoreUnavailable, UnreadableEvent
from dispatcher.kafka.connection import connection_arguments, raise_if_fetching_ended, stopped
from dispatcher.kafka.group_coordinator import DispatcherAssignor
from dispatcher.kafka.groups import history_group
from dispatcher.kafka.membership import NO_POLL_LIMIT_MS
from dispatcher.kafka.topic_reader import partitions_of, translating_kafka_errors
from dispatcher.kafka.unreadable_records import pass_over_unreadable
from dispatcher.tasks import Backoff
from dispatcher.telemetry import metrics

RECORDS_AT_ONCE: Final = 500
MAX_ENTRIES_AT_ONCE: Final = 10_000
POLL_MS: Final = 500
COMMIT_S: Final = 10.0
SILENCE_S: Final = 10.0
"""Time without a record after which the reader requests the ends, to find out whether the brokers answer."""
START_S: Final = 60.0
FIRST_WAIT_S: Final = 0.5
LONGEST_WAIT_S: Final = 15.0

Write = Callable[[Sequence[HistoryRecord], Mapping[TopicAndPartition, Move]], Awaitable[None]]
"""Stores records and moves positions.

Raises StoreUnavailable if they have to be written again, StoreReplaced if records before them are missing.
"""
Positions = Callable[[], Awaitable[StoredPositions]]
"""Returns the positions in the store; raises StoreUnavailable."""
Result = TypeVar("Result")

log = structlog.get_logger(__name__)


class HistoryReader:
    """One member of the group; `run` is its task."""

    def __init__(self, settings: KafkaSettings, topic: str, write: Write, positions: Positions) -> None:
        self._settings = settings
        self._topic = topic
        self._write = write
        self._positions = positions
        self._assignment: object = None
        """The assignment whose partitions are read from where the store ends."""
        self._stored: dict[TopicAndPartition, int] = {}
        self._passed_over: dict[TopicPartition, int] = {}
        """Offsets after records that can't be decoded, until the positions have moved past them."""
        self.group_id = history_group(settings.group_id)
        self.problem: str | None = "has not joined the group yet"
        """Why history isn't being stored, for operators; None if it is."""
        metrics.HISTORY_READING.set(0)
        self.lag: int | None = None
        """Records to the end of the assigned partitions; None until it was measured since the last join."""

    async def run(self) -> None:
        """Reads until cancelled, whatever broker and store do."""
        backoff = Backoff(FIRST_WAIT_S, LONGEST_WAIT_S)
        while True:
            try:
                with translating_kafka_errors(self._settings):
                    await self._read()
            except DispatcherError as error:
                self._note(str(error))
            except Exception as error:
                metrics.ERRORS.labels("history").inc()
                log.exception("history is not read because of a bug; kept trying", topic=self._topic)
                self._note(f"{type(error).__name__}: a bug of this program")
            else:
                backoff.reset()
            await backoff.wait()

    async def _read(self) -> None:
        """Reads until the brokers fall silent, so that a new client bootstraps again."""
        self.lag, self._assignment = None, None
        async with asyncio.timeout(START_S):
            await partitions_of(self._settings, [self._topic])  # joining must not create it
            consumer = await self._join()
        try:
            self._note(None)
            await self._poll(consumer)
        finally:
            await stopped(consumer)

    async def _join(self) -> "AIOKafkaConsumer[bytes, bytes]":
        """Returns a started consumer without a static name: replicas share their settings, and repeats do no harm."""
        session_s = max(20.0, self._settings.session_timeout)
        consumer: AIOKafkaConsumer[bytes, bytes] = AIOKafkaConsumer(
            self._topic,
            **connection_arguments(self._settings) | {"request_timeout_ms": int(session_s * 1000)},
            group_id=self.group_id,
            auto_offset_reset="earliest",
            enable_auto_commit=False,
            partition_assignment_strategy=(DispatcherAssignor,),
            session_timeout_ms=int(self._settings.session_timeout * 1000),
            heartbeat_interval_ms=int(min(3.0, self._settings.session_timeout / 5) * 1000),
            max_poll_interval_ms=NO_POLL_LIMIT_MS,  # a store may be away for long, with the membership kept
        )
        pass_over_unreadable(consumer, self._note_passed_over)
        try:
            await consumer.start()
        except BaseException:
            await stopped(consumer)
            raise
        return consumer

    async def _poll(self, consumer: "AIOKafkaConsumer[bytes, bytes]") -> None:
        loop = asyncio.get_running_loop()
        heard_at = loop.time()
        while True:
            raise_if_fetching_ended(consumer)
            polled = await consumer.getmany(timeout_ms=POLL_MS, max_records=RECORDS_AT_ONCE)
            if _assignment_of(consumer) is not self._assignment:
                await self._begin(consumer)  # what was polled is read again
            elif polled or self._passed_over:
                ends = self._passed_over | {tp: records[-1].offset + 1 for tp, records in polled.items()}
                self._passed_over = {}
                await self._store(polled, ends)
                await self._commit(consumer, ends)
                heard_at = loop.time()
            elif loop.time() - heard_at > SILENCE_S:
                if not await _answers(consumer):
                    self._note("kafka does not answer")
                    return
                heard_at = loop.time()
            self._measure(consumer)

    async def _begin(self, consumer: "AIOKafkaConsumer[bytes, bytes]") -> None:
        """Seeks each assigned partition to the position that the store has reached."""
        assignment = _assignment_of(consumer)
        stored = await self._until_available(self._positions)
        async with asyncio.timeout(COMMIT_S):  # aiokafka waits for a coordinator for ever
            starts = {tp: stored.start(tp, await consumer.committed(tp)) for tp in assignment.tps}
        if not assignment.active:
            return  # a rebalance happened meanwhile
        for tp, start in starts.items():
            consumer.seek(tp, start)
        self._stored, self._assignment, self._passed_over = dict(stored.next), assignment, {}

    def _note_passed_over(self, tp: TopicPartition, first: int, end: int) -> None:
        metrics.HISTORY_STORED.labels("unreadable").inc(end - first)
        self._passed_over[tp] = end

    async def _store(
        self,
        polled: "dict[TopicPartition, list[ConsumerRecord[bytes, bytes]]]",
        all_ends: Mapping[TopicPartition, int],
    ) -> None:
        """Stores the records, and moves the positions of all partitions to their ends."""
        batch: list[HistoryRecord] = []
        entries = 0
        ends: dict[TopicAndPartition, int] = {}
        for tp, records in polled.items():
            for record in records:
                ends[tp] = record.offset + 1
                try:
                    decoded = decode_record(record.value)
                except UnreadableEvent as error:
                    metrics.HISTORY_STORED.labels("unreadable").inc()
                    log.warning("history record can't be read", place=place_of(record), why=str(error))
                    continue
                batch.append(decoded)
                entries += len(decoded.entries)
                if entries >= MAX_ENTRIES_AT_ONCE:
                    await self._write_until_stored(batch, ends)
                    batch, entries, ends = [], 0, {}
            await asyncio.sleep(0)
        await self._write_until_stored(batch, all_ends)

    async def _write_until_stored(self, batch: Sequence[HistoryRecord], ends: Mapping[TopicAndPartition, int]) -> None:
        moves = {place: Move(self._stored.get(place), end) for place, end in ends.items()}
        await self._until_available(lambda: self._write(batch, moves))
        self._stored.update(ends)

    async def _until_available(self, access: Callable[[], Awaitable[Result]]) -> Result:
        """Accesses the store, again and again until it answers."""
        backoff = Backoff(FIRST_WAIT_S, LONGEST_WAIT_S)
        while True:
            try:
                result = await access()
            except StoreUnavailable as error:
                metrics.HISTORY_STORE_FAILURES.inc()
                self._note(str(error))
            else:
                self._note(None)
                return result
            await backoff.wait()

    async def _commit(self, consumer: "AIOKafkaConsumer[bytes, bytes]", offsets: Mapping[TopicPartition, int]) -> None:
        try:
            async with asyncio.timeout(COMMIT_S):
                await consumer.commit(dict(offsets))
        except (CommitFailedError, IllegalStateError) as error:
            log.info("history: commit came too late, the next owner repeats", detail=str(error)[:256])
        except (KafkaError, OSError, TimeoutError) as error:
            metrics.COMMIT_FAILURES.inc()
            log.warning("history: commit failed", error=type(error).__name__, detail=str(error)[:256])

    def _measure(self, consumer: "AIOKafkaConsumer[bytes, bytes]") -> None:
        self.lag = lag_of(consumer)
        if self.lag is not None:
            metrics.HISTORY_LAG.set(self.lag)

    def _note(self, problem: str | None) -> None:
        if problem != self.problem:
            if problem is None:
                log.info("history is stored", topic=self._topic, group=self.group_id)
            else:
                log.warning("history is not stored; kept trying", topic=self._topic, problem=problem)
        self.problem = problem
        metrics.HISTORY_READING.set(problem is None)


def _assignment_of(consumer: "AIOKafkaConsumer[bytes, bytes]") -> Any:
    """Returns aiokafka's assignment, a new object after each rebalance. aiokafka's public methods would wait."""
    return consumer._subscription.subscription.assignment  # noqa: SLF001


def lag_of(consumer: "AIOKafkaConsumer[bytes, bytes]") -> int | None:
    """Returns the number of unread records in the assigned partitions; None until positions and ends are known."""
    assignment = _assignment_of(consumer)
    if assignment is None:
        return None
    states = [assignment.state_value(tp) for tp in assignment.tps]
    if any(not state.has_valid_position or state.highwater is None for state in states):
        return None
    return sum(max(0, int(state.highwater) - int(state.position)) for state in states)


async def _answers(consumer: "AIOKafkaConsumer[bytes, bytes]") -> bool:
    try:
        async with asyncio.timeout(SILENCE_S):
            await consumer.end_offsets(list(consumer.assignment()))
    except (KafkaError, OSError, TimeoutError):
        return False
    return True
