"""Dead events are sent again only if they would not be skipped, and "all that match" are those that are shown."""

import time
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
from playwright.async_api import Browser, Locator, Page, expect

from dispatcher.config.webhooks import Channel
from dispatcher.contract.tenant import TenantKey
from tests.console.pages.browsing import Window, window
from tests.console.pages.sample_world import CONTOSO, FABRIKAM, NORTHWIND
from tests.console.pages.stage import Stage, add_webhook, staged


@pytest.fixture
async def stage(tmp_path: Path) -> AsyncIterator[Stage]:
    async with staged(tmp_path) as running:
        yield running


async def switch_off(stage: Stage, tenant: TenantKey) -> None:
    stored = stage.webhooks[tenant]
    config = stored.config().model_copy(update={"enabled": False})
    await stage.services.webhooks.update(stored.id, config, expected_version=stored.version, by="test", orgs=None)


async def delete(stage: Stage, tenant: TenantKey) -> None:
    stored = stage.webhooks[tenant]
    await stage.services.webhooks.delete(stored.id, expected_version=stored.version, by="test", orgs=None)


def numbers(stage: Stage) -> dict[TenantKey | None, int]:
    """How many dead events each tenant has."""
    found: dict[TenantKey | None, int] = {}
    for fact in stage.dead_events.facts:
        found[fact.tenant] = found.get(fact.tenant, 0) + 1
    return found


async def opened(shown: Window, stage: Stage, path: str) -> tuple[Page, Locator]:
    await shown.sign_in(await stage.token())
    await shown.go(path)
    return shown.page, shown.page.locator("main")


async def test_events_that_would_be_skipped_can_not_be_sent_again(browser: Browser, stage: Stage) -> None:
    """The webhook of one sandbox is switched off, that of another is deleted."""
    await switch_off(stage, CONTOSO)
    await delete(stage, NORTHWIND)
    dead = numbers(stage)
    async with window(browser, stage.base) as shown:
        shown.ignored = ("422",)
        page, main = await opened(shown, stage, "/dead-events")
        row = page.locator("tbody tr", has=page.get_by_text("Contoso delivery receipts")).first
        await expect(row.get_by_role("checkbox")).to_be_disabled()
        await expect(row).to_contain_text("switched off")
        row = page.locator("tbody tr", has=page.get_by_text(f"{NORTHWIND.org} / {NORTHWIND.sandbox}")).first
        await expect(row.get_by_role("checkbox")).to_be_disabled()
        await expect(row).to_contain_text("no webhook")
        row = page.locator("tbody tr", has=page.get_by_text("Fabrikam events")).first
        await expect(row.get_by_role("checkbox")).to_be_enabled()
        await expect(page.get_by_label(f"All {dead[FABRIKAM]} that match")).to_be_enabled()
        await expect(main).to_contain_text(f"{dead[CONTOSO] + dead[NORTHWIND]} more events match, but would be skipped")
        assert await shown.violations() == []
        await page.get_by_label("that match").check()
        await page.get_by_role("button", name="Send again…").click()
        await expect(page.get_by_role("heading", name=f"Send {dead[FABRIKAM]} events again?")).to_be_visible()
        await expect(main).to_contain_text("They are delivered like new events")
        await expect(main).not_to_contain_text("topic of events")
        await page.get_by_role("button", name=f"Send {dead[FABRIKAM]} events again").click()
        await expect(main).to_contain_text("again")
    assert {job.tenant for job in stage.dead_events.jobs.made.values()} == {FABRIKAM}


