"""The page of one event of a tenant that has no webhook, or none any more: what the history store has of it."""

import time
from typing import Final
from urllib.parse import quote

from aiohttp import web

from dispatcher.console.pages.events import KnownEvent
from dispatcher.console.pages.renderer import Renderer, to
from dispatcher.console.services import person_of
from dispatcher.contract.history import HistoryOutcome
from dispatcher.contract.tenant import TenantKey
from dispatcher.errors import NotFound
from dispatcher.history.timeline import forgotten_end, remedy_of

_NEXT: Final = {
    HistoryOutcome.DELIVERED: "Nothing more happens: the server took the event.",
    HistoryOutcome.SKIPPED: "Nothing more happens: events like this one are not sent.",
    HistoryOutcome.DEAD: "Nothing more happens by itself: it is among the dead events.",
}
_WAITS: Final = "Unless there is a webhook by then, it is skipped once it is due."


def add_to(app: web.Application, renderer: Renderer) -> None:
    """Adds this module's routes to the console."""
    app.router.add_get("/events/{event_id}", TenantEventPage(renderer).show)


class TenantEventPage:
    """Handler of the page."""

    def __init__(self, renderer: Renderer) -> None:
        self._renderer = renderer

    async def show(self, request: web.Request) -> web.StreamResponse:
        """Shows the timeline; redirects to the webhook's page of the event if the tenant has a webhook.

        Raises:
            NotFound: the history has nothing of this event, or it is of an organisation that the person may not see.
        """
        services, person, event_id = self._renderer.services, person_of(request), request.match_info["event_id"]
        tenant = TenantKey(request.query.get("org", ""), request.query.get("sandbox", ""))
        webhook = await services.webhooks.of_tenant(tenant, orgs=person.orgs)
        if webhook is not None:
            return to(f"/webhooks/{webhook.id}/deliveries/{quote(event_id, safe='')}")
        is_allowed = person.orgs is None or tenant.org in person.orgs
        found = None
        if services.history is not None and is_allowed:
            found = await services.history.timeline(event_id, tenant=tenant)
        if found is None or not found.entries:
            raise NotFound("nothing is known about this event")
        last, outcome = found.entries[-1], KnownEvent((), None, found.entries).outcome
        forgotten = forgotten_end(found.entries, services.settings.history.keep, time.time())
        return await self._renderer.page(
            request,
            "tenant_event.html",
            at="deliveries",
            event_id=event_id,
            tenant=tenant,
            history=found.entries,
            is_cut=found.is_cut,
            deleted=await services.webhooks.last_deleted(tenant, orgs=person.orgs),
            forgotten=forgotten,
            next_step=forgotten or _NEXT.get(outcome or last.outcome, _WAITS),
            remedy=remedy_of(last.outcome, last.reason),
            problem=None if services.history is None else await services.history.problem(),
        )
