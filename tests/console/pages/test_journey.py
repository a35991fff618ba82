"""What an administrator comes for, from sign-in to sign-out, with a real endpoint behind it."""

import re
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from playwright.async_api import Browser, expect

from dispatcher.console.sources.test_sender import SampleSender
from dispatcher.demo.behaviours import Always
from dispatcher.demo.receiver import DemoEndpoint, Receiver
from tests.console.pages.browsing import Window, window
from tests.console.pages.sample_world import LUMA
from tests.console.pages.stage import Stage, settings_of, staged


@pytest.fixture
async def endpoint() -> AsyncIterator[Receiver]:
    """An HTTPS endpoint that takes everything at /good, and refuses everything at /bad."""
    with Receiver({"good": DemoEndpoint(Always()), "bad": DemoEndpoint(Always(403))}) as receiver:
        yield receiver


@pytest.fixture
async def stage(tmp_path: Path, endpoint: Receiver) -> AsyncIterator[Stage]:
    """A console that may send to the endpoint."""
    ca = tmp_path / "ca.pem"
    ca.write_bytes(endpoint.ca_pem)
    settings = settings_of(egress={"allow": ["127.0.0.0/8", "localhost"], "ca_bundle": str(ca)})
    async with staged(tmp_path, settings=settings, test_events=SampleSender(settings)) as running:
        yield running


async def _typed(shown: Window, **values: str) -> None:
    for name, value in values.items():
        await shown.page.fill(f"#f-{name}", value)


@pytest.mark.parametrize("script", [True, False], ids=["with JavaScript", "without"])
async def test_from_create_to_sign_out(browser: Browser, stage: Stage, endpoint: Receiver, script: bool) -> None:
    async with window(browser, stage.base, script=script) as shown:
        shown.ignored = ("422", "409")
        page = shown.page
        await shown.sign_in(await stage.token())
        await page.get_by_role("link", name="Create Feedback Webhook").first.click()

        # Mistakes: shown beside the fields and on top, and nothing that was typed is lost.
        await _typed(shown, name="Orders", org="acme@AdobeOrg", sandbox="prod", url="http//hooks.acme.example/x")
        await page.fill("#f-headers-0-name", "Host")
        await page.fill("#f-headers-0-value", "evil.example")
        await page.get_by_role("button", name="Submit").last.click()
        await expect(page.locator("#errors")).to_be_visible()
        await expect(page.locator("#f-url-error")).to_contain_text("https")
        await expect(page.locator("#f-url")).to_have_attribute("aria-invalid", "true")
        assert await page.input_value("#f-name") == "Orders"
        assert await page.input_value("#f-headers-0-name") == "Host"

        # Corrected, and with a test event before it is saved.
        await page.fill("#f-url", endpoint.url("bad"))
        await page.fill("#f-headers-0-name", "X-Environment")
        await page.get_by_role("button", name="Send test event").click()
        await expect(page.locator("#test-result")).to_contain_text("Not delivered")
        await expect(page.locator("#test-result")).to_contain_text("403")
        await page.fill("#f-url", endpoint.url("good"))
        await page.get_by_role("button", name="Submit").last.click()
        await expect(page.get_by_role("heading", name="Orders")).to_be_visible()

        # A second one of the same sandbox is refused, with the way to the first.
        await shown.go("/webhooks/new")
        await _typed(shown, name="Again", org="acme@AdobeOrg", sandbox="prod", url=endpoint.url("good"))
        await page.get_by_role("button", name="Submit").last.click()
        await expect(page.locator("#existing")).to_be_visible()
        if script:
            await expect(page.locator("#existing")).to_be_focused()
        await page.get_by_role("link", name="Open the existing webhook").click()
        await expect(page.get_by_role("heading", name="Orders")).to_be_visible()

        # Edited, tested.
        await page.get_by_role("link", name="Edit", exact=True).click()
        await page.fill("#f-name", "Order feedback")
        await page.get_by_role("button", name="Save").last.click()
        await expect(page.get_by_role("heading", name="Order feedback")).to_be_visible()
        await page.get_by_role("link", name="Send test event").click()
        await page.get_by_role("button", name="Send test event").click()
        result = page.locator("#test-result")
        await expect(result).to_contain_text("Delivered")
        await expect(result).to_contain_text("TLS")

        # Deliveries, the history, dead events sent again.
        await shown.go(stage.path(LUMA))
        await page.get_by_role("link", name="Deliveries").last.click()
        await page.locator("tbody a").first.click()
        await expect(page.locator("main")).to_contain_text("msg_")
        await shown.go("/dead-events")
        for number in (0, 1):
            await page.locator("input[name=id]").nth(number).check()
        await page.get_by_role("button", name="Send again…").click()
        await page.get_by_role("button", name=re.compile("Send 2 events again")).click()
        await expect(page.locator("#jobs")).to_be_visible()
        await shown.go("/audit")
        await expect(page.locator("main")).to_contain_text("Order feedback")

        # Out.
        await page.locator("details.account summary").click()
        await page.get_by_role("button", name="Sign out").click()
        await expect(page.locator("#token")).to_be_visible()
        await shown.go("/")
        assert "/sign-in" in page.url


