"""The partitions of days on PostgreSQL while a long reader, such as a backup, holds its locks."""

from collections.abc import AsyncIterator
from typing import Any

import pytest
from sqlalchemy import text

from dispatcher.config.secrets import Secret
from dispatcher.contract.history import HistoryEntry, HistoryOutcome, HistoryRecord, KeptAs
from dispatcher.errors import StoreUnavailable
from dispatcher.stores.sql.database import Database
from dispatcher.stores.sql.history_rows import Row, rows_of
from dispatcher.stores.sql.history_schema import DAY_MS, KEPT, partition_name
from dispatcher.stores.sql.history_store import HistoryStore, Written
from tests.stores_sql.history_examples import DAY_S, NOW, SETTINGS, Clock, counted, size
from tests.stores_sql.postgres import Postgres

TODAY = int(NOW * 1000) // DAY_MS


@pytest.fixture
async def database(postgres: Postgres) -> AsyncIterator[Database]:
    opened = Database(Secret((await postgres.fresh_database()).encode()), setting="history.url")
    yield opened
    await opened.close()


@pytest.fixture
async def reader(database: Database) -> AsyncIterator[Any]:
    """A connection in a transaction that lasts, as that of pg_dump."""
    connection: Any = await database.connect_alone()
    await connection.execute("BEGIN")
    await connection.execute("SET statement_timeout = 0; SET idle_in_transaction_session_timeout = 0")
    yield connection
    await connection.close()


def rows(clock: Clock, writer: int = 1) -> list[Row]:
    """An entry of each class."""
    outcomes = (HistoryOutcome.DEAD, HistoryOutcome.DELIVERED, HistoryOutcome.SKIPPED)
    made = [HistoryEntry(int(clock.now * 1000), one, "A", "b", "x", webhook_id="m") for one in outcomes]
    return rows_of(HistoryRecord(1, writer, 0, made))[0]


async def lock(reader: Any, *tables: str) -> None:
    await reader.execute(f"LOCK TABLE {', '.join(tables)} IN ACCESS SHARE MODE")


async def partitions(database: Database) -> set[str]:
    async with database.read() as connection:
        found = await connection.execute(
            text("SELECT relname FROM pg_class WHERE relname ~ '^history_entries_._[0-9]+$'")
        )
        return {name for (name,) in found}


async def test_the_first_entries_of_a_day_are_stored_during_a_backup(
    store: HistoryStore, database: Database, clock: Clock, reader: Any
) -> None:
    await store.write(rows(clock))
    await lock(
        reader, "history_entries", *(f"history_entries_{kept}" for kept in KEPT.values()), *await partitions(database)
    )
    clock.now += DAY_S
    assert await store.write(rows(clock, 2)) == Written(3, 0, 0)
    other = HistoryStore(database, SETTINGS, clock)
    await other.prepare()
    assert await other.write(rows(clock, 3)) == Written(3, 0, 0)
    assert await size(database) == 9


async def test_the_partitions_of_today_and_tomorrow_are_made_ahead(
    store: HistoryStore, database: Database, clock: Clock
) -> None:
    expected = {partition_name(kept, day) for kept in KEPT.values() for day in (TODAY, TODAY + 1)}
    assert await store.expire() == 0
    assert await partitions(database) == expected
    assert await store.expire() == 0
    clock.now += DAY_S
    await store.write(rows(clock))
    assert await partitions(database) == expected


async def test_a_day_has_the_indexes_of_its_class(store: HistoryStore, database: Database, clock: Clock) -> None:
    await store.write(rows(clock))
    statement = (
        "SELECT regexp_replace(indexdef, '^CREATE( UNIQUE)? INDEX .* USING', '\\1') FROM pg_indexes "
        "WHERE tablename = :table ORDER BY 1"
    )
    async with database.read() as connection:
        found = [
            (await connection.execute(text(statement), {"table": table})).scalars().all()
            for table in (f"history_entries_{KEPT[KeptAs.FAILED]}", partition_name(KEPT[KeptAs.FAILED], TODAY))
        ]
    assert found[0] == found[1]
    assert len(found[0]) == 12


async def test_a_day_that_a_reader_holds_keeps_nothing_else_from_being_dropped(
    store: HistoryStore, database: Database, clock: Clock, reader: Any
) -> None:
    await store.write(rows(clock))
    held = partition_name(KEPT[KeptAs.FAILED], TODAY)
    await lock(reader, held)
    clock.now += 40 * DAY_S
    with pytest.raises(StoreUnavailable, match="lock timeout"):
        await store.expire()
    assert {name for name in await partitions(database) if name.endswith(f"_{TODAY}")} == {held}
    assert await counted(database) == {}
    await reader.execute("COMMIT")
    assert await store.expire() == 1
