"""A paused webhook holds its events: the page says how many wait and until when, and resumes it."""

from playwright.async_api import Browser, expect
from pydantic import JsonValue

from dispatcher.console.pages.form import WebhookForm
from dispatcher.stores.sql.records import Role
from tests.console.pages.browsing import window
from tests.console.pages.sample_world import LUMA_STAGE
from tests.console.pages.stage import Stage


async def test_a_webhook_is_paused_and_resumed_on_its_page(browser: Browser, stage: Stage) -> None:
    async with window(browser, stage.base) as shown:
        page = shown.page
        await shown.sign_in(await stage.token())
        await shown.go(stage.path(LUMA_STAGE))
        await page.get_by_role("button", name="Pause").click()
        await expect(page.locator("main")).to_contain_text("events that arrive are held until it is resumed")
        await expect(page.locator(".facts .status")).to_have_text("Paused")
        stage.waiting.held[LUMA_STAGE] = 1234
        await shown.go(stage.path(LUMA_STAGE))
        await expect(page.locator("main")).to_contain_text("Paused: 1,234 events wait until it is resumed.")
        await expect(page.locator("main")).to_contain_text("The oldest expires on ")
        await expect(page.locator("main")).to_contain_text("not sent within 24h is dead")
        assert await shown.violations() == []
        await shown.go("/?state=paused")
        assert await page.locator("tbody .row-link").all_inner_texts() == ["Luma staging"]
        await shown.go(stage.path(LUMA_STAGE, "/edit"))  # an edit must not resume it
        await page.fill("#f-name", "Luma staging")
        await page.get_by_role("button", name="Save").last.click()
        await expect(page.locator(".facts .status")).to_have_text("Paused")
        await page.get_by_role("button", name="Resume").click()
        await expect(page.locator("main")).to_contain_text("Resumed: held events are sent")
        await expect(page.get_by_role("button", name="Pause")).to_be_visible()
        del stage.waiting.held[LUMA_STAGE]
        await shown.go(stage.path(LUMA_STAGE, "/audit"))
        text = await page.inner_text(".history")
        assert text.index("resumed") < text.index("paused")


async def test_viewers_see_the_state_but_no_button(browser: Browser, stage: Stage) -> None:
    async with window(browser, stage.base) as shown:
        await shown.sign_in(await stage.token(Role.VIEWER))
        await shown.go(stage.path(LUMA_STAGE))
        assert await shown.page.get_by_role("button", name="Pause").count() == 0


def test_the_form_keeps_a_webhook_paused() -> None:
    document: dict[str, JsonValue] = {"name": "n", "org": "o", "sandbox": "prod", "url": "https://h.example"}
    assert WebhookForm.of_document(document | {"paused": True}).draft({})["paused"] is True


def test_the_form_keeps_contacts_and_splits_what_is_typed() -> None:
    document: dict[str, JsonValue] = {"name": "n", "org": "o", "sandbox": "prod", "url": "https://h.example"}
    emails: JsonValue = ["a@x.example", "b@x.example"]
    form = WebhookForm.of_document(document | {"notify": {"emails": emails}})
    assert form.draft({})["notify"] == {"emails": emails}
    form.texts["notify.emails"] = " a@x.example; b@x.example\n"
    assert form.draft({})["notify"] == {"emails": emails}
