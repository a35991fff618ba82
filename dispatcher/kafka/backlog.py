"""What waits in the retry topics: from where their group has come to, up to their ends."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Final

from aiokafka import TopicPartition
from aiokafka.errors import GroupCoordinatorNotAvailableError

from dispatcher.config.settings import KafkaSettings
from dispatcher.contract.records import Record
from dispatcher.errors import BrokerUnavailable
from dispatcher.kafka.commit_metadata import CommittedPosition
from dispatcher.kafka.committed_offsets import committed_positions
from dispatcher.kafka.topic_reader import Range, open_topics

TRIES: Final = 5
PAUSE_S: Final = 0.5


async def read_backlog(
    settings: KafkaSettings, topics: Sequence[str], most: int, take: Callable[[Record], None]
) -> frozenset[str]:
    """Show every parked record that is not finished, the oldest of each partition first.

    At most `most` records are looked at; gives the topics that hold more.

    Raises:
        NotFound: one of the topics is not there.
        BrokerUnavailable: the broker can't be reached, or doesn't tell how far the group has come.
    """
    async with open_topics(settings, topics, "the retry topics") as reader:
        known = await _committed(settings, list(reader.ranges))
        ranges = {tp: _ahead(range_, known.get(tp)) for tp, range_ in reader.ranges.items()}
        shares = _shares({tp: end - first for tp, (first, end) in ranges.items()}, most)
        looked_at = {tp: (first, first + shares[tp]) for tp, (first, _) in ranges.items()}
        finished = {tp: known[tp].tracker for tp in ranges if tp in known}
        async for records in reader.within(looked_at).records():
            for record in records:
                tracker = finished.get(TopicPartition(record.topic, record.partition))
                if tracker is None or not tracker.was_finished(record.offset):
                    take(record)
        return frozenset(tp.topic for tp, (first, end) in ranges.items() if shares[tp] < end - first)


async def _committed(
    settings: KafkaSettings, partitions: Sequence[TopicPartition]
) -> dict[TopicPartition, CommittedPosition]:
    group = f"{settings.group_id}.retry"
    try:
        for _ in range(TRIES - 1):
            with suppress(GroupCoordinatorNotAvailableError):  # a broker that has just started is about to have one
                return await committed_positions(settings, group, partitions)
            await asyncio.sleep(PAUSE_S)
        return await committed_positions(settings, group, partitions)
    except (KeyError, AttributeError, ValueError) as error:
        why = f"{settings.bootstrap_servers} does not tell how far the dispatchers have come"
        raise BrokerUnavailable(f"kafka at {why}: {type(error).__name__}") from error


def _ahead(there: Range, committed: CommittedPosition | None) -> Range:
    first, end = there
    return (first, end) if committed is None else (min(max(first, committed.position), end), end)


def _shares(sizes: Mapping[TopicPartition, int], most: int) -> dict[TopicPartition, int]:
    """How many records of each partition are looked at: a long one never takes the place of a short one."""
    shares: dict[TopicPartition, int] = {}
    left = most
    for number, tp in enumerate(sorted(sizes, key=lambda tp: sizes[tp])):
        shares[tp] = min(sizes[tp], left // (len(sizes) - number))
        left -= shares[tp]
    return shares
