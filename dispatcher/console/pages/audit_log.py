"""Pages of the audit log, of one webhook or of all."""

from collections.abc import Iterable
from typing import Final

from aiohttp import web

from dispatcher.console.pages.known_values import raise_if_unknown
from dispatcher.console.pages.renderer import Renderer
from dispatcher.console.pages.scope import Scope
from dispatcher.console.request_body import number_in
from dispatcher.console.services import person_of
from dispatcher.console.webhook_state import state_of
from dispatcher.errors import NotFound
from dispatcher.stores.sql.records import AuditAction, AuditEntry, AuditQuery, Orgs

PAGE: Final = 50
MOST_LOOKED_AT: Final = 1000
"""Entries that are searched for those of a scope; the next page continues there."""


def add_to(app: web.Application, renderer: Renderer) -> None:
    """Adds this module's routes to the console."""
    pages = AuditPages(renderer)
    app.router.add_get("/audit", pages.of_all)
    app.router.add_get("/webhooks/{webhook_id}/audit", pages.of_webhook)


class AuditPages:
    """Serves the audit log of one webhook, or of all."""

    def __init__(self, renderer: Renderer) -> None:
        self._renderer = renderer

    async def of_all(self, request: web.Request) -> web.StreamResponse:
        person = person_of(request)
        scope = Scope.of(request, person)
        orgs = scope.orgs(person)
        entries, older = await self._search(request, orgs, webhook_id=None, sandbox=scope.sandbox)
        return await self._renderer.page(
            request,
            "audit.html",
            at="audit",
            entries=entries,
            linked=await self._existing(entries, person.orgs),
            older=older,
            action=_action(request),
            webhook=None,
        )

    async def of_webhook(self, request: web.Request) -> web.StreamResponse:
        webhook = await self._renderer.webhook(request)
        orgs = person_of(request).orgs
        entries, older = await self._search(request, orgs, webhook_id=webhook.id, sandbox=None)
        return await self._renderer.page(
            request,
            "webhook_audit.html",
            at="webhooks",
            tab="audit",
            webhook=webhook,
            webhook_state=await state_of(self._renderer.services, webhook),
            entries=entries,
            older=older,
            action=_action(request),
        )

    async def _existing(self, entries: Iterable[AuditEntry], orgs: Orgs) -> set[str]:
        """Returns the ids of the entries' webhooks that are not deleted."""
        ids = list({one.webhook_id for one in entries if one.webhook_id is not None})
        return {one.id for one in await self._renderer.services.webhooks.get_all(ids, orgs=orgs)}

    async def _search(
        self, request: web.Request, orgs: Orgs, *, webhook_id: str | None, sandbox: str | None
    ) -> tuple[list[AuditEntry], int | None]:
        """Returns a page of lines, and the cursor of the next page."""
        cursor = request.query.get("before", "")
        before = number_in(cursor)
        if cursor and before is None:
            raise NotFound("there is no such page: begin at the first one")
        action = _action(request)
        found: list[AuditEntry] = []
        for _ in range(MOST_LOOKED_AT // PAGE):
            query = AuditQuery(webhook_id=webhook_id, action=action, before=before, limit=PAGE)
            entries = await self._renderer.services.audit.search(query, orgs=orgs)
            found += [one for one in entries if sandbox is None or (one.tenant and one.tenant.sandbox == sandbox)]
            before = entries[-1].id if len(entries) == PAGE else None
            if before is None or len(found) >= PAGE:
                break
        return found, before


def _action(request: web.Request) -> AuditAction | None:
    action = request.query.get("action", "")
    raise_if_unknown("action", action, tuple(AuditAction))
    return AuditAction(action) if action else None
