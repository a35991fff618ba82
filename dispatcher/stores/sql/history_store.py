"""The history store: stores the topic's entries, keeps them for `history.keep`, and erases a person's entries.

Writing is idempotent: an entry that is there already is left alone, and counts grow with new entries only, in the same
transaction. Any number of workers may write to one PostgreSQL; a SQLite file belongs to one worker.
"""

import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from types import MappingProxyType
from typing import Any, Final, NamedTuple

import structlog
from sqlalchemy import inspect, text
from sqlalchemy.ext.asyncio import AsyncConnection

from dispatcher.config.settings import HistorySettings
from dispatcher.contract.history import HistoryOutcome, KeptAs
from dispatcher.contract.history_positions import Move, StoredPositions, TopicAndPartition
from dispatcher.errors import ConfigError, Problem, StoreUnavailable, ValuesRefused
from dispatcher.stores.sql.database import Database
from dispatcher.stores.sql.history_days import DayPartitions
from dispatcher.stores.sql.history_evidence import add_evidence
from dispatcher.stores.sql.history_positions import move_positions, read_positions, trust_commits
from dispatcher.stores.sql.history_rows import COLUMNS, Row, slot_counts
from dispatcher.stores.sql.history_schema import (
    DAY_MS,
    ERASE_LOCK,
    KEPT,
    LOCK,
    SCHEMA_VERSION,
    SLOT_MS,
    WRITE_LOCK,
    added_index_statements,
    index_statements,
    metadata,
    positions,
    postgresql_statements,
    version,
)
from dispatcher.stores.sql.slices import delete_in_slices

WRITE_WITHIN_S: Final = 30.0
"""Deadline of one batch."""
MAINTAIN_WITHIN_S: Final = 300.0
MOST_AHEAD_MS: Final = DAY_MS
"""An entry from further in the future than this has a wrong clock, and is refused."""
ERASED_FOR_MS: Final = 14 * DAY_MS
"""Time after an erasure for which a person's old entries are refused: longer than the topic keeps them."""
_ROWS_A_STATEMENT: Final = 500
"""SQLite takes 32,766 values a statement."""
_DELETED_AT_ONCE: Final = 5_000
_MERGED_AT_ONCE: Final = 100_000
"""Rows that one transaction stores; fewer after one that failed, and `_MERGED_LEAST` at least."""
_MERGED_LEAST: Final = 50
_NAMES: Final = ", ".join(f'"{name}"' for name in COLUMNS)
_OUTCOME: Final = COLUMNS.index("outcome")
_RECIPIENT: Final = COLUMNS.index("recipient")
_COUNT_UPSERT: Final = (
    "ON CONFLICT (org, sandbox, slot, outcome, reason, channel) "
    "DO UPDATE SET events = history_counts.events + excluded.events"
)
_MERGE: Final = f"""
WITH added AS (
    INSERT INTO history_entries ({_NAMES}) SELECT {_NAMES} FROM history_incoming
    ON CONFLICT DO NOTHING
    RETURNING kept, "at", writer, number, org, sandbox, "at" / {SLOT_MS} * {SLOT_MS} AS slot, outcome, reason,
        coalesce(channel, '') AS channel, "count"
), counted AS (
    INSERT INTO history_counts (org, sandbox, slot, outcome, reason, channel, events)
    SELECT org, sandbox, slot, outcome, reason, channel, sum("count") FROM added
    WHERE "at" >= CASE outcome WHEN '{HistoryOutcome.SKIPPED}' THEN $2::bigint ELSE $1::bigint END
    GROUP BY 1, 2, 3, 4, 5, 6 ORDER BY 1, 2, 3, 4, 5, 6
    {_COUNT_UPSERT}
)
SELECT kept, "at", writer, number FROM added
"""  # noqa: S608  (names of our own)

_ENCODINGS: Final = ("UTF8", "SQL_ASCII")
"""Encodings of databases that hold every character; the second one stores bytes as they are."""
_NO_MOVES: Final[Mapping[TopicAndPartition, Move]] = MappingProxyType({})

Step = Callable[[], Awaitable[int | None]]

log = structlog.get_logger(__name__)


class Written(NamedTuple):
    """Counts of the rows of a write. The rest was there already."""

    added: int
    """New entries."""
    left_out: int
    """Entries that are too old, erased, or from the future."""
    refused: int
    """Entries with a value that the database can't hold."""

    def plus(self, other: "Written") -> "Written":
        """Returns the sums."""
        return Written(*map(sum, zip(self, other, strict=True)))


