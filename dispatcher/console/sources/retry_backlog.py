"""Counts each tenant's events in each retry tier, and its held events by reason, for all tenants at once."""

import asyncio
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from dispatcher.config.settings import Settings
from dispatcher.config.units import format_duration
from dispatcher.console.model import TierModel
from dispatcher.contract.records import Record, RetryState
from dispatcher.contract.tenant import TenantKey
from dispatcher.errors import BrokerUnavailable, Busy, DispatcherError
from dispatcher.kafka.backlog import read_backlog
from dispatcher.kafka.held_topic import tenant_of
from dispatcher.kafka.redrive import DeadEvent
from dispatcher.kafka.topics import held_topic, retry_topics
from dispatcher.tasks import SingleFlight

REMEMBERED_S: Final = 10.0
MOST_READ: Final = 10_000
"""Records that are read in total, which takes about half a second in several steps."""
HELD: Final = "held"
"""The tier of events that wait for a change of configuration."""
WITHIN_S: Final = 20.0
"""Seconds for the whole count; a broker that takes longer counts as unavailable."""
CALLER_WAITS_S: Final = 5.0
"""Seconds after a count's begin for which callers await it: a person waits for the page."""


@dataclass(slots=True)
class _Count:
    events: int = 0
    next_due: float | None = None
    first_seen: float | None = None
    """The earliest: this event expires first."""

    def add(self, state: RetryState) -> None:
        self.events += 1
        seen = state.first_seen
        self.first_seen = seen if self.first_seen is None else min(seen, self.first_seen)


@dataclass(frozen=True, slots=True)
class _BacklogCounts:
    counts: Mapping[tuple[TenantKey, str], _Count]
    """By tenant and topic."""
    held: Mapping[TenantKey, Mapping[str, _Count]]
    """Held events by tenant and reason."""
    cut_off: frozenset[str]


class RetryBacklog:
    """Counts what waits in the retry topics and in the topic of held events.

    A count reads from the groups' positions to the topics' ends. It is bounded, and cached for some seconds.
    """

    def __init__(
        self, settings: Settings, most_read: int = MOST_READ, clock: Callable[[], float] = time.monotonic
    ) -> None:
        tiers = settings.retry.tiers
        self._tiers = dict(zip(retry_topics(settings.kafka.prefix, tiers), map(format_duration, tiers), strict=True))
        self._held_topic = held_topic(settings.kafka.prefix)
        self._kafka = settings.kafka
        self._max_age_s = settings.retry.max_age
        self._most_read = most_read
        self._clock = clock
        self._counting = SingleFlight[None, _BacklogCounts | DispatcherError]("count of what waits")
        self._found: _BacklogCounts | DispatcherError | None = None
        self._found_at = 0.0
        self._began_at: float | None = None
        """When the running count began; None if none runs."""

    async def of(self, tenant: TenantKey) -> Sequence[TierModel]:
        """Returns the tiers in which events of the tenant wait, the shortest first, then the reasons for held events.

        The counts of held events are lower bounds if more events wait than are read.

        Raises:
            DispatcherError: the broker doesn't answer; the error is cached for some seconds, too.
        """
        found = await self._counted()
        if isinstance(found, DispatcherError):
            raise type(found)(str(found))  # a new one: the cached error serves many callers
        tiers = []
        for topic, tier in self._tiers.items():
            count = found.counts.get((tenant, topic), _Count())
            is_at_least = topic in found.cut_off
            if count.events or is_at_least:
                tiers.append(TierModel(tier, count.events, count.next_due, is_at_least, None, self._expiry(count)))
        is_at_least = self._held_topic in found.cut_off
        for reason, count in sorted(found.held.get(tenant, {}).items()):
            tiers.append(TierModel(HELD, count.events, None, is_at_least, reason, self._expiry(count)))
        return tiers

    def _expiry(self, count: _Count) -> float | None:
        return None if count.first_seen is None else count.first_seen + self._max_age_s

    async def close(self) -> None:
        """Cancels a running count."""
        await self._counting.close()

    async def _counted(self) -> _BacklogCounts | DispatcherError:
        if self._found is not None and self._clock() - self._found_at < REMEMBERED_S:
            return self._found
        task = self._counting.start(None, self._count_and_keep)
        waited_s = 0.0 if self._began_at is None else self._clock() - self._began_at
        await asyncio.wait({task}, timeout=max(0.0, CALLER_WAITS_S - waited_s))  # unlike awaiting it, never cancels it
        if not task.done():
            return BrokerUnavailable(f"kafka at {self._kafka.bootstrap_servers} does not answer")
        return Busy("what waits is no longer counted: try again in a minute") if task.cancelled() else task.result()

    async def _count_and_keep(self) -> _BacklogCounts | DispatcherError:
        self._began_at = self._clock()
        try:
            found = await self._count()
        finally:
            self._began_at = None
        self._found, self._found_at = found, self._clock()
        return found

    async def _count(self) -> _BacklogCounts | DispatcherError:
        counts: defaultdict[tuple[TenantKey, str], _Count] = defaultdict(_Count)
        held: defaultdict[TenantKey, defaultdict[str, _Count]] = defaultdict(lambda: defaultdict(_Count))

        def take(record: Record) -> None:
            if record.topic == self._held_topic:
                state = RetryState.of(record)
                held[tenant_of(record.headers)][state.reason or "unknown"].add(state)
                return
            tenant = DeadEvent.of(record).tenant
            if tenant is None:
                return
            count, state = counts[tenant, record.topic], RetryState.of(record)
            count.add(state)
            due = state.not_before
            count.next_due = due if count.next_due is None else min(due, count.next_due)

        try:
            async with asyncio.timeout(WITHIN_S):
                cut_off = await read_backlog(self._kafka, tuple(self._tiers), self._held_topic, self._most_read, take)
        except TimeoutError:
            return BrokerUnavailable(f"kafka at {self._kafka.bootstrap_servers} does not answer")
        except DispatcherError as error:
            return error
        return _BacklogCounts(counts, held, cut_off)
