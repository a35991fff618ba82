"""The search field of the top bar, and the lists of what happened: of any message, of one webhook, of all in scope."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final
from urllib.parse import urlencode

from aiohttp import web

from dispatcher.console.model import Person
from dispatcher.console.pages.known_values import too_many_words, unknown_value
from dispatcher.console.pages.renderer import Renderer, to
from dispatcher.console.pages.scope import Scope
from dispatcher.console.pages.seen import campaigns_of
from dispatcher.console.pages.time_range import TimeRange, with_offsets
from dispatcher.console.request_body import form_body, words_in
from dispatcher.console.services import person_of
from dispatcher.console.sources.history import HistoryLookup, is_address, with_text
from dispatcher.contract.history import HistoryEntry, HistoryOutcome
from dispatcher.contract.search_text import MAX_TYPED, has_several_addresses, readings, recipient_hash_in
from dispatcher.contract.tenant import TenantKey
from dispatcher.stores.sql.history_search import HistoryQuery
from dispatcher.stores.sql.records import ListedWebhook, StoredWebhook

PAGE: Final = 50
MAX_HASHES: Final = 6
FILTERS: Final = ("q", "range", "since", "until", "outcome", "reason", "status", "channel", "campaign", "recipient")
RESENT: Final = ("reason", "status", "channel", "campaign")
"""The filters by which events are sent again, too."""


@dataclass(frozen=True, slots=True)
class Filters:
    """The filters as typed; the URL holds them."""

    q: str = ""
    range: str = ""
    since: str = ""
    until: str = ""
    outcome: str = ""
    reason: str = ""
    status: str = ""
    channel: str = ""
    campaign: str = ""
    recipient: str = ""
    """The hashes of a recipient, at most `MAX_HASHES`: URLs contain no address."""

    @classmethod
    def of(cls, request: web.Request) -> "Filters":
        """Reads the filters of the query; cuts each to `MAX_TYPED` characters."""
        return cls(**{name: request.query.get(name, "").strip()[:MAX_TYPED] for name in FILTERS})

    @property
    def is_empty(self) -> bool:
        return self == Filters()

    @property
    def time(self) -> TimeRange:
        return TimeRange(self.range, self.since, self.until)

    @property
    def problem(self) -> str:
        """A sentence about a filter that can't be meant; empty if there is none."""
        return (
            self.time.problem
            or too_many_words(reason=self.reason, status=self.status, channel=self.channel)
            or unknown_value("outcome", [self.outcome], tuple(HistoryOutcome))
        )

    def query(self, now: float, tenant: TenantKey | None, lookup: HistoryLookup, before: str | None) -> HistoryQuery:
        """Returns the query for the store, if the filters have no problem."""
        query = HistoryQuery(
            tenant=tenant,
            recipients=tuple(filter(None, self.recipient.split(",")[:MAX_HASHES])),
            campaign_id=self.campaign or None,
            since=self.time.begin(now),
            until=self.time.end,
            outcomes=frozenset({HistoryOutcome(self.outcome)} if self.outcome else ()),
            reasons=words_in(self.reason),
            message_statuses=words_in(self.status),
            channels=words_in(self.channel),
            before=before,
            limit=PAGE,
        )
        return with_text(query, self.q, lookup) if self.q else query

    @property
    def resend(self) -> str | None:
        """The query that sends again what these filters select; None if that can't be sent again by time."""
        if self.q or self.recipient or self.outcome not in ("", "delivered", "dead"):
            return None
        filters = [(name, value) for name in RESENT if (value := getattr(self, name))]
        include = [("include", self.outcome)] if self.outcome else []
        return urlencode([*self.time.fields(), *filters, *include])

    def address(self, path: str, **changes: str) -> str:
        """Returns the URL of the same filters, with changes."""
        given: Mapping[str, str] = {name: getattr(self, name) for name in FILTERS if getattr(self, name)}
        return f"{path}?{urlencode({**given, **changes})}"


@dataclass(frozen=True, slots=True)
class SearchResult:
    """An entry, and the webhook of its tenant if there is one."""

    entry: HistoryEntry
    webhook: StoredWebhook | ListedWebhook | None


def add_to(app: web.Application, renderer: Renderer) -> None:
    """Adds this module's routes to the console."""
    pages = Search(renderer)
    app.router.add_get("/search", pages.show)
    app.router.add_post("/search", pages.submit)


