"""Requests that no page makes: no URL, form or header makes the console fail with an error of its own."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import aiohttp
import pytest
from yarl import URL

from tests.console.history_store import history_in
from tests.console.pages.sample_world import LUMA
from tests.console.pages.stage import Stage, staged
from tests.console.pages.test_kept_form import browser, fetch, value_in

NUMBERS = ("000001" + "9" * 30, "1" + "0" * 4990, "9" * 18, "-1", "1e9", "0x1", "1_0", " 1", "²", "٣", "½", "x", "\0")
TIMES = ("0001-01-01T00:00", "9999-12-31T23:59:59-12:00", "0001-01-01T00:00+14:00", "2026-13-01", "1e9", "\0")
PARAMETERS: dict[str, dict[str, tuple[str, ...]]] = {
    "/": {"page": NUMBERS},
    "/audit": {"before": NUMBERS},
    "/jobs": {"left": NUMBERS},
    "/deliveries": {"before": NUMBERS},
    "/search": {"since": TIMES, "until": TIMES, "before": NUMBERS},
    "/webhooks/{id}/deliveries": {"since": TIMES, "until": TIMES, "before": NUMBERS},
    "/webhooks/{id}/resend": {"since": TIMES, "until": TIMES},
    "/webhooks/{id}/audit": {"before": NUMBERS},
}


@pytest.fixture(scope="module")
async def stage(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stage]:
    directory = tmp_path_factory.mktemp("odd")
    async with history_in(directory) as history, staged(directory, history=history.lookup) as running:
        yield running


@pytest.fixture
async def person(stage: Stage) -> AsyncIterator[aiohttp.ClientSession]:
    async with browser(stage, await stage.token()) as session:
        yield session


def odd_urls(stage: Stage) -> Iterator[URL]:
    for path, parameters in PARAMETERS.items():
        url = URL(stage.base + path.format(id=stage.webhooks[LUMA].id))
        yield from (url.with_query({name: text}) for name, texts in parameters.items() for text in texts)


async def test_a_parameter_that_is_not_a_number_or_time_causes_no_server_error(
    stage: Stage, person: aiohttp.ClientSession
) -> None:
    for url in odd_urls(stage):
        for zone in ("UTC", "Pacific/Auckland"):
            async with person.get(url, cookies={"dispatcher-zone": zone}) as answer:
                assert answer.status in (200, 404, 422), url
                is_refused = {"before", "since", "until"} & url.query.keys() or url.path.endswith("/resend")
                assert answer.status == 200 or is_refused, url


@pytest.mark.parametrize("text", ["jane@luma-customer.example", " +49 151 12345678 "])
async def test_an_address_is_in_no_url_if_there_is_no_history_store(tmp_path: Path, text: str) -> None:
    async with staged(tmp_path) as stage, browser(stage, await stage.token()) as person:
        _, page = await fetch(person, "/")
        form = {"csrf_token": value_in(page, "csrf_token"), "q": text}
        async with person.post("/search", data=form, allow_redirects=False) as answer:
            assert (answer.status, answer.headers["Location"]) == (303, "/search?address=1")
        async with person.post("/search", data=form) as answer:
            assert "There is no history store" in await answer.text()


async def edit_form(stage: Stage, person: aiohttp.ClientSession) -> tuple[str, dict[str, str]]:
    """Returns the path of a webhook's form, and fields that change nothing."""
    path = stage.path(LUMA, "/edit")
    _, page = await fetch(person, path)
    return path, {"csrf_token": value_in(page, "csrf_token"), "action": "add-header"}


@pytest.mark.parametrize("field", ["action", "version", "conflict_since"])
async def test_a_number_in_a_form_is_ignored_if_it_is_none(
    stage: Stage, person: aiohttp.ClientSession, field: str
) -> None:
    path, form = await edit_form(stage, person)
    for number in (*NUMBERS, "9" * 5000):
        posted = form | {field: f"remove-header.{number}" if field == "action" else number}
        assert (await fetch(person, path, posted))[0] == 200, number


@pytest.mark.parametrize("header", ["Host", "Referer", "Origin"])
async def test_an_invalid_address_in_a_header_causes_no_server_error(
    stage: Stage, person: aiohttp.ClientSession, header: str
) -> None:
    path, form = await edit_form(stage, person)
    for text in ("[", "]:", "a]b", "[::1", "http://[", "http://[::1", "//["):
        async with person.post(path, data=form, headers={header: text}) as answer:
            assert answer.status == (403 if header == "Origin" else 200), text
        async with person.get("/reference", headers={header: text}) as answer:
            assert answer.status == 200, text
