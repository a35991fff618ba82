"""Handlers of the top bar's switches: forms that set a cookie and redirect back."""

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


def add_to(app: web.Application, _renderer: Renderer) -> None:
    """Adds this module's routes to the console."""
    app.middlewares.append(_with_time_zone)
    app.router.add_post("/theme", _theme)
    app.router.add_post("/time-zone", _time_zone)
    app.router.add_post("/scope", _scope)


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
    scope = Scope.read(str(form.get("scope", "")))
    if scope.org is not None and not person_of(request).may_see(scope.org):
        scope = Scope()
    response = to(_back(form.get("back")).partition("?")[0])  # filters of the page may not fit the new scope
    response.set_cookie(
        SCOPE_COOKIE, scope.value, max_age=_YEAR_S, path="/", samesite="Lax", httponly=True, secure=request.secure
    )
    return response


def _back(value: object) -> str:
    return value if isinstance(value, str) and is_local_path(value) else "/"
