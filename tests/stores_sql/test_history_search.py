"""Searching the history store: equal to a naive search over the same entries, and always by an index."""

import asyncio
import random
import re
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import bindparam, text

from dispatcher.config.secrets import Secret
from dispatcher.config.settings import HistorySettings
from dispatcher.contract.history import HistoryEntry, HistoryOutcome, HistoryRecord
from dispatcher.contract.tenant import TenantKey
from dispatcher.errors import NotFound, SearchTooLong
from dispatcher.stores.sql import history_search
from dispatcher.stores.sql.database import Database
from dispatcher.stores.sql.history_rows import rows_of
from dispatcher.stores.sql.history_search import MAX_LIMIT, HistoryQuery, HistorySearch, HistoryTimeline
from dispatcher.stores.sql.history_seen import redriven_statement, without_webhook_statement
from dispatcher.stores.sql.history_store import HistoryStore
from dispatcher.stores.sql.records import Orgs
from tests.stores_sql.history_examples import NOW, ORGS, REASONS, SANDBOXES, expected, history_of, records
from tests.stores_sql.postgres import Postgres

STORED = records(11, 1_500)
OF_LUMA = HistoryQuery(tenant=TenantKey(ORGS[0], SANDBOXES[0]))


@pytest.fixture
async def database(empty_url: Secret) -> AsyncIterator[Database]:
    async with history_of(empty_url, *STORED) as opened:
        yield opened


def _some(values: Sequence[str]) -> st.SearchStrategy[frozenset[str]]:
    return st.frozensets(st.sampled_from(list(values)), max_size=2)


_times = st.none() | st.sampled_from([NOW - 72_000, NOW - 3600, NOW - 1, NOW, NOW + 1]) | st.floats(NOW - 80_000, NOW)
_tenants = st.builds(TenantKey, st.sampled_from(ORGS), st.sampled_from(SANDBOXES))
_ids = st.sampled_from(["same", "r-3", "e-7", "x-9", "c-1", f"msg_{4:032x}", "nothing", "", "%", "e-7' OR '1'='1"])
_queries = st.builds(
    HistoryQuery,
    tenant=st.none() | _tenants,
    any_id=st.none() | _ids,
    recipients=st.lists(st.sampled_from([f"{n:032x}" for n in range(6)]), max_size=2, unique=True).map(tuple),
    webhook_id=st.none() | st.integers(0, 41).map(lambda n: f"msg_{n:032x}"),
    campaign_id=st.none() | st.sampled_from(["c-0", "c-2", "c-9"]),
    since=_times,
    until=_times,
    outcomes=st.frozensets(st.sampled_from(list(HistoryOutcome)), max_size=3),
    reasons=_some(sorted({reason for reasons in REASONS.values() for reason in reasons})),
    message_statuses=_some(["sent", "bounce", "read"]),
    channels=_some(["email", "sms"]),
    limit=st.sampled_from([1, 7, 50, MAX_LIMIT, 10_000]),
)
_orgs = st.sampled_from([None, frozenset(), frozenset(ORGS[:1]), frozenset(ORGS)])


async def _all_pages(search: HistorySearch, query: HistoryQuery, orgs: Orgs) -> list[HistoryEntry]:
    found: list[HistoryEntry] = []
    before = None
    while True:
        page = await search.search(replace(query, before=before), orgs=orgs)
        assert len(page.items) <= min(query.limit, MAX_LIMIT)
        found += page.items
        before = page.next
        if before is None or len(found) > 60:
            return found


def _is_bounded(query: HistoryQuery) -> bool:
    by_id = query.any_id is not None or bool(query.recipients)
    return by_id or any(one is not None for one in (query.tenant, query.webhook_id, query.campaign_id))


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(query=_queries, orgs=_orgs, tenants=st.none() | st.sets(_tenants, max_size=3), scanned=st.sampled_from([7, 50]))
async def test_a_scope_finds_what_a_naive_search_finds(
    database: Database, query: HistoryQuery, orgs: Orgs, tenants: set[TenantKey] | None, scanned: int
) -> None:
    """Every page of several tenants or all, though a page of all reads only some entries of each class."""
    search = HistorySearch(database)
    query = replace(query, tenant=None, any_id=None, recipients=(), webhook_id=None, campaign_id=None)
    wanted = expected(STORED, query, orgs)
    if tenants is not None:
        wanted = [one for one in wanted if (one.org, one.sandbox) in tenants]
    found: list[HistoryEntry] = []
    for number in range(2000):
        if tenants is None:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(history_search, "MAX_SCANNED", scanned)
                page = await search.search_all(query, orgs=orgs)
        else:
            page = await search.search_tenants(query, tenants, orgs=orgs)
        found += page.items
        query = replace(query, before=page.next)
        if page.next is None or len(found) > 60:
            break
        assert number < 1999
    assert found == wanted[: len(found)]
    assert len(found) == len(wanted) or len(found) > 60


