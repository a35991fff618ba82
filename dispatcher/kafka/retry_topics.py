"""Parking: an event that can't be delivered now is written to its tier's topic."""

from dispatcher.contract.records import Record, RetryState, without_retry_state
from dispatcher.delivery.retry_policy import RetryPolicy
from dispatcher.kafka.producer import Producer
from dispatcher.kafka.topics import retry_topics

CLOCKS_DIFFER_S = 60.0
"""So far the clock of the replica that parked a record may be ahead of the one's that reads it."""


class RetryTopics:
    """The tiers. A record keeps its key, value and headers, and gets its journey as `feedback-*` headers."""

    def __init__(self, producer: Producer, topic: str, policy: RetryPolicy) -> None:
        self._producer = producer
        self._topics = retry_topics(topic, policy.tiers)
        self._longest = {
            name: policy.longest_wait_s(tier) for name, tier in zip(self._topics, policy.tiers, strict=True)
        }

    @property
    def topics(self) -> tuple[str, ...]:
        """Shortest delay first."""
        return self._topics

    async def park(self, record: Record, retry_state: RetryState, tier: int) -> None:
        """Write the record to the tier; returns when the broker has it.

        Raises:
            NotWritten: it has not.
        """
        headers = [*without_retry_state(record.headers), *retry_state.headers()]
        await self._producer.write(self._topics[tier], record.key, record.value, headers, "retry")

    def due_in_s(self, record: Record, now: float) -> float:
        """Seconds until a parked record is due, 0 or less where it is.

        One that would have to wait for longer than its tier ever lets a record wait is due now: its header is wrong, or
        the clock was set back since, and waiting would hold up everything behind it for as long as that.
        """
        longest = self._longest.get(record.topic, 0.0)
        wait = RetryState.of(record).not_before - now
        return wait if wait <= longest + CLOCKS_DIFFER_S else 0.0
