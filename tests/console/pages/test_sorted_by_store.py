"""The list of webhooks, sorted by counts of the history store: the database pages it, however many there are."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from playwright.async_api import Browser, expect

from dispatcher.contract.history import HistoryOutcome
from dispatcher.contract.tenant import TenantKey
from dispatcher.errors import StoreUnavailable
from dispatcher.stores.sql.history_seen import HistorySeen
from dispatcher.stores.sql.records import Role
from dispatcher.stores.sql.repository import WebhookRepository
from tests.console.history_store import entry_of, history_in
from tests.console.pages.browsing import Window, window
from tests.console.pages.stage import Stage, add_webhook, staged

ORG = "F0C4@AdobeOrg"
NUMBER = 60


@pytest.fixture(scope="module")
async def stage(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stage]:
    """A console with webhooks of which the later ones by name delivered more."""
    directory: Path = tmp_path_factory.mktemp("sorted")
    async with (
        history_in(directory, keep={"delivered": "7d"}) as history,
        staged(directory, is_empty=True, history=history.lookup) as running,
    ):
        for number in range(NUMBER):
            await add_webhook(running, f"s{number:02}")
        await history.add(
            *(entry_of(TenantKey(ORG, f"s{n:02}"), f"{n}-{m}") for n in (57, 58, 59) for m in range(n - 56)),
            *(entry_of(TenantKey(ORG, "s00"), f"old-{m}", age_s=90_000) for m in range(9)),
            *(entry_of(TenantKey(ORG, "s01"), f"s-{m}", outcome=HistoryOutcome.SKIPPED) for m in range(9)),
            *(entry_of(TenantKey("elsewhere@AdobeOrg", "prod"), f"{m}") for m in range(9)),
        )
        yield running


async def listed(shown: Window) -> list[str]:
    names = await shown.page.locator("tbody .row-link").all_inner_texts()
    return [name.removeprefix("Fourth Coffee s") for name in names]


async def test_the_database_sorts_and_pages_by_delivered_events(
    browser: Browser, stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refuse(*_: object, **__: object) -> None:
        raise AssertionError("all webhooks were read")

    monkeypatch.setattr(WebhookRepository, "list_all", refuse)
    async with window(browser, stage.base) as shown:
        await shown.sign_in(await stage.token(Role.VIEWER, frozenset({ORG})))
        await shown.go("/?sort=delivered")
        assert (await listed(shown))[:5] == ["59", "58", "57", "00", "01"]
        cells = shown.page.locator("tbody [data-label=Delivered]")
        await expect(shown.page.locator(".pager")).to_contain_text("an event that was sent again counts each time")
        assert (await cells.all_inner_texts())[:4] == ["3", "2", "1", "0"]
        await expect(shown.page.locator(".pager")).to_contain_text("Page 1 of 3")
        await shown.go("/?sort=delivered&order=up&page=3")
        assert (await listed(shown))[-3:] == ["57", "58", "59"]
        await shown.go("/?sort=delivered&q=s5")
        assert (await listed(shown))[:4] == ["59", "58", "57", "50"]
        await shown.go("/?sort=delivered&state=off")
        assert await listed(shown) == []


async def test_the_list_is_sorted_by_what_is_known_while_the_store_is_away(
    browser: Browser, stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fails(*_: object, **__: object) -> None:
        raise StoreUnavailable("no answer within 8 s")

    monkeypatch.setattr(HistorySeen, "delivered", fails)
    async with window(browser, stage.base) as shown:
        await shown.sign_in(await stage.token())
        assert await shown.go("/?sort=delivered") == 200
        assert len(await listed(shown)) == 25
