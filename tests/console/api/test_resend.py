"""Delivered and dead events are sent again by the API: check, start, progress, stop, list, audit."""

from dataclasses import replace

import pytest

from dispatcher.console import resending
from dispatcher.stores.sql.records import Role, StoredWebhook
from tests.console.api.conftest import Console
from tests.console.api.fakes import LUMA, RIVAL

SINCE = "2026-09-21T14:00:00Z"


async def test_everything_since_a_time_is_checked_started_stopped_and_listed(
    console: Console, luma: StoredWebhook
) -> None:
    api = await console.client(Role.ADMIN, frozenset({LUMA.org}), name="jana")
    path = f"/api/v1/webhooks/{luma.id}/resend"
    check = (await api.post(f"{path}/check", json={"since": SINCE})).json
    assert {**check, "warnings": []} == {
        "delivered": 2, "dead": 1, "gone": 1, "too_many": False, "too_many_dead": False, "warnings": [],
    }  # fmt: skip
    started = await api.post(path, json={"since": SINCE, "channels": ["email"]})
    assert started.status == 202
    assert [(job["kind"], job["total"]) for job in started.json["items"]] == [("delivered", 2), ("dead", 1)]
    tenant, query = console.resends.asked[-1]
    assert (tenant, query.since, query.channels) == (LUMA, 1789999200.0, frozenset({"email"}))
    assert console.dead_events.asked[-1][:2] == (LUMA, frozenset({"0-1"}))
    job_id = started.json["items"][0]["id"]
    stopped = (await api.post(f"/api/v1/redrives/{job_id}/stop")).json
    assert (stopped["id"], stopped["state"]) == (job_id, "stopped")
    assert (await api.post(f"/api/v1/redrives/{job_id}/stop")).status == 200  # nothing more happens
    listed = (await api.get(f"/api/v1/redrives?org={LUMA.org}&sandbox=prod")).json["items"]
    assert {job["id"] for job in listed} == {job["id"] for job in started.json["items"]}
    entries = (await api.get(f"/api/v1/audit?webhook_id={luma.id}&action=redrive")).json["items"]
    assert [(one["actor"], one["changes"].get("kind"), one["changes"].get("stopped")) for one in entries] == [
        ("jana", None, True), ("jana", "dead", None), ("jana", "delivered", None),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("order", "delivered", "dead"),
    [
        ({"event_ids": ["msg_1"], "include": ["delivered"]}, 2, 0),
        ({"event_ids": [f"event-of-{LUMA.org}"], "include": ["dead"]}, 0, 1),
        ({"since": SINCE, "message_statuses": ["sent"]}, 2, 0),  # the dead one is a bounce
        ({"since": SINCE, "channels": ["sms"]}, 2, 0),
        ({"since": SINCE, "campaign": "c-1"}, 2, 0),  # dead events can't be selected by campaign
    ],
)
async def test_the_selection_applies_to_delivered_and_dead_events(
    console: Console, luma: StoredWebhook, order: dict[str, object], delivered: int, dead: int
) -> None:
    check = (await (await console.client()).post(f"/api/v1/webhooks/{luma.id}/resend/check", json=order)).json
    assert (check["delivered"], check["dead"]) == (delivered, dead)


@pytest.mark.parametrize("order", [{"since": SINCE}, {"event_ids": [f"m{n}" for n in range(499)] + ["of-luma"]}])
async def test_dead_events_are_looked_at_once_however_many_are_selected(
    console: Console, luma: StoredWebhook, order: dict[str, object]
) -> None:
    """Twenty thousand can be kept, and nothing else is answered meanwhile."""
    first = console.dead_events.events[0]
    console.dead_events.events = [replace(first, id=f"0-{n}", event_id="of-luma") for n in range(1000)]
    console.dead_events.events[7:9] = [replace(first, id="0-7", redriven=True), replace(first, id="0-8", org=RIVAL.org)]
    check = (await (await console.client()).post(f"/api/v1/webhooks/{luma.id}/resend/check", json=order)).json
    assert (check["dead"], console.dead_events.passes) == (998, 1)


@pytest.mark.parametrize(
    "order",
    [{}, {"include": ["delivered"]}, {"since": "14:00"}, {"since": SINCE, "include": []}, {"event_ids": ["m"] * 501}],
)
async def test_an_order_without_bounds_is_refused(console: Console, luma: StoredWebhook, order: object) -> None:
    answer = await (await console.client()).post(f"/api/v1/webhooks/{luma.id}/resend", json=order)
    assert answer.status == 422
    assert console.resends.asked == []


async def test_warnings_name_what_makes_events_fail_again(console: Console, luma: StoredWebhook) -> None:
    api = await console.client()
    await api.post(f"/api/v1/webhooks/{luma.id}/pause")
    check = (await api.post(f"/api/v1/webhooks/{luma.id}/resend/check", json={"since": SINCE})).json
    assert "Paused: events that arrive are held until it is resumed." in check["warnings"]


async def test_other_organisations_jobs_are_neither_listed_nor_stopped(console: Console, luma: StoredWebhook) -> None:
    mine = await console.client(Role.ADMIN, frozenset({LUMA.org}))
    job = (await mine.post(f"/api/v1/webhooks/{luma.id}/resend", json={"since": SINCE})).json["items"][0]
    rival = await console.client(Role.ADMIN, frozenset({RIVAL.org}))
    assert (await rival.get("/api/v1/redrives")).json == {"items": []}
    assert (await rival.post(f"/api/v1/redrives/{job['id']}/stop")).status == 404
    assert (await mine.get(f"/api/v1/redrives/{job['id']}")).json["stopping"] is False


async def test_more_dead_events_than_one_job_sends_are_no_secret(
    console: Console, luma: StoredWebhook, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resending, "MOST_DEAD", 1)
    console.dead_events.events.append(replace(console.dead_events.events[0], id="0-7"))
    api, path = await console.client(), f"/api/v1/webhooks/{luma.id}/resend"
    order = {"since": SINCE, "include": ["dead"]}
    check = (await api.post(f"{path}/check", json=order)).json
    assert (check["dead"], check["too_many_dead"], check["too_many"]) == (1, True, False)
    started = await api.post(path, json=order)
    assert (started.json["items"][0]["total"], started.json["too_many_dead"]) == (1, True)
    monkeypatch.setattr(resending, "MOST_DEAD", 2)
    assert (await api.post(f"{path}/check", json=order)).json["too_many_dead"] is False
