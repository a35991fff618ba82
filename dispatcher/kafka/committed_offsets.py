"""What a group has committed, with its metadata: aiokafka's consumer gives the offset only, its admin client both."""

import asyncio
from collections.abc import Sequence

import structlog
from aiokafka import TopicPartition

from dispatcher.config.settings import KafkaSettings
from dispatcher.kafka.connection import admin_client
from dispatcher.kafka.offset_tracker import Run, decode_runs

log = structlog.get_logger(__name__)

TIMEOUT_S = 5.0
TRIES = 3


class Committed:
    """Reads a group's commits."""

    def __init__(self, settings: KafkaSettings, group_id: str) -> None:
        self._settings = settings
        self._group_id = group_id

    async def read(self, partitions: Sequence[TopicPartition]) -> dict[TopicPartition, tuple[int, list[Run]]]:
        """Committed position and the runs finished beyond it, for partitions that have a commit.

        A broker that can't tell costs repeats, not losses: the result is then empty, which skips nothing.
        """
        if not partitions:
            return {}
        for last in (False,) * (TRIES - 1) + (True,):
            try:
                async with asyncio.timeout(TIMEOUT_S):
                    return await committed_positions(self._settings, self._group_id, partitions)
            except Exception as error:  # noqa: BLE001  (aiokafka raises KeyError and AttributeError on odd answers)
                log.warning(
                    "committed metadata can't be read", group=self._group_id, error=type(error).__name__,
                    consequence="records finished out of order may be repeated" if last else "trying again",
                )  # fmt: skip
        return {}


async def committed_positions(
    settings: KafkaSettings, group_id: str, partitions: Sequence[TopicPartition]
) -> dict[TopicPartition, tuple[int, list[Run]]]:
    """Committed position of a group and the runs finished beyond it, for partitions that have a commit.

    Raises what aiokafka raises; KeyError and AttributeError on odd answers, too.
    """
    async with admin_client(settings) as admin:
        known = await admin.list_consumer_group_offsets(group_id, partitions=list(partitions))
    return {
        tp: (state.offset, decode_runs(state.offset, state.metadata or ""))
        for tp, state in known.items()
        if state.offset >= 0
    }
