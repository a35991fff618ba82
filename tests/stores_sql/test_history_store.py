"""The history store on SQLite and PostgreSQL: written once, counted once, forgotten in time and on request."""

import asyncio
import random
from collections import Counter
from collections.abc import Sequence

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from dispatcher.contract.history import HistoryEntry, HistoryOutcome, HistoryRecord, KeptAs, kept_as
from dispatcher.contract.history_positions import Move, StoredPositions
from dispatcher.contract.tenant import TenantKey
from dispatcher.errors import StoreReplaced, StoreUnavailable
from dispatcher.stores.sql import history_store
from dispatcher.stores.sql.database import Database
from dispatcher.stores.sql.history_rows import Row, rows_of
from dispatcher.stores.sql.history_schema import DAY_MS, metadata, partition_name
from dispatcher.stores.sql.history_search import HistoryQuery, HistorySearch
from dispatcher.stores.sql.history_store import HistoryStore, Written
from tests.stores_sql.history_examples import (
    DAY_S,
    NOW,
    ORGS,
    SANDBOXES,
    SETTINGS,
    Clock,
    counted,
    entry,
    records,
    rows_of_records,
    size,
)


@pytest.fixture
def database(history_database: Database) -> Database:
    return history_database


async def test_an_entry_written_twice_is_stored_and_counted_once(store: HistoryStore, database: Database) -> None:
    """In other batches, in another order, and from several workers at once where the database takes several."""
    made = records(1, 400)
    everything = rows_of_records(*made)
    assert await store.write(everything) == Written(400, 0, 0)
    assert await store.write(everything) == Written(0, 0, 0)
    random.Random(2).shuffle(everything)
    assert await store.write(everything[:250] + everything[:50]) == Written(0, 0, 0)
    if database.is_postgresql:
        fresh = rows_of_records(
            *records(3, 400), HistoryRecord(1, 1, 10_000, [one for record in made for one in record.entries])
        )
        added = await asyncio.gather(*(store.write(random.Random(seed).sample(fresh, len(fresh))) for seed in range(4)))
        assert sum(one.added for one in added) <= len(fresh)
    async with database.read() as connection:
        found = await connection.execute(text("SELECT org, sandbox, outcome, reason FROM history_entries"))
        assert await counted(database) == Counter(tuple(row) for row in found)


async def test_a_second_worker_prepares_what_is_there(store: HistoryStore, database: Database, clock: Clock) -> None:
    others = [HistoryStore(database, SETTINGS, clock) for _ in range(3)]
    await asyncio.gather(*(other.prepare() for other in others if database.is_postgresql))
    await others[0].prepare()
    await store.write(rows_of_records(*records(1, 40)))
    await others[0].prepare()
    assert await size(database) == 40


async def test_each_class_is_kept_for_its_own_time(store: HistoryStore, database: Database, clock: Clock) -> None:
    chance = random.Random(4)
    made = [entry(chance, number, age_s=0) for number in range(300)]
    await store.write(rows_of_records(HistoryRecord(1, 1, 0, made)))
    failed = sum(kept_as(one) is KeptAs.FAILED for one in made)
    ends = [one for one in made if one.outcome in (HistoryOutcome.DELIVERED, HistoryOutcome.SKIPPED)]
    assert 300 - len(ends) < failed < 300  # the end of an event that failed before is kept as long as the failure
    clock.now += 1 * DAY_S - 3600
    await store.expire()
    assert await size(database) == 300
    clock.now = NOW + 2.1 * DAY_S
    assert await store.expire() > 0
    assert await size(database) == failed
    delivered = HistoryQuery(TenantKey(ORGS[0], SANDBOXES[0]), outcomes=frozenset({HistoryOutcome.DELIVERED}))
    found = (await HistorySearch(database).search(delivered, orgs=None)).items
    assert found
    assert all(one.has_earlier for one in found)
    assert await store.write(rows_of_records(HistoryRecord(1, 1, 0, made))) == Written(0, 300 - failed, 0)
    clock.now = NOW + 31.1 * DAY_S
    assert await store.expire() > 0
    assert await size(database) == 0
    assert await counted(database) == {}
    clock.now += DAY_S
    later = HistoryEntry(at=int(clock.now * 1000), outcome=HistoryOutcome.DELIVERED, org="A", sandbox="b")
    assert await store.write(rows_of_records(HistoryRecord(1, 1, 9, [later]))) == Written(1, 0, 0)