async def test_created_by_keyboard_alone(browser: Browser, stage: Stage, endpoint: Receiver) -> None:
    async with window(browser, stage.base) as shown:
        page = shown.page
        await shown.sign_in(await stage.token())
        await shown.go("/webhooks/new")
        assert await page.evaluate("document.activeElement.id") == "f-name"
        for text in ("Keyboard", "keys@AdobeOrg"):
            await page.keyboard.type(text)
            await page.keyboard.press("Tab")
        await page.keyboard.press("ControlOrMeta+a")
        await page.keyboard.type("dev")
        for _ in range(3):  # the two channels
            await page.keyboard.press("Tab")
        assert await page.evaluate("document.activeElement.id") == "f-url"
        await page.keyboard.type(endpoint.url("good"))
        await page.keyboard.press("Enter")
        await expect(page.get_by_role("heading", name="Keyboard")).to_be_visible()


async def test_two_editors_do_not_overwrite_each_other(browser: Browser, stage: Stage) -> None:
    async with window(browser, stage.base) as one, window(browser, stage.base) as two:
        two.ignored = ("409", "412", "422")
        for shown in (one, two):
            await shown.sign_in(await stage.token())
            await shown.go(stage.path(LUMA, "/edit"))
        await one.page.fill("#f-name", "By the first")
        await one.page.get_by_role("button", name="Save").last.click()
        await expect(one.page.get_by_role("heading", name="By the first")).to_be_visible()
        await two.page.fill("#f-name", "By the second")
        await two.page.get_by_role("button", name="Save").last.click()
        await expect(two.page.locator("main")).to_contain_text("meanwhile")
        assert await two.page.input_value("#f-name") == "By the second"
        row = two.page.get_by_role("row").filter(has_text="Webhook name")
        for words in ("Luma order feedback", "By the first", "by Jana Novák", "By the second"):
            await expect(row).to_contain_text(words)
        assert await two.violations() == []
        stored = await stage.services.webhooks.get(stage.webhooks[LUMA].id, orgs=None)
        assert stored.name == "By the first"
        await two.page.fill("#f-url", "https://second.example/feedback")
        await two.page.get_by_role("button", name="Take the saved value of Webhook name").click()
        await expect(two.page.locator("#f-name")).to_have_value("By the first")
        await expect(row).to_have_count(0)
        await expect(two.page.locator("#f-url")).to_have_value("https://second.example/feedback")
        await two.page.get_by_role("button", name="Save").last.click()
        await expect(two.page.locator("main")).to_contain_text("another host than the one this value was given for")
        assert await two.violations() == []
        await two.page.fill("#f-headers-1-value", "the second host's key")
        await two.page.get_by_role("button", name="Save").last.click()
        await expect(two.page.get_by_role("heading", name="By the first")).to_be_visible()
        stored = await stage.services.webhooks.get(stage.webhooks[LUMA].id, orgs=None)
        assert (stored.name, stored.url) == ("By the first", "https://second.example/feedback")


SCRIPT = "<img src=x onerror=\"document.title='hacked'\"><script>document.title='hacked'</script>"


async def test_typed_markup_is_shown_as_text(browser: Browser, stage: Stage, endpoint: Receiver) -> None:
    async with window(browser, stage.base) as shown:
        shown.ignored = ("422",)
        page = shown.page
        await shown.sign_in(await stage.token(name=SCRIPT[:60]))
        await shown.go("/webhooks/new")
        await _typed(shown, name=SCRIPT, org="markup@AdobeOrg", sandbox="prod", url=endpoint.url("good"))
        await page.fill("#f-headers-0-name", "X-Thing")
        await page.fill("#f-headers-0-value", SCRIPT)
        await page.get_by_role("button", name="Submit").last.click()
        await page.wait_for_load_state()
        for path in ("", "/", "/audit", "/deliveries"):
            if path:
                await shown.go(path)
            assert await page.title() != "hacked"
            assert await page.locator("img[src=x]").count() == 0
        await shown.go("/")
        await expect(page.locator("main")).to_contain_text("<img src=x")
