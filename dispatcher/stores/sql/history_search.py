"""Reads the history store: search with cursor paging, the timeline of one event, counts. Every search uses an index."""

import re
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any, Final

from sqlalchemy import SmallInteger, Text, TextClause, bindparam, text
from sqlalchemy.ext.asyncio import AsyncConnection

from dispatcher.contract.history import HistoryEntry, HistoryOutcome, KeptAs, classes_of
from dispatcher.contract.tenant import TenantKey
from dispatcher.errors import NotFound, SearchTooLong, StoreUnavailable
from dispatcher.stores.sql.database import Database
from dispatcher.stores.sql.history_rows import COLUMNS, clean, entry_of
from dispatcher.stores.sql.history_schema import IDS, KEPT
from dispatcher.stores.sql.history_seen import HistorySeen
from dispatcher.stores.sql.records import Orgs

MAX_LIMIT: Final = 200
MAX_TIMELINE: Final = 500
"""Entries of one event, the newest ones."""
MAX_TENANTS: Final = 50
"""Tenants that are searched one by one."""
MAX_SCANNED: Final = 20_000
"""Entries of a retention class that one page of a search over all tenants reads."""
SEARCH_WITHIN_S: Final = 8.0
_CURSOR: Final = re.compile(r"([0-9]{1,18})-([0-9]{1,19})-([0-9]{1,18})")
_NAMES: Final = ", ".join(f'"{name}"' for name in COLUMNS)
_ORDER: Final = 'ORDER BY "at" DESC, writer DESC, number DESC'


@dataclass(frozen=True, slots=True)
class HistoryQuery:
    """Selects entries, the newest first. A query needs a tenant, an id, a campaign or a recipient."""

    tenant: TenantKey | None = None
    any_id: str | None = None
    """Equals the webhook-id, the XDM `_id`, the requestId, the messageExecutionID or the campaign."""
    id_field: str | None = None
    """One of `IDS`, if `any_id` must be in this column."""
    recipients: tuple[str, ...] = ()
    """Keyed hashes; together with `any_id`, either matches."""
    webhook_id: str | None = None
    campaign_id: str | None = None
    since: float | None = None
    """Unix seconds."""
    until: float | None = None
    """Unix seconds; entries of this moment are excluded."""
    outcomes: frozenset[HistoryOutcome] = frozenset()
    reasons: frozenset[str] = frozenset()
    message_statuses: frozenset[str] = frozenset()
    channels: frozenset[str] = frozenset()
    before: str | None = None
    """Cursor of the previous page."""
    limit: int = 50


@dataclass(frozen=True, slots=True)
class HistoryPage:
    """A page of the entries."""

    items: tuple[HistoryEntry, ...]
    next: str | None
    """Cursor of the next page, None at the end."""


@dataclass(frozen=True, slots=True)
class HistoryTimeline:
    """The history entries of one event."""

    entries: tuple[HistoryEntry, ...]
    """The oldest first."""
    is_cut: bool = False
    """Earlier entries were left out."""


@dataclass(frozen=True, slots=True)
class HistoryCount:
    """Events of one outcome, reason and channel."""

    outcome: HistoryOutcome
    reason: str
    channel: str
    events: int


@dataclass(frozen=True, slots=True)
class SlotCount:
    """Events of one outcome and reason in a quarter of an hour."""

    start: float
    """Unix seconds."""
    outcome: HistoryOutcome
    reason: str
    events: int


