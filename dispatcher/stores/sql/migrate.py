"""Migrates the schema for `dispatcher webhooks migrate`, in one transaction.

Several replicas may run it at the same time: the second waits for the first and finds nothing to do.
"""

import asyncio
import os
from pathlib import Path
from typing import Final

from alembic.config import Config
from alembic.runtime.environment import EnvironmentContext
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.script.revision import RevisionError
from alembic.util import CommandError
from sqlalchemy import Connection, inspect, make_url, text

from dispatcher.config.secrets import Secret
from dispatcher.errors import ConfigError, Problem
from dispatcher.stores.sql.database import Database
from dispatcher.stores.sql.schema import metadata, webhooks

_LOCK: Final = 0x66656564  # any number, the same in every version
_ONE_AT_A_TIME: Final = asyncio.Lock()
"""Serialises migrations: Alembic's context is global to the process."""
_UNKNOWN = "the database has a schema that this version does not know: use the version that created it, or a newer one"
_UNCLEAR = "the table alembic_version must have one row, the revision of the tables: correct it, or restore a backup"


async def upgrade(url: Secret, revision: str = "head") -> str:
    """Upgrades the schema to `revision`. Creates a missing SQLite file, readable by its owner only.

    Returns:
        The schema's new revision, such as `0006`.

    Raises:
        ConfigError: the URL can't be used, or the database's schema is of a newer version.
        StoreUnavailable: the migration failed, and the schema is unchanged.
    """
    database = Database(url, create=True)
    if not database.is_postgresql:
        _make_file(url)
    return await _migrate(database, revision, is_up=True)


async def downgrade(url: Secret, revision: str) -> str:
    """Downgrades the schema to `revision`; `base` removes it. The data of newer tables are lost.

    Returns:
        The schema's revision now, empty for none.

    Raises:
        ConfigError, StoreUnavailable: as for `upgrade`.
    """
    return await _migrate(Database(url), revision, is_up=False)


async def schema_problem(database: Database) -> Problem | None:
    """Returns why this version can't use the database's schema, or None if it can.

    Raises:
        StoreUnavailable: the database did not answer.
    """
    try:
        async with database.read() as connection:
            current = await connection.run_sync(_current)
    except ConfigError as error:
        return error.problems[0]
    head = _scripts().get_current_head() or ""
    if current == head:
        return None
    have = f"revision {current}" if current else "no schema yet"
    return Problem(f"the database has {have}, {head} is needed: run `dispatcher webhooks migrate`", "webhooks.url")


async def _migrate(database: Database, revision: str, *, is_up: bool) -> str:
    try:
        async with _ONE_AT_A_TIME, database.write(within_s=None) as connection:
            return await connection.run_sync(_run, revision, is_up)
    except (CommandError, RevisionError):
        raise ConfigError([Problem(_UNKNOWN, "webhooks.url")]) from None
    finally:
        await database.close()


def _run(connection: Connection, revision: str, is_up: bool) -> str:
    if connection.dialect.name == "sqlite":
        connection.exec_driver_sql("BEGIN IMMEDIATE")  # sqlite3 opens no transaction for DDL by itself
    else:
        connection.execute(text("SET LOCAL statement_timeout = 0"))
        connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _LOCK})
    _current(connection)
    scripts = _scripts()
    step = scripts._upgrade_revs if is_up else scripts._downgrade_revs  # noqa: SLF001  (as alembic.command does)
    with EnvironmentContext(
        Config(), scripts, fn=lambda current, _context: step(revision, current), destination_rev=revision
    ) as environment:
        environment.configure(connection=connection, target_metadata=metadata, transactional_ddl=True)
        environment.run_migrations()
    return _current(connection)


def _current(connection: Connection) -> str:
    """Returns the schema's revision; empty if there is no schema.

    Raises:
        ConfigError: it isn't a revision of this version, or the database doesn't name one. No migration can begin.
    """
    found: tuple[object, ...] = MigrationContext.configure(connection).get_current_heads()
    if not found and not inspect(connection).has_table(webhooks.name):
        return ""
    match found:
        case (str(revision),) if revision in {script.revision for script in _scripts().walk_revisions()}:
            return revision
        case (str(revision),) if revision:
            raise ConfigError([Problem(_UNKNOWN, "webhooks.url")])
    rows = ", ".join(map(repr, found)) or "none"
    raise ConfigError([Problem(f"{_UNCLEAR} (it has {rows[:100]})", "webhooks.url")])


def _scripts() -> ScriptDirectory:
    return ScriptDirectory(str(Path(__file__).parent / "migrations"))


def _make_file(url: Secret) -> None:
    path = Path(make_url(url.reveal_text().strip()).database or "")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(path, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o600))
    except OSError as error:
        message = f"{path} can't be created ({error.strerror}): correct the path or its permissions"
        raise ConfigError([Problem(message, "webhooks.url")]) from None
