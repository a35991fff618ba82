"""Runs a store that follows its database, as a dispatcher does, and collects its notifications."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from dispatcher.contract.tenant import TenantKey
from dispatcher.stores.sql.store import SqlStore

CHANGES_WITHIN_S = 60.0


class Notifications:
    """Collects a store's notifications of changes."""

    def __init__(self, store: SqlStore) -> None:
        self.tenants: set[TenantKey] = set()
        self._news = asyncio.Event()
        store.on_change(self._hear)

    def _hear(self, tenants: set[TenantKey]) -> None:
        self.tenants |= tenants
        self._news.set()

    async def wait_for(self, *tenants: TenantKey, within_s: float = CHANGES_WITHIN_S) -> None:
        async with asyncio.timeout(within_s):
            while not self.tenants.issuperset(tenants):
                self._news.clear()
                await self._news.wait()
        self.tenants.clear()


@asynccontextmanager
async def running(store: SqlStore) -> AsyncIterator[Notifications]:
    notified = Notifications(store)
    task = asyncio.create_task(store.run(), name="store")
    try:
        yield notified
        assert not task.done()
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
