"""Attempts from the history topic, kept in bounded memory: counts of every tenant, and each one's latest attempts."""

import sys
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Final

import structlog

from dispatcher.config.settings import Settings
from dispatcher.console.model import AttemptModel, AttemptPage, AttemptQuery, Outcomes, Window
from dispatcher.console.sources.attempt_counts import Failing, TenantCounts, no_outcomes
from dispatcher.console.sources.fair_buffer import FairBuffer
from dispatcher.contract.history import MAX_ANSWER, MAX_DETAIL, HistoryEntry, HistoryOutcome, decode_record
from dispatcher.contract.records import Origin, Record
from dispatcher.contract.tenant import TenantKey
from dispatcher.errors import NotFound, UnreadableEvent
from dispatcher.kafka.topic_tailer import TopicTailer
from dispatcher.kafka.topics import history_topic

KEEP_S: Final = 7 * 86_400.0
MOST_READ: Final = 50_000
"""Records read back at the start, each with up to a hundred attempts: at most a minute's work."""
BATCH: Final = 10
"""Records taken at once: a few milliseconds, in which nothing else runs."""
MOST_KEPT: Final = 50_000
"""Attempts of all tenants: about 50 MB, or 150 MB if all have response bodies of the maximal length."""
MOST_OF_TENANT: Final = 500
MOST_TENANTS: Final = 10_000
"""Tenants that are counted: 80 MB. The tenant with the oldest latest attempt is evicted first."""
MOST_ON_PAGE: Final = 200

log = structlog.get_logger(__name__)


