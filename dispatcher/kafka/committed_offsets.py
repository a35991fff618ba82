"""Reads what another group has committed, with its metadata, without joining it."""

from collections.abc import Sequence

from aiokafka import TopicPartition

from dispatcher.config.kafka_settings import KafkaSettings
from dispatcher.kafka.commit_metadata import CommittedPosition, decode_metadata
from dispatcher.kafka.connection import admin_client


async def committed_positions(
    settings: KafkaSettings, group_id: str, partitions: Sequence[TopicPartition]
) -> dict[TopicPartition, CommittedPosition]:
    """Returns what a group has committed, without the partitions that have no commit.

    Raises what aiokafka raises; KeyError and AttributeError on odd answers, too.
    """
    known = await committed_metadata(settings, group_id, partitions)
    return {tp: decode_metadata(position, metadata) for tp, (position, metadata) in known.items()}


async def committed_metadata(
    settings: KafkaSettings, group_id: str, partitions: Sequence[TopicPartition]
) -> dict[TopicPartition, tuple[int, str]]:
    """Returns committed positions with their metadata as written, without the partitions that have no commit.

    Raises what aiokafka raises; KeyError and AttributeError on odd answers, too.
    """
    async with admin_client(settings) as admin:
        known = await admin.list_consumer_group_offsets(group_id, partitions=list(partitions))
    return {tp: (state.offset, state.metadata or "") for tp, state in known.items() if state.offset >= 0}
