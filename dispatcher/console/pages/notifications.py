"""Pages of notifications: what was sent, the contacts of a webhook and whether they confirmed, and a test."""

from collections.abc import Awaitable
from typing import Final

from aiohttp import web

from dispatcher.console import actions
from dispatcher.console.model import Person
from dispatcher.console.pages.renderer import Renderer, admin_of, to
from dispatcher.console.pages.scope import Scope
from dispatcher.console.request_body import form_body
from dispatcher.console.services import person_of
from dispatcher.console.webhook_state import state_of
from dispatcher.errors import DispatcherError, NotFound, TooSoon
from dispatcher.notifications.desk import NotificationDesk
from dispatcher.stores.sql.records import StoredWebhook

PAGE: Final = 50
_DONE: Final = "done=message-sent"
_NO_DESK: Final = "There are no notifications without a history store: the operator sets history.url."


def add_to(app: web.Application, renderer: Renderer) -> None:
    """Adds this module's routes to the console."""
    pages = NotificationPages(renderer)
    app.router.add_get("/notifications", pages.of_all)
    app.router.add_post("/notifications/test", pages.test_operator)
    app.router.add_get("/webhooks/{webhook_id}/notifications", pages.of_webhook)
    app.router.add_post("/webhooks/{webhook_id}/notifications/test", pages.test_contacts)
    app.router.add_post("/webhooks/{webhook_id}/notifications/ask", pages.ask_again)


class NotificationPages:
    """Serves what was sent, the contacts of a webhook, and the test button."""

    def __init__(self, renderer: Renderer) -> None:
        self._renderer = renderer

    @property
    def _desk(self) -> NotificationDesk | None:
        return self._renderer.services.notifications

    async def of_all(self, request: web.Request) -> web.StreamResponse:
        return await self._list(request)

    async def test_operator(self, request: web.Request) -> web.StreamResponse:
        person = admin_of(request)
        if person.orgs is not None:
            problem = "The operator's addresses can be tested only with access to all organisations."
            return await self._list(request, problem=problem)
        desk = self._desk
        problem = await _tried(None if desk is None else self._test(desk, person, None))
        return await self._list(request, problem=problem) if problem else to(f"/notifications?{_DONE}")

    async def of_webhook(self, request: web.Request) -> web.StreamResponse:
        return await self._of_webhook(request, await self._renderer.webhook(request))

    async def test_contacts(self, request: web.Request) -> web.StreamResponse:
        person, webhook, desk = admin_of(request), await self._renderer.webhook(request), self._desk
        problem = await _tried(None if desk is None else self._test(desk, person, webhook))
        return await self._done(request, webhook, problem)

    async def ask_again(self, request: web.Request) -> web.StreamResponse:
        admin_of(request)
        webhook, desk = await self._renderer.webhook(request), self._desk
        number = (await form_body(request)).get("contact") or ""
        emails = webhook.config().notify.emails
        address = {str(place): one for place, one in enumerate(emails)}.get(number, "")
        problem = await _tried(None if desk is None else desk.ask_again(webhook.config(), address))
        return await self._done(request, webhook, problem)

    async def _done(self, request: web.Request, webhook: StoredWebhook, problem: str) -> web.Response:
        """Shows the problem; without one redirects, so that nothing is sent again if the page is loaded again."""
        if problem:
            return await self._of_webhook(request, webhook, problem=problem)
        return to(f"/webhooks/{webhook.id}/notifications?{_DONE}")

    async def _test(self, desk: NotificationDesk, person: Person, webhook: StoredWebhook | None) -> int:
        return await actions.test_notifications(self._renderer.services, desk, person, webhook)

    async def _list(self, request: web.Request, *, problem: str = "") -> web.Response:
        person, desk = person_of(request), self._desk
        scope = Scope.of(request, person)
        orgs = scope.orgs(person)
        before = request.query.get("before")
        messages = [] if desk is None else await desk.recent(orgs=orgs, tenant=scope.tenant, before=before, limit=PAGE)
        return await self._renderer.page(
            request,
            "notifications.html",
            at="notifications",
            messages=messages,
            older=messages[-1].id if len(messages) == PAGE else None,
            may_test=person.is_admin and person.orgs is None and desk is not None and desk.reaches_operator,
            off=_NO_DESK if desk is None else desk.problem,
            problem=problem,
        )

    async def _of_webhook(self, request: web.Request, webhook: StoredWebhook, *, problem: str = "") -> web.Response:
        desk, orgs = self._desk, person_of(request).orgs
        before = request.query.get("before")
        messages = (
            [] if desk is None else await desk.recent(orgs=orgs, tenant=webhook.tenant, before=before, limit=PAGE)
        )
        contacts = [] if desk is None else await desk.contacts(webhook.config())
        return await self._renderer.page(
            request,
            "webhook_notifications.html",
            at="webhooks",
            tab="notifications",
            webhook=webhook,
            webhook_state=await state_of(self._renderer.services, webhook),
            messages=messages,
            older=messages[-1].id if len(messages) == PAGE else None,
            contacts=contacts,
            off=_NO_DESK if desk is None else desk.problem,
            problem=problem,
        )


async def _tried(action: Awaitable[object] | None) -> str:
    """Performs the action. Returns the problem if it failed, else an empty text."""
    if action is None:
        return _NO_DESK
    try:
        await action
    except (TooSoon, NotFound) as error:
        text = str(error)
        return f"{text[:1].upper()}{text[1:]}."
    except DispatcherError as error:
        return error.for_tenants
    return ""
