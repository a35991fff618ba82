"""One tenant's webhook: its limits, and headers that a tenant can't have."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from dispatcher.config.endpoint_urls import split_url
from dispatcher.config.secrets import Secret, SecretSource
from dispatcher.config.webhook_headers import header_name_problem, header_value_problem
from dispatcher.config.webhook_revision import Webhook
from dispatcher.config.webhooks import WebhookConfig
from tests.unit.examples import TENANT, webhook

JWT = {"type": "jwt", "sign": {"algorithm": "HS256", "key": Secret(b"k" * 32)}}


def refusal(**values: object) -> str:
    with pytest.raises(ValidationError) as refused:
        webhook(**values)
    return str(refused.value)


def test_optional_fields_of_a_webhook_have_defaults() -> None:
    config = webhook().config

    assert config.channels == ("email", "sms")
    assert config.events == ("sent", "delivered", "bounce", "error")
    assert (config.campaigns, config.payload, config.enabled) == ("all", 1, True)
    assert (config.tenant, config.origin) == (TENANT, "https://hooks.luma.example")


@pytest.mark.parametrize(
    ("url", "origin"),
    [
        ("https://hooks.luma.example/feedback?x=1", "https://hooks.luma.example"),
        ("https://HOOKS.luma.example", "https://hooks.luma.example"),
        ("https://hooks.luma.example:443/f", "https://hooks.luma.example"),
        ("https://hooks.luma.example:0443/f", "https://hooks.luma.example"),
        ("https://hooks.luma.example:8443/f", "https://hooks.luma.example:8443"),
        ("https://hooks.luma.example:80/f", "https://hooks.luma.example:80"),
        ("http://hooks.luma.example:80/f", "http://hooks.luma.example"),
        ("http://hooks.luma.example:443/f", "http://hooks.luma.example:443"),
        ("https://[2A00:1450::200E]:443/f", "https://[2a00:1450::200e]"),
        ("https://[2a00:1450::200e]:8443/f", "https://[2a00:1450::200e]:8443"),
    ],
)
def test_an_origin_has_a_port_only_if_it_is_not_the_default_of_the_scheme(url: str, origin: str) -> None:
    """RFC 6454, section 6.2; a receiver compares the token's audience with it."""
    assert webhook(url=url).config.origin == origin


@pytest.mark.parametrize(
    "name",
    ["Host", "connection", "Content-Type", "content-length", "Transfer-Encoding", "TE", "Trailer", "Upgrade",
     "Keep-Alive", "Proxy-Authorization", "proxy-x", "Expect", "User-Agent", "Webhook-Id", "webhook-x", "Cookie"],
)  # fmt: skip
def test_a_reserved_header_cannot_be_replaced(name: str) -> None:
    assert "is set by the dispatcher" in refusal(headers={name: "x"})


def test_authorization_is_the_tenants_own_without_jwt_only() -> None:
    assert webhook(headers={"Authorization": "Basic x"}).config.headers == {"Authorization": "Basic x"}
    assert "is set by the dispatcher" in refusal(headers={"Authorization": "x"}, auth=JWT)
    assert "is set by the dispatcher" in refusal(headers={"X-Token": "x"}, auth={**JWT, "header": "x-token"})
    assert "is set by the dispatcher" in refusal(auth={**JWT, "header": "Content-Type"})


@pytest.mark.parametrize("name", ["", " ", "a b", "a:b", "a\r\nb", "ä", "x" * 65, "a\x00", "(a)", "a\n"])
def test_an_invalid_header_name_is_refused(name: str) -> None:
    assert header_name_problem(name, frozenset()) is not None


@pytest.mark.parametrize("value", [" a", "a ", "a\r\nb: c", "a\nb", "ä", "\x00", "\x7f", "a\t", "x" * 4097, "a\n"])
def test_an_invalid_header_value_is_refused(value: str) -> None:
    assert header_value_problem(value) is not None


