"""Test events, deliveries, dead events, history and tokens by the API."""

from datetime import UTC, datetime, timedelta

import pytest

from dispatcher.contract.outcomes import DeadReason
from dispatcher.errors import AlreadyRunning
from dispatcher.stores.sql.records import AuditAction, AuditQuery, Role, StoredWebhook
from tests.console.api.conftest import Console
from tests.console.api.fakes import AT, LUMA, RIVAL
from tests.stores_sql.examples import CANARY, plain_draft, secretive_draft

WEBHOOKS = "/api/v1/webhooks"
ORGS = frozenset({LUMA.org})


async def test_a_test_goes_out_with_the_stored_secrets_and_is_in_the_history(
    console: Console, luma: StoredWebhook
) -> None:
    api = await console.client(orgs=ORGS, name="ada")
    answer = await api.post(f"{WEBHOOKS}/{luma.id}/test", json={"channel": "sms", "message_status": "bounce"})
    assert (answer.status, answer.json["verdict"], answer.json["answer"]) == (200, "delivered", "<b>ok</b>")
    assert answer.json["steps"][1] == {"name": "token", "ok": None, "ms": None, "detail": ""}
    (sent,) = console.test_events.sent
    assert f"{CANARY}-client" in [secret.reveal_text() for secret in sent.secrets()]
    (entry,) = await console.services.audit.search(AuditQuery(action=AuditAction.TEST), orgs=None)
    assert (entry.actor, entry.tenant, entry.webhook_id) == ("ada", LUMA, luma.id)
    assert entry.changes == {
        "channel": "sms", "message_status": "bounce", "verdict": "delivered", "reason": "http_2xx", "status": 200,
    }  # fmt: skip


async def test_a_draft_is_tested_and_previewed_before_it_is_saved(console: Console, luma: StoredWebhook) -> None:
    api = await console.client(orgs=ORGS)
    kept = (await api.get(f"{WEBHOOKS}/{luma.id}")).json["configuration"] | {"name": "Draft"}
    for path in ("test", "preview"):
        answer = await api.post(f"{WEBHOOKS}/{path}", json={"webhook": kept, "webhook_id": luma.id})
        assert (answer.status, answer.json["request"]) == (200, [{"name": "x-environment", "value": "prod"}])
        without = await api.post(f"{WEBHOOKS}/{path}", json={"webhook": kept})
        assert without.status == 422
        assert "/webhook/signing/secrets/0" in [error["pointer"] for error in without.json["errors"]]
        wrong = await api.post(
            f"{WEBHOOKS}/{path}", json={"webhook": plain_draft(*LUMA, url="x"), "channel": "fax", "a": 1}
        )
        assert {error["pointer"] for error in wrong.json["errors"]} == {"/channel", "/a"}
        wrong = await api.post(f"{WEBHOOKS}/{path}", json={"webhook": plain_draft(*LUMA, url="x")})
        assert [error["field"] for error in wrong.json["errors"]] == ["webhook.url"]
    (sent,) = console.test_events.sent
    assert (sent.name, len(sent.secrets())) == ("Draft", 7)
    assert (await console.services.webhooks.get(luma.id, orgs=None)).version == 1


async def test_test_events_are_refused_for_another_organisation_and_with_its_secrets(
    console: Console, luma: StoredWebhook, rival: StoredWebhook
) -> None:
    api = await console.client(orgs=frozenset({RIVAL.org}))
    assert (await api.post(f"{WEBHOOKS}/test", json={"webhook": secretive_draft(*LUMA)})).status == 403
    assert (
        await api.post(f"{WEBHOOKS}/test", json={"webhook": plain_draft(*RIVAL), "webhook_id": luma.id})
    ).status == 404
    stolen = dict(luma.document) | {"org": RIVAL.org, "sandbox": "other"}
    answer = await api.post(f"{WEBHOOKS}/test", json={"webhook": stolen, "webhook_id": rival.id})
    assert answer.status == 422
    assert console.test_events.sent == []


