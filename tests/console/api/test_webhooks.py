"""Webhooks by the API: what people and programs do with them, on both databases."""

import asyncio
import io
from datetime import UTC, datetime, timedelta

import pytest

from dispatcher.auth.signatures import Signer
from dispatcher.stores.sql.records import AuditAction, AuditQuery, Role, StoredWebhook
from tests.console.api.conftest import Console
from tests.console.api.fakes import LUMA, RIVAL
from tests.stores_sql.examples import CANARY, plain, plain_draft, secretive, secretive_draft

WEBHOOKS = "/api/v1/webhooks"
ORGS = frozenset({LUMA.org})


async def test_a_webhook_is_made_read_changed_and_deleted(console: Console) -> None:
    api = await console.client(orgs=ORGS, name="ada")
    made = await api.post(WEBHOOKS, json=secretive_draft(*LUMA))
    assert (made.status, made.headers["ETag"]) == (201, '"1"')
    path = made.headers["Location"]
    read = await api.get(path)
    assert read.json == made.json
    assert read.json["created_by"] == "ada"
    draft = read.json["configuration"] | {"name": "Another name"}
    changed = await api("PUT", path, json=draft, headers={"If-Match": read.headers["ETag"]})
    assert (changed.status, changed.headers["ETag"], changed.json["name"]) == (200, '"2"', "Another name")
    secrets = (await console.services.webhooks.for_delivery(made.json["id"], orgs=None)).secrets()
    assert f"{CANARY}-client" in [secret.reveal_text() for secret in secrets]
    assert (await api("DELETE", path, headers={"If-Match": '"2"'})).status == 204
    assert (await api.get(path)).status == 404


async def test_no_answer_has_a_secret_in_it(console: Console, luma: StoredWebhook) -> None:
    for role in Role:
        api = await console.client(role, ORGS)
        texts = [(await api.get(path)).text for path in (f"{WEBHOOKS}/{luma.id}", WEBHOOKS, "/api/v1/audit")]
        text = "".join(texts)
        assert not [secret for secret in ("-client", "-assertion", "-new", "-old", "-tls") if CANARY + secret in text]
        # What tenants put into headers, claims and queries is not ours to keep from who edits it; viewers don't.
        assert (CANARY in text) == (role is Role.ADMIN)


async def test_viewers_see_no_path_and_no_query_of_a_url(console: Console) -> None:
    admin, viewer = await console.client(orgs=ORGS), await console.client(Role.VIEWER, ORGS)
    draft = plain_draft(*LUMA, url=f"https://hooks.luma.example/hooks/{CANARY}?k={CANARY}")
    path = (await admin.post(WEBHOOKS, json=draft)).headers["Location"]
    changed = draft | {"url": f"https://hooks.luma.example/other/{CANARY}"}
    assert (await admin("PUT", path, json=changed, headers={"If-Match": '"1"'})).status == 200
    for place in (path, WEBHOOKS, "/api/v1/audit"):
        answer = await viewer.get(place)
        assert (answer.status, "https://hooks.luma.example/" in answer.text) == (200, True)
        assert CANARY not in answer.text
    assert CANARY in (await admin.get(path)).text


async def test_viewers_see_no_address_of_a_contact(console: Console) -> None:
    admin, viewer = await console.client(orgs=ORGS), await console.client(Role.VIEWER, ORGS)
    draft = plain_draft(*LUMA, notify={"emails": ["ops@luma.example"]})
    path = (await admin.post(WEBHOOKS, json=draft)).headers["Location"]
    for place in (path, WEBHOOKS, "/api/v1/audit"):
        assert "ops@luma.example" not in (await viewer.get(place)).text
    assert (await viewer.get(path)).json["configuration"]["notify"] == {"emails": ["o•••@luma.example"]}
    assert (await admin.get(path)).json["configuration"]["notify"] == draft["notify"]


