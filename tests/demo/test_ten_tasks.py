"""What the console's users do, each task in a browser at the running demo: the real broker, dispatcher and console.

`SCREENSHOTS=directory` keeps a picture of every step. Tasks 3 to 5 come last, since what they look at takes
the demo a minute. With `--all-faults`, as in `make faults`, all ten are run; without it those that wait for nothing.
"""

import asyncio
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import orjson
import pytest
from playwright.async_api import Browser, Locator, Page, async_playwright, expect

from dispatcher.demo.planning import Planned, plan
from dispatcher.demo.tenants import CONTACT
from tests.console.pages.browsing import CHROMIUM, Window, launched, window

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

SHOTS = os.environ.get("SCREENSHOTS", "")
_LINK = re.compile(r"(http://127\.0\.0\.1:\d+)(/sign-in/link/\S+)[\s\S]*?shown here: (\S+)\n")


@pytest.fixture(scope="module")
def link(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str, str]]:
    """Runs the demo. Yields the console's origin, the path of the link that signs in, and the page of e-mails."""
    log = tmp_path_factory.mktemp("demo") / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "dispatcher.demo"],
            env=os.environ | {"FOREVER": "1"},
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        give_up_at = time.monotonic() + 180
        while (found := _LINK.search(log.read_text())) is None:
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < give_up_at, log.read_text()
            time.sleep(0.2)
        yield found[1], found[2], found[3]
    finally:
        for _ in range(2):  # the second one ends it without counting every event
            process.send_signal(signal.SIGINT)
            time.sleep(0.5)
        process.wait(90)


@pytest.fixture(scope="module")
async def browser() -> AsyncIterator[Browser]:
    if not CHROMIUM:
        pytest.skip("chromium is not installed: make system")
    async with async_playwright() as playwright:
        started = await launched(playwright)
        yield started
        await started.close()


@pytest.fixture(scope="module")
async def cookies(browser: Browser, link: tuple[str, str, str]) -> list[dict[str, object]]:
    """Signs in by the link, once, and waits until the demo has shown every kind of trouble."""
    async with window(browser, link[0]) as shown:
        await shown.go(link[1])
        adatum = shown.page.locator("tbody tr", has=shown.page.get_by_role("link", name="Adatum"))
        await until(shown, "/", adatum.locator("[data-label=Dead]"), re.compile("[1-9]"))
        return [dict(one) for one in await shown.context.cookies()]


@pytest.fixture
async def shown(
    browser: Browser, link: tuple[str, str, str], cookies: list[dict[str, object]]
) -> AsyncIterator[Window]:
    async with window(browser, link[0]) as opened:
        await opened.context.add_cookies(cookies)  # type: ignore[arg-type]
        yield opened


async def until(shown: Window, path: str, place: Locator, text: "re.Pattern[str]") -> None:
    """Opens a page again until a place on it has a text."""
    async with asyncio.timeout(180):
        while True:
            await shown.go(path)
            if await place.count() and text.search(await place.first.inner_text()):
                return
            await asyncio.sleep(0.5)


async def picture(shown: Window, name: str) -> None:
    assert await shown.violations() == []
    if SHOTS:
        await shown.page.screenshot(path=Path(SHOTS) / f"{name}.png", full_page=True)


async def open_webhook(shown: Window, name: str, tab: str = "") -> Page:
    await shown.go("/")
    await shown.page.get_by_role("link", name=name, exact=True).first.click()
    if tab:
        await shown.page.get_by_role("link", name=tab, exact=True).last.click()
    return shown.page


async def search(shown: Window, text: str) -> Locator:
    field = shown.page.get_by_label("Find a message by any id, address or number")
    await field.fill(text)
    await field.press("Enter")
    await shown.page.wait_for_url(lambda url: "/search?" in url)
    return shown.page.locator("main")


