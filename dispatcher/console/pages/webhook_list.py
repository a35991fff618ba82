"""The list of webhooks with their states."""

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Final, Literal, cast, get_args
from urllib.parse import urlencode

from aiohttp import web

from dispatcher.config.webhooks import Channel
from dispatcher.console.model import Person, State
from dispatcher.console.pages.charts import Chart, sparkline_of
from dispatcher.console.pages.known_values import raise_if_unknown
from dispatcher.console.pages.renderer import MAX_TENANTS, Renderer
from dispatcher.console.pages.scope import Scope
from dispatcher.console.pages.skipped import Skipped, skipped_lately
from dispatcher.console.request_body import number_in
from dispatcher.console.services import person_of
from dispatcher.console.sources.attempt_counts import SPANS
from dispatcher.console.webhook_state import WINDOW_S, ListedState, WebhookState, list_reports, list_states, state_of
from dispatcher.contract.tenant import TenantKey
from dispatcher.errors import DispatcherError
from dispatcher.stores.sql.history_seen import SeenTenant
from dispatcher.stores.sql.records import StoredWebhook, WebhookQuery

PAGE: Final = 25
MAX_PAGE_NUMBER: Final = 99_999
MAX_SEEN: Final = 20
"""Tenants without a webhook that are listed."""
Sort = Literal["name", "tenant", "state", "last", "delivered", "waiting", "dead"]
_MOST_FIRST: Final = frozenset[Sort]({"delivered", "waiting", "dead"})
_WORST_FIRST: Final = ("disabled", "failing", "unstable", "trouble", "unknown", "active", "paused", "off")


@dataclass(frozen=True, slots=True)
class WebhookFilter:
    """The chosen filters and order."""

    text: str = ""
    state: State | None = None
    channel: Channel | None = None
    sort: Sort = "name"
    descending: bool = False
    page: int = 1

    @classmethod
    def of(cls, request: web.Request) -> "WebhookFilter":
        """Reads the filters of the query; ignores an invalid order. Raises ApiError if a value is unknown."""
        query = request.query
        state, channel, sort, page = (query.get(name, "") for name in ("state", "channel", "sort", "page"))
        raise_if_unknown("state", state, get_args(State))
        raise_if_unknown("channel", channel, tuple(Channel))
        return cls(
            query.get("q", "").strip()[:200],
            cast(State, state) if state else None,
            Channel(channel) if channel else None,
            cast(Sort, sort) if sort in get_args(Sort) else "name",
            {"up": False, "down": True}.get(query.get("order", ""), sort in _MOST_FIRST),
            number_in(page, MAX_PAGE_NUMBER) or 1,
        )

    @property
    def is_filtered(self) -> bool:
        return bool(self.text or self.state or self.channel)

    @property
    def order(self) -> str:
        """The URL's parameter; empty for the column's default order."""
        return "" if self.descending == (self.sort in _MOST_FIRST) else "down" if self.descending else "up"

    def sorted_by(self, sort: Sort) -> str:
        """Returns the URL of the list sorted by a column, in reverse if it is sorted by that already."""
        descending = not self.descending if sort == self.sort else sort in _MOST_FIRST
        return replace(self, sort=sort, descending=descending, page=1).link

    def at_page(self, page: int) -> str:
        return replace(self, page=page).link

    @property
    def link(self) -> str:
        given = {
            "q": self.text,
            "state": self.state or "",
            "channel": self.channel or "",
            "sort": "" if self.sort == "name" else self.sort,
            "order": self.order,
            "page": "" if self.page == 1 else str(self.page),
        }
        return "/?" + urlencode({name: value for name, value in given.items() if value})


@dataclass(frozen=True, slots=True)
class WebhookRow:
    """A row of the list."""

    webhook: StoredWebhook
    webhook_state: WebhookState
    spark: Chart
    host: str
    skipped: Sequence[Skipped] | None
    """Events of the last 24 hours that were skipped, by reason; None without a history store."""
    delivered: int
    """Deliveries of the last 24 hours, each one of an event that was sent again: by the history store if the list is
    sorted by it."""


@dataclass(frozen=True, slots=True)
class ListResult:
    """The webhooks that match the filters."""

    lines: Sequence[WebhookRow]
    total: int
    is_partial: bool = False
    """True if only the first `MAX_TENANTS` were searched."""


def add_to(app: web.Application, renderer: Renderer) -> None:
    """Adds this module's routes to the console."""
    app.router.add_get("/", WebhookListPage(renderer).show)


