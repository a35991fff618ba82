"""What dispatchers see of a database: look-ups, changes, and outages."""

import asyncio
import sqlite3
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, suppress
from pathlib import Path

import asyncpg  # type: ignore[import-untyped]
import pytest
import structlog
from sqlalchemy import select, text, update

from dispatcher.config.secrets import Secret
from dispatcher.config.settings import WebhookSettings
from dispatcher.config.webhook_revision import Webhook
from dispatcher.contract.tenant import TenantKey
from dispatcher.errors import StoreUnavailable, WebhookUnusable
from dispatcher.stores.cache import WebhookCache
from dispatcher.stores.sql import schema
from dispatcher.stores.sql.database import Database
from dispatcher.stores.sql.encryption import Encryption, new_key
from dispatcher.stores.sql.migrate import upgrade
from dispatcher.stores.sql.repository import WebhookRepository
from dispatcher.stores.sql.rotation import rotate
from dispatcher.stores.sql.store import SqlStore, open_sql_store
from dispatcher.telemetry import metrics
from tests.stores_sql.examples import plain, secretive
from tests.stores_sql.following import CHANGES_WITHIN_S, Notifications, running
from tests.stores_sql.postgres import Postgres

NEVER_S = 3600.0


async def eventually(is_so: Callable[[], Awaitable[bool]], within_s: float) -> None:
    """Waits for something that sends no notification."""
    async with asyncio.timeout(within_s):
        while not await is_so():
            await asyncio.sleep(0.02)


@pytest.fixture
async def store(url: Secret, encryption: Encryption) -> AsyncIterator[SqlStore]:
    """A dispatcher's store, with connections of its own."""
    database = Database(url)
    yield SqlStore(database, encryption)
    await database.close()


async def test_a_webhook_is_the_same_object_until_it_is_edited(
    store: SqlStore, repository: WebhookRepository, database: Database, encryption: Encryption
) -> None:
    made = await repository.create(secretive(), by="ada", orgs=None)
    found = await store.get(made.tenant)
    assert found is not None
    assert found.config == secretive()
    assert found.source == f"sql:{made.id}"
    assert await store.get(made.tenant) is found
    await store.load()
    assert store.all() == [found]
    other = await SqlStore(database, encryption).get(made.tenant)
    assert other is not None
    assert other.revision == found.revision
    await repository.update(made.id, secretive(), expected_version=1, by="ada", orgs=None)
    edited = await store.get(made.tenant)
    assert edited is not None
    assert edited.revision != found.revision  # an edit is an edit: what was disabled is taken up again
    await repository.reactivate(made.id, by="ada", orgs=None)
    taken_up = await store.get(made.tenant)
    assert taken_up is not None
    assert taken_up.revision != edited.revision
    assert taken_up.config == secretive()
    await repository.delete(made.id, expected_version=3, by="ada", orgs=None)
    assert await store.get(made.tenant) is None
    assert repr(store).endswith("1 webhooks, change 1>")


async def test_the_time_of_a_change_is_known_unless_the_row_is_damaged(
    store: SqlStore, repository: WebhookRepository, database: Database
) -> None:
    made = await repository.create(plain("luma"), by="ada", orgs=None)
    found = await store.get(made.tenant)
    assert found is not None
    assert found.changed_at == made.updated_at.timestamp()
    if database.is_postgresql:
        return  # it refuses texts that name no time
    for damaged in ("yesterday", "", "9999-12-31 23:59:59-23:00"):
        async with database.write() as connection:
            await connection.execute(text("UPDATE webhooks SET updated_at = :at, changed = changed"), {"at": damaged})
        started = SqlStore(database, store._encryption)
        before = time.time()
        await started.load()
        (read,) = started.all()
        assert read.changed_at >= before


async def test_a_tenant_that_no_database_can_hold_has_no_webhook(store: SqlStore) -> None:
    for tenant in (TenantKey("a\0b", "prod"), TenantKey("\ud800", "prod"), TenantKey("'; DROP TABLE webhooks", "%")):
        assert await store.get(tenant) is None


