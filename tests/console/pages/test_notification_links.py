"""Following the links that notifications contain."""

from collections.abc import Mapping
from typing import cast

import pytest
from playwright.async_api import Browser, expect

from dispatcher.contract.tenant import TenantKey
from dispatcher.notifications.content import Known, Section, as_events, content_of, fleet_section, section
from dispatcher.notifications.news import News, NewsKind
from dispatcher.stores.sql.records import Role
from tests.console.pages.browsing import window
from tests.console.pages.sample_world import CONTOSO, LUMA
from tests.console.pages.stage import Stage


def _link_of(one: Section) -> str:
    """The link of the operational webhook, which is the mail's, too."""
    (event,) = as_events(content_of([one]), 0.0)
    link = cast(Mapping[str, str], event["data"])["link"]
    assert link == one.link
    return link


def _link_to(stage: Stage, tenant: TenantKey) -> str:
    news = News(NewsKind.FAILING, 0.0)
    return _link_of(section(tenant, news, Known(None, None, None), stage.base, 0.0)).removeprefix(stage.base)


async def test_the_link_leads_through_the_sign_in_to_the_webhook(browser: Browser, stage: Stage) -> None:
    async with window(browser, stage.base) as shown:
        assert await shown.go(_link_to(stage, LUMA)) == 200
        await shown.page.fill("#token", await stage.token(Role.VIEWER, frozenset({LUMA.org})))
        await shown.page.get_by_role("button", name="Sign in").click()
        await shown.page.wait_for_url(lambda url: "/sign-in" not in url)
        assert shown.page.url == stage.base + stage.path(LUMA)
        await expect(shown.page.locator("h1")).to_contain_text("Luma order feedback")


@pytest.mark.parametrize("sandbox", ["gone", "ü & /?#"])
async def test_the_link_to_a_webhook_that_is_gone_leads_to_its_scope(
    browser: Browser, stage: Stage, sandbox: str
) -> None:
    async with window(browser, stage.base) as shown:
        await shown.sign_in(await stage.token())
        assert await shown.go(_link_to(stage, TenantKey(LUMA.org, sandbox))) == 200
        assert shown.page.url == stage.base + "/"
        await expect(shown.page.locator("#scope option:checked")).to_have_text(f"{LUMA.org} / {sandbox}")


async def test_the_link_reveals_nothing_of_another_organisation(browser: Browser, stage: Stage) -> None:
    async with window(browser, stage.base) as shown:
        await shown.sign_in(await stage.token(Role.ADMIN, frozenset({LUMA.org})))
        for tenant in (CONTOSO, TenantKey(CONTOSO.org, "gone")):
            assert await shown.go(_link_to(stage, tenant)) == 200
            assert shown.page.url == stage.base + "/"
            await expect(shown.page.locator("#scope option:checked")).to_have_text("All organisations")


async def test_the_operators_link_leads_to_all_webhooks(browser: Browser, stage: Stage) -> None:
    link = _link_of(fleet_section(News(NewsKind.MASS, 0.0, count=3, total=9), stage.base, 0.0))
    async with window(browser, stage.base) as shown:
        await shown.sign_in(await stage.token())
        await shown.go(_link_to(stage, TenantKey(LUMA.org, "gone")))
        assert await shown.go(link.removeprefix(stage.base)) == 200
        assert shown.page.url == stage.base + "/"
        await expect(shown.page.locator("#scope option:checked")).to_have_text("All organisations")
