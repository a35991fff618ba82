"""What `check` warns of although it can be used: typos that have a meaning, and directories without webhooks."""

import os
from pathlib import Path
from typing import Any

import pytest

from dispatcher.checks import settings_warnings, store_warnings, webhook_warnings
from dispatcher.config.secrets import SecretSource
from dispatcher.config.settings import Settings
from dispatcher.config.webhooks import WebhookConfig
from tests.commands.running import a_webhook, called, write_settings, write_webhooks
from tests.unit.examples import webhook


def settings(**groups: Any) -> Settings:
    kafka = {"bootstrap_servers": "kafka:9092", "topic": "events"}
    given = {"apiVersion": "dispatcher/v1", "kafka": kafka, "webhooks": {"path": "webhooks.d"}}
    return Settings.model_validate(given | groups)


@pytest.mark.parametrize(
    ("given", "warnings"),
    [
        ({"events": ["sent", "delivered", "bounce", "error", "exclude", "delay", "duplicate", "denylist"]}, []),
        ({"events": ["read", "unknown"]}, []),
        ({"campaigns": "all"}, []),
        ({"org": "9E1005A551ED61CA0A490D45@AdobeOrg"}, []),
        ({"org": "luma@AdobeOrg"}, []),
        ({"org": "luma"}, []),
        ({"org": "luma@example"}, []),
        (
            {"org": "9E1005A551ED61CA0A490D4@AdobeOrg"},
            [
                "org: an id of Adobe's has 24 digits, 0-9 and A-F, before the @; '9E1005A551ED61CA0A490D4' has 23 characters"
            ],
        ),
        (
            {"org": "9E1005A551ED61CAOA490D45@AdobeOrg"},
            ["org: an id of Adobe's has 24 digits, 0-9 and A-F, before the @; '9E1005A551ED61CAOA490D45' has O"],
        ),
        (
            {"org": "9e1005a551ed61ca0a490d45@AdobeOrg"},
            ["org: an id of Adobe's has 24 digits, 0-9 and A-F, before the @; '9e1005a551ed61ca0a490d45' has e"],
        ),
        (
            {"org": "9E1005A551ED61CA0A490D45@AdobOrg"},
            ["org: an id of Adobe's ends with @AdobeOrg; '9E1005A551ED61CA0A490D45@AdobOrg' doesn't"],
        ),
        ({"org": "luma@adobeorg"}, ["org: an id of Adobe's ends with @AdobeOrg; 'luma@adobeorg' doesn't"]),
        (
            {"org": "9E1005A551ED61CA0A490D45"},
            ["org: an id of Adobe's ends with @AdobeOrg; '9E1005A551ED61CA0A490D45' doesn't"],
        ),
        ({"campaigns": ["a", "overall"]}, []),
        (
            {"events": ["sent", "bounced"]},
            ["events: 'bounced' isn't a status of message feedback; did you mean 'bounce'?"],
        ),
        ({"events": ["failed"]}, ["events: 'failed' isn't a status of message feedback; did you mean 'error'?"]),
        (
            {"events": ["Delivered"]},
            ["events: 'Delivered' isn't a status of message feedback; did you mean 'delivered'?"],
        ),
        (
            {"events": ["zzz"]},
            [
                "events: 'zzz' isn't a status of message feedback; known: bounce, delay, delivered, denylist, duplicate, "
                "error, exclude, read, sent, unknown"
            ],
        ),
        ({"campaigns": []}, ["campaigns: is empty, so every event is skipped; write campaigns: all to send them all"]),
        (
            {"campaigns": ["all"]},
            ["campaigns: 'all' in a list is the id of one campaign; write campaigns: all to send all events"],
        ),
        (
            {"campaigns": ["a", "All"]},
            ["campaigns: 'All' in a list is the id of one campaign; write campaigns: all to send all events"],
        ),
    ],
)
def test_typos_of_a_webhook_are_warned_of(given: dict[str, Any], warnings: list[str]) -> None:
    found = webhook_warnings(settings())(webhook(**given).config)
    assert [f"{key}: {text}" for key, text in found] == warnings


@pytest.mark.parametrize(
    ("given", "warnings"),
    [
        ({}, []),
        ({"retry": {"profile": "standard-webhooks"}}, []),
        ({"retry": {"max_age": "15m"}}, []),
        ({"delivery": {"max_body": "20kB"}}, []),
        (
            {"retry": {"max_age": 24}},
            ["retry.max_age: 24s is shorter than the longest tier, 15m; a number without a unit is in seconds"],
        ),
        (
            {"delivery": {"max_body": 256}},
            [
                "delivery.max_body: ordinary events are larger than 256 bytes, and would be dead-lettered as too_large; "
                "a number without a unit is in bytes"
            ],
        ),
    ],
)
def test_typos_of_settings_are_warned_of(given: dict[str, Any], warnings: list[str]) -> None:
    assert [f"{key}: {text}" for key, text in settings_warnings(settings(**given))] == warnings


