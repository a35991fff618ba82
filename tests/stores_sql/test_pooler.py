"""PostgreSQL behind PgBouncer: it works if the pooler pools by session, and the cure is named if it doesn't."""

import asyncio
import os

import asyncpg  # type: ignore[import-untyped]
import pytest
from sqlalchemy import text

from dispatcher.config.secrets import Secret
from dispatcher.errors import StoreUnavailable
from dispatcher.stores.sql import database as database_module
from dispatcher.stores.sql.changes import NoNotices, listening
from dispatcher.stores.sql.database import Database
from dispatcher.stores.sql.migrate import upgrade
from dispatcher.stores.sql.schema import NOTIFY_CHANNEL
from tests.stores_sql.pgbouncer import PGBOUNCER, PgBouncer
from tests.stores_sql.postgres import Postgres


@pytest.fixture(autouse=True)
def _needs_pgbouncer() -> None:
    if PGBOUNCER is None:
        if os.environ.get("CI") == "true":
            pytest.fail("CI tests against PgBouncer; not installed")
        pytest.skip("PgBouncer is not installed")


async def test_a_pooler_by_session_passes_on_statements_limits_and_notices(
    postgres: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its defaults refuse most parameters of a session's start."""
    monkeypatch.setattr(database_module, "STATEMENT_TIMEOUT_MS", 700)
    async with PgBouncer(postgres, "session") as pooler:
        url = Secret(pooler.url(await postgres.fresh_database()).encode())
        await upgrade(url)
        database = Database(url)
        async with listening(database) as signal, asyncio.timeout(30):
            async with database.write() as connection:
                await connection.execute(text(f"NOTIFY {NOTIFY_CHANNEL}"))
            await signal.wait(3600)
        with pytest.raises(StoreUnavailable, match="statement timeout"):
            async with database.read() as connection:
                await connection.execute(text("SELECT pg_sleep(60)"))
        async with database.read() as connection:
            limit = await connection.execute(text("SHOW idle_in_transaction_session_timeout"))
            assert limit.scalar_one() == "30s"
        await database.close()


@pytest.mark.parametrize("is_missing", [True, False])
async def test_a_pooler_by_transaction_is_named_with_its_cure(
    postgres: Postgres, monkeypatch: pytest.MonkeyPatch, is_missing: bool
) -> None:
    """The one session that two clients share lacks a prepared statement of theirs, or has one of the same name."""
    async with PgBouncer(postgres, "transaction", pool_size=1) as pooler:
        url = Secret(pooler.url(await postgres.fresh_database()).encode())
        first, second = Database(url), Database(url)
        monkeypatch.setattr(asyncpg.connection, "_uid", 0)
        async with first.read() as connection:
            await connection.execute(text("SELECT 1"))
        if is_missing:
            async with second.write() as connection:
                await connection.execute(text("DEALLOCATE ALL"))
        else:
            monkeypatch.setattr(asyncpg.connection, "_uid", 0)  # another process counts from 1, too
        database = first if is_missing else second
        with pytest.raises(StoreUnavailable, match=r"it must pool by session .*webhooks\.url"):
            async with database.read() as connection:
                await connection.execute(text("SELECT 1"))
        await first.close()
        await second.close()


async def test_a_pooler_without_a_free_session_delays_no_polling(
    postgres: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It lets a client in and leaves its first statement waiting, for two minutes by default."""
    monkeypatch.setattr(database_module, "CONNECT_WITHIN_S", 0.5)
    async with PgBouncer(postgres, "session", pool_size=1) as pooler:
        database = Database(Secret(pooler.url(await postgres.fresh_database()).encode()))
        async with database.read() as connection, asyncio.timeout(25):
            await connection.execute(text("SELECT 1"))
            with pytest.raises(NoNotices, match=r"no answer within 0\.5 s"):
                await listening(database).__aenter__()
        await database.close()
