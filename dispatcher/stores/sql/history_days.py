"""Makes and drops the partitions of days in the history store on PostgreSQL.

A day is created as a table of its own and then attached, which waits for no reader. `CREATE TABLE … PARTITION OF` needs
the strongest lock on the class: behind a backup, which reads until it ends, it would stop all writes and searches.
"""

from collections.abc import Collection
from typing import Final

from sqlalchemy import text

from dispatcher.stores.sql.database import Database
from dispatcher.stores.sql.history_schema import (
    DAY_MS,
    KEPT,
    LOCK,
    class_name,
    day_statements,
    partition_name,
)

WITHIN_S: Final = 30.0
"""Deadline of one transaction."""
_LOCK_TIMEOUT: Final = text("SET LOCAL lock_timeout = '1s'")
"""Searches queue behind a statement that waits for a lock."""

Day = tuple[int, int]
"""Retention class and days since 1970."""


class DayPartitions:
    """The partitions of one database. Any number of workers may make and drop them."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._known: set[Day] = set()

    def forget(self) -> None:
        """Looks for every partition again before the next write: they may be gone."""
        self._known.clear()

    async def make(self, days: Collection[Day]) -> None:
        """Makes the missing ones of these partitions.

        Raises:
            StoreUnavailable: the database did not answer, or another transaction holds a lock.
        """
        unknown = sorted(set(days) - self._known)
        if not unknown:
            return
        async with self._database.write(WITHIN_S) as connection:
            await connection.execute(LOCK)
            await connection.execute(_LOCK_TIMEOUT)
            for kept, day in unknown:
                name = {"name": partition_name(kept, day)}
                if (await connection.execute(text("SELECT to_regclass(:name)::oid"), name)).scalar() is None:
                    for statement in day_statements(kept, day):
                        await connection.execute(text(statement))
        self._known.update(unknown)

    async def make_ahead(self, now_ms: int) -> None:
        """Makes today's and tomorrow's partitions; raises what `make` raises."""
        today = now_ms // DAY_MS
        await self.make([(kept, day) for kept in KEPT.values() for day in (today, today + 1)])

    async def drop(self, kept: int, before_ms: int) -> int:
        """Drops the days of a class that ended before this time. Returns their number.

        Raises:
            StoreUnavailable: the database did not answer, or a reader holds a lock.
        """
        async with self._database.read() as connection:
            names = await connection.execute(
                text(
                    "SELECT relname FROM pg_inherits JOIN pg_class ON pg_class.oid = inhrelid "
                    "WHERE inhparent = to_regclass(:parent)"
                ),
                {"parent": class_name(kept)},
            )
            days = sorted(int(name.rpartition("_")[2]) for (name,) in names)
        past = [day for day in days if (day + 1) * DAY_MS <= before_ms]
        for day in past:
            async with self._database.write(WITHIN_S) as connection:
                await connection.execute(LOCK)
                await connection.execute(_LOCK_TIMEOUT)
                await connection.execute(text(f"DROP TABLE IF EXISTS {partition_name(kept, day)}"))
            self._known.discard((kept, day))
        return len(past)
