"""The page that searches organisations and sandboxes, for consoles with more of them than a select field can offer."""

from typing import Final

from aiohttp import web

from dispatcher.console.access import is_local_path
from dispatcher.console.pages.renderer import Renderer
from dispatcher.console.pages.scope import Scope
from dispatcher.console.services import person_of

MAX_FOUND: Final = 50


def add_to(app: web.Application, renderer: Renderer) -> None:
    """Adds the route."""

    async def show(request: web.Request) -> web.StreamResponse:
        person = person_of(request)
        words, back = request.query.get("q", "").strip()[:200], request.query.get("back", "/")
        tenants = await renderer.services.webhooks.tenants(words, orgs=person.orgs, limit=MAX_FOUND + 1)
        scope, found = Scope.of(request, person), tenants[:MAX_FOUND]
        named = [org for org in sorted(person.orgs or ()) if words.casefold() in org.casefold()]
        return await renderer.page(
            request,
            "scope.html",
            at="",
            words=words,
            back=back if is_local_path(back) else "/",
            choices=scope.choices(found, frozenset(named[:MAX_FOUND])),
            found=len(found),
            is_cut=len(tenants) > MAX_FOUND,
        )

    app.router.add_get("/scope", show)
