"""The console over the demo: real dispatcher, real broker, real attempts, real dead events."""

import asyncio
import os
import re
import signal
import sys
from collections.abc import AsyncIterator

import pytest
from playwright.async_api import Browser, Page, expect

from tests.console.pages.browsing import window

LINK = re.compile(r"http://\S+/sign-in/link/\S+")
UP_WITHIN_S = 120
SHOWN_WITHIN_S = 60


@pytest.fixture
async def link() -> AsyncIterator[str]:
    """The sign-in link of a demo that goes on until it is stopped."""
    environment = os.environ | {"FOREVER": "1", "PYTHONUNBUFFERED": "1"}
    demo = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "dispatcher.demo", env=environment,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    assert demo.stdout is not None
    found = None
    async with asyncio.timeout(UP_WITHIN_S):
        while found is None and (line := await demo.stdout.readline()):
            found = LINK.search(line.decode())
    reading = asyncio.create_task(demo.stdout.read())  # so that it isn't held up
    assert found is not None
    yield found[0]
    for _ in range(2):  # the second one gives up at once
        if demo.returncode is None:
            demo.send_signal(signal.SIGINT)
            await asyncio.sleep(0.5)
    await demo.wait()
    await reading


async def _until(page: Page, url: str, text: str) -> None:
    """Load a page until something is on it: events take their time."""
    async with asyncio.timeout(SHOWN_WITHIN_S):
        while text not in await page.inner_text("main"):
            await asyncio.sleep(0.5)
            await page.goto(url)


@pytest.mark.slow
async def test_what_really_happens_is_shown(browser: Browser, link: str) -> None:
    base = link.partition("/sign-in")[0]
    async with window(browser, base) as shown:
        page = shown.page
        await page.goto(link)
        await expect(page.locator("tbody tr")).to_have_count(6)

        await page.get_by_role("link", name="Luma").click()
        await _until(page, page.url, "msg_")
        await page.locator("tbody a.code").first.click()
        await page.get_by_role("link", name="Explain this event").click()
        explained = page.locator("#explain")
        await expect(explained).to_contain_text("Campaign is wanted")
        await expect(explained).to_contain_text("authorization: Bearer <secret>")
        await expect(explained).to_contain_text('"imsOrg": "luma"')

        await shown.go("/?q=adatum")
        await _until(page, page.url, "failed")  # nothing listens there
        await page.get_by_role("link", name="Adatum").click()
        await expect(page.locator("main")).to_contain_text("Your server refused the connection")

        await shown.go("/dead-events?reason=expired")
        await _until(page, page.url, "Not delivered in time")
        await page.locator("input[name=id]").first.check()
        await page.get_by_role("button", name="Send again…").click()
        await page.get_by_role("button", name="Send 1 event again").click()
        await expect(page.locator("#jobs")).to_contain_text("Done", timeout=SHOWN_WITHIN_S * 1000)
        await expect(page.locator("#jobs")).to_contain_text("1 of 1 dead event sent again")

        shown.ignored = ("401",)
        await page.goto(link)
        await expect(page.get_by_role("alert")).to_contain_text("used already")