class Search:
    """Serves the search field and its results."""

    def __init__(self, renderer: Renderer) -> None:
        self._renderer = renderer

    async def submit(self, request: web.Request) -> web.StreamResponse:
        """Redirects to the results.

        An address is hashed first, to keep it out of URLs, logs and the browser's history. If it can't be hashed, it is
        left out. A text that looks like an address counts as an id if an event has it as its id. A recipient's hash is
        found, too, and may be an id. What isn't known is shown as it was typed.
        """
        lookup, text = self._renderer.services.history, str((await form_body(request)).get("q", ""))[:MAX_TYPED]
        if has_several_addresses(text):
            return to("/search?address=several")
        typed, hashed, orgs = readings(text), recipient_hash_in(text), person_of(request).orgs
        may_be_address = any(map(is_address, typed))
        found: dict[str, str] = {}
        if lookup is not None and (may_be_address or len(typed) > 1):
            known = await lookup.known_id(text, orgs=orgs)
            found |= {"q": known} if known else {}
        if lookup is not None and may_be_address and (hashes := lookup.hashes(text)):
            found["recipient"] = ",".join(hashes[:MAX_HASHES])
        elif lookup is not None and hashed is not None and await lookup.has_recipient(hashed, orgs=orgs):
            found["recipient"] = hashed
        unknown = {"address": "1"} if may_be_address else {"q": typed[0][:MAX_TYPED] if typed else ""}
        return to("/search?" + urlencode(found or unknown))

    async def show(self, request: web.Request) -> web.StreamResponse:
        """Shows the history of the messages that have the typed id."""
        if (address := with_offsets(request)) is not None:
            return to(address)
        person, lookup, filters = person_of(request), self._renderer.services.history, Filters.of(request)
        rows: list[SearchResult] = []
        older, problem, status = None, "", 200
        if lookup is None:
            problem = "There is no history store: the operator sets history.url in the settings"
        elif request.query.get("address") == "several":
            problem = "Search for one address at a time"
        elif "address" in request.query:
            problem = "Messages can't be found by address: the operator sets history.recipient_key in the settings"
        elif filters.problem:
            status, problem = 422, filters.problem
        elif filters.q or filters.recipient or filters.campaign:
            before = request.query.get("before") or None
            page = await lookup.search(filters.query(_now(), None, lookup, before), orgs=person.orgs)
            rows = await _rows(self._renderer, page.items, person)
            older = None if page.next is None else filters.address("/search", before=page.next)
            problem = await lookup.problem() or ""
        return await self._renderer.page(
            request, "search.html", at="deliveries", status=status, rows=rows, filters=filters, older=older,
            problem=problem,
        )  # fmt: skip


async def _rows(
    renderer: Renderer, entries: Iterable[HistoryEntry], person: Person, known: Iterable[StoredWebhook] = ()
) -> list[SearchResult]:
    """Returns the entries with the webhooks of their tenants. Only those that aren't `known` are looked up."""
    with_tenant = [
        (entry, TenantKey(entry.org, entry.sandbox) if entry.org and entry.sandbox else None) for entry in entries
    ]
    webhooks: dict[TenantKey, StoredWebhook | ListedWebhook] = {one.tenant: one for one in known}
    others = {tenant for _, tenant in with_tenant if tenant is not None and tenant not in webhooks}
    if others:
        webhooks |= await renderer.services.webhooks.list_tenants(others, orgs=person.orgs)
    return [SearchResult(entry, None if tenant is None else webhooks.get(tenant)) for entry, tenant in with_tenant]


@dataclass(frozen=True, slots=True)
class HistoryList:
    """A page of the history of one webhook, or of all in a scope."""

    rows: list[SearchResult]
    filters: Filters
    older: str | None
    """The address of the next page."""
    problem: str | None
    """Why entries may be missing."""
    webhook: StoredWebhook | None = None
    """The one that the page is about, whose events can be sent again; None for a scope."""
    campaigns: tuple[str, ...] = ()
    """Those that the webhook's events had lately."""

    @property
    def status(self) -> int:
        """HTTP status of the page: 422 if a filter can't be read."""
        return 422 if self.filters.problem else 200


async def history_of(renderer: Renderer, request: web.Request, webhook: StoredWebhook) -> HistoryList:
    """Returns one webhook's history by the request's filters."""
    lookup, filters = renderer.services.history, Filters.of(request)
    if lookup is None or filters.problem:
        return HistoryList([], filters, None, None)
    query = filters.query(_now(), webhook.tenant, lookup, request.query.get("before") or None)
    page = await lookup.search(query, orgs=person_of(request).orgs)
    older = None if page.next is None else filters.address(request.path, before=page.next)
    rows = [SearchResult(entry, webhook) for entry in page.items]
    campaigns = await campaigns_of(renderer.services, webhook.tenant)
    return HistoryList(rows, filters, older, await lookup.problem(), webhook, campaigns)


async def history_of_scope(
    renderer: Renderer, request: web.Request, lookup: HistoryLookup, webhooks: Sequence[StoredWebhook]
) -> HistoryList:
    """Returns the history of all tenants in the request's scope by its filters. `webhooks`: those in the scope."""
    person, filters = person_of(request), Filters.of(request)
    if filters.problem:
        return HistoryList([], filters, None, None)
    scope = Scope.of(request, person)
    orgs = scope.orgs(person)
    query = filters.query(_now(), scope.tenant, lookup, request.query.get("before") or None)
    if scope.tenant is not None or query.any_id is not None or query.recipients or query.campaign_id is not None:
        page = await lookup.search(query, orgs=orgs)
    else:
        page = await lookup.search_scope(query, [webhook.tenant for webhook in webhooks], orgs=orgs)
    older = None if page.next is None else filters.address(request.path, before=page.next)
    return HistoryList(await _rows(renderer, page.items, person, webhooks), filters, older, await lookup.problem())


def _now() -> float:
    return datetime.now(UTC).timestamp()
