"""An action after the end of the session is not swallowed: the sign-in says so, and leads back to its page."""

import re

import aiohttp
import pytest
from playwright.async_api import Browser, expect

from dispatcher.stores.sql.records import Role
from tests.console.pages.browsing import window
from tests.console.pages.sample_world import LUMA
from tests.console.pages.stage import Stage
from tests.console.pages.test_kept_form import browser as session_of
from tests.console.pages.test_kept_form import end_sessions


@pytest.mark.parametrize(
    ("path", "referer", "back"),
    [
        ("/webhooks/x/pause", "/webhooks/x?window=24h", "/webhooks/x?window%3D24h&ended=1"),
        ("/search", "/dead-events", "/dead-events&ended=1"),
        ("/dead-events/redrive", "/dead-events/confirm", "/dead-events/confirm&ended=1"),
        ("/jobs/x/stop", "/jobs/x/stop", "/&ended=1"),  # no page to look at
        ("/dead-events/redrive", "/sign-out", "/&ended=1"),
        ("/dead-events/redrive", "//evil.example/dead-events", "/&ended=1"),
        ("/dead-events/redrive", "https://evil.example/dead-events", "/"),
        ("/dead-events/redrive", "http://[", "/"),
        ("/dead-events/redrive", None, "/"),
    ],
)
async def test_the_page_of_an_action_is_the_next_one(stage: Stage, path: str, referer: str | None, back: str) -> None:
    whole = referer if referer is None or referer.startswith("http") else f"{stage.base}{referer}"
    async with session_of(stage) as session:
        headers = {} if whole is None else {"Referer": whole}
        async with session.post(path, headers=headers, allow_redirects=False) as answer:
            assert (answer.status, answer.headers["Location"]) == (303, f"/sign-in?next={back}")
        async with session.get(answer.headers["Location"]) as page:
            says = "Your session had ended: nothing was changed." in await page.text()
            assert (page.status, says) == (200, "ended" in back)


async def test_a_pause_after_the_end_of_the_session_can_be_repeated(browser: Browser, stage: Stage) -> None:
    async with window(browser, stage.base) as shown:
        page, main = shown.page, shown.page.locator("main")
        await shown.sign_in(await stage.token())
        await shown.go(stage.path(LUMA, "?window=7d"))
        begin = end_sessions(stage)
        await page.get_by_role("button", name="Pause", exact=False).first.click()
        await expect(main).to_contain_text("Your session had ended: nothing was changed.")
        assert await shown.violations() == []
        begin()
        await page.fill("#token", await stage.token())
        await page.get_by_role("button", name="Sign in").click()
        await page.wait_for_url(f"**{stage.path(LUMA)}?window=7d")
    assert not (await stage.services.webhooks.get(stage.webhooks[LUMA].id, orgs=None)).paused


async def test_a_page_of_an_earlier_session_says_to_load_it_again(stage: Stage) -> None:
    for role, token in ((Role.ADMIN, "old"), (Role.VIEWER, "")):
        async with session_of(stage, await stage.token(role)) as session:
            token = token or await csrf_token(session)
            async with session.post("/dead-events/confirm", data={"csrf_token": token}) as answer:
                text = await answer.text()
            assert answer.status == 403
            assert ("load it again, and try again" in text) == (role is Role.ADMIN)
            assert ("Nothing was changed" in text) == (role is Role.ADMIN)
            assert ("ask the admin of your organisation" in text) == (role is Role.VIEWER)


async def csrf_token(session: aiohttp.ClientSession) -> str:
    async with session.get("/dead-events") as page:
        found = re.search(r'name="csrf_token" value="([^"]*)"', await page.text())
    assert found is not None
    return found[1]