class HistorySearch:
    """Queries the store, within the organisations that the person may see."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self.seen: Final = HistorySeen(database)

    async def search(self, query: HistoryQuery, *, orgs: Orgs) -> HistoryPage:
        """Returns the entries that match every condition.

        Raises:
            NotFound: the cursor isn't one of this store.
            StoreUnavailable: the database did not answer in time.
            ValueError: the query names neither tenant nor id nor campaign nor recipient.
        """
        return await self._page(self.statements(query, orgs=orgs), _limit(query))

    async def search_tenants(self, query: HistoryQuery, tenants: Iterable[TenantKey], *, orgs: Orgs) -> HistoryPage:
        """Returns the entries of several tenants. Each is searched by its own index: for `MAX_TENANTS` at most.

        Raises:
            NotFound, StoreUnavailable: as `search`.
        """
        each = [self.statements(replace(query, tenant=tenant), orgs=orgs) for tenant in tenants]
        return await self._page([one for statements in each for one in statements], _limit(query))

    async def search_all(self, query: HistoryQuery, *, orgs: Orgs) -> HistoryPage:
        """Returns the entries of all tenants: the matches among the newest `MAX_SCANNED` of each retention class.

        A page may have few entries, or none, and a next one: that searches further back.

        Raises:
            NotFound, StoreUnavailable: as `search`.
        """
        limit = _limit(query)
        rows: list[Any] = []
        ends: list[tuple[int, int, int]] = []
        async with self._searching() as connection:
            for select, end, parameters in self.scans(query, orgs=orgs):
                found = (await connection.execute(select, parameters)).mappings().all()
                rows += found
                if len(found) <= limit and (last := (await connection.execute(end, parameters)).first()) is not None:
                    ends.append((last[0], last[1], last[2]))
        end_of_scan = max(ends, default=None)
        newest = [row for row in _newest_first(rows) if end_of_scan is None or _place_of(row) >= end_of_scan]
        shown = newest[:limit]
        last_place = _place_of(shown[-1]) if len(newest) > limit else end_of_scan
        return HistoryPage(tuple(map(entry_of, shown)), None if last_place is None else _cursor(last_place))

    def scans(self, query: HistoryQuery, *, orgs: Orgs) -> list[tuple[TextClause, TextClause, dict[str, Any]]]:
        """Returns the statements of `search_all`, and the ones for the place at which each of them stops."""
        bounds = HistoryQuery(since=query.since, until=query.until, before=query.before)
        within, parameters = _conditions(bounds, None, has_partitions=False)
        unbounded = replace(query, since=None, until=None, before=None)
        where, filters = _conditions(unbounded, orgs, has_partitions=False)
        parameters |= filters | {"limit": _limit(query) + 1, "scanned": MAX_SCANNED, "last": MAX_SCANNED - 1}
        made = []
        for kept in _classes(query.outcomes):
            source = f"FROM history_entries WHERE {' AND '.join(['kept = :class', *within])} {_ORDER}"
            select = (
                f"SELECT {_NAMES} FROM (SELECT {_NAMES} {source} LIMIT :scanned) AS newest "  # noqa: S608  (columns are ours, values are bound)
                f"WHERE {' AND '.join(where)} {_ORDER} LIMIT :limit"
            )
            end = text(f'SELECT "at", writer, number {source} LIMIT 1 OFFSET :last')
            own = parameters | {"class": kept}
            made.append((_with_lists(select, own), end, own))
        return made

    @asynccontextmanager
    async def _searching(self) -> AsyncIterator[AsyncConnection]:
        """Yields a connection for a search. Raises SearchTooLong if the database answered, but not with the result."""
        is_answered = False
        try:
            async with self._database.read(SEARCH_WITHIN_S) as connection:
                is_answered = True
                yield connection
        except StoreUnavailable as error:
            if is_answered and isinstance(error.__cause__, TimeoutError):
                raise SearchTooLong(str(error), SEARCH_WITHIN_S) from error
            raise

    async def _page(self, statements: Iterable[tuple[TextClause, dict[str, Any]]], limit: int) -> HistoryPage:
        rows: dict[tuple[int, int, int, int], Any] = {}
        async with self._searching() as connection:
            for statement, parameters in statements:
                for row in (await connection.execute(statement, parameters)).mappings():
                    rows[row["kept"], row["at"], row["writer"], row["number"]] = row
        newest = _newest_first(rows.values())
        shown = newest[:limit]
        following = _cursor(_place_of(shown[-1])) if len(newest) > limit else None
        return HistoryPage(tuple(map(entry_of, shown)), following)

    def statements(self, query: HistoryQuery, *, orgs: Orgs) -> list[tuple[TextClause, dict[str, Any]]]:
        """Returns the statements of `search`: one for each column that may hold the id, or each value of a filter.

        Raises:
            NotFound, ValueError: as `search`.
        """
        keys = _keys(query)
        if query.tenant is None and not keys:
            raise ValueError("search needs a tenant, an id, a campaign or a recipient")
        made = []
        for one in [query] if keys else _by_value(query):
            where, parameters = _conditions(one, orgs, has_partitions=self._database.is_postgresql)
            parameters["limit"] = _limit(query) + 1
            for column, value in keys or [("", "")]:
                conditions = [f'"{column}" = :key', *where] if column else where
                own = parameters | ({"key": clean(value)} if column else {})
                select = f"SELECT {_NAMES} FROM history_entries WHERE {' AND '.join(conditions)} {_ORDER} LIMIT :limit"  # noqa: S608  (columns are ours, values are bound)
                made.append((_with_lists(select, own), own))
        return made

    async def timeline(self, webhook_id: str, *, orgs: Orgs) -> HistoryTimeline:
        """Returns what happened to one event, the last `MAX_TIMELINE` entries.

        Raises:
            StoreUnavailable: the database did not answer in time; SearchTooLong, if it answers other statements.
        """
        where, parameters = _conditions(HistoryQuery(), orgs, has_partitions=self._database.is_postgresql)
        parameters |= {"webhook_id": clean(webhook_id), "limit": MAX_TIMELINE + 1}
        select = (
            f"SELECT {_NAMES} FROM history_entries WHERE {' AND '.join(['webhook_id = :webhook_id', *where])} "  # noqa: S608  (columns are ours, values are bound)
            f"{_ORDER} LIMIT :limit"
        )
        async with self._database.read(SEARCH_WITHIN_S) as connection:
            found = await connection.execute(_with_lists(select, parameters), parameters)
            newest = list(map(entry_of, found.mappings()))
        return HistoryTimeline(tuple(reversed(newest[:MAX_TIMELINE])), len(newest) > MAX_TIMELINE)

    async def counts(self, tenant: TenantKey, since: float, until: float) -> tuple[HistoryCount, ...]:
        """Counts a tenant's events by outcome, reason and channel, in quarters of an hour that begin in the range.

        Raises:
            StoreUnavailable: the database did not answer in time.
        """
        async with self._database.read(SEARCH_WITHIN_S) as connection:
            found = await connection.execute(
                text(
                    "SELECT outcome, reason, channel, sum(events) FROM history_counts WHERE org = :org "
                    "AND sandbox = :sandbox AND slot >= :since AND slot < :until GROUP BY outcome, reason, channel "
                    "ORDER BY 4 DESC, 1, 2, 3"
                ),
                {
                    "org": clean(tenant.org),
                    "sandbox": clean(tenant.sandbox),
                    "since": int(since * 1000),
                    "until": int(until * 1000),
                },
            )
            return tuple(HistoryCount(HistoryOutcome(row[0]), row[1], row[2], int(row[3])) for row in found)

    async def slots(self, tenant: TenantKey, since: float, until: float) -> tuple[SlotCount, ...]:
        """Counts as `counts` does, for each quarter of an hour.

        Raises:
            StoreUnavailable: the database did not answer in time.
        """
        statement = text(
            "SELECT slot, outcome, reason, sum(events) FROM history_counts WHERE org = :org AND sandbox = :sandbox "
            "AND slot >= :since AND slot < :until GROUP BY slot, outcome, reason"
        )
        own = {"org": clean(tenant.org), "sandbox": clean(tenant.sandbox)}
        async with self._database.read(SEARCH_WITHIN_S) as connection:
            found = await connection.execute(statement, {**own, "since": int(since * 1000), "until": int(until * 1000)})
            return tuple(SlotCount(row[0] / 1000, HistoryOutcome(row[1]), row[2], int(row[3])) for row in found)


def _keys(query: HistoryQuery) -> list[tuple[str, str]]:
    """Returns pairs of column and value; an entry has to match one of them."""
    keys = [("recipient", recipient) for recipient in query.recipients]
    if query.any_id is not None:
        columns = IDS if query.id_field is None else (query.id_field,)
        keys += [(column, query.any_id) for column in columns if column in IDS and column != "recipient"]
    return (
        keys
        or [
            (column, value)
            for column, value in (("webhook_id", query.webhook_id), ("campaign_id", query.campaign_id))
            if value is not None
        ][:1]
    )


def _by_value(query: HistoryQuery) -> list[HistoryQuery]:
    """Splits a query by the values of the filter that selects best, so that an index has the matches in order.

    The entries that other filters leave out are read, at most within `SEARCH_WITHIN_S`.
    """
    if query.reasons:
        return [replace(query, reasons=frozenset({value})) for value in sorted(query.reasons)]
    if query.message_statuses:
        return [replace(query, message_statuses=frozenset({value})) for value in sorted(query.message_statuses)]
    if query.outcomes:
        return [replace(query, outcomes=frozenset({value})) for value in sorted(query.outcomes)]
    return [replace(query, channels=frozenset({value})) for value in sorted(query.channels)] or [query]


def _conditions(query: HistoryQuery, orgs: Orgs, *, has_partitions: bool) -> tuple[list[str], dict[str, Any]]:
    where: list[str] = ["1 = 1"]
    parameters: dict[str, Any] = {}

    def add(condition: str, **values: object) -> None:
        where.append(condition)
        parameters.update(values)

    if query.tenant is not None:
        add("org = :org AND sandbox = :sandbox", org=clean(query.tenant.org), sandbox=clean(query.tenant.sandbox))
    if orgs is not None:
        add("org IN :orgs", orgs=sorted(map(clean, orgs)))
    if query.since is not None:
        add('"at" >= :since', since=int(query.since * 1000))
    if query.until is not None:
        add('"at" < :until', until=int(query.until * 1000))
    if query.outcomes and has_partitions:  # on SQLite it would walk a class of all tenants by its key
        add("kept IN :kept", kept=_classes(query.outcomes))
    if query.before is not None:
        at, writer, number = _place(query.before)
        add(
            '"at" <= :at AND ("at" < :at OR writer < :writer OR (writer = :writer AND number < :number))',
            at=at, writer=writer, number=number,
        )  # fmt: skip
    for column, value in (("webhook_id", query.webhook_id), ("campaign_id", query.campaign_id)):
        if value is not None:
            add(f"{column} = :own_{column}", **{f"own_{column}": clean(value)})
    for column, values in (
        ("outcome", frozenset(outcome.value for outcome in query.outcomes)),
        ("reason", query.reasons),
        ("message_status", query.message_statuses),
        ("channel", query.channels),
    ):
        if values:
            add(f"{column} IN :{column}s", **{f"{column}s": sorted(map(clean, values))})
    return where, parameters


def _classes(outcomes: frozenset[HistoryOutcome]) -> list[int]:
    """Returns the retention classes to search for entries with these outcomes; all if none is named."""
    return sorted(KEPT[kept] for kept in (classes_of(outcomes) if outcomes else KeptAs))


def _with_lists(select: str, parameters: dict[str, Any]) -> TextClause:
    lists = [
        bindparam(name, expanding=True, type_=SmallInteger() if name == "kept" else Text())
        for name, value in parameters.items()
        if isinstance(value, list)
    ]
    return text(select).bindparams(*lists)


def _limit(query: HistoryQuery) -> int:
    return max(1, min(query.limit, MAX_LIMIT))


def _place_of(row: Any) -> tuple[int, int, int]:
    return row["at"], row["writer"], row["number"]


def _newest_first(rows: Iterable[Any]) -> list[Any]:
    return sorted(rows, key=_place_of, reverse=True)


def _cursor(place: tuple[int, int, int]) -> str:
    return "-".join(map(str, place))


def _place(cursor: str) -> tuple[int, int, int]:
    match = _CURSOR.fullmatch(cursor)
    if match is None or int(match[2]) >= 2**63:
        raise NotFound("there is no such page: begin at the first one")
    return int(match[1]), int(match[2]), int(match[3])
