"""Caches webhooks for the hot path: a bounded cache in front of any store.

A webhook is used for `cache_ttl`, the absence of one for `negative_ttl`. Then the store is queried again, once for all
concurrent callers (single flight). While it does not answer, the old entry stays in use. Used on one event loop.
"""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Final, Protocol

from dispatcher.config.settings import WebhookSettings
from dispatcher.config.webhook_lookup import WebhookLookup
from dispatcher.config.webhook_revision import Webhook
from dispatcher.contract.tenant import TenantKey
from dispatcher.errors import StoreUnavailable, WebhookUnusable
from dispatcher.tasks import SingleFlight
from dispatcher.telemetry import metrics

STORE_TIMEOUT_S: Final = 5.0
"""Deadline of a store's answer: longer than any query takes, shorter than a partition can wait."""
STALE_PAUSE_S: Final = 1.0
"""Minimum interval between queries for one tenant while the store is unavailable."""


class NotCached(Enum):
    """Result of `get_cached` if only `get` can answer."""

    NOT_CACHED = "missing"


NOT_CACHED: Final = NotCached.NOT_CACHED


class WebhookStore(WebhookLookup, Protocol):
    """The part of a store that the cache uses."""

    def get_cached(self, tenant: TenantKey, /) -> Webhook | NotCached | None:
        """Returns the webhook, or None, without waiting; `NOT_CACHED` if only `get` can answer."""
        ...


@dataclass(slots=True)
class _Entry:
    webhook: Webhook | None
    fresh_until: float
    problem: str = ""
    """Reason why the tenant's webhook can't be used."""


class WebhookCache:
    """Looks up webhooks, from memory if the entry is fresh.

    At most `cache_size` tenants are kept; the oldest entries are removed first. Uses are not recorded, because
    entries in use are renewed every `cache_ttl` anyway.
    """

    def __init__(
        self, store: WebhookStore, settings: WebhookSettings, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._store = store
        self._settings = settings
        self._clock = clock
        self._entries: OrderedDict[TenantKey, _Entry] = OrderedDict()
        self._queries = SingleFlight[TenantKey, Webhook | None]("webhook query")

    def __repr__(self) -> str:
        return f"<WebhookCache {len(self._entries)} tenants, {len(self._queries)} queried>"

    def get_cached(self, tenant: TenantKey) -> Webhook | NotCached | None:
        """Returns the webhook or None without waiting; `NOT_CACHED` if `get` has to be awaited."""
        entry = self._entries.get(tenant)
        if entry is None or entry.fresh_until <= self._clock():
            answer = self._store.get_cached(tenant)
            if answer is not NOT_CACHED:
                self._keep_answer(tenant, answer)
            return answer
        if entry.problem:
            return NOT_CACHED
        return entry.webhook

    def is_current(self, webhook: Webhook) -> bool:
        """Returns True if no newer version is known. Age and an unavailable store don't make a webhook outdated."""
        entry = self._entries.get(webhook.tenant)
        if entry is None or entry.webhook is None or entry.fresh_until == float("-inf"):
            return False
        return entry.webhook.config is webhook.config  # another line of the file alone doesn't make it another webhook

    async def get(self, tenant: TenantKey) -> Webhook | None:
        """Returns the tenant's webhook, or None if it has none.

        Of concurrent callers, the first queries the store; if it is cancelled, the next one does.

        Raises:
            StoreUnavailable: the store did not answer, and the cache has no entry for this tenant.
            WebhookUnusable: the tenant's webhook can't be used; cached for `negative_ttl`.
        """
        while True:
            known = self.get_cached(tenant)
            if known is not NOT_CACHED:
                return known
            self._raise_known_problem(tenant)
            is_first = tenant not in self._queries
            query = self._queries.start(tenant, lambda: self._ask(tenant))
            try:
                await asyncio.wait({query})
            except asyncio.CancelledError:
                if is_first:
                    query.cancel()
                raise
            if not query.cancelled():
                return query.result()

    def invalidate(self, tenant: TenantKey | None = None) -> None:
        """Marks the entry of this tenant, or all entries, as outdated: the next look-up queries the store.

        Old entries stay in use while the store is unavailable. The result of a query in progress is returned to its
        callers, but not cached.
        """
        if tenant is None:
            self._queries.forget_all()
            for entry in self._entries.values():
                entry.fresh_until = float("-inf")
            return
        self._queries.forget(tenant)
        if (known := self._entries.get(tenant)) is not None:
            known.fresh_until = float("-inf")

    def forget_absent(self) -> None:
        """Removes the entries of tenants without a webhook: the store may no longer be complete."""
        absent = [tenant for tenant, entry in self._entries.items() if entry.webhook is None]
        for tenant in absent:
            self.invalidate(tenant)

    def _raise_known_problem(self, tenant: TenantKey) -> None:
        entry = self._entries.get(tenant)
        if entry is not None and entry.problem and entry.fresh_until > self._clock():
            raise WebhookUnusable(entry.problem)

    async def _ask(self, tenant: TenantKey) -> Webhook | None:
        try:
            async with asyncio.timeout(STORE_TIMEOUT_S):
                webhook = await self._store.get(tenant)
        except (StoreUnavailable, TimeoutError) as error:
            metrics.STORE_FAILURES.inc()
            stale = self._entries.get(tenant)
            if stale is None:
                raise StoreUnavailable(
                    f"the webhook store is unavailable: {str(error) or 'no answer in time'}"
                ) from error
            metrics.STALE_ANSWERS.inc()
            self._keep(tenant, stale.webhook, STALE_PAUSE_S, stale.problem)
            self._raise_known_problem(tenant)
            return stale.webhook
        except WebhookUnusable as error:
            if self._queries.is_current(tenant):
                self._keep(tenant, None, self._settings.negative_ttl, str(error))
            raise
        if self._queries.is_current(tenant):  # otherwise it was invalidated meanwhile: this result may be outdated
            self._keep_answer(tenant, webhook)
        return webhook

    def _keep_answer(self, tenant: TenantKey, webhook: Webhook | None) -> None:
        settings = self._settings
        self._keep(tenant, webhook, settings.cache_ttl if webhook is not None else settings.negative_ttl)

    def _keep(self, tenant: TenantKey, webhook: Webhook | None, for_s: float, problem: str = "") -> None:
        self._entries[tenant] = _Entry(webhook, self._clock() + for_s, problem)
        self._entries.move_to_end(tenant)
        if len(self._entries) > self._settings.cache_size:
            self._entries.popitem(last=False)