async def test_a_choice_made_before_the_webhook_was_switched_off_is_refused(browser: Browser, stage: Stage) -> None:
    async with window(browser, stage.base) as shown:
        shown.ignored = ("422",)
        page, main = await opened(shown, stage, "/dead-events")
        for name in ("Contoso delivery receipts", "Fabrikam events"):
            row = page.locator("tbody tr", has=page.get_by_text(name)).first
            await row.get_by_role("checkbox").check()
        await switch_off(stage, CONTOSO)
        await page.get_by_role("button", name="Send again…").click()
        await expect(page.get_by_role("heading", name="Send 1 event again?")).to_be_visible()
        refused = page.locator(".notice", has_text=f"Not sent: 1 event of {CONTOSO.org} / {CONTOSO.sandbox}")
        await expect(refused).to_contain_text("switch it on first: its events would be skipped")
        await delete(stage, FABRIKAM)
        await page.get_by_role("button", name="Send 1 event again").click()
        await expect(main).to_contain_text("there is no webhook for it")
        assert stage.dead_events.jobs.made == {}
        await shown.go(f"/dead-events?org={CONTOSO.org}&sandbox={CONTOSO.sandbox}")
        await expect(page.get_by_label("that match")).to_be_disabled()
        assert await shown.go(stage.path(CONTOSO, "/resend?range=24h")) == 422
        await expect(main).to_contain_text("switch it on first: its events would be skipped")
        assert await page.get_by_role("button", name="again", exact=False).count() == 0


async def test_dead_events_beyond_the_first_200_webhooks_are_sent_again_too(browser: Browser, stage: Stage) -> None:
    """Pages over all webhooks once covered the first 200 of them."""
    for number in range(205):
        await add_webhook(stage, f"sandbox-{number:03}")  # sorted before all others
    async with window(browser, stage.base) as shown:
        page, main = await opened(shown, stage, "/dead-events")
        await expect(page.get_by_label("All 64 that match, in 3 sandboxes")).to_be_enabled()
        await expect(page.locator("tbody a", has_text="Northwind SMS").first).to_be_visible()
        await page.get_by_label("that match").check()
        await page.get_by_role("button", name="Send again…").click()
        await expect(main).to_contain_text("Send 64 events again?")


async def test_all_that_match_are_the_ones_that_are_shown(browser: Browser, stage: Stage) -> None:
    facts = stage.dead_events.facts
    facts[0] = replace(facts[0], redriven=True)
    async with window(browser, stage.base) as shown:
        page, main = await opened(shown, stage, "/dead-events?again=yes")
        await expect(main).to_contain_text("1 event matches")
        await expect(page.get_by_label("that match")).to_be_disabled()
        await page.get_by_label("Sent again").select_option("both")
        await page.get_by_role("button", name="Filter").click()
        await expect(main).to_contain_text("65 events match")
        await expect(page.get_by_label("that match")).to_be_disabled()


async def test_events_that_can_not_be_sent_are_in_no_number_of_those_that_are(browser: Browser, stage: Stage) -> None:
    """What is shown, what is confirmed and what is sent are the same number."""
    facts = stage.dead_events.facts
    first = next(place for place, fact in enumerate(facts) if fact.tenant == FABRIKAM)
    facts[first] = replace(facts[first], event_id=None, can_be_sent=False)
    number = numbers(stage)[FABRIKAM] - 1
    async with window(browser, stage.base) as shown:
        page, main = await opened(shown, stage, f"/dead-events?org={FABRIKAM.org}&sandbox={FABRIKAM.sandbox}")
        await expect(main).to_contain_text(f"{number + 1} events match")
        await expect(main).to_contain_text("1 can't be sent again")
        await expect(page.locator("tbody tr").first.get_by_role("checkbox")).to_be_disabled()
        await page.get_by_label(f"All {number} that match").check()
        await page.get_by_role("button", name="Send again…").click()
        await expect(page.locator(".groups")).to_contain_text(f"{number} events of {FABRIKAM.org}")
        await page.get_by_role("button", name=f"Send {number} events again").click()
        await page.wait_for_url("**/jobs?**")
    assert [job.total for job in stage.dead_events.jobs.made.values()] == [number]