async def test_all_tenants_are_searched_along_the_key(empty_url: Secret, monkeypatch: pytest.MonkeyPatch) -> None:
    """Newest first within each retention class, and not from end to end, whatever the filters are."""
    monkeypatch.setattr(history_search, "MAX_SCANNED", 500)
    opened = Database(empty_url, create=True, setting="history.url")
    try:
        store = HistoryStore(opened, HistorySettings.model_validate({}), lambda: NOW)
        await store.prepare()
        await _fill(store, 20_000)
        explain = "EXPLAIN " if opened.is_postgresql else "EXPLAIN QUERY PLAN "
        for query in (HistoryQuery(), HistoryQuery(reasons=frozenset({"rare"}), since=NOW - 90_000)):
            for statements in HistorySearch(opened).scans(query, orgs=frozenset({"org-3"})):
                for statement in statements[:2]:
                    lists = [bindparam(name, expanding=True) for name, one in statements[2].items()
                             if isinstance(one, list) and f":{name}" in statement.text]  # fmt: skip
                    async with opened.write() as connection:
                        if opened.is_postgresql:
                            await connection.execute(text("ANALYZE history_entries"))
                        found = await connection.execute(
                            text(explain + statement.text).bindparams(*lists), statements[2]
                        )
                        plan = "\n".join(str(row[-1]) for row in found)
                    if opened.is_postgresql:
                        assert not re.search(r"Seq Scan on history_entries_0", plan), plan
                    else:
                        assert (
                            "USING INDEX history_entries_key (kept=?" in plan
                            or "COVERING INDEX history_entries_key (kept=?" in plan
                        ), plan
    finally:
        await opened.close()


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(query=_queries, orgs=_orgs)
async def test_search_finds_what_a_naive_search_finds(database: Database, query: HistoryQuery, orgs: Orgs) -> None:
    """Every page, in order, without gap and repeat, for every combination of conditions and organisations."""
    search = HistorySearch(database)
    if not _is_bounded(query):
        with pytest.raises(ValueError, match="needs a tenant"):
            await search.search(query, orgs=orgs)
        return
    wanted = expected(STORED, query, orgs)
    found = await _all_pages(search, query, orgs)
    assert found == wanted[: len(found)]
    assert len(found) == len(wanted) or len(found) > 60


async def test_the_timeline_of_an_event_is_in_order_and_within_the_organisations(database: Database) -> None:
    search, webhook_id = HistorySearch(database), f"msg_{4:032x}"
    found = await search.timeline(webhook_id, orgs=None)
    own = [one for record in STORED for one in record.entries if one.webhook_id == webhook_id]
    assert len(found.entries) == len(own) > 10
    assert not found.is_cut
    assert [one.at for one in found.entries] == sorted(one.at for one in own)
    assert {one.org for one in (await search.timeline(webhook_id, orgs=frozenset(ORGS[:1]))).entries} == {ORGS[0]}
    assert await search.timeline(webhook_id, orgs=frozenset()) == HistoryTimeline(())


