"""The keys that receivers verify our tokens by."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from joserfc import jwt
from joserfc.errors import JoseError
from joserfc.jwk import KeySet
from pydantic import JsonValue

from dispatcher.auth.authenticator import Authenticator
from dispatcher.auth.token_answers import TokenEndpoint
from dispatcher.config.secrets import Secret
from dispatcher.config.webhooks import WebhookConfig
from dispatcher.console.sources.jwks import KEPT_S, PublishedKeys
from dispatcher.contract.tenant import TenantKey
from dispatcher.errors import StoreUnavailable
from dispatcher.stores.sql.database import Database
from dispatcher.stores.sql.encryption import Encryption, new_key
from dispatcher.stores.sql.migrate import upgrade
from dispatcher.stores.sql.repository import WebhookRepository
from dispatcher.stores.sql.store import SqlStore
from tests.auth.keys import pem
from tests.stores_sql.examples import plain

PRIVATE = {"d", "p", "q", "dp", "dq", "qi", "oth", "k"}
NOW = 1_790_000_000.0


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


class Webhooks:
    """A database, as administrators and as the console see it."""

    def __init__(self, database: Database) -> None:
        encryption = Encryption([Secret(new_key().encode())])
        self.repository = WebhookRepository(database, encryption)
        self.store = SqlStore(database, encryption)

    async def add(self, sandbox: str, **fields: JsonValue) -> str:
        made = await self.repository.create(plain(sandbox=sandbox, **fields), by="ada", orgs=None)
        await self.store.load()
        return made.id

    async def edit(self, webhook_id: str, version: int, sandbox: str, **fields: JsonValue) -> None:
        config = plain(sandbox=sandbox, **fields)
        await self.repository.update(webhook_id, config, expected_version=version, by="ada", orgs=None)
        await self.store.load()


@pytest.fixture
async def webhooks(tmp_path: Path) -> AsyncIterator[Webhooks]:
    url = Secret(f"sqlite+aiosqlite:///{tmp_path / 'webhooks.db'}".encode())
    await upgrade(url)
    database = Database(url)
    yield Webhooks(database)
    await database.close()


def signing(key: bytes, algorithm: str = "ES256", **more: JsonValue) -> dict[str, JsonValue]:
    return {"auth": {"type": "jwt", "sign": {"algorithm": algorithm, "key": {"value": key.decode()}, **more}}}


def new_pem() -> bytes:
    return ec.generate_private_key(ec.SECP256R1()).private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


async def kids(keys: PublishedKeys, sandbox: str = "prod") -> list[str]:
    return [key["kid"] for key in (await keys.document(tenant(sandbox)))["keys"]]  # type: ignore[index,union-attr]


def tenant(sandbox: str) -> TenantKey:
    return TenantKey("luma@AdobeOrg", sandbox)


@pytest.mark.filterwarnings("ignore:EdDSA is deprecated")
async def test_a_receiver_verifies_every_token_by_the_document(webhooks: Webhooks) -> None:
    await webhooks.add("ec", **signing(pem("P-256"), kid="k1"))
    await webhooks.add("rsa", **signing(pem("rsa 2048"), "PS256"))
    await webhooks.add("okp", **signing(pem("Ed25519"), "EdDSA"))
    assertion: Any = {"algorithm": "ES384", "key": {"value": pem("P-384").decode()}, "kid": "k4"}
    fetch = {
        "grant": "jwt-bearer",
        "token_url": "https://login.luma.example/t",
        "client_id": "c",
        "assertion": assertion,
    }
    await webhooks.add("fetched", auth={"type": "jwt", "fetch": fetch})
    await webhooks.add("hmac", **signing(b"x" * 32, "HS256"))
    await webhooks.add("none")
    keys = PublishedKeys(webhooks.store)
    documents: Any = {webhook.tenant.sandbox: await keys.document(webhook.tenant) for webhook in webhooks.store.all()}
    assert {sandbox: len(one["keys"]) for sandbox, one in documents.items()} == {
        "ec": 1, "rsa": 1, "okp": 1, "fetched": 1, "hmac": 0, "none": 0,
    }  # fmt: skip
    assert not PRIVATE & {member for one in documents.values() for key in one["keys"] for member in key}
    assert "PRIVATE" not in json.dumps(documents)
    for sandbox in ("ec", "rsa", "okp"):
        webhook = next(webhook for webhook in webhooks.store.all() if webhook.tenant.sandbox == sandbox)
        name, value = await _header(webhook.config)
        assert name == "authorization"
        token = _verified(value, documents[sandbox])
        assert token.claims["aud"] == "https://hooks.luma.example"


def _verified(value: str, document: Any) -> jwt.Token:
    text = value.removeprefix("Bearer ")
    return jwt.decode(text, KeySet.import_key_set(document), algorithms=["ES256", "PS256", "EdDSA"])


async def test_a_token_of_one_tenant_is_refused_by_another_tenants_receiver(webhooks: Webhooks) -> None:
    """A tenant has its private key, and can sign what it likes with it: the other's issuer, audience, subject, kid."""
    mallorys = new_pem()
    await webhooks.add("luma", **signing(new_pem(), kid="k1"))
    await webhooks.add("mallory", **signing(mallorys, kid="k1"))
    keys = PublishedKeys(webhooks.store)
    forged = plain(sandbox="luma", **signing(mallorys, kid="k1"))
    _, value = await _header(forged)
    _verified(value, await keys.document(tenant("mallory")))
    with pytest.raises(JoseError):
        _verified(value, await keys.document(tenant("luma")))
    assert await keys.document(tenant("nobody")) == {"keys": []}
    assert await keys.document(TenantKey("mallory@AdobeOrg", "luma")) == {"keys": []}


