"""Puts the pages together: their files, their templates, their routes, and the renderers for what the server shows."""

from aiohttp import web

from dispatcher.console.pages import (
    configuring,
    dead_events,
    deliveries,
    doors,
    events,
    frame,
    history,
    inventory,
    overview,
    testing,
)
from dispatcher.console.pages.assets import Assets
from dispatcher.console.pages.site import Site
from dispatcher.console.parts import RENDERERS, Parts


def add_to(app: web.Application, parts: Parts) -> None:
    """Add the pages, their files, and the renderers for what the server shows."""
    assets = Assets.load()
    assets.add_to(app)
    site = Site(parts, assets)
    app[RENDERERS] = doors.renderers(site)
    for page in (inventory, configuring, testing, overview, deliveries, events, dead_events, history, frame):
        page.add_to(app, site)
