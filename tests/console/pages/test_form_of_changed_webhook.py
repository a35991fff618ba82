"""Nothing that was typed is lost if the webhook is deleted, paused or restored while its form is open."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from playwright.async_api import Browser, expect

from dispatcher.stores.sql.records import StoredWebhook
from tests.console.pages.browsing import Window, window
from tests.console.pages.sample_world import LUMA, LUMA_STAGE
from tests.console.pages.stage import Stage, staged
from tests.console.pages.test_conflicts import first_editor_saves


@pytest.fixture
async def stage(tmp_path: Path) -> AsyncIterator[Stage]:
    async with staged(tmp_path) as running:
        yield running


async def typed(shown: Window, stage: Stage, name: str = "Typed meanwhile") -> StoredWebhook:
    """Opens the form of a webhook and changes its name."""
    shown.ignored = ("404", "409", "412", "422")
    await shown.sign_in(await stage.token())
    await shown.go(stage.path(LUMA, "/edit"))
    await shown.page.fill("#f-name", name)
    return stage.webhooks[LUMA]


async def save(shown: Window) -> None:
    await shown.page.get_by_role("button", name="Save").last.click()


async def test_a_webhook_that_was_deleted_meanwhile_is_restored_and_saved(browser: Browser, stage: Stage) -> None:
    webhooks = stage.services.webhooks
    async with window(browser, stage.base) as shown:
        page, main = shown.page, shown.page.locator("main")
        old = await typed(shown, stage)
        await webhooks.delete(old.id, expected_version=old.version, by="The first", orgs=None)
        await save(shown)
        await expect(main).to_contain_text("This webhook was deleted by The first meanwhile.")
        await expect(page.locator("#f-name")).to_have_value("Typed meanwhile")
        assert await shown.violations() == []
        await save(shown)  # nothing can be saved yet
        await expect(main).to_contain_text("This webhook was deleted by The first meanwhile.")
        await page.get_by_role("button", name="Restore the webhook").click()
        await expect(main).to_contain_text("The webhook is restored. What you typed isn't saved yet.")
        await expect(page.locator("#f-name")).to_have_value("Typed meanwhile")
        await save(shown)
        await expect(main).to_contain_text("Your changes were saved.")
    saved = await webhooks.get(old.id, orgs=None)
    assert saved.name == "Typed meanwhile"
    assert saved.document["headers"] == old.document["headers"]


async def test_a_webhook_that_was_changed_and_deleted_is_restored_with_the_comparison(
    browser: Browser, stage: Stage
) -> None:
    webhooks = stage.services.webhooks
    async with window(browser, stage.base) as shown:
        page, main = shown.page, shown.page.locator("main")
        old = await typed(shown, stage)
        changed = await first_editor_saves(stage, old, rate_limit="7/s")
        await webhooks.delete(old.id, expected_version=changed.version, by="The first", orgs=None)
        await save(shown)
        await page.get_by_role("button", name="Restore the webhook").click()
        await save(shown)
        rows = main.locator("section", has_text="Saved meanwhile, field by field").locator("tbody tr")
        await expect(rows).to_have_count(1)
        await expect(rows).to_contain_text("Rate limit")


@pytest.mark.parametrize("is_replaced", [False, True])
async def test_a_webhook_that_can_not_be_restored_leaves_the_form(
    browser: Browser, stage: Stage, is_replaced: bool
) -> None:
    webhooks = stage.services.webhooks
    async with window(browser, stage.base) as shown:
        page, main = shown.page, shown.page.locator("main")
        old = await typed(shown, stage)
        await webhooks.delete(old.id, expected_version=old.version, by="The first", orgs=None)
        if is_replaced:
            config = await webhooks.resolve(dict(stage.webhooks[LUMA_STAGE].document) | {"sandbox": "prod"},
                                            webhook_id=None, orgs=None)  # fmt: skip
            await webhooks.create(config, by="The first", orgs=None)
            await save(shown)
            await page.get_by_role("button", name="Restore the webhook").click()
            await expect(main).to_contain_text("has its webhook already")
            await expect(page.locator("#f-name")).to_have_value("Typed meanwhile")
        else:
            await webhooks.erase(old.id, by="The first", orgs=None)
            await save(shown)
            await expect(main).to_contain_text("It was deleted for good, or you can't see it any more.")
            await expect(page.locator("#f-name")).to_have_value("Typed meanwhile")
            await page.locator("label.method", has_text="No authentication").click()
            while await page.get_by_role("button", name="Remove", exact=False).count():
                await page.get_by_role("button", name="Remove", exact=False).first.click()
            await page.get_by_role("button", name="Submit").last.click()
            await expect(main).to_contain_text("created")


@pytest.mark.parametrize("paused", [True, False])
async def test_a_pause_or_resumption_meanwhile_stops_no_saving(browser: Browser, stage: Stage, paused: bool) -> None:
    """The form has no field for it, and keeps it."""
    webhooks = stage.services.webhooks
    async with window(browser, stage.base) as shown:
        await webhooks.set_paused(stage.webhooks[LUMA].id, paused=not paused, by="The first", orgs=None)
        old = await typed(shown, stage)
        await webhooks.set_paused(old.id, paused=paused, by="The first", orgs=None)
        await webhooks.reactivate(old.id, by="The first", orgs=None)
        await save(shown)
        await expect(shown.page.locator("main")).to_contain_text("Your changes were saved.")
    saved = await webhooks.get(old.id, orgs=None)
    assert (saved.name, saved.paused) == ("Typed meanwhile", paused)
