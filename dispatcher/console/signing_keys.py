"""Rotates the keys that sign a webhook's tokens.

The public key of a new one is published at once, so that receivers know it before it signs. It starts at a time; the
key before it stays published for a day and is then erased by the store.
"""

import asyncio
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Final

from dispatcher.auth.problems import key_description_of
from dispatcher.config.secrets import Secret
from dispatcher.config.webhook_auth import NextKey, SignedToken, SigningAlgorithm
from dispatcher.config.webhooks import WebhookConfig
from dispatcher.console.actions import save
from dispatcher.console.model import ApiValue, Person
from dispatcher.console.services import Services
from dispatcher.errors import ConfigError, NotFound, Problem
from dispatcher.stores.sql.records import StoredWebhook

MAX_START: Final = timedelta(days=90)
"""The latest start of a generated key, from now."""


class KeyRole(StrEnum):
    """The present role of a signing key."""

    NEXT = "next"
    """Published; it doesn't sign yet."""
    SIGNING = "signing"
    PREVIOUS = "previous"
    """Published only: tokens that it signed are still in use."""


@dataclass(frozen=True, slots=True)
class SigningKeyModel(ApiValue):
    """A key that signs a webhook's tokens, has signed them, or will. The private key is never returned."""

    fingerprint: str
    algorithm: SigningAlgorithm
    key_id: str | None
    """`kid` of its tokens and of its public key; no value for a shared secret without one, or an unreadable key."""
    role: KeyRole
    """`next`: published, it doesn't sign yet. `previous`: published only."""
    added_at: datetime | None
    """No value if an older version stored it."""
    signs_from: datetime | None
    """No value if it has signed since it was added."""
    signs_until: datetime | None
    """No value if it has no end."""
    withdrawn_at: datetime | None
    """When its public key is withdrawn and the key erased; no value if that is not planned."""


async def signing_keys_of(
    services: Services, person: Person, webhook_id: str, config: WebhookConfig | None
) -> list[SigningKeyModel]:
    """Returns the keys of the webhook's tokens, the newest first.

    There are none if the dispatcher signs no tokens. `config`: the result of `usable_config`.
    """
    token = None if config is None else config.signed_token
    if config is None or token is None:
        return []
    dates = await services.webhooks.dates_of_secrets(webhook_id, orgs=person.orgs)
    return await asyncio.to_thread(_described, token, config, dates, datetime.now(UTC))


def _described(
    token: SignedToken, config: WebhookConfig, dates: dict[str, datetime], now: datetime
) -> list[SigningKeyModel]:
    following = token.next

    def one(
        of: SignedToken, role: KeyRole, start: datetime | None, end: datetime | None, gone: datetime | None
    ) -> SigningKeyModel:
        fingerprint = of.key.fingerprint()
        kid = of.kid or _thumbprint(config.with_signed_token(of))
        return SigningKeyModel(fingerprint, of.algorithm, kid, role, dates.get(fingerprint), start, end, gone)

    if following is None:
        return [one(token, KeyRole.SIGNING, None, None, None)]
    start, has_started = following.starts, following.starts <= now
    newest = one(token.followed(), KeyRole.SIGNING if has_started else KeyRole.NEXT, start, None, None)
    if following.previous_ends <= now:  # the store erases it at its next sweep
        return [newest]
    return [
        newest,
        one(token, KeyRole.PREVIOUS if has_started else KeyRole.SIGNING, None, start, following.previous_ends),
    ]


def _thumbprint(config: WebhookConfig) -> str | None:
    try:
        described = key_description_of(config)
    except ValueError:
        return None
    return None if described is None or described.kind == "HMAC secret" else described.fingerprint


