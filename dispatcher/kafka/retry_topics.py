"""Parking: an event that can't be delivered now is written to its tier's topic."""

from collections.abc import Mapping
from typing import Final

from dispatcher.contract.records import Record, RetryState, without_retry_state
from dispatcher.delivery.retry_policy import RetryPolicy
from dispatcher.kafka.producer import Producer
from dispatcher.kafka.topics import retry_topics

CLOCKS_DIFFER_S: Final = 60.0
"""How far the clock of the replica that parked a record may be ahead of the clock of the one that reads it."""


class RetryTopics:
    """Parks records in the tiers' topics. Key, value and headers stay; `feedback-*` headers hold the retry state."""

    def __init__(
        self, producer: Producer, prefix: str, policy: RetryPolicy, former: Mapping[str, float] | None = None
    ) -> None:
        """Prepares the topics of the policy's tiers. `former`: delay, in seconds, of each former topic still read."""
        self._producer = producer
        self._tiers = retry_topics(prefix, policy.tiers)
        delays = {**(former or {}), **dict(zip(self._tiers, policy.tiers, strict=True))}
        self._longest = {name: policy.longest_wait_s(delay) for name, delay in delays.items()}

    @property
    def tiers(self) -> tuple[str, ...]:
        """Topics that are written, shortest delay first."""
        return self._tiers

    @property
    def topics(self) -> tuple[str, ...]:
        """Topics that are read: those that are written, and those of former names."""
        return (*self._tiers, *(name for name in self._longest if name not in self._tiers))

    async def park(self, record: Record, retry_state: RetryState, tier: int) -> None:
        """Writes the record to the tier; returns when the broker has acknowledged it.

        Raises:
            RecordTooLarge: the tier's topic doesn't accept a record of this size.
            NotWritten: it was not written.
        """
        headers = [*without_retry_state(record.headers), *retry_state.headers()]
        await self._producer.write(self._tiers[tier], record.key, record.value, headers, "retry")

    def due_in_s(self, record: Record, now: float) -> float:
        """Returns the seconds until a parked record is due, 0 or less if it is due.

        A record that would wait longer than its tier's longest wait, plus the tolerance for clocks, is due now: its
        header is wrong, or the clock was set back, and waiting would hold up every record behind it.
        """
        longest = self._longest.get(record.topic, 0.0)
        wait = RetryState.of(record).not_before - now
        return wait if wait <= longest + CLOCKS_DIFFER_S else 0.0
