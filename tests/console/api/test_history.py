"""The API finds history by any id, within the caller's organisations only, and erases it."""

import asyncio
from urllib.parse import urlencode

import pytest

from dispatcher.contract.history import HistoryOutcome
from dispatcher.contract.recipient import RecipientHasher
from dispatcher.stores.sql import history_search
from dispatcher.stores.sql.records import Role, StoredWebhook
from tests.console.api.conftest import Console
from tests.console.api.fakes import LUMA, RIVAL
from tests.console.history_store import KEY, FilledHistory, entry_of, recipient_hash

SEARCH = "/api/v1/history/search"


async def fill(history: FilledHistory) -> None:
    await history.add(
        entry_of(LUMA, age_s=60, outcome=HistoryOutcome.ATTEMPT, reason="http_5xx", status=503, verdict="retry_soon"),
        entry_of(LUMA, age_s=59, outcome=HistoryOutcome.PARKED, reason="attempt_failed", due_at=1, status=None),
        entry_of(LUMA, age_s=10),
        entry_of(LUMA, "2", age_s=5, outcome=HistoryOutcome.SKIPPED, reason="channel", channel="sms", status=None),
        entry_of(RIVAL, "1", age_s=3),
        entry_of(RIVAL, "9", age_s=2),
    )


@pytest.mark.parametrize(
    "asked",
    [
        {"id": "r-1"}, {"id": "msg_1"}, {"id": "e-1"}, {"id": "x-1"}, {"recipient": " 1@Customer.Example"},
        {"recipient_hash": recipient_hash(KEY, "1@customer.example")},
    ],
)  # fmt: skip
async def test_a_message_is_found_by_each_of_its_ids(
    console: Console, history: FilledHistory, asked: dict[str, str]
) -> None:
    await fill(history)
    mine = await (await console.client(Role.VIEWER, frozenset({LUMA.org}))).post(SEARCH, json=asked)
    assert mine.status == 200
    assert [(one["outcome"], one["org"]) for one in mine.json["items"]] == [
        ("delivered", LUMA.org), ("parked", LUMA.org), ("attempt", LUMA.org),
    ]  # fmt: skip
    assert mine.json["items"][2]["text"] == "Attempt 1: answered 503"
    everything = await (await console.client()).post(SEARCH, json=asked)
    assert len(everything.json["items"]) == 4


async def test_filters_and_pages(console: Console, history: FilledHistory) -> None:
    await fill(history)
    api = await console.client(Role.VIEWER, frozenset({LUMA.org}))
    tenant = {"org": LUMA.org, "sandbox": LUMA.sandbox}
    seen, before = [], None
    while True:
        page = (await api.post(SEARCH, json=tenant | {"limit": 1, "before": before})).json
        seen += [one["outcome"] for one in page["items"]]
        before = page["next"]
        if before is None:
            break
    assert seen == ["skipped", "delivered", "parked", "attempt"]
    for filters, found in (
        ({"outcomes": ["skipped"]}, 1), ({"channels": ["sms"]}, 1), ({"reasons": ["http_5xx"]}, 1),
        ({"message_statuses": ["sent"]}, 0), ({"campaign": "c-1", "outcomes": ["delivered", "attempt"]}, 2),
        ({"since": "2100-01-01T00:00:00Z"}, 0), ({"until": "2100-01-01T00:00:00Z"}, 4),
    ):  # fmt: skip
        assert len((await api.post(SEARCH, json=tenant | filters)).json["items"]) == found, filters


@pytest.mark.parametrize(
    "asked",
    [
        {}, {"org": "a"}, {"outcomes": ["delivered"]}, {"id": "x", "outcomes": ["dead", "odd"]}, {"recipient_hash": "x"},
        {"id": " \n"}, {"id": "x" * 1001}, {"id": "x", "before": "odd"}, {"id": "x", "limit": 1000}, {"campaign": 7},
    ],
)  # fmt: skip
async def test_an_invalid_search_is_refused(console: Console, asked: dict[str, object]) -> None:
    answer = await (await console.client()).post(SEARCH, json=asked)
    assert answer.status in (404, 422)


