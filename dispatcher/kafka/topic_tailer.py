"""Follows one topic from outside any consumer group while the process runs: reads it once, then what is added.

It joins, commits and creates nothing. While the broker is away, it waits; what was read stays, and reading then
continues after the last record. A topic that was recreated, or lost its end, is read from the start, and the sink is
reset first. The last record is read again, and compared, after everything that could have replaced the topic.
"""

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import structlog
from aiokafka import AIOKafkaConsumer, TopicPartition

from dispatcher.config.kafka_settings import KafkaSettings
from dispatcher.contract.records import Record
from dispatcher.errors import DispatcherError, NotFound
from dispatcher.kafka.commit_metadata import Fingerprint
from dispatcher.kafka.connection import FIRST_WAIT_S, LONGEST_WAIT_S, raise_if_fetching_ended, stopped
from dispatcher.kafka.log_bounds import end_offsets, first_offsets
from dispatcher.kafka.log_sources import LogSources
from dispatcher.kafka.topic_reader import outside_consumer, partitions_of, shown, translating_kafka_errors
from dispatcher.kafka.unreadable_records import pass_over_unreadable
from dispatcher.tasks import Backoff
from dispatcher.telemetry import metrics

BATCH = 250
"""Records taken at once: a few milliseconds, in which nothing else runs."""
POLL_S = 1.0
SILENCE_S = 10.0
"""Time without a record after which the tailer requests the topic's end, to find out whether the broker answers."""
STILL_THERE_S = 8.0
"""Time for the broker's answer to that."""
START_S = 25.0
"""Time for all requests at the start: a little more than the clients' own patience."""
LOOK_AGAIN_S = 60.0
"""How often the topic's partitions are counted."""
SILENT_AGAIN_S = 20.0
"""How often they are counted while no broker answers for some of them."""

log = structlog.get_logger(__name__)


class RecordSink(Protocol):
    """Receives the records that a tailer reads. Its methods are called on the event loop and must not raise."""

    def append(self, records: Sequence[Record]) -> None:
        """Adds records of one partition, in rising order of offsets."""
        ...

    def reset(self) -> None:
        """Discards every record, because the topic was recreated or is read again from the start."""
        ...


