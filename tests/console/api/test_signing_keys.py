"""Rotation of the keys that sign tokens, by the API: from the next key to the erased one."""

from datetime import UTC, datetime, timedelta

import pytest
from pydantic import JsonValue

from dispatcher.auth.jwt_signer import JwtSigner
from dispatcher.auth.signing_keys import new_private_key
from dispatcher.config.webhook_auth import SignedToken
from dispatcher.stores.sql.database import Database
from dispatcher.stores.sql.erasing import erase_what_is_over
from dispatcher.stores.sql.records import StoredWebhook
from tests.auth.keys import FITTING, key_text, pem
from tests.console.api.conftest import Console
from tests.console.api.fakes import LUMA
from tests.stores_sql.examples import plain


async def add(console: Console, algorithm: str = "ES256", **more: JsonValue) -> StoredWebhook:
    key: JsonValue = {"value": key_text(FITTING[algorithm]).decode()}
    config = plain(*LUMA, auth={"type": "jwt", "sign": {"algorithm": algorithm, "key": key, **more}})
    return await console.services.webhooks.create(config, by="test", orgs=None)


async def token_of(console: Console, webhook: StoredWebhook) -> SignedToken:
    token = (await console.services.webhooks.for_delivery(webhook.id, orgs=None)).signed_token
    assert token is not None
    return token


async def test_the_next_key_is_published_then_signs_then_the_older_one_goes(console: Console) -> None:
    stored = await add(console, kid="first")
    api, path = await console.client(name="jana"), f"/api/v1/webhooks/{stored.id}/signing-keys"
    (alone,) = (await api.get(path)).json["items"]
    assert (alone["role"], alone["key_id"], alone["signs_until"]) == ("signing", "first", None)
    before = datetime.now(UTC)
    made = await api.post(path, json={"starts_in_hours": 48})
    assert (made.status, made.headers["ETag"]) == (201, '"2"')
    following, current = made.json["items"]
    assert (following["role"], current["role"], current["key_id"]) == ("next", "signing", "first")
    starts = datetime.fromisoformat(following["signs_from"])
    assert timedelta(hours=47.9) < starts - before < timedelta(hours=48.1)
    assert current["signs_until"] == following["signs_from"]
    assert datetime.fromisoformat(current["withdrawn_at"]) == starts + timedelta(hours=24)
    assert "PRIVATE" not in made.text
    token = await token_of(console, stored)
    signer = JwtSigner(token, "https://hooks.luma.example")
    assert signer.key.kid == "first"
    signer.token(starts.timestamp())
    assert signer.key.kid == following["key_id"]

    again = await api.post(path, json={})
    assert (again.status, again.json["errors"][0]["field"]) == (422, "next")
    started = (await api.post(f"{path}/{following['fingerprint']}/start")).json["items"]
    assert [(one["role"], one["key_id"]) for one in started] == [
        ("signing", following["key_id"]), ("previous", "first"),
    ]  # fmt: skip
    signing = await api("DELETE", f"{path}/{following['fingerprint']}")
    assert (signing.status, signing.json["errors"][0]["field"]) == (422, "fingerprint")
    removed = await api("DELETE", f"{path}/{current['fingerprint']}")
    assert [(one["role"], one["fingerprint"]) for one in removed.json["items"]] == [
        ("signing", following["fingerprint"])
    ]
    assert removed.json["items"][0]["added_at"] is not None
    assert (await api("DELETE", f"{path}/{current['fingerprint']}")).status == 404
    assert (await api.post(f"{path}/{following['fingerprint']}/start")).status == 404


@pytest.mark.parametrize("algorithm", ["RS256", "PS512", "ES512", "EdDSA", "Ed25519", "Ed448"])
async def test_a_next_key_fits_the_algorithm_and_can_be_withdrawn(console: Console, algorithm: str) -> None:
    stored = await add(console, algorithm)
    api, path = await console.client(), f"/api/v1/webhooks/{stored.id}/signing-keys"
    following, current = (await api.post(path, json={})).json["items"]
    assert following["algorithm"] == algorithm
    assert following["key_id"] != current["key_id"]
    (left,) = (await api("DELETE", f"{path}/{following['fingerprint']}")).json["items"]
    assert (left["fingerprint"], left["signs_until"]) == (current["fingerprint"], None)


