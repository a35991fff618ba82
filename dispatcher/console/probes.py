"""Endpoints that machines use without signing in: /livez, /readyz, /metrics, and the public keys."""

import asyncio
from typing import Final
from urllib.parse import quote

import orjson
from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from dispatcher.console.api_errors import ApiError
from dispatcher.console.services import Services
from dispatcher.contract.tenant import TenantKey
from dispatcher.errors import StoreUnavailable
from dispatcher.health import HealthCheck, probe_response
from dispatcher.stores.sql.records import WebhookQuery

KEYS_CACHED_S: Final = 300
"""Seconds for which receivers may cache our keys."""
_KEYS: Final = "/.well-known/jwks"


def keys_path(tenant: TenantKey) -> str:
    """Returns the path of the public keys of a tenant's webhook."""
    return f"{_KEYS}/{quote(tenant.org, safe='@')}/{quote(tenant.sandbox, safe='')}.json"


class Probes:
    """Handlers of the probes. Their responses contain no secret and no name."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self.is_draining = False

    def add_to(self, app: web.Application) -> None:
        """Adds this module's routes to the console."""
        app.router.add_get("/livez", self._livez)
        app.router.add_get("/readyz", self._readyz)
        app.router.add_get("/metrics", self._metrics)
        app.router.add_get(f"{_KEYS}.json", self._no_keys)
        app.router.add_get(f"{_KEYS}/{{org}}/{{sandbox}}.json", self._keys)

    async def _livez(self, _request: web.Request) -> web.Response:
        return web.json_response({"ok": True})

    async def _readyz(self, _request: web.Request) -> web.Response:
        return probe_response(
            [
                HealthCheck("running", not self.is_draining, "draining" if self.is_draining else ""),
                await self._database(),
                _optional("attempts", self._services.attempts.problem),
                _optional("dead events", self._services.dead_events.problem),
            ]
        )

    async def _database(self) -> HealthCheck:
        try:
            await self._services.webhooks.search(WebhookQuery(limit=1), orgs=None)
        except StoreUnavailable:
            return HealthCheck("webhook database", ok=False, reason="does not answer")
        return HealthCheck("webhook database", ok=True)

    async def _metrics(self, _request: web.Request) -> web.Response:
        text = await asyncio.to_thread(generate_latest)  # off the loop: rendering takes milliseconds
        return web.Response(body=text, headers={"Content-Type": CONTENT_TYPE_LATEST})

    async def _no_keys(self, _request: web.Request) -> web.Response:
        where = keys_path(TenantKey("ORGANISATION", "SANDBOX"))
        raise ApiError(404, "not_found", f"Each tenant has a document of its own keys: {where}")

    async def _keys(self, request: web.Request) -> web.Response:
        tenant = TenantKey(request.match_info["org"], request.match_info["sandbox"])
        body = orjson.dumps(dict(await self._services.keys.document(tenant)))
        headers = {"Cache-Control": f"public, max-age={KEYS_CACHED_S}"}
        return web.Response(body=body, content_type="application/jwk-set+json", headers=headers)


def _optional(name: str, problem: str | None) -> HealthCheck:
    """Returns a check that is reported but doesn't cause a 503: the rest works without it. The log has the details."""
    return HealthCheck(name, problem is None, "" if problem is None else "incomplete", required=False)
