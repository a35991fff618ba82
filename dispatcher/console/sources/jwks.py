"""JWKS documents: the public keys of a webhook that signs tokens, for its receiver to verify them by.

One for each tenant. Tenants bring their private keys, so in a common document every one of them could sign tokens that
every other's receiver takes for ours, whatever `kid` and claims it looks at.

A key stays published for a while after its webhook has another one, or none: tokens that it signed are still on their
way. Private members can't get in: `auth.public_keys` makes a key of its public numbers alone.
"""

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Final, Protocol

from pydantic import JsonValue

from dispatcher.auth.problems import jwks_of
from dispatcher.auth.public_keys import PublicJwk, jwks_document
from dispatcher.config.webhooks import Webhook
from dispatcher.contract.tenant import TenantKey
from dispatcher.errors import StoreUnavailable

KEPT_S: Final = 3600.0
"""Longer than any token lives (5 min) and than receivers should keep the document."""


class KeyedWebhooks(Protocol):
    """The webhooks in use, secrets and all."""

    def all(self) -> list[Webhook]: ...

    def on_change(self, listener: Callable[[set[TenantKey]], None]) -> None: ...

    @property
    def is_loaded(self) -> bool:
        """Whether they have been read at all."""
        ...


class PublishedKeys:
    """The `PublicKeys` of the console. Looks at what has changed, and only then."""

    def __init__(self, webhooks: KeyedWebhooks, clock: Callable[[], float] = time.monotonic) -> None:
        self._webhooks = webhooks
        self._clock = clock
        self._looking = asyncio.Lock()
        self._is_current = False
        self._of_tenant: dict[TenantKey, tuple[str, list[PublicJwk]]] = {}  # with the webhook's revision
        self._retired: list[tuple[float, TenantKey, PublicJwk]] = []  # with the time of their end
        webhooks.on_change(lambda _: self._note_change())

    async def document(self, tenant: TenantKey) -> Mapping[str, JsonValue]:
        """The document of one tenant (RFC 7517, section 5); one without keys where it signs nothing, or is none.

        Raises:
            StoreUnavailable: the webhooks have not been read yet.
        """
        if not self._webhooks.is_loaded:
            raise StoreUnavailable("the webhooks have not been read yet")
        async with self._looking:
            if not self._is_current:
                self._is_current = True  # before the look: a change meanwhile means another one
                await asyncio.to_thread(self._look, self._webhooks.all())
        now = self._clock()
        self._retired = [one for one in self._retired if one[0] > now]
        retired = [key for _, whose, key in self._retired if whose == tenant]
        document = jwks_document([*self._in_use(tenant), *retired])
        return {"keys": [dict[str, JsonValue](key) for key in document["keys"]]}

    def _in_use(self, tenant: TenantKey) -> list[PublicJwk]:
        return self._of_tenant[tenant][1] if tenant in self._of_tenant else []

    def _note_change(self) -> None:
        self._is_current = False

    def _look(self, webhooks: Sequence[Webhook]) -> None:
        """Off the loop: reading a key takes about a millisecond."""
        before, self._of_tenant = self._of_tenant, {}
        for webhook in webhooks:
            revision, keys = before.get(webhook.tenant, ("", []))
            if revision != webhook.revision:
                keys = jwks_of([webhook.config])["keys"]
            self._of_tenant[webhook.tenant] = (webhook.revision, keys)
        until = self._clock() + KEPT_S
        for tenant, (_, keys) in before.items():
            in_use = self._in_use(tenant)
            self._retired += [(until, tenant, key) for key in keys if key not in in_use]