class TopicTailer:
    """Follows one topic; `run` is its task."""

    def __init__(
        self,
        settings: KafkaSettings,
        topic: str,
        sink: RecordSink,
        *,
        keep_s: float,
        most_read: int,
        if_missing: str,
        batch: int = BATCH,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Prepares a tailer. `run` begins `keep_s` seconds back, reads at most `most_read` records, `batch` at once."""
        self._settings = settings
        self._topic = topic
        self._sink = sink
        self._keep_s = keep_s
        self._most_read = most_read
        self._batch = batch
        self._if_missing = if_missing
        self._clock = clock
        self._next: dict[int, int] = {}  # the offset to read next, by partition
        self._ends: dict[int, int] = {}  # the ends to reach before everything is known
        self._last: dict[int, Fingerprint] = {}  # the last record of each partition: it identifies the log
        self._compared: set[TopicPartition] = set()  # whose last record is read again
        self._away = f"{topic} has not been read yet"
        self._logged = ""
        self.is_complete = True
        """False if the requested time held more records than were read, or some that can't be decoded."""

    def __repr__(self) -> str:
        return f"<TopicTailer {self._topic} at {self._next}>"

    @property
    def problem(self) -> str | None:
        """Why the records that were read may be incomplete, for people; None if they are complete."""
        if self._away:
            return self._away
        left = sum(max(0, end - self._next.get(partition, 0)) for partition, end in self._ends.items())
        return f"{self._topic} is still being read: {left} records are left" if left else None

    @property
    def read_to(self) -> Mapping[int, int]:
        """Offsets after the last record that was read, by partition."""
        return dict(self._next)

    async def run(self) -> None:
        """Follows the topic until cancelled, whatever happens to the broker."""
        backoff = Backoff(FIRST_WAIT_S, LONGEST_WAIT_S)
        while True:
            before = dict(self._next)
            try:
                with translating_kafka_errors(self._settings):
                    await self._follow()
            except NotFound:
                self._note_unreachable(f"there is no topic {self._topic}: {self._if_missing}")
            except DispatcherError as error:
                self._note_unreachable(str(error), error.for_tenants)
            except Exception as error:
                metrics.ERRORS.labels("task").inc()
                log.exception("topic could not be followed because of a bug", topic=self._topic)
                self._note_unreachable(f"{self._topic} can't be read: {type(error).__name__}, a bug of ours")
            if self._next != before:
                backoff.reset()
            await backoff.wait()

    def _note_unreachable(self, why: str, for_tenants: str | None = None, event: str = "topic is not followed") -> None:
        if why != self._logged:
            log.warning(event, topic=self._topic, why=why)
        self._logged, self._away = why, for_tenants or why

    async def _follow(self) -> None:
        async with asyncio.timeout(START_S):
            partitions = await partitions_of(self._settings, [self._topic])
        consumer = outside_consumer(self._settings)
        pass_over_unreadable(consumer, self._note_passed_over)
        try:
            async with asyncio.timeout(START_S):
                await consumer.start()
                followed = await self._begin(consumer, partitions)
            await self._read(consumer, followed)
        finally:
            await stopped(consumer)

    async def _begin(
        self, consumer: "AIOKafkaConsumer[bytes, bytes]", partitions: Sequence[TopicPartition]
    ) -> list[TopicPartition]:
        """Seeks the partitions for which a broker answers, and returns them."""
        firsts = await first_offsets(consumer, partitions)
        ends = await end_offsets(consumer, list(firsts))
        followed = [tp for tp in partitions if tp in ends]
        if any(self._next.get(tp.partition, 0) > end for tp, end in ends.items()):
            self._restart()
        # If nothing was read, or retention has removed it, nothing says that the topic is still the same.
        for tp in followed:
            if self._last_in(tp, firsts[tp]) is None:
                self._last.pop(tp.partition, None)
        unseen = [tp for tp in followed if tp.partition not in self._last]
        starts = await self._find_starts(consumer, unseen, firsts, ends)
        self._next |= {tp.partition: start for tp, start in starts.items()}
        self._ends = {tp.partition: end for tp, end in ends.items()}
        consumer.assign(followed)
        self._compared.clear()
        for tp in followed:
            self._seek(consumer, tp)
        self._note_silent([tp for tp in partitions if tp not in ends])
        self._note_progress()
        return followed

    def _note_silent(self, partitions: Sequence[TopicPartition]) -> None:
        """Notes the partitions that are not followed: no broker answers for them."""
        if partitions:
            why = f"no broker answers for {shown(partitions)}: only the other partitions are followed"
            self._note_unreachable(why, event="partitions of a topic are not followed")
        else:
            self._away = self._logged = ""

    def _last_in(self, tp: TopicPartition, first: int) -> Fingerprint | None:
        last = self._last.get(tp.partition)
        return None if last is None or last.offset < first else last

    def _seek(self, consumer: "AIOKafkaConsumer[bytes, bytes]", tp: TopicPartition) -> None:
        """Continues a partition, at the last record that was read of it if there is one, to compare it."""
        last = self._last.get(tp.partition)
        if last is not None:
            self._compared.add(tp)
        consumer.seek(tp, self._next[tp.partition] if last is None else last.offset)

    def _note_passed_over(self, tp: TopicPartition, _first: int, end: int) -> None:
        self.is_complete = False
        self._next[tp.partition] = max(self._next[tp.partition], end)

    def _restart(self) -> None:
        if self._next:
            log.warning("topic is read again from its start: it lost its end, or is another one", topic=self._topic)
        self._next, self._last, self.is_complete = {}, {}, True
        self._sink.reset()

    async def _find_starts(
        self,
        consumer: "AIOKafkaConsumer[bytes, bytes]",
        partitions: Sequence[TopicPartition],
        firsts: Mapping[TopicPartition, int],
        ends: Mapping[TopicPartition, int],
    ) -> dict[TopicPartition, int]:
        if not partitions:
            return {}
        since = int((self._clock() - self._keep_s) * 1000)
        found = await consumer.offsets_for_times({tp: max(0, since) for tp in partitions})
        share = max(1, self._most_read // len(partitions))
        starts: dict[TopicPartition, int] = {}
        for tp in partitions:
            at = found.get(tp)
            wanted = max(ends[tp] if at is None else at.offset, firsts[tp])
            starts[tp] = max(wanted, ends[tp] - share)
            self.is_complete = self.is_complete and starts[tp] == wanted
        return starts

    async def _read(self, consumer: "AIOKafkaConsumer[bytes, bytes]", partitions: Sequence[TopicPartition]) -> None:
        loop = asyncio.get_running_loop()
        heard_at = counted_at = loop.time()
        sources = LogSources(consumer)
        while True:
            raise_if_fetching_ended(consumer)
            polled = await consumer.getmany(timeout_ms=int(POLL_S * 1000), max_records=self._batch)
            for tp in sources.changed(partitions):
                if tp.partition in self._last:
                    self._seek(consumer, tp)
                    polled.pop(tp, None)
            for tp, records in polled.items():
                if not self._take(tp, records):
                    return
                await asyncio.sleep(0)  # buffered records come without a wait: let others have their turn
            if polled:
                heard_at = loop.time()
            elif loop.time() - heard_at > SILENCE_S:
                await self._pass_gaps(consumer, partitions)
                heard_at = loop.time()
            elif self._ends:
                await self._pass_gaps(consumer, partitions, ask=False)
            if loop.time() - counted_at > (SILENT_AGAIN_S if self._away else LOOK_AGAIN_S):
                counted_at = loop.time()
                known = consumer.partitions_for_topic(self._topic)
                if known is not None and len(known) > len(partitions):
                    return  # begin again with all of them

    def _take(self, tp: TopicPartition, records: Sequence[Record]) -> bool:
        """Passes records to the sink. Returns False if they show that the topic is another one."""
        if records and tp in self._compared:
            self._compared.discard(tp)
            is_same = Fingerprint.of(records[0]) == self._last[tp.partition]
            records = records[1:]
        else:
            is_same = not records or records[0].offset >= self._next[tp.partition]
        if not is_same:
            self._restart()
            return False
        if records:
            self._sink.append(records)
            self._last[tp.partition] = Fingerprint.of(records[-1])
            self._next[tp.partition] = records[-1].offset + 1
            self._note_progress()
        return True

    async def _pass_gaps(
        self, consumer: "AIOKafkaConsumer[bytes, bytes]", partitions: Sequence[TopicPartition], *, ask: bool = True
    ) -> None:
        """Moves past offsets without a record (transactions, compaction), and checks that the broker is there."""
        async with asyncio.timeout(STILL_THERE_S):
            if ask:
                await consumer.end_offsets(list(partitions))
            positions = {tp: await consumer.position(tp) for tp in partitions}
        for tp, position in positions.items():
            self._next[tp.partition] = max(self._next[tp.partition], position)
        self._note_progress()

    def _note_progress(self) -> None:
        if all(self._next.get(partition, 0) >= end for partition, end in self._ends.items()):
            self._ends = {}
