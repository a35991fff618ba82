"""Delivered and dead events are sent again by the API: check, start, progress, stop, list, audit."""

import asyncio
from datetime import UTC, datetime, timedelta

import pytest

from dispatcher.config.webhooks import Channel
from dispatcher.console.model import DeadQuery
from dispatcher.console.resend_model import DeadCount, ResendCheck
from dispatcher.contract.tenant import TenantKey
from dispatcher.errors import AlreadyRunning, BrokerUnavailable
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
    kept = datetime.now(UTC) - timedelta(hours=24)
    assert abs(datetime.fromisoformat(check.pop("delivered_since")) - kept) < timedelta(minutes=10)  # since is earlier
    assert {**check, "warnings": []} == {
        "delivered": 2, "delivered_is_at_least": False, "left_out": 0, "sent_before": 0, "sent_before_since": None,
        "dead": 1, "gone": 1, "dead_is_at_least": False, "would_be_skipped": [], "warnings": [],
    }  # fmt: skip
    started = await api.post(path, json={"since": SINCE, "channels": ["email"], "checked_at": SINCE})
    assert started.status == 202
    assert [(job["kind"], job["total"]) for job in started.json["items"]] == [("delivered", 2), ("dead", 1)]
    tenant, query = console.resends.asked[-1]
    assert (tenant, query.since, query.channels) == (LUMA, 1789999200.0, frozenset({"email"}))
    assert query.checked_at == query.since
    tenant, ids, dead = console.dead_events.asked[-1]  # the topic is read: memory may lack events
    assert (tenant, ids, dead.since, dead.channels) == (LUMA, None, 1789999200.0, frozenset({"email"}))
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


