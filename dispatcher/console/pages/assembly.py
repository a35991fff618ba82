"""Registers the pages: their static files, their routes, and the renderers of the server's own pages."""

from aiohttp import web

from dispatcher.console.pages import (
    audit_log,
    dead_events,
    dead_record,
    deleted_webhooks,
    deliveries,
    edit,
    error_pages,
    events,
    notification_link,
    notifications,
    overview,
    preferences,
    reference,
    resend_dialog,
    scope_search,
    search,
    tenant_events,
    testing,
    webhook_list,
)
from dispatcher.console.pages.assets import Assets
from dispatcher.console.pages.renderer import Renderer
from dispatcher.console.services import RENDERERS, Services


def add_to(app: web.Application, services: Services) -> None:
    """Adds the pages, their static files, and the renderers of the server's own pages."""
    assets = Assets.load()
    assets.add_to(app)
    renderer = Renderer(services, assets)
    app[RENDERERS] = error_pages.renderers(renderer)
    for page in (
        webhook_list,
        edit,
        testing,
        overview,
        deliveries,
        events,
        tenant_events,
        dead_events,
        resend_dialog,
        audit_log,
        reference,
        preferences,
        search,
        notification_link,
        notifications,
        deleted_webhooks,
        scope_search,
        dead_record,
    ):
        page.add_to(app, renderer)
