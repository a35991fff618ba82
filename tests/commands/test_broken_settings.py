"""What the settings name is checked by every command that uses it, and reported in one line."""

import asyncio
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trustme
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from tests.commands.running import a_webhook, called, dispatcher, write_settings, write_webhooks

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
    assert line.startswith(f"{config}:"), line
    assert ": egress.allow[0]: " in line


@pytest.mark.parametrize(
    ("settings", "key", "cure"),
    [
        ({"egress": {"allow": ["10.0.0.1/8"]}}, "egress.allow[0]", "write 10.0.0.0/8"),
        ({"egress": {"deny": ["https://foo.example/x"]}}, "egress.deny[0]", "write the host alone"),
        ({"egress": {"nameservers": ["dns.example"]}}, "egress.nameservers[0]", "ip:port"),
        ({"egress": {"proxy": {"url": "http://u:p@proxy:3128"}}}, "egress.proxy.url", "username and password"),
        ({"webhooks": {"store": "sql", "url": {"env": "URL"}}}, "webhooks.url", "write sqlite+aiosqlite:///PATH"),
    ],
)
async def test_a_mistake_found_after_loading_has_its_line_or_variable(
    tmp_path: Path, settings: dict[str, Any], key: str, cure: str
) -> None:
    config = write_settings(tmp_path, **settings)
    ran = await called("check", "-c", config, env={"URL": "nonsense"})
    assert (ran.status, len(ran.err.splitlines())) == (78, 1), ran
    line = 1 + next(number for number, text in enumerate(config.read_text().splitlines()) if key.split(".")[0] in text)
    assert ran.err.startswith((f"{config}:{line}: {key}: ", f"{config}:{line + 1}: {key}: ")), ran.err
    assert cure in ran.err
    variable = "DISPATCHER_EGRESS__ALLOW"
    ran = await called("check", "-c", write_settings(tmp_path), env={variable: "[x, 10.0.0.1/8]"})
    assert f"environment variable {variable}: egress.allow[1]: " in ran.err


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
        assert f"{config}:" in ran.err, (name, ran)
        assert f": {key}: " in ran.err, (name, ran)
        assert "not a bundle of certificates in PEM" in ran.err, (name, ran)
    ca.write_bytes("# Zertifikat für Köln\n".encode() + _authority() + b"# \xff\n" + _authority())
    ran = await called("check", "-c", config)
    assert ran.status == 0, ran


async def test_a_console_whose_bundle_can_not_be_used_names_it(tmp_path: Path) -> None:
    (tmp_path / "url").write_text(f"sqlite+aiosqlite:///{tmp_path}/webhooks.db")
    (tmp_path / "ca.pem").write_text("no certificate")
    oidc = SETTINGS["console.oidc.ca"](str(tmp_path / "ca.pem"))["console"]
    webhooks = {"store": "sql", "url": {"file": "url"}}
    config = write_settings(tmp_path, webhooks=webhooks, console=oidc | {"port": 0})
    ran = await dispatcher("console", "-c", config)
    assert (ran.status, len(ran.err.splitlines())) == (78, 1), ran
    assert "console.oidc.ca: " in ran.err, ran


async def test_the_url_of_the_history_store_is_checked(tmp_path: Path) -> None:
    write_webhooks(tmp_path, a_webhook())
    config = write_settings(tmp_path, history={"url": {"env": "HISTORY"}})
    ran = await called("check", "-c", config, env={"HISTORY": "mysql://u:canary@h/d"})
    assert (ran.status, ran.err.startswith(f"{config}:1: history.url: ")) == (78, True), ran
    assert "canary" not in ran.err


TEXTS: dict[str, Callable[[dict[str, str]], dict[str, Any]]] = {
    "kafka.security.password": lambda secret: {
        "kafka": {
            "security": {
                "protocol": "SASL_PLAINTEXT",
                "mechanism": "PLAIN",
                "username": "u",
                "password": secret,
            }
        }
    },
    "ops.token": lambda secret: {"ops": {"token": secret}},
    "history.url": lambda secret: {"history": {"url": secret}},
    "notifications.smtp.password": lambda secret: {
        "notifications": {
            "smtp": {"host": "mail.example", "sender": "a@example.com", "username": "u", "password": secret}
        }
    },
    "console.oidc.client_secret": lambda secret: {
        "console": {
            "oidc": {
                "issuer": "https://login.example",
                "audience": "a",
                "client_id": "c",
                "client_secret": secret,
            }
        }
    },
}


