"""Code that verifies requests, filled with a webhook's values: it runs, and contains no secret."""

import shutil
import subprocess
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jwt
import pytest
from pydantic import JsonValue
from standardwebhooks.webhooks import Webhook as StandardWebhook
from standardwebhooks.webhooks import WebhookVerificationError

from dispatcher.config.settings import Settings
from dispatcher.console.formatting import as_curl
from dispatcher.console.pages.verification import LANGUAGES, snippets_for
from dispatcher.contract.tenant import TenantKey
from dispatcher.stores.sql.documents import extract_secrets
from dispatcher.stores.sql.records import StoredWebhook
from tests.auth.keys import WHSEC, pem, private_key
from tests.stores_sql.examples import plain

NOW = datetime(2026, 1, 1, tzinfo=UTC)
SHARED = "k" * 32
NAME = 'a "quoted" \\ name'
SIGNING: JsonValue = {"secrets": [{"value": WHSEC}]}


def signed_by(algorithm: str, key: str, **more: JsonValue) -> dict[str, JsonValue]:
    sign: dict[str, JsonValue] = {"algorithm": algorithm, "key": {"value": key}, "kid": "k1", "issuer": NAME}
    return {"type": "jwt", "header": "x-token", "scheme": "", "sign": sign} | more


ES: dict[str, JsonValue] = {"type": "jwt", "sign": {"algorithm": "ES256", "key": {"value": pem("P-256").decode()}}}
HS = signed_by("HS256", SHARED)
CASES: list[dict[str, Any]] = [
    {"auth": ES, "signing": SIGNING},
    {"auth": HS, "signing": SIGNING},
    {"auth": ES},
    {"auth": HS},
    {"signing": SIGNING},
]


def snippets(**fields: JsonValue) -> dict[str, str]:
    config = plain(LUMA.org, LUMA.sandbox, url="https://hooks.luma.example:8443/secret-path", **fields)
    document, _ = extract_secrets(config)
    stored = StoredWebhook(
        "id", LUMA, config.name, config.url, config.channels, True, False, document, 1, NOW, "ada", NOW, "ada"
    )
    settings = Settings.model_validate(
        {
            "apiVersion": "dispatcher/v1",
            "kafka": {"bootstrap_servers": "k:1"},
            "webhooks": {"path": "/"},
            "console": {"public_url": "https://console.example"},
        }
    )
    return {one.language: one.code for one in snippets_for(stored, settings)}


LUMA = TenantKey("luma@AdobeOrg", "prod")


@pytest.mark.parametrize("fields", CASES)
def test_the_code_has_the_webhooks_values_and_no_secret(fields: dict[str, Any]) -> None:
    made = snippets(**fields)
    assert list(made) == list(LANGUAGES)
    for code in made.values():
        assert WHSEC not in code
        assert SHARED not in code
        assert "PRIVATE KEY" not in code
        assert "secret-path" not in code
        assert ("https://console.example/.well-known/jwks/luma@AdobeOrg/prod.json" in code) == (
            fields.get("auth") is ES
        )
        assert ("https://hooks.luma.example:8443" in code) == ("auth" in fields)
        assert ("WEBHOOK_SECRET" in code) == ("signing" in fields)


def test_a_webhook_without_signature_and_token_has_no_code() -> None:
    assert snippets() == {}


@pytest.mark.parametrize("fields", CASES)
def test_the_python_code_accepts_what_is_genuine_and_nothing_else(
    fields: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WEBHOOK_SECRET", WHSEC)
    monkeypatch.setenv("TOKEN_KEY", SHARED)
    public: Any = private_key("P-256").public_key()
    key_of_token = lambda *_: jwt.PyJWK({**jwt.algorithms.ECAlgorithm.to_jwk(public, as_dict=True), "kid": "k1"})  # noqa: E731
    monkeypatch.setattr(jwt.PyJWKClient, "get_signing_key_from_jwt", key_of_token)
    module: dict[str, Any] = {}
    exec(compile(snippets(**fields)["Python"], "receiver.py", "exec"), module)
    body, auth = b'{"a": 1}', fields.get("auth")
    headers = {"webhook-id": "msg_1", "webhook-timestamp": str(int(time.time()))}
    if "signing" in fields:
        headers["webhook-signature"] = StandardWebhook(WHSEC).sign("msg_1", datetime.now(UTC), body.decode())
    claims = {"iss": "feedback-dispatcher", "aud": "https://hooks.luma.example:8443", "exp": time.time() + 60}

    def with_token(**changed: object) -> dict[str, str]:
        if auth is ES:
            token = jwt.encode(claims | changed, private_key("P-256"), "ES256", headers={"kid": "k1"})  # type: ignore[arg-type]
            return headers | {"authorization": f"Bearer {token}"}
        if auth is HS:
            return headers | {"x-token": jwt.encode(claims | {"iss": NAME} | changed, SHARED, "HS256")}
        return headers

    module["verify"](with_token(), body)
    if auth is not None:
        for wrong in ({"iss": "another"}, {"aud": "https://another.example"}, {"exp": time.time() - 60}):
            with pytest.raises(jwt.InvalidTokenError):
                module["verify"](with_token(**wrong), body)
    if "signing" in fields:
        with pytest.raises(WebhookVerificationError):
            module["verify"](with_token(), body + b" ")


@pytest.mark.parametrize("fields", CASES)
def test_the_code_for_node_and_go_is_well_formed(fields: dict[str, Any], tmp_path: Path) -> None:
    made = snippets(**fields)
    for language, name, command in (("Node", "a.mjs", ["node", "--check"]), ("Go", "a.go", ["gofmt", "-e", "-l"])):
        program = shutil.which(command[0]) or shutil.which(command[0], path="/usr/local/go/bin")
        if program is None:
            pytest.skip(f"needs {command[0]}")
        (tmp_path / name).write_text(made[language])
        done = subprocess.run([program, *command[1:], str(tmp_path / name)], capture_output=True, text=True, timeout=60)
        assert (done.returncode, done.stderr) == (0, ""), made[language]


def test_a_curl_command_is_safe_in_a_shell(tmp_path: Path) -> None:
    body = """{"a": "it's $(touch hacked) `id` "}"""
    text = as_curl("https://a.example/?b='c'&d", [("host", "a"), ("x-a", "1'2"), ("content-length", "3")], body)
    script = f"curl() {{ printf '%s\\n' \"$@\"; }}\n{text}\n"
    shown = subprocess.run(["/bin/sh", "-c", script], capture_output=True, text=True, cwd=tmp_path, timeout=60).stdout
    assert shown.splitlines() == [
        "-X", "POST", "https://a.example/?b='c'&d", "-H", "x-a: 1'2", "--data-raw", body,
    ]  # fmt: skip
    assert list(tmp_path.iterdir()) == []
