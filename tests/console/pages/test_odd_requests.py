"""Requests that no page makes: whatever is written in a URL, a form or a header, the answer is no error of ours."""

from collections.abc import AsyncIterator

import aiohttp
import pytest

from tests.console.pages.sample_world import LUMA
from tests.console.pages.stage import Stage, staged
from tests.console.pages.test_kept_form import browser, fetch, value_in


@pytest.fixture(scope="module")
async def stage(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stage]:
    async with staged(tmp_path_factory.mktemp("odd")) as running:
        yield running


@pytest.fixture
async def person(stage: Stage) -> AsyncIterator[aiohttp.ClientSession]:
    async with browser(stage, await stage.token()) as session:
        yield session


@pytest.mark.parametrize("header", ["Host", "Referer", "Origin"])
async def test_an_address_in_a_header_that_is_none_is_no_error_of_ours(
    stage: Stage, person: aiohttp.ClientSession, header: str
) -> None:
    path = stage.path(LUMA, "/edit")
    _, page = await fetch(person, path)
    form = {"csrf_token": value_in(page, "csrf_token"), "action": "add-header"}
    for text in ("[", "]:", "a]b", "[::1", "http://[", "http://[::1", "//["):
        async with person.post(path, data=form, headers={header: text}) as answer:
            assert answer.status == (403 if header == "Origin" else 200), text
        async with person.get("/reference", headers={header: text}) as answer:
            assert answer.status == 200, text
