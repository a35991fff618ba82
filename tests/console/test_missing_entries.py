"""Pages and API say that the history is incomplete, in each form of deployment, and reveal nothing of the operator's."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from dispatcher.config.secrets import Secret
from dispatcher.config.settings import HistorySettings, Settings
from dispatcher.console.assembly import missing_entries
from dispatcher.errors import NotWritten, RecordTooLarge
from dispatcher.history.worker import HistoryWorker
from dispatcher.stores.sql.database import Database
from dispatcher.stores.sql.history_states import TenantStates
from dispatcher.stores.sql.history_store import HistoryStore

NOT_WRITTEN = "the history is not being written right now: the newest entries are missing"


class Clock:
    now = 1_790_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[HistoryStore]:
    database = Database(Secret(f"sqlite+aiosqlite:///{tmp_path / 'history.db'}".encode()), create=True)
    store = HistoryStore(database, HistorySettings())
    await store.prepare()
    yield store
    await database.close()


async def test_a_history_that_stands_still_says_so_without_a_worker_in_this_process(store: HistoryStore) -> None:
    clock = Clock()
    workers = [TenantStates(store._database, clock) for _ in range(2)]
    console = TenantStates(store._database, clock)
    assert await missing_entries(console, None, clock) == NOT_WRITTEN
    for worker in workers:
        await worker.sign_of_life(0, is_current=True)
    assert await missing_entries(console, None, clock) is None
    for _ in range(30):
        clock.now += 10
        await workers[0].sign_of_life(0, is_current=True)
        await workers[1].sign_of_life(500, is_current=False)
    assert await missing_entries(console, None, clock) == (
        "the history lags behind: entries of the last 5 min may be missing"
    )
    await workers[1].sign_off()
    assert await missing_entries(console, None, clock) is None
    clock.now += 61
    assert await missing_entries(console, None, clock) == NOT_WRITTEN, "killed"
    await TenantStates(store._database, clock).sign_of_life(500, is_current=False)
    assert await missing_entries(console, None, clock) == "the history lags behind: entries may be missing"


async def test_tenants_learn_nothing_of_the_operators_services(store: HistoryStore) -> None:
    kafka = {"bootstrap_servers": "kafka.internal:9092"}
    settings = Settings.model_validate({"apiVersion": "dispatcher/v1", "kafka": kafka, "webhooks": {"path": "/x"}})
    states = TenantStates(store._database)
    await states.sign_of_life(0, is_current=True)
    worker = HistoryWorker(settings, store)
    worker._is_prepared = True
    for problem in ("Kafka at kafka.internal:9092: no answer", "SQLite at /var/lib/h.db: locked"):
        worker.reader.problem = problem
        assert await missing_entries(states, worker) == NOT_WRITTEN
    worker.reader.problem = None
    assert await missing_entries(states, worker) is None
    await store._database.close()
    away = Database(Secret(b"postgresql+asyncpg://someone@127.0.0.1:1/history"), setting="history.url")
    assert await missing_entries(TenantStates(away), worker) == "the history store does not answer right now"
    await away.close()


def test_errors_of_kafka_name_no_topic_to_tenants() -> None:
    for kind in (NotWritten, RecordTooLarge):
        assert "retry" not in kind("feedback.retry.5m: MessageSizeTooLargeError").for_tenants
