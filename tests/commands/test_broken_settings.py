"""What the settings name is checked by every command that uses it, and reported in one line."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trustme
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from tests.commands.running import a_webhook, called, write_settings, write_webhooks

COMMANDS: dict[str, tuple[str, ...]] = {
    "check": (),
    "explain": ("event.json",),
    "webhooks list": (),
    "webhooks import": ("webhooks.d",),
    "history": (),
    "run": (),
}


@pytest.mark.parametrize("command", COMMANDS)
async def test_a_rule_for_endpoints_with_a_mistake_is_one_line_of_every_command(tmp_path: Path, command: str) -> None:
    history = {"url": {"env": "HISTORY"}}
    config = write_settings(tmp_path, egress={"allow": ["*.example.com"]}, history=history)
    write_webhooks(tmp_path, a_webhook())
    (tmp_path / "event.json").write_text("{}")
    arguments = [str(tmp_path / one) for one in COMMANDS[command]]
    env = {"HISTORY": f"sqlite:///{tmp_path / 'history.db'}"}
    ran = await called(*command.split(), *arguments, "-c", config, env=env)
    assert (ran.status, ran.out) == (78, ""), ran
    (line,) = ran.err.splitlines()
    assert line.startswith("egress.allow[0]: "), line


def _key() -> bytes:
    return generate_private_key(SECP256R1()).private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def _authority() -> bytes:
    return trustme.CA().cert_pem.bytes()


BUNDLES: dict[str, Callable[[], bytes]] = {
    "empty": lambda: b"",
    "text": lambda: b"no certificate",
    "bytes": lambda: bytes(range(256)),
    "a private key": _key,
    "half a certificate": lambda: _authority()[:300],
    "a certificate of garbage": lambda: b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
}
SETTINGS: dict[str, Callable[[str], dict[str, Any]]] = {
    "egress.ca_bundle": lambda ca: {"egress": {"ca_bundle": ca}},
    "tracing.ca": lambda ca: {"tracing": {"ca": ca}},
    "console.oidc.ca": lambda ca: {"console": {"oidc": {"issuer": "https://login.example", "audience": "a", "ca": ca}}},
    "notifications.smtp.ca": lambda ca: {
        "notifications": {"smtp": {"host": "mail.example", "sender": "a@example.com", "ca": ca}}
    },
}


@pytest.mark.parametrize("key", SETTINGS)
async def test_a_bundle_that_can_not_be_used_is_a_mistake(tmp_path: Path, key: str) -> None:
    ca = tmp_path / "ca.pem"
    write_webhooks(tmp_path, a_webhook())
    config = write_settings(tmp_path, **SETTINGS[key](str(ca)))
    for name, bundle in BUNDLES.items():
        ca.write_bytes(bundle())
        ran = await called("check", "-c", config)
        assert (ran.status, len(ran.err.splitlines())) == (78, 1), (name, ran)
        assert ran.err.startswith(f"{key}: "), (name, ran)
        assert "not a bundle of certificates in PEM" in ran.err, (name, ran)
    ca.write_bytes("# Zertifikat für Köln\n".encode() + _authority() + b"# \xff\n" + _authority())
    ran = await called("check", "-c", config)
    assert ran.status == 0, ran


async def test_the_url_of_the_history_store_is_checked(tmp_path: Path) -> None:
    write_webhooks(tmp_path, a_webhook())
    config = write_settings(tmp_path, history={"url": {"env": "HISTORY"}})
    ran = await called("check", "-c", config, env={"HISTORY": "mysql://u:canary@h/d"})
    assert (ran.status, ran.err.startswith("history.url: ")) == (78, True), ran
    assert "canary" not in ran.err
