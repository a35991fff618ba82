"""A resend that was stopped goes on where it ended, and a check says what was sent again before."""

import html
import re
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Literal
from urllib.parse import parse_qs, urlsplit

import aiohttp
import pytest

from dispatcher.config.webhooks import WebhookConfig
from dispatcher.console.resend_model import RedriveModel, ResendCheck, ResendQuery, ResumePoint
from dispatcher.console.sources.job_records import job_of, stored_job
from dispatcher.contract.tenant import TenantKey
from dispatcher.stores.sql.jobs import INTERRUPTED
from tests.console.pages.sample_world import LUMA
from tests.console.pages.stage import Stage, staged
from tests.console.pages.test_filters_that_say import read
from tests.console.pages.test_kept_form import browser

AT = 1_790_000_000.0


class Checks:
    """Replaces the checks of delivered events: 3,162 match, of which 765 were sent again."""

    def __init__(self) -> None:
        self.asked: list[ResendQuery] = []
        self.is_at_least = False

    async def check(self, tenant: TenantKey, query: ResendQuery, config: WebhookConfig | None = None) -> ResendCheck:
        self.asked.append(query)
        if query.checked_at is None:
            return ResendCheck(3162, 0, self.is_at_least, sent_before=765, sent_before_since=AT)
        return ResendCheck(2397, 0, self.is_at_least, left_out=765)


@pytest.fixture(scope="module")
async def stage(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stage]:
    async with staged(tmp_path_factory.mktemp("stage")) as running:
        yield running


@pytest.fixture
async def session(stage: Stage) -> AsyncIterator[aiohttp.ClientSession]:
    async with browser(stage, await stage.token()) as signed_in:
        yield signed_in


@pytest.fixture
def checks(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> Checks:
    made = Checks()
    monkeypatch.setattr(stage.services.resends, "check", made.check)
    return made


def _form(page: str) -> str:
    return page.partition("resend-title")[2].partition("</form>")[0]


def link(page: str, text: str) -> str:
    found = re.search(rf'href="([^"]+)">{text}', page)
    assert found is not None, text
    return found[1]


async def test_a_check_names_what_was_sent_before_and_offers_to_leave_it_out(
    stage: Stage, session: aiohttp.ClientSession, checks: Checks
) -> None:
    path = stage.path(LUMA, "/resend")
    _, page = await read(session, path, since="2026-09-21T14:00:00+00:00", include="delivered")
    assert "Send 3,162 events again?" in page
    assert "765 of these were sent again already, from 21 Sep 2026, 14:13:20 UTC on." in page
    _, page = await read(session, link(page, "Leave them out"))
    assert checks.asked[-1].checked_at == AT
    assert checks.asked[-1].since == checks.asked[0].since
    assert "Send 2,397 events again?" in page
    assert "765 more were sent again since 21 Sep 2026, 14:13:20 UTC and are left out" in page
    assert 'name="checked" value="2026-09-21T14:13:20+00:00"' in page  # the order leaves them out, too
    status, page = await read(session, path, range="1h", checked="yesterday")
    assert (status, "The time yesterday can't be read" in page, "Leave" in page) == (422, True, False)


async def test_more_events_than_were_counted_are_offered_and_said_to_be_more(
    stage: Stage, session: aiohttp.ClientSession, checks: Checks
) -> None:
    checks.is_at_least = True
    _, page = await read(session, stage.path(LUMA, "/resend"), range="24h", include="delivered")
    assert "Send at least 3,162 events again?" in page
    assert "More delivered events match than were counted." in page
    assert re.search(r"<button[^>]*>Send at least 3,162 events again</button>", page)


async def test_a_job_whose_console_has_gone_says_what_that_means_and_is_continued(
    stage: Stage, session: aiohttp.ClientSession, checks: Checks
) -> None:
    """Its row is read by another console, or after a restart."""
    query, rest = ResendQuery(since=AT - 60, checked_at=AT, reasons=frozenset({"http_2xx"})), ResumePoint(AT - 30, AT)
    kinds: tuple[Literal["dead", "delivered"], ...] = ("dead", "delivered")
    for kind in kinds:
        made = RedriveModel(kind, *LUMA, "ada", AT, 9, 4, kind=kind, query=query, resume=rest)
        stored = replace(stored_job(made), state=INTERRUPTED, started_at=AT, finished_at=AT + 9)
        stage.dead_events.jobs.made[kind] = job_of(stored)
    for shown, what in (
        ("dead", "Dead events that were not sent are still listed."),
        ("delivered", "Some may have been sent that are not counted here: the next check names them."),
    ):
        _, page = await read(session, f"/jobs?job={shown}")
        assert f"Interrupted: the console that ran it was restarted, or could not reach its database. {what}" in page
        assert ("Failed" in page, f"of 9 {shown} events sent again" in page) == (True, True)
        assert ("Nothing is lost: send them again, those that went out are left out." in page) == (shown == "dead")
    await read(session, link(page, "Continue…"))
    asked = checks.asked[-1]
    assert (asked.since, asked.until, asked.checked_at, asked.reasons) == (AT - 60, AT - 30, AT, {"http_2xx"})


async def test_a_stopped_job_is_continued_with_its_filters(
    stage: Stage, session: aiohttp.ClientSession, checks: Checks
) -> None:
    path = stage.path(LUMA, "/resend")
    query = {"since": "2026-09-21T14:00:00+00:00", "include": "delivered", "status": "bounce", "channel": "email"}
    _, page = await read(session, path, **query)
    form = dict(re.findall(r'<input type="hidden" name="(\w+)" value="([^"]*)">', _form(page)))
    async with session.post(path, data=form) as answer:
        assert answer.status == 200
        page = html.unescape(await answer.text())
    assert "Continue…" not in page
    job = parse_qs(urlsplit(str(answer.url)).query)["job"][0]
    async with session.post(f"/jobs/{job}/stop", data={"csrf_token": form["csrf_token"]}) as answer:
        page = html.unescape(await answer.text())
    rest = (await stage.services.jobs.get(job, orgs=None)).resume
    assert rest is not None
    _, page = await read(session, link(page, "Continue…"))
    asked = checks.asked[-1]
    assert (asked.since, asked.channels, asked.message_statuses) == (
        checks.asked[0].since, frozenset({"email"}), frozenset({"bounce"}),
    )  # fmt: skip
    assert (asked.until, asked.checked_at) == (pytest.approx(rest.until), pytest.approx(rest.checked_at))
    assert "Send 2,397 events again?" in page