def first_planned(org: str) -> Planned:
    """The first event of an organisation that is delivered."""
    return next(one for one in plan(500) if one.tenant.org == org and one.readable and one.skip is None)


def address_in(value: bytes) -> str:
    """The recipient's address or number in an event."""
    text = orjson.dumps(orjson.loads(value)).decode()
    found = re.search(r'"([^"@]+@[^"]+\.example)"', text) or re.search(r'"(\+\d{8,15})"', text)
    assert found is not None, text
    return found[1]


async def test_1_a_message_is_found_by_any_id_that_a_person_holds(shown: Window) -> None:
    event = next(
        one for one in plan(500)
        if one.tenant.org == "luma" and one.skip is None and one.readable and b"@" in (one.value or b"")
    )  # fmt: skip
    await shown.go("/")
    assert event.value is not None
    document = orjson.loads(event.value)
    execution = re.search(rb'"messageExecutionID":"([^"]+)"', event.value)
    ids = [event.webhook_id, event.event_id, document["header"]["requestId"], address_in(event.value)]
    ids += [execution[1].decode()] if execution else []
    for one in ids:
        main = await search(shown, one)
        await expect(main.get_by_role("link", name=event.webhook_id[:12]).first).to_be_visible()
    assert "@" not in shown.page.url
    await picture(shown, "1-found")
    page = await open_webhook(shown, "Luma", "Deliveries")
    await page.get_by_label("Outcome").select_option("skipped")
    await page.get_by_label("Channel").select_option("sms")
    await page.get_by_role("button", name="Filter", exact=True).last.click()
    rows = page.locator("main table tbody tr")
    await expect(rows.first).to_contain_text("Skipped")
    assert "outcome=skipped" in page.url
    assert "channel=sms" in page.url
    await picture(shown, "1-filtered")


async def test_2_the_events_page_is_a_timeline(shown: Window) -> None:
    page = await open_webhook(shown, "Tailspin", "Deliveries")
    await page.get_by_label("Outcome").select_option("attempt")
    await page.get_by_label("Reason").fill("http_5xx")
    await page.get_by_role("button", name="Filter", exact=True).last.click()
    row = page.locator("main table tbody tr", has_text="503").first
    await row.get_by_role("link").first.click()
    timeline = page.locator("ol.timeline")
    for text in ("answered 503", "retry-after:", "Parked until", "Delivered by attempt"):
        await expect(timeline).to_contain_text(text)
    await picture(shown, "2-timeline")
    page = await open_webhook(shown, "Northwind", "Deliveries")
    await page.get_by_label("Outcome").select_option("skipped")
    await page.get_by_role("button", name="Filter", exact=True).last.click()
    await page.locator("main table tbody tr", has_text="channel").first.get_by_role("link").first.click()
    await expect(page.locator("main")).to_contain_text("channel")
    assert "Delivered by" not in await page.locator("main").inner_text()
    await picture(shown, "2-skipped")


async def test_6_dead_and_delivered_events_are_sent_again_after_a_check(shown: Window) -> None:
    page = await open_webhook(shown, "Luma", "Deliveries")
    boxes = page.locator("main table tbody input[type=checkbox]")
    for number in range(3):
        await boxes.nth(number).check()
    await page.get_by_role("button", name="Send the selected ones again").click()
    await expect(page.get_by_role("heading", name="Send 3 events again?")).to_be_visible()
    await picture(shown, "6-check")
    await page.get_by_role("button", name="Send 3 events again").click()
    await expect(page.locator("main")).to_contain_text("3 delivered events")
    await until(shown, "/jobs", page.locator("main"), re.compile("3 delivered events sent again"))
    page = await open_webhook(shown, "Adatum", "Deliveries")
    await page.get_by_role("link", name="All of a time").click()
    await page.get_by_label("Time", exact=True).select_option("15m")
    await page.get_by_role("button", name="Check").click()
    await expect(page.locator(".confirm")).to_contain_text("They may fail again.")
    await picture(shown, "6-warned")
    await page.get_by_role("button", name=re.compile("Send .* again")).click()
    await picture(shown, "6-progress")
    await shown.go("/jobs")
    await expect(page.locator("main")).to_contain_text("dead")
    await picture(shown, "6-jobs")


