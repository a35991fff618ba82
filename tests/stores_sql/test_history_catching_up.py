"""What a worker stores late: classes of entries are kept for different times, so that old ones show one side only."""

import pytest

from dispatcher.config.settings import HistorySettings
from dispatcher.contract.fleet_state import FleetState
from dispatcher.contract.history import HistoryEntry, HistoryOutcome
from dispatcher.contract.tenant import TenantKey
from dispatcher.stores.sql.database import Database
from dispatcher.stores.sql.history_search import HistoryQuery, HistorySearch
from dispatcher.stores.sql.history_states import TenantStates, WebhookInUse
from dispatcher.stores.sql.history_store import HistoryStore, Written
from tests.stores_sql.history_examples import DAY_S, NOW, SETTINGS, Clock, rows_of_entries

HOUR_S = 3600
TENANT = TenantKey("A", "b")


@pytest.fixture
async def database(history_database: Database, clock: Clock) -> Database:
    await HistoryStore(history_database, SETTINGS, clock).prepare()
    return history_database


def entries_of(outcome: HistoryOutcome, count: int, age_s: float) -> list[HistoryEntry]:
    """One a minute, the oldest of this age."""
    reason = {HistoryOutcome.DELIVERED: "http_2xx", HistoryOutcome.ATTEMPT: "http_5xx"}.get(outcome, "expired")
    return [
        HistoryEntry(int((NOW - age_s + 60 * number) * 1000), outcome, *TENANT, reason, webhook_id="m")
        for number in range(count)
    ]


async def state_of(database: Database, clock: Clock) -> FleetState:
    states = TenantStates(database, clock)
    assert await states.sign_of_life(0, is_current=True)
    await states.judge({TENANT: WebhookInUse("1", is_paused=False, changed_at=NOW)})
    return (await states.of(TENANT)).state


async def counts(database: Database) -> dict[str, int]:
    found = await HistorySearch(database).counts(TENANT, NOW - 60 * DAY_S, NOW + DAY_S)
    return {one.outcome.value: one.events for one in found}


async def test_a_webhook_whose_deliveries_are_too_old_to_store_is_not_failing(database: Database, clock: Clock) -> None:
    store = HistoryStore(database, SETTINGS, clock)
    old = [
        *entries_of(HistoryOutcome.DELIVERED, 190, 30 * HOUR_S),
        *entries_of(HistoryOutcome.ATTEMPT, 10, 30 * HOUR_S),
        *entries_of(HistoryOutcome.DEAD, 3, 30 * HOUR_S),
    ]
    assert await store.write(rows_of_entries(*old)) == Written(13, 190, 0)
    assert await state_of(database, clock) is FleetState.UNKNOWN
    assert await counts(database) == {}, "of these hours, the delivered events would be missing"
    page = await HistorySearch(database).search(HistoryQuery(any_id="m"), orgs=None)
    assert page.items, "they are found all the same"

    recent = [*entries_of(HistoryOutcome.DELIVERED, 40, HOUR_S), *entries_of(HistoryOutcome.ATTEMPT, 5, HOUR_S)]
    skipped = entries_of(HistoryOutcome.SKIPPED, 2, 2 * HOUR_S)
    assert await store.write(rows_of_entries(*recent, *skipped, writer=2)) == Written(47, 0, 0)
    assert await state_of(database, clock) is FleetState.ACTIVE
    assert await counts(database) == {"delivered": 40, "attempt": 5, "skipped": 2}


async def test_a_webhook_whose_failures_are_too_old_to_store_is_not_healthy(database: Database, clock: Clock) -> None:
    """With failed entries kept for a shorter time than delivered ones; how long skipped ones are kept doesn't matter."""
    settings = HistorySettings.model_validate({"keep": {"failed": "1h", "delivered": "24h", "skipped": "30d"}})
    store = HistoryStore(database, settings, clock)
    old = [
        *entries_of(HistoryOutcome.DELIVERED, 1, 3 * HOUR_S),
        *entries_of(HistoryOutcome.ATTEMPT, 60, 3 * HOUR_S),
        *entries_of(HistoryOutcome.SKIPPED, 2, 30 * HOUR_S),
    ]
    assert await store.write(rows_of_entries(*old)) == Written(3, 60, 0)
    assert await state_of(database, clock) is FleetState.UNKNOWN
    assert await counts(database) == {"skipped": 2}


async def test_the_ends_of_older_events_are_stored_and_not_counted(database: Database, clock: Clock) -> None:
    """Ends that are kept as long as failures are stored for longer than the ends of other events of these hours."""
    keep = {"failed": "30d", "delivered": "24h", "skipped": "7d"}
    store = HistoryStore(database, HistorySettings.model_validate({"keep": keep}), clock)
    made = []
    for outcome, ages in ((HistoryOutcome.DELIVERED, (1, 30)), (HistoryOutcome.SKIPPED, (2, 40, 200))):
        for age in ages:
            made += entries_of(outcome, 1, age * HOUR_S)
            made[-1].has_earlier = True
    assert await store.write(rows_of_entries(*made)) == Written(5, 0, 0)
    assert await counts(database) == {"delivered": 1, "skipped": 2}
