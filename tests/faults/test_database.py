"""The webhook database restarted, and away at the start, under load: answers that are known serve, and nothing is lost."""

import asyncio
import itertools
from collections.abc import Iterator

import pytest

from dispatcher.config.secrets import Secret
from dispatcher.stores.sql.database import Database
from dispatcher.stores.sql.encryption import Encryption
from dispatcher.stores.sql.migrate import upgrade
from dispatcher.stores.sql.repository import WebhookRepository
from tests.faults.conftest import Tell
from tests.faults.table import Row
from tests.integration.brokers import needs_kafka
from tests.integration.harness import Dispatcher, Stage, tenants, until
from tests.stores_sql.postgres import Postgres

pytestmark = [needs_kafka, pytest.mark.faults, pytest.mark.timeout(300)]

EVERYBODY = tenants(10)


@pytest.fixture
def mortal_database(postgres: Postgres) -> Iterator[Postgres]:
    """Yields a server that the test may stop."""
    with Postgres() as server:
        yield server


async def _dispatcher(scene: Stage, server: Postgres) -> Dispatcher:
    """Returns a dispatcher that reads its webhooks from a database, with a cache that expires after a second."""
    url = await server.fresh_database()
    await upgrade(Secret(url.encode()))
    database = Database(Secret(url.encode()))
    repository = WebhookRepository(database, Encryption([]))
    for tenant in EVERYBODY:
        config = await repository.resolve(scene.webhook(tenant), webhook_id=None, orgs=None)
        await repository.create(config, by="test", orgs=None)
    await database.close()
    (scene.directory / "url").write_text(url)
    webhooks = {"store": "sql", "url": {"file": str(scene.directory / "url")}, "cache_ttl": "1s"}
    return Dispatcher(scene.directory, scene.settings | {"webhooks": webhooks})


async def _stale_answers(dispatcher: Dispatcher) -> float:
    _, text = await dispatcher.get("/metrics")
    lines = (line for line in text.splitlines() if line.startswith("dispatcher_webhook_cache_stale_answers_total"))
    return sum(float(line.split()[1]) for line in lines)


async def _deliver_by_what_is_known(scene: Stage, dispatcher: Dispatcher, prefix: str) -> None:
    """Events all the while, until the cache has had to give an answer that is no longer fresh."""
    before = await _stale_answers(dispatcher)
    async with asyncio.timeout(60):
        for piece in itertools.count():
            await scene.produce(EVERYBODY, 100, f"{prefix}-{piece}")
            await scene.all_accepted(dispatcher)
            if await _stale_answers(dispatcher) > before:
                return
            await asyncio.sleep(0.1)


async def test_the_database_restarts_under_load(scene: Stage, tell: Tell, mortal_database: Postgres) -> None:
    server = mortal_database
    async with await _dispatcher(scene, server) as dispatcher:
        dispatcher.start()
        await scene.produce(EVERYBODY, 200, "before")
        await scene.all_accepted(dispatcher)
        await asyncio.to_thread(server.stop)
        await _deliver_by_what_is_known(scene, dispatcher, "away")
        await scene.produce(EVERYBODY, 400, "back")
        await asyncio.to_thread(server.start)
        await scene.all_accepted(dispatcher)
        dispatcher.sigterm()
        assert await dispatcher.wait() == 0

        # A dispatcher that starts without its database knows no webhook: it waits and skips no event.
        await asyncio.to_thread(server.stop)
        await scene.produce(EVERYBODY, 400, "unknown")
        dispatcher.start()
        await until(lambda: "webhook database is away" in dispatcher.log, "the outage", 60, dispatcher)
        assert await scene.lost() == 400
        assert dispatcher.running
        await asyncio.to_thread(server.start)
        await scene.all_accepted(dispatcher)
    tell(await Row.of("the webhook database restarts, is away at a start", scene, dispatcher, most_repeats=0))
