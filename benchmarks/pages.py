"""The console before 10,000 webhooks and a million history entries: how long each page and search takes.

`python -m benchmarks.pages` runs this scenario alone. Times are of the server's answers, without a browser.
"""

import asyncio
import os
import statistics
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import aiohttp
import yaml

from benchmarks.history import Made, fill
from dispatcher.config.secrets import Secret
from dispatcher.config.settings import HistorySettings
from dispatcher.console.sources.history import HistoryLookup
from dispatcher.contract.tenant import TenantKey
from dispatcher.stores.sql.database import Database
from dispatcher.stores.sql.history_search import HistorySearch
from dispatcher.stores.sql.history_states import TenantStates
from dispatcher.stores.sql.history_store import HistoryStore
from dispatcher.stores.sql.records import StoredWebhook, WebhookQuery
from dispatcher.stores.sql.transfer import Transfer
from tests.console.pages.stage import Stage, staged
from tests.stores_sql.postgres import Postgres

WEBHOOKS: Final = int(os.environ.get("PAGES_WEBHOOKS", "10000"))
ENTRIES: Final = int(os.environ.get("PAGES_ENTRIES", "1000000"))
"""Smaller numbers help while the benchmark itself is changed."""
RUNS: Final = 5
_KEY: Final = b"k" * 32


async def measure(webhooks: int = WEBHOOKS, entries: int = ENTRIES) -> dict[str, Any]:
    """Milliseconds of each page, for both kinds of database: median and maximum."""
    found: dict[str, Any] = {"webhooks": webhooks, "entries": entries}
    for kind in ("sqlite", "postgresql"):
        with tempfile.TemporaryDirectory(prefix="bench-pages-") as name:
            async with _console(kind, Path(name), webhooks, entries) as (stage, made, webhook):
                found[kind] = await _times(stage, made, webhook)
    return found


@asynccontextmanager
async def _console(
    kind: str, directory: Path, webhooks: int, entries: int
) -> AsyncIterator[tuple[Stage, Made, StoredWebhook]]:
    if kind == "postgresql":
        with Postgres() as server:
            urls = [Secret((await server.fresh_database()).encode()) for _ in range(2)]
            async with _filled(directory, urls, webhooks, entries) as made:
                yield made
        return
    urls = [Secret(f"sqlite+aiosqlite:///{directory / name}".encode()) for name in ("webhooks.db", "history.db")]
    async with _filled(directory, urls, webhooks, entries) as made:
        yield made


@asynccontextmanager
async def _filled(
    directory: Path, urls: list[Secret], webhooks: int, entries: int
) -> AsyncIterator[tuple[Stage, Made, StoredWebhook]]:
    database = Database(urls[1], create=True, setting="history.url")
    store = HistoryStore(database, HistorySettings.model_validate({}))
    await store.prepare()
    made = Made(entries, int(time.time() * 1000), webhooks)
    await fill(store, made)
    lookup = HistoryLookup(HistorySearch(database), store, Secret(_KEY), TenantStates(database))
    try:
        async with staged(directory, history=lookup, url=urls[0]) as stage:
            configs = [_config(made.tenant_number(number)) for number in range(webhooks)]
            repository = stage.services.webhooks
            transfer = Transfer(repository._database, repository._encryption, repository)
            resolved = [await repository.resolve(one, webhook_id=None, orgs=None) for one in configs]
            await transfer.import_webhooks(resolved, by="benchmark", replace=False, dry_run=False)
            page = await repository.search(WebhookQuery(text=made.tenant(0).org), orgs=None)
            yield stage, made, page.items[0]
    finally:
        await database.close()


def _config(tenant: TenantKey) -> dict[str, Any]:
    url = f"https://hooks.{tenant.org.partition('@')[0]}.example/feedback"
    return {"name": f"Webhook of {tenant.org}", "org": tenant.org, "sandbox": tenant.sandbox, "url": url}


async def _times(stage: Stage, made: Made, webhook: StoredWebhook) -> dict[str, dict[str, float]]:
    own, event = f"/webhooks/{webhook.id}", made.entry(0)
    pages = {
        "list": "/",
        "list, by name, downwards": "/?sort=name&order=down",
        "list, by state": "/?sort=state",
        "list, by last delivery": "/?sort=last&order=down",
        "list, failing": "/?state=failing",
        "list, last page": "/?page=200",
        "list, text": "/?text=org-0099",
        "scopes": "/scope",
        "deliveries of all": "/deliveries",
        "overview": own,
        "overview, 7 days": f"{own}?window=7d",
        "deliveries": f"{own}/deliveries",
        "deliveries, dead": f"{own}/deliveries?outcome=dead",
        "deliveries, reason": f"{own}/deliveries?reason=http_5xx",
        "deliveries, nothing matches": f"{own}/deliveries?reason=unknown",
        "event": f"{own}/deliveries/{event.webhook_id}",
        "form": f"{own}/edit",
        "search, request id": f"/search?q={event.request_id}",
        "search, unknown": "/search?q=unknown",
        "audit": "/audit",
        "API, webhooks": "/api/v1/webhooks?limit=200",
    }
    found: dict[str, dict[str, float]] = {}
    async with aiohttp.ClientSession(stage.base, cookie_jar=aiohttp.CookieJar(unsafe=True)) as session:
        async with session.post("/sign-in", data={"token": await stage.token()}) as answer:
            answer.raise_for_status()
        for name, path in pages.items():
            times = [await _time_ms(session, path) for _ in range(RUNS)]
            found[name] = {"median": round(statistics.median(times), 1), "max": round(max(times), 1)}
    return found


async def _time_ms(session: aiohttp.ClientSession, path: str) -> float:
    began = time.perf_counter()
    async with session.get(path) as answer:
        await answer.read()
        if answer.status != 200:
            raise RuntimeError(f"{path} answered {answer.status}")
    return (time.perf_counter() - began) * 1000


if __name__ == "__main__":
    print(yaml.safe_dump(asyncio.run(measure()), sort_keys=False))
