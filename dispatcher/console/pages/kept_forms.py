"""Keeps a posted webhook form whose session has ended, and shows it again after the same person signs in.

Nothing is stored: the page that asks to sign in contains the form, encrypted for its author, for an hour. So this works
with several replicas and without JavaScript, and no secret is in the clear anywhere. Opening it again only shows the
form; saving it needs the new session's CSRF token, as always.
"""

import re
from typing import Final

from aiohttp import web

from dispatcher.console.pages.renderer import Renderer
from dispatcher.console.pages.sealing import KeptForm
from dispatcher.console.request_body import MAX_KEPT_BODY, form_body
from dispatcher.console.services import KEPT_FORM_PATH, PERSON, SignIn, person_of

EDIT_PATH: Final = re.compile(r"/webhooks/(?:new|([0-9a-f-]{36})/edit)")
_LEFT_OUT: Final = frozenset({"csrf_token", "owner", "action"})


async def keep_form(renderer: Renderer, request: web.Request) -> web.Response | None:
    """Returns a page that keeps the posted form; None if the request isn't a form that can be kept.

    The page asks to sign in, or, if that has happened already, to continue.
    """
    is_kept_already = request.path == KEPT_FORM_PATH
    if request.method != "POST" or not (is_kept_already or EDIT_PATH.fullmatch(request.path)):
        return None
    posted = await form_body(request, before_sign_in=MAX_KEPT_BODY)
    if is_kept_already:
        sealed = posted.get("kept", "")
        if renderer.sealer.kept(sealed) is None:
            return None
    else:
        owner = renderer.sealer.owner_of(posted.get("owner", ""))
        if owner is None or (PERSON in request and person_of(request).id != owner):
            return None
        fields = [(name, value) for name, value in posted.items() if name not in _LEFT_OUT]
        sealed = renderer.sealer.keep(KeptForm(owner, request.path, fields))
    if PERSON in request:
        return continue_page(renderer, request, sealed)
    settings = renderer.services.settings.console
    oidc = settings.oidc
    shown = SignIn("/", settings.tokens, oidc is not None and oidc.client_id is not None, status=401, kept=sealed)
    return renderer.plain(request, "sign_in.html", status=401, shown=shown)


def continue_page(renderer: Renderer, request: web.Request, kept: str) -> web.Response:
    """Returns the page after the sign-in, whose button opens the kept form."""
    return renderer.plain(request, "continue_form.html", kept=kept)
