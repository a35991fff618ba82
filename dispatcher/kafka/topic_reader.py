"""Reads topics from outside any consumer group: joins, commits and creates nothing."""

import asyncio
from collections.abc import AsyncIterator, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError, LeaderNotAvailableError

from dispatcher.config.kafka_settings import KafkaSettings
from dispatcher.contract.records import Origin, Record
from dispatcher.errors import BrokerUnavailable, NotFound
from dispatcher.kafka.broker_access import peer_of
from dispatcher.kafka.connection import admin_client, connection_arguments, stopped
from dispatcher.kafka.connection_errors import explain_error
from dispatcher.kafka.log_bounds import Range, ranges_of
from dispatcher.kafka.topic_lookup import described_topics
from dispatcher.kafka.unreadable_records import pass_over_unreadable
from dispatcher.tasks import Patience

BATCH = 500
SILENT_S = 30.0
"""Time without a record, although there are some, after which the broker counts as unavailable."""

LEADER_S = 15.0
"""How long a partition may be without a leader that answers: while a broker restarts, others take over."""
SHORT_LEADER_S = 1.0
"""The same time for pages, and for readers of many topics, which name the partitions that they leave out."""
MOST_SHOWN = 5
"""Partitions that a message names."""


class TopicReader:
    """Reads topics between the first and last offsets that they had when they were opened."""

    def __init__(
        self,
        consumer: "AIOKafkaConsumer[bytes, bytes]",
        topic: str,
        ranges: Mapping[TopicPartition, Range],
        silent: Sequence[TopicPartition] = (),
    ) -> None:
        """Prepares a reader of these ranges. `topic`: name of the topic, or of all, for messages."""
        self._consumer = consumer
        self._topic = topic
        self.ranges = ranges
        """Offsets to read, by partition."""
        self.silent = silent
        """Partitions of the topics for which no broker answers. They are not read."""

    @property
    def size(self) -> int:
        """Upper bound on the number of records in the topics: gaps in the offsets count, too."""
        return sum(end - first for first, end in self.ranges.values())

    def within(self, ranges: Mapping[TopicPartition, Range]) -> "TopicReader":
        """Returns a reader of only these ranges. Readers share the connection: finish one before the next."""
        inside: dict[TopicPartition, Range] = {}
        for tp, (first, end) in ranges.items():
            if tp in self.ranges:
                own_first, own_end = self.ranges[tp]
                inside[tp] = (max(first, own_first), min(end, own_end))
        return TopicReader(self._consumer, self._topic, inside)

    def reaching(self, read_to: Mapping[int, int]) -> "TopicReader":
        """Returns a reader whose ranges reach at least these ends: the offsets after records that were read before.

        They exist even if the broker reports a lower end, as the demo's does, see `dispatcher.demo.broker`.
        """
        ranges = {tp: (first, max(end, read_to.get(tp.partition, 0))) for tp, (first, end) in self.ranges.items()}
        return TopicReader(self._consumer, self._topic, ranges)

    async def since(self, at: float) -> "TopicReader":
        """Returns a reader of the records that were written at or after `at`, in Unix seconds.

        Raises:
            KafkaError: the broker did not answer.
        """
        found = await self._consumer.offsets_for_times({tp: max(0, int(at * 1000)) for tp in self.ranges})
        starts = {tp: end if found.get(tp) is None else found[tp].offset for tp, (_, end) in self.ranges.items()}
        return self.within({tp: (starts[tp], end) for tp, (_, end) in self.ranges.items()})

    async def records(self) -> AsyncIterator[list[Record]]:
        """Yields every record, in batches of one partition, rising in each. Can be called again.

        Raises:
            DispatcherError: the broker has fallen silent.
        """
        unread = {tp: range_ for tp, range_ in self.ranges.items() if range_[0] < range_[1]}
        if not unread:
            return
        self._consumer.assign(list(unread))
        for tp, (first, _) in unread.items():
            self._consumer.seek(tp, first)
        while unread:
            async for tp, records in self._poll(unread):
                yield [record for record in records if record.offset < unread[tp][1]]
                await asyncio.sleep(0)  # buffered records come without a wait: let others have their turn
            for tp in [tp for tp, (_, end) in unread.items() if await self._consumer.position(tp) >= end]:
                del unread[tp]
                self._consumer.pause(tp)

    async def _poll(self, unread: Mapping[TopicPartition, Range]) -> AsyncIterator[tuple[TopicPartition, list[Record]]]:
        before = {tp: await self._consumer.position(tp) for tp in unread}
        loop = asyncio.get_running_loop()
        deadline = loop.time() + SILENT_S
        while True:
            polled = await self._consumer.getmany(*unread, timeout_ms=500, max_records=BATCH)
            for tp, records in polled.items():
                yield tp, records
            if polled or {tp: await self._consumer.position(tp) for tp in unread} != before:
                return
            if loop.time() > deadline:
                raise BrokerUnavailable(f"{self._topic}: the broker gives no records")

    async def record_at(self, partition: int, offset: int) -> Record:
        """Returns one record.

        Raises:
            NotFound: there is none at this place.
        """
        tp = TopicPartition(self._topic, partition)
        if tp not in self.ranges:
            raise NotFound(f"{self._topic} has no partition {partition}")
        first, end = self.ranges[tp]
        if not first <= offset < end:
            there = f"it has {first} to {end - 1}" if first < end else "it is empty"
            raise NotFound(f"{self._topic}/{partition} has no offset {offset}: {there}")
        self._consumer.assign([tp])
        self._consumer.seek(tp, offset)
        async for _, records in self._poll({tp: (offset, end)}):
            if records and records[0].offset == offset:
                return records[0]
        raise NotFound(f"{self._topic}/{partition} has no record at offset {offset}: compacted away, or no event")