async def test_a_third_key_waits_until_the_first_is_no_longer_published(console: Console) -> None:
    """Receivers still verify tokens that the first one signed, so only a person takes it away earlier."""
    stored = await add(console)
    api, path = await console.client(), f"/api/v1/webhooks/{stored.id}/signing-keys"
    second, first = (await api.post(path, json={"starts_in_hours": 0})).json["items"]
    refused = await api.post(path, json={})
    assert (refused.status, refused.json["errors"][0]["field"]) == (422, "next")
    assert "withdraw it first" in refused.text
    assert [one["fingerprint"] for one in (await api.get(path)).json["items"]] == [
        second["fingerprint"], first["fingerprint"],
    ]  # fmt: skip

    await api("DELETE", f"{path}/{first['fingerprint']}")
    third, current = (await api.post(path, json={})).json["items"]
    assert (third["role"], current["fingerprint"]) == ("next", second["fingerprint"])


async def test_a_third_key_follows_a_second_that_has_signed_for_a_day(console: Console) -> None:
    yesterday = (datetime.now(UTC) - timedelta(hours=24, minutes=1)).isoformat()
    second = {
        "algorithm": "ES256",
        "key": {"value": new_private_key("ES256").decode()},
        "kid": "second",
        "starts": yesterday,
    }
    stored = await add(console, kid="first", next=second)
    api, path = await console.client(), f"/api/v1/webhooks/{stored.id}/signing-keys"
    third, current = (await api.post(path, json={})).json["items"]
    assert (third["role"], current["key_id"]) == ("next", "second")


async def test_shared_secrets_and_webhooks_without_tokens_are_refused_with_a_cure(console: Console) -> None:
    shared = await add(console, "HS256")
    api = await console.client()
    refused = await api.post(f"/api/v1/webhooks/{shared.id}/signing-keys", json={})
    assert (refused.status, "enter it in the form" in refused.text) == (422, True)
    (listed,) = (await api.get(f"/api/v1/webhooks/{shared.id}/signing-keys")).json["items"]
    assert (listed["algorithm"], listed["key_id"]) == ("HS256", None)
    config = plain(LUMA.org, "bare")
    bare = await console.services.webhooks.create(config, by="test", orgs=None)
    refused = await api.post(f"/api/v1/webhooks/{bare.id}/signing-keys", json={})
    assert (refused.status, "choose JWT authentication" in refused.text) == (422, True)
    assert (await api.get(f"/api/v1/webhooks/{bare.id}/signing-keys")).json == {"items": []}


async def test_an_edit_after_the_key_was_replaced_is_a_conflict(console: Console, database: Database) -> None:
    key: JsonValue = {"value": key_text(FITTING["PS256"]).decode()}
    starts = (datetime.now(UTC) - timedelta(days=1)).isoformat()
    stored = await add(console, kid="k1", next={"algorithm": "PS256", "key": key, "starts": starts})
    api, path = await console.client(), f"/api/v1/webhooks/{stored.id}"
    shown = await api.get(path)
    assert await erase_what_is_over(database) == (0, 1)
    etag = {"If-Match": shown.headers["ETag"]}
    late = await api("PUT", path, json=shown.json["configuration"] | {"name": "Late"}, headers=etag)
    assert (late.status, late.json["type"]) == (412, "urn:dispatcher:problem:edit_conflict")
    assert "The secret at auth.sign.key was replaced or erased meanwhile: read the webhook again." in late.text
    unread = await api("PUT", path, json=shown.json["configuration"], headers={"If-Match": "*"})
    assert (unread.status, unread.json["errors"][0]["field"]) == (422, "auth.sign.key")
    shown = await api.get(path)
    assert (await api("PUT", path, json=shown.json["configuration"], headers=etag)).status == 200
    assert ((await token_of(console, stored)).algorithm, (await token_of(console, stored)).kid) == ("PS256", None)


async def test_the_next_key_outlasts_an_edit_of_something_else(console: Console) -> None:
    stored = await add(console)
    api, path = await console.client(), f"/api/v1/webhooks/{stored.id}"
    await api.post(f"{path}/signing-keys", json={})
    shown = await api.get(path)
    saved = await api("PUT", path, json=shown.json["configuration"], headers={"If-Match": shown.headers["ETag"]})
    assert (saved.status, saved.json["configuration"]) == (200, shown.json["configuration"])
    assert pem("P-256").decode() not in shown.text
    assert len((await api.get(f"{path}/signing-keys")).json["items"]) == 2
