"""The connection to the webhook database: SQLite in a file, or PostgreSQL.

Drivers' exceptions are translated here: a database that does not answer raises `StoreUnavailable`. No message, log or
repr contains the URL's password. The URL's file is read again for each new connection, so that a password may rotate.
"""

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, Final, Protocol
from urllib.parse import quote

import aiosqlite
import asyncpg  # type: ignore[import-untyped]
import orjson
import structlog
from pydantic import JsonValue
from sqlalchemy import URL, event, make_url
from sqlalchemy.engine import ExceptionContext
from sqlalchemy.exc import DisconnectionError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from sqlalchemy.pool import AsyncAdaptedQueuePool, ConnectionPoolEntry

from dispatcher.config.secrets import Secret, reread
from dispatcher.connecting import ConnectingLoop
from dispatcher.errors import ConfigError, Problem, StoreUnavailable, ValuesRefused
from dispatcher.stores.sql.database_problems import is_about_values, reason_of

READ_WITHIN_S: Final = 3.0
"""Deadline of a look-up, connecting included; then the database counts as unavailable."""
WRITE_WITHIN_S: Final = 10.0
"""Deadline of a change, including the wait for other changes."""
CONNECT_WITHIN_S: Final = 3.0
CHECK_OUT_WITHIN_S: Final = 5.0
"""Time for a connection of PostgreSQL's pool to answer, or for a new one, within the deadlines of reads and writes. A
firewall that has forgotten the connections leaves each of them silent."""
STATEMENT_TIMEOUT_MS: Final = 10_000
"""Time after which PostgreSQL itself stops a statement, even if its client has gone."""
LONGEST_STATEMENT_S: Final = 3600.0
"""Time after which the client leaves a statement for which the server's limit is lifted, as those of migrations."""
SQLITE_BUSY_MS: Final = 2_500
"""Time for which SQLite waits for a lock. It can't be interrupted, so that it is below the deadline of a look-up."""
POOL_SIZE: Final = 2
"""Number of connections that are kept; up to three more under load. The cache makes look-ups rare."""

_READ_ONLY: Final = "25006"
"""SQLSTATE of a change in a read-only transaction."""
_MAX_NOTED: Final = 2**31 - 1
"""Largest `user_version` of a SQLite file."""
_EXAMPLES = "write sqlite+aiosqlite:///PATH or postgresql+asyncpg://USER:PASSWORD@HOST/DATABASE"
_TEXT: Final = partial(str, encoding="utf-8", errors="replace")
"""Decodes a text of SQLite, which may hold any bytes: one value that isn't UTF-8 would fail a query for all rows."""
_PRAGMAS = (
    "journal_mode=WAL",
    f"journal_size_limit={64 << 20}",  # else the log keeps the size of the largest transaction, as after a catch-up
    "synchronous=NORMAL",
    f"busy_timeout={SQLITE_BUSY_MS}",
    "foreign_keys=ON",
    "secure_delete=ON",  # replaced data are overwritten
)

log = structlog.get_logger(__name__)


class _Cursor(Protocol):
    def execute(self, operation: str) -> object: ...

    def close(self) -> None: ...


class _Connection(Protocol):
    def cursor(self) -> _Cursor: ...


class ListeningConnection(Protocol):
    """The part of an asyncpg connection that is used outside the pool."""

    async def add_listener(self, channel: str, callback: Callable[[object, int, str, object], None]) -> None:
        """Registers a callback for each notice on the channel."""
        ...

    def add_termination_listener(self, callback: Callable[[object], None]) -> None:
        """Registers a callback for the end of the connection, for any reason."""
        ...

    async def close(self, *, timeout: float | None = None) -> None:
        """Closes the connection properly; terminates it after `timeout` seconds."""
        ...

    def terminate(self) -> None:
        """Closes the connection immediately."""
        ...