async def test_held_events_of_a_webhook_under_an_old_key_go_on_after_a_rotation(
    database: Database, url: Secret
) -> None:
    """The rotation isn't an edit: no other webhook counts as changed."""
    old, new = (Secret(new_key().encode()) for _ in range(2))
    under_old, under_new = (WebhookRepository(database, Encryption([one])) for one in (old, new))
    lost = await under_old.create(secretive(), by="ada", orgs=None)
    await under_new.create(secretive(org="other"), by="ada", orgs=None)
    store, changed = SqlStore(database, Encryption([new])), list[set[TenantKey]]()
    await store.load()
    store.on_change(changed.append)
    assert store.problems
    assert store.is_held(lost.tenant)
    await under_new.create(secretive(org="third"), by="ada", orgs=None)
    await store.load()
    assert changed == [{TenantKey("third", lost.tenant.sandbox)}], "it is unusable as before"

    await rotate(database, Encryption([new, old]), by="ada")
    assert await store.get(lost.tenant) is not None, "a new event reads it before the change is noticed"
    await store.load()
    assert changed[1:] == [{lost.tenant}]
    assert not store.is_held(lost.tenant)
    assert not store.problems


BAD_ROWS = {
    "cut off": ("sqlite", "config = '{oops'"),
    "null": ("both", "config = 'null'"),
    "a list": ("both", "config = '[]'"),
    "empty": ("both", "config = '{}'"),
    "another sandbox": ("both", "sandbox = 'stage'"),
    "another organisation": ("both", "org = 'other'"),
    "no date": ("sqlite", "deleted_at = 'yesterday'"),
    "not UTF-8": ("sqlite", "config = CAST(CAST(config AS BLOB) || x'FC' AS TEXT)"),
    "no number of a change": ("sqlite", "changed = 'x'"),
    "bytes as organisation": ("sqlite", "org = x'626164'"),
    "bytes as sandbox": ("sqlite", "sandbox = x'70726F64'"),
    "bytes as configuration": ("sqlite", "config = x'FC'"),
    "an odd ciphertext": ("both", """config = '{"headers": {"a": {"encrypted": "\u00fc"}}}'"""),
}


@pytest.mark.parametrize(("kind", "change"), BAD_ROWS.values(), ids=BAD_ROWS)
async def test_a_row_that_can_not_be_read_costs_its_own_tenant_only(
    url: Secret, repository: WebhookRepository, database: Database, encryption: Encryption, kind: str, change: str
) -> None:
    if kind == "sqlite" and database.is_postgresql:
        pytest.skip("PostgreSQL refuses this value")
    store = SqlStore(database, encryption)
    await store.load()
    bad = await repository.create(plain("bad"), by="ada", orgs=None)
    good = await repository.create(plain("good"), by="ada", orgs=None)
    async with database.write() as connection:
        await connection.execute(text(f"UPDATE webhooks SET {change} WHERE id = :id"), {"id": bad.id})
    await store.load()
    started = SqlStore(database, encryption)
    await started.load()
    for one in (store, started):
        assert [webhook.tenant for webhook in one.all()] == [good.tenant]
        if "deleted_at" in change:
            continue
        ((file, message),) = {(problem.file, problem.message) for problem in one.problems[:1]}
        assert file == f"sql:{bad.id}"
        assert message
        tenant = TenantKey("other" if "'other'" in change else "bad", "stage" if "'stage'" in change else "prod")
        with pytest.raises(WebhookUnusable):
            await one.get(tenant)
        assert one.is_held(tenant)
        assert await WebhookCache(one, WebhookSettings(store="sql", url=url)).get(good.tenant) is not None


async def test_a_change_counter_without_a_number_is_named(store: SqlStore, database: Database) -> None:
    if database.is_postgresql:
        pytest.skip("PostgreSQL refuses this value")
    async with database.write() as connection:
        await connection.execute(text("UPDATE change_counter SET value = 'x'"))
    for _ in range(2):
        with pytest.raises(StoreUnavailable, match=r"change_counter\.value isn't a whole number: set it to"):
            await store.load()


