"""Signing secrets, deletion and its undo, and the form over the end of a session, in a browser."""

import asyncio

import pytest
from playwright.async_api import Browser, expect

from dispatcher.config.secrets import Secret
from dispatcher.console.signing_secrets import signing_in
from tests.console.pages.browsing import PHONE, window
from tests.console.pages.sample_world import EXPLAINED_ID, LUMA, LUMA_STAGE
from tests.console.pages.stage import Stage, add_rotated_webhook, add_webhook


async def test_a_generated_secret_is_shown_once(browser: Browser, stage: Stage) -> None:
    async with window(browser, stage.base) as shown:
        page = shown.page
        await shown.sign_in(await stage.token())
        await shown.go(stage.path(LUMA_STAGE, "/configuration"))
        await page.get_by_role("button", name="Generate a signing secret").click()
        secret = await page.locator("#made-secret").inner_text()
        assert secret.startswith("whsec_")
        assert await shown.violations() == []
        await shown.go(stage.path(LUMA_STAGE, "/configuration"))
        assert secret not in await page.content()
        await expect(page.locator("main")).to_contain_text("Signing secret")
        await page.get_by_role("button", name="Generate an Ed25519 key").click()
        await expect(page.locator("#made-public")).to_contain_text("whpk_")
        config = await stage.services.webhooks.for_delivery(stage.webhooks[LUMA_STAGE].id, orgs=None)
        assert config.signing is not None
        assert [one.reveal()[:5] for one in config.signing.secrets] == [b"whsk_", b"whsec"]
        await expect(page.locator("#made-title + p")).to_contain_text("with the older secrets until")


@pytest.mark.parametrize("button", ["Generate a signing secret", "Generate an Ed25519 key"])
async def test_loading_a_new_secret_s_page_again_generates_no_other(
    browser: Browser, stage: Stage, button: str
) -> None:
    webhook = await add_webhook(stage, f"reloaded {button}")
    async with window(browser, stage.base) as shown:
        page, main = shown.page, shown.page.locator("main")
        shown.ignored = ("412",)
        await shown.sign_in(await stage.token())
        await shown.go(f"/webhooks/{webhook.id}/configuration")
        await page.get_by_role("button", name=button).click()
        secret = await page.locator("#made-secret").inner_text()
        for _ in range(2):
            await page.reload()
            await expect(main).to_contain_text("No other secret was generated")
        stored = await stage.services.webhooks.get(webhook.id, orgs=None)
        assert signing_in(stored.document) == ([Secret(secret.encode()).fingerprint()], {})
        await page.get_by_role("button", name=button).click()
        await expect(page.locator("#made-secret")).to_be_visible()


async def test_a_webhook_that_signs_with_ed25519_only_gets_no_code_for_hmac(browser: Browser, stage: Stage) -> None:
    webhook = await add_webhook(stage, "ed25519")
    async with window(browser, stage.base) as shown:
        page, verify = shown.page, shown.page.locator("section:has(#verify-title)")
        await shown.sign_in(await stage.token())
        await shown.go(f"/webhooks/{webhook.id}/configuration")
        await page.get_by_role("button", name="Generate an Ed25519 key").click()
        public = await page.locator("#made-public").inner_text()
        await expect(verify).to_contain_text(public)
        await expect(verify).not_to_contain_text("WEBHOOK_SECRET")
        assert await shown.violations() == []
        await page.get_by_role("button", name="Generate a signing secret").click()
        await expect(verify).to_contain_text("WEBHOOK_SECRET")


async def test_the_audit_links_to_no_deleted_webhook(browser: Browser, stage: Stage) -> None:
    gone, kept = await add_webhook(stage, "audit-gone"), await add_webhook(stage, "audit-kept")
    await stage.services.webhooks.delete(gone.id, expected_version=1, by="test", orgs=None)
    async with window(browser, stage.base) as shown:
        await shown.sign_in(await stage.token())
        await shown.go("/audit")
        await expect(shown.page.locator("main")).to_contain_text("F0C4@AdobeOrg / audit-gone")
        await expect(shown.page.locator(f"a[href='/webhooks/{kept.id}']")).to_have_count(1)
        await expect(shown.page.locator(f"a[href='/webhooks/{gone.id}']")).to_have_count(0)


