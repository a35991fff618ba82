"""The search field, the API and `trace` find an id as it is stored, and as people paste it, by the same readings."""

import re
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import pytest

from dispatcher.contract.history import MAX_ID, HistoryEntry
from dispatcher.contract.recipient import recipient_hash
from dispatcher.contract.search_text import readings
from dispatcher.stores.sql.records import Role
from tests.commands.running import called
from tests.console.history_store import KEY, entry_of, history_in
from tests.console.pages.sample_world import CONTOSO, LUMA
from tests.console.pages.stage import staged

UUID = "16f24a15-0b7c-4d3e-9a52-7d0e2a9bc001"
CAMPAIGN = "7D0E2A9B-0B7C-4D3E-9A52-16F24A15C001"
WEBHOOK_ID = f"msg_{'3d2e' * 8}"
HASH = recipient_hash(KEY, "someone@customer.example")
HEX = "0b7c" * 8
IDS = (
    "r-1", "{7D0E2A9B-1111-4D3E-9A52-16F24A15C001}", "[mail-42]", "evt;77;", "'q-1'", "q-1", "YWJjZGVmZg==", "<m-1>",
    "luma:evt", "evt", "https://host.example/x", "a.b.", "a%2Fb", "{7D0E2A9B}", UUID, "both-AA", "x" * MAX_ID, "９９",
    "(p-1)", "*s*", HEX, "x-1",
)  # fmt: skip
TYPED = (
    *IDS, *(f" {one}\t" for one in IDS), *(f'"{one}",' for one in IDS), *(f"requestId: {one}" for one in IDS),
    '{"requestId":"r-1"}', r'\"requestId\": \"r-1\",', "`r-1`", "r-1.", "r-1:", "(r-1)", "%7B7D0E2A9B%7D", "both-aa",
    UUID.upper(), CAMPAIGN, CAMPAIGN.lower(), f"{{{UUID.upper()}}}", WEBHOOK_ID.upper(), f"<{WEBHOOK_ID.upper()}>",
    HEX.upper(), "luma:gone", "ns:x-1", "YWJjZGVmZh==", "unknown=", "https://gone.example/x", "[gone]", "others", "99",
    "x" * MAX_ID + "y", "r-1\u200b", "r-1\n", "\r\n\t r-1 \r\n", f"urn:uuid:{UUID}", UUID.replace("-", ""), f"URN:UUID:{CAMPAIGN}",
    CAMPAIGN.replace("-", "").lower(), "0b7c0b7c-0b7c-0b7c-0b7c-0b7c0b7c0b7c", f'"requestId": "{"x" * MAX_ID}",', "r-1\0",
)  # fmt: skip


@dataclass(frozen=True)
class Everything:
    """A console with a history, a viewer of LUMA in a browser and with a token, and settings for `trace`."""

    entries: Sequence[HistoryEntry]
    browser: aiohttp.ClientSession
    api: aiohttp.ClientSession
    settings: Path

    async def on_page(self, typed: str) -> tuple[dict[str, str], str]:
        """The query of the results' address, and their page."""
        async with self.browser.post("/search", data={"q": typed}) as answer:
            assert answer.status == 200
            return dict(answer.url.query), await answer.text()

    async def by_api(self, **asked: str) -> int:
        async with self.api.post("/api/v1/history/search", json=asked) as answer:
            assert answer.status == 200, await answer.text()
            return len((await answer.json())["items"])

    def reading_of(self, typed: str) -> str | None:
        """The naive answer: the first reading that is one of the ids of LUMA's events, which are cut when stored."""
        ids = {
            one for entry in self.entries if entry.org == LUMA.org
            for one in (entry.webhook_id, entry.event_id, entry.request_id, entry.campaign_id)
        }  # fmt: skip
        return next((one for one in readings(typed) if one[:MAX_ID] in ids), None)


