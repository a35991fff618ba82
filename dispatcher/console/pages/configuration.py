"""Formats a stored webhook's configuration as rows; secrets by fingerprint. Pure."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import orjson
from pydantic import JsonValue

from dispatcher.config.secrets import suggests_a_secret
from dispatcher.config.settings import Settings
from dispatcher.config.units import format_duration
from dispatcher.console import masking
from dispatcher.console.formatting import rate
from dispatcher.console.probes import keys_path
from dispatcher.contract.tenant import TenantKey
from dispatcher.stores.sql.documents import fingerprint_in
from dispatcher.stores.sql.header_values import LOST
from dispatcher.stores.sql.records import StoredWebhook


@dataclass(frozen=True, slots=True)
class SettingRow:
    """One setting and its value."""

    label: str
    text: str
    is_code: bool = False
    """True if the text is shown in a fixed-width font."""
    is_secret: bool = False
    """True if `text` is a secret's fingerprint."""


@dataclass(frozen=True, slots=True)
class Section:
    title: str
    rows: tuple[SettingRow, ...]


def rows_of(webhook: StoredWebhook, settings: Settings, *, shows_paths: bool) -> list[Section]:
    """Returns all settings of a webhook, in the form's order.

    Args:
        shows_paths: whether path and query of URLs are shown: tenants put secrets there.
    """
    document = webhook.document if shows_paths else masking.document(webhook.document)
    return [
        Section("Basic configuration", tuple(_basics(document))),
        Section("Authentication", tuple(_authentication(_mapping(document.get("auth")), webhook.tenant, settings))),
        Section("Header parameters", tuple(_headers(_mapping(document.get("headers"))))),
        Section("Advanced", tuple(_advanced(document, settings))),
    ]


def _basics(document: Mapping[str, JsonValue]) -> Iterator[SettingRow]:
    yield SettingRow("Name", str(document["name"]))
    yield SettingRow("Organisation", str(document["org"]), is_code=True)
    yield SettingRow("Sandbox", str(document["sandbox"]), is_code=True)
    if document.get("sandbox_id"):
        yield SettingRow("Sandbox id", str(document["sandbox_id"]), is_code=True)
    yield SettingRow("Channels", ", ".join(_channel(one) for one in _items(document.get("channels"))))
    yield SettingRow("Webhook URL", str(document["url"]), is_code=True)
    yield SettingRow("Deliveries", _deliveries(document))


def _deliveries(document: Mapping[str, JsonValue]) -> str:
    if not document.get("enabled", True):
        return "Switched off: events are skipped"
    return "Paused: events are held" if document.get("paused") is True else "On"


def _authentication(auth: Mapping[str, JsonValue], tenant: TenantKey, settings: Settings) -> Iterator[SettingRow]:
    if auth.get("type") != "jwt":
        yield SettingRow("Method", "No authentication")
        return
    sign, fetch = _mapping(auth.get("sign")), _mapping(auth.get("fetch"))
    yield SettingRow("Method", "JWT authentication: signed by us" if sign else "JWT authentication: fetched from you")
    yield SettingRow("Header", f"{auth.get('header')}: {auth.get('scheme') or ''} …".replace("  ", " "), is_code=True)
    yield from _token(sign, "")
    if fetch:
        yield SettingRow("Grant", str(fetch.get("grant")).replace("-", " "))
        yield SettingRow("Token endpoint", str(fetch.get("token_url")), is_code=True)
        yield from _texts(fetch, {"client_id": "Client id"})
        yield from _secret("Client secret", fetch.get("client_secret"))
        yield from _texts(fetch, {"scope": "Scope", "audience": "Audience"})
        if fetch.get("client_auth") == "post":
            yield SettingRow("Client id and secret", "Sent in the form")
        for name, value in _mapping(fetch.get("parameters")).items():
            yield _value(f"Parameter {name}", name, str(value))
        yield from _token(_mapping(fetch.get("assertion")), "Assertion: ")
    token = sign or _mapping(fetch.get("assertion"))
    if token and not str(token.get("algorithm")).startswith("HS"):  # those have no public half
        yield SettingRow("Public key, as JWKS", (settings.console.public_url or "") + keys_path(tenant), is_code=True)


