"""The webhooks that the hot path sees: a bounded cache in front of any store.

An answer is used for `cache_ttl`, "there is none" for `negative_ttl`. Then the store is asked again, once however
many ask (single flight), and while it does not answer the old answer stands in for it. Used on one event loop.
"""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Final, Literal, Protocol

from dispatcher.config.settings import WebhookSettings
from dispatcher.config.webhooks import Webhook
from dispatcher.contract.tenant import TenantKey
from dispatcher.errors import StoreUnavailable, WebhookUnusable
from dispatcher.telemetry import metrics

STORE_TIMEOUT_S: Final = 5.0
"""A store that has not answered by then is away: more than any query takes, less than a partition can wait."""
STALE_PAUSE_S: Final = 1.0
"""While the store is away it is asked for one tenant at most this often."""


class NotCached(Enum):
    """What `get_cached` gives where only `find` can tell."""

    NOT_CACHED = "missing"


NOT_CACHED: Final = NotCached.NOT_CACHED


class WebhookStore(Protocol):
    """What the cache needs of a store."""

    async def get(self, tenant: TenantKey) -> Webhook | None:
        """The tenant's webhook, None where it has none.

        Raises:
            StoreUnavailable: the store did not answer.
            WebhookUnusable: it has one that can't be used.
            WebhookUndecided: whether it has one can't be said.
        """
        ...

    def get_cached(self, tenant: TenantKey, /) -> Webhook | NotCached | None:
        """The same without waiting; `NOT_CACHED` where only `find` can tell."""
        ...


@dataclass(slots=True)
class _Entry:
    webhook: Webhook | None
    fresh_until: float
    problem: str = ""
    """Why the tenant's webhook can't be used."""


_Answer = Webhook | Literal[NotCached.NOT_CACHED] | None


class WebhookCache:
    """The webhook of a tenant, from memory where it is fresh there.

    At most `cache_size` tenants are kept; those whose answer is the oldest go first. What is asked for has a fresh one
    each `cache_ttl`: to note every question would cost more than it tells.
    """

    def __init__(
        self, store: WebhookStore, settings: WebhookSettings, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._store = store
        self._settings = settings
        self._clock = clock
        self._entries: OrderedDict[TenantKey, _Entry] = OrderedDict()
        self._flights: dict[TenantKey, asyncio.Future[_Answer]] = {}

    def __repr__(self) -> str:
        return f"<WebhookCache {len(self._entries)} tenants, {len(self._flights)} asked for>"

    def get_cached(self, tenant: TenantKey) -> Webhook | NotCached | None:
        """The answer where it needs no waiting, else `NOT_CACHED`: then `find` has it."""
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
        """Whether nothing newer is known. Neither age nor a store that is away makes a webhook less current."""
        entry = self._entries.get(webhook.tenant)
        return entry is not None and entry.webhook is webhook and entry.fresh_until != float("-inf")

    async def get(self, tenant: TenantKey) -> Webhook | None:
        """The tenant's webhook, None where it has none.

        Many may ask at once: the store is asked by the first, and by the next in line where that one is cancelled.

        Raises:
            StoreUnavailable: the store did not answer, and nothing is known of this tenant.
            WebhookUnusable: it has one that can't be used; known for `negative_ttl`.
        """
        while True:
            known = self.get_cached(tenant)
            if known is not NOT_CACHED:
                return known
            self._raise_known_problem(tenant)
            flight = self._flights.get(tenant)
            if flight is None:
                return await self._ask_for_all(tenant)
            await asyncio.wait([flight])  # unlike awaiting it, leaves the flight alone when we are cancelled
            answer = flight.result()
            if answer is not NOT_CACHED:
                return answer

    def invalidate(self, tenant: TenantKey | None = None) -> None:
        """Ask the store again before the next answer, for this tenant or for all.

        What was known still stands in while the store is away. An answer under way is given to those who wait for
        it already, but not kept.
        """
        if tenant is None:
            self._flights.clear()
            for entry in self._entries.values():
                entry.fresh_until = float("-inf")
            return
        self._flights.pop(tenant, None)
        if (known := self._entries.get(tenant)) is not None:
            known.fresh_until = float("-inf")

    def forget_absent(self) -> None:
        """Ask the store again about every tenant that had no webhook: the store may no longer be complete."""
        absent = [tenant for tenant, entry in self._entries.items() if entry.webhook is None]
        for tenant in absent:
            self.invalidate(tenant)

    def _raise_known_problem(self, tenant: TenantKey) -> None:
        entry = self._entries.get(tenant)
        if entry is not None and entry.problem and entry.fresh_until > self._clock():
            raise WebhookUnusable(entry.problem)

    async def _ask_for_all(self, tenant: TenantKey) -> Webhook | None:
        flight: asyncio.Future[_Answer] = asyncio.get_running_loop().create_future()
        self._flights[tenant] = flight
        try:
            webhook = await self._ask(tenant, flight)
        except Exception as error:
            flight.set_exception(error)
            flight.exception()  # there may be nobody else to see it
            raise
        except BaseException:
            flight.set_result(NOT_CACHED)  # cancelled: the next in line asks
            raise
        else:
            flight.set_result(webhook)
            return webhook
        finally:
            if self._flights.get(tenant) is flight:
                del self._flights[tenant]

    async def _ask(self, tenant: TenantKey, flight: asyncio.Future[_Answer]) -> Webhook | None:
        try:
            async with asyncio.timeout(STORE_TIMEOUT_S):
                webhook = await self._store.get(tenant)
        except (StoreUnavailable, TimeoutError) as error:
            metrics.STORE_FAILURES.inc()
            stale = self._entries.get(tenant)
            if stale is None:
                raise StoreUnavailable(f"the webhook store is away: {str(error) or 'no answer in time'}") from error
            metrics.STALE_ANSWERS.inc()
            self._keep(tenant, stale.webhook, STALE_PAUSE_S, stale.problem)
            self._raise_known_problem(tenant)
            return stale.webhook
        except WebhookUnusable as error:
            if self._flights.get(tenant) is flight:
                self._keep(tenant, None, self._settings.negative_ttl, str(error))
            raise
        if self._flights.get(tenant) is flight:  # else invalidated meanwhile: this answer may be the old one
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