async def test_every_kind_of_change_is_reported_in_time(store: SqlStore, repository: WebhookRepository) -> None:
    await store.load()
    async with running(store) as notified:
        made = await repository.create(plain(), by="ada", orgs=None)
        await notified.wait_for(made.tenant)
        assert [webhook.tenant for webhook in store.all()] == [made.tenant]
        await repository.update(made.id, plain(name="New"), expected_version=1, by="ada", orgs=None)
        await notified.wait_for(made.tenant)
        assert store.all()[0].config.name == "New"
        await repository.delete(made.id, expected_version=2, by="ada", orgs=None)
        await notified.wait_for(made.tenant)
        assert store.all() == []
        await repository.create(plain(), by="ada", orgs=None)
        await notified.wait_for(made.tenant)
        assert len(store.all()) == 1


async def test_postgresql_notifies_of_changes_without_polling(postgres: Postgres, encryption: Encryption) -> None:
    url = Secret((await postgres.fresh_database()).encode())
    await upgrade(url)
    database = Database(url)
    repository = WebhookRepository(database, encryption)
    store = SqlStore(database, encryption, poll_s=NEVER_S)
    first = await repository.create(plain(), by="ada", orgs=None)
    async with running(store) as notified:
        await notified.wait_for(first.tenant)
        await _listens(postgres)
        second = await repository.create(plain(sandbox="dev"), by="ada", orgs=None)
        await notified.wait_for(second.tenant)
        await postgres.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE '%listener'"
        )
        third = await repository.create(plain(sandbox="stage"), by="ada", orgs=None)  # perhaps there is no listener now
        await notified.wait_for(third.tenant)
    await database.close()


