"""The schema up and down, with data in it."""

import asyncio
import re
from datetime import UTC, datetime
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Connection, insert, inspect, select, update

from dispatcher.config.secrets import Secret
from dispatcher.errors import ConfigError, StoreUnavailable
from dispatcher.stores.sql import schema
from dispatcher.stores.sql.database import Database
from dispatcher.stores.sql.encryption import Encryption
from dispatcher.stores.sql.migrate import downgrade, schema_problem, upgrade
from dispatcher.stores.sql.records import Role
from dispatcher.stores.sql.repository import WebhookRepository
from dispatcher.stores.sql.tokens import ApiTokens
from tests.stores_sql.examples import plain, secretive


async def test_migrations_make_exactly_the_tables_that_are_used(database: Database) -> None:
    def differences(connection: Connection) -> object:
        return compare_metadata(MigrationContext.configure(connection), schema.metadata)

    async with database.read() as connection:
        assert await connection.run_sync(differences) == []
    assert await schema_problem(database) is None


async def test_data_outlasts_the_way_down_and_up_again(url: Secret, encryption: Encryption) -> None:
    database = Database(url)
    repository = WebhookRepository(database, encryption)
    made = await repository.create(secretive(), by="ada", orgs=None)
    await ApiTokens(database).create("ci", Role.ADMIN, orgs=None, by="ada")
    await database.close()
    assert await downgrade(url, "0001") == "0001"
    database = Database(url)
    async with database.read() as connection:
        tables = await connection.run_sync(lambda sync: set(inspect(sync).get_table_names()))
    assert tables == {"webhooks", "webhook_secrets", "change_counter", "alembic_version"}
    problem = await schema_problem(database)
    assert problem is not None
    assert "has revision 0001, 0007 is needed: run `dispatcher webhooks migrate`" in str(problem)
    with pytest.raises(StoreUnavailable, match="run `dispatcher webhooks migrate`"):
        await WebhookRepository(database, encryption).create(plain(sandbox="dev"), by="ada", orgs=None)
    await database.close()
    assert await upgrade(url) == "0007"
    assert await upgrade(url) == "0007"  # once more does no harm
    database = Database(url)
    repository = WebhookRepository(database, encryption)
    assert await repository.get(made.id, orgs=None) == made
    assert await repository.for_delivery(made.id, orgs=None) == secretive()
    await repository.delete(made.id, expected_version=1, by="ada", orgs=None)
    await database.close()


async def test_the_way_down_to_nothing_leaves_nothing(url: Secret) -> None:
    assert await downgrade(url, "base") == ""
    database = Database(url)
    async with database.read() as connection:
        tables = await connection.run_sync(lambda sync: set(inspect(sync).get_table_names()))
    assert tables == {"alembic_version"}
    assert "no schema yet" in str(await schema_problem(database))
    await database.close()
    assert await upgrade(url) == "0007"


async def test_simultaneous_migrations_run_once(empty_url: Secret) -> None:
    assert await asyncio.gather(*(upgrade(empty_url) for _ in range(4))) == ["0007"] * 4
    database = Database(empty_url)
    async with database.read() as connection:
        assert (await connection.execute(select(schema.change_counter.c.value))).scalars().all() == [0]
    await database.close()


async def test_a_schema_of_a_newer_version_is_left_alone(url: Secret) -> None:
    database = Database(url)
    async with database.write() as connection:
        await connection.exec_driver_sql("UPDATE alembic_version SET version_num = '9999'")
    assert "does not know" in str(await schema_problem(database))
    await database.close()
    with pytest.raises(ConfigError, match="does not know"):
        await upgrade(url)


@pytest.mark.parametrize(
    "statement",
    [
        "INSERT INTO alembic_version VALUES ('0004')",
        "DELETE FROM alembic_version",
        "UPDATE alembic_version SET version_num = ''",
        "UPDATE alembic_version SET version_num = X'30303035'",
        "UPDATE alembic_version SET version_num = '0000abc'",
        "DROP TABLE alembic_version",
    ],
)
async def test_a_revision_that_is_unclear_or_unknown_is_named_and_the_tables_are_left_alone(
    url: Secret, statement: str
) -> None:
    database = Database(url)
    async with database.write() as connection:
        await connection.exec_driver_sql(statement)
    problem = await schema_problem(database)
    assert problem is not None
    assert re.search("alembic_version must have one row|does not know", problem.message)
    with pytest.raises(ConfigError, match=re.escape(problem.message)):
        await upgrade(url)
    with pytest.raises(ConfigError, match=re.escape(problem.message)):
        await downgrade(url, "0004")
    assert await schema_problem(database) == problem
    await database.close()


async def test_the_file_of_a_sqlite_database_is_for_its_owner_only(tmp_path: Path) -> None:
    path = tmp_path / "new directory" / "web hooks#1%.db"
    await upgrade(Secret(f"sqlite+aiosqlite:///{path}".encode()))
    assert path.stat().st_mode & 0o777 == 0o600


async def test_header_parameters_leave_the_history_and_deleted_webhooks(empty_url: Secret) -> None:
    await upgrade(empty_url, "0003")
    database = Database(empty_url)
    now = datetime.now(UTC)
    changes = {
        "headers.X-Env": {"before": None, "after": "canary"}, "headers.X-Key": {"before": "<secret 1>", "after": None},
        "url": {"before": "https://a.example", "after": "https://b.example"},
    }  # fmt: skip
    row = {
        "id": "1", "org": "o", "sandbox": "s", "name": "n", "url": "u", "channels": "", "enabled": True, "search": "",
        "config": {"headers": {"X-Env": "canary"}}, "version": 1, "changed": 1, "created_at": now, "created_by": "a",
        "updated_at": now, "updated_by": "a", "deleted_at": now,
    }  # fmt: skip
    async with database.write() as connection:
        await connection.execute(insert(schema.webhooks).values(row))
        entry = {"at": now, "actor": "a", "action": "edit", "changes": changes}
        await connection.execute(insert(schema.audit).values(entry))
    await database.close()

    await upgrade(empty_url)

    database = Database(empty_url)
    async with database.read() as connection:
        (found,) = (await connection.execute(select(schema.audit.c.changes))).scalars()
        assert found == changes | {"headers.X-Env": {"before": None, "after": "<secret>"}}
        assert (await connection.execute(select(schema.webhooks.c.config))).scalars().all() == [{"headers": {}}]
    with pytest.raises(StoreUnavailable, match="append-only"):
        async with database.write() as connection:
            await connection.execute(update(schema.audit).values(actor="b"))
    await database.close()