async def _header(config: WebhookConfig) -> tuple[str, str]:
    nowhere: TokenEndpoint = None  # type: ignore[assignment]
    header = await Authenticator.of(config, nowhere).header(webhook_id="msg_1", body=b"{}", now=NOW)
    assert header is not None
    return header


async def test_a_key_is_published_at_once_and_for_a_while_after_its_end(webhooks: Webhooks) -> None:
    clock = Clock()
    keys = PublishedKeys(webhooks.store, clock)
    first, second = new_pem(), new_pem()
    webhook_id = await webhooks.add("prod", **signing(first, kid="first"))
    assert await kids(keys) == ["first"]
    await webhooks.edit(webhook_id, 1, "prod", **signing(second, kid="second"))
    assert sorted(await kids(keys)) == ["first", "second"]
    clock.now += KEPT_S - 1
    assert sorted(await kids(keys)) == ["first", "second"]
    clock.now += 2
    assert await kids(keys) == ["second"]


async def test_the_keys_of_a_deleted_webhook_are_withdrawn_at_once(webhooks: Webhooks) -> None:
    keys = PublishedKeys(webhooks.store)
    webhook_id = await webhooks.add("prod", **signing(new_pem(), kid="first"))
    assert await kids(keys) == ["first"]
    await webhooks.edit(webhook_id, 1, "prod", **signing(new_pem(), kid="second"))
    assert sorted(await kids(keys)) == ["first", "second"]
    await webhooks.repository.delete(webhook_id, expected_version=2, by="ada", orgs=None)
    await webhooks.store.load()
    assert await kids(keys) == []
    await webhooks.repository.restore(webhook_id, by="ada", orgs=None)
    await webhooks.store.load()
    assert await kids(keys) == ["second"]
    await webhooks.repository.delete(webhook_id, expected_version=4, by="ada", orgs=None)
    await webhooks.add("prod", **signing(new_pem(), kid="of the next webhook"))  # seen in one step
    assert await kids(keys) == ["of the next webhook"]


async def test_keys_are_read_once_until_something_changes(webhooks: Webhooks, monkeypatch: pytest.MonkeyPatch) -> None:
    looked_at: list[str] = []
    whole = PublishedKeys._look

    def look(self: PublishedKeys, found: Any) -> None:
        looked_at.append(",".join(webhook.tenant.sandbox for webhook in found))
        whole(self, found)

    monkeypatch.setattr(PublishedKeys, "_look", look)
    keys = PublishedKeys(webhooks.store)
    await webhooks.add("a", **signing(new_pem(), kid="a"))
    await asyncio.gather(*(keys.document(tenant("a")) for _ in range(10)))
    await webhooks.add("b", **signing(new_pem(), kid="b"))
    await asyncio.gather(*(keys.document(tenant("a")) for _ in range(10)))
    assert looked_at == ["a", "a,b"]


async def test_before_the_first_answer_of_the_database_nothing_is_claimed(webhooks: Webhooks) -> None:
    """An empty document would have receivers throw their keys away."""
    with pytest.raises(StoreUnavailable):
        await PublishedKeys(webhooks.store).document(tenant("prod"))


async def test_the_next_key_is_published_at_once_and_the_one_before_for_a_day_after_its_start(
    webhooks: Webhooks,
) -> None:
    wall = Clock()
    wall.now = NOW
    following: JsonValue = {
        "algorithm": "ES256", "key": {"value": new_pem().decode()}, "kid": "2", "starts": int(NOW) + 3600,
    }  # fmt: skip
    await webhooks.add("prod", **signing(new_pem(), kid="1", next=following))
    keys = PublishedKeys(webhooks.store, Clock(), wall)
    assert await kids(keys) == ["1", "2"]
    wall.now = NOW + 3600 + 86_399
    assert await kids(keys) == ["1", "2"]
    wall.now = NOW + 3600 + 86_400
    assert await kids(keys) == ["2"]


async def test_a_withdrawn_next_key_stays_as_long_as_any_key_that_was_published(webhooks: Webhooks) -> None:
    clock, first = Clock(), new_pem()
    following: JsonValue = {"algorithm": "ES256", "key": {"value": new_pem().decode()}, "kid": "2", "starts": 2**32}
    made = await webhooks.add("prod", **signing(first, kid="1", next=following))
    keys = PublishedKeys(webhooks.store, clock)
    assert await kids(keys) == ["1", "2"]
    await webhooks.edit(made, 1, "prod", **signing(first, kid="1"))
    assert await kids(keys) == ["1", "2"]
    clock.now += KEPT_S
    assert await kids(keys) == ["1"]


async def test_a_next_key_that_never_starts_leaves_the_keys_of_every_tenant_published(webhooks: Webhooks) -> None:
    """The end of the year 9999 is what people write for never; a day later there is no date."""
    never: Any = {"algorithm": "ES256", "key": {"value": new_pem().decode()}, "kid": "k2"}
    await webhooks.add("before", **signing(new_pem(), kid="k1"))
    await webhooks.add("bright", **signing(new_pem(), kid="k1", next=never | {"starts": "9999-12-31T23:59:59Z"}))
    await webhooks.add("prod", **signing(new_pem(), kid="k1"))
    keys = PublishedKeys(webhooks.store)
    assert [await kids(keys, sandbox) for sandbox in ("before", "bright", "prod")] == [["k1"], ["k1", "k2"], ["k1"]]
