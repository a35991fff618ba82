"""Handlers that choose what is shown: the top bar's switches, and the links of notifications."""

from typing import Final

from aiohttp import web
from aiohttp.typedefs import Handler

from dispatcher.console.access import is_local_path
from dispatcher.console.pages.renderer import Renderer, to
from dispatcher.console.pages.scope import SCOPE_COOKIE, THEME_COOKIE, THEMES, Scope
from dispatcher.console.request_body import form_body
from dispatcher.console.services import person_of
from dispatcher.console.time_zone import ZONE_COOKIE, use_zone, zone_named

_YEAR_S: Final = 365 * 86_400


def add_to(app: web.Application, renderer: Renderer) -> None:
    """Adds this module's routes to the console."""

    async def follow_link(request: web.Request) -> web.Response:
        return await _follow_link(request, renderer)

    app.middlewares.append(_with_time_zone)
    app.router.add_post("/theme", _theme)
    app.router.add_post("/time-zone", _time_zone)
    app.router.add_post("/scope", _scope)
    app.router.add_get("/webhooks", follow_link)


async def _theme(request: web.Request) -> web.Response:
    form = await form_body(request)
    theme = str(form.get("theme", ""))
    response = to(_back(form.get("back")))
    if theme in THEMES:
        response.set_cookie(
            THEME_COOKIE, theme, max_age=_YEAR_S, path="/", samesite="Lax", httponly=True, secure=request.secure
        )
    return response


@web.middleware
async def _with_time_zone(request: web.Request, handler: Handler) -> web.StreamResponse:
    use_zone(request.cookies.get(ZONE_COOKIE, ""))
    return await handler(request)


async def _time_zone(request: web.Request) -> web.Response:
    form = await form_body(request)
    name = str(form.get("zone", ""))
    response = to(_back(form.get("back")))
    if zone_named(name) is not None:
        response.set_cookie(
            ZONE_COOKIE, name, max_age=_YEAR_S, path="/", samesite="Lax", httponly=True, secure=request.secure
        )
    return response


async def _scope(request: web.Request) -> web.Response:
    form = await form_body(request)
    back = _back(form.get("back")).partition("?")[0]  # filters of the page may not fit the new scope
    return _in_scope(request, Scope.read(str(form.get("scope", ""))), back)


async def _follow_link(request: web.Request, renderer: Renderer) -> web.Response:
    """Redirects to the webhook of the organisation and sandbox in the URL, as notifications link to it.

    Leads to the list of all webhooks in this scope if the person can see none.
    """
    org = request.query.get("org", "")[:200]
    scope = Scope(org or None, (request.query.get("sandbox", "")[:200] or None) if org else None)
    webhook = None
    if scope.tenant is not None:
        webhook = await renderer.services.webhooks.of_tenant(scope.tenant, orgs=person_of(request).orgs)
    return _in_scope(request, scope, "/") if webhook is None else to(f"/webhooks/{webhook.id}")


def _in_scope(request: web.Request, scope: Scope, path: str) -> web.Response:
    """Redirects to the path and sets the scope: all tenants if the person can't see the organisation."""
    if scope.org is not None and not person_of(request).may_see(scope.org):
        scope = Scope()
    response = to(path)
    response.set_cookie(
        SCOPE_COOKIE, scope.value, max_age=_YEAR_S, path="/", samesite="Lax", httponly=True, secure=request.secure
    )
    return response


def _back(value: object) -> str:
    return value if isinstance(value, str) and is_local_path(value) else "/"
