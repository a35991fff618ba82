"""Counts the events of each tenant that wait in the retry topics and in the topic of held events."""

import asyncio
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import structlog

from dispatcher.config.settings import Settings
from dispatcher.contract.records import Record
from dispatcher.contract.tenant import TenantKey
from dispatcher.errors import DispatcherError
from dispatcher.kafka.backlog import read_backlog
from dispatcher.kafka.held_topic import tenant_of
from dispatcher.kafka.redrive import DeadEvent
from dispatcher.kafka.topics import held_topic, retry_topics

MAX_READ: Final = 50_000
"""Records that are read for one count. If more wait, the counts are lower bounds."""
WITHIN_S: Final = 30.0

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class WaitingCounts:
    """Events that wait, by tenant."""

    by_tenant: Mapping[TenantKey, int]
    is_at_least: bool = False
    """True if more records wait than were read: every count is a lower bound."""


async def count_waiting(settings: Settings, *, max_read: int = MAX_READ) -> WaitingCounts | None:
    """Counts the events that wait. Reads at most `max_read` records. Returns None if the broker doesn't answer."""
    kafka, counts = settings.kafka, Counter[TenantKey]()
    held = held_topic(kafka.prefix)

    def take(record: Record) -> None:
        tenant = tenant_of(record.headers) if record.topic == held else DeadEvent.of(record).tenant
        if tenant is not None:
            counts[tenant] += 1

    try:
        async with asyncio.timeout(WITHIN_S):
            tiers = retry_topics(kafka.prefix, settings.retry.tiers)
            cut_off = await read_backlog(kafka, tiers, held, max_read, take)
    except (DispatcherError, TimeoutError) as error:
        log.info("events that wait are not counted for notifications", problem=str(error)[:200])
        return None
    return WaitingCounts(counts, bool(cut_off))
