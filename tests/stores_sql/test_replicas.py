"""Fifty dispatchers read what two people edit at once: none is behind for good, none sees a change undone."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import pytest
from sqlalchemy.ext.asyncio import AsyncConnection

from dispatcher.config.secrets import Secret
from dispatcher.config.settings import WebhookSettings
from dispatcher.contract.tenant import TenantKey
from dispatcher.errors import EditConflict
from dispatcher.stores.cache import WebhookCache
from dispatcher.stores.sql import database as database_module
from dispatcher.stores.sql.database import Database
from dispatcher.stores.sql.encryption import Encryption
from dispatcher.stores.sql.migrate import upgrade
from dispatcher.stores.sql.repository import WebhookRepository
from dispatcher.stores.sql.store import SqlStore
from tests.stores_sql.examples import plain
from tests.stores_sql.following import running
from tests.stores_sql.postgres import Postgres

REPLICAS = 50
EDITS = 10
"""Of each editor."""
LONG_S = 120.0
"""One process plays all of these dispatchers, so that an answer may take long on a busy machine."""
TENANTS = [TenantKey("luma@AdobeOrg", sandbox) for sandbox in ("prod", "stage")]


class PatientDatabase(Database):
    """A database whose answers are waited for, however long they take."""

    @asynccontextmanager
    async def read(self, within_s: float = LONG_S) -> AsyncIterator[AsyncConnection]:
        async with super().read(max(within_s, LONG_S)) as connection:
            yield connection

    @asynccontextmanager
    async def write(self, within_s: float | None = LONG_S) -> AsyncIterator[AsyncConnection]:
        async with super().write(max(within_s or LONG_S, LONG_S)) as connection:
            yield connection


@pytest.fixture(autouse=True)
def _connecting_may_take_long(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CHECK_OUT_WITHIN_S", "CONNECT_WITHIN_S"):
        monkeypatch.setattr(database_module, name, LONG_S)


@asynccontextmanager
async def replica(url: Secret, encryption: Encryption) -> AsyncIterator[WebhookCache]:
    """What a dispatcher has of the webhooks: its own connections, its store that follows, its cache in front."""
    database = PatientDatabase(url)
    store = SqlStore(database, encryption)
    cache = WebhookCache(store, WebhookSettings(store="sql", url=url))
    store.on_change(lambda tenants: [cache.invalidate(tenant) for tenant in tenants])
    try:
        await store.load()
        async with running(store):
            yield cache
    finally:
        await database.close()


async def edit(repository: WebhookRepository, webhook_id: str, times: int) -> int:
    """Makes one editor's changes, each on the version just read; returns how often another editor was first."""
    conflicts = 0
    while times:
        seen = await repository.get(webhook_id, orgs=None)
        changed = plain(*seen.tenant, name=str(seen.version + 1))
        try:
            await repository.update(webhook_id, changed, expected_version=seen.version, by="editor", orgs=None)
            times -= 1
        except EditConflict:
            conflicts += 1
    return conflicts


async def follow(cache: WebhookCache, last: int) -> int:
    """Reads both webhooks again and again until both are at their last version; returns how many were seen."""
    seen = dict.fromkeys(TENANTS, 0)
    versions = set()
    while min(seen.values()) < last:
        for tenant in TENANTS:
            webhook = await cache.get(tenant)
            assert webhook is not None
            version = int(webhook.config.name)
            assert version >= seen[tenant]
            seen[tenant] = version
            versions.add(version)
        await asyncio.sleep(0.02)
    return len(versions)


@pytest.mark.timeout(300)
@pytest.mark.usefixtures("postgres")
async def test_fifty_replicas_follow_two_editors(encryption: Encryption) -> None:
    with Postgres(max_connections=4 * REPLICAS) as server:
        url = Secret((await server.fresh_database()).encode())
        await upgrade(url)
        editors = [PatientDatabase(url), PatientDatabase(url)]
        repositories = [WebhookRepository(database, encryption) for database in editors]
        made = [await repositories[0].create(plain(*tenant, name="1"), by="editor", orgs=None) for tenant in TENANTS]
        last = 1 + 2 * EDITS
        async with AsyncExitStack() as stack:
            caches = [await stack.enter_async_context(replica(url, encryption)) for _ in range(REPLICAS)]
            async with asyncio.timeout(240), asyncio.TaskGroup() as tasks:
                following = [tasks.create_task(follow(cache, last)) for cache in caches]
                editing = [
                    tasks.create_task(edit(repository, webhook.id, EDITS))
                    for repository in repositories
                    for webhook in made
                ]
            versions = [(await repositories[0].get(webhook.id, orgs=None)).version for webhook in made]
        for database in editors:
            await database.close()
    assert versions == [last, last]  # no edit was written over another
    assert sum(task.result() for task in editing) > 0  # though they were at it at the same time
    assert max(task.result() for task in following) > 2  # and were read meanwhile
