"""No page is wider than the window, on a phone and on a desktop, whatever names and sentences are in it."""

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlencode

import pytest
from playwright.async_api import Browser

from dispatcher.console.model import DeadQuery
from dispatcher.contract.history import HistoryOutcome
from dispatcher.contract.tenant import TenantKey
from tests.console.history_store import entry_of, history_in
from tests.console.pages.browsing import PHONE, window
from tests.console.pages.sample_world import CONTOSO, LUMA
from tests.console.pages.stage import Stage, add_webhook, staged

LONG = TenantKey("F0C4@AdobeOrg", "sandbox-" + "x" * 52)
NARROW = {"width": 320, "height": 700}
UNKNOWN = TenantKey("organisation-" + "x" * 90, "sandbox-" + "x" * 52)
"""Has no webhook."""
DESKTOP = {"width": 1280, "height": 800}
CUT = (
    "[document.documentElement.scrollWidth - innerWidth, ...[...document.querySelectorAll('.table-card, .rail-inner')]"
    ".map((one) => one.scrollWidth - one.clientWidth)]"
)


@pytest.fixture(scope="module")
async def stage(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stage]:
    """A history with the longest sentences, and a webhook with long names without a blank."""
    directory: Path = tmp_path_factory.mktemp("widths")
    async with history_in(directory) as history, staged(directory, history=history.lookup) as running:
        running.webhooks[LONG] = await add_webhook(running, LONG.sandbox, name="Webhook" + "x" * 90)
        deleted = await add_webhook(running, "deleted-" + "x" * 52, name="Webhook" + "x" * 90)
        await running.services.webhooks.delete(deleted.id, expected_version=1, by="person" + "x" * 90, orgs=None)
        skipped = {"outcome": HistoryOutcome.SKIPPED, "reason": "status", "status": None}
        odd = {"message_status": "status" + "x" * 90, "channel": "channel" + "x" * 90}
        await history.add(*(entry_of(tenant, "odd", **skipped, **odd) for tenant in (LONG, UNKNOWN)))
        dead = replace(running.dead_events.facts[0], id="0-99", org=UNKNOWN.org, sandbox=UNKNOWN.sandbox, **odd)
        running.dead_events.facts.append(dead)
        await running.dead_events.redrive(LONG, ids=None, query=DeadQuery(), by="person" + "x" * 90, orgs=None)
        for tenant in (LUMA, CONTOSO, LONG):
            await history.add(
                entry_of(tenant, age_s=90, outcome=HistoryOutcome.ATTEMPT, reason="http_5xx", status=503),
                *(
                    entry_of(
                        tenant, str(n), age_s=80 - n, outcome=HistoryOutcome.PARKED, reason=reason, status=None,
                        due_at=1_790_000_000_000, request_id="request-" + "y" * 60,
                    )
                    for n, reason in enumerate(("breaker_open", "tenant_disabled", "undecided"), 1)
                ),
            )  # fmt: skip
        yield running


@pytest.mark.parametrize("size", [NARROW, PHONE, DESKTOP])
async def test_nothing_is_wider_than_the_window(browser: Browser, stage: Stage, size: dict[str, int]) -> None:
    typed = "x" * 1000
    of_unknown = urlencode({"org": UNKNOWN.org, "sandbox": UNKNOWN.sandbox})
    paths = [f"/search?q={typed}", f"/dead-events?campaign={typed}", f"/events/msg_odd?{of_unknown}"]
    paths += ["/", "/?sort=tenant", "/deliveries", "/search?campaign=c-1", "/dead-events", "/deleted-webhooks", "/jobs"]
    for tenant in (CONTOSO, LONG):
        paths += [
            stage.path(tenant, below)
            for below in (
                "",
                "/deliveries",
                "/deliveries/msg_1",
                "/deliveries/msg_2",
                "/delete",
                "/configuration",
                "/edit",
                "/audit",
            )
        ]
    wider: dict[str, list[int]] = {}
    async with window(browser, stage.base, size=size) as shown:
        await shown.sign_in(await stage.token())
        for path in paths:
            assert await shown.go(path) == 200
            found: list[int] = await shown.page.evaluate(CUT)
            if max(found) > 0:
                wider[path] = found
    assert wider == {}
