"""Membership of a consumer group, as aiokafka has it: the client that reads, and who hears of assignments."""

from collections.abc import Awaitable, Iterable, Sequence
from typing import Protocol

import structlog
from aiokafka import AIOKafkaConsumer, ConsumerRebalanceListener, TopicPartition

from dispatcher.config.settings import KafkaSettings
from dispatcher.kafka.connection import connection_arguments, stopped
from dispatcher.telemetry import metrics

log = structlog.get_logger(__name__)


class Member(Protocol):
    """Hears which partitions are its own."""

    async def assigned(self, tps: Iterable[TopicPartition], /) -> None: ...
    async def revoked(self, tps: Iterable[TopicPartition], /) -> None: ...


class Assignments(ConsumerRebalanceListener):  # type: ignore[misc]  # aiokafka has no types
    """Hands aiokafka's callbacks on; an error in one would be swallowed by aiokafka, so it is told here."""

    def __init__(self, member: Member) -> None:
        self._member = member

    async def on_partitions_assigned(self, assigned: Iterable[TopicPartition]) -> None:
        await self._told(self._member.assigned(assigned))

    async def on_partitions_revoked(self, revoked: Iterable[TopicPartition]) -> None:
        await self._told(self._member.revoked(revoked))

    async def _told(self, item: Awaitable[None]) -> None:
        try:
            await item
        except Exception:
            metrics.ERRORS.labels("consumer").inc()
            log.exception("rebalance failed because of a bug")
            raise


async def join(
    settings: KafkaSettings, topics: Sequence[str], group_id: str, listener: Assignments, *, auto_offset_reset: str
) -> "AIOKafkaConsumer[bytes, bytes]":
    """Join the group and give the client, started; it commits nothing by itself.

    Raises what aiokafka raises where no broker answers.
    """
    consumer: AIOKafkaConsumer[bytes, bytes] = AIOKafkaConsumer(
        **connection_arguments(settings) | {"request_timeout_ms": int(max(20.0, settings.session_timeout) * 1000)},
        group_id=group_id,
        group_instance_id=settings.group_instance_id,
        auto_offset_reset=auto_offset_reset,
        enable_auto_commit=False,
        isolation_level="read_committed",
        session_timeout_ms=int(settings.session_timeout * 1000),
        heartbeat_interval_ms=int(min(3.0, settings.session_timeout / 5) * 1000),
        rebalance_timeout_ms=60_000,
        # The poll loop stops only with the event loop, and then the heartbeats stop too: this limit adds nothing,
        # and would throw us out of the group while all partitions wait for room.
        max_poll_interval_ms=24 * 3600 * 1000,
        fetch_max_bytes=settings.fetch_max_bytes,
        max_partition_fetch_bytes=min(settings.fetch_max_bytes, 1024 * 1024),
        fetch_max_wait_ms=20,
    )
    consumer.subscribe(topics, listener=listener)
    try:
        await consumer.start()
    except BaseException:
        await stopped(consumer)
        raise
    return consumer
