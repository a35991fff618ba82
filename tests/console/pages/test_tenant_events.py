"""The timeline of an event whose tenant has no webhook, or none any more."""

import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from playwright.async_api import Browser, expect

from dispatcher.contract.history import HistoryOutcome
from dispatcher.contract.tenant import TenantKey
from dispatcher.stores.sql.records import Role
from tests.console.history_store import entry_of, history_in
from tests.console.pages.browsing import PHONE, window
from tests.console.pages.sample_world import LUMA
from tests.console.pages.stage import Stage, add_webhook, staged
from tests.console.pages.test_history_pages import search

GONE = TenantKey("F0C4@AdobeOrg", "gone")
"""Its webhook is deleted."""
NEVER = TenantKey("newcomer@AdobeOrg", "emea & co")
"""It never had one."""


@pytest.fixture(scope="module")
async def stage(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stage]:
    directory: Path = tmp_path_factory.mktemp("tenant-events")
    async with history_in(directory) as history, staged(directory, history=history.lookup) as running:
        webhook = await add_webhook(running, GONE.sandbox)
        await running.services.webhooks.delete(webhook.id, expected_version=1, by="Jana Novák", orgs=None)
        await history.add(
            entry_of(
                GONE, age_s=60, outcome=HistoryOutcome.ATTEMPT, reason="http_5xx", status=503, verdict="retry_soon",
                duration_ms=5000.0,
            ),
            entry_of(GONE, age_s=59, outcome=HistoryOutcome.PARKED, reason="attempt_failed", due_at=1, status=None),
            entry_of(GONE, "2", outcome=HistoryOutcome.ATTEMPT, reason="http_4xx", status=400, verdict="dead"),
            entry_of(GONE, "counted", outcome=HistoryOutcome.SKIPPED, reason="no_webhook", count=7, webhook_id=None),
            entry_of(NEVER, "3", outcome=HistoryOutcome.SKIPPED, reason="no_webhook", duration_ms=None),
            entry_of(LUMA, "3"),
            *(entry_of(tenant, "old", age_s=3 * 86_400, outcome=HistoryOutcome.PARKED, reason="attempt_failed",
                       due_at=int(time.time() - 2.9 * 86_400) * 1000, status=None) for tenant in (LUMA, GONE)),
        )  # fmt: skip
        yield running


@pytest.mark.parametrize("size", [None, PHONE])
async def test_a_deleted_webhooks_event_is_found_and_says_so(
    browser: Browser, stage: Stage, size: dict[str, int] | None
) -> None:
    async with window(browser, stage.base, size=size) as shown:
        main = shown.page.locator("main")
        await shown.sign_in(await stage.token(Role.VIEWER, frozenset({GONE.org})))
        await search(shown, "r-1")
        await shown.page.get_by_role("link", name="msg_1").first.click()
        for text in ("Attempt 1: answered 503", "Parked until", "Its webhook was deleted.", "Fourth Coffee gone",
                     "by Jana Novák", "Unless there is a webhook by then, it is skipped"):  # fmt: skip
            await expect(main).to_contain_text(text)
        times = await main.locator(".timeline time").evaluate_all("all => all.map(one => Date.parse(one.dateTime))")
        assert times[1] - times[0] == 5000  # the first attempt took 5 s: it was read before that
        assert await shown.violations() == []
        await search(shown, "r-2")
        await shown.page.get_by_role("link", name="msg_2").click()
        await expect(main).to_contain_text("it is among the dead events")
        await search(shown, "r-counted")  # no event of its own
        await expect(shown.page.get_by_role("table").locator("[data-label=Event] a")).to_have_count(0)


async def test_an_event_of_a_tenant_that_never_had_a_webhook_says_what_to_do(browser: Browser, stage: Stage) -> None:
    async with window(browser, stage.base) as shown:
        main = shown.page.locator("main")
        await shown.sign_in(await stage.token())
        await search(shown, "r-3")
        rows = shown.page.get_by_role("table").locator("tbody tr")
        await rows.filter(has_text=NEVER.org).get_by_role("link", name="msg_3").click()
        await expect(main).to_contain_text("Skipped: ")
        await expect(main).to_contain_text("no later than")
        await expect(main).to_contain_text(f"{NEVER.org} / {NEVER.sandbox} has no webhook.")
        assert await main.locator(".timeline > li").count() == 2  # the event of the other tenant has the same id
        assert await shown.violations() == []
        await main.get_by_role("link", name="Create its webhook").click()
        await expect(shown.page.locator("#f-sandbox")).to_have_value(NEVER.sandbox)


@pytest.mark.parametrize("tenant", [LUMA, GONE])
async def test_an_event_whose_end_is_no_longer_kept_is_not_said_to_wait(
    browser: Browser, stage: Stage, tenant: TenantKey
) -> None:
    """Entries of versions that kept the delivery after a retry for a day, and the retry for 30."""
    async with window(browser, stage.base) as shown:
        main = shown.page.locator("main")
        await shown.sign_in(await stage.token())
        await shown.go(f"/events/msg_old?org={tenant.org}&sandbox={tenant.sandbox}")
        await expect(main.locator(".heading")).to_contain_text("End no longer known")
        await expect(main.locator(".timeline > li").last).to_contain_text("What happened then is no longer kept")
        await expect(main).to_contain_text("How it ended is no longer kept: deliveries are kept for 24h")
        await expect(main).not_to_contain_text("It is tried again")
        await expect(main).not_to_contain_text("it is skipped once it is due")
        assert await shown.violations() == []


async def test_only_people_of_the_organisation_see_such_an_event(browser: Browser, stage: Stage) -> None:
    never = f"/events/msg_3?org={NEVER.org}&sandbox=emea+%26+co"
    for orgs, path, status in (
        (frozenset({LUMA.org}), never, 404),
        (frozenset({NEVER.org}), never, 200),
        (frozenset({NEVER.org}), f"/events/msg_1?org={GONE.org}&sandbox={GONE.sandbox}", 404),
        (frozenset({NEVER.org}), "/events/msg_3", 404),
        (None, "/events/msg_3?org=a%00b&sandbox=x", 404),
    ):
        async with window(browser, stage.base) as shown:
            shown.ignored = ("404",)
            await shown.sign_in(await stage.token(Role.ADMIN, orgs))
            assert await shown.go(path) == status
            assert status == 200 or "Fourth Coffee" not in await shown.page.content()


async def test_the_address_leads_to_the_webhook_once_there_is_one(browser: Browser, stage: Stage) -> None:
    async with window(browser, stage.base) as shown:
        await shown.sign_in(await stage.token())
        assert await shown.go(f"/events/msg_3?org={LUMA.org}&sandbox={LUMA.sandbox}") == 200
        assert shown.page.url.endswith(stage.path(LUMA, "/deliveries/msg_3"))
