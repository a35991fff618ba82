"""A history store in a SQLite file, filled by tests, as the console reads it."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import count
from pathlib import Path
from time import time
from typing import Any

from dispatcher.config.secrets import Secret
from dispatcher.config.settings import HistorySettings
from dispatcher.console.sources.history import HistoryLookup
from dispatcher.contract.history import HistoryEntry, HistoryOutcome, HistoryRecord
from dispatcher.contract.recipient import recipient_hash
from dispatcher.contract.tenant import TenantKey
from dispatcher.stores.sql.database import Database
from dispatcher.stores.sql.history_rows import rows_of
from dispatcher.stores.sql.history_search import HistorySearch
from dispatcher.stores.sql.history_states import TenantStates
from dispatcher.stores.sql.history_store import HistoryStore, Written

KEY = b"k" * 32
_numbers = count(1)


class FilledHistory:
    """The store, to write to."""

    def __init__(self, store: HistoryStore, lookup: HistoryLookup) -> None:
        self._store = store
        self.lookup = lookup

    async def add(self, *entries: HistoryEntry) -> None:
        """Stores entries."""
        rows, refused = rows_of(HistoryRecord(1, 1, next(_numbers) * 1000, list(entries)))
        assert not refused
        assert await self._store.write(rows) == Written(len(entries), 0, 0)


@asynccontextmanager
async def history_in(directory: Path, *, with_key: bool = True, **settings: Any) -> AsyncIterator[FilledHistory]:
    """An empty store."""
    database = Database(Secret(f"sqlite+aiosqlite:///{directory / 'history.db'}".encode()), create=True)
    try:
        store = HistoryStore(database, HistorySettings.model_validate(settings))
        await store.prepare()
        lookup = HistoryLookup(
            HistorySearch(database), store, Secret(KEY) if with_key else None, TenantStates(database)
        )
        yield FilledHistory(store, lookup)
    finally:
        await database.close()


def entry_of(tenant: TenantKey, event: str = "1", age_s: float = 60, **changes: Any) -> HistoryEntry:
    """A delivered event of the tenant, with changes."""
    values: dict[str, Any] = {
        "at": int((time() - age_s) * 1000), "outcome": HistoryOutcome.DELIVERED, "org": tenant.org,
        "sandbox": tenant.sandbox, "reason": "http_2xx", "webhook_id": f"msg_{event}", "event_id": f"e-{event}",
        "request_id": f"r-{event}", "message_execution_id": f"x-{event}", "campaign_id": "c-1",
        "topic": "delivery-events", "partition": 0, "offset": 7, "channel": "email", "message_status": "bounce",
        "recipient": recipient_hash(KEY, f"{event}@customer.example"), "attempt": 1, "duration_ms": 12.5,
        "status": 200, "verdict": "delivered",
    }  # fmt: skip
    return HistoryEntry(**values | changes)