class HistoryStore:
    """Writes to the store; `HistorySearch` reads it."""

    def __init__(self, database: Database, settings: HistorySettings, clock: Callable[[], float] = time.time) -> None:
        self._database = database
        self._keep_ms = {
            KEPT[KeptAs.FAILED]: int(settings.keep.failed * 1000),
            KEPT[KeptAs.DELIVERED]: int(settings.keep.delivered * 1000),
            KEPT[KeptAs.SKIPPED]: int(settings.keep.skipped * 1000),
        }
        self._comparable_ms = int(min(settings.keep.failed, settings.keep.delivered) * 1000)
        """Age up to which both failures and deliveries are stored, so that a webhook can be judged by them."""
        self._clock = clock
        self._days = DayPartitions(database) if database.is_postgresql else None
        self._may_lack_tables = False
        self._at_once = _MERGED_AT_ONCE

    @property
    def name(self) -> str:
        """Database and place, for people."""
        return self._database.name

    async def prepare(self) -> None:
        """Creates tables and indexes if they are missing.

        Raises:
            ConfigError: the tables are of a newer version of this program, or the database's encoding lacks characters.
            StoreUnavailable: the database did not answer, or refused.
        """
        async with self._unhurried() as connection:
            if self._database.is_postgresql:
                await _check_encoding(connection)
                await connection.execute(LOCK)
            had_positions = await connection.run_sync(lambda sync: inspect(sync).has_table(positions.name))
            await connection.run_sync(
                metadata.create_all,
                tables=[table for name, table in metadata.tables.items() if name != "history_entries"],
            )
            statements = postgresql_statements()
            if not self._database.is_postgresql:
                await connection.run_sync(metadata.tables["history_entries"].create, checkfirst=True)
                statements = index_statements()
            for statement in statements + added_index_statements(is_postgresql=self._database.is_postgresql):
                await connection.execute(text(statement))
            found = (await connection.execute(version.select())).scalar()
            if found is None:
                await connection.execute(version.insert().values(version=SCHEMA_VERSION))
            elif found != SCHEMA_VERSION:
                message = f"the history store has tables of version {found}, this program needs {SCHEMA_VERSION}"
                raise ConfigError([Problem(f"{message}: use the program that made them, or another database", _KEY)])
            elif not had_positions:
                await trust_commits(connection)
        self._may_lack_tables = False

    async def positions(self) -> StoredPositions:
        """Returns how far the topic is stored.

        Raises:
            ConfigError, StoreUnavailable: as `write`.
        """
        async with self._with_tables(), self._database.read() as connection:
            return await read_positions(connection)

    async def write(self, rows: Sequence[Row], moves: Mapping[TopicAndPartition, Move] = _NO_MOVES) -> Written:
        """Writes rows, and moves the positions past their records in the transaction of the last ones.

        Raises:
            ConfigError: the tables were replaced by those of a newer version of this program.
            StoreReplaced: the positions are not those that `moves` begin at; nothing was written.
            StoreUnavailable: nothing or not everything was written, and the positions did not move, or it is unknown
                whether they did: write the same rows again.
        """
        now_ms = int(self._clock() * 1000)
        timely = [row for row in rows if now_ms - self._keep_ms[row[0]] <= row[1] <= now_ms + MOST_AHEAD_MS]
        timely.sort(key=lambda row: row[:4])  # all workers lock in one order
        if not timely and not moves:
            return Written(0, len(rows), 0)
        async with self._with_tables():
            written = await self._merge_in_pieces(timely, moves, now_ms)
        return written.plus(Written(0, len(rows) - len(timely), 0))

    @asynccontextmanager
    async def _with_tables(self) -> AsyncIterator[None]:
        """Creates missing tables and partitions again before the next access if this one fails: they may be gone."""
        if self._may_lack_tables:
            await self.prepare()
        try:
            yield
        except StoreUnavailable:
            self._may_lack_tables = True
            if self._days is not None:
                self._days.forget()
            raise

    async def _merge_in_pieces(
        self, rows: Sequence[Row], moves: Mapping[TopicAndPartition, Move], now_ms: int
    ) -> Written:
        """Merges every row. After a failure pieces are smaller: the database may have been too slow."""
        written, done = Written(0, 0, 0), 0
        while True:
            piece = rows[done : done + self._at_once]
            is_last = done + len(piece) == len(rows)
            try:
                of_piece = await self._merge_what_fits(piece, moves if is_last else _NO_MOVES, now_ms)
            except StoreUnavailable:
                self._at_once = max(_MERGED_LEAST, min(self._at_once, len(rows)) // 2)
                raise
            written, done = written.plus(of_piece), done + len(piece)
            self._at_once = min(_MERGED_AT_ONCE, self._at_once * 5 // 4)
            if is_last:
                return written

    async def _merge_what_fits(
        self, rows: Sequence[Row], moves: Mapping[TopicAndPartition, Move], now_ms: int
    ) -> Written:
        """Merges the rows except single ones that the database refuses, which would be refused for ever."""
        try:
            return await self._merge(rows, moves, now_ms)
        except ValuesRefused as error:
            if not rows:
                raise
            if len(rows) == 1:
                problem = str(error)[:300]
                log.warning("history entry is refused by the database", place=_place_of(rows[0]), problem=problem)
                rest = await self._merge([], moves, now_ms) if moves else Written(0, 0, 0)
                return rest.plus(Written(0, 0, 1))
        half = len(rows) // 2
        first = await self._merge_what_fits(rows[:half], _NO_MOVES, now_ms)
        return first.plus(await self._merge_what_fits(rows[half:], moves, now_ms))

    async def _merge(self, rows: Sequence[Row], moves: Mapping[TopicAndPartition, Move], now_ms: int) -> Written:
        """Writes the rows, their evidence and the positions in one transaction."""
        if self._days is not None:
            await self._days.make({(row[0], row[1] // DAY_MS) for row in rows})
        async with self._database.write(WRITE_WITHIN_S) as connection:
            await self._lock_out_erasures(connection)
            wanted = await _without_erased(connection, rows)
            merge = self._copy if self._database.is_postgresql else _insert
            since_ms = now_ms - self._comparable_ms
            skipped_since_ms = now_ms - self._keep_ms[KEPT[KeptAs.SKIPPED]]
            added = await merge(connection, wanted, since_ms, skipped_since_ms) if wanted else []
            evidence = [row for row in added if row[1] >= since_ms]
            await add_evidence(connection, evidence, now_ms, is_postgresql=self._database.is_postgresql)
            await move_positions(connection, moves)
            return Written(len(added), len(rows) - len(wanted), 0)

    async def _lock_out_erasures(self, connection: AsyncConnection) -> None:
        """Keeps `erase` from noting a person after this transaction has looked up whom not to store."""
        if self._database.is_postgresql:
            await connection.execute(WRITE_LOCK)
        else:  # the driver would begin the transaction with the first change only
            await connection.exec_driver_sql("BEGIN IMMEDIATE")

    async def _copy(
        self, connection: AsyncConnection, rows: Sequence[Row], since_ms: int, skipped_since_ms: int
    ) -> list[Row]:
        """Does what `_insert` does, on PostgreSQL."""
        await connection.execute(
            text("CREATE TEMPORARY TABLE IF NOT EXISTS history_incoming (LIKE history_entries) ON COMMIT DELETE ROWS")
        )
        raw: Any = (await connection.get_raw_connection()).driver_connection
        await raw.copy_records_to_table("history_incoming", records=rows, columns=COLUMNS)
        by_key = {row[:4]: row for row in rows}
        return [by_key[tuple(key)] for key in await raw.fetch(_MERGE, since_ms, skipped_since_ms)]

    async def expire(self) -> int:
        """Drops what is older than `history.keep`; on PostgreSQL whole days only.

        Returns:
            The number of dropped partitions, or of deleted entries on SQLite.

        Raises:
            StoreUnavailable: the database did not answer, or a reader held a lock for too long; what could be dropped
                is. Call it again later.
        """
        now_ms = int(self._clock() * 1000)
        oldest = {"oldest": now_ms - max(self._keep_ms.values())}
        erased = {"oldest": now_ms - ERASED_FOR_MS}
        others: list[Step] = [
            partial(self._delete, "history_counts", "slot", "slot < :oldest", oldest),
            partial(self._delete, "history_erased", "before", '"before" < :oldest', erased),
        ]
        if self._days is not None:
            others.append(partial(self._days.make_ahead, now_ms))
        try:
            return await _each(
                [partial(self._expire_class, kept, now_ms - keep_ms) for kept, keep_ms in self._keep_ms.items()]
            )
        finally:
            await _each(others)

    async def _expire_class(self, kept: int, before_ms: int) -> int:
        if self._days is not None:
            return await self._days.drop(kept, before_ms)
        return await self._delete(
            "history_entries", "at", 'kept = :kept AND "at" < :before', {"kept": kept, "before": before_ms}
        )

    async def _delete(self, table: str, column: str, where: str, parameters: Mapping[str, object]) -> int:
        return await delete_in_slices(self._database, table, column, where, parameters, _DELETED_AT_ONCE)

    async def erase(self, recipient: str) -> int:
        """Deletes a person's entries, and refuses those that the topic still holds.

        Args:
            recipient: the keyed hash, see `contract.recipient.recipient_hashes`.

        Returns:
            The number of deleted entries.

        Raises:
            StoreUnavailable: nothing or not everything was deleted; call it again.
        """
        now_ms = int(self._clock() * 1000)
        async with self._unhurried() as connection:
            if self._database.is_postgresql:
                await connection.execute(ERASE_LOCK)
            await connection.execute(
                text(
                    'INSERT INTO history_erased (recipient, "before") VALUES (:recipient, :now) '
                    'ON CONFLICT (recipient) DO UPDATE SET "before" = excluded."before"'
                ),
                {"recipient": recipient, "now": now_ms},
            )
        # without the lock, so that writes go on meanwhile
        return await self._delete("history_entries", "at", "recipient = :recipient", {"recipient": recipient})

    @asynccontextmanager
    async def _unhurried(self) -> AsyncIterator[AsyncConnection]:
        """Yields a connection in a transaction that PostgreSQL doesn't stop for taking long."""
        async with self._database.write(MAINTAIN_WITHIN_S) as connection:
            if self._database.is_postgresql:
                await connection.execute(text("SET LOCAL statement_timeout = 0"))
            yield connection

    async def close(self) -> None:
        """Closes the connections."""
        await self._database.close()


_KEY: Final = "history.url"


def _place_of(row: Row) -> str:
    """Returns topic, partition and offset of the event that a row is about."""
    topic, partition, offset = (row[COLUMNS.index(name)] for name in ("topic", "partition", "offset"))
    return f"{topic}/{partition}/{offset}"


async def _each(steps: Iterable[Step]) -> int:
    """Takes every step, also after one that failed, and raises the last failure. Returns the sum of the results."""
    done, problem = 0, None
    for step in steps:
        try:
            done += await step() or 0
        except StoreUnavailable as error:
            problem = error
    if problem is not None:
        raise problem
    return done


async def _check_encoding(connection: AsyncConnection) -> None:
    encoding = (await connection.execute(text("SHOW server_encoding"))).scalar_one()
    if encoding not in _ENCODINGS:
        message = f"the database has the encoding {encoding}, which lacks characters of names and ids"
        raise ConfigError([Problem(f"{message}: create one with ENCODING 'UTF8' TEMPLATE template0", _KEY)])


async def _without_erased(connection: AsyncConnection, rows: Sequence[Row]) -> list[Row]:
    found = await connection.execute(text('SELECT recipient, "before" FROM history_erased'))
    erased: dict[str, int] = {row[0]: row[1] for row in found}
    if not erased:
        return list(rows)
    return [row for row in rows if row[_RECIPIENT] not in erased or row[1] > erased[row[_RECIPIENT]]]


async def _insert(connection: AsyncConnection, rows: Sequence[Row], since_ms: int, skipped_since_ms: int) -> list[Row]:
    """Inserts into SQLite, and counts attempts and outcomes since then. Returns the rows that are new."""
    counted_since = {HistoryOutcome.SKIPPED.value: skipped_since_ms}
    values = "(" + ", ".join("?" * len(COLUMNS)) + ")"
    by_key = {row[:4]: row for row in rows}
    wanted = list(by_key.values())
    added: list[Row] = []
    for at in range(0, len(wanted), _ROWS_A_STATEMENT):
        piece = wanted[at : at + _ROWS_A_STATEMENT]
        statement = (
            f"INSERT INTO history_entries ({_NAMES}) VALUES {', '.join([values] * len(piece))} "  # noqa: S608  (columns are ours, values are bound)
            'ON CONFLICT DO NOTHING RETURNING kept, "at", writer, number'
        )
        result = await connection.exec_driver_sql(statement, tuple(value for row in piece for value in row))
        added += [by_key[tuple(key)] for key in result]
    if counted := [row for row in added if row[1] >= counted_since.get(row[_OUTCOME], since_ms)]:
        statement = f"INSERT INTO history_counts VALUES (?, ?, ?, ?, ?, ?, ?) {_COUNT_UPSERT}"  # noqa: S608  (columns are ours, values are bound)
        await connection.exec_driver_sql(statement, slot_counts(counted, SLOT_MS))
    return added