async def test_a_search_that_takes_too_long_is_not_taken_for_a_database_that_is_away(
    postgres: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(history_search, "SEARCH_WITHIN_S", 2.0)
    url = Secret((await postgres.fresh_database()).encode())
    async with history_of(url, *STORED) as database:
        locking: Any = await database.connect_alone()
        await locking.execute("BEGIN")
        await locking.execute("LOCK TABLE history_entries IN ACCESS EXCLUSIVE MODE")
        search = HistorySearch(database)
        for searched in (search.search(OF_LUMA, orgs=None), search.search_all(HistoryQuery(), orgs=None)):
            with pytest.raises(SearchTooLong) as caught:
                await searched
            assert caught.value.for_tenants.endswith("takes longer than 2 s: choose a shorter time or another filter")
        await locking.close()
        assert (await search.search(OF_LUMA, orgs=None)).items


async def test_a_long_timeline_keeps_its_end(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last entries say what state the event is in."""
    search, webhook_id = HistorySearch(database), f"msg_{4:032x}"
    everything = (await search.timeline(webhook_id, orgs=None)).entries
    for most in (len(everything), len(everything) - 1, 3):
        monkeypatch.setattr(history_search, "MAX_TIMELINE", most)
        found = await search.timeline(webhook_id, orgs=None)
        assert (found.entries, found.is_cut) == (everything[-most:], most < len(everything))


@pytest.mark.parametrize(
    "cursor", ["", "x", "1-2", "1-2-3-4", "1-99999999999999999999-3", "-1-2-3", "٣-1-1", "1-2-3\n"]
)
async def test_a_cursor_of_another_kind_is_refused(database: Database, cursor: str) -> None:
    with pytest.raises(NotFound):
        await HistorySearch(database).search(HistoryQuery(any_id="same", before=cursor), orgs=None)


_SEARCHES = {
    "request": HistoryQuery(any_id="r-77"),
    "recipient": HistoryQuery(recipients=(f"{9:032x}",)),
    "campaign": HistoryQuery(campaign_id="c-5"),
    "webhook": HistoryQuery(webhook_id=f"msg_{5:032x}"),
    "tenant": HistoryQuery(tenant=TenantKey("org-3", "prod")),
    "tenant and time": HistoryQuery(tenant=TenantKey("org-3", "prod"), since=NOW - 3600, until=NOW),
    "tenant and outcome": HistoryQuery(tenant=TenantKey("org-3", "prod"), outcomes=frozenset({HistoryOutcome.DEAD})),
    "tenant and reason": HistoryQuery(tenant=TenantKey("org-3", "prod"), reasons=frozenset({"rare"})),
    "tenant and status": HistoryQuery(tenant=TenantKey("org-3", "prod"), message_statuses=frozenset({"bounce"})),
    "tenant and channel": HistoryQuery(tenant=TenantKey("org-3", "prod"), channels=frozenset({"sms"})),
    "tenant and channels": HistoryQuery(tenant=TenantKey("org-3", "prod"), channels=frozenset({"sms", "push"})),
    "tenant, reasons and time": HistoryQuery(
        tenant=TenantKey("org-3", "prod"), reasons=frozenset({"rare", "http_5xx"}), since=NOW - 7200
    ),
}
_INDEX = {
    "request": "request_id", "recipient": "recipient", "campaign": "campaign_id", "webhook": "webhook_id",
    "tenant and reason": "reason", "tenant and status": "status", "tenant and channel": "channel",
    "tenant and channels": "channel", "tenant, reasons and time": "reason",
}  # fmt: skip
_POSTGRESQL = {"status": "message_status"}
"""The index that a search has to use, by the end of its name; PostgreSQL names those of partitions by the columns."""


async def test_every_search_uses_an_index_on_postgresql(request: pytest.FixtureRequest) -> None:
    """On 60,000 rows of many tenants over three days: no plan reads a partition from end to end."""
    server = request.getfixturevalue("postgres")
    opened = Database(Secret((await server.fresh_database()).encode()), setting="history.url")
    try:
        store = HistoryStore(opened, HistorySettings.model_validate({}), lambda: NOW)
        await store.prepare()
        await _fill(store, 60_000)
        async with opened.write() as connection:
            await connection.execute(text("ANALYZE history_entries"))
        search = HistorySearch(opened)
        for name, query in _SEARCHES.items():
            async with opened.write() as connection:
                plans = []
                for select, parameters in search.statements(query, orgs=None):
                    explain = text("EXPLAIN " + select.text)
                    lists = [bindparam(key, expanding=True) for key, one in parameters.items() if isinstance(one, list)]
                    found = await connection.execute(explain.bindparams(*lists), parameters)
                    plans.append("\n".join(line for (line,) in found))
            assert plans, name
            for plan in plans:
                assert "Index" in plan, f"{name}: {plan}"
                assert not re.search(r"Seq Scan on history_entries", plan), f"{name}: {plan}"
                if name in ("tenant and reason", "tenant and status", "tenant and channel", "tenant and channels"):
                    assert re.search(rf"using \S+_{_POSTGRESQL.get(_INDEX[name], _INDEX[name])}\w*_idx", plan), (
                        f"{name}: {plan}"
                    )
        ids = [f"msg_{number:032x}" for number in range(5)]
        statement, parameters = redriven_statement(ids, NOW - 86_400, has_partitions=True)
        explain = text("EXPLAIN " + statement.text).bindparams(bindparam("ids", expanding=True))
        async with opened.write() as connection:
            plan = "\n".join(line for (line,) in await connection.execute(explain, parameters))
        assert re.search(r"_webhook_id_at_idx", plan), plan
        assert not re.search(r"Seq Scan on history_entries|history_entries_[12]_", plan), plan  # one class is read
    finally:
        await opened.close()


@pytest.mark.parametrize("empty_url", ["sqlite"], indirect=True)
async def test_every_search_reads_rows_of_its_own_on_sqlite(database: Database) -> None:
    """By an id or within the tenant: never along the key, which holds the entries of all tenants."""
    search = HistorySearch(database)
    for name, query in _SEARCHES.items():
        for select, parameters in search.statements(query, orgs=None):
            explain = text("EXPLAIN QUERY PLAN " + select.text)
            lists = [bindparam(key, expanding=True) for key, one in parameters.items() if isinstance(one, list)]
            async with database.read() as connection:
                steps = [row[3] for row in await connection.execute(explain.bindparams(*lists), parameters)]
            assert re.match(r"SEARCH history_entries USING INDEX history_entries_(?!key)", steps[0]), f"{name}: {steps}"
            if name in _INDEX and "request" not in name:
                assert f"history_entries_{_INDEX[name]} (" in steps[0], f"{name}: {steps}"
            assert "USE TEMP B-TREE FOR ORDER BY" not in steps, f"{name} reads every match before it answers: {steps}"


async def test_tenants_without_a_webhook_are_found_by_an_index_of_their_own(empty_url: Secret) -> None:
    """Not among the counts of all tenants, of which a month has millions; also in a store of an older version."""
    opened = Database(empty_url, create=True, setting="history.url")
    try:
        store = HistoryStore(opened, HistorySettings.model_validate({}), lambda: NOW)
        await store.prepare()
        async with opened.write() as connection:
            await connection.execute(text("DROP INDEX history_counts_no_webhook"))
            for number in range(200):
                await connection.execute(
                    text("INSERT INTO history_counts VALUES (:org, 'prod', :slot, :outcome, :reason, 'email', 5)"),
                    [
                        {
                            "org": f"org-{number}", "slot": int(NOW - slot * 900) * 1000,
                            "outcome": "delivered" if number else "skipped",
                            "reason": "http_2xx" if number else "no_webhook",
                        }
                        for slot in range(100)
                    ],
                )  # fmt: skip
        await store.prepare()
        for orgs in (None, frozenset({"org-0", "org-1"})):
            statement, parameters = without_webhook_statement(NOW - 86_400, orgs)
            explain = "EXPLAIN " if opened.is_postgresql else "EXPLAIN QUERY PLAN "
            lists = [bindparam("orgs", expanding=True)] if orgs is not None else []
            async with opened.write() as connection:
                if opened.is_postgresql:
                    await connection.execute(text("ANALYZE history_counts"))
                found = await connection.execute(text(explain + statement.text).bindparams(*lists), parameters)
                plan = "\n".join(str(row[-1]) for row in found)
            assert "history_counts_no_webhook" in plan, plan
            seen = await HistorySearch(opened).seen.without_webhook(NOW - 86_400, orgs=orgs)
            assert [(one.tenant.org, one.events) for one in seen] == [("org-0", 97 * 5)]
            delivered = await HistorySearch(opened).seen.delivered(NOW - 86_400, orgs=orgs)
            assert len(delivered) == (199 if orgs is None else 1)
            assert delivered[TenantKey("org-1", "prod")] == 97 * 5
    finally:
        await opened.close()


async def _fill(store: HistoryStore, count: int) -> None:
    chance = random.Random(3)
    for first in range(0, count, 10_000):
        entries = [
            HistoryEntry(
                at=int((NOW - chance.random() * 3 * 86_400) * 1000),
                outcome=HistoryOutcome.DEAD if number % 50 == 0 else HistoryOutcome.ATTEMPT,
                org=f"org-{number % 40}",
                sandbox="prod",
                reason="rare" if number % 900 == 0 else "http_5xx",
                webhook_id=f"msg_{number // 3:032x}",
                event_id=f"e-{number // 3}",
                request_id=f"r-{number // 3}",
                message_execution_id=f"x-{number // 3}",
                campaign_id=f"c-{number % 300}",
                recipient=f"{number % 5000:032x}",
                channel="sms" if number % 700 == 3 else "push" if number % 700 == 43 else "email",
                message_status="bounce" if number % 700 == 83 else "sent",
            )
            for number in range(first, first + 10_000)
        ]
        await store.write(rows_of(HistoryRecord(1, 1, first, entries))[0])
        await asyncio.sleep(0)