async def test_attempts_and_their_outcomes_are_listed(console: Console, luma: StoredWebhook) -> None:
    api, path = await console.client(Role.VIEWER, ORGS), f"{WEBHOOKS}/{luma.id}"
    at = datetime.fromtimestamp(AT, UTC).isoformat().replace("+00:00", "Z")
    outcomes = (await api.get(f"{path}/outcomes?window=1h")).json
    assert (outcomes["window"], outcomes["delivered"], outcomes["failed"], outcomes["dead"]) == ("1h", 3, 2, 1)
    assert (outcomes["buckets"][0]["start"], outcomes["last_delivery"]) == (at, at)
    assert (await api.get(f"{path}/outcomes?window=2h")).status == 422
    lane = (await api.get(f"{path}/lane")).json["lane"]
    assert (lane["state"], lane["concurrency_limit"]) == ("active", 16)
    console.lanes.is_away = True
    assert (await api.get(f"{path}/lane")).json == {"lane": None}
    tiers = (await api.get(f"{path}/waiting")).json["tiers"]
    assert tiers == [
        {"tier": "30s", "reason": None, "events": 3, "next_due": at, "expires_at": None, "is_at_least": True}
    ]
    console.waiting.is_away = True
    answer = await api.get(f"{path}/waiting")
    assert (answer.status, answer.headers["Retry-After"]) == (503, "5")


async def test_attempts_come_page_by_page(console: Console, luma: StoredWebhook) -> None:
    api = await console.client(Role.VIEWER, ORGS)
    path, seen = f"{WEBHOOKS}/{luma.id}/attempts?limit=2&outcome=failed", 0
    while path:
        page = await api.get(path)
        seen += len(page.json["items"])
        path = page.json["next"]
    assert seen == 3
    assert page.json["items"][0]["answer"] == "<b>busy</b>"
    assert page.json["items"][0]["origin"] == {"topic": "delivery-events", "partition": 0, "offset": 7}


async def test_dead_events_are_filtered_and_sent_again(console: Console, luma: StoredWebhook) -> None:
    api = await console.client(orgs=ORGS, name="ada")
    since = "2026-07-22T08:00:00Z"
    query = f"reasons=rejected&reasons=expired&since={since}&redriven=both"
    assert (await api.get(f"/api/v1/dead-events?{query}")).json["total"] == 1
    assert (await api.get("/api/v1/dead-events?org=a")).json["errors"][0]["field"] == "sandbox"
    for wrong in (
        "since=1",
        "since=2026-07-22",
        "since=2026-07-22T08:00:00",
        "reasons=bored",
        "until=2026-13-01T00:00:00Z",
    ):
        assert (await api.get(f"/api/v1/dead-events?{wrong}")).status == 422, wrong
    for same in ("2026-07-22T10:00:00%2B02:00", "2026-07-22T10:00:00.000000%2B0200"):  # as OpenAPI Generator writes it
        assert (await api.get(f"/api/v1/dead-events?since={same}")).status == 200, same

    tenant = {"org": LUMA.org, "sandbox": LUMA.sandbox}
    some = await api.post("/api/v1/dead-events/redrive", json=tenant | {"events": {"select": "ids", "ids": ["0-1"]}})
    assert (some.status, some.json["total"], some.json["by"]) == (202, 1, "ada")
    assert (await api.get(some.headers["Location"])).json["state"] == "done"
    matching = {"select": "matching", "reasons": ["rejected"], "since": since}
    assert (await api.post("/api/v1/dead-events/redrive", json=tenant | {"events": matching})).status == 202
    (_, ids, _), (_, none, asked) = console.dead_events.asked
    assert (ids, none) == (frozenset({"0-1"}), None)
    assert (asked.tenant, asked.reasons) == (LUMA, frozenset({DeadReason.REJECTED.value}))
    assert asked.since == datetime.fromisoformat(since).timestamp()
    entries = await console.services.audit.search(AuditQuery(action=AuditAction.REDRIVE), orgs=None)
    assert [(entry.actor, entry.webhook_id, entry.changes["chosen"]) for entry in entries] == [
        ("ada", luma.id, False), ("ada", luma.id, True),
    ]  # fmt: skip

    ids = {"select": "ids"}
    for events in (
        {}, ids, ids | {"ids": []}, ids | {"ids": ["x"]}, ids | {"ids": ["0-1"], "reasons": []}, [], None, ids | {"ids": "0-1"}, {"select": "all"},
        {"select": "matching", "reasons": ["bored"]},
    ):  # fmt: skip
        answer = await api.post("/api/v1/dead-events/redrive", json=tenant | {"events": events})
        assert (answer.status, len(console.dead_events.asked)) == (422, 2), events
    stolen = await api.post("/api/v1/dead-events/redrive", json=tenant | {"events": {"select": "ids", "ids": ["0-2"]}})
    assert stolen.status == 404


