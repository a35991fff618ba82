"""Generates signing secrets: the new one is returned once, and signs beside those that are stored."""

import base64
import secrets
from dataclasses import dataclass, field
from typing import Final, Literal

from pydantic import JsonValue

from dispatcher.auth.signatures import public_key_of
from dispatcher.config.secrets import Secret
from dispatcher.console.model import Person
from dispatcher.console.services import Services
from dispatcher.stores.sql.records import StoredWebhook

SECRET_BYTES: Final = 32
Kind = Literal["hmac", "ed25519"]
_PREFIXES: Final[dict[Kind, str]] = {"hmac": "whsec_", "ed25519": "whsk_"}


@dataclass(frozen=True, slots=True)
class GeneratedSecret:
    """A signing secret that was just generated."""

    text: str = field(repr=False)
    """`whsec_…` or `whsk_…`; it can't be retrieved later."""
    fingerprint: str
    public_key: str | None
    """`whpk_…`, with which receivers verify an Ed25519 signature; None for HMAC."""
    webhook: StoredWebhook


async def generate_signing_secret(
    services: Services, person: Person, webhook_id: str, kind: Kind, version: int | None = None
) -> GeneratedSecret:
    """Adds a signing secret to a webhook, before those that it has.

    Args:
        version: the version that the caller has read; None for the current one.

    Raises:
        NotFound: there is no such webhook.
        EditConflict: it was changed meanwhile.
        ConfigError: it has as many secrets as it may have.
    """
    stored = await services.webhooks.get(webhook_id, orgs=person.orgs)
    text = _PREFIXES[kind] + base64.b64encode(secrets.token_bytes(SECRET_BYTES)).decode()
    signing = stored.document.get("signing")
    kept = signing.get("secrets") if isinstance(signing, dict) else None
    draft: dict[str, JsonValue] = {
        **stored.document,
        "signing": {"secrets": [{"value": text}, *(kept if isinstance(kept, list) else [])]},
    }
    config = await services.webhooks.resolve(draft, webhook_id=webhook_id, orgs=person.orgs)
    changed = await services.webhooks.update(
        webhook_id, config, expected_version=stored.version if version is None else version, by=person.name,
        orgs=person.orgs,
    )  # fmt: skip
    secret = Secret(text.encode())
    return GeneratedSecret(text, secret.fingerprint(), public_key_of(secret), changed)
