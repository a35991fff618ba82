"""The connection to the webhook database: SQLite in a file, or PostgreSQL.

Foreign exceptions end here: a database that does not answer is `StoreUnavailable`. The URL's password is in no
message, log or repr.
"""

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, Final, Protocol
from urllib.parse import quote

import aiosqlite
import asyncpg  # type: ignore[import-untyped]
import orjson
from pydantic import JsonValue
from sqlalchemy import URL, event, make_url
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from sqlalchemy.pool import AsyncAdaptedQueuePool, ConnectionPoolEntry

from dispatcher.config.secrets import Secret
from dispatcher.errors import ConfigError, Problem, StoreUnavailable

READ_WITHIN_S: Final = 3.0
"""A look-up has this long, connecting included; then the database counts as away."""
WRITE_WITHIN_S: Final = 10.0
"""A change has this long, waiting for other changes included."""
CONNECT_WITHIN_S: Final = 3.0
STATEMENT_TIMEOUT_MS: Final = 10_000
"""PostgreSQL itself stops a statement then, also where its client has gone."""
SQLITE_BUSY_MS: Final = 2_500
"""SQLite waits so long for another's lock, and can't be interrupted then: below the deadline of a look-up."""
POOL_SIZE: Final = 2
"""Connections kept; up to three more under load. The cache in front makes look-ups rare."""

_EXAMPLES = "write sqlite+aiosqlite:///PATH or postgresql+asyncpg://USER:PASSWORD@HOST/DATABASE"
_NOT_MIGRATED = ("no such table", "unable to open database file")
_PRAGMAS = (
    "journal_mode=WAL",
    "synchronous=NORMAL",
    f"busy_timeout={SQLITE_BUSY_MS}",
    "foreign_keys=ON",
    "secure_delete=ON",  # what was replaced is overwritten
)


class _Cursor(Protocol):
    def execute(self, operation: str) -> object: ...

    def close(self) -> None: ...


class _Connection(Protocol):
    def cursor(self) -> _Cursor: ...


class ListeningConnection(Protocol):
    """What is used of an asyncpg connection outside the pool."""

    async def add_listener(self, channel: str, callback: Callable[[object, int, str, object], None]) -> None:
        """Call back with each notice on the channel."""
        ...

    def add_termination_listener(self, callback: Callable[[object], None]) -> None:
        """Call back when the connection has ended, for whatever reason."""
        ...

    async def close(self, *, timeout: float | None = None) -> None:
        """End it in good order, at once where that takes longer than `timeout` seconds."""
        ...

    def terminate(self) -> None:
        """End it at once."""
        ...


