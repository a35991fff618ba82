"""Renders pages: holds the services and templates, and adds the frame around a page's content."""

import time
from typing import Final
from urllib.parse import urlsplit

from aiohttp import web
from jinja2 import Environment, PackageLoader, StrictUndefined

from dispatcher import __version__
from dispatcher.console import formatting
from dispatcher.console.access import is_local_path
from dispatcher.console.model import Person
from dispatcher.console.pages.assets import Assets
from dispatcher.console.pages.filter_help import REASONS, STATUSES, kept_for
from dispatcher.console.pages.scope import Scope, theme_of
from dispatcher.console.pages.sealing import SecretSealer
from dispatcher.console.services import PERSON, Services, csrf_token_of, person_of
from dispatcher.console.time_zone import choices, zone_name
from dispatcher.contract.tenant import TenantKey
from dispatcher.errors import DispatcherError, NotAllowed
from dispatcher.stores.sql.records import StoredWebhook, WebhookQuery

MAX_TENANTS: Final = 200
"""Tenants that pages over all tenants cover."""
MAX_CHOICES: Final = 60
"""Options that the switch in the top bar offers; if there are more, it leads to a page that searches them."""


class Renderer:
    """Renders templates, with and without the frame. Every page gets it."""

    def __init__(self, services: Services, assets: Assets) -> None:
        self.services = services
        self.sealer = SecretSealer.of(services.settings.console.session_key)
        self._templates = Environment(
            loader=PackageLoader("dispatcher.console.pages"),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self._templates.globals |= {
            "asset": assets.path,
            "version": __version__,
            "now": time.time,
            "zone_name": zone_name,
            "known_reasons": REASONS,
            "known_statuses": STATUSES,
            "kept_for": lambda filters: kept_for(
                filters.time, filters.outcome, services.settings.history.keep, time.time()
            ),
        }
        self._templates.globals["time_zones"] = choices
        self._templates.filters |= formatting.FILTERS

    async def page(
        self, request: web.Request, template: str, *, at: str, status: int = 200, **values: object
    ) -> web.Response:
        """Renders a page within the frame.

        Args:
            at: the page's entry in the navigation: webhooks, deliveries, dead, audit; or empty.
            values: variables of the template.
        """
        person = request.get(PERSON)
        scope = Scope.of(request, person)
        choices = [] if person is None else scope.choices(await self._tenants_for_switch(person), person.orgs)
        return self.plain(
            request,
            template,
            status=status,
            at=at,
            person=person,
            scope=scope,
            scopes=choices if len(choices) <= MAX_CHOICES else None,
            **values,
        )

    def plain(self, request: web.Request, template: str, *, status: int = 200, **values: object) -> web.Response:
        """Renders a page without the frame, or a part of a page."""
        text = self._templates.get_template(template).render(
            theme=theme_of(request),
            csrf_token=csrf_token_of(request),
            here=request.path_qs,
            comes_back_to=_page_of(request),
            path=request.path,
            newest=_newest(request),
            **values,
        )
        return web.Response(text=text, content_type="text/html", status=status)

    async def _tenants_for_switch(self, person: Person) -> list[TenantKey]:
        """Returns the tenants for the switch; none if the database is unavailable, so that error pages still work."""
        try:
            return await self.services.webhooks.tenants(orgs=person.orgs, limit=MAX_CHOICES + 1)
        except DispatcherError:
            return []

    async def webhooks(self, person: Person, scope: Scope) -> list[StoredWebhook]:
        """Returns the webhooks within the scope, by tenant: at most `MAX_TENANTS`."""
        query = WebhookQuery(org=scope.org, sandbox=scope.sandbox, sort="tenant", limit=MAX_TENANTS)
        return list((await self.services.webhooks.search(query, orgs=person.orgs)).items)

    async def webhook(self, request: web.Request) -> StoredWebhook:
        """Returns the webhook in the request's path. Raises NotFound."""
        return await self.services.webhooks.get(request.match_info["webhook_id"], orgs=person_of(request).orgs)


def _newest(request: web.Request) -> str | None:
    """Returns the URL of a list's first page if the request is for a later one."""
    if not request.query.get("before"):
        return None
    return str(request.rel_url.without_query_params("before"))


def admin_of(request: web.Request) -> Person:
    """Returns the caller if that is an admin.

    Raises:
        NotAllowed: the caller is a viewer.
    """
    person = person_of(request)
    if not person.is_admin:
        raise NotAllowed("your role lets you look, not change things: ask an admin of your organisation")
    return person


def to(path: str) -> web.Response:
    """Returns a redirect (303)."""
    return web.Response(status=303, headers={"Location": path})


def _page_of(request: web.Request) -> str:
    """Returns the path to which the choices of the top bar lead back.

    For a posted form this is the page in the header Referer, because the path it was posted to may not be a page.
    """
    if request.method in ("GET", "HEAD"):
        return request.path_qs
    try:
        path = urlsplit(request.headers.get("Referer", "")[:2048]).path
    except ValueError:  # no URL
        return "/"
    return path if is_local_path(path) else "/"
