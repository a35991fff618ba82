"""Finding a message in the console: the field of the top bar, the filtered list, the timeline, skipped events."""

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import unquote

import aiohttp
import pytest
from playwright.async_api import Browser, expect
from yarl import URL

from dispatcher.config.webhooks import Channel
from dispatcher.contract.history import HistoryOutcome
from dispatcher.contract.tenant import TenantKey
from dispatcher.errors import StoreUnavailable
from dispatcher.stores.sql import history_search
from dispatcher.stores.sql.history_seen import HistorySeen
from dispatcher.stores.sql.records import Role, WebhookQuery
from tests.console.history_store import KEY, FilledHistory, entry_of, history_in, recipient_hash
from tests.console.pages.browsing import PHONE, Window, window
from tests.console.pages.sample_world import CONTOSO, LUMA
from tests.console.pages.stage import Stage, staged

NEWCOMER = TenantKey("newcomer@AdobeOrg", "emea")
"""Its events come, and it has no webhook."""
ADDRESS = "1@customer.example"


RECIPIENTS = ("jane@luma.com", "root@localhost", "01512345678", "+4915112345", "+491512345678", "12345")
IDS = ("urn:uuid:4711", "4711081512", "20@mailer.example")


@pytest.fixture(scope="module")
async def stage(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stage]:
    """A console with a history of two tenants."""
    directory = tmp_path_factory.mktemp("history")
    async with history_in(directory) as history, staged(directory, history=history.lookup) as running:
        await fill(history)
        yield running


@pytest.fixture(scope="module")
async def stage_with_addresses(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stage]:
    """A console with one message to each of RECIPIENTS and with each of IDS."""
    directory = tmp_path_factory.mktemp("addresses")
    async with history_in(directory) as history, staged(directory, history=history.lookup) as running:
        await history.add(
            *(entry_of(LUMA, f"to{n}", recipient=recipient_hash(KEY, one)) for n, one in enumerate(RECIPIENTS)),
            *(entry_of(LUMA, f"id{n}", request_id=one) for n, one in enumerate(IDS)),
            entry_of(LUMA, "1"),
        )
        yield running


async def fill(history: FilledHistory) -> None:
    await history.add(
        entry_of(
            LUMA, age_s=7200, outcome=HistoryOutcome.ATTEMPT, reason="http_5xx", status=503, verdict="retry_soon",
            answer="<b>busy</b>", headers={"retry-after": "30"},
        ),
        entry_of(LUMA, age_s=7199, outcome=HistoryOutcome.PARKED, reason="attempt_failed", due_at=1, status=None),
        entry_of(LUMA, age_s=7000, attempt=2),
        *(
            entry_of(LUMA, f"s{n}", age_s=n, outcome=HistoryOutcome.SKIPPED, reason="channel", channel="sms")
            for n in range(1, 61)
        ),
        entry_of(CONTOSO, "1", age_s=30),
        entry_of(NEWCOMER, "n", age_s=60, outcome=HistoryOutcome.SKIPPED, reason="no_webhook", count=7, channel=None),
    )  # fmt: skip


async def search(shown: Window, text: str) -> None:
    field = shown.page.get_by_label("Find a message by any id, address or number")
    await field.fill(text)
    await field.press("Enter")
    await shown.page.wait_for_url(lambda url: "/search?" in url)


@pytest.mark.parametrize("size", [None, PHONE])
async def test_a_message_is_found_and_understood(browser: Browser, stage: Stage, size: dict[str, int] | None) -> None:
    async with window(browser, stage.base, size=size) as shown:
        await shown.sign_in(await stage.token(Role.VIEWER, frozenset({LUMA.org})))
        for text in ("r-1", "msg_1", "e-1", "x-1", f" {ADDRESS.upper()} "):
            await search(shown, text)
            assert "customer" not in shown.page.url.lower()
            rows = shown.page.get_by_role("table").locator("tbody tr")
            await expect(rows).to_have_count(3)  # the other organisation's message has the same ids
        assert recipient_hash(KEY, ADDRESS) in shown.page.url
        assert await shown.violations() == []
        await rows.first.get_by_role("link", name="msg_1").click()
        timeline = shown.page.locator("ol.timeline")
        await expect(timeline.get_by_role("listitem").first).to_contain_text("no later than")
        await expect(timeline).to_contain_text("Attempt 1: answered 503")
        await expect(timeline).to_contain_text("retry-after: 30")
        await expect(timeline).to_contain_text("Parked until")
        await expect(timeline).to_contain_text("Delivered by attempt 2")
        assert await shown.violations() == []
        await search(shown, "r-nothing")
        await expect(shown.page.get_by_role("heading", name="Nothing is known about it")).to_be_visible()