@pytest.mark.all_faults
async def test_7_a_paused_webhook_keeps_its_events(shown: Window) -> None:
    page = await open_webhook(shown, "Contoso")
    await page.get_by_role("button", name="Pause").click()
    await expect(page.locator("main")).to_contain_text("Paused: events are held from now on.")
    path = page.url.partition("?")[0].removeprefix(shown.base)
    waiting = page.locator("section", has=page.get_by_role("heading", name="Waiting"))
    await until(shown, path, waiting, re.compile("paused"))
    await picture(shown, "7-paused")
    await page.get_by_role("button", name="Resume").click()
    await expect(page.locator("main")).to_contain_text("Resumed: held events are sent")


async def test_8_secrets_and_keys_are_rotated(shown: Window) -> None:
    page = await open_webhook(shown, "Fabrikam", "Configuration")
    await page.get_by_role("button", name="Generate a signing secret").click()
    assert (await page.locator("#made-secret").inner_text()).startswith("whsec_")
    await expect(page.locator("#made-title + p")).to_contain_text("with the older secrets until")
    await picture(shown, "8-secret")
    page = await open_webhook(shown, "Luma", "Configuration")
    await page.get_by_role("button", name="Generate the next key").click()
    keys = page.locator("section:has(#keys-title)")
    await expect(keys.locator("tbody tr").first).to_contain_text("Published, signs next")
    await expect(keys.locator("tbody tr").last).to_contain_text("Signs now")
    await picture(shown, "8-key")
    document = await keys.get_by_role("link", name="key document").get_attribute("href")
    async with asyncio.timeout(60):
        while len(orjson.loads(await (await page.request.get(f"{shown.base}{document}")).body())["keys"]) != 2:
            await asyncio.sleep(0.5)
    await keys.get_by_role("button", name="Withdraw").click()
    await expect(keys.locator("tbody tr")).to_have_count(1)


async def test_9_an_integrator_finds_code_curl_and_the_reference(shown: Window) -> None:
    page = await open_webhook(shown, "Luma", "Configuration")
    for language in ("Python", "Node", "Go", "Java"):
        code = page.locator(f"#verify-{language.lower()}")
        if not await code.is_visible():
            await page.get_by_text(language, exact=True).click()
        await expect(code).to_contain_text("/.well-known/jwks/luma/prod.json")
    await picture(shown, "9-code")
    page = await open_webhook(shown, "Luma", "Deliveries")
    await page.locator("main table tbody tr", has_text="Delivered").first.get_by_role("link").first.click()
    await page.get_by_role("link", name=re.compile("Explain|explain|request")).first.click()
    await page.get_by_text("As curl", exact=True).click()
    await expect(page.locator("#event-curl")).to_contain_text("curl -X POST https://")
    await picture(shown, "9-curl")
    await page.get_by_role("link", name="API reference").click()
    await expect(page.locator("main")).to_contain_text("/api/v1/webhooks/{id}/signing-keys")
    await picture(shown, "9-reference")


