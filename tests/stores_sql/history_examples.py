"""Generated histories, the naive answer to a search in them, and what a store has of them."""

import random
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from sqlalchemy import text

from dispatcher.config.secrets import Secret
from dispatcher.config.settings import HistorySettings
from dispatcher.contract.history import HistoryEntry, HistoryOutcome, HistoryRecord
from dispatcher.stores.sql.database import Database
from dispatcher.stores.sql.history_rows import Row, rows_of
from dispatcher.stores.sql.history_search import HistoryQuery
from dispatcher.stores.sql.history_store import HistoryStore
from dispatcher.stores.sql.records import Orgs

NOW = 1_790_000_000.0
"""Unix seconds: the clock of these tests."""
DAY_S = 86_400
SETTINGS = HistorySettings.model_validate({})
ORGS = ("A@AdobeOrg", "B@AdobeOrg")
SANDBOXES = ("prod", "stage")
REASONS = {
    HistoryOutcome.ATTEMPT: ("http_5xx", "timeout"),
    HistoryOutcome.DELIVERED: ("http_2xx",),
    HistoryOutcome.SKIPPED: ("channel", "status"),
    HistoryOutcome.PARKED: ("attempt_failed",),
    HistoryOutcome.HELD: ("suspended",),
    HistoryOutcome.DEAD: ("rejected", "expired"),
    HistoryOutcome.REDRIVEN: ("rejected",),
}


_FINAL = (HistoryOutcome.DELIVERED, HistoryOutcome.SKIPPED)


class Clock:
    """The store's time, set by tests."""

    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> float:
        return self.now


def rows_of_records(*found: HistoryRecord) -> list[Row]:
    """The rows of several records."""
    return [row for record in found for row in rows_of(record)[0]]


@asynccontextmanager
async def history_of(url: Secret, *found: HistoryRecord) -> AsyncIterator[Database]:
    """A new history store with these records."""
    opened = Database(url, create=True, setting="history.url")
    store = HistoryStore(opened, SETTINGS, lambda: NOW)
    await store.prepare()
    await store.write(rows_of_records(*found))
    yield opened
    await opened.close()


def rows_of_entries(*found: HistoryEntry, writer: int = 1) -> list[Row]:
    """The rows of one record with these entries, by a writer of their own."""
    return rows_of(HistoryRecord(1, writer, 0, list(found)))[0]


def entry(chance: random.Random, number: int, *, age_s: float = 20 * 3600) -> HistoryEntry:
    """One of a history in which ids, times and tenants meet again and again."""
    outcome = chance.choice(list(HistoryOutcome))
    event = chance.randrange(40)
    return HistoryEntry(
        at=int((NOW - chance.choice((0, 1, age_s * chance.random()))) * 1000),
        outcome=outcome,
        org=chance.choice(ORGS),
        sandbox=chance.choice(SANDBOXES),
        reason=chance.choice(REASONS[outcome]),
        webhook_id=f"msg_{event:032x}",
        event_id=f"e-{event}",
        request_id=chance.choice((None, f"r-{event % 7}", "same")),
        message_execution_id=chance.choice((f"x-{event}", "same")),
        campaign_id=f"c-{event % 3}",
        topic="delivery-events",
        partition=event % 3,
        offset=number,
        channel=chance.choice(("email", "sms")),
        message_status=chance.choice(("sent", "bounce")),
        recipient=f"{event % 5:032x}",
        attempt=chance.randrange(1, 5),
        duration_ms=12.5,
        status=chance.choice((None, 200, 503)),
        verdict=chance.choice((None, "retry_soon")),
        detail=chance.choice(("", "answered 503")),
        headers=chance.choice((None, {"retry-after": "5"})),
        has_earlier=outcome in _FINAL and chance.random() < 0.3,
    )


def records(seed: int, count: int, *, a_record: int = 20) -> list[HistoryRecord]:
    """Records of two writers."""
    chance = random.Random(seed)
    made = [entry(chance, number) for number in range(count)]
    return [HistoryRecord(1, 1 + at // a_record % 2, at, made[at : at + a_record]) for at in range(0, count, a_record)]


def expected(stored: Sequence[HistoryRecord], query: HistoryQuery, orgs: Orgs) -> list[HistoryEntry]:
    """Everything that matches, the newest first: the search without database, cursor and limit."""
    placed = [
        (entry.at, record.writer, record.first + index, entry)
        for record in stored
        for index, entry in enumerate(record.entries)
    ]
    placed.sort(key=lambda one: one[:3], reverse=True)
    return [entry for *_, entry in placed if _matches(entry, query, orgs)]


def _matches(entry: HistoryEntry, query: HistoryQuery, orgs: Orgs) -> bool:
    ids = {
        entry.webhook_id, entry.event_id, entry.request_id, entry.message_execution_id, entry.campaign_id,
    }  # fmt: skip
    by_id = query.any_id is not None and query.any_id in ids
    by_recipient = entry.recipient in query.recipients
    return (
        ((query.any_id is None and not query.recipients) or by_id or by_recipient)
        and (orgs is None or entry.org in orgs)
        and (query.tenant is None or (entry.org, entry.sandbox) == tuple(query.tenant))
        and (query.webhook_id is None or entry.webhook_id == query.webhook_id)
        and (query.campaign_id is None or entry.campaign_id == query.campaign_id)
        and (query.since is None or entry.at >= int(query.since * 1000))
        and (query.until is None or entry.at < int(query.until * 1000))
        and (not query.outcomes or entry.outcome in query.outcomes)
        and (not query.reasons or entry.reason in query.reasons)
        and (not query.message_statuses or entry.message_status in query.message_statuses)
        and (not query.channels or entry.channel in query.channels)
    )


async def size(database: Database) -> int:
    async with database.read() as connection:
        return int((await connection.execute(text("SELECT count(*) FROM history_entries"))).scalar_one())


async def counted(database: Database) -> dict[tuple[str, str, str, str], int]:
    async with database.read() as connection:
        found = await connection.execute(
            text("SELECT org, sandbox, outcome, reason, sum(events) FROM history_counts GROUP BY 1, 2, 3, 4")
        )
        return {tuple(row)[:4]: int(row[4]) for row in found}