def test_the_limits_themselves_are_allowed() -> None:
    headers = {f"x-{number}".ljust(64, "a"): "x" * 4096 for number in range(20)}
    url = "https://h.example/".ljust(2048, "a")

    assert webhook(headers=headers, url=url).config.headers == headers


def test_limits_on_how_many_and_how_long() -> None:
    assert "at most 20" in refusal(headers={f"x-{number}": "" for number in range(21)})
    assert "longer than 2048" in refusal(url="https://h.example/".ljust(2049, "a"))
    assert "given twice" in refusal(headers={"X-A": "1", "x-a": "2"})


def test_a_header_value_is_text_and_nothing_is_made_into_text() -> None:
    assert "valid string" in refusal(headers={"a": 2})
    assert webhook(headers={"a": "2.10", "b": "007"}).config.header_texts() == {"a": "2.10", "b": "007"}


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("ftp://h.example/", "must begin with https://"),
        ("h.example", "must begin with https://"),
        ("https://u:p@h.example/", "user name or password"),
        ("https://u@h.example/", "user name or password"),
        ("https://h.example/#f", "fragment"),
        ("https:///path", "names no host"),
        ("https://h.example:/", "names no host"),
        ("https://h.example:0/", "names no host"),
        ("https://h.example:99999/", "not a URL"),
        ("https://h.example:x/", "not a URL"),
        ("https://[::1/", "not a URL"),
        ("https://h.example/a b", "only visible ASCII"),
        ("https://h.example/\r\nX: y", "only visible ASCII"),
        ("https://h.example\\@evil.example/", "only visible ASCII"),
        ("https://grüße.example/", "only visible ASCII"),
        ("", "only visible ASCII"),
    ],
)
def test_an_invalid_endpoint_is_refused(url: str, message: str) -> None:
    assert message in refusal(url=url)


@given(st.text(max_size=60) | st.text(max_size=40).map(lambda rest: "https://" + rest))
def test_any_text_is_an_endpoint_or_refused_in_words(url: str) -> None:
    try:
        parts = split_url(url)
    except ValueError as error:
        assert str(error)
    else:
        assert parts.hostname


@pytest.mark.parametrize("wrong", [{"org": ""}, {"channels": []}, {"channels": ["fax"]}, {"events": []}, {"payload": 3},
                                   {"timeout": "31s"}, {"timeout": "500ms"}, {"rate_limit": "0/s"}, {"mispelt": 1},
                                   {"auth": {"type": "basic"}}, {"auth": {"type": "jwt"}},
                                   {"signing": {"secrets": []}}])  # fmt: skip
def test_other_values_that_are_refused(wrong: dict[str, object]) -> None:
    assert refusal(**wrong)


def test_a_revision_changes_with_the_configuration_and_with_a_secret() -> None:
    def revision(secret: bytes = b"k" * 32, **values: object) -> str:
        auth = {"type": "jwt", "sign": {"algorithm": "HS256", "key": Secret(secret, {"file": "k"})}}
        return webhook(auth=auth, **values).revision

    assert revision() == revision()
    assert len({revision(), revision(b"l" * 32), revision(url="https://h.example/"), revision(enabled=False)}) == 4


def test_a_secret_is_shown_nowhere(tmp_path: object) -> None:
    source = SecretSource(tmp_path, environ={"KEY": "s3cr3t" * 6})  # type: ignore[arg-type]
    values = webhook().config.model_dump(mode="json") | {
        "auth": {"type": "jwt", "sign": {"algorithm": "HS256", "key": {"env": "KEY"}}}
    }
    config = WebhookConfig.model_validate(values, context=source.as_context())

    assert [secret.reveal() for secret in config.secrets()] == [b"s3cr3t" * 6]
    shown = (
        repr(config)
        + config.model_dump_json()
        + repr(Webhook.of(config, "x"))
        + json.dumps(config.model_dump(mode="json"))
    )
    assert "s3cr3t" not in shown
