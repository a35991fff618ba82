"""Rotates signing secrets: generates a new one, which is returned once, and lets the older ones end."""

import base64
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Final, Literal

from pydantic import JsonValue

from dispatcher.auth.signatures import public_key_of
from dispatcher.config.secrets import Secret
from dispatcher.config.webhooks import Signing
from dispatcher.console.actions import save
from dispatcher.console.model import ApiValue, Person
from dispatcher.console.services import Services
from dispatcher.errors import ConfigError, NotFound, Problem
from dispatcher.stores.sql.documents import stored_signing
from dispatcher.stores.sql.records import StoredWebhook

SECRET_BYTES: Final = 32
MAX_END: Final = timedelta(days=366)
"""The latest end of a signing secret, from now."""
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
    older_end: datetime | None
    """When the older secrets stop signing; None if they have no common end."""


@dataclass(frozen=True, slots=True)
class SigningSecretModel(ApiValue):
    """A signing secret of a webhook."""

    fingerprint: str
    added_at: datetime | None
    """No value if an older version stored it."""
    ends_at: datetime | None
    """When it stops signing by itself; no value if it doesn't."""
    is_newest: bool
    """Whether it is the first secret, which can't end."""


async def signing_secrets_of(services: Services, person: Person, webhook: StoredWebhook) -> list[SigningSecretModel]:
    """Returns the webhook's signing secrets, the newest first."""
    fingerprints, ends = signing_in(webhook.document)
    dates = await services.webhooks.dates_of_secrets(webhook.id, orgs=person.orgs) if fingerprints else {}
    return [
        SigningSecretModel(one, dates.get(one), ends.get(one), is_newest=number == 0)
        for number, one in enumerate(fingerprints)
    ]


def ed25519_keys_in(signing: Signing | None, now: float) -> list[str]:
    """Returns the public keys `whpk_…` if all secrets that sign at `now` are Ed25519 keys; otherwise nothing."""
    keys = [] if signing is None else [public_key_of(one) for one in signing.secrets_at(now)]
    return [] if None in keys else [one for one in keys if one is not None]


async def generate_signing_secret(
    services: Services,
    person: Person,
    webhook_id: str,
    kind: Kind,
    version: int | None = None,
    end_older_in: timedelta | None = None,
) -> GeneratedSecret:
    """Adds a signing secret to a webhook, before those that it has.

    Args:
        version: the version that the caller has read; None for the current one.
        end_older_in: time until the older secrets stop signing; one that ends sooner keeps its end. None: all
            keep the ends that they have.

    Raises:
        NotFound: there is no such webhook.
        EditConflict: it was changed meanwhile.
        ConfigError: it has as many secrets as it may have.
    """
    stored = await services.webhooks.get(webhook_id, orgs=person.orgs)
    text = _PREFIXES[kind] + base64.b64encode(secrets.token_bytes(SECRET_BYTES)).decode()
    fingerprints, ends = signing_in(stored.document)
    end = None if end_older_in is None else _checked(datetime.now(UTC) + end_older_in)
    if end is not None:
        ends = {one: min(end, ends.get(one, end)) for one in fingerprints}
    changed = await _save(services, person, stored, [{"value": text}, *map(_kept, fingerprints)], ends, version)
    secret = Secret(text.encode())
    return GeneratedSecret(text, secret.fingerprint(), public_key_of(secret), changed, end if fingerprints else None)


async def end_signing_secret(
    services: Services,
    person: Person,
    webhook_id: str,
    fingerprint: str,
    at: datetime | None,
    version: int | None = None,
) -> StoredWebhook:
    """Sets when an older signing secret stops signing; None removes it now.

    Raises:
        NotFound: there is no such webhook, or it has no such secret.
        EditConflict: it was changed meanwhile.
        ConfigError: it is the newest secret, or the time is past or more than 366 days away.
    """
    stored = await services.webhooks.get(webhook_id, orgs=person.orgs)
    fingerprints, ends = signing_in(stored.document)
    if fingerprint not in fingerprints:
        raise NotFound("the webhook has no signing secret with this fingerprint")
    if fingerprint == fingerprints[0]:
        message = "the newest secret can't end: requests would not be signed. Generate a new one first"
        raise ConfigError([Problem(message, "signing.secrets")])
    if at is None:
        kept = [one for one in fingerprints if one != fingerprint]
    else:
        kept, ends = fingerprints, ends | {fingerprint: _checked(at)}
    return await _save(services, person, stored, list(map(_kept, kept)), ends, version)


def signing_in(document: Mapping[str, JsonValue]) -> tuple[list[str], dict[str, datetime]]:
    """Returns the fingerprints of a stored document's signing secrets, the newest first, and the planned ends.

    Secrets that have ended are left out.
    """
    now = datetime.now(UTC)
    fingerprints, ends = stored_signing(document)
    ended = {one for one, end in ends.items() if end <= now}
    return [one for one in fingerprints if one not in ended], {one: at for one, at in ends.items() if one not in ended}


def _kept(fingerprint: str) -> JsonValue:
    return {"fingerprint": fingerprint}


def _checked(at: datetime) -> datetime:
    now = datetime.now(UTC)
    if not now < at <= now + MAX_END:
        raise ConfigError([Problem(f"must be in the next {MAX_END.days} days", "at")])
    return at.astimezone(UTC).replace(microsecond=0)


async def _save(
    services: Services,
    person: Person,
    stored: StoredWebhook,
    kept: list[JsonValue],
    ends: dict[str, datetime],
    version: int | None,
) -> StoredWebhook:
    older = {str(one["fingerprint"]) for one in kept[1:] if isinstance(one, dict) and "fingerprint" in one}
    dated: dict[str, JsonValue] = {one: end.isoformat() for one, end in ends.items() if one in older}
    draft: dict[str, JsonValue] = {**stored.document, "signing": {"secrets": kept, "ends": dated}}
    config = await services.webhooks.resolve(draft, webhook_id=stored.id, orgs=person.orgs)
    return await save(services, person, stored, config, version)
