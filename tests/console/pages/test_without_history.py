"""Pages while the history store doesn't answer."""

import asyncio
import re
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import aiohttp
import pytest

from dispatcher.config.secrets import Secret
from dispatcher.config.settings import HistorySettings
from dispatcher.console.pages import webhook_list
from dispatcher.console.sources.attempts import AttemptMemory
from dispatcher.console.sources.history import HistoryLookup
from dispatcher.console.webhook_state import list_reports, list_states, state_of
from dispatcher.stores.sql.database import Database
from dispatcher.stores.sql.history_search import HistorySearch
from dispatcher.stores.sql.history_states import TenantStates
from dispatcher.stores.sql.history_store import HistoryStore
from dispatcher.stores.sql.records import ListedWebhook
from tests.console.api.fakes import attempt_of
from tests.console.history_store import KEY
from tests.console.pages.sample_world import LUMA, TAILSPIN
from tests.console.pages.stage import Stage, staged


@pytest.fixture(scope="module")
async def stage(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stage]:
    """A console whose history store is a file that is missing."""
    directory: Path = tmp_path_factory.mktemp("away")
    database = Database(Secret(f"sqlite+aiosqlite:///{directory / 'missing.db'}".encode()), setting="history.url")
    lookup = HistoryLookup(
        HistorySearch(database), HistoryStore(database, HistorySettings()), Secret(KEY), TenantStates(database)
    )
    async with staged(directory, history=lookup) as running:
        yield running
    await database.close()


async def test_the_history_store_is_named_and_no_change_is_mentioned(stage: Stage) -> None:
    async with aiohttp.ClientSession(stage.base, cookie_jar=aiohttp.CookieJar(unsafe=True)) as session:
        async with session.post("/sign-in", data={"token": await stage.token()}) as answer:
            found = re.search(r'name="csrf_token" value="([^"]+)"', await answer.text())
            assert found is not None

        async def shown(method: str, path: str) -> str:
            async with session.request(method, path, data={"q": "12345", "csrf_token": found[1]}) as answer:
                assert answer.status == 503
                return await answer.text()

        for method, path in (
            ("GET", "/deliveries"),
            ("GET", "/search?q=r-1"),
            ("POST", "/search"),
            ("GET", stage.path(LUMA, "/deliveries")),
            ("GET", stage.path(LUMA, "/deliveries/msg_1")),
        ):
            text = await shown(method, path)
            assert "The history store does not answer right now. Try again." in text, path
            assert "database" not in text
            assert "the change" not in text


async def test_a_webhook_without_events_stays_unknown(stage: Stage) -> None:
    webhook = stage.webhooks[TAILSPIN]
    state = await state_of(stage.services, webhook)
    assert (state.state, state.shown[0]) == ("unknown", "Unknown")
    assert state.reasons[0].startswith("Its state is unknown: the history store does not answer right now.")


async def test_only_some_lanes_are_queried_while_the_store_is_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With 10,000 webhooks, one page would query every dispatcher 10,000 times."""
    monkeypatch.setattr(webhook_list, "MAX_TENANTS", 3)
    database = Database(Secret(f"sqlite+aiosqlite:///{tmp_path / 'missing.db'}".encode()), setting="history.url")
    lookup = HistoryLookup(
        HistorySearch(database), HistoryStore(database, HistorySettings()), Secret(KEY), TenantStates(database)
    )
    for history in (None, lookup):
        directory = tmp_path / str(history is None)
        directory.mkdir()
        async with (
            staged(directory, history=history) as stage,
            aiohttp.ClientSession(stage.base, cookie_jar=aiohttp.CookieJar(unsafe=True)) as session,
        ):
            await session.post("/sign-in", data={"token": await stage.token()})
            for query, number in (("sort=state", 3), ("sort=dead", 7), ("sort=last", 7)):
                async with session.get(f"/?{query}") as answer:
                    page = await answer.text()
                assert answer.status == 200
                assert page.count('class="row-link"') == number, query
                assert ("only the first 200 are sorted" in page) == (number == 3), query
    await database.close()


async def test_the_list_and_the_page_agree(stage: Stage) -> None:
    webhooks = list(stage.webhooks.values())
    listed = [ListedWebhook(one.id, one.tenant, one.name, one.enabled, one.paused, one.updated_at) for one in webhooks]
    reports = await list_reports(stage.services, listed)
    by_list = {one.webhook.tenant: one.state for one in await list_states(stage.services, listed, reports)}
    by_page = await asyncio.gather(*(state_of(stage.services, one) for one in webhooks))
    assert by_list == {one.tenant: state.state for one, state in zip(webhooks, by_page, strict=True)}


async def test_a_webhook_that_was_edited_is_not_failing_by_older_attempts(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor is its new address named: it was never tried."""
    webhook, memory = stage.webhooks[TAILSPIN], AttemptMemory()
    monkeypatch.setattr(stage.attempts, "failing", memory.failing)
    edited_at = webhook.updated_at.timestamp()
    refused = replace(attempt_of(TAILSPIN), reason="connect_refused", status=None, at=edited_at - 1)
    for at, expected in ((edited_at - 1, "unknown"), (edited_at + 1, "failing")):
        for _ in range(5):
            memory.add(replace(refused, at=at))
        state = await state_of(stage.services, webhook)
        listed = ListedWebhook(webhook.id, TAILSPIN, "", enabled=True, paused=False, updated_at=webhook.updated_at)
        (by_list,) = await list_states(stage.services, [listed], await list_reports(stage.services, [listed]))
        assert (state.state, by_list.state, by_list.is_failing) == (expected, expected, expected == "failing")
        assert (state.failing is not None) == (expected == "failing")
        assert ("Nothing listens on port" in " ".join(state.reasons)) == (expected == "failing")