def test_a_directory_without_webhooks_is_warned_of_and_files_below_it_are_named(tmp_path: Path) -> None:
    group = settings(webhooks={"path": str(tmp_path)}).webhooks
    assert list(store_warnings(group, [])) == [f"{tmp_path}: no webhooks: every event is skipped"]
    assert list(store_warnings(group, [webhook()])) == []
    for name in ("luma/a.yaml", "luma/deep/b.YML", "..2024/c.yaml", ".git/d.yaml", "luma/e.json", "luma/f.yaml"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    (warning,) = store_warnings(group, [webhook()])
    assert warning == (
        f"{tmp_path}: files in subdirectories aren't read: {tmp_path}/luma/a.yaml, {tmp_path}/luma/deep/b.YML, "
        f"{tmp_path}/luma/f.yaml"
    )
    for number in range(20):
        (tmp_path / "luma" / f"g{number:02}.yaml").write_text("")
    (warning,) = store_warnings(group, [webhook()])
    assert warning.endswith(f"{tmp_path}/luma/g03.yaml, …")


async def test_check_prints_every_warning_and_is_satisfied(tmp_path: Path) -> None:
    config = write_settings(tmp_path, retry={"max_age": 24}, delivery={"max_body": 256})
    ran = await called("check", "-c", config)
    assert ran.status == 0, ran.err
    assert f"warning: {tmp_path}/webhooks.d: no webhooks: every event is skipped" in ran.out
    assert f"{config}: warning: retry.max_age: 24s is shorter" in ran.out
    assert f"{config}: warning: delivery.max_body: ordinary" in ran.out
    path = write_webhooks(tmp_path, a_webhook(events=["bounced"], campaigns=["all"]))
    ran = await called("check", "-c", config)
    assert ran.status == 0, ran.err
    lines = [line.partition(": warning: ")[2] for line in ran.out.splitlines() if line.startswith(str(path))]
    assert [line[:9] for line in lines if line] == ["events: '", "campaigns"]


@pytest.mark.parametrize("host", ["a..b", "x" * 70])
async def test_receive_refuses_a_host_that_no_name_can_be(tmp_path: Path, host: str) -> None:
    ran = await called("receive", "--host", host, "--port", "0", "--ca", tmp_path / "ca.pem")
    assert ran.status == 2
    assert "must be an IP address or a host name" in ran.err
    assert "Traceback" not in ran.err


def signed(tmp_path: Path, key: bytes, form: str) -> WebhookConfig:
    (tmp_path / "key").write_bytes(key)
    environ = {"WEBHOOK_KEY": os.fsdecode(key)}
    reference = {"env": "WEBHOOK_KEY"} if form == "env" else {"file": "key"}
    given = a_webhook(auth={"type": "jwt", "sign": {"algorithm": "HS256", "key": reference}})
    return WebhookConfig.model_validate(given, context=SecretSource(tmp_path, environ=environ).as_context())


@pytest.mark.parametrize("form", ["env", "file"])
def test_a_final_newline_is_not_part_of_a_key(tmp_path: Path, form: str) -> None:
    for end in (b"", b"\n", b"\r\n"):
        token = signed(tmp_path, b"k" * 32 + end, form).signed_token
        assert token is not None
        assert token.key.reveal() == b"k" * 32


@pytest.mark.parametrize("form", ["env", "file"])
def test_a_byte_order_mark_in_a_key_is_warned_of(tmp_path: Path, form: str) -> None:
    warnings_of = webhook_warnings(settings())
    assert warnings_of(signed(tmp_path, b"k" * 32, form)) == []
    ((key, text),) = warnings_of(signed(tmp_path, b"\xef\xbb\xbf" + b"k" * 32, form))
    assert key == "auth.sign.key"
    assert text == "begins with a byte order mark, which is signed with, too; save the key without it"


async def test_kafka_credentials_that_the_protocol_does_not_use_are_warned_of(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("x")
    security = {"protocol": "SASL_PLAINTEXT", "mechanism": "PLAIN", "username": "u", "password": {"env": "PASSWORD"}}
    config = write_settings(tmp_path, kafka={"security": security | {"ca": "ca.pem"}})
    ran = await called("check", "-c", config, env={"PASSWORD": "p"})
    assert ran.status == 0, ran.err
    assert "warning: kafka.security: ca not used: protocol SASL_PLAINTEXT with PLAIN doesn't need it" in ran.out