async def test_the_timeline_of_an_event_is_the_tenants_own(
    console: Console, history: FilledHistory, luma: StoredWebhook, rival: StoredWebhook
) -> None:
    await fill(history)
    api = await console.client(Role.VIEWER, frozenset({LUMA.org}))
    found = await api.get(f"/api/v1/webhooks/{luma.id}/events/msg_1/history")
    assert [one["outcome"] for one in found.json["items"]] == ["attempt", "parked", "delivered"]
    assert {one["org"] for one in found.json["items"]} == {LUMA.org}
    assert not found.json["is_cut"]
    assert not found.json["is_end_forgotten"]
    assert (await api.get(f"/api/v1/webhooks/{luma.id}/events/msg_9/history")).status == 404
    assert (await api.get(f"/api/v1/webhooks/{rival.id}/events/msg_9/history")).status == 404


async def test_a_long_timeline_has_its_end_and_says_that_it_is_cut(
    console: Console, history: FilledHistory, luma: StoredWebhook, monkeypatch: pytest.MonkeyPatch
) -> None:
    await fill(history)
    monkeypatch.setattr(history_search, "MAX_TIMELINE", 2)
    found = (await (await console.client()).get(f"/api/v1/webhooks/{luma.id}/events/msg_1/history")).json
    assert ([one["outcome"] for one in found["items"]], found["is_cut"]) == (["parked", "delivered"], True)


async def test_skipped_events_are_counted_with_what_to_change(
    console: Console, history: FilledHistory, luma: StoredWebhook
) -> None:
    await fill(history)
    api = await console.client(Role.VIEWER, frozenset({LUMA.org}))
    items = (await api.get(f"/api/v1/webhooks/{luma.id}/counts?window=24h")).json["items"]
    by_outcome = {one["outcome"]: one for one in items}
    assert by_outcome.keys() == {"attempt", "parked", "delivered", "skipped"}
    skipped = by_outcome["skipped"]
    assert (skipped["reason"], skipped["events"], skipped["channel"]) == ("channel", 1, "sms")
    assert skipped["remedy"] == "Add the channel to the webhook's channels."


async def test_a_person_is_erased_by_an_admin_of_all(console: Console, history: FilledHistory) -> None:
    await fill(history)
    asked = {"recipient": "1@customer.example"}
    for role, orgs in ((Role.VIEWER, None), (Role.ADMIN, frozenset({LUMA.org}))):
        assert (await (await console.client(role, orgs)).post("/api/v1/history/erase", json=asked)).status == 403
    api = await console.client()
    assert (await api.post("/api/v1/history/erase", json=asked)).json == {"entries": 4}
    assert (await api.post(SEARCH, json=asked)).json["items"] == []
    assert len((await api.post(SEARCH, json={"id": "r-2"})).json["items"]) == 1
    for odd in ({}, asked | {"recipient_hash": "0" * 32}):
        assert (await api.post("/api/v1/history/erase", json=odd)).status == 422


async def test_a_person_is_found_and_erased_however_the_number_is_written(
    console: Console, history: FilledHistory
) -> None:
    """Also in entries of an older version, by the number as the event has it; the audit has the hash only."""
    old = RecipientHasher(KEY).hash_of("+49 170 1234567")
    await history.add(
        entry_of(LUMA, "1", recipient=recipient_hash(KEY, "+49 170 1234567")), entry_of(LUMA, "2", recipient=old)
    )
    api = await console.client()
    for written, found in (("+49 170 1234567", 2), ("0049 1701234567", 1)):
        assert len((await api.post(SEARCH, json={"recipient": written})).json["items"]) == found
    assert (await api.post("/api/v1/history/erase", json={"recipient": "+491701234567"})).json == {"entries": 1}
    assert (await api.post("/api/v1/history/erase", json={"recipient": "+49 170 1234567"})).json == {"entries": 1}
    entries = [one for one in (await api.get("/api/v1/audit")).json["items"] if one["action"] == "erase_person"]
    hashed, without_plus = recipient_hash(KEY, "+491701234567"), recipient_hash(KEY, "491701234567")
    assert [one["changes"] for one in entries] == [
        {"recipient_hash": [hashed, old, without_plus], "entries": 1},
        {"recipient_hash": [hashed, without_plus], "entries": 1},
    ]


