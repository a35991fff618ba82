"""A stored configuration as rows: what viewers don't see, and where the receiver finds our public key."""

from datetime import UTC, datetime
from typing import Any

import pytest
from pydantic import JsonValue

from dispatcher.config.secrets import Secret
from dispatcher.config.settings import Settings
from dispatcher.console.pages.configuration import rows_of
from dispatcher.contract.tenant import TenantKey
from dispatcher.stores.sql.documents import extract_secrets
from dispatcher.stores.sql.header_values import LOST
from dispatcher.stores.sql.records import StoredWebhook
from tests.auth.keys import pem
from tests.stores_sql.examples import CANARY, plain, secretive

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def shown(
    config: Any, *, to_admin: bool, public_url: str | None = None, document: dict[str, JsonValue] | None = None
) -> dict[str, str]:
    document = document or extract_secrets(config)[0]
    stored = StoredWebhook(
        "id", TenantKey(config.org, config.sandbox), config.name, config.url, config.channels, True, False, document, 1,
        NOW, "ada", NOW, "ada",
    )  # fmt: skip
    settings = Settings.model_validate(
        {
            "apiVersion": "dispatcher/v1",
            "kafka": {"bootstrap_servers": "k:1"},
            "webhooks": {"path": "/"},
            "console": {"public_url": public_url},
        }
    )
    return {row.label: row.text for part in rows_of(stored, settings, shows_paths=to_admin) for row in part.rows}


def test_viewers_see_no_path_of_a_url() -> None:
    config = secretive(url=f"https://hooks.luma.example/{CANARY}?k={CANARY}")
    rows = shown(config, to_admin=False)
    assert (rows["Webhook URL"], rows["Token endpoint"]) == (
        "https://hooks.luma.example/•••",
        "https://login.luma.example/•••",
    )
    assert CANARY not in str(rows)
    assert shown(config, to_admin=True)["Webhook URL"] == config.url


def test_a_sealed_header_value_is_shown_by_its_fingerprint() -> None:
    config = secretive(headers={"X-Client": {"value": CANARY}, "X-Api-Key": {"value": CANARY}, "X-Other": "text"})
    fingerprint = Secret(CANARY.encode()).fingerprint()
    rows = shown(config, to_admin=True)
    assert (rows["X-Client"], rows["X-Api-Key"], rows["X-Other"]) == (fingerprint, fingerprint, "text")
    assert CANARY not in str(shown(config, to_admin=False))


def test_a_header_value_that_no_key_decrypts_is_reported() -> None:
    document, _ = extract_secrets(plain(headers={"X-Client": "x"}))
    document["headers"] = {"X-Client": {"fingerprint": LOST}}
    assert shown(plain(), to_admin=True, document=document)["X-Client"] == "Can't be decrypted any more: enter it again"


def key(algorithm: str, text: str) -> JsonValue:
    return {"algorithm": algorithm, "key": {"value": text}}


@pytest.mark.parametrize(
    ("auth", "is_shown"),
    [
        ({"type": "none"}, False),
        ({"type": "jwt", "sign": key("HS256", "k" * 32)}, False),
        ({"type": "jwt", "sign": key("ES256", pem("P-256").decode())}, True),
        ({"type": "jwt", "fetch": {"grant": "jwt-bearer", "token_url": "https://a.example/",
                                   "assertion": key("EdDSA", pem("Ed25519").decode())}}, True),
    ],
)  # fmt: skip
def test_the_place_of_the_public_key_is_shown(auth: JsonValue, is_shown: bool) -> None:
    rows = shown(plain("a b@AdobeOrg", "x/y", auth=auth), to_admin=True, public_url="https://console.example")
    expected = "https://console.example/.well-known/jwks/a%20b@AdobeOrg/x%2Fy.json" if is_shown else None
    assert rows.get("Public key, as JWKS") == expected
