"""A webhook's own pages: how it is doing, how it is configured; taking it up again, deleting it."""

from urllib.parse import urlsplit

from aiohttp import web

from dispatcher.console.model import AttemptQuery, Window
from dispatcher.console.pages.charts import chart_of
from dispatcher.console.pages.configuration import rows_of
from dispatcher.console.pages.renderer import Site, admin_of, to
from dispatcher.console.pages.state import WINDOW_S, standing_of
from dispatcher.console.request_body import form_body
from dispatcher.console.services import person_of
from dispatcher.errors import EditConflict


def add_to(app: web.Application, site: Site) -> None:
    """Add the routes."""
    pages = Overview(site)
    app.router.add_get("/webhooks/{webhook_id}", pages.show)
    app.router.add_get("/webhooks/{webhook_id}/configuration", pages.configuration)
    app.router.add_post("/webhooks/{webhook_id}/reactivate", pages.reactivate)
    app.router.add_get("/webhooks/{webhook_id}/delete", pages.ask_delete)
    app.router.add_post("/webhooks/{webhook_id}/delete", pages.delete)


class Overview:
    """The handlers."""

    def __init__(self, site: Site) -> None:
        self._site = site

    async def show(self, request: web.Request) -> web.StreamResponse:
        webhook = await self._site.webhook(request)
        asked = request.query.get("window", "24h")
        window: Window = asked if asked in WINDOW_S else "24h"
        standing = await standing_of(self._site.parts, webhook, window)
        recent = self._site.parts.attempts.search(webhook.tenant, AttemptQuery(limit=6))
        return await self._site.page(
            request,
            "overview.html",
            at="webhooks",
            tab="overview",
            webhook=webhook,
            host=urlsplit(webhook.url).hostname,
            standing=standing,
            window=window,
            windows=tuple(WINDOW_S),
            chart=chart_of(standing.outcomes),
            recent=recent.items,
            problem=self._site.parts.attempts.problem,
        )

    async def configuration(self, request: web.Request) -> web.StreamResponse:
        webhook = await self._site.webhook(request)
        return await self._site.page(
            request,
            "configuration.html",
            at="webhooks",
            tab="configuration",
            webhook=webhook,
            host=urlsplit(webhook.url).hostname,
            standing=await standing_of(self._site.parts, webhook),
            sections=rows_of(webhook, self._site.parts.settings, shows_paths=person_of(request).is_admin),
        )

    async def reactivate(self, request: web.Request) -> web.StreamResponse:
        person = admin_of(request)
        webhook = await self._site.webhook(request)
        await self._site.parts.webhooks.reactivate(webhook.id, by=person.name, orgs=person.orgs)
        await self._site.parts.lanes.enable(webhook.tenant)
        return to(f"/webhooks/{webhook.id}?done=reactivated")

    async def ask_delete(self, request: web.Request) -> web.StreamResponse:
        admin_of(request)
        return await self._delete_page(request)

    async def delete(self, request: web.Request) -> web.StreamResponse:
        person = admin_of(request)
        version = str((await form_body(request)).get("version", ""))
        try:
            await self._site.parts.webhooks.delete(
                request.match_info["webhook_id"],
                expected_version=int(version[:9]) if version.isdecimal() else 0,
                by=person.name,
                orgs=person.orgs,
            )
        except EditConflict as error:
            return await self._delete_page(request, problem=str(error))
        return to("/?done=deleted")

    async def _delete_page(self, request: web.Request, problem: str = "") -> web.StreamResponse:
        webhook = await self._site.webhook(request)
        standing = await standing_of(self._site.parts, webhook)
        return await self._site.page(
            request,
            "delete.html",
            at="webhooks",
            status=412 if problem else 200,
            webhook=webhook,
            standing=standing,
            problem=problem,
        )