async def generate_signing_key(
    services: Services,
    person: Person,
    webhook_id: str,
    starts_in: timedelta,
    version: int | None = None,
) -> StoredWebhook:
    """Adds a successor to the current signing key, for the same algorithm. The private key is never shown.

    Args:
        starts_in: how soon it starts to sign: 0 to 90 days.
        version: the version that the caller has read; None for the current one.

    Raises:
        NotFound: there is no such webhook.
        EditConflict: it was changed meanwhile.
        ConfigError: the dispatcher signs no tokens for it, a next key is there already, the previous one is still
            published, or the algorithm has no public key.
    """
    stored, config, token = await _signed(services, person, webhook_id)
    now = datetime.now(UTC)
    _raise_if_published(token.next, now)
    if not timedelta(0) <= starts_in <= MAX_START:
        raise ConfigError([Problem(f"must be in the next {MAX_START.days} days", "starts_in")])
    from dispatcher.auth.signing_keys import new_private_key

    current = token.followed()
    try:
        pem = await asyncio.to_thread(new_private_key, current.algorithm)
    except ValueError as error:
        raise ConfigError([Problem(str(error), "auth")]) from None
    starts = (now + starts_in).replace(microsecond=0)
    following = NextKey(algorithm=current.algorithm, key=Secret(pem), starts=starts)
    changed = current.model_copy(update={"next": following})
    return await save(services, person, stored, config.with_signed_token(changed), version)


def _raise_if_published(following: NextKey | None, now: datetime) -> None:
    """Raises ConfigError while two keys are published: a third one is not added."""
    if following is None or following.previous_ends <= now:
        return
    message = (
        "a next key is published already: let it start now or withdraw it first"
        if following.starts > now
        else f"the key before it is published until {following.previous_ends:%Y-%m-%d %H:%M} UTC, because tokens"
        " that it signed are still in use: wait until then, or withdraw it first"
    )
    raise ConfigError([Problem(message, "next")])


async def start_signing_key(
    services: Services, person: Person, webhook_id: str, fingerprint: str, version: int | None = None
) -> StoredWebhook:
    """Lets the next key sign from now on.

    Raises:
        NotFound: there is no such webhook, or it has no next key with this fingerprint.
        EditConflict: it was changed meanwhile.
    """
    stored, config, token = await _signed(services, person, webhook_id)
    now = datetime.now(UTC).replace(microsecond=0)
    if token.next is None or token.next.key.fingerprint() != fingerprint or token.next.starts <= now:
        raise NotFound("the webhook has no next key with this fingerprint")
    changed = token.model_copy(update={"next": token.next.model_copy(update={"starts": now})})
    return await save(services, person, stored, config.with_signed_token(changed), version)


async def remove_signing_key(
    services: Services, person: Person, webhook_id: str, fingerprint: str, version: int | None = None
) -> StoredWebhook:
    """Erases the next key, or the one before the key that signs; its public key is withdrawn.

    Raises:
        NotFound: there is no such webhook, or it has no such key.
        EditConflict: it was changed meanwhile.
        ConfigError: it is the key that signs.
    """
    stored, config, token = await _signed(services, person, webhook_id)
    following = token.next
    known = [one.key.fingerprint() for one in (token, following) if one is not None]
    if fingerprint not in known:
        raise NotFound("the webhook has no signing key with this fingerprint")
    has_started = following is not None and following.starts <= datetime.now(UTC)
    if fingerprint == known[1 if has_started else 0]:
        message = "this key signs now, so it can't be removed: generate the next one first"
        raise ConfigError([Problem(message, "fingerprint")])
    changed = token.followed() if has_started else token.model_copy(update={"next": None})
    return await save(services, person, stored, config.with_signed_token(changed), version)


async def _signed(
    services: Services, person: Person, webhook_id: str
) -> tuple[StoredWebhook, WebhookConfig, SignedToken]:
    stored = await services.webhooks.get(webhook_id, orgs=person.orgs)
    config = await services.webhooks.for_delivery(webhook_id, orgs=person.orgs)
    token = config.signed_token
    if token is None:
        message = "the dispatcher signs no tokens for this webhook: choose JWT authentication, signed by us"
        raise ConfigError([Problem(message, "auth")])
    return stored, config, token
