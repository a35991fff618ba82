"""Provides a fresh database of each kind. PostgreSQL is required in CI, and skipped elsewhere if it can't be installed."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from dispatcher.config.secrets import Secret
from dispatcher.stores.sql.database import Database
from dispatcher.stores.sql.encryption import Encryption, new_key
from dispatcher.stores.sql.history_store import HistoryStore
from dispatcher.stores.sql.migrate import upgrade
from dispatcher.stores.sql.repository import WebhookRepository
from tests.stores_sql.history_examples import SETTINGS, Clock
from tests.stores_sql.postgres import Postgres


@pytest.fixture(params=["sqlite", "postgresql"])
async def empty_url(request: pytest.FixtureRequest, tmp_path: Path) -> Secret:
    """A database without a schema."""
    if request.param == "sqlite":
        return Secret(f"sqlite+aiosqlite:///{tmp_path / 'webhooks.db'}".encode())
    server: Postgres = request.getfixturevalue("postgres")
    return Secret((await server.fresh_database()).encode())


@pytest.fixture
async def url(empty_url: Secret) -> Secret:
    """A database with the newest schema."""
    await upgrade(empty_url)
    return empty_url


@pytest.fixture
async def database(url: Secret) -> AsyncIterator[Database]:
    opened = Database(url)
    yield opened
    await opened.close()


@pytest.fixture
async def history_database(empty_url: Secret) -> AsyncIterator[Database]:
    """A database for a history only, without a schema."""
    opened = Database(empty_url, create=True, setting="history.url")
    yield opened
    await opened.close()


@pytest.fixture
def encryption() -> Encryption:
    return Encryption([Secret(new_key().encode())])


@pytest.fixture
def repository(database: Database, encryption: Encryption) -> WebhookRepository:
    return WebhookRepository(database, encryption)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def store(database: Database, clock: Clock) -> HistoryStore:
    """The history store in the test's database. Tests of webhooks have a store of their own."""
    made = HistoryStore(database, SETTINGS, clock)
    await made.prepare()
    return made
