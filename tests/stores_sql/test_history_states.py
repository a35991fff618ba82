"""States of webhooks in the history store: evidence counted once, judged by one worker, worthless without a worker."""

import asyncio
import random

import pytest
from sqlalchemy import text

from dispatcher.contract.fleet_state import FleetState, decode_evidence, evidence_by_tenant
from dispatcher.contract.history import HistoryEntry, HistoryOutcome
from dispatcher.contract.tenant import TenantKey
from dispatcher.errors import StoreUnavailable
from dispatcher.stores.sql.database import Database
from dispatcher.stores.sql.history_rows import rows_of
from dispatcher.stores.sql.history_schema import tenants
from dispatcher.stores.sql.history_states import TenantStates, WebhookInUse
from dispatcher.stores.sql.history_store import HistoryStore
from tests.stores_sql.history_examples import NOW, SETTINGS, Clock, records, rows_of_entries

BAD, GOOD = TenantKey("bad'\N{SNOWMAN}", "prod"), TenantKey("good", "prod")


@pytest.fixture
async def database(history_database: Database, clock: Clock) -> Database:
    await HistoryStore(history_database, SETTINGS, clock).prepare()
    return history_database


def entries_of(tenant: TenantKey, outcome: HistoryOutcome, count: int, start: float = NOW) -> list[HistoryEntry]:
    """An entry every half minute up to the present."""
    return [
        HistoryEntry(
            int((start - 30 * number) * 1000),
            outcome,
            *tenant,
            "http_5xx",
            status=503,
            detail="answered 503",
            attempt=1,
        )
        for number in range(count)
    ]


def in_use(revision: str, changed_at: float = NOW, *, is_paused: bool = False) -> WebhookInUse:
    return WebhookInUse(revision, is_paused, changed_at)


async def test_evidence_is_that_of_the_entries_however_often_they_are_written(database: Database, clock: Clock) -> None:
    store = HistoryStore(database, SETTINGS, clock)
    made = records(5, 600)
    everything = [row for record in made for row in rows_of(record)[0]]
    shuffled = random.Random(1).sample(everything, len(everything))
    batches = [shuffled[at : at + 150] for at in range(0, 600, 150)]
    if database.is_postgresql:
        await asyncio.gather(*(store.write(batch) for batch in batches * 2))
    for batch in batches * 2:
        await store.write(batch)
    expected = evidence_by_tenant(entry for record in made for entry in record.entries)
    async with database.read() as connection:
        found = (await connection.execute(tenants.select())).mappings().all()
    assert {TenantKey(row["org"], row["sandbox"]): decode_evidence(row["evidence"]) for row in found} == expected


async def test_states_follow_evidence_and_configuration(database: Database, clock: Clock) -> None:
    store, states = HistoryStore(database, SETTINGS, clock), TenantStates(database, clock)
    clock.now -= 600
    await store.write(rows_of_entries(*entries_of(BAD, HistoryOutcome.ATTEMPT, 20, clock.now)))
    await store.write(rows_of_entries(*entries_of(GOOD, HistoryOutcome.DELIVERED, 20, clock.now), writer=2))
    facts = {
        BAD: in_use("1"),
        GOOD: in_use("1"),
        TenantKey("new", "x"): in_use("1", is_paused=True),
    }
    assert await states.sign_of_life(0, is_current=True)
    changes = await states.judge(facts)
    assert {(one.report.tenant, one.before, one.report.state) for one in changes} == {
        (BAD, FleetState.UNKNOWN, FleetState.FAILING),
        (GOOD, FleetState.UNKNOWN, FleetState.ACTIVE),
        (TenantKey("new", "x"), FleetState.UNKNOWN, FleetState.PAUSED),
    }
    bad = await states.of(BAD)
    assert (bad.state, bad.failures, bad.failure_reason, bad.failure_status, bad.failure_detail) == (
        FleetState.FAILING, 20, "http_5xx", 503, "answered 503",
    )  # fmt: skip
    assert bad.failed_at == clock.now
    assert clock.now - 700 < bad.since < clock.now - 500
    assert await states.judge(facts) == []
    assert await TenantStates(database, clock).judge(facts) == [], "another worker knows it, too"

    clock.now += 60
    edited = facts | {BAD: in_use("2", clock.now)}
    assert [one.report.state for one in await states.judge(edited)] == [FleetState.UNKNOWN]
    clock.now += 120
    await store.write(rows_of_entries(*entries_of(BAD, HistoryOutcome.DELIVERED, 1, clock.now), writer=3))
    assert [one.report.state for one in await states.judge(edited)] == [FleetState.ACTIVE]
    paused = edited | {GOOD: in_use("1", is_paused=True)}
    assert [one.report.state for one in await states.judge(paused)] == [FleetState.PAUSED]
    assert [one.report.state for one in await states.judge(edited)] == [FleetState.ACTIVE]
    assert await states.judge(None) == [], "without the webhooks, nothing is thought of them"
    assert await states.sign_of_life(0, is_current=True)
    assert {key: one.state for key, one in (await states.all(orgs=frozenset({"good"}))).items()} == {
        GOOD: FleetState.ACTIVE
    }
    assert (await states.of(TenantKey("nobody", "prod"))).state is FleetState.UNKNOWN


