"""How far a history worker has come: by what it stored lately, and never by an entry from the future."""

import pytest

from dispatcher.config.settings import HistorySettings, Settings
from dispatcher.contract.history import HistoryEntry, HistoryOutcome, HistoryRecord
from dispatcher.history.states import StateJudge
from dispatcher.history.worker import HistoryWorker
from dispatcher.stores.sql.database import Database
from dispatcher.stores.sql.history_states import TenantStates
from dispatcher.stores.sql.history_store import HistoryStore
from dispatcher.telemetry import metrics
from tests.stores_sql.history_examples import NOW, Clock
from tests.stores_sql.test_history_states import database

__all__ = ["database"]

DAY_S = 86_400.0
SETTINGS = Settings.model_validate(
    {"apiVersion": "dispatcher/v1", "kafka": {"bootstrap_servers": "k:9092"}, "webhooks": {"path": "/x"}}
)


@pytest.fixture
async def worker(database: Database, clock: Clock) -> HistoryWorker:
    return HistoryWorker(SETTINGS, HistoryStore(database, HistorySettings.model_validate({}), clock), clock=clock)


async def stored(worker: HistoryWorker, *ages_s: float) -> float:
    """Stores an entry of each age in one batch. Returns the age of what the worker has come to."""
    entries = [HistoryEntry(int((NOW - age) * 1000), HistoryOutcome.DEAD, "A", "b") for age in ages_s]
    await worker._write([HistoryRecord(1, 1, 0, entries)], {})
    return NOW - worker.newest


async def test_an_entry_from_the_future_says_nothing_of_progress(worker: HistoryWorker) -> None:
    """Neither one that is refused, nor one that is stored. Clocks may differ by seconds."""
    assert await stored(worker, 7200, 3600, -30 * DAY_S) == 3600
    assert await stored(worker, 3000, -DAY_S / 2) == 3000
    assert await stored(worker, -DAY_S / 2) == 3000
    assert await stored(worker, 2400, -120) == 2400
    assert await stored(worker, 1800, -5) == 0
    assert metrics.HISTORY_NEWEST._value.get() == NOW


async def test_progress_is_that_of_the_latest_entries_that_were_read(worker: HistoryWorker) -> None:
    """A worker that restarts, or takes over a partition, has come as far as its latest entries."""
    assert await stored(worker, 1) == 1
    assert await stored(worker, 7200, 7300) == 7200
    assert await stored(worker, 40 * DAY_S) == 40 * DAY_S, "too old to be stored, and read nevertheless"


async def test_a_worker_behind_is_current_by_recent_entries_only(
    worker: HistoryWorker, database: Database, clock: Clock
) -> None:
    for ages_s, is_current in (((7200, -30 * DAY_S), False), ((7200, -DAY_S / 2), False), ((5,), True)):
        states = TenantStates(database, clock)
        await stored(worker, *ages_s)
        await StateJudge(states, clock=clock).judge_once(10_000, worker.newest)
        assert (await states.all(orgs=None)).popitem()[1].is_current is is_current, ages_s
        await states.sign_off()
    states = TenantStates(database, clock)
    await StateJudge(states, clock=clock).judge_once(10_000, NOW + 5)
    assert not (await states.all(orgs=None)).popitem()[1].is_current, "the clock was set back"