async def test_10_two_editors_see_each_other_and_a_deletion_is_undone(
    shown: Window, browser: Browser, link: tuple[str, str], cookies: list[dict[str, object]]
) -> None:
    page = await open_webhook(shown, "Contoso")
    path = page.url.removeprefix(shown.base)
    shown.ignored = ("412",)
    await shown.go(f"{path}/edit")
    async with window(browser, link[0]) as other:
        await other.context.add_cookies(cookies)  # type: ignore[arg-type]
        await other.go(f"{path}/edit")
        await other.page.fill("#f-name", "Contoso parcels")
        await other.page.get_by_role("button", name="Save", exact=True).click()
        await expect(other.page.locator("main")).to_contain_text("Your changes were saved.")
    await page.fill("#f-name", "Contoso texts")
    await page.get_by_role("button", name="Save", exact=True).click()
    await expect(page.locator("main")).to_contain_text("Contoso parcels")
    await picture(shown, "10-conflict")
    await page.get_by_role("button", name="Save", exact=True).click()
    await expect(page.locator("main")).to_contain_text("Your changes were saved.")
    await page.get_by_role("link", name="Configuration", exact=True).click()
    await page.get_by_role("link", name="Delete webhook").click()
    await page.get_by_role("button", name="Delete webhook").click()
    await picture(shown, "10-deleted")
    await page.get_by_role("button", name="Restore Contoso texts").click()
    await expect(page.locator("main")).to_contain_text("The webhook was restored.")
    await shown.go("/?sort=name&order=down&state=active")
    names = await page.locator("tbody .row-link").all_inner_texts()
    assert names == sorted(names, reverse=True)


@pytest.mark.all_faults
async def test_3_a_skipped_event_is_shown_with_the_rule_and_the_remedy(shown: Window) -> None:
    page = await open_webhook(shown, "Northwind")
    skipped = page.locator("section", has=page.get_by_role("heading", name="Skipped"))
    await expect(skipped).to_contain_text("Add the channel to the webhook's channels.")
    await picture(shown, "3-skipped")
    seen = page.locator("section", has=page.get_by_role("heading", name="Seen without a webhook"))
    await until(shown, "/", seen, re.compile("wingtip"))
    await seen.get_by_role("link", name="Create its webhook").click()
    await expect(page.locator("#f-org")).to_have_value("wingtip")
    await picture(shown, "3-create")


@pytest.mark.all_faults
async def test_4_the_state_is_what_the_fleet_sees(shown: Window) -> None:
    page = shown.page
    row = page.locator("tbody tr", has=page.get_by_role("link", name="Adatum"))
    await until(shown, "/", row.locator("[data-label=State]"), re.compile("Failing"))
    for name in ("Luma", "Contoso", "Fabrikam", "Northwind"):
        healthy = page.locator("tbody tr", has=page.get_by_role("link", name=name))
        await expect(healthy.locator("[data-label=State]")).to_contain_text("Active")
    await picture(shown, "4-inventory")
    await open_webhook(shown, "Adatum")
    await expect(page.locator("main")).to_contain_text("Nothing listens on port")
    await picture(shown, "4-failing")


@pytest.mark.all_faults
async def test_5_trouble_is_notified_and_a_test_can_be_sent(shown: Window, link: tuple[str, str, str]) -> None:
    page = shown.page
    await until(shown, "/notifications", page.locator("main"), re.compile("Adatum: an event is dead"))
    await page.get_by_role("button", name="Test the operator's addresses").click()
    await until(shown, "/notifications", page.locator("main"), re.compile(r"A test of notifications[\s\S]*?: sent"))
    await picture(shown, "5-notifications")
    page = await open_webhook(shown, "Adatum", "Notifications")
    await expect(page.locator("main")).to_contain_text("an event is dead")
    await picture(shown, "5-of-a-webhook")
    shown.ignored = (link[2],)  # it is not of the console
    confirm = page.locator("article", has_text=CONTACT).last.get_by_role("link").first
    async with asyncio.timeout(60):
        while not await confirm.count():
            await page.goto(link[2])
            await asyncio.sleep(1)
    await page.goto(await confirm.get_attribute("href") or "")
    await page.get_by_role("button", name="Confirm").click()
    page = await open_webhook(shown, "Adatum", "Notifications")
    await expect(page.locator("main")).to_contain_text(f"{CONTACT}: confirmed")
    await page.get_by_role("button", name="Send a test").click()
    await expect(page.locator("main")).to_contain_text("A test of notifications")
    await picture(shown, "5-of-a-contact")