async def test_an_id_that_looks_like_an_address_is_found_and_addresses_are_in_no_url(
    browser: Browser, tmp_path: Path
) -> None:
    ids = ("4711081512", "20261128140000123", "2026-11-28.1234567", "1717@mailer.example")
    async with history_in(tmp_path) as history, staged(tmp_path, history=history.lookup) as stage:
        await history.add(*(entry_of(LUMA, str(n), request_id=one) for n, one in enumerate(ids)))
        await history.add(entry_of(LUMA, "to", recipient=recipient_hash(KEY, ids[0])))  # it is a number, too
        await history.add(entry_of(CONTOSO, "other", request_id="4711081599"))
        async with window(browser, stage.base) as shown:
            await shown.sign_in(await stage.token(Role.VIEWER, frozenset({LUMA.org})))
            rows = shown.page.get_by_role("table").locator("tbody tr")
            for place, text in enumerate(ids):
                await search(shown, text)
                await expect(rows).to_have_count(1 if place else 2)
                assert text in unquote(shown.page.url)  # an id isn't personal data
            for text in ("4711081599", "0@customer.example"):  # another organisation's id, an address
                await search(shown, text)
                assert text not in unquote(shown.page.url)
            await expect(rows).to_have_count(1)
    (other := tmp_path / "other").mkdir()
    async with (
        history_in(tmp_path, with_key=False) as history,
        staged(other, history=history.lookup) as stage,
        window(browser, stage.base) as shown,
    ):
        await shown.sign_in(await stage.token())
        await search(shown, ids[0])
        await expect(shown.page.get_by_role("table").locator("tbody tr")).to_have_count(1)
        await search(shown, "0@customer.example")
        await expect(shown.page.locator("main")).to_contain_text("can't be found by address")
        assert "customer" not in shown.page.url


@pytest.mark.parametrize(
    ("typed", "number"),
    [
        ("Jane Doe <jane@luma.com>", 1),
        ('"Doe, Jane" <jane@luma.com>,', 1),
        ("<jane@luma.com>", 1),
        ("mailto:jane@luma.com?subject=Order", 1),
        ("mailto:jane%40luma.com", 1),
        ("Email: jane@luma.com", 1),
        ("root@localhost", 1),
        ("Jane@luma.com <jane@luma.com>", 1),
        ("(0151) 2345678", 1),
        ("tel:+4915112345;ext=1", 1),
        ("+49\u00a0151\u00a02345678", 1),
        ("\u202a+49 151 2345678\u202c", 1),
        ("+49\u2011151\u20112345678", 1),
        ("０１５１ ２３４５６７８", 0),
        ("12345", 1),
        ("0151-nobody@luma.com", 0),
    ],
)
async def test_an_address_is_found_however_it_is_pasted_and_is_in_no_url(
    stage_with_addresses: Stage, typed: str, number: int
) -> None:
    async with _session(stage_with_addresses) as session:
        url, page = await _submitted(session, typed)
        assert set(url.query) == {"recipient"}
        assert ("1 entry" in page, "Nothing is known about it" in page) == (number == 1, number == 0)


@pytest.mark.parametrize("typed", ["a@x.com, b@x.com", "Jane <jane@luma.com>; Joe <joe@luma.com>", "a@x.com\nb@x.com"])
async def test_several_addresses_are_not_taken_for_one(stage_with_addresses: Stage, typed: str) -> None:
    async with _session(stage_with_addresses) as session:
        url, page = await _submitted(session, typed)
        assert url.query == {"address": "several"}
        assert "Search for one address at a time" in page


