"""The page of links in notifications: confirms an address, or stops notifications. It needs no sign-in.

Opening a link changes nothing, because scanners of mail open links; the button on the page does.
"""

from aiohttp import web

from dispatcher.console.pages.renderer import Renderer
from dispatcher.console.request_body import form_body
from dispatcher.errors import BadLink
from dispatcher.notifications.confirmation import MAX_TOKEN, Link, Purpose
from dispatcher.notifications.desk import NotificationDesk


def add_to(app: web.Application, renderer: Renderer) -> None:
    """Adds this module's routes to the console."""
    page = NotificationLinkPage(renderer)
    app.router.add_get("/notifications/link", page.show)
    app.router.add_post("/notifications/link", page.use)


class NotificationLinkPage:
    """Handlers of the page that links in notifications open."""

    def __init__(self, renderer: Renderer) -> None:
        self._renderer = renderer

    async def show(self, request: web.Request) -> web.StreamResponse:
        token = request.query.get("token", "")[: MAX_TOKEN + 1]
        try:
            link = self._desk().link(token)
        except BadLink as error:
            return self._page(request, problem=str(error))
        return self._page(request, link=link, token=token)

    async def use(self, request: web.Request) -> web.StreamResponse:
        """Does what the link says.

        A mail program that stops notifications with one click (RFC 8058) has the token in the URL only. It can't
        confirm an address.
        """
        form = await form_body(request)
        is_one_click = form.get("List-Unsubscribe") == "One-Click"
        token = ((request.query.get("token") if is_one_click else form.get("token")) or "")[: MAX_TOKEN + 1]
        try:
            if is_one_click and self._desk().link(token).purpose is not Purpose.STOP:
                raise BadLink("Open the link and use the button.")
            link = await self._desk().use(token)
        except BadLink as error:
            return self._page(request, problem=str(error))
        return self._page(request, link=link, is_done=True)

    def _page(
        self,
        request: web.Request,
        *,
        link: Link | None = None,
        token: str = "",
        problem: str = "",
        is_done: bool = False,
    ) -> web.Response:
        response = self._renderer.plain(
            request,
            "notification_link.html",
            status=400 if problem else 200,
            link=link,
            token=token,
            problem=problem,
            is_done=is_done,
            is_confirmation=link is not None and link.purpose is Purpose.CONFIRM,
        )
        response.headers["Cache-Control"] = "no-store"
        response.headers["Referrer-Policy"] = "no-referrer"
        return response

    def _desk(self) -> NotificationDesk:
        desk = self._renderer.services.notifications
        if desk is None:
            raise BadLink("Such links are switched off: ask the operator.")
        return desk