def _token(token: Mapping[str, JsonValue], before: str) -> Iterator[SettingRow]:
    if not token:
        return
    yield SettingRow(f"{before}Algorithm", str(token.get("algorithm")), is_code=True)
    yield from _secret(f"{before}Key", token.get("key"))
    names = {"kid": "Key id", "issuer": "Issuer", "subject": "Subject", "audience": "Audience"}
    yield from _texts(token, {key: before + label for key, label in names.items()})
    if isinstance(ttl := token.get("ttl"), int | float):
        yield SettingRow(f"{before}Life of a token", format_duration(ttl))
    for name, value in _mapping(token.get("claims")).items():
        yield _value(f"{before}Claim {name}", name, value if isinstance(value, str) else orjson.dumps(value).decode())
    if token.get("body_hash"):
        yield SettingRow(f"{before}Body hash", "A token for each request")
    times = [f"{key} ({label})" for key, label in (("nbf", "valid from"), ("jti", "unique id")) if token.get(key)]
    if times:
        yield SettingRow(f"{before}Optional claims", ", ".join(times))


def _headers(headers: Mapping[str, JsonValue]) -> Iterator[SettingRow]:
    for name, value in headers.items():
        fingerprint = fingerprint_in(value)
        if fingerprint == LOST:
            yield SettingRow(name, "Can't be decrypted any more: enter it again")
        elif fingerprint is not None:
            yield SettingRow(name, fingerprint, is_secret=True)
        else:
            yield _value(name, name, str(value))


def _advanced(document: Mapping[str, JsonValue], settings: Settings) -> Iterator[SettingRow]:
    yield SettingRow("Events", ", ".join(map(str, _items(document.get("events")))))
    campaigns = document.get("campaigns")
    yield SettingRow("Campaigns", "All" if campaigns == "all" else ", ".join(map(str, _items(campaigns))) or "None")
    yield SettingRow("Payload version", str(document.get("payload", 1)))
    yield SettingRow("Signatures", "Standard Webhooks" if document.get("signing") else "None")
    limit, timeout = document.get("rate_limit"), document.get("timeout")
    yield SettingRow("Rate limit", rate(limit) if isinstance(limit, int | float) else "As many as the endpoint accepts")
    is_own = isinstance(timeout, int | float)
    shown = format_duration(timeout if isinstance(timeout, int | float) else settings.delivery.timeout)
    yield SettingRow("Timeout", shown if is_own else f"{shown} (default)")
    if isinstance(connect := document.get("connect_timeout"), int | float):
        yield SettingRow("Connect timeout", format_duration(connect))
    tls = _mapping(document.get("tls"))
    for key, label in (("ca", "Own CA"), ("certificate", "Client certificate"), ("key", "Client key")):
        yield from _secret(label, tls.get(key))


def _texts(values: Mapping[str, JsonValue], labels: Mapping[str, str]) -> Iterator[SettingRow]:
    for key, label in labels.items():
        if values.get(key):
            yield SettingRow(label, str(values[key]), is_code=True)


def _secret(label: str, value: JsonValue) -> Iterator[SettingRow]:
    fingerprint = fingerprint_in(value)
    if fingerprint is not None:
        yield SettingRow(label, fingerprint, is_secret=True)


def _value(label: str, name: str, text: str) -> SettingRow:
    return (
        SettingRow(label, "<hidden>", is_code=True)
        if suggests_a_secret(name)
        else SettingRow(label, text, is_code=True)
    )


def _channel(channel: JsonValue) -> str:
    return {"email": "Email", "sms": "SMS"}.get(str(channel), str(channel))


def _mapping(value: JsonValue) -> Mapping[str, JsonValue]:
    return value if isinstance(value, dict) else {}


def _items(value: JsonValue) -> list[JsonValue]:
    return value if isinstance(value, list) else []