async def test_a_redrive_that_can_not_begin_leaves_no_line_in_the_history(
    console: Console, luma: StoredWebhook, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refuse(*args: object, **options: object) -> None:
        raise AlreadyRunning("a redrive of this webhook is under way", "job-1")

    monkeypatch.setattr(console.dead_events, "redrive", refuse)
    api = await console.client(orgs=ORGS)
    answer = await api.post(
        "/api/v1/dead-events/redrive", json={"org": LUMA.org, "sandbox": LUMA.sandbox, "events": {"select": "matching"}}
    )
    assert (answer.status, answer.json["detail"]) == (409, "A redrive of this webhook is under way.")
    assert await console.services.audit.search(AuditQuery(action=AuditAction.REDRIVE), orgs=None) == []


async def test_the_history_comes_page_by_page_and_for_each_organisation_its_own(
    console: Console, luma: StoredWebhook, rival: StoredWebhook
) -> None:
    everybody, lumas = await console.client(), await console.client(Role.VIEWER, ORGS)
    actions, path = [], "/api/v1/audit?limit=1"
    while path:
        page = await everybody.get(path)
        actions += [item["action"] for item in page.json["items"]]
        path = page.json["next"]
    assert actions == ["token_create", "token_create", "create", "create"]
    own = (await lumas.get("/api/v1/audit")).json["items"]
    assert [(item["action"], item["org"]) for item in own] == [("create", LUMA.org)]
    assert own[0]["changes"]["name"] == {"before": None, "after": "Luma"}
    whole = (await everybody.get(f"/api/v1/audit?webhook_id={luma.id}")).json["items"]
    for seen in (own, whole):  # tenants put keys into paths: the audit log contains none
        assert seen[0]["changes"]["url"]["before"] is None
        assert seen[0]["changes"]["url"]["after"].startswith("https://hooks.luma.example/<secret ")
    assert (await lumas.get(f"/api/v1/audit?webhook_id={rival.id}")).json["items"] == []
    assert (await lumas.get("/api/v1/audit?before=9999999999")).status == 422
    assert (await lumas.get("/api/v1/audit?actor=%00")).status == 422


async def test_a_token_made_by_the_api_works_until_it_is_revoked(console: Console) -> None:
    api = await console.client(name="root")
    wanted = {"name": "Luma's script", "role": "viewer", "orgs": [LUMA.org], "expires_in_days": 90}
    made = await api.post("/api/v1/tokens", json=wanted)
    assert made.status == 201
    token = made.json["token"]
    left = datetime.fromisoformat(token["expires_at"]) - datetime.now(UTC)
    assert timedelta(days=89) < left <= timedelta(days=90)
    holder = {"Authorization": f"Bearer {made.json['text']}"}
    read = await console.stranger().get("/api/v1/me", headers=holder)
    assert (read.json["name"], read.json["orgs"]) == ("Luma's script", [LUMA.org])
    listed = await api.get("/api/v1/tokens")
    assert made.json["text"] not in listed.text
    assert {item["name"] for item in listed.json["items"]} == {"root", "Luma's script"}
    assert (await api("DELETE", made.headers["Location"])).status == 204
    assert (await api("DELETE", made.headers["Location"])).status == 204
    assert (await console.stranger().get("/api/v1/me", headers=holder)).status == 401
    assert (await api("DELETE", "/api/v1/tokens/0123456789abcdef")).status == 404
    for wrong in (
        {"orgs": []},
        {"name": " "},
        {"name": "a\u0000"},
        {"role": "root"},
        {"expires_in_days": 0},
        {"expires_in_days": "90"},
        {"orgs": LUMA.org},
    ):
        assert (await api.post("/api/v1/tokens", json=wanted | wrong)).status == 422, wrong
    missing = {key: value for key, value in wanted.items() if key != "orgs"}
    assert (await api.post("/api/v1/tokens", json=missing)).status == 422
