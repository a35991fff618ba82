"""The admin API, `/api/v1`: a table of routes, and the OpenAPI document made from it."""

from collections.abc import Callable

import orjson
from aiohttp import web

from dispatcher.console.api.openapi import openapi_document
from dispatcher.console.api.route import PREFIX
from dispatcher.console.api.routes import ROUTES
from dispatcher.console.services import Services

__all__ = ["ROUTES", "add_to", "openapi_document"]


def add_to(app: web.Application, services: Services, *, tokens_changed: Callable[[], None] = lambda: None) -> None:
    """Adds the API's routes.

    Args:
        tokens_changed: called when a token was revoked here, so that its sessions end at once.
    """
    document = orjson.dumps(openapi_document(services.settings.console.public_url or "/"))

    async def openapi(_request: web.Request) -> web.Response:
        return web.Response(body=document, content_type="application/json")

    app.router.add_get(f"{PREFIX}/openapi.json", openapi)
    for route in ROUTES:
        route.add_to(app, services)

    async def watch(request: web.Request, _response: web.StreamResponse) -> None:
        if request.method == "DELETE" and request.path.startswith(f"{PREFIX}/tokens/"):
            tokens_changed()

    app.on_response_prepare.append(watch)