async def test_events_that_the_webhook_would_skip_by_its_lists_are_named_before(browser: Browser, stage: Stage) -> None:
    stored, tenant = stage.webhooks[FABRIKAM], f"{FABRIKAM.org} / {FABRIKAM.sandbox}"
    config = stored.config().model_copy(update={"channels": (Channel.EMAIL,)})
    await stage.services.webhooks.update(stored.id, config, expected_version=stored.version, by="test", orgs=None)
    number = sum(fact.tenant == FABRIKAM and fact.channel == "sms" for fact in stage.dead_events.facts)
    words = "would be skipped: the webhook doesn't want its channel"
    async with window(browser, stage.base) as shown:
        page, main = await opened(shown, stage, "/dead-events")
        await page.get_by_label("that match").check()
        await page.get_by_role("button", name="Send again…").click()
        await expect(main).to_contain_text(f"{number} events of {tenant} {words}")
        await expect(main).to_contain_text("Add the channel to the webhook's channels.")
        await shown.go("/dead-events?channel=email")
        await page.get_by_label("that match").check()
        await page.get_by_role("button", name="Send again…").click()
        await expect(main).not_to_contain_text("would be skipped")
        await shown.go(stage.path(FABRIKAM, "/resend?include=dead&since=2000-01-01"))
        await expect(main).to_contain_text(f"{number} events of these {words}")
        assert await shown.violations() == []


async def test_the_overview_leads_to_the_dead_events_of_its_webhook(browser: Browser, stage: Stage) -> None:
    number = stage.dead_events.count(FABRIKAM, time.time() - 86_400)
    async with window(browser, stage.base) as shown:
        page, main = await opened(shown, stage, stage.path(FABRIKAM, "?window=24h"))
        await page.get_by_role("link", name=f"{number} events died in the last 24h").click()
        await expect(main).to_contain_text(f"Events of {FABRIKAM.org} / {FABRIKAM.sandbox}")
        await expect(main).to_contain_text(f"{number} events match")
        await expect(page.get_by_label(f"All {number} that match")).to_be_enabled()
        await page.get_by_label("Channel").select_option("sms")
        await page.get_by_role("button", name="Filter").click()
        await expect(main).to_contain_text(f"Events of {FABRIKAM.org} / {FABRIKAM.sandbox}")  # still
        await page.get_by_label("that match").check()
        await page.get_by_role("button", name="Send again…").click()
        await expect(page.locator(".groups li")).to_have_count(1)
        await expect(page.locator(".groups")).to_contain_text(FABRIKAM.org)
        await page.get_by_role("link", name="Cancel").click()
        await expect(main).to_contain_text(f"Events of {FABRIKAM.org} / {FABRIKAM.sandbox}")


async def test_another_organisation_in_the_address_shows_nothing(browser: Browser, stage: Stage) -> None:
    async with window(browser, stage.base) as shown:
        shown.ignored = ("404",)
        await shown.sign_in(await stage.token(orgs=frozenset({CONTOSO.org})))
        assert await shown.go(f"/dead-events?org={FABRIKAM.org}&sandbox={FABRIKAM.sandbox}") == 404


async def test_events_that_died_after_the_check_are_not_sent(browser: Browser, stage: Stage) -> None:
    async with window(browser, stage.base) as shown:
        page, _ = await opened(shown, stage, f"/dead-events?org={FABRIKAM.org}&sandbox={FABRIKAM.sandbox}&span=24h")
        await page.get_by_label("that match").check()
        await page.get_by_role("button", name="Send again…").click()
        newest = next(fact for fact in stage.dead_events.facts if fact.tenant == FABRIKAM)
        number = numbers(stage)[FABRIKAM]
        later = replace(newest, id="2-9999", event_id="msg_later", died_at=time.time())
        stage.dead_events.facts.insert(0, later)
        await page.get_by_role("button", name=f"Send {number} events again").click()
        await page.wait_for_url("**/jobs?**")
    assert [job.total for job in stage.dead_events.jobs.made.values()] == [number]
