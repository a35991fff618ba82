"""What viewers don't see: recipients' addresses, and the places in a configuration where tenants put secrets. Pure.

Real secrets are never here at all: the repository gives their fingerprints.
"""

from collections.abc import Mapping
from typing import Final
from urllib.parse import urlsplit

from pydantic import JsonValue

from dispatcher.secrets import speaks_of_a_secret

MASK: Final = "•••"


def masked_recipient(recipient: str) -> str:
    """`j•••@luma.com` of an e-mail address, `•••42` of a telephone number."""
    name, at, domain = recipient.rpartition("@")
    if at:
        return f"{name[:1]}{MASK}@{domain}"
    return f"{MASK}{recipient[-2:] if len(recipient) > 6 else ''}"


def masked_url(url: str) -> str:
    """Scheme, host and port: tenants put keys into the path (`/hooks/T0/B0/xyz`) and the query."""
    parts = urlsplit(url)
    origin = f"{parts.scheme}://{parts.netloc}"
    return url if url in (origin, f"{origin}/") else f"{origin}/{MASK}"


def masked_document(document: Mapping[str, JsonValue]) -> dict[str, JsonValue]:
    """A configuration for viewers: no path or query of a URL, no value of a header or claim that speaks of a secret."""
    return {key: _masked(key, value, named_by_tenant=False) for key, value in document.items()}


def _masked(key: str, value: JsonValue, *, named_by_tenant: bool) -> JsonValue:
    if named_by_tenant and speaks_of_a_secret(key) and value is not None:
        return MASK
    if isinstance(value, dict):
        inside = named_by_tenant or key in ("headers", "claims")
        return {name: _masked(name, inner, named_by_tenant=inside) for name, inner in value.items()}
    if isinstance(value, list):
        return [_masked(key, inner, named_by_tenant=named_by_tenant) for inner in value]
    if key in ("url", "token_url") and isinstance(value, str) and not named_by_tenant:
        return masked_url(value)
    return value