@pytest.mark.parametrize("until", ["2026-09-21T14:00:00Z", "2026-09-21T15:00:00+02:00"])
async def test_a_time_that_ends_before_it_begins_is_refused(console: Console, luma: StoredWebhook, until: str) -> None:
    api, times = await console.client(), {"since": "2026-09-21T14:00:00Z", "until": until}
    tenant = {"org": LUMA.org, "sandbox": LUMA.sandbox}
    for answer in (
        await api.get(f"/api/v1/dead-events?{urlencode(times)}"),
        await api.post("/api/v1/dead-events/redrive", json=tenant | {"events": {"select": "matching", **times}}),
        await api.post(f"/api/v1/webhooks/{luma.id}/resend", json=times),
        await api.post(f"/api/v1/webhooks/{luma.id}/resend/check", json=times),
        await api.post("/api/v1/history/search", json=tenant | times),
    ):
        assert answer.status == 422, answer.text
        assert "until must be later than since" in answer.text


async def test_an_incomplete_history_does_not_say_that_nothing_happened(
    console: Console, history: FilledHistory, luma: StoredWebhook
) -> None:
    history.lookup._problem = lambda: asyncio.sleep(0, "the history is not being written right now")
    api = await console.client(Role.VIEWER, frozenset({LUMA.org}))
    found = await api.post(SEARCH, json={"id": "r-1"})
    assert (found.json["items"], found.json["problem"]) == ([], "the history is not being written right now")
    missing = await api.get(f"/api/v1/webhooks/{luma.id}/events/msg_1/history")
    assert (missing.status, missing.json["detail"]) == (
        404, "Nothing is known about such an event. The history is not being written right now.",
    )  # fmt: skip


async def test_reasons_and_statuses_count_in_any_case(
    console: Console, history: FilledHistory, luma: StoredWebhook
) -> None:
    await fill(history)
    api = await console.client(Role.ADMIN, frozenset({LUMA.org}))
    tenant = {"org": LUMA.org, "sandbox": LUMA.sandbox}
    for filters in ({"message_statuses": ["BOUNCE"]}, {"reasons": ["HTTP_5XX"]}, {"channels": ["SMS"]}):
        assert (await api.post(SEARCH, json=tenant | filters)).json["items"], filters
    order = {"since": "2026-01-01T00:00:00Z", "message_statuses": ["BOUNCE"], "reasons": ["HTTP_2XX"]}
    assert (await api.post(f"/api/v1/webhooks/{luma.id}/resend", json=order | {"channels": ["EMAIL"]})).status == 202
    ((_, asked),) = console.resends.asked
    assert (asked.message_statuses >= {"bounce"}, asked.reasons >= {"http_2xx"}, asked.channels) == (
        True,
        True,
        {"email"},
    )
    lower = await api.get("/api/v1/dead-events?message_status=bounce&reasons=expired&channel=email")
    upper = await api.get("/api/v1/dead-events?message_status=BOUNCE&reasons=EXPIRED&channel=EMAIL")
    assert (upper.status, upper.json["items"]) == (200, lower.json["items"])
    assert lower.json["items"]


async def test_an_id_is_found_however_long_it_is_stored_and_a_person_however_written(
    console: Console, history: FilledHistory
) -> None:
    number = recipient_hash(KEY, "+15554423257")
    await history.add(entry_of(LUMA, request_id="x" * 256), entry_of(LUMA, event_id="<x@y.example>", recipient=number))
    api = await console.client()
    for asked in ({"id": "x" * 256}, {"id": "<x@y.example>"}, {"recipient": "15554423257"}):
        assert len((await api.post(SEARCH, json=asked)).json["items"]) == 1, asked
    erased = await api.post("/api/v1/history/erase", json={"recipient": "1 555 442 3257"})
    assert (erased.status, erased.json["entries"]) == (200, 1)
