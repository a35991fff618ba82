"""Reads what waits in the retry topics and in the topic of held events, from the groups' positions to the ends."""

from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import TypeVar

from aiokafka import TopicPartition

from dispatcher.config.kafka_settings import KafkaSettings
from dispatcher.contract.records import Record
from dispatcher.errors import BrokerUnavailable
from dispatcher.kafka.commit_metadata import CommittedPosition, own_metadata
from dispatcher.kafka.committed_offsets import committed_metadata, committed_positions
from dispatcher.kafka.groups import held_group, retry_group
from dispatcher.kafka.held_topic import Snapshot, SnapshotOffsets, is_snapshot, tenant_of
from dispatcher.kafka.log_bounds import Range
from dispatcher.kafka.topic_reader import SHORT_LEADER_S, TopicReader, open_topics

Found = TypeVar("Found")
_IsFinished = Callable[[Record], bool]


async def read_backlog(
    settings: KafkaSettings, topics: Sequence[str], held_topic: str, most: int, take: Callable[[Record], None]
) -> frozenset[str]:
    """Calls `take` with every unfinished parked or held record, the oldest first within each partition.

    Reads at most `most` records, and leaves partitions out for which no broker answers. Returns the topics in which
    more are unread.

    Raises:
        NotFound: one of the topics is not there.
        BrokerUnavailable: the broker can't be reached, or doesn't return the groups' positions.
    """
    names = [*topics, held_topic]
    async with open_topics(settings, names, "the retry topics", without_silent=True, leader_s=SHORT_LEADER_S) as reader:
        of_held = [tp for tp in reader.ranges if tp.topic == held_topic]
        parked = await _parked_positions(settings, [tp for tp in reader.ranges if tp.topic != held_topic])
        held = await _committed(settings, lambda: committed_metadata(settings, held_group(settings.group_id), of_held))
        positions = {tp: one.position for tp, one in parked.items()} | {tp: at for tp, (at, _) in held.items()}
        ranges = {tp: _ahead(range_, positions.get(tp)) for tp, range_ in reader.ranges.items()}
        shares = _shares({tp: end - first for tp, (first, end) in ranges.items()}, most)
        looked_at = {tp: (first, first + shares[tp]) for tp, (first, _) in ranges.items()}
        finished: dict[TopicPartition, _IsFinished] = {tp: _is_parked_finished(one) for tp, one in parked.items()}
        snapshots = await _snapshots(reader, {tp: own_metadata(*commit) for tp, commit in held.items()})
        finished |= {tp: _is_held_finished(snapshots.get(tp)) for tp in of_held}
        async for records in reader.within(looked_at).records():
            for record in records:
                is_finished = finished.get(TopicPartition(record.topic, record.partition))
                if is_finished is None or not is_finished(record):
                    take(record)
        cut_off = [tp for tp, (first, end) in ranges.items() if shares[tp] < end - first]
        return frozenset(tp.topic for tp in (*cut_off, *reader.silent))


def _is_parked_finished(committed: CommittedPosition) -> _IsFinished:
    tracker = committed.tracker
    return lambda record: tracker.was_finished(record.offset)


def _is_held_finished(snapshot: Snapshot | None) -> _IsFinished:
    """Returns a test for finished records: snapshots, and the events that the snapshot lists as finished."""
    tenants = {} if snapshot is None else snapshot.tenants

    def is_finished(record: Record) -> bool:
        if is_snapshot(record.headers):
            return True
        progress = tenants.get(tenant_of(record.headers))
        return progress is not None and progress.covers(record.offset)

    return is_finished


async def _snapshots(reader: TopicReader, metadata: Mapping[TopicPartition, str]) -> dict[TopicPartition, Snapshot]:
    """Reads the snapshots that commits name, without those that are gone."""
    places: dict[TopicPartition, Range] = {}
    for tp, text in metadata.items():
        offset, (first, end) = SnapshotOffsets.of(text).progress, reader.ranges[tp]
        if offset is not None and first <= offset < end:
            places[tp] = (offset, offset + 1)
    found = {}
    async for records in reader.within(places).records():
        for record in records:
            if (snapshot := Snapshot.of(record)) is not None:
                found[TopicPartition(record.topic, record.partition)] = snapshot
    return found


async def _parked_positions(
    settings: KafkaSettings, partitions: Sequence[TopicPartition]
) -> dict[TopicPartition, CommittedPosition]:
    group = retry_group(settings.group_id)
    return await _committed(settings, lambda: committed_positions(settings, group, partitions))


async def _committed(settings: KafkaSettings, ask: Callable[[], Coroutine[object, object, Found]]) -> Found:
    try:
        return await ask()
    except (KeyError, AttributeError, ValueError) as error:
        why = f"{settings.bootstrap_servers} does not return the positions of the dispatchers' groups"
        raise BrokerUnavailable(f"kafka at {why}: {type(error).__name__}") from error


def _ahead(there: Range, position: int | None) -> Range:
    first, end = there
    return (first, end) if position is None else (min(max(first, position), end), end)


def _shares(sizes: Mapping[TopicPartition, int], most: int) -> dict[TopicPartition, int]:
    """Returns how many records of each partition are looked at. A long partition never displaces a short one."""
    shares: dict[TopicPartition, int] = {}
    left = most
    for number, tp in enumerate(sorted(sizes, key=lambda tp: sizes[tp])):
        shares[tp] = min(sizes[tp], left // (len(sizes) - number))
        left -= shares[tp]
    return shares