class WebhookListPage:
    """Handler of the page."""

    def __init__(self, renderer: Renderer) -> None:
        self._renderer = renderer

    async def show(self, request: web.Request) -> web.StreamResponse:
        person, wanted = person_of(request), WebhookFilter.of(request)
        scope = Scope.of(request, person)
        found = await self._find(person, scope, wanted)
        pages = max(1, -(-found.total // PAGE))
        if wanted.page > pages:  # webhooks were deleted, or the address is typed
            wanted = replace(wanted, page=pages)
            found = await self._find(person, scope, wanted)
        existing = None
        if scope.tenant is not None:
            existing = await self._renderer.services.webhooks.of_tenant(scope.tenant, orgs=person.orgs)
        return await self._renderer.page(
            request,
            "inventory.html",
            at="webhooks",
            found=found,
            wanted=wanted,
            pages=pages,
            existing=existing,
            has_history=self._renderer.services.history is not None,
            seen=await self._seen(person, scope),
            problem=self._renderer.services.attempts.problem,
        )

    async def _find(self, person: Person, scope: Scope, wanted: WebhookFilter) -> ListResult:
        query = WebhookQuery(
            text=wanted.text,
            channel=wanted.channel,
            enabled=None if wanted.state is None else wanted.state != "off",
            paused=None if wanted.state in (None, "off") else wanted.state == "paused",
            org=scope.org,
            sandbox=scope.sandbox,
            sort="tenant" if wanted.sort == "tenant" else "name",
        )
        if wanted.state in (None, "paused", "off"):
            page = await self._sorted_by_database(person, scope, wanted, query)
            if page is not None:
                return page
        found = await self._renderer.services.webhooks.list_all(query, orgs=person.orgs)
        reports = await list_reports(self._renderer.services, found)
        needs_states, is_partial = wanted.state is not None or wanted.sort == "state", False
        if reports is None and needs_states:  # each tenant's state is then read by itself
            is_partial, found = len(found) > MAX_TENANTS, found[:MAX_TENANTS]
        with_number = wanted.sort if wanted.sort in ("delivered", "waiting", "dead") else None
        listed = await list_states(self._renderer.services, found, reports, with_number, with_lanes=needs_states)
        if wanted.state is not None:
            listed = [one for one in listed if one.state == wanted.state]
        listed.sort(key=_KEYS[wanted.sort], reverse=wanted.descending)
        begin = (wanted.page - 1) * PAGE
        ids = [one.webhook.id for one in listed[begin : begin + PAGE]]
        shown = await self._renderer.services.webhooks.get_all(ids, orgs=person.orgs)
        return ListResult(await self._lines(shown), len(listed), is_partial)

    async def _sorted_by_database(
        self, person: Person, scope: Scope, wanted: WebhookFilter, query: WebhookQuery
    ) -> ListResult | None:
        """Returns the page of a list that the database can sort; None if it doesn't have what it is sorted by."""
        numbers = None
        if wanted.sort == "delivered":
            numbers = await self._delivered(person, scope)
        if numbers is None and wanted.sort not in ("name", "tenant"):
            return None
        begin = (wanted.page - 1) * PAGE
        query = replace(query, descending=wanted.descending, offset=begin, limit=PAGE)
        page = await self._renderer.services.webhooks.search(query, orgs=person.orgs, numbers=numbers)
        return ListResult(await self._lines(page.items, numbers), page.total)

    async def _delivered(self, person: Person, scope: Scope) -> Mapping[TenantKey, int] | None:
        """Returns the deliveries of the last 24 hours by tenant; None if the history store doesn't have them."""
        lookup = self._renderer.services.history
        if lookup is None:
            return None
        slots, slot_s = SPANS["24h"]
        since = (time.time() // slot_s - slots + 1) * slot_s
        with suppress(DispatcherError):  # the readiness probe and the operator's log report the database
            return await lookup.delivered(since, orgs=scope.orgs(person))
        return None

    async def _lines(
        self, webhooks: Sequence[StoredWebhook], delivered: Mapping[TenantKey, int] | None = None
    ) -> list[WebhookRow]:
        lines = await asyncio.gather(*map(self._line, webhooks))
        if delivered is None:
            return list(lines)
        return [replace(line, delivered=delivered.get(line.webhook.tenant, 0)) for line in lines]

    async def _line(self, webhook: StoredWebhook) -> WebhookRow:
        services = self._renderer.services
        webhook_state, skipped = await asyncio.gather(
            state_of(services, webhook), skipped_lately(services, webhook.tenant, "24h")
        )
        outcomes = webhook_state.outcomes
        return WebhookRow(webhook, webhook_state, sparkline_of(outcomes), webhook.host, skipped, outcomes.delivered)

    async def _seen(self, person: Person, scope: Scope) -> list[SeenTenant] | None:
        """Returns tenants of the scope whose events are skipped because they have no webhook; None if unknown."""
        lookup = self._renderer.services.history
        if lookup is None:
            return []
        try:
            found = await lookup.seen_without_webhook(time.time() - WINDOW_S["7d"], orgs=scope.orgs(person))
        except DispatcherError:
            return None
        seen = [one for one in found if scope.sandbox in (None, one.tenant.sandbox)]
        existing = await self._renderer.services.webhooks.list_tenants([one.tenant for one in seen], orgs=person.orgs)
        return [one for one in seen if one.tenant not in existing][:MAX_SEEN]


def _severity(listed: ListedState) -> int:
    return _WORST_FIRST.index("trouble" if listed.state == "active" and listed.is_failing else listed.state)


_KEYS: Final[dict[Sort, Callable[[ListedState], tuple[object, ...]]]] = {
    "name": lambda listed: (listed.webhook.name.casefold(),),
    "tenant": lambda listed: tuple(listed.webhook.tenant),
    "state": lambda listed: (_severity(listed),),
    "last": lambda listed: (listed.last_delivery or 0.0,),
    "delivered": lambda listed: (listed.number,),
    "waiting": lambda listed: (listed.number,),
    "dead": lambda listed: (listed.number,),
}