@pytest.mark.parametrize(
    ("typed", "found"),
    [
        ('"r-1"', "r-1"),
        ('"r-1",', "r-1"),
        ("requestId: r-1", "r-1"),
        ('"requestId": "r-1",', "r-1"),
        ("requestId=r-1;", "r-1"),
        ("\u200br-1\u00a0", "r-1"),
        ("`r-1`", "r-1"),
        ("<r-1>", "r-1"),
        ("urn:uuid:4711", "urn:uuid:4711"),
        ("_id: urn:uuid:4711", "urn:uuid:4711"),
        ("requestId: 4711081512", "4711081512"),
        ("requestId: 20@mailer.example", "20@mailer.example"),
        ("x-amz: y-9", "x-amz: y-9"),
        ("  ", ""),
    ],
)
async def test_an_id_is_found_with_what_was_copied_around_it(
    stage_with_addresses: Stage, typed: str, found: str
) -> None:
    async with _session(stage_with_addresses) as session:
        url, page = await _submitted(session, typed)
        assert url.query["q"] == found
        assert ("Nothing is known about it" in page) == (found == "x-amz: y-9")


@asynccontextmanager
async def _session(stage: Stage) -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(stage.base, cookie_jar=aiohttp.CookieJar(unsafe=True)) as session:
        async with session.post("/sign-in", data={"token": await stage.token()}) as answer:
            found = re.search(r'name="csrf_token" value="([^"]+)"', await answer.text())
            assert found is not None
            session.headers["X-CSRF-Token"] = found[1]
        yield session


async def _submitted(session: aiohttp.ClientSession, text: str) -> tuple[URL, str]:
    """The address of the results, and their page."""
    async with session.post("/search", data={"q": text}) as answer:
        assert answer.status == 200
        return answer.url, await answer.text()


