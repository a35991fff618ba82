"""Work on many rows goes on where it stopped: each step fits into the time that the database gives a statement."""

from collections.abc import AsyncIterator

import pytest
from sqlalchemy import text

from dispatcher.config.secrets import Secret
from dispatcher.config.settings import HistorySettings
from dispatcher.contract.history import HistoryEntry, HistoryOutcome, HistoryRecord
from dispatcher.errors import StoreUnavailable
from dispatcher.stores.sql import database as database_module
from dispatcher.stores.sql import history_store
from dispatcher.stores.sql.database import Database
from dispatcher.stores.sql.history_rows import Row, rows_of
from dispatcher.stores.sql.history_store import HistoryStore, Written
from tests.stores_sql.history_examples import DAY_S, NOW, Clock, counted, size

PERSON = f"{3:032x}"


@pytest.fixture
async def database(empty_url: Secret, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Database]:
    """PostgreSQL stops a statement after half a second; so is a statement of the tests that touches 250 rows."""
    monkeypatch.setattr(database_module, "STATEMENT_TIMEOUT_MS", 500)
    monkeypatch.setattr(history_store, "_DELETED_AT_ONCE", 40)
    opened = Database(empty_url, create=True, setting="history.url")
    yield opened
    await opened.close()


def entries(count: int) -> list[Row]:
    """Entries of one person, a second apart, in as many tenants."""
    made = [
        HistoryEntry(int((NOW - n) * 1000), HistoryOutcome.DEAD, f"org-{n}", "prod", recipient=PERSON)
        for n in range(count)
    ]
    return rows_of(HistoryRecord(1, 1, 0, made))[0]


async def slow_down(database: Database, event: str, table: str) -> None:
    """Makes PostgreSQL wait 2 ms for each row."""
    if not database.is_postgresql:
        return
    async with database.write() as connection:
        await connection.execute(
            text(
                "CREATE OR REPLACE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS "
                "'BEGIN PERFORM pg_sleep(0.002); RETURN CASE WHEN TG_OP = ''DELETE'' THEN OLD ELSE NEW END; END'"
            )
        )
        await connection.execute(
            text(f"CREATE TRIGGER slow BEFORE {event} ON {table} FOR EACH ROW EXECUTE FUNCTION slow()")
        )


async def test_old_counts_are_deleted_in_slices(store: HistoryStore, database: Database, clock: Clock) -> None:
    await store.write(entries(400))
    await slow_down(database, "DELETE", "history_counts")
    async with database.write() as connection:
        spread = "UPDATE history_counts SET slot = slot - 900000 * CAST(substr(org, 5) AS integer)"
        await connection.execute(text(spread))
    clock.now += 60 * DAY_S
    await store.expire()
    assert await counted(database) == {}


async def test_a_person_with_many_entries_is_erased(store: HistoryStore, database: Database) -> None:
    everything = entries(400)
    await store.write(everything)
    await slow_down(database, "DELETE", "history_entries")
    assert await store.erase(PERSON) == 400
    assert await size(database) == 0
    assert await store.write(everything) == Written(0, 400, 0)


async def test_a_batch_that_takes_too_long_is_written_in_pieces(store: HistoryStore, database: Database) -> None:
    everything = entries(400)
    await slow_down(database, "INSERT", "history_entries")
    for _ in range(6):
        try:
            await store.write(everything)
            break
        except StoreUnavailable:
            continue
    assert await size(database) == 400
    assert sum((await counted(database)).values()) == 400


async def test_maintenance_may_take_longer_than_a_statement(store: HistoryStore, database: Database) -> None:
    """Among it an index that a store of an older version lacks."""
    if not database.is_postgresql:
        return
    async with store._unhurried() as connection:
        await connection.execute(text("SELECT pg_sleep(0.8)"))
    with pytest.raises(StoreUnavailable):
        async with database.write() as connection:
            await connection.execute(text("SELECT pg_sleep(0.8)"))


async def test_the_longest_time_that_entries_may_be_kept(database: Database, clock: Clock) -> None:
    keep = {"failed": "36500d", "delivered": "36500d", "skipped": "36500d"}
    store = HistoryStore(database, HistorySettings.model_validate({"keep": keep}), clock)
    await store.prepare()
    await store.write(entries(3))
    assert await store.expire() == 0
    assert sum((await counted(database)).values()) == 3
