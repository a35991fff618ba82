"""The inventory: who is hurting is found at once, on any screen."""

import re

import pytest
from playwright.async_api import Browser, expect

from tests.console.pages.browsing import PHONE, Window, window
from tests.console.pages.stage import Stage


async def _names(shown: Window) -> list[str]:
    return await shown.page.locator("tbody .row-link").all_inner_texts()


@pytest.mark.parametrize(
    ("column", "direction", "first", "last"),
    [
        ("Name", "descending", "Tailspin holiday mail", "Adatum sandbox"),  # by name it is already
        ("Organisation / sandbox", "ascending", "Contoso delivery receipts", "Northwind SMS"),
        ("State", "ascending", "Northwind SMS", "Adatum sandbox"),
        ("Last delivery", "ascending", "Adatum sandbox", "Luma order feedback"),
        ("Delivered", "descending", "Luma order feedback", "Tailspin holiday mail"),
        ("Waiting", "descending", "Northwind SMS", "Tailspin holiday mail"),
        ("Dead", "descending", "Contoso delivery receipts", "Tailspin holiday mail"),
    ],
)
async def test_every_column_sorts_both_ways(
    browser: Browser, stage: Stage, column: str, direction: str, first: str, last: str
) -> None:
    async with window(browser, stage.base) as shown:
        await shown.sign_in(await stage.token())
        heads = shown.page.get_by_role("columnheader", name=column)
        await heads.get_by_role("link").click()
        await expect(heads).to_have_attribute("aria-sort", direction)
        names = await _names(shown)
        assert (names[0], names[-1], len(names)) == (first, last, 7)
        await heads.get_by_role("link").click()
        await expect(heads).not_to_have_attribute("aria-sort", direction)
        assert first in (await _names(shown))[-2:]  # two have never had a delivery


async def test_disabled_webhooks_are_listed_before_unstable_ones(browser: Browser, stage: Stage) -> None:
    async with window(browser, stage.base) as shown:
        await shown.sign_in(await stage.token())
        await shown.go("/?sort=state")
        assert (await _names(shown))[:2] == ["Northwind SMS", "Contoso delivery receipts"]


async def test_a_filter_keeps_the_order(browser: Browser, stage: Stage) -> None:
    async with window(browser, stage.base) as shown:
        page = shown.page
        await shown.sign_in(await stage.token())
        await shown.go("/?sort=dead&order=up")
        await page.fill("#q", "prod")
        await page.get_by_role("button", name="Filter").click()
        heads = page.get_by_role("columnheader", name="Dead")
        await expect(heads).to_have_attribute("aria-sort", "ascending")
        assert (await _names(shown))[-1] == "Contoso delivery receipts"


async def test_at_phone_width_a_choice_sorts(browser: Browser, stage: Stage) -> None:
    async with window(browser, stage.base, size=PHONE) as shown:
        page = shown.page
        await shown.sign_in(await stage.token())
        await page.get_by_label("Sort by").select_option(label="State, the worst first")
        await page.get_by_role("button", name="Filter").click()
        await expect(page.get_by_label("Sort by")).to_have_value("state")
        assert (await _names(shown))[0] == "Northwind SMS"
        assert await shown.violations() == []


async def test_a_time_is_shown_as_an_age_and_exactly_on_hover(browser: Browser, stage: Stage) -> None:
    async with window(browser, stage.base) as shown:
        await shown.sign_in(await stage.token())
        time = shown.page.locator("tr", has_text="Contoso").locator("time")
        await expect(time).to_have_text("1 h ago")
        exact = await time.get_attribute("title") or ""
        assert re.fullmatch(r"\d{1,2} [A-Z][a-z]{2} \d{4}, \d\d:\d\d:\d\d UTC", exact)
