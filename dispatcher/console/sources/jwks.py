"""JWKS documents: the public keys with which a receiver verifies the tokens of its webhook.

Each tenant has a document of its own. Tenants bring their private keys: in a common document, each tenant could sign
tokens that another tenant's receiver accepts as ours, whatever `kid` and claims it checks.

A key stays published for a while after its webhook replaces or drops it, because tokens that it signed are still in
flight. The keys of a deleted webhook are withdrawn at once.

Private members can't be published: `auth.public_keys` builds a key from its public numbers only.
"""

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from pydantic import JsonValue

from dispatcher.auth.problems import published_keys_of
from dispatcher.auth.public_keys import PublicJwk, jwks_document
from dispatcher.config.webhook_revision import Webhook
from dispatcher.contract.tenant import TenantKey
from dispatcher.errors import StoreUnavailable

KEPT_S: Final = 3600.0
"""Seconds; longer than any token lives (5 min) and than receivers should cache the document."""


class KeyedWebhooks(Protocol):
    """The webhooks in use, with their secrets."""

    def all(self) -> list[Webhook]: ...

    def on_change(self, listener: Callable[[set[TenantKey]], None]) -> None: ...

    def is_held(self, tenant: TenantKey) -> bool:
        """Returns True if the tenant has a webhook that can't be used or is paused."""
        ...

    @property
    def is_loaded(self) -> bool:
        """True once the webhooks were read for the first time."""
        ...


@dataclass(frozen=True, slots=True)
class _Keys:
    """Public keys of one webhook."""

    source: str
    """Differs between a webhook and the one that replaces it after a deletion."""
    revision: str
    keys: list[tuple[PublicJwk, float | None]]
    """Each with the time of its withdrawal in Unix seconds; None if it stays."""

    def at(self, now: float) -> list[PublicJwk]:
        """Returns the keys that are published at `now`, in Unix seconds."""
        return [key for key, end in self.keys if end is None or now < end]


class PublishedKeys:
    """Public keys that verify the dispatchers' tokens. Reads the keys again only after a webhook changed."""

    def __init__(
        self,
        webhooks: KeyedWebhooks,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._webhooks = webhooks
        self._clock = clock
        self._wall_clock = wall_clock
        self._looking = asyncio.Lock()
        self._is_current = False
        self._of_tenant: dict[TenantKey, _Keys] = {}
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
        return self._of_tenant[tenant].at(self._wall_clock()) if tenant in self._of_tenant else []

    def _note_change(self) -> None:
        self._is_current = False

    def _look(self, webhooks: Sequence[Webhook]) -> None:
        """Reads the webhooks' keys. Runs in a thread, because reading a key takes about a millisecond."""
        before, self._of_tenant = self._of_tenant, {}
        for webhook in webhooks:
            known = before.get(webhook.tenant)
            if known is None or (known.source, known.revision) != (webhook.source, webhook.revision):
                known = _Keys(webhook.source, webhook.revision, published_keys_of(webhook.config))
            self._of_tenant[webhook.tenant] = known
        until = self._clock() + KEPT_S
        for tenant, old in before.items():
            new = self._of_tenant.get(tenant)
            if new is None and self._webhooks.is_held(tenant):  # it can't be used as it is, but it exists
                self._of_tenant[tenant] = old
            elif new is None or new.source != old.source:
                self._retired = [one for one in self._retired if one[1] != tenant]
            else:
                current, published = [key for key, _ in new.keys], old.at(self._wall_clock())
                self._retired += [(until, tenant, key) for key in published if key not in current]
