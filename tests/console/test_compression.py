"""Which answers are compressed, and which are not because their length could reveal a secret."""

import gzip
import re
from collections.abc import AsyncIterator

import aiohttp
import pytest
from aiohttp.test_utils import make_mocked_request
from hypothesis import given
from hypothesis import strategies as st

from dispatcher.console import csrf
from dispatcher.console.compression import MIN_BYTES, accepts_gzip
from tests.console.pages.sample_world import LUMA
from tests.console.pages.stage import Stage, staged

GZIP = {"Accept-Encoding": "br, gzip"}


@pytest.fixture(scope="module")
async def stage(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stage]:
    async with staged(tmp_path_factory.mktemp("compressed")) as running:
        yield running


@pytest.fixture(scope="module")
async def browser(stage: Stage) -> AsyncIterator[aiohttp.ClientSession]:
    """A client with a session, which doesn't decompress by itself."""
    jar = aiohttp.CookieJar(unsafe=True)
    async with aiohttp.ClientSession(stage.base, cookie_jar=jar, auto_decompress=False) as session:
        async with session.post("/sign-in", data={"token": await stage.token()}) as answer:
            assert answer.status == 200
        yield session


async def fetch(browser: aiohttp.ClientSession, path: str, headers: dict[str, str]) -> tuple[bool, str]:
    """Returns whether the answer is compressed, and its text."""
    async with browser.get(path, headers=headers) as answer:
        body = await answer.read()
        assert int(answer.headers["Content-Length"]) == len(body)
        is_compressed = answer.headers.get("Content-Encoding") == "gzip"
        assert is_compressed or "Content-Encoding" not in answer.headers
        assert is_compressed == body.startswith(b"\x1f\x8b")
        return is_compressed, (gzip.decompress(body) if is_compressed else body).decode()


async def test_pages_and_documents_are_compressed(browser: aiohttp.ClientSession, stage: Stage) -> None:
    page = re.search(r'"(/static/[^"]+\.css)"', (await fetch(browser, "/", {}))[1])
    assert page is not None
    for path in ("/", "/webhooks/new", stage.path(LUMA), "/reference", "/api/v1/openapi.json", page[1]):
        is_compressed, text = await fetch(browser, path, GZIP)
        assert is_compressed, path
        assert len(text) > MIN_BYTES
        assert await fetch(browser, path, {"Accept-Encoding": "identity"}) != (True, text)
        assert (await fetch(browser, path, {"Accept-Encoding": "gzip;q=0"}))[0] is False


async def test_short_answers_stay_as_they_are(browser: aiohttp.ClientSession) -> None:
    assert await fetch(browser, "/livez", GZIP) == (False, '{"ok": true}')


async def test_values_that_another_site_chooses_are_not_compressed_beside_secrets(
    browser: aiohttp.ClientSession, stage: Stage
) -> None:
    guess = "/?q=csrf_token"
    for path in (guess, "/search?q=guess", "/no/such/guess"):
        for headers in ({}, {"Sec-Fetch-Site": "cross-site"}, {"Sec-Fetch-Site": "none"}):
            assert (await fetch(browser, path, GZIP | headers))[0] is False, (path, headers)
    assert (await fetch(browser, guess, GZIP | {"Sec-Fetch-Site": "same-origin"}))[0] is True
    token = re.search(r'name="csrf_token" value="([^"]+)"', (await fetch(browser, "/", GZIP))[1])
    assert token is not None
    posted = {"csrf_token": token[1], "name": "guess", "action": "add-header"}
    async with browser.post("/webhooks/new", data=posted, headers=GZIP) as answer:
        assert (answer.status, answer.headers.get("Content-Encoding")) == (200, None)
    bearer = {"Authorization": f"Bearer {await stage.token()}"}
    assert (await fetch(browser, "/api/v1/webhooks?limit=50", GZIP | bearer))[0] is True
    assert (await fetch(browser, "/api/v1/webhooks?limit=50", GZIP))[0] is False


async def test_the_token_against_forged_requests_is_another_text_in_each_answer(browser: aiohttp.ClientSession) -> None:
    seen = [re.findall(r'name="csrf_token" value="([^"]+)"', (await fetch(browser, "/", GZIP))[1]) for _ in range(3)]
    assert len({text for texts in seen for text in texts[:1]}) == 3
    assert len({csrf.unmask(text) for texts in seen for text in texts}) == 1


@given(st.text(max_size=80))
def test_masking_is_undone(token: str) -> None:
    masked = csrf.mask(token)
    assert csrf.unmask(masked) == token
    assert len(token) < 8 or csrf.mask(token) != masked, "a short mask may be drawn twice"


@given(st.text(max_size=50))
def test_any_text_can_be_unmasked(text: str) -> None:
    assert isinstance(csrf.unmask(text), str)


@pytest.mark.parametrize(
    ("header", "is_accepted"),
    [
        ("gzip", True), ("GZIP", True), ("br, gzip;q=0.5", True), ("*", True), ("x-gzip", True), ("br;q=1,*;q=0.1", True),
        ("", False), ("identity", False), ("gzip;q=0", False), ("gzip; q=0.000", False), ("*;q=0", False),
        ("*, gzip;q=0", False), ("br, deflate", False), ("gzipped", False),
    ],
)  # fmt: skip
def test_accept_encoding_is_read_as_the_standard_says(header: str, *, is_accepted: bool) -> None:
    assert accepts_gzip(make_mocked_request("GET", "/", {"Accept-Encoding": header})) is is_accepted