async def test_a_person_is_forgotten_and_stays_forgotten(store: HistoryStore, database: Database, clock: Clock) -> None:
    """The topic still holds the person's entries, and a worker that starts from its beginning reads them again."""
    everything = rows_of_records(*records(5, 400))
    await store.write(everything)
    hashed = f"{3:032x}"
    own = sum(row[18] == hashed for row in everything)
    assert own
    assert await store.erase(hashed) == own
    assert await store.erase(hashed) == 0
    search = HistorySearch(database)
    assert not (await search.search(HistoryQuery(recipients=(hashed,)), orgs=None)).items
    assert await store.write(everything) == Written(0, own, 0)
    assert await size(database) == 400 - own
    clock.now += 60
    later = HistoryEntry(at=int(clock.now * 1000), outcome=HistoryOutcome.DEAD, org="A", sandbox="b", recipient=hashed)
    assert await store.write(rows_of_records(HistoryRecord(1, 1, 9000, [later]))) == Written(1, 0, 0)


async def test_a_person_is_forgotten_although_a_write_is_under_way(
    store: HistoryStore, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worker has read whom it must not store, and stores only then."""
    hashed = f"{3:032x}"
    everything = rows_of_records(*records(5, 400))
    own = sum(row[18] == hashed for row in everything)
    has_read, goes_on = asyncio.Event(), asyncio.Event()
    unpaused = history_store._without_erased

    async def paused(connection: AsyncConnection, found: Sequence[Row]) -> list[Row]:
        kept = await unpaused(connection, found)
        has_read.set()
        await goes_on.wait()
        return kept

    monkeypatch.setattr(history_store, "_without_erased", paused)
    writing = asyncio.create_task(store.write(everything))
    await has_read.wait()
    erasing = asyncio.create_task(store.erase(hashed))
    await asyncio.wait([erasing], timeout=0.5)
    goes_on.set()
    assert await writing == Written(400, 0, 0)
    assert await erasing == own
    assert await size(database) == 400 - own
    assert await store.write(everything) == Written(0, own, 0)


async def test_entries_that_no_column_holds_or_with_a_wrong_clock_are_left_out(
    store: HistoryStore, database: Database
) -> None:
    """One bad entry must not keep its batch, and so the topic, from being stored."""

    def made(**values: object) -> HistoryEntry:
        usual = {"at": int(NOW * 1000), "outcome": HistoryOutcome.DEAD, "org": "A", "sandbox": "b"}
        return HistoryEntry(**usual | values)  # type: ignore[arg-type]

    odd = [
        made(partition=2**40), made(offset=2**63), made(at=-5), made(count=2**64), made(attempt=2**31),
        made(at=int((NOW + 40 * DAY_S) * 1000)), made(at=0), made(at=int((NOW - 31 * DAY_S) * 1000)),
    ]  # fmt: skip
    fine = [
        made(request_id="a\x00b"), made(reason="r" * 5000), made(org=None, sandbox=None, reason="unreadable"),
        made(request_id="\x00" * 300), made(request_id="grüße 😀"), made(),
    ]  # fmt: skip
    found, unfit = rows_of(HistoryRecord(1, 1, 0, odd + fine))
    assert unfit == 5
    assert await store.write(found) == Written(6, 3, 0)
    assert rows_of(HistoryRecord(1, 2**63, 0, [made()])) == ([], 1)
    page = await HistorySearch(database).search(HistoryQuery(any_id="a\x00b"), orgs=None)
    assert [one.request_id for one in page.items] == ["a\ufffdb"]
    page = await HistorySearch(database).search(HistoryQuery(any_id="\x00" * 400), orgs=None)
    assert len(page.items) == 1


async def test_counts_are_answered_by_tenant_and_time(store: HistoryStore, database: Database) -> None:
    made = records(6, 500)
    await store.write(rows_of_records(*made))
    many = HistoryEntry(
        at=int(NOW * 1000), outcome=HistoryOutcome.SKIPPED, org="C", sandbox="prod", reason="no_webhook", count=1234
    )
    await store.write(rows_of_records(HistoryRecord(1, 7, 0, [many])))
    search = HistorySearch(database)
    for org in ORGS:
        for sandbox in SANDBOXES:
            found = await search.counts(TenantKey(org, sandbox), NOW - 2 * DAY_S, NOW + DAY_S)
            own = [one for record in made for one in record.entries if (one.org, one.sandbox) == (org, sandbox)]
            assert {(one.outcome, one.reason, one.channel): one.events for one in found} == Counter(
                (one.outcome, one.reason, one.channel) for one in own
            )
    [unknown] = await search.counts(TenantKey("C", "prod"), NOW - 900, NOW + 1)
    assert (unknown.reason, unknown.events) == ("no_webhook", 1234)
    assert await search.counts(TenantKey("C", "prod"), NOW + 900, NOW + 1800) == ()


async def test_a_partition_that_vanishes_is_made_again_with_the_next_write(
    store: HistoryStore, database: Database
) -> None:
    """Another worker with a clock ahead dropped it, or an operator did."""
    if not database.is_postgresql:
        pytest.skip("SQLite has no partitions")
    everything = rows_of_records(*records(1, 40))
    await store.write(everything)
    for kept, day in {(row[0], row[1] // DAY_MS) for row in everything}:
        async with database.write() as connection:
            await connection.execute(text(f"DROP TABLE {partition_name(kept, day)}"))
        with pytest.raises(StoreUnavailable):
            await store.write(everything)
        await store.write(everything)
    assert await size(database) == 40


PLACE = ("g.history", 3)


async def test_positions_move_with_the_entries_before_them(store: HistoryStore, database: Database) -> None:
    everything = rows_of_records(*records(1, 40))
    assert await store.positions() == StoredPositions()
    await store.write(everything[:20], {PLACE: Move(None, 7), ("g.history", 4): Move(None, 9)})
    await store.write([], {PLACE: Move(7, 8)})  # of records that can't be read, or are too old
    expected = StoredPositions({PLACE: 8, ("g.history", 4): 9})
    assert await store.positions() == expected
    for wrong in (Move(None, 20), Move(7, 20), Move(9, 20)):
        with pytest.raises(StoreReplaced, match=r"g\.history/3 up to 8"):
            await store.write(everything, {PLACE: wrong})
    with pytest.raises(StoreReplaced):
        await store.write(everything, {("g.history", 5): Move(3, 20)})
    assert (await size(database), await store.positions()) == (20, expected)


async def test_tables_that_vanish_are_made_again_and_have_no_positions(store: HistoryStore, database: Database) -> None:
    everything = rows_of_records(*records(1, 40))
    for access in (store.positions, lambda: store.write(everything, {PLACE: Move(7, 8)})):
        await store.write(everything, {PLACE: Move(None, 7)})
        async with database.write() as connection:
            for name in metadata.tables:
                await connection.execute(text(f"DROP TABLE {name}"))
        with pytest.raises(StoreUnavailable):
            await access()
        assert await store.positions() == StoredPositions()
        with pytest.raises(StoreReplaced):
            await store.write(everything, {PLACE: Move(7, 8)})
        assert await size(database) == 0


async def test_a_store_of_a_version_without_positions_has_what_was_committed(
    store: HistoryStore, database: Database, clock: Clock
) -> None:
    async with database.write() as connection:
        await connection.execute(text("DROP TABLE history_positions"))
    upgraded = HistoryStore(database, SETTINGS, clock)
    await upgraded.prepare()
    await upgraded.prepare()
    assert await upgraded.positions() == StoredPositions(trusts_commits=True)
    await upgraded.write([], {PLACE: Move(None, 8)})
    assert await store.positions() == StoredPositions({PLACE: 8}, trusts_commits=True)


@pytest.mark.parametrize(
    ("positions", "committed", "start"),
    [
        (StoredPositions(), 5, 0),
        (StoredPositions(), None, 0),
        (StoredPositions({("g.history", 4): 9}), 5, 0),
        (StoredPositions({PLACE: 5}), 5, 5),
        (StoredPositions({PLACE: 3}), 5, 3),  # restored from a backup
        (StoredPositions({PLACE: 7}), 5, 5),  # the commit failed, or the group was set back
        (StoredPositions({PLACE: 7}), None, 0),  # the topic was recreated
        (StoredPositions(trusts_commits=True), 5, 5),
        (StoredPositions(trusts_commits=True), None, 0),
        (StoredPositions({PLACE: 3}, trusts_commits=True), 5, 3),
    ],
)
def test_reading_begins_at_what_the_store_lacks(positions: StoredPositions, committed: int | None, start: int) -> None:
    assert positions.start(PLACE, committed) == start
