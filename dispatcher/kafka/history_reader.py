"""Reads the history topic as a member of the group `<group_id>.history` and gives its records to a store.

A position is committed after its records are stored, and kept in the store, too: what the store lacks is read again,
although it was committed when another store had it. A store that is away is waited for, with the membership kept
alive; records and entries that can't be read are counted and passed over. The store drops repeats: it knows its
entries.

A commit's metadata names the last record before the position, see `commit_metadata`. At the start, and after everything
that could have replaced the log, that record is read again and compared: another log is read from its start.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Final

import structlog
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import CommitFailedError, IllegalStateError, KafkaError

from dispatcher.config.kafka_settings import KafkaSettings
from dispatcher.contract.history import HistoryRecord, decode_record
from dispatcher.contract.history_positions import Move, StoredPositions, TopicAndPartition
from dispatcher.contract.records import Record, place_of
from dispatcher.errors import DispatcherError, StoreUnavailable, UnreadableEvent
from dispatcher.kafka.commit_metadata import Fingerprint, decode_metadata, encode_metadata
from dispatcher.kafka.connection import connection_arguments, raise_if_fetching_ended, stopped
from dispatcher.kafka.group_coordinator import DispatcherAssignor
from dispatcher.kafka.groups import history_group
from dispatcher.kafka.log_bounds import end_offsets
from dispatcher.kafka.log_sources import LogSources
from dispatcher.kafka.membership import NO_POLL_LIMIT_MS
from dispatcher.kafka.metadata_limit import SIZE_REFUSED
from dispatcher.kafka.offset_tracker import MAX_METADATA_BYTES, OffsetTracker
from dispatcher.kafka.problems import partition_name
from dispatcher.kafka.topic_reader import partitions_of, translating_kafka_errors
from dispatcher.kafka.unreadable_records import pass_over_unreadable
from dispatcher.tasks import Backoff, Result
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
        self._last: dict[TopicPartition, Fingerprint] = {}
        """The last stored record of each partition: it identifies the log."""
        self._compared: dict[TopicPartition, int] = {}
        """Partitions whose last record is read again, and the offset to go on at if it is still there."""
        self._metadata_bytes = MAX_METADATA_BYTES
        """The longest metadata that the broker is known to accept."""
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
        sources = LogSources(consumer)
        while True:
            raise_if_fetching_ended(consumer)
            polled = await consumer.getmany(timeout_ms=POLL_MS, max_records=RECORDS_AT_ONCE)
            if _assignment_of(consumer) is not self._assignment:
                await self._begin(consumer)  # what was polled is read again
                continue
            known = self._of_known_logs(consumer, polled, sources.changed(consumer.assignment()))
            if known or self._passed_over:
                ends = self._passed_over | {tp: records[-1].offset + 1 for tp, records in known.items()}
                self._passed_over = {}
                await self._store(known, ends)
                self._last |= {tp: Fingerprint.of(records[-1]) for tp, records in known.items()}
                await self._commit(consumer, ends)
                heard_at = loop.time()
            elif polled:
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
            committed = await consumer._coordinator.fetch_committed_offsets(list(assignment.tps))  # noqa: SLF001
        if not assignment.active:
            return  # a rebalance happened meanwhile
        self._last, self._compared = {}, {}
        for tp in assignment.tps:
            state = committed.get(tp)
            start = stored.start(tp, None if state is None else state.offset)
            fingerprint = None if state is None else decode_metadata(state.offset, state.metadata or "").fingerprint
            if fingerprint is None:
                consumer.seek(tp, start)
            else:
                self._last[tp] = fingerprint
                self._compare(consumer, tp, start)
        self._stored, self._assignment, self._passed_over = dict(stored.next), assignment, {}

    def _compare(self, consumer: "AIOKafkaConsumer[bytes, bytes]", tp: TopicPartition, go_on_at: int) -> None:
        """Reads the last stored record of a partition again: if another one is there, the log is another one."""
        self._compared.setdefault(tp, go_on_at)
        consumer.seek(tp, self._last[tp].offset)

    def _of_known_logs(
        self,
        consumer: "AIOKafkaConsumer[bytes, bytes]",
        polled: "dict[TopicPartition, list[Record]]",
        suspects: Sequence[TopicPartition],
    ) -> "dict[TopicPartition, list[Record]]":
        """Returns the records of logs that are known to be the ones read before. The others are read again later."""
        compared = [tp for tp in suspects if tp in self._last]
        for tp in compared:
            self._compare(consumer, tp, self._last[tp].offset + 1)
        for tp, (first, *_) in polled.items():
            if tp not in self._compared or tp in compared:
                continue
            compared.append(tp)
            go_on_at = self._compared.pop(tp)
            if Fingerprint.of(first) == self._last[tp]:
                consumer.seek(tp, go_on_at)
            else:
                del self._last[tp]
                place = partition_name(tp)
                log.warning("history is read from the log's start: its last stored record is gone", partition=place)
                consumer.seek(tp, 0)
        return {tp: records for tp, records in polled.items() if tp not in compared}

    def _note_passed_over(self, tp: TopicPartition, first: int, end: int) -> None:
        metrics.HISTORY_STORED.labels("unreadable").inc(end - first)
        self._passed_over[tp] = end

    async def _store(
        self,
        polled: "dict[TopicPartition, list[Record]]",
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
                if decoded.unreadable:
                    metrics.HISTORY_STORED.labels("unreadable").inc(decoded.unreadable)
                    why, count = decoded.problem, decoded.unreadable
                    log.warning("history entries can't be read", place=place_of(record), entries=count, why=why)
                batch += decoded.runs
                entries += sum(len(run.entries) for run in decoded.runs)
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
        states = {tp: (end, self._metadata(tp, end)) for tp, end in offsets.items()}
        try:
            async with asyncio.timeout(COMMIT_S):
                await consumer.commit(states)
        except SIZE_REFUSED as error:
            metrics.COMMIT_FAILURES.inc()
            log.warning("history: commit without metadata from now on", error=type(error).__name__)
            self._metadata_bytes = 0
        except (CommitFailedError, IllegalStateError) as error:
            log.info("history: commit came too late, the next owner repeats", detail=str(error)[:256])
        except (KafkaError, OSError, TimeoutError) as error:
            metrics.COMMIT_FAILURES.inc()
            log.warning("history: commit failed", error=type(error).__name__, detail=str(error)[:256])

    def _metadata(self, tp: TopicPartition, end: int) -> str:
        return encode_metadata(OffsetTracker(end), self._last.get(tp), self._metadata_bytes)

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
            await end_offsets(consumer, list(consumer.assignment()))  # of the partitions that have a leader
    except (KafkaError, OSError, TimeoutError):
        return False
    return True
