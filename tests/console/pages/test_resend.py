"""Events are sent again from the pages: choose a time or events, check, start, watch, stop."""

import time

import pytest
from playwright.async_api import Browser, expect

from dispatcher.config.webhooks import WebhookConfig
from dispatcher.console.resend_model import RedriveModel, ResendCheck, ResendQuery
from dispatcher.contract.tenant import TenantKey
from tests.console.pages.browsing import PHONE, window
from tests.console.pages.sample_world import CONTOSO, FABRIKAM, LUMA, NORTHWIND
from tests.console.pages.stage import Stage


async def test_everything_of_the_last_hour_is_sent_again_and_stopped(browser: Browser, stage: Stage) -> None:
    async with window(browser, stage.base) as shown:
        page, main = shown.page, shown.page.locator("main")
        shown.ignored = ("422",)
        await shown.sign_in(await stage.token())
        await shown.go(stage.path(CONTOSO, "/resend"))
        await page.get_by_role("button", name="Check").click()
        await expect(main).to_contain_text("Choose a time from which on events are sent again")
        await page.get_by_label("Time", exact=True).select_option("24h")
        await page.get_by_role("button", name="Check").click()
        await expect(main).to_contain_text("56 events that your server has accepted already; 4 more are no longer kept")
        await expect(main).to_contain_text("your server answered 401".capitalize())  # why they may fail again
        assert "dead and were not sent again yet" in await main.inner_text()
        assert await shown.violations() == []
        await page.get_by_role("button", name="again", exact=False).click()
        await expect(page.get_by_role("button", name="Stop").first).to_be_visible()
        await page.get_by_role("button", name="Stop").first.click()
        await expect(main).to_contain_text("Stopped")
        await shown.go("/jobs")
        await expect(main).to_contain_text("56 delivered events sent again")
        await expect(main).to_contain_text("jobs of the last 30 days")
        assert await shown.violations() == []


async def test_a_resend_of_a_paused_webhook_warns_at_phone_width(browser: Browser, stage: Stage) -> None:
    async with window(browser, stage.base, size=PHONE) as shown:
        await shown.sign_in(await stage.token())
        webhook = stage.webhooks[LUMA]
        await stage.services.webhooks.set_paused(webhook.id, paused=True, by="test", orgs=None)
        await shown.go(stage.path(LUMA, "/resend?event=msg_a&event=msg_b&include=delivered"))
        await expect(shown.page.locator("main")).to_contain_text("2 events that your server has accepted already")
        await expect(shown.page.locator(".confirm")).to_contain_text("Paused: events that arrive are held")
        assert await shown.violations() == []
        wider = await shown.page.evaluate("document.documentElement.scrollWidth - window.innerWidth")
        assert wider <= 0
        await stage.services.webhooks.set_paused(webhook.id, paused=False, by="test", orgs=None)


@pytest.mark.parametrize(
    ("query", "problem"),
    [
        ("?since=2026-11-28T14:00&until=28.11.2026+15:00", "The time 28.11.2026 15:00 can't be read"),
        ("?range=24h&since=yesterday", "The time yesterday can't be read"),
        ("?range=24h&include=skipped", "others can't be sent again"),
        ("?event=msg_1&include=attempt", "others can't be sent again"),
        ("?reason=expired", "Choose a time from which on events are sent again"),
    ],
)
async def test_an_impossible_resend_is_refused_and_not_widened(
    browser: Browser, stage: Stage, query: str, problem: str
) -> None:
    async with window(browser, stage.base) as shown:
        shown.ignored = ("422",)
        await shown.sign_in(await stage.token())
        assert await shown.go(stage.path(CONTOSO, f"/resend{query}")) == 422
        await expect(shown.page.locator("main")).to_contain_text(problem)
        assert await shown.page.get_by_role("button", name="again", exact=False).count() == 0


async def test_filters_apply_to_dead_events_too(browser: Browser, stage: Stage) -> None:
    """A reason, channel or campaign of the list is part of the order."""
    async with window(browser, stage.base) as shown:
        await shown.sign_in(await stage.token())
        confirm = shown.page.locator(".confirm")
        for query, number in (
            ("since=2000-01-01", 21),
            ("since=2000-01-01&reason=redirected,unreadable", 5),
            ("since=2000-01-01&channel=sms", 5),
            ("since=2000-01-01&campaign=c-1", 0),
        ):
            await shown.go(stage.path(FABRIKAM, f"/resend?include=dead&{query}"))
            await expect(confirm).to_contain_text(f"{number} events that are dead" if number else "Nothing to send")


async def test_dead_events_that_may_fail_again_are_named_before_they_are_sent(browser: Browser, stage: Stage) -> None:
    async with window(browser, stage.base) as shown:
        await shown.sign_in(await stage.token())
        await shown.go("/dead-events")
        await shown.page.get_by_label("that match").check()
        await shown.page.get_by_role("button", name="Send again…").click()
        failing = shown.page.locator(".notice", has_text=f"Those of {NORTHWIND.org} / {NORTHWIND.sandbox} may fail")
        await expect(failing).to_contain_text("Events wait until the webhook is edited or reactivated.")
        await expect(shown.page.locator(".notice", has_text=f"Those of {FABRIKAM.org}")).to_have_count(0)
        assert await shown.violations() == []


async def test_numbers_of_dead_events_that_are_not_all_kept_are_lower_bounds(
    browser: Browser, stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stage.services.dead_events, "is_at_least", True)
    async with window(browser, stage.base) as shown:
        await shown.sign_in(await stage.token())
        await shown.go("/dead-events")
        await shown.page.get_by_label("All that match").check()
        await shown.page.get_by_role("button", name="Send again…").click()
        await expect(shown.page.get_by_role("heading", name="Send at least")).to_be_visible()
        await expect(shown.page.locator("main")).to_contain_text("There may be more dead events than were counted.")


async def test_the_confirmation_sends_the_range_that_was_checked(
    browser: Browser, stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A relative range once moved on with the clock until the button was pressed."""
    asked: list[ResendQuery] = []
    resends = stage.services.resends
    assert resends is not None
    check, start = resends.check, resends.start

    async def checking(tenant: TenantKey, query: ResendQuery, config: WebhookConfig | None = None) -> ResendCheck:
        asked.append(query)
        return await check(tenant, query)

    async def starting(tenant: TenantKey, query: ResendQuery, by: str) -> RedriveModel:
        asked.append(query)
        return await start(tenant, query, by)

    monkeypatch.setattr(resends, "check", checking)
    monkeypatch.setattr(resends, "start", starting)
    async with window(browser, stage.base) as shown:
        await shown.sign_in(await stage.token())
        await shown.go(stage.path(LUMA, "/resend?range=30d&include=delivered"))
        await expect(shown.page.get_by_label("Time", exact=True)).to_have_value("30d")
        pressed = time.time()
        await shown.page.get_by_role("button", name="Send 56 events again").click()
        await shown.page.wait_for_url("**/jobs?**")
    checked, sent = asked
    assert checked.since is not None
    assert sent.until is not None
    assert sent.since == pytest.approx(checked.since, abs=0.001)
    assert sent.until < pressed
