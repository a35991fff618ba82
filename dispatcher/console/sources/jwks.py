"""JWKS documents: the public keys with which a receiver verifies the tokens of its webhook.

Each tenant has a document of its own. Tenants bring their private keys: in a common document, each tenant could sign
tokens that another tenant's receiver accepts as ours, whatever `kid` and claims it checks.

A key stays published for a while after its webhook has another one or none, because tokens that it signed are still in
flight. Private members can't be published: `auth.public_keys` builds a key from its public numbers only.
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
"""Seconds; longer than any token lives (5 min) and than receivers should cache the document."""


class KeyedWebhooks(Protocol):
    """The webhooks in use, with their secrets."""

    def all(self) -> list[Webhook]: ...

    def on_change(self, listener: Callable[[set[TenantKey]], None]) -> None: ...

    @property
    def is_loaded(self) -> bool:
        """True once the webhooks were read for the first time."""
        ...


class PublishedKeys:
    """Public keys that verify the dispatchers' tokens. Reads the keys again only after a webhook changed."""

    def __init__(self, webhooks: KeyedWebhooks, clock: Callable[[], float] = time.monotonic) -> None:
        self._webhooks = webhooks
        self._clock = clock
        self._looking = asyncio.Lock()
        self._is_current = False
        self._of_tenant: dict[TenantKey, tuple[str, list[PublicJwk]]] = {}  # with the webhook's revision
        self._retired: list[tuple[float, TenantKey, PublicJwk]] = []  # with the time of their removal
        webhooks.on_change(lambda _: self._note_change())

    async def document(self, tenant: TenantKey) -> Mapping[str, JsonValue]:
        """Returns the document of one tenant (RFC 7517, section 5); empty if the tenant signs no tokens.

        Raises:
            StoreUnavailable: the webhooks have not been read yet.
        """
        if not self._webhooks.is_loaded:
            raise StoreUnavailable("the webhooks have not been read yet")
        async with self._looking:
            if not self._is_current:
                self._is_current = True  # before reading: a change meanwhile causes another reading
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
        """Reads the keys, in a thread: reading a key takes about a millisecond."""
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
