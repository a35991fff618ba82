"""How the database is reached, and that its password is seen nowhere."""

import asyncio
import gc
import socket
import sqlite3
import threading
import traceback
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing, suppress
from pathlib import Path

import pytest
from sqlalchemy import event, text

from dispatcher.config.secrets import Secret, reread
from dispatcher.config.settings import WebhookSettings
from dispatcher.contract.tenant import TenantKey
from dispatcher.errors import ConfigError, StoreUnavailable
from dispatcher.stores.sql import changes
from dispatcher.stores.sql import database as database_module
from dispatcher.stores.sql.database import Database
from dispatcher.stores.sql.encryption import Encryption
from dispatcher.stores.sql.migrate import upgrade
from dispatcher.stores.sql.store import SqlStore, open_sql_store
from tests.stores_sql.examples import CANARY
from tests.stores_sql.following import running
from tests.stores_sql.postgres import PASSWORD, Postgres

TENANT = TenantKey("luma@AdobeOrg", "prod")


@pytest.mark.parametrize(
    "url",
    [
        CANARY,
        f"mysql+aiomysql://u:{CANARY}@h/d",
        f"postgresql+asyncpg://u:{CANARY}@h:port/d",
        f"postgresql+nothing://u:{CANARY}@h/d",
        f"://{CANARY}",
        "sqlite+aiosqlite://",
        "sqlite:///:memory:",
        "",
    ],
)
def test_a_url_that_can_not_be_used_is_not_quoted(url: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Database(Secret(url.encode()))
    assert str(caught.value).startswith("webhooks.url: ")
    assert CANARY not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        (f"postgresql://u:{CANARY}@db.example:6432/w?sslmode=require", "PostgreSQL at db.example:6432/w"),
        (
            f"postgresql+asyncpg://u:{CANARY}@/w?host=/run/postgresql&password={CANARY}",
            "PostgreSQL at /run/postgresql/w",
        ),
        ("sqlite:///relative.db", "SQLite at relative.db"),
    ],
)
async def test_a_database_is_shown_without_its_password(url: str, shown: str) -> None:
    database = Database(Secret(url.encode()))
    assert repr(database) == f"<Database {shown}>"
    assert CANARY not in repr(vars(database))
    await database.close()


async def test_a_wrong_password_is_not_quoted(postgres: Postgres) -> None:
    wrong = postgres.url().replace(PASSWORD, CANARY)
    database = Database(Secret(wrong.encode()))
    with pytest.raises(StoreUnavailable, match="authentication failed") as caught:
        await SqlStore(database, Encryption([])).get(TENANT)
    assert CANARY not in "".join(traceback.format_exception(caught.value))
    await database.close()


