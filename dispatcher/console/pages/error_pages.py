"""Renderers of the server's own pages: sign-in, kept forms and errors."""

from aiohttp import web

from dispatcher.console.pages.kept_forms import continue_page, keep_form
from dispatcher.console.pages.renderer import Renderer
from dispatcher.console.services import PERSON, Failure, Renderers, SignIn

_HELP_OF_CODE = {
    "not_allowed": "If you need this permission, ask the admin of your organisation, or the operator of this console.",
    "csrf": "Nothing was changed.",
    "store_unavailable": "Deliveries go on with the webhooks that the dispatchers know.",
}
_HELP = {
    404: "It may have been deleted, or belong to an organisation that you can't see.",
    500: "Try again. If it happens again, send the reference below to the operator.",
    503: "Nothing is lost. Try again in a moment.",
}


def renderers(renderer: Renderer) -> Renderers:
    """Returns the renderers for `services.RENDERERS`."""

    async def sign_in(request: web.Request, shown: SignIn) -> web.Response:
        return renderer.plain(request, "sign_in.html", shown=shown)

    async def failure(request: web.Request, shown: Failure) -> web.Response:
        help_ = _HELP_OF_CODE.get(shown.code) or _HELP.get(shown.status, "")
        if request.get(PERSON) is None:
            return renderer.plain(request, "failure_outside.html", shown=shown, help=help_)
        return await renderer.page(request, "failure.html", at="", shown=shown, help=help_)

    async def keep(request: web.Request) -> web.Response | None:
        return await keep_form(renderer, request)

    return Renderers(sign_in, failure, keep, lambda request, kept: continue_page(renderer, request, kept))
