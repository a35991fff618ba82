"""Pages of deleted webhooks: restore, or delete for good."""

from aiohttp import web

from dispatcher.console.pages.renderer import Renderer, admin_of, to
from dispatcher.console.services import person_of
from dispatcher.errors import AlreadyExists
from dispatcher.stores.sql.records import RESTORABLE


def add_to(app: web.Application, renderer: Renderer) -> None:
    """Adds this module's routes to the console."""
    pages = DeletedWebhookPages(renderer)
    app.router.add_get("/deleted-webhooks", pages.show)
    app.router.add_post("/deleted-webhooks/{webhook_id}/restore", pages.restore)
    app.router.add_get("/deleted-webhooks/{webhook_id}/erase", pages.ask_erase)
    app.router.add_post("/deleted-webhooks/{webhook_id}/erase", pages.erase)


class DeletedWebhookPages:
    """Serves the deleted webhooks, which can be restored or deleted for good."""

    def __init__(self, renderer: Renderer) -> None:
        self._renderer = renderer

    async def show(self, request: web.Request) -> web.StreamResponse:
        return await self._list(request)

    async def restore(self, request: web.Request) -> web.StreamResponse:
        person, webhooks = admin_of(request), self._renderer.services.webhooks
        try:
            restored = await webhooks.restore(request.match_info["webhook_id"], by=person.name, orgs=person.orgs)
        except AlreadyExists as error:
            return await self._list(request, problem=str(error), status=409)
        return to(f"/webhooks/{restored.id}?done=restored")

    async def ask_erase(self, request: web.Request) -> web.StreamResponse:
        person, webhooks = admin_of(request), self._renderer.services.webhooks
        webhook = await webhooks.get_deleted(request.match_info["webhook_id"], orgs=person.orgs)
        return await self._renderer.page(request, "erase.html", at="webhooks", webhook=webhook)

    async def erase(self, request: web.Request) -> web.StreamResponse:
        person, webhooks = admin_of(request), self._renderer.services.webhooks
        await webhooks.erase(request.match_info["webhook_id"], by=person.name, orgs=person.orgs)
        return to("/deleted-webhooks?done=erased")

    async def _list(self, request: web.Request, problem: str = "", status: int = 200) -> web.StreamResponse:
        return await self._renderer.page(
            request,
            "deleted_webhooks.html",
            at="webhooks",
            status=status,
            deleted=await self._renderer.services.webhooks.list_deleted(orgs=person_of(request).orgs),
            restorable=RESTORABLE,
            problem=problem,
        )
