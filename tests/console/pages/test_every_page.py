"""Every page in light, dark and at phone width: nothing that axe objects to, no error in the console, nothing cut off."""

import gzip
import re
from uuid import uuid4

import aiohttp
import pytest
from playwright.async_api import Browser

from dispatcher.stores.sql.records import Role
from tests.console.pages.browsing import PHONE, window
from tests.console.pages.sample_world import CONTOSO, EXPLAINED_ID, FABRIKAM, LUMA, NORTHWIND, dead_facts
from tests.console.pages.stage import Stage, add_rotated_webhook, add_webhook

YESTERDAY = "document.querySelectorAll('.at').forEach(at => { at.textContent = '28 Nov, 23:58' })"
"""Times of another day than today's have their date, and are wider."""
CUT_TABLES = "[...document.querySelectorAll('.table-card')].map((one) => one.scrollWidth - one.clientWidth).filter((px) => px > 0)"
LOOKS = {"light": ("light", None), "dark": ("dark", None), "phone": ("light", PHONE)}


def _paths(stage: Stage) -> list[str]:
    return [
        "/",
        "/?q=luma&state=active",
        stage.path(LUMA),
        stage.path(CONTOSO, "?window=1h"),
        stage.path(NORTHWIND),
        stage.path(CONTOSO, "/deliveries"),
        stage.path(LUMA, "/configuration"),
        stage.path(LUMA, "/audit"),
        stage.path(LUMA, "/notifications"),
        stage.path(LUMA, f"/deliveries/{EXPLAINED_ID}"),
        stage.path(LUMA, f"/deliveries/{EXPLAINED_ID}?explain=1"),
        stage.path(LUMA, "/test"),
        stage.path(LUMA, "/edit"),
        stage.path(FABRIKAM, "/edit"),
        stage.path(LUMA, "/delete"),
        "/webhooks/new",
        "/deliveries",
        "/dead-events",
        "/audit",
        "/jobs",
        stage.path(CONTOSO, "/resend?range=24h"),
        "/notifications",
    ]


async def _more_paths(stage: Stage, look: str) -> list[str]:
    """Pages of a deleted webhook, of one whose signing secrets end, and of a dead event's record."""
    deleted = await add_webhook(stage, f"deleted-{look}")
    await stage.services.webhooks.delete(deleted.id, expected_version=1, by="Jana Novák", orgs=None)
    rotated = await add_rotated_webhook(stage, f"rotated-{look}")
    return [
        "/deleted-webhooks",
        f"/deleted-webhooks/{deleted.id}/erase",
        f"/webhooks/{rotated.id}/configuration",
        "/scope?q=luma&back=/audit",
        f"/dead-events/{dead_facts()[0].id}",
    ]


@pytest.mark.parametrize("look", LOOKS)
async def test_every_page_is_accessible_and_whole(browser: Browser, stage: Stage, look: str) -> None:
    scheme, size = LOOKS[look]
    async with window(browser, stage.base, scheme=scheme, size=size) as shown:  # type: ignore[arg-type]
        assert await shown.go("/sign-in") == 200
        found = {"/sign-in": await shown.violations()}
        await shown.sign_in(await stage.token())
        # The reference is long: axe takes seconds for it.
        more = await _more_paths(stage, look)
        for path in [*_paths(stage), *more, *(["/reference"] if look == "phone" else [])]:
            assert await shown.go(path) == 200, path
            found[path] = await shown.violations()
            wider = await shown.page.evaluate("document.documentElement.scrollWidth - window.innerWidth")
            assert wider <= 0, f"{path} is {wider} px wider than the window"
            await shown.page.evaluate(YESTERDAY)
            cut = await shown.page.evaluate(CUT_TABLES)
            assert cut == [], f"tables on {path} are wider than their cards by {cut} px"
        assert {path: violations for path, violations in found.items() if violations} == {}


async def test_a_missing_page_is_shown_in_the_same_frame(browser: Browser, stage: Stage) -> None:
    async with window(browser, stage.base) as shown:
        shown.ignored = ("404",)
        await shown.sign_in(await stage.token())
        assert await shown.go("/webhooks/none") == 404
        assert await shown.page.get_by_role("navigation", name="Main").is_visible()
        assert await shown.violations() == []


async def test_another_organisations_data_is_on_no_page(browser: Browser, stage: Stage) -> None:
    async with window(browser, stage.base) as shown:
        shown.ignored = ("403", "404")
        await shown.sign_in(await stage.token(Role.VIEWER, frozenset({NORTHWIND.org})))
        for path in ("/", "/deliveries", "/dead-events", "/audit"):
            assert await shown.go(path) == 200
            text = await shown.page.content()
            assert NORTHWIND.org in text or path in ("/audit",), path
            for other in (LUMA, CONTOSO, FABRIKAM):
                assert other.org not in text, (path, other)
        for below in ("", "/deliveries", "/configuration", "/audit", "/edit", "/test", f"/deliveries/{EXPLAINED_ID}"):
            there, nowhere = await shown.go(stage.path(LUMA, below)), await shown.go(f"/webhooks/{uuid4()}{below}")
            assert there == nowhere >= 403, below  # the response doesn't reveal that it exists


async def test_a_viewer_sees_no_recipient_and_no_button_that_changes(browser: Browser, stage: Stage) -> None:
    async with window(browser, stage.base) as shown:
        await shown.sign_in(await stage.token(Role.VIEWER))
        await shown.go("/dead-events")
        assert "•••@" in await shown.page.inner_text("main")
        assert await shown.page.get_by_role("button", name="Send again").count() == 0
        await shown.go("/")
        assert await shown.page.get_by_role("link", name="Create Feedback Webhook").count() == 0
        await shown.go(stage.path(LUMA))
        assert await shown.page.get_by_role("link", name="Edit", exact=True).count() == 0


async def test_the_theme_is_kept_and_wins_over_the_system(browser: Browser, stage: Stage) -> None:
    async with window(browser, stage.base, scheme="light") as shown:
        await shown.sign_in(await stage.token())
        light = await shown.page.evaluate("getComputedStyle(document.body).backgroundColor")
        await shown.page.get_by_role("button", name="Dark").click()
        await shown.go("/audit")
        dark = await shown.page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert light != dark


async def test_static_files_are_compressed_for_clients_that_accept_it(stage: Stage) -> None:
    async with aiohttp.ClientSession(stage.base, auto_decompress=False) as session:
        async with session.get("/sign-in", headers={"Accept-Encoding": "identity"}) as page:
            path = re.search(r'href="(/static/[^"]+\.css)"', await page.text())[1]  # type: ignore[index]
        async with session.get(path, headers={"Accept-Encoding": "identity"}) as answer:
            plain = await answer.read()
            assert "Content-Encoding" not in answer.headers
        async with session.get(path, headers={"Accept-Encoding": "gzip"}) as answer:
            compressed = await answer.read()
            assert (answer.headers["Content-Encoding"], answer.headers["Vary"]) == ("gzip", "Accept-Encoding")
        assert gzip.decompress(compressed) == plain
        assert len(compressed) < len(plain) / 2
