"""One browser, and one console before the sample world for the tests that change nothing."""

import os
from collections.abc import AsyncIterator

import pytest
from playwright.async_api import Browser, async_playwright

from tests.console.pages.browsing import CHROMIUM, launched
from tests.console.pages.stage import Stage, staged


@pytest.fixture(scope="session")
async def browser() -> AsyncIterator[Browser]:
    """Debian's Chromium."""
    if not CHROMIUM:
        if os.environ.get("CI") == "true":
            pytest.fail("CI tests in a browser; chromium is not installed")
        pytest.skip("chromium is not installed: make system")
    async with async_playwright() as playwright:
        browser = await launched(playwright)
        yield browser
        await browser.close()


@pytest.fixture(scope="module")
async def stage(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stage]:
    """A console with the sample webhooks."""
    async with staged(tmp_path_factory.mktemp("stage")) as running:
        yield running