class Database:
    """One database, and the few connections to it. Connects when first used."""

    def __init__(self, url: Secret, *, create: bool = False, setting: str = "webhooks.url") -> None:
        """Connect to `url` when needed.

        Args:
            create: make a SQLite file that is not there; without it, no file is an answer that failed.
            setting: the setting that problems name.

        Raises:
            ConfigError: the URL can't be used. Quotes nothing of it.
        """
        parsed = _parsed(url, setting)
        self._maker = "dispatcher history" if setting == "history.url" else "dispatcher webhooks migrate"
        self.is_postgresql: Final = parsed.get_backend_name() == "postgresql"
        self.name: Final = _shown(parsed)
        """What it is and where, for people: no user, no password."""
        self._dsn: Final = Secret(parsed.set(drivername="postgresql").render_as_string(hide_password=False).encode())
        self._engine: Final = self._postgresql() if self.is_postgresql else _sqlite(parsed, create=create)

    def __repr__(self) -> str:
        return f"<Database {self.name}>"

    @asynccontextmanager
    async def read(self, within_s: float = READ_WITHIN_S) -> AsyncIterator[AsyncConnection]:
        """A connection to read with.

        Raises:
            StoreUnavailable: the database did not answer within `within_s`, or not as it should.
        """
        with self.translated(within_s):
            async with asyncio.timeout(within_s), self._engine.connect() as connection:
                yield connection

    @asynccontextmanager
    async def write(self, within_s: float | None = WRITE_WITHIN_S) -> AsyncIterator[AsyncConnection]:
        """One transaction: committed at the end, undone by any exception.

        Raises:
            StoreUnavailable: as in `read`; where that happens at the very commit, nobody knows whether it was done.
        """
        with self.translated(within_s):
            async with asyncio.timeout(within_s), self._engine.begin() as connection:
                yield connection

    async def close(self) -> None:
        """Close every connection."""
        await self._engine.dispose()

    async def forget_what_was_replaced(self) -> None:
        """Take replaced rows out of a SQLite file; PostgreSQL's VACUUM does that in its own time.

        Raises:
            StoreUnavailable: another process uses the file; what was replaced stays readable in it.
        """
        if self.is_postgresql:
            return
        with self.translated():
            async with self._engine.connect() as connection:
                alone = await connection.execution_options(isolation_level="AUTOCOMMIT")
                await alone.exec_driver_sql("VACUUM")
                await alone.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")

    async def connect_alone(self) -> ListeningConnection:
        """A PostgreSQL connection outside the pool, for LISTEN; the caller closes it.

        Raises:
            StoreUnavailable: it could not be had.
        """
        with self.translated(CONNECT_WITHIN_S):
            connection: ListeningConnection = await self._asyncpg("feedback-dispatcher listener")
            return connection

    async def _asyncpg(self, application: str) -> Any:
        return await asyncpg.connect(
            self._dsn.reveal_text(),
            timeout=CONNECT_WITHIN_S,
            command_timeout=STATEMENT_TIMEOUT_MS / 1000,
            server_settings={
                "application_name": application,
                "statement_timeout": str(STATEMENT_TIMEOUT_MS),
                "idle_in_transaction_session_timeout": "30000",
            },
        )

    def _postgresql(self) -> AsyncEngine:
        # asyncpg reads the URL itself: it knows sslmode, sslrootcert and the rest of libpq's parameters.
        return create_async_engine(
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

    @contextmanager
    def translated(self, within_s: float | None = None) -> Iterator[None]:
        """Turns what drivers raise into StoreUnavailable."""
        try:
            yield
        except TimeoutError as error:
            why = "connecting took too long" if within_s is None else f"no answer within {within_s:g} s"
            raise StoreUnavailable(f"{self.name}: {why}") from error
        except (SQLAlchemyError, asyncpg.PostgresError, asyncpg.InterfaceError, sqlite3.Error, OSError) as error:
            raise StoreUnavailable(f"{self.name}: {_reason(error, self._maker)}") from error


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


def _sqlite(url: URL, *, create: bool) -> AsyncEngine:
    path = Path(url.database or "").absolute()
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

    def prepare(connection: _Connection, _entry: ConnectionPoolEntry) -> None:
        cursor = connection.cursor()
        for pragma in _PRAGMAS:
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    event.listen(engine.sync_engine, "connect", prepare)
    return engine


async def _opened(file: str) -> aiosqlite.Connection:
    connection = aiosqlite.connect(file, uri=True, check_same_thread=False)
    connection._thread.daemon = True  # noqa: SLF001  (as SQLAlchemy does: a process ends without waiting for it)
    try:
        return await connection
    except BaseException:
        # aiosqlite tells its thread to stop and doesn't wait; the thread then answers to the loop, which may be
        # closed by then.
        await asyncio.to_thread(connection._thread.join)  # noqa: SLF001
        raise


def _shown(url: URL) -> str:
    if url.get_backend_name() == "sqlite":
        return f"SQLite at {url.database}"
    host = url.query.get("host", url.host or "the local socket")
    where = host if isinstance(host, str) else ",".join(host)
    return f"PostgreSQL at {where}{f':{url.port}' if url.port else ''}/{url.database or ''}"


def _reason(error: Exception, maker: str) -> str:
    """What the driver says, first line only: no statement, no parameters."""
    origin = getattr(error, "orig", None) or error
    lines = str(origin).splitlines()
    text = lines[0][:200] if lines else type(origin).__name__
    if (
        "no such table" in text
        or "unable to open database file" in text
        or ('relation "' in text and "does not exist" in text)
    ):
        text += f": run `{maker}`"
    return text


def _dumps(value: JsonValue) -> str:
    return orjson.dumps(value).decode()
