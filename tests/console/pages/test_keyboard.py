"""Without a mouse: every page shows the focus, and every control can be reached."""

import pytest
from playwright.async_api import Browser, expect

from tests.console.pages.browsing import window
from tests.console.pages.sample_world import CONTOSO, LUMA
from tests.console.pages.stage import Stage

MARKED = """() => {
  const at = document.activeElement;
  if (!at || at === document.body) return null;
  const shows = (one) => one && getComputedStyle(one).outlineStyle !== "none" && parseFloat(getComputedStyle(one).outlineWidth) > 0;
  at.dataset.reached = "yes";
  return {is: shows(at) || shows(at.closest(".choice, .method")), what: at.outerHTML.slice(0, 120)};
}"""
UNREACHED = """() => {
  const inside = [...document.querySelectorAll("a[href], button, input, select, textarea, summary")];
  const group = (one) => one.type === "radio" && document.querySelector(`input[name="${one.name}"][data-reached]`);
  return inside.filter((one) => one.checkVisibility({visibilityProperty: true}) && !one.disabled && one.tabIndex >= 0
    && !one.dataset.reached && !group(one)).map((one) => one.outerHTML.slice(0, 120));
}"""
PATHS = {
    "inventory": lambda stage: "/",
    "form": lambda stage: stage.path(LUMA, "/edit"),
    "overview": lambda stage: stage.path(CONTOSO),
    "dead events": lambda stage: "/dead-events?reason=redirected",
    "audit": lambda stage: "/audit",
}


@pytest.mark.parametrize("page_name", PATHS)
async def test_every_control_is_reached_and_shows_it(browser: Browser, stage: Stage, page_name: str) -> None:
    async with window(browser, stage.base) as shown:
        page = shown.page
        await shown.sign_in(await stage.token())
        await shown.go(PATHS[page_name](stage))
        unmarked, steps = [], 0
        while True:
            await page.keyboard.press("Tab")
            marked = await page.evaluate(MARKED)
            if marked is None:
                break
            steps += 1
            if not marked["is"]:
                unmarked.append(marked["what"])
        assert steps > 10
        assert unmarked == []
        assert await page.evaluate(UNREACHED) == []


async def test_the_first_stop_leads_past_the_navigation(browser: Browser, stage: Stage) -> None:
    async with window(browser, stage.base) as shown:
        page = shown.page
        await shown.sign_in(await stage.token())
        await shown.go("/deliveries")
        await page.keyboard.press("Tab")
        await expect(page.get_by_role("link", name="Skip to the content")).to_be_focused()
        await page.keyboard.press("Enter")
        await expect(page.locator("main")).to_be_focused()
        await page.keyboard.press("Tab")
        await expect(page.locator("#event")).to_be_focused()
