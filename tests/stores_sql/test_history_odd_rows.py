"""A row that the database can't hold is left out by itself: neither its batch nor the topic waits for it."""

import random

import pytest
from sqlalchemy import text
from structlog.testing import capture_logs

from dispatcher.config.secrets import Secret
from dispatcher.contract.history import HistoryEntry, HistoryOutcome, HistoryRecord
from dispatcher.contract.history_positions import Move, StoredPositions
from dispatcher.contract.tenant import TenantKey
from dispatcher.errors import ConfigError
from dispatcher.stores.sql.database import Database
from dispatcher.stores.sql.history_rows import COLUMNS, rows_of
from dispatcher.stores.sql.history_search import HistoryQuery, HistorySearch
from dispatcher.stores.sql.history_store import HistoryStore, Written
from tests.stores_sql.history_examples import NOW, SETTINGS, Clock, counted, records, rows_of_records, size
from tests.stores_sql.postgres import Postgres

PLACE = ("g.history", 3)
COUNT = COLUMNS.index("count")
MAX_INT8 = 2**63 - 1


@pytest.fixture
def database(history_database: Database) -> Database:
    return history_database


def skipped(**values: object) -> HistoryEntry:
    usual = {"at": int(NOW * 1000), "outcome": HistoryOutcome.SKIPPED, "org": "A", "sandbox": "b", "reason": "channel"}
    return HistoryEntry(**usual | values)  # type: ignore[arg-type]


async def test_names_of_the_longest_kind_are_stored_and_found(store: HistoryStore, database: Database) -> None:
    """300 characters of four bytes that don't compress: an index row of PostgreSQL has 2704 bytes at most."""
    chance = random.Random(1)

    def wide() -> str:
        return "".join(chr(0x20000 + chance.randrange(0xA000)) for _ in range(300))

    org, sandbox, channel, campaign = wide(), wide(), wide(), wide()
    entry = skipped(
        org=org, sandbox=sandbox, reason=wide(), channel=channel, message_status=wide(), webhook_id=wide(),
        event_id=wide(), request_id=wide(), message_execution_id=wide(), campaign_id=campaign, topic=wide(),
    )  # fmt: skip
    dead = HistoryEntry(at=entry.at, outcome=HistoryOutcome.DEAD, org=org, sandbox=sandbox, reason=wide())
    assert await store.write(rows_of_records(HistoryRecord(1, 1, 0, [entry, dead]))) == Written(2, 0, 0)
    search = HistorySearch(database)
    query = HistoryQuery(tenant=TenantKey(org, sandbox), channels=frozenset({channel}))
    for wanted in (query, HistoryQuery(any_id=campaign)):
        [found] = (await search.search(wanted, orgs=None)).items
        assert found.org is not None
        assert org.startswith(found.org)
        assert len(found.org.encode()) <= 512


async def test_counts_that_no_column_can_sum_are_refused(store: HistoryStore, database: Database) -> None:
    made = [skipped(count=count) for count in (2**31 - 1, 2**31, MAX_INT8, MAX_INT8)]
    found, unfit = rows_of(HistoryRecord(1, 1, 0, made))
    assert unfit == 3
    assert await store.write(found) == Written(1, 0, 0)


async def test_a_row_that_the_database_refuses_is_left_out_alone(store: HistoryStore, database: Database) -> None:
    """Whatever the reason: here, a count that an older version stored has no room for another event."""
    made = rows_of_records(*records(1, 40))
    for column, value in ((COUNT, MAX_INT8), (COUNT, 2**63)):
        bad = list(rows_of_records(HistoryRecord(1, value % 1000, 0, [skipped(org="full", count=1)]))[0])
        bad[column] = value
        made.append(tuple(bad))
    full = tuple(made.pop(-2))
    assert await store.write([full]) == Written(1, 0, 0)
    made.append(rows_of_records(HistoryRecord(1, 5, 0, [skipped(org="full", count=1)]))[0])
    refused = 2 if database.is_postgresql else 1  # SQLite goes on with a number that isn't exact
    with capture_logs() as logged:
        assert await store.write(made, {PLACE: Move(None, 7)}) == Written(42 - refused, 0, refused)
    lines = [line for line in logged if "refused by the database" in line["event"]]
    assert len(lines) == refused
    assert all(line["log_level"] == "warning" and line["problem"] for line in lines)
    assert await store.positions() == StoredPositions({PLACE: 7})
    assert await size(database) == 43 - refused
    assert sum(events for (org, *_), events in (await counted(database)).items() if org != "full") == 40
    assert await store.write(made, {PLACE: Move(7, 8)}) == Written(0, 0, refused)


async def test_a_batch_of_nothing_but_refused_rows_moves_the_positions(store: HistoryStore) -> None:
    bad = list(rows_of_records(HistoryRecord(1, 1, 0, [skipped()]))[0])
    bad[COUNT] = 2**63
    assert await store.write([tuple(bad)], {PLACE: Move(None, 7)}) == Written(0, 0, 1)
    assert await store.positions() == StoredPositions({PLACE: 7})


async def test_a_database_that_can_not_hold_every_character_is_refused(postgres: Postgres, clock: Clock) -> None:
    url = await postgres.fresh_database()
    name = url.rpartition("/")[2]
    await postgres.execute(
        f"CREATE DATABASE {name}_latin ENCODING 'LATIN1' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0"
    )
    database = Database(Secret(f"{url}_latin".encode()), setting="history.url")
    try:
        with pytest.raises(ConfigError, match="LATIN1") as error:
            await HistoryStore(database, SETTINGS, clock).prepare()
        assert "ENCODING 'UTF8'" in str(error.value)
        async with database.read() as connection:
            found = await connection.execute(text("SELECT count(*) FROM pg_tables WHERE tablename LIKE 'history%'"))
            assert found.scalar_one() == 0
    finally:
        await database.close()
