"""Debian's Chromium through Playwright, watched: what violates the policy or fails in a script fails the test."""

import os
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from playwright.async_api import Browser, BrowserContext, Page, Playwright, expect

_NAMES = ("chromium-headless-shell", "chromium", "chromium-browser")
"""The first has no window, which costs the others most of their time."""
CHROMIUM = next((path for name in _NAMES if (path := shutil.which(name))), "")
"""Path of the browser; empty if there is none."""
AXE = (Path(__file__).parent / "vendor" / "axe.min.js").read_text(encoding="utf-8")
WIDE = {"width": 1440, "height": 900}
PHONE = {"width": 390, "height": 844}
PATIENCE_MS = 60_000.0
"""For a page to become what it should be: longer than any, on a machine that does other things, too."""

expect.set_options(timeout=PATIENCE_MS)


async def launched(playwright: Playwright) -> Browser:
    """A browser without network of its own."""
    arguments = ["--no-sandbox", "--disable-dev-shm-usage", "--disable-background-networking"]
    fonts = {"FONTCONFIG_FILE": str(Path(__file__).parent / "fonts.conf")}
    return await playwright.chromium.launch(executable_path=CHROMIUM, args=arguments, env=os.environ | fonts)


@dataclass
class Window:
    """A page in a context of its own, and what went wrong in it."""

    page: Page
    context: BrowserContext
    base: str
    problems: list[str] = field(default_factory=list)
    ignored: tuple[str, ...] = ()
    """Messages that the test provokes itself."""

    async def go(self, path: str) -> int:
        response = await self.page.goto(self.base + path)
        return 0 if response is None else response.status

    async def sign_in(self, token: str) -> None:
        await self.go("/sign-in")
        await self.page.fill("#token", token)
        await self.page.get_by_role("button", name="Sign in").click()
        await self.page.wait_for_url(lambda url: "/sign-in" not in url)

    async def violations(self) -> list[str]:
        """What axe finds: rule, element, why."""
        # Not as a script element, which the page's policy refuses.
        await self.page.evaluate(AXE)
        found: list[dict[str, Any]] = await self.page.evaluate(
            "async () => (await axe.run(document, {resultTypes: ['violations']})).violations"
        )
        return [f"{one['id']}: {node['target']} {node['failureSummary']}" for one in found for node in one["nodes"]]


@asynccontextmanager
async def window(
    browser: Browser,
    base: str,
    *,
    scheme: Literal["light", "dark"] = "light",
    size: dict[str, int] | None = None,
    script: bool = True,
    scale: float = 1,
) -> AsyncIterator[Window]:
    """A window; leaving it raises for what went wrong in it."""
    context = await browser.new_context(
        viewport=size or WIDE,  # type: ignore[arg-type]
        color_scheme=scheme,
        java_script_enabled=script,
        device_scale_factor=scale,
        reduced_motion="reduce",
        locale="en-GB",
    )
    page = await context.new_page()
    page.set_default_timeout(PATIENCE_MS)
    shown = Window(page, context, base)
    page.on("console", lambda message: message.type in ("error", "warning") and shown.problems.append(message.text))
    page.on("pageerror", lambda error: shown.problems.append(str(error)))
    page.on("requestfailed", lambda request: shown.problems.append(f"{request.url}: {request.failure}"))
    page.on("request", lambda request: request.url.startswith((base, "data:")) or shown.problems.append(request.url))
    try:
        yield shown
    finally:
        await context.close()
    problems = [one for one in shown.problems if not any(text in one for text in (*shown.ignored, "ERR_ABORTED"))]
    assert problems == []