@pytest.mark.parametrize("setting", ["webhooks.url", "history.url"])
async def test_a_rotated_password_is_read_for_every_new_connection(
    postgres: Postgres, tmp_path: Path, setting: str
) -> None:
    file, role = tmp_path / "url", f"rotating_{setting.partition('.')[0]}"
    await postgres.execute(f"CREATE ROLE {role} LOGIN PASSWORD 'old'")
    base = postgres.url().replace(f"dispatcher:{PASSWORD}", f"{role}:PASSWORD")
    file.write_text(base.replace("PASSWORD", "old") + "\n")
    database = Database(reread(Secret(b"", {"file": str(file)}, file)), setting=setting)
    async with database.read() as connection:
        await connection.exec_driver_sql("SELECT 1")
    await postgres.execute(f"ALTER ROLE {role} PASSWORD 'new'")
    await postgres.execute(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = '{role}'")
    for connect in (database.read().__aenter__, database.connect_alone):
        with pytest.raises(StoreUnavailable, match=f"authentication failed .*: correct .* in {setting}") as caught:
            await connect()
        assert "old" not in "".join(traceback.format_exception(caught.value))
    file.write_text(base.replace("PASSWORD", "new"))
    async with database.read() as connection:
        await connection.exec_driver_sql("SELECT 1")
    await (await database.connect_alone()).close()
    for broken in ("", "no url", "sqlite:///x.db", "\udcff"):
        file.write_bytes(broken.encode(errors="surrogateescape"))
        await (await database.connect_alone()).close()
    file.unlink()
    await (await database.connect_alone()).close()
    await database.close()


async def test_a_store_follows_the_rotation_of_its_password_and_names_the_cause(
    postgres: Postgres, tmp_path: Path, encryption: Encryption
) -> None:
    url, file = await postgres.fresh_database(), tmp_path / "url"
    await upgrade(Secret(url.encode()))
    await postgres.execute("CREATE ROLE follower SUPERUSER LOGIN PASSWORD 'old'")
    base = url.replace(f"dispatcher:{PASSWORD}", "follower:PASSWORD")
    file.write_text(base.replace("PASSWORD", "old"))
    database = Database(reread(Secret(b"", {"file": str(file)}, file)))
    store = SqlStore(database, encryption)
    async with running(store), asyncio.timeout(60):
        await store.load()
        await postgres.execute("ALTER ROLE follower PASSWORD 'new'")
        await postgres.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'follower'")
        while "password authentication failed" not in "".join(map(str, store.problems)):
            await asyncio.sleep(0.05)
        file.write_text(base.replace("PASSWORD", "new"))
        while store.problems:
            await asyncio.sleep(0.05)
    await database.close()


async def test_a_sqlite_file_that_is_replaced_is_opened_again(tmp_path: Path) -> None:
    live, backup = (tmp_path / name for name in ("live.db", "backup.db"))
    for path, value in ((live, 1), (backup, 2)):
        with closing(sqlite3.connect(path)) as made:
            made.execute("CREATE TABLE t (value)")
            made.execute(f"INSERT INTO t VALUES ({value})")
            made.commit()
    database = Database(Secret(f"sqlite:///{live}".encode()))

    async def value() -> object:
        async with database.read() as connection:
            return (await connection.exec_driver_sql("SELECT value FROM t")).scalar_one()

    async with database.read():
        assert await value() == 1  # in a second connection
    backup.rename(live)
    assert await value() == 2
    async with database.read(), database.write() as connection:
        await connection.exec_driver_sql("UPDATE t SET value = 3")
    with closing(sqlite3.connect(live)) as other:
        assert other.execute("SELECT value FROM t").fetchone() == (3,)
    live.unlink()
    with pytest.raises(StoreUnavailable):
        await value()
    await database.close()


@pytest.mark.parametrize("statement", [1, 2, 3])
async def test_a_change_that_is_cancelled_leaves_nothing_locked(empty_url: Secret, statement: int) -> None:
    """A timeout cancels, too. No other change may have to wait for the garbage collector."""
    database = Database(empty_url, create=True)
    async with database.write() as connection:
        await connection.execute(text("CREATE TABLE things (name INTEGER PRIMARY KEY)"))
        await connection.execute(text("INSERT INTO things VALUES (1), (2), (3)"))
    executed = 0

    def cancel(*_: object) -> None:
        nonlocal executed
        executed += 1
        if executed == statement:
            changing.cancel()

    async def change() -> None:
        async with database.write() as connection:
            await connection.execute(text("DELETE FROM things WHERE name = 3"))
            await connection.execute(text("SELECT * FROM things"))
            await connection.execute(text("INSERT INTO things VALUES (4)"))

    gc.disable()
    try:
        event.listen(database._engine.sync_engine, "before_cursor_execute", cancel)
        changing = asyncio.create_task(change())
        await asyncio.wait([changing])
        assert changing.cancelled()
        another = Database(empty_url)
        async with another.write() as connection:
            await connection.execute(text("INSERT INTO things VALUES (5)"))
            assert (await connection.execute(text("SELECT count(*) FROM things"))).scalar_one() == 4
        await another.close()
        await database.close()
    finally:
        gc.enable()


async def test_a_refused_connection_and_a_silent_server_both_count_as_unavailable() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
        refused = Database(Secret(f"postgresql://u:{CANARY}@127.0.0.1:{port}/d".encode()))
        with pytest.raises(StoreUnavailable, match="PostgreSQL at 127"):
            await SqlStore(refused, Encryption([])).get(TENANT)
        listener.listen()
        with pytest.raises(StoreUnavailable, match=r"no answer within 0\.3 s"):
            async with refused.read(0.3):
                pass
        await refused.close()


async def test_a_sqlite_file_that_is_not_there_is_not_made_by_looking(tmp_path: Path) -> None:
    path = tmp_path / "none.db"
    settings = WebhookSettings(store="sql", url=Secret(f"sqlite+aiosqlite:///{path}".encode()))
    async with open_sql_store(settings) as store:
        assert store.all() == []
        assert "does not answer" in str(store.problems[0])
        with pytest.raises(StoreUnavailable, match="run `dispatcher webhooks migrate`"):
            await store.get(TENANT)
        assert not path.exists()
        assert settings.url is not None
        await upgrade(settings.url)
        assert await store.get(TENANT) is None


def test_a_failed_connection_leaves_no_thread_that_answers_to_a_closed_loop(tmp_path: Path) -> None:
    async def looked_for() -> None:
        database = Database(Secret(f"sqlite:///{tmp_path / 'none.db'}".encode()))
        with pytest.raises(StoreUnavailable):
            async with database.read():
                pass

    for _ in range(300):  # pytest makes a thread's exception the test's
        asyncio.run(looked_for())
    assert [thread.name for thread in threading.enumerate() if "_connection_worker_thread" in thread.name] == []


async def test_a_schema_that_is_missing_stops_the_start(empty_url: Secret, tmp_path: Path) -> None:
    (tmp_path / "webhooks.db").touch()
    with pytest.raises(ConfigError, match="no schema yet"):
        async with open_sql_store(WebhookSettings(store="sql", url=empty_url)):
            pass


async def test_the_log_of_a_sqlite_file_shrinks_after_a_large_transaction(tmp_path: Path) -> None:
    database = Database(Secret(f"sqlite+aiosqlite:///{tmp_path / 'db'}".encode()), create=True)
    log = tmp_path / "db-wal"
    try:
        async with database.write() as connection:
            await connection.execute(text("CREATE TABLE large (value BLOB)"))
            await connection.execute(text("INSERT INTO large VALUES (zeroblob(80000000))"))
        assert log.stat().st_size > 80_000_000
        for _ in range(2):  # the first one overwrites the log from its start
            async with database.write() as connection:
                await connection.execute(text("INSERT INTO large VALUES (1)"))
        assert log.stat().st_size <= 64 << 20
    finally:
        await database.close()


async def test_a_session_that_began_on_a_standby_is_not_used_for_long(postgres: Postgres) -> None:
    """During a failover a name may still lead to the old primary; its sessions stay read-only, and work otherwise."""
    url = await postgres.fresh_database()
    name = url.rpartition("/")[2]
    await postgres.execute("CREATE TABLE things (name INTEGER)", name)
    await postgres.execute(f"ALTER DATABASE {name} SET default_transaction_read_only = on")
    database = Database(Secret(url.encode()))

    async def write() -> None:
        async with database.write() as connection:
            await connection.execute(text("INSERT INTO things VALUES (1)"))

    async with database.read() as connection:  # a second session
        await connection.execute(text("SELECT * FROM things"))
        with pytest.raises(StoreUnavailable, match="read-only transaction"):
            await write()
    await postgres.execute(f"ALTER DATABASE {name} RESET default_transaction_read_only")
    await write()
    async with database.write():
        await write()
    await database.close()


Passes = Callable[[asyncio.StreamWriter, bytes], bool]
"""Returns whether bytes to this side of a connection are passed on."""


@asynccontextmanager
async def relayed(postgres: Postgres, passes: Passes) -> AsyncIterator[tuple[Database, list[asyncio.StreamWriter]]]:
    """Yields a database behind a relay that loses what doesn't pass, and both sides of its connections."""
    writers: list[asyncio.StreamWriter] = []

    async def pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        while data := await reader.read(65_536):
            if passes(writer, data):
                writer.write(data)
        writer.close()

    async def forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        answers, requests = await asyncio.open_connection("127.0.0.1", postgres.port)
        with suppress(ConnectionError):
            await asyncio.gather(pass_on(reader, requests), pass_on(answers, writer))

    async with await asyncio.start_server(forward, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        database = Database(Secret(postgres.url().replace(f":{postgres.port}/", f":{port}/").encode()))
        async with asyncio.timeout(25):
            yield database, writers
        await database.close()
        for writer in writers:
            writer.close()


async def test_a_server_that_falls_silent_before_it_listens_delays_no_polling(
    postgres: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(changes, "CONNECT_WITHIN_S", 0.5)
    async with relayed(postgres, lambda _, data: b"LISTEN" not in data) as (database, _):
        with pytest.raises(changes.NoNotices, match=r"no answer within 0\.5 s"):
            await changes.listening(database).__aenter__()


async def test_silent_connections_are_given_up_long_before_a_long_deadline(
    postgres: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A firewall has forgotten the idle ones; new ones work."""
    monkeypatch.setattr(database_module, "CHECK_OUT_WITHIN_S", 0.5)
    forgotten: set[asyncio.StreamWriter] = set()
    async with relayed(postgres, lambda writer, _: writer not in forgotten) as (database, writers):
        async with database.read(), database.read() as connection:
            await connection.execute(text("SELECT 1"))
        forgotten.update(writers)
        for begin in (database.read, database.write):
            with pytest.raises(StoreUnavailable, match=r"no answer within 0\.5 s"):
                await begin(30).__aenter__()
        async with database.write(30) as connection:
            await connection.execute(text("SELECT 1"))
