"""A database's name with several addresses, or several hosts in its URL: one that is silent is passed over."""

import asyncio
from typing import Any

import pytest

from dispatcher.config.secrets import Secret
from dispatcher.stores.sql.database import Database
from tests.silent_addresses import SILENT, resolve, silent
from tests.stores_sql.postgres import Postgres

NAME = "database.example"


async def _answers(url: str) -> int:
    database = Database(Secret(url.encode(), "url"))
    try:
        async with database.read() as connection:
            return int((await connection.exec_driver_sql("SELECT 7")).scalar_one())
    finally:
        await database.close()


@pytest.mark.parametrize("addresses", [(SILENT, "127.0.0.1"), ("127.0.0.1", SILENT)], ids=["first", "last"])
async def test_a_silent_address_of_the_name_is_passed_over(
    postgres: Postgres, addresses: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    resolve(monkeypatch, NAME, *addresses)
    with silent(postgres.port):
        assert await _answers(postgres.url().replace("127.0.0.1", NAME)) == 7


@pytest.mark.parametrize("hosts", [(SILENT, "127.0.0.1"), ("127.0.0.1", SILENT), (SILENT, SILENT, "127.0.0.1")])
async def test_a_silent_host_of_the_url_is_passed_over(postgres: Postgres, hosts: tuple[str, ...]) -> None:
    given = ",".join(f"{host}:{postgres.port}" for host in hosts)
    with silent(postgres.port):
        url = postgres.url().replace(f"127.0.0.1:{postgres.port}", "")
        assert await _answers(f"{url}?host={given}&target_session_attrs=read-write") == 7


async def test_a_cancelled_statement_leaves_nothing_at_its_connection(postgres: Postgres) -> None:
    """asyncpg forgets the task that cancelled it by asking which task of its loop runs."""
    database = Database(Secret(postgres.url().encode(), "url"))
    connection: Any = await database.connect_alone()
    try:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await connection.execute("SELECT pg_sleep(60)")
        assert await connection.fetchval("SELECT 7") == 7
        assert connection._cancellations == set()
    finally:
        await connection.close()
        await database.close()
