"""Masks what viewers must not see: recipients, contacts, and parts of a configuration where tenants put secrets. Pure.

Stored secrets never reach this module: the repository returns their fingerprints.
"""

from collections.abc import Mapping
from typing import Final
from urllib.parse import urlsplit

from pydantic import JsonValue

from dispatcher.config.secrets import suggests_a_secret
from dispatcher.contract.redaction import MASK, in_text, recipient

_PERSONAL: Final = frozenset({"identityMap", "channelContext"})
"""Members of a payload in which every text is personal data."""


def payload(value: JsonValue, *, is_personal: bool = False) -> JsonValue:
    """Returns a feedback payload with its identities and recipients masked."""
    if isinstance(value, dict):
        return {key: payload(inner, is_personal=is_personal or key in _PERSONAL) for key, inner in value.items()}
    if isinstance(value, list):
        return [payload(inner, is_personal=is_personal) for inner in value]
    if isinstance(value, str):
        return recipient(value) if is_personal else in_text(value)
    return value


def url(text: str) -> str:
    """Masks path and query, because tenants put keys into them (`/hooks/T0/B0/xyz`)."""
    try:
        parts = urlsplit(text)
    except ValueError:  # in a row that was edited by hand
        return MASK
    origin = f"{parts.scheme}://{parts.netloc}"
    return text if text in (origin, f"{origin}/") else f"{origin}/{MASK}"


def document(configuration: Mapping[str, JsonValue]) -> dict[str, JsonValue]:
    """Masks paths of URLs, contacts' addresses, and values of headers, claims and parameters named like a secret."""
    return {key: _masked(key, value, named_by_tenant=False) for key, value in configuration.items()}


def _masked(key: str, value: JsonValue, *, named_by_tenant: bool) -> JsonValue:
    if named_by_tenant and suggests_a_secret(key) and value is not None:
        return MASK
    if isinstance(value, dict):
        inside = named_by_tenant or key in ("headers", "claims", "parameters")
        return {name: _masked(name, inner, named_by_tenant=inside) for name, inner in value.items()}
    if isinstance(value, list):
        return [_masked(key, inner, named_by_tenant=named_by_tenant) for inner in value]
    if named_by_tenant or not isinstance(value, str):
        return value
    if key in ("url", "token_url"):
        return url(value)
    return recipient(value) if key == "emails" else value
