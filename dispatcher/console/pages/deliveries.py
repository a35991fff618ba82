"""Pages of the latest attempts, of one webhook or of all."""

import heapq
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal, cast
from urllib.parse import urlencode

from aiohttp import web

from dispatcher.console.model import AttemptModel, AttemptQuery
from dispatcher.console.pages.known_values import raise_if_unknown
from dispatcher.console.pages.renderer import MAX_TENANTS, Renderer, to
from dispatcher.console.pages.scope import Scope
from dispatcher.console.pages.search import history_of, history_of_scope
from dispatcher.console.pages.time_range import with_offsets
from dispatcher.console.services import person_of
from dispatcher.console.webhook_state import state_of
from dispatcher.stores.sql.records import StoredWebhook

PAGE: Final = 50
OutcomeFilter = Literal["delivered", "failed", "dead"]
_OUTCOMES: Final = ("delivered", "failed", "dead")


@dataclass(frozen=True, slots=True)
class DeliveryRow:
    """An attempt and its webhook."""

    attempt: AttemptModel
    webhook: StoredWebhook


def add_to(app: web.Application, renderer: Renderer) -> None:
    """Adds this module's routes to the console."""
    pages = DeliveriesPage(renderer)
    app.router.add_get("/deliveries", pages.of_all)
    app.router.add_get("/webhooks/{webhook_id}/deliveries", pages.of_webhook)


class DeliveriesPage:
    """Serves the latest attempts of one webhook, or of all."""

    def __init__(self, renderer: Renderer) -> None:
        self._renderer = renderer

    async def of_all(self, request: web.Request) -> web.StreamResponse:
        person = person_of(request)
        lookup = self._renderer.services.history
        webhooks = await self._renderer.webhooks(person, Scope.of(request, person))
        if lookup is not None:
            if (address := with_offsets(request)) is not None:
                return to(address)
            if len(webhooks) == 1:
                found = await history_of(self._renderer, request, webhooks[0])
            else:
                found = await history_of_scope(self._renderer, request, lookup, webhooks)
            return await self._renderer.page(request, "history.html", at="deliveries", status=found.status, found=found)
        query = _query(request)
        if len(webhooks) != 1:  # a cursor belongs to one tenant: of several tenants only the newest attempts are shown
            query = AttemptQuery(query.event_id, query.outcome, limit=PAGE)
        pages = {webhook.id: self._renderer.services.attempts.search(webhook.tenant, query) for webhook in webhooks}
        lines = [DeliveryRow(attempt, webhook) for webhook in webhooks for attempt in pages[webhook.id].items]
        lines = heapq.nlargest(PAGE, lines, key=lambda line: line.attempt.at)
        following = pages[webhooks[0].id].next if len(webhooks) == 1 else None
        return await self._renderer.page(
            request,
            "deliveries.html",
            at="deliveries",
            lines=lines,
            query=query,
            older=_older(request, following),
            is_cut=len(webhooks) > 1 and len(lines) == PAGE,
            is_partial=len(webhooks) == MAX_TENANTS,
            problem=self._renderer.services.attempts.problem,
        )

    async def of_webhook(self, request: web.Request) -> web.StreamResponse:
        webhook = await self._renderer.webhook(request)
        if self._renderer.services.history is not None:
            if (address := with_offsets(request)) is not None:
                return to(address)
            found = await history_of(self._renderer, request, webhook)
            return await self._renderer.page(
                request,
                "webhook_history.html",
                at="webhooks",
                tab="deliveries",
                status=found.status,
                webhook=webhook,
                webhook_state=await state_of(self._renderer.services, webhook),
                found=found,
            )
        query = _query(request)
        page = self._renderer.services.attempts.search(webhook.tenant, query)
        return await self._renderer.page(
            request,
            "webhook_deliveries.html",
            at="webhooks",
            tab="deliveries",
            webhook=webhook,
            webhook_state=await state_of(self._renderer.services, webhook),
            lines=[DeliveryRow(attempt, webhook) for attempt in page.items],
            query=query,
            older=_older(request, page.next),
            problem=self._renderer.services.attempts.problem,
        )


def _query(request: web.Request) -> AttemptQuery:
    outcome = request.query.get("outcome", "")
    raise_if_unknown("outcome", outcome, _OUTCOMES)
    return AttemptQuery(
        event_id=request.query.get("event", "").strip()[:256] or None,
        outcome=cast(OutcomeFilter, outcome) if outcome else None,
        before=request.query.get("before", "")[:200] or None,
        limit=PAGE,
    )


def _older(request: web.Request, cursor: str | None) -> str | None:
    """Returns the URL of the next page."""
    if cursor is None:
        return None
    given: Mapping[str, str] = {key: value for key, value in request.query.items() if key in ("event", "outcome")}
    return f"{request.path}?{urlencode({**given, 'before': cursor})}"
