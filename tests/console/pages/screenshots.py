"""`make screenshots`: every page, light, dark and at phone width, to docs/screenshots/.

With arguments, those whose names contain the first, as PNG to the directory that is the second.
"""

import asyncio
import sys
import tempfile
from pathlib import Path

from playwright.async_api import async_playwright

from dispatcher.console.model import AttemptQuery
from tests.console.history_store import history_in
from tests.console.pages.browsing import CHROMIUM, PHONE, Window, launched, window
from tests.console.pages.sample_world import CONTOSO, EXPLAINED_ID, FABRIKAM, LUMA, dead_facts
from tests.console.pages.stage import Stage, add_rotated_webhook, add_webhook, staged
from tests.console.pages.test_conflicts import first_editor_saves
from tests.console.pages.test_history_pages import ADDRESS, fill

TARGET = Path(__file__).parents[3] / "docs" / "screenshots"
TALLEST = 2400
"""Pixels; lists go on and on."""
DEAD_ID = next(fact.event_id for fact in dead_facts() if fact.tenant == CONTOSO)
LOOKS = (("light", "light", None), ("dark", "dark", None), ("phone", "light", PHONE))


async def shoot(shown: Window, name: str, target: Path) -> None:
    """Take one."""
    page = shown.page
    await page.mouse.move(0, 0)
    await page.evaluate("scrollTo(0, 0)")
    width, height = await page.evaluate("[innerWidth, document.documentElement.scrollHeight]")
    clip = {"x": 0, "y": 0, "width": width, "height": min(height, TALLEST)}
    if target == TARGET:
        await page.screenshot(path=target / f"{name}.jpg", full_page=True, clip=clip, type="jpeg", quality=76)  # type: ignore[arg-type]
    else:
        await page.screenshot(path=target / f"{name}.png", full_page=True, clip=clip)  # type: ignore[arg-type]


async def shots(stage: Stage, shown: Window, look: str, only: str, target: Path) -> None:
    """Take them all in one look."""
    page = shown.page

    async def shoot_named(name: str) -> None:
        if only in name:
            await shoot(shown, f"{name}-{look}", target)

    await shown.go("/sign-in")
    await shoot_named("sign-in")
    await shown.sign_in(await stage.token())
    delivered = EXPLAINED_ID
    rotated = await add_rotated_webhook(stage, "prod")
    deleted = await add_webhook(stage, "stage")
    await stage.services.webhooks.delete(deleted.id, expected_version=1, by="Jana Novák", orgs=None)
    for name, path in {
        "inventory": "/",
        "overview": stage.path(LUMA),
        "overview-unstable": stage.path(CONTOSO),
        "webhook-deliveries": stage.path(CONTOSO, "/deliveries"),
        "configuration": stage.path(LUMA, "/configuration"),
        "webhook-audit": stage.path(LUMA, "/audit"),
        "webhook-notifications": stage.path(LUMA, "/notifications"),
        "delivery": stage.path(LUMA, f"/deliveries/{delivered}"),
        "delivery-dead": stage.path(CONTOSO, f"/deliveries/{DEAD_ID}"),
        "delivery-explained": stage.path(LUMA, f"/deliveries/{delivered}?explain=1"),
        "create": "/webhooks/new",
        "edit": stage.path(LUMA, "/edit"),
        "deliveries": "/deliveries",
        "dead-events": "/dead-events",
        "audit": "/audit",
        "notifications": "/notifications",
        "resend": stage.path(CONTOSO, "/resend?range=24h"),
        "jobs": "/jobs",
        "delete": stage.path(LUMA, "/delete"),
        "signing-secrets": f"/webhooks/{rotated.id}/configuration",
        "deleted": "/deleted-webhooks",
        "scope": "/scope",
        "dead-record": f"/dead-events/{dead_facts()[0].id}",
        "reference": "/reference",
        "not-found": "/webhooks/none",
    }.items():
        if only in name:
            await shown.go(path)
            if name == "webhook-audit":
                await page.locator("details summary", has_text="changes").first.click()
            await shoot_named(name)
    if only in "test-event-failed":
        await shown.go(stage.path(CONTOSO, "/test"))
        await page.get_by_role("button", name="Send test event").click()
        await page.wait_for_selector("#test-result")
        await shoot_named("test-event-failed")
    if only in "create-errors":
        await shown.go("/webhooks/new")
        await page.fill("#f-url", "http//hooks")
        await page.check("#auth-sign")
        await page.fill("#f-auth-sign-key", "not a key")
        await page.fill("#f-headers-0-name", "Host")
        await page.fill("#f-headers-0-value", "evil.example")
        await page.get_by_role("button", name="Submit").last.click()
        await page.wait_for_selector("#errors")
        await shoot_named("create-errors")
        page.once("dialog", lambda dialog: asyncio.ensure_future(dialog.accept()))
    if only in "conflict":
        await shown.go(stage.path(FABRIKAM, "/edit"))
        await first_editor_saves(stage, stage.webhooks[FABRIKAM], events=["bounce"], name="Fabrikam orders")
        await page.fill("#f-name", "Fabrikam, order updates")
        await page.get_by_role("button", name="Save").last.click()
        await page.wait_for_selector("text=Saved meanwhile, field by field")
        await shoot_named("conflict")
        page.once("dialog", lambda dialog: asyncio.ensure_future(dialog.accept()))
    if only in "redrive-confirm redrive-progress":
        await shown.go("/dead-events")
        for box in (0, 1, 2):
            await page.locator("input[name=id]").nth(box).check()
        await page.get_by_role("button", name="Send again…").click()
        await page.wait_for_selector("h1:has-text('again?')")
        await shoot_named("redrive-confirm")
        await page.get_by_role("button", name="again").click()
        await page.wait_for_selector("#jobs")
        await shoot_named("redrive-progress")


