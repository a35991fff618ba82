"""The list of webhooks with their states."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal, cast, get_args
from urllib.parse import urlencode, urlsplit

from aiohttp import web

from dispatcher.config.webhooks import Channel
from dispatcher.console.model import Person, State
from dispatcher.console.pages.charts import Chart, sparkline_of
from dispatcher.console.pages.renderer import MAX_TENANTS, Renderer
from dispatcher.console.pages.scope import Scope
from dispatcher.console.services import person_of
from dispatcher.console.webhook_state import WebhookState, state_of
from dispatcher.stores.sql.records import StoredWebhook, WebhookQuery

PAGE: Final = 25
Sort = Literal["name", "tenant", "state", "last", "delivered", "waiting", "dead"]
_MOST_FIRST: Final = frozenset[Sort]({"delivered", "waiting", "dead"})
_WORST_FIRST: Final = ("disabled", "unstable", "failing", "active", "paused", "off")


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
        """Reads the filters of the query; ignores invalid ones."""
        query = request.query
        state, channel, sort, page = (query.get(name, "") for name in ("state", "channel", "sort", "page"))
        return cls(
            query.get("q", "").strip()[:200],
            cast(State, state) if state in get_args(State) else None,
            Channel(channel) if channel in list(Channel) else None,
            cast(Sort, sort) if sort in get_args(Sort) else "name",
            {"up": False, "down": True}.get(query.get("order", ""), sort in _MOST_FIRST),
            int(page) if page.isdecimal() and 1 <= int(page[:6]) < 100_000 else 1,
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


@dataclass(frozen=True, slots=True)
class ListResult:
    """The webhooks that match."""

    lines: Sequence[WebhookRow]
    total: int
    is_partial: bool = False
    """True if only the first `MAX_TENANTS` were searched: states are not in the database."""


def add_to(app: web.Application, renderer: Renderer) -> None:
    """Adds the routes."""
    app.router.add_get("/", WebhookListPage(renderer).show)


class WebhookListPage:
    """Handler of the page."""

    def __init__(self, renderer: Renderer) -> None:
        self._renderer = renderer

    async def show(self, request: web.Request) -> web.StreamResponse:
        person, wanted = person_of(request), WebhookFilter.of(request)
        scope = Scope.of(request, person)
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
            pages=max(1, -(-found.total // PAGE)),
            existing=existing,
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
        )
        if wanted.state in (None, "paused", "off") and (wanted.sort == "name" or wanted.sort == "tenant"):
            begin = (wanted.page - 1) * PAGE
            query = replace(query, sort=wanted.sort, descending=wanted.descending, offset=begin, limit=PAGE)
            page = await self._renderer.services.webhooks.search(query, orgs=person.orgs)
            return ListResult(await self._lines(page.items), page.total)
        page = await self._renderer.services.webhooks.search(replace(query, limit=MAX_TENANTS), orgs=person.orgs)
        lines = [line for line in await self._lines(page.items) if wanted.state in (None, line.webhook_state.state)]
        lines.sort(key=_KEYS[wanted.sort], reverse=wanted.descending)
        begin = (wanted.page - 1) * PAGE
        return ListResult(lines[begin : begin + PAGE], len(lines), is_partial=page.total > MAX_TENANTS)

    async def _lines(self, webhooks: Sequence[StoredWebhook]) -> list[WebhookRow]:
        return list(await asyncio.gather(*map(self._line, webhooks)))

    async def _line(self, webhook: StoredWebhook) -> WebhookRow:
        webhook_state = await state_of(self._renderer.services, webhook)
        return WebhookRow(
            webhook, webhook_state, sparkline_of(webhook_state.outcomes), urlsplit(webhook.url).hostname or ""
        )


def _severity(line: WebhookRow) -> int:
    webhook_state = line.webhook_state
    is_failing = webhook_state.state == "active" and webhook_state.failing is not None
    return _WORST_FIRST.index("failing" if is_failing else webhook_state.state)


_KEYS: Final[dict[Sort, Callable[[WebhookRow], tuple[object, ...]]]] = {
    "name": lambda line: (line.webhook.name.casefold(),),
    "tenant": lambda line: tuple(line.webhook.tenant),
    "state": lambda line: (_severity(line),),
    "last": lambda line: (line.webhook_state.last_delivery or 0.0,),
    "delivered": lambda line: (line.webhook_state.outcomes.delivered,),
    "waiting": lambda line: (line.webhook_state.waiting or 0,),
    "dead": lambda line: (line.webhook_state.dead,),
}