async def test_a_stored_header_secret_is_not_sent_to_a_host_of_the_editor_s_own(console: Console) -> None:
    api = await console.client(orgs=ORGS)
    made = await api.post(WEBHOOKS, json=plain_draft(*LUMA, headers={"X-Api-Key": {"value": CANARY}}))
    stolen = made.json["configuration"] | {"url": "https://hooks.evil.example/"}
    test = {"webhook": stolen, "webhook_id": made.json["id"], "channel": "email", "message_status": "sent"}
    for answer in (
        await api("PUT", made.headers["Location"], json=stolen, headers={"If-Match": '"1"'}),
        await api.post(f"{WEBHOOKS}/test", json=test),
    ):
        assert answer.status == 422
        assert [one["field"].removeprefix("webhook.") for one in answer.json["errors"]] == ["headers.X-Api-Key"]
    assert console.test_events.sent == []


async def test_every_mistake_is_named_with_its_field(console: Console) -> None:
    api = await console.client()
    draft = plain_draft(
        *LUMA, url="ftp://x", payload=7, auth={"type": "jwt", "sign": {"algorithm": "HS256", "key": "k"}}
    )
    answer = await api.post(WEBHOOKS, json=draft)
    assert (answer.status, answer.headers["Content-Type"]) == (422, "application/problem+json")
    assert {error["pointer"] for error in answer.json["errors"]} == {"/url", "/payload", "/auth/sign/key"}
    assert {error["field"] for error in answer.json["errors"]} == {"url", "payload", "auth.sign.key"}
    assert answer.json["request_id"] == answer.headers["X-Request-ID"]


async def test_a_second_webhook_is_refused_with_the_way_to_the_first(console: Console, luma: StoredWebhook) -> None:
    api = await console.client(orgs=ORGS)
    answer = await api.post(WEBHOOKS, json=plain_draft(*LUMA))
    assert (answer.status, answer.json["existing"]) == (409, f"{WEBHOOKS}/{luma.id}")
    assert (await api.get(answer.json["existing"])).json["name"] == "Luma"


async def test_no_answer_reveals_whether_another_organisation_has_a_webhook(
    console: Console, rival: StoredWebhook
) -> None:
    api = await console.client(orgs=ORGS)
    with_one = await api.post(WEBHOOKS, json=plain_draft(*RIVAL), headers={"X-Request-ID": "same"})
    without = await api.post(WEBHOOKS, json=plain_draft("nobody@AdobeOrg", "prod"), headers={"X-Request-ID": "same"})
    assert with_one.status == without.status == 403
    assert with_one.text == without.text
    assert with_one.headers.keys() == without.headers.keys()


async def test_of_two_editors_the_second_is_shown(console: Console, luma: StoredWebhook) -> None:
    path = f"{WEBHOOKS}/{luma.id}"
    ada, bob = await console.client(name="ada"), await console.client(name="bob")
    seen = [await editor.get(path) for editor in (ada, bob)]
    assert (
        await ada("PUT", path, json=seen[0].json["configuration"] | {"name": "Ada's"}, headers={"If-Match": '"1"'})
    ).status == 200
    late = await bob("PUT", path, json=seen[1].json["configuration"], headers={"If-Match": seen[1].headers["ETag"]})
    assert (late.status, late.headers["ETag"]) == (412, '"2"')
    assert "ada" in late.json["detail"]
    assert (await bob.get(path)).json["name"] == "Ada's"


async def test_an_older_version_is_a_conflict_whatever_has_happened_to_its_secrets(
    console: Console, luma: StoredWebhook
) -> None:
    api, path = await console.client(orgs=ORGS), f"{WEBHOOKS}/{luma.id}"
    shown = (await api.get(path)).json["configuration"]
    replaced = shown | {"signing": {"secrets": [{"value": "whsec_" + "bmV3" * 10}]}}
    assert (await api("PUT", path, json=replaced, headers={"If-Match": '"1"'})).status == 200
    late = await api("PUT", path, json=shown | {"name": "Late"}, headers={"If-Match": '"1"'})
    assert (late.status, late.headers["ETag"]) == (412, '"2"')


async def test_of_many_simultaneous_edits_one_succeeds(console: Console, luma: StoredWebhook) -> None:
    path, api = f"{WEBHOOKS}/{luma.id}", await console.client()
    draft = (await api.get(path)).json["configuration"]
    answers = await asyncio.gather(
        *(api("PUT", path, json=draft | {"name": f"editor {one}"}, headers={"If-Match": '"1"'}) for one in range(8))
    )
    assert sorted(answer.status for answer in answers) == [200, *[412] * 7]


