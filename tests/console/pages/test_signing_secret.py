"""The configuration page generates a signing secret, shown once, and has code that verifies requests."""

from playwright.async_api import Browser, expect

from tests.console.pages.browsing import window
from tests.console.pages.sample_world import EXPLAINED_ID, LUMA, LUMA_STAGE
from tests.console.pages.stage import Stage


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