class AttemptMemory:
    """The part of the attempts' history that is kept in memory."""

    def __init__(
        self,
        most_kept: int = MOST_KEPT,
        most_of_tenant: int = MOST_OF_TENANT,
        most_tenants: int = MOST_TENANTS,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._latest: FairBuffer[TenantKey, tuple[int, AttemptModel]] = FairBuffer(most_kept, most_of_tenant)
        self._counts: OrderedDict[TenantKey, TenantCounts] = OrderedDict()
        self._most_tenants = most_tenants
        self._clock = clock
        self._number = 0
        self.unreadable = 0
        """Records that another program or version wrote."""
        self.since: float | None = None
        """Time of the earliest attempt that was read, of any tenant."""

    def __len__(self) -> int:
        return len(self._latest)

    @property
    def tenants(self) -> int:
        """Number of tenants that are counted."""
        return len(self._counts)

    def append(self, records: Sequence[Record]) -> None:
        """Adds the attempts of these records, as far as these can be read, and counts those that can't."""
        for record in records:
            attempts, is_whole = read_attempts(record.value, self._clock())
            if not is_whole:
                self.unreadable += 1
                if self.unreadable == 1:
                    log.warning("history has records that can't be read", place=f"{record.topic}/{record.offset}")
            for attempt in attempts:
                self.add(attempt)

    def add(self, attempt: AttemptModel) -> None:
        """Adds one attempt."""
        counts = self._counts.get(attempt.tenant)
        if counts is None:
            counts = self._counts[attempt.tenant] = TenantCounts()
            if len(self._counts) > self._most_tenants:
                silent, _ = self._counts.popitem(last=False)
                self._latest.drop(silent)
        self._counts.move_to_end(attempt.tenant)
        counts.add(attempt)
        self.since = attempt.at if self.since is None else min(self.since, attempt.at)
        self._number += 1
        self._latest.add(attempt.tenant, (self._number, attempt))

    def reset(self) -> None:
        """Discards all attempts, because the topic is about to be read again."""
        self._latest.clear()
        self._counts.clear()
        self.unreadable, self.since = 0, None

    def outcomes(self, tenant: TenantKey, window: Window) -> Outcomes:
        """Returns the counts for the chart; all zero if the tenant has no attempts."""
        counts, now = self._counts.get(tenant), self._clock()
        return no_outcomes(window, now) if counts is None else counts.outcomes(window, now)

    def search(self, tenant: TenantKey, query: AttemptQuery) -> AttemptPage:
        """Returns a page. Raises NotFound if the cursor is invalid."""
        before = _number_in(query.before)
        limit = max(1, min(query.limit, MOST_ON_PAGE))
        found: list[tuple[int, AttemptModel]] = []
        for number, attempt in reversed(self._latest.of(tenant)):
            if number < before and _matches(attempt, query):
                found.append((number, attempt))
                if len(found) > limit:
                    break
        shown = found[:limit]
        return AttemptPage(tuple(attempt for _, attempt in shown), str(shown[-1][0]) if len(found) > limit else None)

    def last_delivery(self, tenant: TenantKey) -> float | None:
        """Returns when the endpoint last accepted an event, or None if that is unknown."""
        counts = self._counts.get(tenant)
        return None if counts is None else counts.last_delivery

    def failing(self, tenant: TenantKey, since: float) -> Failing | None:
        """Returns how those of the last 40 attempts failed that began after `since`, when the webhook was changed.

        None if the last attempt was delivered or began earlier, or none is known.
        """
        counts = self._counts.get(tenant)
        return None if counts is None else counts.failing(since)


class AttemptReader:
    """Tails the history topic and keeps its attempts in bounded memory. The caller runs `run` as a task."""

    def __init__(self, settings: Settings, memory: AttemptMemory | None = None) -> None:
        self._is_on = settings.history.is_on
        self.memory = AttemptMemory() if memory is None else memory
        self.follower = TopicTailer(
            settings.kafka, history_topic(settings.kafka.prefix), self.memory,
            keep_s=KEEP_S, most_read=MOST_READ, batch=BATCH,
            if_missing="set history.url for the dispatchers, and create it with `dispatcher topics --create`",
        )  # fmt: skip
        self.outcomes = self.memory.outcomes
        self.search = self.memory.search
        self.last_delivery = self.memory.last_delivery
        self.failing = self.memory.failing

    @property
    def known_since(self) -> float | None:
        """Time from which on attempts are known: the topic or its reading may begin later than a window."""
        return self.memory.since

    @property
    def problem(self) -> str | None:
        """Why results may be incomplete (history off, broker unavailable), or None if they are complete."""
        if self.follower.problem is not None:
            return self.follower.problem
        if not self._is_on:
            return "history is off: set history.url in the settings of dispatchers and console"
        if not self.follower.is_complete:
            return f"only the latest {MOST_READ:,} records of history were read: counts of earlier times are too low"
        return None

    async def run(self) -> None:
        """Tails the log until cancelled."""
        await self.follower.run()


def read_attempts(value: bytes | None, now: float) -> tuple[list[AttemptModel], bool]:
    """Returns the attempts that a record of the history topic reports, and whether all of it could be read."""
    try:
        decoded = decode_record(value)
    except UnreadableEvent:
        return [], False
    attempts = [
        attempt_of(entry, now)
        for run in decoded.runs
        for entry in run.entries
        if entry.outcome in (HistoryOutcome.ATTEMPT, HistoryOutcome.DELIVERED)
    ]
    return attempts, not decoded.unreadable


def attempt_of(entry: HistoryEntry, now: float) -> AttemptModel:
    """Returns the attempt that an entry reports."""
    origin = None
    if entry.topic is not None and entry.partition is not None and entry.offset is not None:
        origin = Origin(sys.intern(entry.topic), entry.partition, entry.offset)
    return AttemptModel(
        at=min(entry.at / 1000, now),
        tenant=TenantKey(sys.intern(entry.org or ""), sys.intern(entry.sandbox or "")),
        event_id=entry.webhook_id or "",
        message_status=sys.intern(entry.message_status or ""),
        channel=sys.intern(entry.channel or ""),
        attempt=entry.attempt or 1,
        status=entry.status,
        reason=sys.intern(entry.reason),
        detail=entry.detail[:MAX_DETAIL],
        verdict=sys.intern(entry.verdict or ""),
        elapsed_ms=entry.duration_ms or 0.0,
        reused=entry.reused,
        origin=origin,
        answer=entry.answer[:MAX_ANSWER],
    )


def _matches(attempt: AttemptModel, query: AttemptQuery) -> bool:
    if query.event_id is not None and attempt.event_id != query.event_id:
        return False
    if query.outcome is None:
        return True
    outcome = attempt.verdict if attempt.verdict in ("delivered", "dead") else "failed"
    return outcome == query.outcome


def _number_in(cursor: str | None) -> float:
    if cursor is None:
        return float("inf")
    if not (cursor.isascii() and cursor.isdecimal()) or len(cursor) > 18:
        raise NotFound("there is no such page: begin at the first one")
    return int(cursor)