async def test_a_check_asks_all_its_sources_at_once(
    console: Console, luma: StoredWebhook, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each waits for seconds if Kafka does not answer; one after the other, a person waited for the sum."""
    began = asyncio.Event()
    count = console.dead_events.count_matching

    async def delivered(*_: object) -> ResendCheck:
        async with asyncio.timeout(60):
            await began.wait()
        raise BrokerUnavailable

    async def dead(tenant: TenantKey, query: DeadQuery) -> DeadCount:
        began.set()
        return await count(tenant, query)

    monkeypatch.setattr(console.resends, "check", delivered)
    monkeypatch.setattr(console.dead_events, "count_matching", dead)
    api = await console.client(Role.ADMIN, frozenset({LUMA.org}))
    answer = await api.post(f"/api/v1/webhooks/{luma.id}/resend/check", json={"since": SINCE})
    assert (answer.status, answer.json["detail"]) == (503, "Kafka does not answer right now.")


@pytest.mark.parametrize(
    ("order", "delivered", "dead"),
    [
        ({"event_ids": ["msg_1"], "include": ["delivered"]}, 2, 0),
        ({"event_ids": [f"event-of-{LUMA.org}"], "include": ["dead"]}, 0, 1),
        ({"since": SINCE, "message_statuses": ["sent"]}, 2, 0),  # the dead one is a bounce
        ({"since": SINCE, "channels": ["sms"]}, 2, 0),
        ({"since": SINCE, "campaign": "c-1"}, 2, 0),  # the dead one is of none
        ({"since": SINCE, "reasons": ["rejected"]}, 2, 1),
        ({"since": SINCE, "reasons": ["expired"]}, 2, 0),
        ({"since": "2030-01-01T00:00:00Z"}, 2, 0),
    ],
)
async def test_the_selection_applies_to_delivered_and_dead_events(
    console: Console, luma: StoredWebhook, order: dict[str, object], delivered: int, dead: int
) -> None:
    check = (await (await console.client()).post(f"/api/v1/webhooks/{luma.id}/resend/check", json=order)).json
    assert (check["delivered"], check["dead"]) == (delivered, dead)


async def test_no_time_is_named_if_all_deliveries_are_kept_or_none_is_wanted(
    console: Console, luma: StoredWebhook
) -> None:
    path, hour_ago = f"/api/v1/webhooks/{luma.id}/resend/check", (datetime.now(UTC) - timedelta(hours=1)).isoformat()
    api = await console.client()
    for order in ({"since": hour_ago}, {"event_ids": ["msg_1"]}, {"since": SINCE, "include": ["dead"]}):
        assert (await api.post(path, json=order)).json["delivered_since"] is None


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


async def test_events_that_the_webhook_would_skip_now_are_named_before(console: Console, luma: StoredWebhook) -> None:
    api, path = await console.client(), f"/api/v1/webhooks/{luma.id}"
    config = luma.config().model_copy(update={"channels": (Channel.SMS,), "events": ("sent",)})
    await console.services.webhooks.update(luma.id, config, expected_version=1, by="test", orgs=None)
    check = (await api.post(f"{path}/resend/check", json={"since": SINCE})).json
    assert check["would_be_skipped"] == [{"reason": "channel", "events": 3}]  # delivered ones, and a dead one
    check = (await api.post(f"{path}/resend/check", json={"since": SINCE, "include": ["dead"]})).json
    assert check["would_be_skipped"] == [{"reason": "channel", "events": 1}]


async def test_other_organisations_jobs_are_neither_listed_nor_stopped(console: Console, luma: StoredWebhook) -> None:
    mine = await console.client(Role.ADMIN, frozenset({LUMA.org}))
    job = (await mine.post(f"/api/v1/webhooks/{luma.id}/resend", json={"since": SINCE})).json["items"][0]
    rival = await console.client(Role.ADMIN, frozenset({RIVAL.org}))
    assert (await rival.get("/api/v1/redrives")).json == {"items": []}
    assert (await rival.post(f"/api/v1/redrives/{job['id']}/stop")).status == 404
    assert (await mine.get(f"/api/v1/redrives/{job['id']}")).json["stopping"] is False


async def test_a_topic_that_was_not_counted_to_its_end_is_said_to_hold_more(
    console: Console, luma: StoredWebhook
) -> None:
    console.dead_events.is_at_least = True
    path, order = f"/api/v1/webhooks/{luma.id}/resend", {"since": SINCE, "include": ["dead"]}
    check = (await (await console.client()).post(f"{path}/check", json=order)).json
    assert (check["dead"], check["dead_is_at_least"]) == (1, True)


@pytest.mark.parametrize("problem", [None, "the dead-letter topic is still being read"])
async def test_a_job_is_started_without_a_match_only_if_the_console_may_lack_events(
    console: Console, luma: StoredWebhook, problem: str | None
) -> None:
    console.dead_events.problem = problem
    path, order = f"/api/v1/webhooks/{luma.id}/resend", {"since": SINCE, "include": ["dead"], "channels": ["sms"]}
    answer = await (await console.client()).post(path, json=order)
    assert (answer.status, len(console.dead_events.asked)) == ((404, 0) if problem is None else (202, 1))


async def test_the_half_that_could_not_be_started_is_named_beside_the_other(
    console: Console, luma: StoredWebhook
) -> None:
    api, path = await console.client(), f"/api/v1/webhooks/{luma.id}/resend"
    console.resends.error = AlreadyRunning("delivered events of luma are being sent again already", "job-9")
    jobs = (await api.post(path, json={"since": SINCE})).json["items"]
    assert [(job["kind"], job["state"], job["problem"]) for job in jobs] == [
        ("dead", "running", ""), ("delivered", "failed", console.resends.error.for_tenants),
    ]  # fmt: skip
    assert len((await api.get(f"/api/v1/audit?webhook_id={luma.id}&action=redrive")).json["items"]) == 1
    console.resends.error, console.dead_events.is_busy = None, True
    jobs = (await api.post(path, json={"since": SINCE})).json["items"]
    assert [(job["kind"], job["state"]) for job in jobs] == [("delivered", "running"), ("dead", "failed")]
    console.resends.error = BrokerUnavailable("kafka.internal:9092")
    refused = await api.post(path, json={"since": SINCE})
    assert (refused.status, "does not answer" in refused.text) == (503, True)


async def test_nothing_is_sent_again_to_a_webhook_that_is_off_or_deleted(console: Console, luma: StoredWebhook) -> None:
    """Its events would be skipped, and be marked as sent again."""
    api = await console.client()
    path, order = f"/api/v1/webhooks/{luma.id}/resend", {"since": SINCE}
    tenant = {"org": LUMA.org, "sandbox": LUMA.sandbox}
    redrives: list[dict[str, object]] = [
        tenant | {"events": {"select": "ids", "ids": ["0-1"]}},
        tenant | {"events": {"select": "matching"}},
    ]
    config = luma.config().model_copy(update={"enabled": False})
    off = await console.services.webhooks.update(luma.id, config, expected_version=1, by="test", orgs=None)
    for where, body in (
        (path, order),
        (f"{path}/check", order),
        *(("/api/v1/dead-events/redrive", one) for one in redrives),
    ):
        answer = await api.post(where, json=body)
        assert (answer.status, answer.json["type"]) == (409, "urn:dispatcher:problem:would_be_skipped"), where
        assert "switch it on first: its events would be skipped" in answer.json["detail"]
    await console.services.webhooks.delete(luma.id, expected_version=off.version, by="test", orgs=None)
    for body in redrives:
        answer = await api.post("/api/v1/dead-events/redrive", json=body)
        assert (answer.status, answer.json["type"]) == (409, "urn:dispatcher:problem:would_be_skipped")
        assert "no webhook" in answer.json["detail"]
    assert (console.dead_events.asked, console.resends.asked) == ([], [])
    assert (await api.get(f"/api/v1/audit?webhook_id={luma.id}&action=redrive")).json["items"] == []
