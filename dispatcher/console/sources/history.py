"""Queries the history store for the API and the pages."""

from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import replace
from typing import Final

from dispatcher.config.secrets import Secret
from dispatcher.contract.recipient import recipient_hashes
from dispatcher.contract.records import Origin
from dispatcher.contract.tenant import TenantKey
from dispatcher.stores.sql.history_ids import find_known_id, with_known_ids
from dispatcher.stores.sql.history_search import (
    MAX_TENANTS,
    HistoryCount,
    HistoryPage,
    HistoryQuery,
    HistorySearch,
    HistoryTimeline,
    SlotCount,
)
from dispatcher.stores.sql.history_seen import SeenTenant
from dispatcher.stores.sql.history_states import StateReport, TenantStates
from dispatcher.stores.sql.history_store import HistoryStore
from dispatcher.stores.sql.records import Orgs

_FEWEST_DIGITS: Final = 5
"""Of a telephone number, as `normalised_address` reads one."""


class HistoryLookup:
    """The history store as the console uses it."""

    def __init__(
        self,
        search: HistorySearch,
        store: HistoryStore,
        recipient_key: Secret | None,
        states: TenantStates,
        problem: Callable[[], Awaitable[str | None]] | None = None,
    ) -> None:
        """Creates the lookup without reading. `problem` returns why the store may lack the newest entries."""
        self._search = search
        self._store = store
        self._key = recipient_key
        self._states = states
        self._problem = problem

    async def problem(self) -> str | None:
        """Returns why entries may be missing, in words for tenants; None if none are."""
        return None if self._problem is None else await self._problem()

    def hashes(self, address: str) -> tuple[str, ...]:
        """Returns the hashes under which a recipient's entries are stored; none without a key."""
        return () if self._key is None else recipient_hashes(self._key.reveal(), address)

    async def search(self, query: HistoryQuery, *, orgs: Orgs) -> HistoryPage:
        """Searches the store as `HistorySearch.search` does; id and campaign may be written as people paste them."""
        return await self._search.search(await with_known_ids(self._search, query, orgs=orgs), orgs=orgs)

    async def search_exactly(self, query: HistoryQuery, *, orgs: Orgs) -> HistoryPage:
        """Searches the store for id and campaign as they are given, as `HistorySearch.search` does."""
        return await self._search.search(query, orgs=orgs)

    async def known_campaign(self, text: str, *, tenant: TenantKey) -> str | None:
        """Returns the first reading of what was typed that is a campaign of the tenant, as `find_known_id` does."""
        return await find_known_id(
            self._search, text, orgs=frozenset({tenant.org}), tenant=tenant, id_field="campaign_id"
        )

    async def known_id(self, text: str, *, orgs: Orgs) -> str | None:
        """Returns the first reading of what was typed that is an id of an event, as `find_known_id` does."""
        return await find_known_id(self._search, text, orgs=orgs)

    async def has_recipient(self, hashed: str, *, orgs: Orgs) -> bool:
        """Returns True if entries of a recipient are kept; `hashed` is the recipient's hash."""
        return bool((await self._search.search(HistoryQuery(recipients=(hashed,), limit=1), orgs=orgs)).items)

    async def search_scope(self, query: HistoryQuery, tenants: Collection[TenantKey], *, orgs: Orgs) -> HistoryPage:
        """Searches the entries of these organisations, and of the tenants that are known to have a webhook.

        Tenants without one are added by their evidence. If there are more than `MAX_TENANTS`, or the organisations are
        all, the entries of all are searched.
        """
        if orgs is not None:
            every = {*tenants, *(await self._states.all(orgs=orgs))}
            if len(every) <= MAX_TENANTS:
                return await self._search.search_tenants(query, sorted(every), orgs=orgs)
        return await self._search.search_all(query, orgs=orgs)

    async def timeline(self, webhook_id: str, *, tenant: TenantKey) -> HistoryTimeline:
        """Returns what happened to one event of a tenant, see `HistorySearch.timeline`."""
        found = await self._search.timeline(webhook_id, orgs=frozenset({tenant.org}))
        own = tuple(one for one in found.entries if one.sandbox == tenant.sandbox)
        return HistoryTimeline(own, found.is_cut)

    async def counts(self, tenant: TenantKey, since: float, until: float) -> tuple[HistoryCount, ...]:
        """Counts events as `HistorySearch.counts` does."""
        return await self._search.counts(tenant, since, until)

    async def slots(self, tenant: TenantKey, since: float, until: float) -> tuple[SlotCount, ...]:
        """Counts events as `HistorySearch.slots` does."""
        return await self._search.slots(tenant, since, until)

    async def state(self, tenant: TenantKey) -> StateReport:
        """Returns the state of a tenant's webhook, judged by the attempts of all dispatchers (`TenantStates.of`)."""
        return await self._states.of(tenant)

    async def states(self, *, orgs: Orgs) -> dict[TenantKey, StateReport]:
        """Returns the states of all webhooks of these organisations (`TenantStates.all`)."""
        return await self._states.all(orgs=orgs)

    async def seen_without_webhook(self, since: float, *, orgs: Orgs) -> list[SeenTenant]:
        """Returns tenants that have events but no webhook, as `HistorySeen.without_webhook` does."""
        return await self._search.seen.without_webhook(since, orgs=orgs)

    async def delivered(self, since: float, *, orgs: Orgs) -> dict[TenantKey, int]:
        """Counts deliveries by tenant, as `HistorySeen.delivered` does."""
        return await self._search.seen.delivered(since, orgs=orgs)

    async def seen_campaigns(self, tenant: TenantKey) -> list[str]:
        """Returns campaigns that had events lately, as `HistorySeen.campaigns` does."""
        return await self._search.seen.campaigns(tenant)

    async def redriven(self, webhook_ids: Sequence[str], since: float) -> dict[Origin, float]:
        """Returns which events were sent again since then, as `HistorySeen.redriven` does."""
        return await self._search.seen.redriven(webhook_ids, since)

    async def erase(self, recipient: str) -> int:
        """Erases a person's entries as `HistoryStore.erase` does; `recipient` is the hash."""
        return await self._store.erase(recipient)


def is_address(text: str) -> bool:
    """Returns True if the text may have an e-mail address or be a telephone number, which must not appear in a URL.

    Any text with `@`, and any of digits, blanks and punctuation, however unusual these are.
    """
    digits = sum(char.isdigit() for char in text)
    return "@" in text or (digits >= _FEWEST_DIGITS and digits == sum(char.isalnum() for char in text))


def with_text(query: HistoryQuery, text: str, lookup: HistoryLookup) -> HistoryQuery:
    """Returns the query for what a person typed: any of an event's ids or, if it may be an address, a recipient.

    Ids may look like addresses: `4711081512`, `1234@host.example`. Then either matches.
    """
    text = text.strip()
    hashes = lookup.hashes(text) if is_address(text) else ()
    return replace(query, any_id=text, recipients=tuple(dict.fromkeys((*query.recipients, *hashes))))