async def test_a_long_timeline_says_that_it_has_only_the_end(
    browser: Browser, stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(history_search, "MAX_TIMELINE", 2)
    async with window(browser, stage.base) as shown:
        await shown.sign_in(await stage.token())
        await shown.go(stage.path(LUMA, "/deliveries/msg_1"))
        timeline = shown.page.locator("ol.timeline")
        await expect(timeline).to_contain_text("What happened earlier is not shown")
        await expect(timeline).not_to_contain_text("Attempt 1: answered 503")
        await expect(timeline).not_to_contain_text("after the first")
        await expect(timeline).to_contain_text("Delivered by attempt 2")
        assert await shown.violations() == []


async def test_the_list_is_filtered_and_paged_and_skipped_events_say_why(browser: Browser, stage: Stage) -> None:
    async with window(browser, stage.base) as shown:
        await shown.sign_in(await stage.token())
        await shown.go(stage.path(LUMA))
        skipped = shown.page.locator("section", has=shown.page.get_by_role("heading", name="Skipped"))
        await expect(skipped).to_contain_text("60")
        requests = shown.page.locator("section", has=shown.page.get_by_role("heading", name="Requests", exact=True))
        await expect(requests).to_contain_text("an event that is tried or sent again counts each time")
        await expect(skipped).to_contain_text("Add the channel to the webhook's channels.")
        assert await shown.violations() == []
        await skipped.get_by_role("link").first.click()
        rows = shown.page.get_by_role("table").locator("tbody tr")
        await expect(rows).to_have_count(50)
        await shown.page.get_by_role("link", name="Older").click()
        await expect(rows).to_have_count(10)
        assert "outcome=skipped" in shown.page.url
        assert await shown.violations() == []
        await shown.page.get_by_role("link", name="msg_s60").click()
        await expect(shown.page.locator("main")).to_contain_text("events like this one are not sent")
        again = shown.page.get_by_role("link", name="All of a time…")
        for query, link in (
            ("", "/resend"),
            ("?range=24h", "/resend?range=24h"),
            ("?outcome=dead&reason=expired&channel=email", "/resend?reason=expired&channel=email&include=dead"),
            ("?since=2000-01-01T00:00Z&status=bounce&campaign=c-1",
             "/resend?since=2000-01-01T00%3A00Z&status=bounce&campaign=c-1"),
            ("?outcome=skipped", None), ("?outcome=attempt", None), ("?q=msg_1", None),
        ):  # fmt: skip
            await shown.go(stage.path(LUMA, f"/deliveries{query}"))
            if link is None:
                await expect(again).to_have_count(0)
            elif "dead" not in query:
                await expect(again).to_have_attribute("href", stage.path(LUMA, link))
        shown.ignored = ("422",)
        assert await shown.go(stage.path(LUMA, "/deliveries?until=28.11.2026")) == 422
        await expect(shown.page.locator("main")).to_contain_text("The time 28.11.2026 can't be read")
        await shown.go(stage.path(LUMA, "/deliveries?since=2000-01-01T00:00&until=2001-01-01T00:00&outcome=dead"))
        await expect(shown.page.get_by_role("heading", name="Nothing matches")).to_be_visible()


async def test_others_messages_are_not_found(browser: Browser, stage: Stage) -> None:
    async with window(browser, stage.base) as shown:
        shown.ignored = ("404",)
        await shown.sign_in(await stage.token(Role.ADMIN, frozenset({"new@AdobeOrg"})))
        for text in ("r-1", ADDRESS):
            await search(shown, text)
            await expect(shown.page.get_by_role("heading", name="Nothing is known about it")).to_be_visible()
        assert await shown.go(stage.path(LUMA, "/deliveries/msg_1")) == 404


async def test_the_inventory_says_that_it_can_not_list_tenants_without_a_webhook(
    browser: Browser, stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fails(*_: object, **__: object) -> None:
        raise StoreUnavailable("no answer within 8 s")

    monkeypatch.setattr(HistorySeen, "without_webhook", fails)
    async with window(browser, stage.base) as shown:
        await shown.sign_in(await stage.token())
        await shown.go("/")
        await expect(shown.page.locator("main")).to_contain_text(
            "tenants that have events and no webhook can't be listed"
        )
        assert await shown.violations() == []


async def test_skipped_tenants_are_in_the_list_and_fill_the_form(browser: Browser, stage: Stage) -> None:
    async with window(browser, stage.base) as shown:
        page = shown.page
        await shown.sign_in(await stage.token())
        await shown.go("/")
        row = page.locator("tbody tr", has=page.get_by_role("link", name="Luma order feedback"))
        await expect(row.locator("[data-label=Skipped]")).to_have_text("60")
        seen = page.locator("section", has=page.get_by_role("heading", name="Seen without a webhook"))
        await expect(seen).to_contain_text("newcomer@AdobeOrg")
        await expect(seen.locator("[data-label=Events]")).to_have_text("7")
        assert await shown.violations() == []
        await seen.get_by_role("link", name="Create its webhook").click()
        await expect(page.locator("#f-org")).to_have_value("newcomer@AdobeOrg")
        await expect(page.locator("#f-sandbox")).to_have_value("emea")
        assert await page.locator("#sandboxes option").count() == 1
        webhook = stage.webhooks[LUMA]
        config = (await stage.services.webhooks.for_delivery(webhook.id, orgs=None)).model_copy(
            update={"channels": (Channel.EMAIL,)}
        )
        await stage.services.webhooks.update(webhook.id, config, expected_version=webhook.version, by="test", orgs=None)
        await shown.go(stage.path(LUMA, "/edit"))
        await expect(page.locator("#f-channels")).to_contain_text("60 events of channel sms came in the last 7 days")
        await expect(page.locator(".campaigns")).to_contain_text("c-1")
        assert await shown.violations() == []


async def test_the_deliveries_of_any_scope_are_filtered_and_paged(browser: Browser, stage: Stage) -> None:
    """All tenants, those of some organisations, an organisation and a sandbox without a webhook."""
    async with window(browser, stage.base) as shown:
        page, rows = shown.page, shown.page.get_by_role("table").locator("tbody tr")
        await shown.sign_in(await stage.token())
        await shown.go("/deliveries")
        await expect(rows).to_have_count(50)
        await expect(page.get_by_role("table")).to_contain_text(CONTOSO.org)
        assert await page.get_by_role("link", name="All of a time…").count() == 0
        await page.get_by_role("link", name="Older").click()
        await expect(rows).to_have_count(15)
        await page.get_by_label("Outcome").select_option("delivered")
        await page.get_by_role("button", name="Filter").click()
        await expect(rows).to_have_count(2)
        await expect(rows.get_by_role("link", name="msg_1")).to_have_count(2)
        assert await shown.violations() == []
        for scope, number in ((LUMA.org, 1), (CONTOSO.org, 1), (f"{LUMA.org}/prod", 1), (f"{NEWCOMER.org}/emea", 0)):
            await page.context.add_cookies([{"name": "dispatcher-scope", "value": scope, "url": stage.base}])
            await shown.go("/deliveries?outcome=delivered")
            await expect(rows).to_have_count(number)
        await shown.go("/deliveries")
        await expect(page.get_by_role("table")).to_contain_text(NEWCOMER.org)
    async with window(browser, stage.base) as shown:
        rows = shown.page.get_by_role("table").locator("tbody tr")
        await shown.sign_in(await stage.token(Role.VIEWER, frozenset({LUMA.org})))
        for query, number in (
            ("?outcome=delivered", 1),
            ("?reason=http_5xx", 1),
            ("?campaign=c-1&outcome=delivered", 1),
        ):
            await shown.go(f"/deliveries{query}")
            await expect(rows).to_have_count(number)
        await shown.go("/deliveries?q=msg_1")
        await expect(rows).to_have_count(3)
        assert CONTOSO.org not in await shown.page.content()


async def test_the_list_knows_no_state_while_no_dispatcher_answers(browser: Browser, stage: Stage) -> None:
    """The history worker may go on alone: its evidence is of the time before."""
    stage.lanes.is_answering = False
    try:
        async with window(browser, stage.base) as shown:
            await shown.sign_in(await stage.token())
            enabled = sum(webhook.enabled for webhook in stage.webhooks.values())
            for path, number in (("/", len(stage.webhooks)), ("/?state=unknown&sort=state", enabled)):
                await shown.go(path)
                rows = shown.page.locator("tbody tr", has=shown.page.locator(".row-link"))
                await expect(rows).to_have_count(number)
                await expect(rows.filter(has_text="Unknown")).to_have_count(enabled)
    finally:
        stage.lanes.is_answering = True


async def test_seen_tenants_are_those_of_the_persons_organisations(browser: Browser, stage: Stage) -> None:
    async with window(browser, stage.base) as shown:
        await shown.sign_in(await stage.token(Role.ADMIN, frozenset({LUMA.org})))
        for path in ("/", "/webhooks/new"):
            await shown.go(path)
            assert "newcomer" not in await shown.page.content()


async def test_more_webhooks_than_a_page_are_sorted_and_filtered_by_state(stage: Stage, browser: Browser) -> None:
    """The order by state and last delivery covers every webhook, not the first 200."""
    for number in range(230):
        draft = {
            "name": f"Many {number:03}",
            "org": "many@AdobeOrg",
            "sandbox": f"s{number}",
            "url": "https://h.example/f",
        }
        config = await stage.services.webhooks.resolve(draft, webhook_id=None, orgs=None)
        await stage.services.webhooks.create(config, by="test", orgs=None)
    try:
        async with window(browser, stage.base) as shown:
            await shown.sign_in(await stage.token())
            await shown.go("/?sort=name&order=down&state=unknown")
            names = await shown.page.locator("tbody .row-link").all_inner_texts()
            assert names[0] == "Tailspin holiday mail"
            assert "Many 229" in names[:3]  # beyond the first 200 by name
            await expect(shown.page.locator(".pager")).to_contain_text("Page 1 of 10")
            await shown.go("/?sort=last&order=down")
            assert (await shown.page.locator("tbody .row-link").first.inner_text()) == "Luma order feedback"
    finally:
        for webhook in await stage.services.webhooks.list_all(WebhookQuery(org="many@AdobeOrg"), orgs=None):
            await stage.services.webhooks.delete(webhook.id, expected_version=1, by="test", orgs=None)
