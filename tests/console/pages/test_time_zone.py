"""Times in the zone that a person has chosen."""

from contextvars import copy_context
from datetime import UTC, datetime
from urllib.parse import parse_qs, urlencode, urlsplit

import pytest
from aiohttp.test_utils import make_mocked_request
from playwright.async_api import Browser, expect

from dispatcher.console.formatting import clock, exact, iso
from dispatcher.console.pages.time_range import TimeRange, time_in, with_offsets
from dispatcher.console.time_zone import OFFERED, use_zone, zone_named
from tests.console.pages.browsing import window
from tests.console.pages.sample_world import LUMA
from tests.console.pages.stage import Stage

AT = 1_764_342_000.0  # 28 November 2025, 15:00 UTC


@pytest.mark.parametrize(
    ("zone", "shown"),
    [
        ("UTC", "28 Nov 2025, 15:00:00 UTC"),
        ("", "28 Nov 2025, 15:00:00 UTC"),
        ("Europe/Berlin", "28 Nov 2025, 16:00:00 CET"),
        ("Asia/Kolkata", "28 Nov 2025, 20:30:00 IST"),
        ("America/Sao_Paulo", "28 Nov 2025, 12:00:00 UTC-03"),
        ("Pacific/Auckland", "29 Nov 2025, 04:00:00 NZDT"),
        *(
            (name, "28 Nov 2025, 15:00:00 UTC")
            for name in ("../../etc/passwd", "/etc/passwd", "Europe", "x" * 999, "\0")
        ),
    ],
)
def test_times_are_formatted_and_read_in_the_zone(zone: str, shown: str) -> None:
    def check() -> None:
        use_zone(zone)
        assert exact(AT) == shown
        assert clock(AT) in shown
        assert iso(AT) == "2025-11-28T15:00:00+00:00"
        assert "9999" in exact(datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC).timestamp())
        assert time_in("2025-11-28T15:00Z") == AT
        for edge in ("0001-01-01T00:00", "0001-01-01T00:00+00:00", "9999-12-31T23:59", "9999-12-31T23:59-12:00"):
            time_in(edge)  # raises nothing
            TimeRange(since=edge).since_input  # noqa: B018  (raises nothing)

    copy_context().run(check)


def test_a_typed_time_is_of_the_zone() -> None:
    def check() -> None:
        use_zone("Europe/Berlin")
        assert time_in("2025-11-28T16:00") == AT

    copy_context().run(check)


@pytest.mark.parametrize(
    ("zone", "typed", "earlier", "later"),
    [
        ("Europe/Berlin", "2025-10-26T02:30", "2025-10-26T00:30Z", "2025-10-26T01:30Z"),  # comes twice
        ("Europe/Berlin", "2025-10-26T03:00", "2025-10-26T02:00Z", "2025-10-26T02:00Z"),
        ("Europe/Berlin", "2025-03-30T02:30", "2025-03-30T00:30Z", "2025-03-30T01:30Z"),  # is missing
        ("America/New_York", "2025-11-02T01:00", "2025-11-02T05:00Z", "2025-11-02T06:00Z"),
        ("Australia/Lord_Howe", "2025-04-06T01:45", "2025-04-05T14:45Z", "2025-04-05T15:15Z"),  # half an hour
        ("Asia/Kolkata", "2025-10-26T02:30", "2025-10-25T21:00Z", "2025-10-25T21:00Z"),
    ],
)
def test_a_range_has_all_that_its_times_may_mean_when_the_clocks_change(
    zone: str, typed: str, earlier: str, later: str
) -> None:
    def check() -> None:
        use_zone(zone)
        between = TimeRange(since=typed, until=typed)
        assert (between.begin(AT), between.end) == (time_in(earlier), time_in(later))
        request = make_mocked_request("GET", f"/deliveries?{urlencode(between.fields())}")
        query = parse_qs(urlsplit(with_offsets(request) or "").query)
        assert [time_in(query[name][0]) for name in ("since", "until")] == [time_in(earlier), time_in(later)]
        assert (between.since_input, between.until_input) == (shown_again(earlier), shown_again(later))

    def shown_again(at: str) -> str:
        return TimeRange(since=at).since_input

    copy_context().run(check)


def test_all_zones_that_are_offered_exist() -> None:
    assert [name for name in OFFERED if zone_named(name) is None] == []


async def test_the_zone_is_chosen_in_the_account_menu_and_kept(browser: Browser, stage: Stage) -> None:
    async with window(browser, stage.base, script=False) as shown:
        page = shown.page
        await shown.sign_in(await stage.token())
        await shown.go(stage.path(LUMA, "/audit"))
        assert " UTC" in (await page.locator("main time").first.get_attribute("title") or "")
        await page.locator("details.account summary").click()
        await page.get_by_label("Time zone").select_option("Asia/Tokyo")
        await page.get_by_role("button", name="Use", exact=True).click()
        await shown.go(stage.path(LUMA, "/audit"))
        assert " JST" in (await page.locator("main time").first.get_attribute("title") or "")
        await expect(page.get_by_label("Time zone")).to_have_value("Asia/Tokyo")
        await shown.go(stage.path(LUMA, "/resend"))
        await expect(page.locator("label[for=since]")).to_have_text("From (Asia/Tokyo)")


async def test_a_link_with_times_means_the_same_in_every_zone(browser: Browser, stage: Stage) -> None:
    """The browser submits local times; the address that a person copies has their offset."""
    zone = {"name": "dispatcher-zone", "url": stage.base}
    async with window(browser, stage.base, script=False) as shown:
        page = shown.page
        await shown.sign_in(await stage.token())
        await page.context.add_cookies([{**zone, "value": "Europe/Berlin"}])
        await shown.go(stage.path(LUMA, "/resend"))
        await page.get_by_label("From").fill("2025-11-28T16:00")
        await page.get_by_label("Until").fill("2025-11-28T17:30")
        await page.get_by_role("button", name="Check").click()
        link = page.url
        assert "since=2025-11-28T16%3A00%2B01%3A00" in link
        assert "until=2025-11-28T17%3A30%2B01%3A00" in link
        await expect(page.get_by_label("From")).to_have_value("2025-11-28T16:00")
        await page.context.add_cookies([{**zone, "value": "America/New_York"}])
        await shown.go(link.removeprefix(stage.base))
        assert page.url == link
        await expect(page.get_by_label("From")).to_have_value("2025-11-28T10:00")
        await shown.go(stage.path(LUMA))
        await expect(page.locator(".as-table th").first).to_have_text("From (America/New_York)")
