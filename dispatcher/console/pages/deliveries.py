"""What was sent: attempts of one webhook or all, and everything about one event."""

import heapq
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal, cast
from urllib.parse import urlencode

from aiohttp import web

from dispatcher.console.facts import AttemptFact, AttemptQuery
from dispatcher.console.pages import decisions
from dispatcher.console.pages.scope import Scope
from dispatcher.console.pages.site import MAX_TENANTS, Site
from dispatcher.console.pages.standing import standing_of
from dispatcher.console.parts import person_of
from dispatcher.console.sources.words import cure
from dispatcher.errors import ConfigError, DispatcherError
from dispatcher.stores.sql.records import StoredWebhook

PAGE: Final = 50
Outcome = Literal["delivered", "failed", "dead"]
_OUTCOMES: Final = ("delivered", "failed", "dead")


@dataclass(frozen=True, slots=True)
class Line:
    """An attempt, and whose."""

    fact: AttemptFact
    webhook: StoredWebhook


def add_to(app: web.Application, site: Site) -> None:
    """Add the routes."""
    pages = Deliveries(site)
    app.router.add_get("/deliveries", pages.of_all)
    app.router.add_get("/webhooks/{webhook_id}/deliveries", pages.of_webhook)
    app.router.add_get("/webhooks/{webhook_id}/deliveries/{event_id}", pages.of_event)


class Deliveries:
    """The handlers."""

    def __init__(self, site: Site) -> None:
        self._site = site

    async def of_all(self, request: web.Request) -> web.StreamResponse:
        person = person_of(request)
        webhooks = await self._site.webhooks(person, Scope.of(request, person))
        query = _query(request)
        if len(webhooks) != 1:  # cursors are of one tenant: over several the newest are shown
            query = AttemptQuery(query.event_id, query.outcome, limit=PAGE)
        pages = {webhook.id: self._site.parts.attempts.search(webhook.tenant, query) for webhook in webhooks}
        lines = [Line(fact, webhook) for webhook in webhooks for fact in pages[webhook.id].items]
        lines = heapq.nlargest(PAGE, lines, key=lambda line: line.fact.at)
        following = pages[webhooks[0].id].next if len(webhooks) == 1 else None
        return await self._site.page(
            request,
            "deliveries.html",
            at="deliveries",
            lines=lines,
            query=query,
            older=_older(request, following),
            is_cut=len(webhooks) > 1 and len(lines) == PAGE,
            is_partial=len(webhooks) == MAX_TENANTS,
            problem=self._site.parts.attempts.problem,
        )

    async def of_webhook(self, request: web.Request) -> web.StreamResponse:
        webhook = await self._site.webhook(request)
        query = _query(request)
        page = self._site.parts.attempts.search(webhook.tenant, query)
        return await self._site.page(
            request,
            "webhook_deliveries.html",
            at="webhooks",
            tab="deliveries",
            webhook=webhook,
            standing=await standing_of(self._site.parts, webhook),
            lines=[Line(fact, webhook) for fact in page.items],
            query=query,
            older=_older(request, page.next),
            problem=self._site.parts.attempts.problem,
        )

    async def of_event(self, request: web.Request) -> web.StreamResponse:
        webhook = await self._site.webhook(request)
        event_id = request.match_info["event_id"]
        query = AttemptQuery(event_id=event_id, limit=200)
        facts = sorted(self._site.parts.attempts.search(webhook.tenant, query).items, key=lambda fact: fact.at)
        decision: decisions.Decision | None = None
        problem = ""
        origin = next((fact.origin for fact in reversed(facts) if fact.origin is not None), None)
        if "explain" in request.query and origin is not None:
            settings = self._site.parts.settings
            try:
                decision = await decisions.decision_on(
                    origin, webhook, settings, time.time(), event_id, shows_people=person_of(request).is_admin
                )
            except DispatcherError as error:
                problem = error.for_tenants
        return await self._site.page(
            request,
            "event.html",
            at="webhooks",
            status=200 if facts else 404,
            webhook=webhook,
            event_id=event_id,
            facts=facts,
            next_step=await self._next_step(webhook, facts),
            what_to_do=_cure(webhook, facts),
            can_explain=origin is not None,
            decision=decision,
            problem=problem,
        )

    async def _next_step(self, webhook: StoredWebhook, facts: Sequence[AttemptFact]) -> str:
        if not facts:
            return ""
        match facts[-1].verdict:
            case "delivered":
                return "Nothing more happens: your server took the event."
            case "dead":
                return "Nothing more happens by itself: it is among the dead events, from where it can be sent again."
            case "suspend":
                return "It waits until the webhook is edited or reactivated; then it is tried again."
        standing = await standing_of(self._site.parts, webhook)
        if standing.is_stopped:
            return "It waits: sending is stopped until the webhook is edited or reactivated."
        due = min((tier.next_due for tier in standing.tiers or () if tier.next_due is not None), default=None)
        wait = "" if due is None else f" The webhook's next waiting event is due in {max(0, due - time.time()):.0f} s."
        return f"It is tried again, at growing intervals, until it is too old.{wait}"


def _query(request: web.Request) -> AttemptQuery:
    outcome = request.query.get("outcome", "")
    return AttemptQuery(
        event_id=request.query.get("event", "").strip()[:200] or None,
        outcome=cast(Outcome, outcome) if outcome in _OUTCOMES else None,
        before=request.query.get("before", "")[:200] or None,
        limit=PAGE,
    )


def _older(request: web.Request, cursor: str | None) -> str | None:
    """The address of the next page."""
    if cursor is None:
        return None
    given: Mapping[str, str] = {key: value for key, value in request.query.items() if key in ("event", "outcome")}
    return f"{request.path}?{urlencode({**given, 'before': cursor})}"


def _cure(webhook: StoredWebhook, facts: Sequence[AttemptFact]) -> str:
    if not facts or facts[-1].verdict == "delivered":
        return ""
    last = facts[-1]
    try:
        return cure(last.reason, last.status, last.detail, webhook.config())
    except ConfigError:  # of another version of this program
        return last.detail
