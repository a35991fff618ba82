"""Commits the positions of held events, with a snapshot of the events before them that still wait."""

import asyncio
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Final

import structlog
from aiokafka import TopicPartition
from aiokafka.errors import KafkaError

from dispatcher.errors import NotWritten
from dispatcher.kafka.held_assignment import HeldAssignment
from dispatcher.kafka.held_topic import HeldTopic, Snapshot, metadata_of
from dispatcher.kafka.membership import GroupClient
from dispatcher.telemetry import metrics

log = structlog.get_logger(__name__)

COMMIT_WITHIN_S: Final = 10.0


class HeldCommits:
    """Writes snapshots to the topic of held events and commits positions, one commit at a time."""

    def __init__(self, group_id: str, topic: HeldTopic, assigned: Mapping[TopicPartition, HeldAssignment]) -> None:
        """Args:
        assigned: the partitions of this member, kept up to date by its owner.
        """
        self._group_id = group_id
        self._topic = topic
        self._assigned = assigned
        self._lock = asyncio.Lock()

    async def try_to_commit(self, client: GroupClient | None, partitions: Iterable[HeldAssignment]) -> bool:
        """Commits what is finished of the partitions. Returns False if that failed: the next commit covers it."""
        try:
            await self._commit(client, partitions)
        except (KafkaError, OSError, TimeoutError, NotWritten) as error:
            metrics.COMMIT_FAILURES.inc()
            log.warning("commit failed", group=self._group_id, error=type(error).__name__, detail=str(error)[:256])
            return False
        return True

    async def _commit(self, client: GroupClient | None, partitions: Iterable[HeldAssignment]) -> None:
        async with self._lock:
            offsets: dict[TopicPartition, tuple[int, str]] = {}
            states: dict[TopicPartition, tuple[int, Snapshot]] = {}
            for one in partitions:
                if one.state is None or not one.is_dirty:
                    continue
                one.is_dirty = False
                position, snapshot = states[one.tp] = one.state.to_commit()
                if states[one.tp] == one.committed:
                    del states[one.tp]
                    continue
                at = await self._topic.write_snapshot(one.tp.partition, snapshot) if snapshot.tenants else None
                parts = [one.metadata_at(position), "" if at is None else metadata_of(at)]
                offsets[one.tp] = (position, ",".join(filter(None, parts)))
            if not offsets or client is None:
                return
            try:
                async with asyncio.timeout(COMMIT_WITHIN_S):
                    await client.commit(offsets)
            except BaseException:
                for tp in offsets:
                    if tp in self._assigned:
                        self._assigned[tp].is_dirty = True
                raise
            for tp, committed in states.items():
                if (assigned := self._assigned.get(tp)) is not None:
                    assigned.committed = committed
                    if assigned.left is not None:
                        assigned.left = replace(assigned.left, committed=offsets[tp])