async def main(only: str, target: Path) -> None:
    """Take the screenshots whose name contains `only`."""
    async with async_playwright() as playwright:
        browser = await launched(playwright)
        for look, scheme, size in LOOKS:
            with tempfile.TemporaryDirectory() as directory:
                async with staged(Path(directory)) as stage:
                    assert stage.attempts.search(LUMA, AttemptQuery(event_id=EXPLAINED_ID)).items
                    async with window(browser, stage.base, scheme=scheme, size=size, scale=1) as shown:  # type: ignore[arg-type]
                        shown.ignored = ("404", "412", "422")
                        await shots(stage, shown, look, only, target)
            if only in "search timeline":
                with tempfile.TemporaryDirectory() as directory:
                    async with (
                        history_in(Path(directory)) as history,
                        staged(Path(directory), history=history.lookup) as stage,
                        window(browser, stage.base, scheme=scheme, size=size, scale=1) as shown,  # type: ignore[arg-type]
                    ):
                        await fill(history)
                        await shown.sign_in(await stage.token())
                        for name, path in {
                            "search": f"/search?q={ADDRESS}",
                            "timeline": stage.path(LUMA, "/deliveries/msg_1"),
                        }.items():
                            await shown.go(path)
                            await shoot(shown, f"{name}-{look}", target)
            if only in "empty":
                with tempfile.TemporaryDirectory() as directory:
                    async with (
                        staged(Path(directory), is_empty=True) as stage,
                        window(browser, stage.base, scheme=scheme, size=size) as shown,  # type: ignore[arg-type]
                    ):
                        await shown.sign_in(await stage.token())
                        await shoot(shown, f"empty-{look}", target)
        await browser.close()


if __name__ == "__main__":
    if not CHROMIUM:
        sys.exit("chromium is not installed: make system")
    chosen, where = [*sys.argv[1:], "", ""][:2]
    directory = Path(where) if where else TARGET
    directory.mkdir(parents=True, exist_ok=True)
    asyncio.run(main(chosen, directory))