async def test_a_change_without_a_version_or_with_a_strange_one_is_refused(
    console: Console, luma: StoredWebhook
) -> None:
    path, api = f"{WEBHOOKS}/{luma.id}", await console.client()
    draft = (await api.get(path)).json["configuration"]
    for method in ("PUT", "DELETE"):
        assert (await api(method, path, json=draft)).status == 428
        for etag in ('"0"', '"2"', "1", 'W/"x"', '"99999999999999999999"'):
            assert (await api(method, path, json=draft, headers={"If-Match": etag})).status == 412, etag
    assert (await api("PUT", path, json=draft, headers={"If-Match": '"7", "1"'})).status == 200
    assert (await api("DELETE", path, headers={"If-Match": "*"})).status == 204


async def test_webhooks_are_searched_sorted_and_paged(console: Console) -> None:
    api = await console.client()
    for number in range(5):
        draft = plain_draft(
            "luma@AdobeOrg", f"s{number}", name=f"W{number}", channels=["sms"] if number % 2 else ["email"]
        )
        assert (await api.post(WEBHOOKS, json=draft | {"enabled": number != 4})).status == 201
    names: list[str] = []
    path = f"{WEBHOOKS}?descending=true&limit=2"
    while path:
        page = await api.get(path)
        assert page.json["total"] == 5
        names += [item["name"] for item in page.json["items"]]
        path = page.json["next"]
        assert page.headers.get("Link") == (f'<{path}>; rel="next"' if path else None)
    assert names == ["W4", "W3", "W2", "W1", "W0"]
    for query, expected in {
        "text=w1": ["W1"], "channel=sms": ["W1", "W3"], "enabled=false": ["W4"], "sandbox=s2": ["W2"],
        "text=hooks.luma.example&sandbox=s0": ["W0"], "org=nobody": [], "text=%00": [],
    }.items():  # fmt: skip
        answer = await api.get(f"{WEBHOOKS}?{query}")
        found = [item["name"] for item in answer.json.get("items", [])]
        assert found == expected, query


async def test_parameters_that_can_not_be_are_named(console: Console) -> None:
    api = await console.client()
    for query, name in {
        "limit=0": "limit", "limit=201": "limit", "limit=1.0": "limit", "offset=-1": "offset", "sort=size": "sort", "enabled=yes": "enabled",
        "colour=red": "colour", "limit=1&limit=2": "limit", "channel=fax": "channel",
    }.items():  # fmt: skip
        answer = await api.get(f"{WEBHOOKS}?{query}")
        assert (answer.status, [error["field"] for error in answer.json["errors"]]) == (422, [name]), query


async def test_a_body_that_is_not_json_is_refused_in_words(console: Console) -> None:
    api = await console.client()
    as_json = {"Content-Type": "application/json"}
    for body, headers, status in (
        (b"{}", {"Content-Type": "text/plain"}, 415),
        (b"a=b", {"Content-Type": "application/x-www-form-urlencoded"}, 415),
        (b"", as_json, 400),
        (b"{", as_json, 400),
        (b'{"a":"\xff"}', as_json, 400),
        (b"[" * 5000 + b"]" * 5000, as_json, 400),
        (b"[]", as_json, 422),
        (b"null", as_json, 422),
        (b'{"name":' + b"[" * 500 + b"]" * 500 + b"}", as_json, 422),
        (b'{"name":"\\u0000"}', as_json, 422),
        (b'{"name":"' + b"x" * (3 * 1024 * 1024) + b'"}', as_json, 413),
    ):
        answer = await api.post(WEBHOOKS, data=io.BytesIO(body), headers=headers)
        assert (answer.status, answer.headers["Content-Type"]) == (status, "application/problem+json"), body[:20]
        assert "Traceback" not in answer.text


async def test_a_webhook_is_taken_up_again_though_no_dispatcher_answers(console: Console, luma: StoredWebhook) -> None:
    api = await console.client(name="ada")
    answer = await api.post(f"{WEBHOOKS}/{luma.id}/enable")
    assert (answer.status, answer.headers["ETag"]) == (200, '"2"')
    assert console.lanes.enabled == [LUMA]
    console.lanes.is_away = True
    assert (await api.post(f"{WEBHOOKS}/{luma.id}/enable")).status == 200
    entries = await console.services.audit.search(AuditQuery(action=AuditAction.ENABLE), orgs=None)
    assert [entry.actor for entry in entries] == ["ada", "ada"]