@asynccontextmanager
async def open_topics(
    settings: KafkaSettings,
    topics: Sequence[str],
    name: str = "",
    *,
    only: Collection[tuple[str, int]] | None = None,
    passes_over_unreadable: bool = False,
    without_silent: bool = False,
    leader_s: float = LEADER_S,
) -> AsyncIterator[TopicReader]:
    """Yields a reader of several topics, read as one, up to their present ends.

    Args:
        name: their name in messages.
        only: topics and numbers of the partitions to read; None: all. Those that don't exist are left out.
        passes_over_unreadable: logs and leaves out a batch that can't be decoded; otherwise it ends the reading.
        without_silent: leaves partitions out for which no broker answers; otherwise they are an error.
        leader_s: how long partitions may be without a leader that answers.

    Raises:
        NotFound: one of them is not there.
        BrokerUnavailable: the broker can't be reached, or no broker answers for a partition.
    """
    with translating_kafka_errors(settings):
        partitions = [tp for tp in await partitions_of(settings, topics) if only is None or tp in only]
        consumer = outside_consumer(settings)
        if passes_over_unreadable:
            pass_over_unreadable(consumer, lambda _tp, _first, _end: None)
        try:
            await consumer.start()
            ranges = await _ranges(consumer, partitions, leader_s)
            silent = [tp for tp in partitions if tp not in ranges]
            if silent and not without_silent:
                raise BrokerUnavailable(f"kafka at {settings.bootstrap_servers}: no broker answers for {shown(silent)}")
            yield TopicReader(consumer, name or topics[0], ranges, silent)
        finally:
            await stopped(consumer)


async def fetch_record(settings: KafkaSettings, place: Origin) -> Record:
    """Reads one record. The topic's other partitions may be without a leader.

    Raises:
        NotFound: there is no record at this place.
        BrokerUnavailable: the broker can't be reached, or no broker answers for the partition.
    """
    async with open_topics(settings, [place.topic], only={(place.topic, place.partition)}) as reader:
        record: Record = await reader.record_at(place.partition, place.offset)
        return record


async def _ranges(
    consumer: "AIOKafkaConsumer[bytes, bytes]", partitions: Sequence[TopicPartition], leader_s: float
) -> dict[TopicPartition, Range]:
    """Returns the ranges of the partitions, without those for which no broker answers within `leader_s`.

    Raises:
        KafkaError, TimeoutError: no broker answers for any.
    """
    patience = Patience(0.1, 1.0, leader_s)
    ranges: dict[TopicPartition, Range] = {}
    while left := [tp for tp in partitions if tp not in ranges]:
        try:
            ranges |= await ranges_of(consumer, left)
        except LeaderNotAvailableError:
            pass  # a broker has answered, and says that none leads them
        except (KafkaError, TimeoutError):
            if patience.is_over and not ranges:
                raise
        if patience.is_over:
            break
        await patience.wait()
    return ranges


def shown(partitions: Iterable[tuple[str, int]]) -> str:
    """Returns `topic/0, topic/3` for messages, at most `MOST_SHOWN` of them."""
    places = [f"{topic}/{number}" for topic, number in sorted(partitions)]
    more = len(places) - MOST_SHOWN
    return ", ".join(places[:MOST_SHOWN]) + (f" and {more} more partitions" if more > 0 else "")


def outside_consumer(settings: KafkaSettings, group_id: str | None = None) -> "AIOKafkaConsumer[bytes, bytes]":
    """Returns an unstarted consumer that joins no group. If its position is gone, it reads from the first offset.

    `group_id`: the group that it commits for.
    """
    return AIOKafkaConsumer(
        **connection_arguments(settings),
        group_id=group_id,
        enable_auto_commit=False,
        auto_offset_reset="earliest",
        fetch_max_bytes=settings.fetch_max_bytes,
    )


async def partitions_of(settings: KafkaSettings, topics: Sequence[str]) -> list[TopicPartition]:
    """Returns the topics' partitions, in order.

    Raises:
        NotFound: one of them is not there.
    """
    async with admin_client(settings) as admin:
        described = await described_topics(admin, topics)
    missing = [topic for topic in topics if topic not in described]
    if missing:
        raise NotFound(f"there is no topic {missing[0]}: {_cure_of_missing(settings, missing[0])}")
    numbers = {topic: sorted(found["partition"] for found in described[topic]) for topic in topics}
    return [TopicPartition(topic, number) for topic in topics for number in numbers[topic]]


def _cure_of_missing(settings: KafkaSettings, topic: str) -> str:
    if topic == settings.topic:
        return "create it, or correct kafka.topic"
    if topic.startswith(f"{settings.prefix}."):
        return "create it with `dispatcher topics --create`"
    return "correct the name"


@contextmanager
def translating_kafka_errors(settings: KafkaSettings) -> Iterator[None]:
    """Translates a Kafka client's errors into BrokerUnavailable: one line on what failed, where, and the cure."""
    try:
        yield
    except (KafkaError, OSError, TimeoutError) as error:
        address = settings.bootstrap_servers
        _, detail = explain_error(error, peer_of(settings, address))
        raise BrokerUnavailable(f"kafka at {address}: {detail}") from error