async def test_changes_are_polled_while_postgresql_refuses_to_notify(
    encryption: Encryption, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries: list[object] = []
    connect = Database.connect_alone

    async def counted(database: Database) -> object:
        tries.append(None)
        return await connect(database)

    monkeypatch.setattr(Database, "connect_alone", counted)
    with Postgres(max_connections=12) as server, structlog.testing.capture_logs() as logs:
        url = Secret((await server.fresh_database()).encode())
        await upgrade(url)
        database, other = Database(url), Database(url)
        repository, store = WebhookRepository(other, encryption), SqlStore(database, encryption)
        made = await repository.create(plain(), by="ada", orgs=None)
        await store.load()
        async with AsyncExitStack() as taken:
            with suppress(asyncpg.TooManyConnectionsError):
                while True:
                    taken.push_async_callback((await asyncpg.connect(server.url(scheme="postgresql"))).close)
            async with running(store) as notified:
                for version in (1, 2, 3):
                    draft = plain(name=f"Version {version + 1}")
                    await repository.update(made.id, draft, expected_version=version, by="ada", orgs=None)
                    await notified.wait_for(made.tenant)
                    assert not store.problems, "the database answers"
                assert 0 < len(tries) <= 8, "pauses grow"
                assert [line["event"] for line in logs].count("changes of webhooks are polled") == 1
                assert not await _has_event(logs, "webhook database is away")
                await taken.aclose()
                await eventually(lambda: _has_event(logs, "changes of webhooks are notified again"), within_s=60)
        await database.close()
        await other.close()


async def _has_event(logs: list[structlog.typing.EventDict], event: str) -> bool:
    return any(line["event"] == event for line in logs)


async def _listens(postgres: Postgres) -> None:
    connection = await asyncpg.connect(postgres.url(scheme="postgresql"))
    query = "SELECT count(*) > 0 FROM pg_stat_activity WHERE query LIKE 'LISTEN%' AND state = 'idle'"
    try:
        await eventually(lambda: connection.fetchval(query), CHANGES_WITHIN_S)
    finally:
        await connection.close()


async def test_a_database_restored_from_a_backup_is_read_again(
    store: SqlStore, repository: WebhookRepository, database: Database
) -> None:
    made = await repository.create(plain(), by="ada", orgs=None)
    await repository.update(made.id, plain(name="Lost"), expected_version=1, by="ada", orgs=None)
    gone = await repository.create(plain(sandbox="dev"), by="ada", orgs=None)
    await store.load()
    notified = Notifications(store)
    async with database.write() as connection:
        await connection.execute(update(schema.change_counter).values(value=1))
        await connection.execute(schema.webhooks.delete().where(schema.webhooks.c.id == gone.id))
        restored = dict(made.document)
        await connection.execute(update(schema.webhooks).values(version=1, changed=1, config=restored))
    await store.load()
    assert notified.tenants == {made.tenant, gone.tenant}
    assert [webhook.config.name for webhook in store.all()] == [made.name]
    found = await store.get(made.tenant)
    assert found is not None
    assert found.config.name == made.name


async def test_webhooks_stay_in_use_while_the_database_is_restored(
    store: SqlStore, repository: WebhookRepository, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`pg_restore --clean` creates each table empty, and fills one after the other."""
    made = [await repository.create(plain(sandbox=f"s{number}"), by="ada", orgs=None) for number in range(3)]
    await repository.delete(made[2].id, expected_version=1, by="ada", orgs=None)
    assert await store.get(made[2].tenant) is None
    await store.load()
    async with database.write() as connection:
        dumped = [dict(row) for row in (await connection.execute(select(schema.webhooks))).mappings()]
        await connection.execute(schema.webhooks.delete())
    for _ in range(3):
        await store.load()
        for one in made[:2]:
            found = await store.get(one.tenant)
            assert found is not None
            assert found.config.sandbox == one.tenant.sandbox
        with pytest.raises(StoreUnavailable, match="webhooks are missing"):
            await store.get(TenantKey("luma@AdobeOrg", "new"))
    assert "2 of 2 webhooks are missing: they stay in use" in str(store.problems[0])
    async with database.write() as connection:
        await connection.execute(schema.webhooks.insert(), dumped[:2])
    await store.load()
    assert not store.problems
    assert len(store.all()) == 2
    assert await store.get(TenantKey("luma@AdobeOrg", "new")) is None
    async with database.write() as connection:
        await connection.execute(schema.webhooks.delete().where(schema.webhooks.c.id == made[0].id))
    assert await store.get(made[0].tenant) is not None, "not deleted: its row is gone"
    await store.load()
    assert await store.get(made[0].tenant) is None, "every webhook was read"
    async with database.write() as connection:
        await connection.execute(schema.webhooks.delete())
    assert await store.get(made[1].tenant) is not None
    await store.load()
    monkeypatch.setattr("dispatcher.stores.sql.store.REMOVAL_AFTER_S", 0.0)
    await store.load()
    assert await store.get(made[1].tenant) is None
    assert not store.problems


async def test_a_deletion_is_noticed_while_other_webhooks_are_missing(
    store: SqlStore, repository: WebhookRepository, database: Database
) -> None:
    made = [await repository.create(plain(sandbox=f"s{number}"), by="ada", orgs=None) for number in range(12)]
    await store.load()
    async with database.write() as connection:
        missing = schema.webhooks.c.id.in_([one.id for one in made[:8]])
        await connection.execute(schema.webhooks.delete().where(missing))
    assert await store.get(made[0].tenant) is not None
    await store.load()
    assert "8 of 12 webhooks are missing" in str(store.problems[0])
    notified = Notifications(store)
    await repository.delete(made[11].id, expected_version=1, by="ada", orgs=None)
    await store.load()
    assert made[11].tenant in notified.tenants
    assert made[11].tenant not in {webhook.tenant for webhook in store.all()}
    assert "8 of 11 webhooks are missing" in str(store.problems[0])


async def test_edits_under_way_are_never_missed(store: SqlStore, repository: WebhookRepository) -> None:
    """Commits may come in another order than they began: still every dispatcher ends with the newest of all."""
    sandboxes = [f"s{n}" for n in range(12)]
    async with running(store) as notified:
        await asyncio.gather(*(repository.create(plain(sandbox=one), by="a", orgs=None) for one in sandboxes))
        await notified.wait_for(*(TenantKey("luma@AdobeOrg", one) for one in sandboxes))
        assert len(store.all()) == len(sandboxes)


async def test_a_restart_of_the_database_costs_answers_and_nothing_else(encryption: Encryption) -> None:
    with Postgres() as server:
        url = Secret((await server.fresh_database()).encode())
        await upgrade(url)
        database, other = Database(url), Database(url)
        repository = WebhookRepository(other, encryption)
        made = await repository.create(plain(), by="ada", orgs=None)
        store = SqlStore(database, encryption)
        await store.load()
        cache = WebhookCache(store, WebhookSettings(store="sql", url=url, cache_ttl=0.01))
        known = await cache.get(made.tenant)
        assert known is not None
        async with running(store) as notified:
            await asyncio.to_thread(server.stop)
            assert await store.get(made.tenant) is known  # from the rows that it has read
            assert await cache.get(made.tenant) is known
            with pytest.raises(StoreUnavailable):
                await store.get(TenantKey(made.tenant.org, "new"))  # may have a webhook by now: never skipped
            with pytest.raises(StoreUnavailable):
                await repository.create(plain(sandbox="dev"), by="ada", orgs=None)
            await eventually(lambda: _is_away(store), within_s=60)
            restarting = asyncio.create_task(asyncio.to_thread(server.start))
            await eventually(lambda: _answers(store, known), within_s=60)
            await restarting
            await repository.update(made.id, plain(name="After"), expected_version=1, by="ada", orgs=None)
            await notified.wait_for(made.tenant)
            assert not store.problems
            await server.restart()
            await repository.create(plain(sandbox="dev"), by="ada", orgs=None)
            await notified.wait_for(TenantKey(made.tenant.org, "dev"))
        await database.close()
        await other.close()


async def test_a_dispatcher_that_starts_in_time_outlives_its_database(encryption: Encryption) -> None:
    """Nothing was asked before the database went away: what was loaded at the start answers, and at once."""
    with Postgres() as server:
        url = Secret((await server.fresh_database()).encode())
        await upgrade(url)
        database = Database(url)
        made = await WebhookRepository(database, encryption).create(plain(), by="ada", orgs=None)
        stale = metrics.STALE_ANSWERS._value.get()
        async with open_sql_store(WebhookSettings(store="sql", url=url)) as store:
            cache = WebhookCache(store, WebhookSettings(store="sql", url=url))
            async with running(store):
                await asyncio.to_thread(server.stop)
                await eventually(lambda: _is_away(store), within_s=60)
                async with asyncio.timeout(5):
                    found = await cache.get(made.tenant)
                assert found is store.all()[0]
                assert metrics.STALE_ANSWERS._value.get() == stale + 1
        await database.close()


async def _is_away(store: SqlStore) -> bool:
    return "does not answer" in "".join(map(str, store.problems))


async def _answers(store: SqlStore, webhook: Webhook) -> bool:
    """While the database starts, what was read stands in for it: never another answer."""
    assert await store.get(webhook.tenant) is webhook
    return not await _is_away(store)


async def test_a_locked_sqlite_file_can_still_be_read(tmp_path: Path, encryption: Encryption) -> None:
    path = tmp_path / "webhooks.db"
    url = Secret(f"sqlite+aiosqlite:///{path}".encode())
    await upgrade(url)
    database = Database(url)
    made = await WebhookRepository(database, encryption).create(plain(), by="ada", orgs=None)
    writer = sqlite3.connect(path, isolation_level=None)
    writer.execute("BEGIN EXCLUSIVE")
    try:
        assert await SqlStore(database, encryption).get(made.tenant) is not None
        with pytest.raises(StoreUnavailable, match=r"no answer within|locked"):
            async with database.write(0.2) as connection:
                await connection.execute(update(schema.change_counter).values(value=7))
    finally:
        writer.execute("ROLLBACK")
        writer.close()
    await database.close()
