"""A cancellation, which a timeout is, too, leaves nothing behind, at whichever await it comes."""

import asyncio
import threading

import pytest
from sqlalchemy import text

from dispatcher.config.secrets import Secret
from dispatcher.stores.sql.changes import listening
from dispatcher.stores.sql.database import Database
from tests.cancelling import cancelled_everywhere, eventually
from tests.stores_sql.postgres import Postgres


def sqlite_threads() -> int:
    return sum("_connection_worker_thread" in thread.name for thread in threading.enumerate())


@pytest.mark.parametrize("is_connected", [False, True], ids=["first use", "pooled"])
async def test_a_change_leaves_no_lock_connection_or_thread(empty_url: Secret, is_connected: bool) -> None:
    another = Database(empty_url, create=True)
    async with another.write() as connection:
        await connection.execute(text("CREATE TABLE things (name INTEGER)"))
    database = Database(empty_url)
    threads = sqlite_threads()
    in_transaction = text("SELECT count(*) FROM pg_stat_activity WHERE state LIKE 'idle in transaction%'")

    async def change() -> None:
        nonlocal database
        if not is_connected:
            database = Database(empty_url)
        try:
            async with database.write() as connection:
                await connection.execute(text("INSERT INTO things VALUES (1)"))
                await connection.execute(text("SELECT * FROM things"))
        finally:
            pool = database._engine.pool
            assert pool.checkedout() == 0  # type: ignore[attr-defined]
            if not is_connected:
                await asyncio.shield(database.close())

    async def nothing_is_left() -> None:
        async with another.write() as connection:
            await connection.execute(text("INSERT INTO things VALUES (2)"))
        async with eventually() as is_true:
            if database.is_postgresql:
                async with another.read() as connection:
                    while not await is_true((await connection.execute(in_transaction)).scalar_one() == 0):
                        await connection.rollback()
            elif not is_connected:
                while not await is_true(sqlite_threads() <= threads):
                    pass

    assert await cancelled_everywhere(change, nothing_is_left) > 3
    await database.close()
    await another.close()


async def test_listening_for_changes_leaves_no_connection(postgres: Postgres) -> None:
    url = Secret((await postgres.fresh_database()).encode())
    database, another = Database(url), Database(url)
    listeners = text("SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE '%listener'")

    async def listen() -> None:
        async with listening(database) as signal:
            await signal.wait(0.01)

    async def nothing_is_left() -> None:
        async with eventually() as is_true, another.read() as connection:
            while not await is_true((await connection.execute(listeners)).scalar_one() == 0):
                await connection.rollback()

    assert await cancelled_everywhere(listen, nothing_is_left) > 3
    await database.close()
    await another.close()
