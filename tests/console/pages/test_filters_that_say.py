"""A filter that can't be meant, or that shows less than it seems to, says so; words count in any case."""

import html
import re
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from types import SimpleNamespace
from urllib.parse import urlencode

import aiohttp
import pytest

from dispatcher.console.pages import skipped as skipped_page
from dispatcher.contract.history import HistoryOutcome
from tests.console.history_store import FilledHistory, entry_of, history_in
from tests.console.pages.sample_world import FABRIKAM, LUMA
from tests.console.pages.stage import Stage, staged
from tests.console.pages.test_kept_form import browser


@pytest.fixture(scope="module")
async def history(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[FilledHistory]:
    async with history_in(tmp_path_factory.mktemp("history")) as filled:
        await filled.add(
            *(
                entry_of(LUMA, f"s{age}", age_s=age, outcome=HistoryOutcome.SKIPPED, reason="channel", channel="sms")
                for age in range(60, 4800, 60)
            )
        )
        yield filled


@pytest.fixture(scope="module")
async def stage(tmp_path_factory: pytest.TempPathFactory, history: FilledHistory) -> AsyncIterator[Stage]:
    async with staged(tmp_path_factory.mktemp("stage"), history=history.lookup) as running:
        yield running


@pytest.fixture
async def session(stage: Stage) -> AsyncIterator[aiohttp.ClientSession]:
    async with browser(stage, await stage.token()) as signed_in:
        yield signed_in


async def read(session: aiohttp.ClientSession, path: str, **query: str) -> tuple[int, str]:
    async with session.get(f"{path}?{urlencode(query)}" if query else path) as answer:
        return answer.status, html.unescape(await answer.text())


def ago(seconds: float) -> str:
    return datetime.fromtimestamp(time.time() - seconds, UTC).isoformat()


@pytest.mark.parametrize(
    "range_", [{"since": ago(60), "until": ago(120)}, {"range": "1h", "span": "1h", "until": ago(7200)}]
)
async def test_a_time_that_ends_before_it_begins_is_refused(
    stage: Stage, session: aiohttp.ClientSession, range_: dict[str, str]
) -> None:
    for path in ("/deliveries", "/dead-events", stage.path(LUMA, "/deliveries"), stage.path(LUMA, "/resend")):
        status, page = await read(session, path, **range_)
        assert (status, "ends before it begins" in page) == (422, True), path


async def test_a_typed_begin_is_not_shown_as_a_relative_range(stage: Stage, session: aiohttp.ClientSession) -> None:
    for path in ("/deliveries", "/dead-events", stage.path(LUMA, "/resend")):
        _, page = await read(session, path, range="1h", span="1h", since=ago(7200))
        assert '<option value="1h" selected>' not in page, path
        _, page = await read(session, path, range="1h", span="1h")
        assert '<option value="1h" selected>' in page, path


async def test_words_are_found_in_any_case_and_offered(stage: Stage, session: aiohttp.ClientSession) -> None:
    status, page = await read(session, stage.path(LUMA, "/deliveries"), reason="Channel", outcome="skipped")
    assert (status, "Nothing matches" in page) == (200, False)
    assert "Skipped" in page
    _, page = await read(
        session, stage.path(FABRIKAM, "/resend"), since="2000-01-01", reason="REDIRECTED", include="dead"
    )
    assert re.search(r"<strong>[1-9]\d* events</strong> that are dead", page)
    _, page = await read(session, stage.path(FABRIKAM, "/resend"), since="2000-01-01", status="Error", include="dead")
    assert re.search(r"<strong>[1-9]\d* events</strong> that are dead", page)
    for path in ("/deliveries", stage.path(LUMA, "/resend")):
        _, page = await read(session, path)
        for list_, words in (("reasons", ("expired", "channel", "http_5xx")), ("statuses", ("bounce", "delivered"))):
            found = re.search(rf'<datalist id="{list_}">(.*?)</datalist>', page)
            assert found is not None
            assert f'list="{list_}"' in page
            assert all(f'value="{word}"' in found[1] for word in words)


async def test_a_page_after_the_last_one_is_the_last_one(session: aiohttp.ClientSession) -> None:
    for query in ({"page": "9999"}, {"page": "9999", "sort": "state"}):
        _, page = await read(session, "/", **query)
        assert "Luma order feedback" in page
        assert "No feedback webhook yet" not in page


async def test_neither_kind_of_events_is_not_both(stage: Stage, session: aiohttp.ClientSession) -> None:
    _, page = await read(session, stage.path(LUMA, "/resend"))
    assert '<input type="hidden" name="include" value="">' in page  # what a browser sends if neither is checked
    status, page = await read(session, stage.path(LUMA, "/resend"), range="24h", include="")
    assert (status, "Choose delivered events, dead ones or both" in page) == (422, True)


async def test_skipped_events_are_as_many_as_the_list_they_lead_to(
    stage: Stage, session: aiohttp.ClientSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Events are counted in quarters of an hour: the first one is counted, and listed, as a whole."""
    quarter = time.time() // 900 * 900
    monkeypatch.setattr(
        skipped_page, "time", SimpleNamespace(time=lambda: quarter + 840)
    )  # 14 minutes of the first quarter are outside
    _, page = await read(session, stage.path(LUMA), window="1h")
    link = re.search(r'href="([^"]*outcome=skipped[^"]*)">.*?<td class="number">(\d+)</td>', page)
    assert link is not None
    begin = datetime.fromtimestamp(quarter - 3600, UTC)
    assert f"quarters of an hour since {begin:%-d %b %Y, %H:%M}" in page
    expected = sum(time.time() - age >= quarter - 3600 for age in range(60, 4800, 60))
    assert abs(int(link[2]) - expected) <= 1
    counted, path, listed = int(link[2]), link[1], 0
    assert urlencode({"since": begin.isoformat(timespec="seconds")}) in path
    while path:
        _, page = await read(session, path)
        listed += len(re.findall(r"<tr>|<tr ", page.partition("<tbody>")[2]))
        older = re.search(r'href="([^"]*before=[^"]*)">Older', page)
        path = "" if older is None else older[1]
    assert listed == counted


async def test_a_list_says_until_when_its_entries_are_kept(stage: Stage, session: aiohttp.ClientSession) -> None:
    for query, words in (
        ({"outcome": "skipped", "range": "7d"}, "Skipped events are listed for 24h"),
        ({"outcome": "delivered", "range": "7d"}, "Delivered events are listed for 24h"),
        ({"range": "7d"}, "listed for 24h"),
        ({"range": "1h"}, ""),
        ({"outcome": "dead", "range": "7d"}, ""),
        ({}, ""),
    ):
        for path in ("/deliveries", stage.path(LUMA, "/deliveries")):
            _, page = await read(session, path, **query)
            assert (words in page) if words else ("are listed for" not in page), (path, query)


async def test_an_unknown_value_is_refused_and_offers_nothing(stage: Stage, session: aiohttp.ClientSession) -> None:
    """It was left out: what matched was everything, and could be sent."""
    luma = stage.path(LUMA, "/deliveries")
    for path, query, text in (
        ("/dead-events", {"reason": "rejectd"}, "There is no reason “rejectd”: choose unreadable, internal,"),
        ("/dead-events", {"span": "2h"}, "There is no time range “2h”: choose 15m, 1h, 24h, 7d or 30d."),
        ("/dead-events", {"again": "odd"}, "choose no, yes or both."),
        ("/deliveries", {"outcome": "failed"}, "There is no outcome “failed”: choose attempt, delivered,"),
        (luma, {"outcome": "failed"}, "There is no outcome “failed”"),
        (luma, {"range": "2h"}, "There is no time range “2h”"),
        ("/search", {"campaign": "c-1", "outcome": "odd"}, "There is no outcome “odd”"),
        (stage.path(LUMA, "/resend"), {"range": "2h"}, "There is no time range “2h”"),
        ("/audit", {"action": "bogus"}, "There is no action “bogus”"),
        (stage.path(LUMA, "/audit"), {"action": "bogus"}, "There is no action “bogus”"),
        ("/", {"state": "odd"}, "There is no state “odd”"),
        ("/", {"channel": "post"}, "There is no channel “post”"),
    ):
        status, page = await read(session, path, **query)
        assert (status, text in page) == (422, True), (path, query)
        assert not re.search(r'name="(id|event)"|All [\d,]+ that match|<button[^>]*>Send', page), (path, query)
    status, page = await read(session, "/dead-events", since="odd")
    assert (status, "Send again…" in page, 'name="id"' in page) == (422, False, False)
    for path in ("/audit", stage.path(LUMA, "/audit")):
        assert (await read(session, path, before="abc"))[0] == 404


async def test_more_words_than_a_filter_takes_are_refused(stage: Stage, session: aiohttp.ClientSession) -> None:
    """The rest was left out: another reason would have been sent again than the ones that were typed."""
    for path in ("/deliveries", stage.path(LUMA, "/deliveries"), stage.path(LUMA, "/resend")):
        for name in ("reason", "status", "channel"):
            text = ", ".join(["email", *(f"{name}-{number}" for number in range(20))])
            status, page = await read(session, path, **{name: text, "range": "1h"})
            assert (status, f"The filter “{name}” has 21 words: write 20 at most." in page) == (422, True), path
            assert not re.search(r'name="(id|event)"|All [\d,]+ that match|<button[^>]*>Send', page), path
        status, _ = await read(session, path, reason=", ".join(f"Reason-{number}" for number in range(20)), range="1h")
        assert status == 200, path


async def test_all_that_match_an_unknown_value_are_not_sent(stage: Stage, session: aiohttp.ClientSession) -> None:
    token = re.search(r'name="csrf_token" value="([^"]+)"', (await read(session, "/dead-events"))[1])
    assert token is not None
    for wrong in ({"reason": "rejectd"}, {"span": "2h"}):
        for path in ("/dead-events/confirm", "/dead-events/redrive"):
            async with session.post(path, data={"csrf_token": token[1], "which": "all", **wrong}) as answer:
                assert answer.status == 422, (path, wrong)
                assert "There is no" in await answer.text()


async def test_dead_events_are_found_by_words_in_any_case(session: aiohttp.ClientSession) -> None:
    for lower in ({"reason": "redirected"}, {"status": "error"}, {"channel": "email"}):
        upper = {name: value.upper() for name, value in lower.items()}
        found = [
            re.findall(r'name="id" value="([^"]+)"', (await read(session, "/dead-events", **query))[1])
            for query in (lower, upper)
        ]
        assert found[0]
        assert found[0] == found[1], upper


async def test_a_page_past_the_end_says_so_and_leads_back(
    stage: Stage, session: aiohttp.ClientSession, history: FilledHistory
) -> None:
    """Retention removes the rest while a person reads; thousands of entries were hidden by "Nothing happened yet"."""
    for path, query, nothing in (
        (stage.path(LUMA, "/deliveries"), {"before": "1-1-1"}, "Nothing happened yet"),
        (stage.path(LUMA, "/deliveries"), {"outcome": "skipped", "before": "1-1-1"}, "Nothing matches"),
        ("/deliveries", {"before": "1-1-1"}, "Nothing happened yet"),
        ("/search", {"campaign": "c-1", "before": "1-1-1"}, "Nothing is known"),
        ("/dead-events", {"before": "9999"}, "Every event was delivered"),
        ("/dead-events", {"channel": "email", "before": "9999"}, "Nothing matches"),
        ("/audit", {"before": "1"}, "Nothing yet"),
        (stage.path(LUMA, "/audit"), {"before": "1"}, "Nothing yet"),
        ("/notifications", {"before": "0"}, "Nothing was sent yet"),
    ):
        status, page = await read(session, path, **query)
        assert (status, nothing in page) == (200, False), (path, query)
        assert "No older entries are kept" in page, (path, query)
        back = re.search(r'href="([^"]+)">Show the newest', page)
        assert back is not None
        rest = urlencode({name: value for name, value in query.items() if name != "before"})
        assert back[1] == (f"{path}?{rest}" if rest else path)
        _, page = await read(session, back[1])
        assert "No older entries are kept" not in page, (path, query)


async def test_a_value_that_a_box_does_not_offer_is_shown_or_refused(
    stage: Stage, session: aiohttp.ClientSession
) -> None:
    """The box showed *Any* above a list that was filtered to nothing."""
    luma = stage.path(LUMA, "/deliveries")
    for path, name, value in (
        (luma, "channel", "fax"),  # skipped events may be of any channel
        (luma, "channel", "email,sms"),
        ("/deliveries", "channel", "fax"),
        ("/dead-events", "status", "odd"),  # events may have any status
        (stage.path(LUMA, "/resend"), "channel", "email,sms"),
    ):
        status, page = await read(session, path, **{name: value}, range="24h", span="24h")
        box = page.partition(f'<select id="{name}"')[2].partition("</select>")[0]
        assert (status, re.findall(r"<option([^>]*)>([^<]*)", box)[-1]) == (200, (f' value="{value}" selected', value))
        for known in ("", "email" if name == "channel" else "bounce"):
            _, page = await read(session, path, **{name: known.upper()}, range="24h", span="24h")
            box = page.partition(f'<select id="{name}"')[2].partition("</select>")[0]
            assert value not in box
    for path in ("/dead-events", stage.path(LUMA, "/resend")):
        for value in ("fax", "email,fax") if "resend" in path else ("fax",):
            status, page = await read(session, path, channel=value, range="24h")
            assert (status, "There is no channel “fax”: choose email or sms." in page) == (422, True), path
            assert not re.search(r"<button[^>]*>Send \d", page)