@pytest.mark.parametrize("key", TEXTS)
async def test_a_secret_that_is_not_a_text_is_a_mistake(tmp_path: Path, key: str) -> None:
    secret = tmp_path / "secret"
    write_webhooks(tmp_path, a_webhook())
    config = write_settings(tmp_path, **TEXTS[key]({"file": str(secret)}))
    for content in (bytes(range(128, 176)), b"\xef\xbb\xbf" + b"canary" * 8, b"canary\0" * 8, b"canary\nx" * 8):
        secret.write_bytes(content)
        ran = await called("check", "-c", config)
        assert ran.status == 78, ran
        assert f" {key}: " in ran.err, ran
        assert "the secret " in ran.err, ran
        assert "canary" not in ran.err
        assert "\\x" not in ran.err


@pytest.mark.parametrize("hashed", ["zz", "", "0" * 31, "0" * 33, "g" * 32])
async def test_a_hash_to_erase_has_32_digits(tmp_path: Path, hashed: str) -> None:
    ran = await called("history", "erase", "--hash", hashed, "-c", write_settings(tmp_path))
    assert (ran.status, "32 hexadecimal digits" in ran.err) == (2, True), ran


@pytest.mark.parametrize("recipient", ["", "  "])
async def test_a_recipient_to_erase_is_not_empty(tmp_path: Path, recipient: str) -> None:
    ran = await called("history", "erase", "--recipient", recipient, "-c", write_settings(tmp_path))
    assert ran.status == 2, ran


@pytest.mark.parametrize(
    ("option", "value", "status"),
    [
        ("--secret", "whsec_%%%", 1),
        ("--secret", "whsec_", 1),
        ("--secret", "whpk_AAAA", 1),
        ("--secret", "whpk_%", 1),
        ("--host", "a b", 1),
        ("--host", "ö" * 80, 2),
        ("--host", "", 2),
    ],
)
async def test_the_trial_receiver_checks_its_options_at_start(
    tmp_path: Path, option: str, value: str, status: int
) -> None:
    if option == "--secret":
        (tmp_path / "secret").write_text(value)
        value = str(tmp_path / "secret")
    ran = await called("receive", option, value, "--port", "0", "--ca", tmp_path / "ca.pem")
    assert ran.status == status, ran
    assert ran.err
    assert "Traceback" not in ran.err


async def test_a_place_beside_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "event.json").write_text("{}")
    for more in (("--partition", "0"), ("--offset", "0"), ("--partition", "0", "--offset", "0")):
        ran = await called("explain", tmp_path / "event.json", *more, "-c", write_settings(tmp_path))
        assert ran.status == 2, ran


async def test_an_argument_that_is_not_utf_8_is_a_usage_error(tmp_path: Path) -> None:
    odd = os.fsdecode(b"a\xff")
    config = write_settings(tmp_path)
    for arguments in (("sample", "--org", odd), ("trace", odd), ("history", "erase", "--recipient", odd)):
        ran = await dispatcher(*arguments, *(() if arguments[0] == "sample" else ("-c", config)))
        assert "Traceback" not in ran.err, ran
        assert ran.status != 0, ran


@pytest.mark.parametrize("setting", ["webhooks.path", "egress.ca_bundle"])
async def test_an_empty_path_is_a_mistake(tmp_path: Path, setting: str) -> None:
    variable = "DISPATCHER_" + setting.upper().replace(".", "__")
    write_webhooks(tmp_path, a_webhook())
    ran = await called("check", "-c", write_settings(tmp_path), env={variable: ""})
    assert (ran.status, f"{setting}: " in ran.err) == (78, True), ran


async def test_kafkas_times_have_upper_bounds(tmp_path: Path) -> None:
    write_webhooks(tmp_path, a_webhook())
    for name, value in (("session_timeout", "9999h"), ("commit_interval", "999h"), ("fetch_max_bytes", "9999GiB")):
        ran = await called("check", "-c", write_settings(tmp_path, kafka={name: value}))
        assert (ran.status, f"kafka.{name}: " in ran.err) == (78, True), ran


async def test_output_that_can_not_be_written_is_one_line() -> None:
    for command in (("sample", "--org", "x"), ("schema", "event")):
        with Path("/dev/full").open("wb") as full:  # noqa: ASYNC230  (a device that is never slow)
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "dispatcher", *command, stdout=full, stderr=asyncio.subprocess.PIPE
            )
            _, err = await process.communicate()
        assert (process.returncode, err) == (1, b"dispatcher: the output can't be written: No space left on device\n")
