"""Which events were sent again is found by their ids, however many entries their tenant has."""

from collections.abc import AsyncIterator

import pytest
from sqlalchemy import bindparam, text

from dispatcher.config.secrets import Secret
from dispatcher.contract.history import HistoryEntry, HistoryOutcome
from dispatcher.contract.records import Origin
from dispatcher.stores.sql.database import Database
from dispatcher.stores.sql.history_seen import HistorySeen, redriven_statement
from tests.stores_sql.history_examples import NOW, history_of, records

STORED = records(11, 1_500)
ENTRIES = [entry for record in STORED for entry in record.entries]
REDRIVEN = [one for one in ENTRIES if one.outcome is HistoryOutcome.REDRIVEN and one.topic and one.webhook_id]


@pytest.fixture
async def database(empty_url: Secret) -> AsyncIterator[Database]:
    async with history_of(empty_url, *STORED) as opened:
        yield opened


def expected(wanted: set[str | None], since: float) -> dict[Origin, float]:
    found: dict[Origin, float] = {}
    for one in REDRIVEN:
        if one.webhook_id in wanted and one.at >= since * 1000:
            origin = origin_of(one)
            found[origin] = max(one.at / 1000, found.get(origin, 0.0))
    return found


def origin_of(entry: HistoryEntry) -> Origin:
    assert entry.topic is not None
    assert entry.partition is not None
    assert entry.offset is not None
    return Origin(entry.topic, entry.partition, entry.offset)


async def test_events_that_were_sent_again_are_found_with_the_last_time(database: Database) -> None:
    ids = sorted({one.webhook_id for one in REDRIVEN if one.webhook_id is not None})[::2]
    middle = sorted(one.at for one in REDRIVEN)[len(REDRIVEN) // 2] / 1000
    for since in (0.0, middle):
        found = await HistorySeen(database).redriven(ids, since)
        assert found
        assert found == expected(set(ids), since)
    assert await HistorySeen(database).redriven(["msg_of_nobody"], 0.0) == {}


@pytest.mark.parametrize("empty_url", ["sqlite"], indirect=True)
async def test_they_are_looked_up_by_id_on_sqlite(database: Database) -> None:
    """test_every_search_uses_an_index_on_postgresql has the other one, which needs many rows."""
    statement, parameters = redriven_statement(["msg_1", "msg_2"], NOW, has_partitions=False)
    explained = text("EXPLAIN QUERY PLAN " + statement.text).bindparams(bindparam("ids", expanding=True))
    async with database.read() as connection:
        plan = "\n".join(str(row[-1]) for row in await connection.execute(explained, parameters))
    assert "USING INDEX history_entries_webhook_id (webhook_id=? AND at>?)" in plan, plan