async def test_a_webhook_that_still_fails_after_an_edit_is_reported_again(database: Database, clock: Clock) -> None:
    """The dispatchers try at once, before the judge sees the edit; then the breaker lets few attempts through.

    Attempts from before the edit don't count, and those that the judge saw before it knew of the edit do.
    """
    store, states = HistoryStore(database, SETTINGS, clock), TenantStates(database, clock)
    await store.write(rows_of_entries(*entries_of(BAD, HistoryOutcome.ATTEMPT, 20)))
    assert [one.report.state for one in await states.judge({BAD: in_use("1", NOW - 9999)})] == [FleetState.FAILING]
    edited_at = NOW + 1
    burst = [failed_at(edited_at + 0.1 * number) for number in range(1, 7)]
    await store.write(rows_of_entries(*burst, writer=2))
    clock.now = edited_at + 9
    assert await states.judge({BAD: in_use("1", NOW - 9999)}) == []
    edited = {BAD: in_use("2", edited_at)}
    assert [one.report.state for one in await states.judge(edited)] == [FleetState.UNKNOWN]
    for number, after_s in enumerate((31, 92)):
        assert await states.judge(edited) == []
        clock.now = edited_at + after_s
        await store.write(rows_of_entries(failed_at(clock.now), writer=3 + number))
    (change,) = await states.judge(edited)
    assert (change.before, change.report.state) == (FleetState.UNKNOWN, FleetState.FAILING)
    assert edited_at < change.report.since < edited_at + 1


@pytest.mark.parametrize("wrong", [NOW + 86_400, NOW - 86_400], ids=["ahead", "behind"])
async def test_a_wrong_clock_of_the_store_costs_no_more_than_evidence(
    database: Database, clock: Clock, wrong: float
) -> None:
    store, states = HistoryStore(database, SETTINGS, clock), TenantStates(database, clock)
    await states.judge({BAD: in_use("1")})
    await states.judge({BAD: in_use("2", wrong)})
    clock.now += 3600
    await store.write(rows_of_entries(*entries_of(BAD, HistoryOutcome.ATTEMPT, 20, clock.now)))
    assert [one.report.state for one in await states.judge({BAD: in_use("2", wrong)})] == [FleetState.FAILING]


def failed_at(at: float) -> HistoryEntry:
    return entries_of(BAD, HistoryOutcome.ATTEMPT, 1, at)[0]


async def test_states_are_unknown_without_a_worker_that_keeps_up(database: Database, clock: Clock) -> None:
    store, states = HistoryStore(database, SETTINGS, clock), TenantStates(database, clock)
    await store.write(rows_of_entries(*entries_of(GOOD, HistoryOutcome.DELIVERED, 1)))
    assert not await states.sign_of_life(500, is_current=False), "it still reads old entries"
    assert await states.sign_of_life(0, is_current=True)
    await states.judge({})
    assert (await states.of(GOOD)).state is FleetState.ACTIVE
    lagging = TenantStates(database, clock)
    assert not await lagging.sign_of_life(10**6, is_current=False)
    report = await states.of(GOOD)
    assert (report.state, report.is_current, report.delivered_at) == (FleetState.UNKNOWN, False, NOW)
    await lagging.sign_off()
    assert (await states.of(GOOD)).state is FleetState.ACTIVE
    clock.now += 100
    assert (await states.of(GOOD)).state is FleetState.UNKNOWN, "no sign of life"
    assert await states.sign_of_life(0, is_current=False), "current a moment ago"
    clock.now += 100
    assert not await states.sign_of_life(9, is_current=False)


async def test_tenants_that_vanish_are_added_again(database: Database, clock: Clock) -> None:
    """The table was recreated while the worker ran."""
    states = TenantStates(database, clock)
    facts = {GOOD: in_use("1", is_paused=True)}
    for _ in range(2):
        assert [one.report.state for one in await states.judge(facts)] == [FleetState.PAUSED]
        assert await states.judge(facts) == []
        await execute(database, "ALTER TABLE history_tenants RENAME TO gone")
        with pytest.raises(StoreUnavailable):
            await states.judge(facts)
        await execute(database, "ALTER TABLE gone RENAME TO history_tenants")
        await execute(database, "DELETE FROM history_tenants")


async def execute(database: Database, statement: str) -> None:
    async with database.write() as connection:
        await connection.execute(text(statement))


async def test_one_wrong_clock_does_not_end_the_window(database: Database, clock: Clock) -> None:
    store, states = HistoryStore(database, SETTINGS, clock), TenantStates(database, clock)
    await store.write(rows_of_entries(*entries_of(BAD, HistoryOutcome.ATTEMPT, 20)))
    await store.write(rows_of_entries(*entries_of(BAD, HistoryOutcome.ATTEMPT, 1, NOW + 80_000), writer=2))
    await states.judge({})
    assert (await states.sign_of_life(0, is_current=True), (await states.of(BAD)).state) == (True, FleetState.FAILING)


async def test_one_of_several_workers_judges(database: Database, clock: Clock) -> None:
    store = HistoryStore(database, SETTINGS, clock)
    await store.write(rows_of_entries(*entries_of(BAD, HistoryOutcome.ATTEMPT, 20)))
    several = [TenantStates(database, clock) for _ in range(4)]
    if not database.is_postgresql:
        several = several[:1]
    changes = [one for found in await asyncio.gather(*(states.judge({}) for states in several)) for one in found]
    assert len(changes) == 1
