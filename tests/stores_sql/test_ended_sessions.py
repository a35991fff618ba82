"""Sessions that ended early, in the database: every console sees them, and a link works once over all."""

import asyncio
import time
from collections.abc import AsyncIterator

import pytest
from sqlalchemy import func, select

from dispatcher.config.secrets import Secret
from dispatcher.stores.sql import schema
from dispatcher.stores.sql.database import Database
from dispatcher.stores.sql.ended_sessions import KEPT_LONGER_S, EndedSessions

NOW = 1_790_000_000.0


@pytest.fixture
async def consoles(url: Secret) -> AsyncIterator[list[EndedSessions]]:
    """The ended sessions as three consoles have them, with connections of their own."""
    databases = [Database(url) for _ in range(3)]
    yield [EndedSessions(database, lambda: NOW) for database in databases]
    for database in databases:
        await database.close()


async def rows(database: Database) -> int:
    async with database.read() as connection:
        return (await connection.execute(select(func.count()).select_from(schema.ended_sessions))).scalar_one()


async def test_an_id_is_added_once_and_every_console_has_it(consoles: list[EndedSessions]) -> None:
    assert [await console.has("a") for console in consoles] == [False] * 3
    added = await asyncio.gather(*(console.add("a", NOW + 60) for console in consoles * 2))
    assert sorted(added) == [False] * 5 + [True]
    assert [await console.has("a") for console in consoles] == [True] * 3
    assert not await consoles[0].has("A")
    assert await consoles[2].add("b", NOW + 60)


async def test_rows_go_some_time_after_they_would_have_expired_anyway(database: Database) -> None:
    now = time.time()
    ended = EndedSessions(database, lambda: now)
    for number in range(3):
        await ended.add(f"soon-{number}", now + 60)
    await ended.add("late", now + 8 * 3600)
    now += 60 + KEPT_LONGER_S - 1
    await ended.add("another", now + 60)
    assert await rows(database) == 5
    now += 2
    await ended.add("one more", now + 60)
    assert await rows(database) == 3
    assert await ended.has("late")