class Database:
    """One database, with a small pool of connections. It connects at the first use."""

    def __init__(self, url: Secret, *, create: bool = False, setting: str = "webhooks.url") -> None:
        """Connects to `url` at the first use.

        Args:
            create: creates a missing SQLite file; if False, a missing file counts as a failed answer.
            setting: the setting that problems name.

        Raises:
            ConfigError: the URL can't be used. The error quotes nothing of it.
        """
        parsed = _parsed(url, setting)
        is_history = setting == "history.url"
        self._maker = "dispatcher history" if is_history else "dispatcher webhooks migrate"
        self._store = "history store" if is_history else "webhook database"
        self.is_postgresql: Final = parsed.get_backend_name() == "postgresql"
        self.name: Final = _shown(parsed)
        """Type and address of the database for messages, without user and password."""
        self._url = url
        self._setting: Final = setting
        self._file = None if self.is_postgresql else Path(parsed.database or "").absolute()
        self._engine: Final = self._postgresql() if self._file is None else _sqlite(self._file, create=create)

    def __repr__(self) -> str:
        return f"<Database {self.name}>"

    @asynccontextmanager
    async def read(self, within_s: float = READ_WITHIN_S) -> AsyncIterator[AsyncConnection]:
        """Yields a connection for reading.

        Raises:
            StoreUnavailable: the database did not answer within `within_s`, or answered with an error.
        """
        with self.translated(within_s):
            async with asyncio.timeout(within_s), self._checked_out(self._engine.connect()) as connection:
                yield connection

    @asynccontextmanager
    async def write(self, within_s: float | None = WRITE_WITHIN_S) -> AsyncIterator[AsyncConnection]:
        """Yields a connection in a transaction, which is committed at the end and rolled back after any exception.

        Raises:
            StoreUnavailable: as in `read`. If it happens during the commit, the outcome is unknown.
        """
        with self.translated(within_s):
            async with asyncio.timeout(within_s), self._checked_out(self._engine.begin()) as connection:
                yield connection

    @asynccontextmanager
    async def _checked_out(
        self, opening: AbstractAsyncContextManager[AsyncConnection]
    ) -> AsyncIterator[AsyncConnection]:
        """Yields a connection that answers. One of the pool that doesn't is given up soon: others may be as silent.

        Raises:
            StoreUnavailable: there is none within `CHECK_OUT_WITHIN_S`.
        """
        async with AsyncExitStack() as stack:
            within_s = CHECK_OUT_WITHIN_S if self.is_postgresql else None  # SQLite waits for locks here
            with self.translated(within_s):
                async with asyncio.timeout(within_s):
                    connection = await stack.enter_async_context(opening)
            yield connection

    async def close(self) -> None:
        """Closes every connection."""
        await self._engine.dispose()

    async def note_replaced(self, connection: AsyncConnection) -> None:
        """Notes in a SQLite file that this transaction replaces rows which have to disappear from the file.

        Call it after a change, which begins the transaction. The note is a counter, the file's `user_version`, so that
        it outlives this process and `forget_what_was_replaced` can show whether another process noted more meanwhile.
        """
        if not self.is_postgresql:
            noted = await _noted(connection)
            await connection.exec_driver_sql(f"PRAGMA user_version={noted % _MAX_NOTED + 1}")

    async def forget_what_was_replaced(self) -> None:
        """Removes replaced rows from a SQLite file if any are noted in it. On PostgreSQL, VACUUM does that later.

        Raises:
            StoreUnavailable: another process uses the file; replaced rows stay readable in it, and noted.
        """
        if self.is_postgresql:
            return
        with self.translated():
            async with self._engine.connect() as connection:
                alone = await connection.execution_options(isolation_level="AUTOCOMMIT")
                noted = await _noted(alone)
                if not noted:
                    return
                await alone.exec_driver_sql("VACUUM")
                is_busy = (await alone.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")).scalar_one()
                if is_busy:  # it reports this in its row, and the file is as it was
                    kept = "another process reads it, so replaced rows are still in the file"
                    raise StoreUnavailable(f"{self.name}: {kept}", self._store)
                await alone.exec_driver_sql("BEGIN IMMEDIATE")
                if await _noted(alone) == noted:
                    await alone.exec_driver_sql("PRAGMA user_version=0")
                await alone.exec_driver_sql("COMMIT")

    async def connect_alone(self) -> ListeningConnection:
        """Opens a PostgreSQL connection outside the pool, for LISTEN. The caller closes it.

        Raises:
            StoreUnavailable: it could not be opened.
        """
        with self.translated(CONNECT_WITHIN_S):
            connection: ListeningConnection = await self._asyncpg("feedback-dispatcher listener")
            return connection

    async def _asyncpg(self, application: str) -> Any:
        self._url, parsed = await asyncio.to_thread(_reread, self._url, self._setting)
        connection = await asyncpg.connect(
            parsed.set(drivername="postgresql").render_as_string(hide_password=False),
            timeout=CONNECT_WITHIN_S,
            loop=ConnectingLoop(CONNECT_WITHIN_S / _hosts(parsed)),
            command_timeout=LONGEST_STATEMENT_S,  # reads and writes have deadlines of their own
            server_settings={"application_name": application},
        )
        connection._loop = asyncio.get_running_loop()  # noqa: SLF001  (asyncpg finds its current task by the loop)
        try:
            # PgBouncer refuses these as parameters of the start. It lets a client in while it has no session for it.
            await connection.execute(_session_limits(), timeout=CONNECT_WITHIN_S)
        except BaseException:
            connection.terminate()
            raise
        return connection

    def _postgresql(self) -> AsyncEngine:
        # asyncpg parses the URL itself: it supports sslmode, sslrootcert and libpq's other parameters.
        engine = create_async_engine(
            "postgresql+asyncpg://",
            async_creator=lambda: self._asyncpg("feedback-dispatcher"),
            pool_size=POOL_SIZE,
            max_overflow=3,
            pool_timeout=CONNECT_WITHIN_S,
            pool_pre_ping=True,
            pool_recycle=1800,
            hide_parameters=True,
            json_serializer=_dumps,
            json_deserializer=orjson.loads,
        )
        event.listen(engine.sync_engine, "handle_error", _leave_a_standby)
        return engine

    @contextmanager
    def translated(self, within_s: float | None = None) -> Iterator[None]:
        """Translates the exceptions of drivers into StoreUnavailable, or ValuesRefused if it is one."""
        try:
            yield
        except TimeoutError as error:
            why = "connecting took too long" if within_s is None else f"no answer within {within_s:g} s"
            raise StoreUnavailable(f"{self.name}: {why}", self._store) from error
        except OverflowError as error:  # an integer that the driver can't encode
            raise ValuesRefused(f"{self.name}: {error}", self._store) from error
        except (SQLAlchemyError, asyncpg.PostgresError, asyncpg.InterfaceError, sqlite3.Error, OSError) as error:
            kind = ValuesRefused if is_about_values(error) else StoreUnavailable
            why = reason_of(error, maker=self._maker, setting=self._setting, file=self._file)
            raise kind(f"{self.name}: {why}", self._store) from error


def _hosts(url: URL) -> int:
    """Returns the number of hosts that asyncpg tries, one after the other."""
    given = url.query.get("host", url.host or "")
    return 1 + (given if isinstance(given, str) else given[-1]).count(",")


async def _noted(connection: AsyncConnection) -> int:
    """Returns the counter of `Database.note_replaced`; 0 if nothing has to disappear from the file."""
    noted: int = (await connection.exec_driver_sql("PRAGMA user_version")).scalar_one()
    return noted


def url_problems(url: Secret, setting: str) -> list[Problem]:
    """Returns the mistake in a database's URL; empty if there is none."""
    try:
        _parsed(url, setting)
    except ConfigError as error:
        return list(error.problems)
    return []


def _parsed(url: Secret, setting: str) -> URL:
    try:
        parsed = make_url(url.reveal_text().strip())
        backend, driver = parsed.get_backend_name(), parsed.get_driver_name()
    except Exception:  # noqa: BLE001  (SQLAlchemy's own, ValueError, ImportError: all quote parts of the URL)
        raise ConfigError([Problem(f"not a database URL: {_EXAMPLES}", setting)]) from None
    if (backend, driver) not in {
        ("sqlite", "aiosqlite"),
        ("sqlite", "pysqlite"),
        ("postgresql", "asyncpg"),
        ("postgresql", "psycopg2"),
        ("postgresql", "psycopg"),
    }:
        raise ConfigError([Problem(f"not a database that can be used: {_EXAMPLES}", setting)])
    if backend == "sqlite" and (parsed.database or ":memory:") == ":memory:":
        raise ConfigError([Problem("SQLite needs a file: sqlite+aiosqlite:///PATH", setting)])
    return parsed


def _reread(url: Secret, setting: str) -> tuple[Secret, URL]:
    """Returns the URL as its file has it now; as it was if the file can't be used."""
    try:
        current = reread(url)
        parsed = _parsed(current, setting)
        if parsed.get_backend_name() == "postgresql":
            return current, parsed
        why = "it names no PostgreSQL database"
    except (OSError, ValueError, ConfigError) as error:
        why = str(error)
    log.warning("the file of a database URL can't be used: its last content is", setting=setting, why=why)
    return url, _parsed(url, setting)


def _sqlite(path: Path, *, create: bool) -> AsyncEngine:
    file = f"file:{quote(str(path))}?mode={'rwc' if create else 'rw'}"
    engine = create_async_engine(
        "sqlite+aiosqlite://",
        async_creator=lambda: _opened(file),
        poolclass=AsyncAdaptedQueuePool,
        pool_size=POOL_SIZE,
        max_overflow=3,
        pool_timeout=CONNECT_WITHIN_S,
        hide_parameters=True,
        json_serializer=_dumps,
        json_deserializer=orjson.loads,
    )

    def prepare(connection: _Connection, entry: ConnectionPoolEntry) -> None:
        entry.info["file"] = _identity(path)
        cursor = connection.cursor()
        for pragma in _PRAGMAS:
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    def reconnect_if_replaced(_connection: object, entry: ConnectionPoolEntry, _proxy: object) -> None:
        if entry.info.get("file") != _identity(path):  # a restored backup: the connection still reads the old file
            raise DisconnectionError

    event.listen(engine.sync_engine, "connect", prepare)
    event.listen(engine.sync_engine, "checkout", reconnect_if_replaced)
    return engine


def _leave_a_standby(context: ExceptionContext) -> None:
    """Discards every pooled connection if a server refuses a change because it is read-only.

    During a failover, the name may lead to a standby, or to the old primary. Such a connection works for reading, so
    that the pool would keep it although new ones lead to the new primary.
    """
    if getattr(context.original_exception, "sqlstate", None) == _READ_ONLY:
        context.is_disconnect = True


class _RollsBackAtClose(sqlite3.Connection):
    """A connection that gives its lock back when it is closed.

    SQLite keeps a closed connection, with its transaction and lock, until the last of its cursors is gone. A cancelled
    change leaves cursors to the garbage collector, and no other connection could write to the file until then.
    """

    def close(self) -> None:
        with suppress(sqlite3.Error):  # closed already, or the disk fails
            self.rollback()
        super().close()


def _identity(path: Path) -> tuple[int, int] | None:
    """Returns device and inode of a file; None if there is none."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


async def _opened(file: str) -> aiosqlite.Connection:
    connection = aiosqlite.connect(file, uri=True, check_same_thread=False, factory=_RollsBackAtClose)
    connection._thread.daemon = True  # noqa: SLF001  (as SQLAlchemy does: a process ends without waiting for it)
    try:
        await connection
        connection.text_factory = _TEXT
    except BaseException:
        # aiosqlite stops its thread without waiting for it. The thread then calls the loop, which may be closed
        # already.
        await asyncio.to_thread(connection._thread.join)  # noqa: SLF001
        raise
    return connection


def _shown(url: URL) -> str:
    if url.get_backend_name() == "sqlite":
        return f"SQLite at {url.database}"
    host = url.query.get("host", url.host or "the local socket")
    where = host if isinstance(host, str) else ",".join(host)
    return f"PostgreSQL at {where}{f':{url.port}' if url.port else ''}/{url.database or ''}"


def _session_limits() -> str:
    return f"SET statement_timeout = {STATEMENT_TIMEOUT_MS}; SET idle_in_transaction_session_timeout = 30000"


def _dumps(value: JsonValue) -> str:
    return orjson.dumps(value).decode()
