"""Distinguishes a group's very first start from a later one for which Kafka has no positions any more.

Kafka forgets the positions of a group that had no members for `offsets.retention.minutes` (7 days by default), and
those of a topic or group that is deleted. The group's own topics stay: one that ever had a record has an end above
zero, even after retention.
"""

from collections.abc import Awaitable, Callable, Iterable
from typing import Final

import structlog
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError

from dispatcher.config.settings import Settings
from dispatcher.kafka.connection import admin_client, stopped
from dispatcher.kafka.log_bounds import end_offsets
from dispatcher.kafka.membership import GroupClient
from dispatcher.kafka.topic_lookup import described_topics
from dispatcher.kafka.topic_reader import outside_consumer
from dispatcher.kafka.topics import planned_topics

log = structlog.get_logger(__name__)

FindEarlierStart = Callable[[], Awaitable[str | None]]
CURE: Final = (
    "kafka-consumer-groups.sh --reset-offsets sets another position while no dispatcher runs; a longer "
    "offsets.retention.minutes of the brokers keeps positions"
)


async def find_earlier_start(settings: Settings) -> str | None:
    """Returns an own topic that holds or held a record, so that the group was started before; None if none did.

    Raises what aiokafka raises if no broker answers.
    """
    async with admin_client(settings.kafka) as admin:
        described = await described_topics(admin, [plan.name for plan in planned_topics(settings, 1, 1)])
    own = [TopicPartition(name, one["partition"]) for name, partitions in described.items() for one in partitions]
    if not own:
        return None
    consumer: AIOKafkaConsumer[bytes, bytes] = outside_consumer(settings.kafka)
    try:
        await consumer.start()
        ends = await end_offsets(consumer, own)
    finally:
        await stopped(consumer)
    return next((tp.topic for tp in own if ends.get(tp, 0) > 0), None)


class GonePositions:
    """Notices that a group has no position in a topic although it was started before."""

    def __init__(self, group_id: str, find_earlier_start: FindEarlierStart) -> None:
        self._group_id = group_id
        self._find_earlier_start = find_earlier_start
        self._looked_at: set[str] = set()

    def exclude(self, topics: Iterable[str]) -> None:
        """Notes topics in which the group has positions, or that are new: their partitions without one are new."""
        self._looked_at.update(topics)

    async def find(self, client: GroupClient, topics: set[str], start_at_end: set[str]) -> set[str]:
        """Returns those of the topics whose positions are gone, with a warning. Looks at each topic once.

        `start_at_end`: topics that would be read from their ends, so that the answer is needed.

        Raises:
            KafkaError, TimeoutError: no broker answers what is needed.
        """
        gone = set()
        for topic in topics - self._looked_at:
            every = client.partitions_of(topic)
            evidence = None if await client.committed(every) else await self._evidence(is_needed=topic in start_at_end)
            # Another member may have been the first one, and have written since.
            if evidence is not None and not await client.committed(every):
                gone.add(topic)
                log.warning(
                    "positions of the group are gone, though it was started before: read from the log's start",
                    group=self._group_id, topic=topic, evidence=f"topic {evidence} has had records",
                    cause="no member for offsets.retention.minutes, or the topic or the group was deleted", cure=CURE,
                )  # fmt: skip
            self._looked_at.add(topic)
        return gone

    async def _evidence(self, *, is_needed: bool) -> str | None:
        try:
            return await self._find_earlier_start()
        # aiokafka raises KeyError, AttributeError and ValueError on odd answers.
        except (KafkaError, OSError, TimeoutError, KeyError, AttributeError, ValueError) as error:
            if is_needed:
                raise KafkaError(f"own topics can't be looked at: {type(error).__name__} {error}") from error
            log.info("not known whether this is the group's first start", error=type(error).__name__)
            return None
