"""Reads what another group has committed, with its metadata, without joining it."""

from collections.abc import Sequence
from typing import Final

from aiokafka import TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import (
    GroupCoordinatorNotAvailableError,
    GroupLoadInProgressError,
    NotCoordinatorForGroupError,
)
from aiokafka.structs import OffsetAndMetadata

from dispatcher.config.kafka_settings import KafkaSettings
from dispatcher.kafka.commit_metadata import CommittedPosition, decode_metadata
from dispatcher.kafka.connection import admin_client
from dispatcher.tasks import Patience

COORDINATOR_S: Final = 15.0
"""Time to wait for a coordinator that is missing or not ready: a new cluster has none in its first seconds."""
NOT_READY: Final = (GroupCoordinatorNotAvailableError, NotCoordinatorForGroupError, GroupLoadInProgressError)
"""Errors of brokers meanwhile: the group has no coordinator, it has just moved, or it still loads the offsets."""


async def committed_positions(
    settings: KafkaSettings, group_id: str, partitions: Sequence[TopicPartition]
) -> dict[TopicPartition, CommittedPosition]:
    """Returns what a group has committed, as `committed_offsets` does, with its metadata decoded."""
    known = await committed_metadata(settings, group_id, partitions)
    return {tp: decode_metadata(position, metadata) for tp, (position, metadata) in known.items()}


async def committed_metadata(
    settings: KafkaSettings, group_id: str, partitions: Sequence[TopicPartition]
) -> dict[TopicPartition, tuple[int, str]]:
    """Returns what a group has committed, as `committed_offsets` does, with its metadata as written."""
    async with admin_client(settings) as admin:
        known = await committed_offsets(admin, group_id, partitions)
    return {tp: (state.offset, state.metadata or "") for tp, state in known.items()}


async def committed_offsets(
    admin: AIOKafkaAdminClient, group_id: str, partitions: Sequence[TopicPartition]
) -> dict[TopicPartition, OffsetAndMetadata]:
    """Returns what a group has committed, without the partitions that have no commit.

    The partitions are named because not all brokers can list everything that a group has. Waits up to
    `COORDINATOR_S` for a coordinator, and then raises the broker's last error.

    Raises:
        KafkaError, OSError, TimeoutError: no broker answers, or one refuses.
        KeyError, AttributeError: aiokafka doesn't understand the answer.
    """
    if not partitions:
        return {}
    patience = Patience(0.1, 1.0, COORDINATOR_S)
    while True:
        try:
            known = await admin.list_consumer_group_offsets(group_id, partitions=list(partitions))
        except NOT_READY:
            if patience.is_over:
                raise
        else:
            return {tp: state for tp, state in known.items() if state.offset >= 0}
        await patience.wait()