@pytest.fixture(scope="module")
async def everything(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Everything]:
    directory = tmp_path_factory.mktemp("typed")
    entries = [
        *(entry_of(LUMA, f"{n}", request_id=one, event_id=None, campaign_id=None) for n, one in enumerate(IDS)),
        entry_of(LUMA, "h", webhook_id=WEBHOOK_ID, recipient=HASH, campaign_id=CAMPAIGN),
        entry_of(CONTOSO, "o", request_id="others", recipient=recipient_hash(KEY, "other@customer.example")),
    ]
    (directory / "webhooks").mkdir()
    (directory / "history").write_text(f"sqlite+aiosqlite:///{directory / 'history.db'}")
    settings = directory / "dispatcher.yaml"
    settings.write_text(
        "apiVersion: dispatcher/v1\nkafka: {bootstrap_servers: '127.0.0.1:1'}\nwebhooks: {path: webhooks}\n"
        "history: {url: {file: history}}\n"
    )
    async with (
        history_in(directory) as history,
        staged(directory, history=history.lookup) as stage,
        aiohttp.ClientSession(stage.base, cookie_jar=aiohttp.CookieJar(unsafe=True)) as browser,
        aiohttp.ClientSession(stage.base) as api,
    ):
        await history.add(*entries)
        token = await stage.token(Role.VIEWER, frozenset({LUMA.org}))
        async with browser.post("/sign-in", data={"token": token}) as answer:
            found = re.search(r'name="csrf_token" value="([^"]+)"', await answer.text())
            assert found is not None
        browser.headers["X-CSRF-Token"] = found[1]
        api.headers["Authorization"] = f"Bearer {token}"
        yield Everything(entries, browser, api, settings)


@pytest.mark.parametrize("typed", TYPED)
async def test_page_and_api_find_the_first_reading_that_is_known(everything: Everything, typed: str) -> None:
    known = everything.reading_of(typed)
    query, page = await everything.on_page(typed)
    assert query["q"] == (known or typed.strip()), "what isn't known is shown as it was typed"
    assert ("Nothing is known about it" in page) == (known is None)
    if len(typed) <= MAX_ID and typed.isprintable():  # the API's limits
        assert bool(await everything.by_api(id=typed)) == (known is not None)


@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        ((" r-1 ",), "requestId r-1"), (('"r-1"',), "requestId r-1"), (("<r-1>",), "requestId r-1"),
        (("requestId: r-1",), "requestId r-1"), (("--request-id", "r-1 "), "requestId r-1"),
        (("'q-1'",), "requestId 'q-1'"), (("evt;77;",), "requestId evt;77;"), ((UUID.upper(),), f"requestId {UUID}"),
        (("--webhook-id", WEBHOOK_ID.upper()), WEBHOOK_ID), (("--campaign", CAMPAIGN.lower()), f"campaignID {CAMPAIGN}"),
        (("--event-id", "r-1"), None), (("[gone]",), None), (("r-1\0",), None), ((HASH,), WEBHOOK_ID),
        (("--recipient", f"recipient_hash: {HASH.upper()}"), WEBHOOK_ID), (("--recipient", "0" * 32), None),
    ],
)  # fmt: skip
async def test_trace_finds_what_the_page_finds(
    everything: Everything, arguments: tuple[str, ...], found: str | None
) -> None:
    ran = await called("trace", *arguments, "-c", everything.settings)
    if found is None:
        assert (ran.status, ran.out) == (1, "")
        return
    assert ran.status == 0, ran
    assert f"  {found}" in ran.out
    known = everything.reading_of(arguments[-1])
    by_hash = f"found by the recipient's hash {HASH}\n" in ran.out
    assert by_hash == (known is None)
    assert (f"found as {known}\n" in ran.out) == (known not in (None, arguments[-1]))


async def test_a_recipients_hash_is_found_in_the_search_field(everything: Everything) -> None:
    for typed in (HASH, HASH.upper(), f'"recipient_hash": "{HASH}",'):
        query, page = await everything.on_page(typed)
        assert query == {"recipient": HASH}
        assert "found by the hash" in page
        assert "1 entry" in page
    query, page = await everything.on_page(recipient_hash(KEY, "other@customer.example"))
    assert query == {"q": recipient_hash(KEY, "other@customer.example")}, "another organisation's"
    assert "Nothing is known about it" in page


async def test_a_campaign_is_found_in_the_other_case(everything: Everything) -> None:
    assert await everything.by_api(campaign=CAMPAIGN.lower()) == 1
    assert await everything.by_api(campaign=f" {CAMPAIGN} ", id=WEBHOOK_ID) == 1
    async with everything.browser.get("/search", params={"campaign": CAMPAIGN.lower()}) as answer:
        assert "1 entry" in await answer.text()