async def test_pause_holds_and_resume_sends_and_neither_touches_the_rest(console: Console, luma: StoredWebhook) -> None:
    api = await console.client(name="jana")
    path = f"/api/v1/webhooks/{luma.id}"
    before = await console.services.webhooks.for_delivery(luma.id, orgs=None)
    paused = await api.post(f"{path}/pause")
    assert (paused.status, paused.json["paused"], paused.json["enabled"], paused.headers["ETag"]) == (
        200,
        True,
        True,
        '"2"',
    )
    config = await console.services.webhooks.for_delivery(luma.id, orgs=None)
    assert config == before.model_copy(update={"paused": True})  # secrets and header parameters included
    assert (await api.post(f"{path}/pause")).json["version"] == 2  # nothing changed
    assert [one["id"] for one in (await api.get("/api/v1/webhooks?paused=true")).json["items"]] == [luma.id]
    assert (await api.get("/api/v1/webhooks?paused=false")).json["total"] == 0
    resumed = await api.post(f"{path}/resume")
    assert (resumed.json["paused"], resumed.json["version"]) == (False, 3)
    assert await console.services.webhooks.for_delivery(luma.id, orgs=None) == before
    assert (await api.get("/api/v1/webhooks?paused=false")).json["total"] == 1
    audit = (await api.get(f"/api/v1/audit?webhook_id={luma.id}")).json["items"]
    assert [(one["action"], one["actor"]) for one in audit[:2]] == [("resume", "jana"), ("pause", "jana")]


@pytest.mark.parametrize(("kind", "prefix", "public"), [("hmac", "whsec_", None), ("ed25519", "whsk_", "whpk_")])
async def test_a_generated_signing_secret_is_returned_once_and_signs_beside_the_others(
    console: Console, kind: str, prefix: str, public: str | None
) -> None:
    stored = await console.services.webhooks.create(plain(*LUMA), by="test", orgs=None)
    api, path = await console.client(name="jana"), f"/api/v1/webhooks/{stored.id}"
    first = await api.post(f"{path}/signing-secrets", json={"kind": kind})
    assert (first.status, first.json["version"], first.headers["ETag"]) == (201, 2, '"2"')
    assert first.json["secret"].startswith(prefix)
    assert (first.json["public_key"] or "").startswith(public or "")
    second = await api.post(f"{path}/signing-secrets", json={"kind": kind})
    config = await console.services.webhooks.for_delivery(stored.id, orgs=None)
    assert config.signing is not None
    secrets = [one.reveal().decode() for one in config.signing.secrets]
    assert secrets == [second.json["secret"], first.json["secret"]]
    shown = (await api.get(path)).text + (await api.get(f"/api/v1/audit?webhook_id={stored.id}")).text
    assert first.json["secret"] not in shown
    assert first.json["fingerprint"] in shown