async def test_the_older_secrets_are_listed_with_their_end_and_can_end_at_once(browser: Browser, stage: Stage) -> None:
    webhook = await add_rotated_webhook(stage, "prod")
    async with window(browser, stage.base, size=PHONE) as shown:
        page, rows = shown.page, shown.page.locator("section:has(#signing-title) tbody tr")
        await shown.sign_in(await stage.token())
        await shown.go(f"/webhooks/{webhook.id}/configuration")
        assert [(" UTC" in text, "End in 24 h" in text) for text in await rows.all_inner_texts()] == [
            (True, False), (True, True), (True, False),
        ]  # fmt: skip
        await expect(rows.nth(0)).to_contain_text("newest: no end")
        await expect(rows.nth(1)).to_contain_text("no end")
        await rows.nth(2).get_by_role("button", name="now").click()
        await expect(page.locator("main")).to_contain_text("The secret was erased.")
        await rows.nth(1).get_by_role("button", name="End in 24 h").click()
        await expect(page.locator("main")).to_contain_text("The secret ends in 24 hours by itself.")
        assert await rows.count() == 2
        await expect(rows.nth(1)).not_to_contain_text("no end")
        assert await shown.violations() == []


async def test_a_deleted_webhook_is_restored_unless_a_new_one_exists(browser: Browser, stage: Stage) -> None:
    webhook = await add_webhook(stage, "restored")
    async with window(browser, stage.base) as shown:
        page, main = shown.page, shown.page.locator("main")
        shown.ignored = ("409",)
        await shown.sign_in(await stage.token())
        await shown.go(f"/webhooks/{webhook.id}/delete")
        await expect(main).to_contain_text("It can be restored for 30 days with its secrets")
        await page.get_by_role("button", name="Delete webhook").click()
        await expect(main).to_contain_text("The webhook was deleted. It can be restored for 30 days.")
        new = await add_webhook(stage, "restored")
        await page.get_by_role("button", name=f"Restore {webhook.name}").click()
        await expect(main).to_contain_text("This organisation and sandbox have a new webhook: delete that first")
        await stage.services.webhooks.delete(new.id, expected_version=1, by="test", orgs=None)
        await stage.services.webhooks.erase(new.id, by="test", orgs=None)
        await shown.go("/deleted-webhooks")
        await page.get_by_role("button", name=f"Restore {webhook.name}").click()
        await expect(main).to_contain_text("The webhook was restored.")
        await shown.go(f"/webhooks/{webhook.id}/delete")
        await page.get_by_role("button", name="Delete webhook").click()
        await page.get_by_role("link", name=f"Delete for good… {webhook.name}").click()
        await page.get_by_role("button", name="Delete for good").click()
        await expect(main).to_contain_text("The secrets were erased: that webhook can’t be restored any more.")
        assert webhook.name not in await main.inner_text()


async def test_typed_values_survive_the_end_of_the_session(browser: Browser, stage: Stage) -> None:
    """The preview notices first; after the sign-in the form opens by itself."""
    sessions = stage.server._sessions
    real = sessions._clock
    token = await stage.token()
    async with window(browser, stage.base) as shown:
        page = shown.page
        shown.ignored = ("401",)
        await shown.sign_in(token)
        await shown.go("/webhooks/new")
        sessions._clock = lambda: real() + 366 * 86_400
        try:
            await page.fill("#f-name", "Typed before the session ended")
            await expect(page.locator("body")).to_contain_text("Your session has ended.")
            assert await shown.violations() == []
            await page.fill("#token", token)
            await page.get_by_role("button", name="Sign in", exact=True).click()
            await expect(page.locator("#f-name")).to_have_value("Typed before the session ended")
            await expect(page.locator("main")).to_contain_text("Nothing was saved yet: what you entered is here.")
            page.once("dialog", lambda dialog: asyncio.ensure_future(dialog.accept()))
        finally:
            sessions._clock = real


async def test_the_code_to_verify_requests_is_copied_with_a_button(browser: Browser, stage: Stage) -> None:
    async with window(browser, stage.base) as shown:
        page = shown.page
        await shown.context.grant_permissions(["clipboard-read", "clipboard-write"])
        await shown.sign_in(await stage.token())
        await shown.go(stage.path(LUMA, "/configuration"))
        await page.get_by_role("button", name="Copy the Python code").click()
        await expect(page.get_by_role("button", name="Copied")).to_be_visible()
        copied = await page.evaluate("navigator.clipboard.readText()")
        assert copied == await page.locator("#verify-python").text_content()
        assert "def verify(" in copied
        for language in ("Node", "Go", "Java"):
            await page.get_by_text(language, exact=True).click()
            await expect(page.locator(f"#verify-{language.lower()}")).to_be_visible()
        assert await shown.violations() == []
        await shown.go(stage.path(LUMA, f"/deliveries/{EXPLAINED_ID}?explain=1"))
        await page.get_by_text("As curl", exact=True).click()
        await expect(page.locator("#event-curl")).to_contain_text("curl -X POST https://")
        assert await shown.violations() == []