async def test_after_a_rotation_the_older_secret_ends_by_itself_or_at_once(console: Console) -> None:
    stored = await console.services.webhooks.create(plain(*LUMA), by="test", orgs=None)
    api, path = await console.client(name="jana"), f"/api/v1/webhooks/{stored.id}/signing-secrets"
    first = (await api.post(path, json={"end_older_in_hours": 24})).json
    assert first["older_end_at"] is None  # there is none that could end
    before = datetime.now(UTC)
    second = (await api.post(path, json={"end_older_in_hours": 24})).json
    end = datetime.fromisoformat(second["older_end_at"])
    assert timedelta(hours=23.9) < end - before < timedelta(hours=24.1)
    listed = (await api.get(path)).json["items"]
    assert [(one["fingerprint"], one["is_newest"], one["ends_at"]) for one in listed] == [
        (second["fingerprint"], True, None),
        (first["fingerprint"], False, second["older_end_at"]),
    ]
    assert all(before < datetime.fromisoformat(one["added_at"]) + timedelta(minutes=1) for one in listed)
    config = await console.services.webhooks.for_delivery(stored.id, orgs=None)
    signer = Signer.of(config.signing)
    assert signer is not None
    assert [len(signer.sign("m", int(end.timestamp()) + at, b"").split()) for at in (-1, 0)] == [2, 1]

    third = (await api.post(path, json={})).json  # the one that ends keeps its end, the other has none
    assert [one["ends_at"] for one in (await api.get(path)).json["items"]] == [None, None, second["older_end_at"]]
    moved = await api.post(f"{path}/{second['fingerprint']}/end", json={"at": "2026-11-28T10:00:00Z"})
    assert (moved.status, moved.json["errors"][0]["field"]) == (422, "at")
    at = (datetime.now(UTC) + timedelta(days=7)).isoformat()
    moved = await api.post(f"{path}/{second['fingerprint']}/end", json={"at": at})
    assert (moved.status, moved.headers["ETag"]) == (200, '"5"')
    ended = await api.post(f"{path}/{first['fingerprint']}/end", json={})
    assert ended.status == 200
    config = await console.services.webhooks.for_delivery(stored.id, orgs=None)
    assert config.signing is not None
    assert [one.reveal_text() for one in config.signing.secrets] == [third["secret"], second["secret"]]
    newest = await api.post(f"{path}/{third['fingerprint']}/end", json={})
    assert (newest.status, newest.json["errors"][0]["field"]) == (422, "signing.secrets")
    assert (await api.post(f"{path}/{first['fingerprint']}/end", json={})).status == 404


async def test_the_end_of_a_secret_outlasts_an_edit_of_something_else(console: Console) -> None:
    stored = await console.services.webhooks.create(plain(*LUMA), by="test", orgs=None)
    api, path = await console.client(), f"/api/v1/webhooks/{stored.id}"
    for _ in range(2):
        await api.post(f"{path}/signing-secrets", json={"end_older_in_hours": 48})
    shown = await api.get(path)
    saved = await api("PUT", path, json=shown.json["configuration"], headers={"If-Match": shown.headers["ETag"]})
    assert (saved.status, saved.json["configuration"]) == (200, shown.json["configuration"])
    assert len(shown.json["configuration"]["signing"]["ends"]) == 1


async def test_a_deletion_is_undone_and_a_new_webhook_is_a_conflict(console: Console, luma: StoredWebhook) -> None:
    api = await console.client(name="jana")
    deleted, gone = f"/api/v1/deleted-webhooks/{luma.id}", {"If-Match": "*"}
    assert (await api("DELETE", f"{WEBHOOKS}/{luma.id}", headers=gone)).status == 204
    assert (await api.get(f"{WEBHOOKS}/{luma.id}")).status == 404
    (listed,) = (await api.get("/api/v1/deleted-webhooks")).json["items"]
    dates = [datetime.fromisoformat(listed[name]) for name in ("deleted_at", "restorable_until")]
    assert (listed["id"], dates[1] - dates[0]) == (luma.id, timedelta(days=30))
    new = await console.services.webhooks.create(plain(*LUMA), by="test", orgs=None)
    conflict = await api.post(f"{deleted}/restore")
    assert (conflict.status, conflict.json["existing"]) == (409, f"{WEBHOOKS}/{new.id}")
    await console.services.webhooks.delete(new.id, expected_version=1, by="test", orgs=None)
    restored = await api.post(f"{deleted}/restore")
    assert (restored.status, restored.headers["ETag"]) == (200, '"3"')
    assert restored.json["configuration"] == luma.document
    assert await console.services.webhooks.for_delivery(luma.id, orgs=None) == secretive(*LUMA, name="Luma")
    assert (await api.post(f"{deleted}/restore")).status == 404
    await api("DELETE", f"{WEBHOOKS}/{luma.id}", headers=gone)
    assert (await api("DELETE", deleted)).status == 204
    assert [(await api("DELETE", deleted)).status, (await api.post(f"{deleted}/restore")).status] == [404, 404]
    audit = (await api.get(f"/api/v1/audit?webhook_id={luma.id}")).json["items"]
    assert [one["action"] for one in audit] == ["erase", "delete", "restore", "delete", "create"]
