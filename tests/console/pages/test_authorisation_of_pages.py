"""Authorisation of the pages: every route that is served, for every role, within and outside the organisation.

The API's is `tests/console/api/test_authorisation.py`, made from its document; this one is made from the router, so
that a new page can't be forgotten either.
"""

import re
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace

import aiohttp
import pytest
from pydantic import JsonValue

from dispatcher.config.secrets import Secret
from dispatcher.console.access import is_api, is_public
from dispatcher.console.resend_model import RedriveModel
from dispatcher.contract.tenant import TenantKey
from dispatcher.stores.sql.records import AuditQuery, Orgs, Role, StoredWebhook
from tests.auth.keys import pem
from tests.console.pages.sample_world import CONTOSO, LUMA, LUMA_ORG, dead_facts
from tests.console.pages.stage import Stage

OWN_NAME = "Canary of Luma"
SIGNING = ("whsec_" + "bmV3" * 10, "whsec_" + "b2xk" * 10)
OLD_SECRET = Secret(SIGNING[1].encode()).fingerprint()
NEXT = "n" * 32
NEXT_KEY = Secret(NEXT.encode()).fingerprint()
ACTORS: Mapping[str, tuple[Role, Orgs] | None] = {
    "nobody": None,
    "viewer elsewhere": (Role.VIEWER, frozenset({CONTOSO.org})),
    "admin elsewhere": (Role.ADMIN, frozenset({CONTOSO.org})),
    "viewer": (Role.VIEWER, frozenset({LUMA_ORG})),
    "admin": (Role.ADMIN, frozenset({LUMA_ORG})),
}
"""The roles with the least permissions come first: what they can't change, the last one changes."""


@dataclass(frozen=True)
class Ask:
    """A request that concerns Luma."""

    path: str
    form: Mapping[str, str] = field(default_factory=dict)
    admins_only: bool = False
    elsewhere: int = 404
    """Response to persons who can't see Luma: 200 if the page is a list of their own."""


def draft(sandbox: str) -> dict[str, str]:
    return {
        "name": "Typed", "org": LUMA_ORG, "sandbox": sandbox, "channels": "email", "events": "sent",
        "url": "https://hooks.luma.example/in", "auth": "none", "payload": "1", "campaigns": "all", "enabled": "on",
    }  # fmt: skip


ROUTES: Mapping[tuple[str, str], Callable[[str, str], Ask]] = {
    ("GET", "/"): lambda _, name: Ask("/?q=canary", elsewhere=200),
    ("POST", "/theme"): lambda _, name: Ask("/theme", {"theme": "dark"}, elsewhere=303),
    ("POST", "/time-zone"): lambda _, name: Ask("/time-zone", {"zone": "UTC"}, elsewhere=303),
    ("GET", "/scope"): lambda _, name: Ask("/scope?q=canary", elsewhere=200),
    ("POST", "/scope"): lambda _, name: Ask("/scope", {"scope": f"{LUMA_ORG}/{name}"}, elsewhere=303),
    ("POST", "/sign-out"): lambda _, name: Ask("/sign-out", elsewhere=303),
    ("GET", "/deliveries"): lambda _, name: Ask("/deliveries", elsewhere=200),
    ("GET", "/search"): lambda _, name: Ask("/search?q=canary", elsewhere=200),
    ("POST", "/search"): lambda _, name: Ask("/search", {"q": "canary"}, elsewhere=303),
    ("GET", "/audit"): lambda _, name: Ask("/audit", elsewhere=200),
    ("GET", "/dead-events"): lambda _, name: Ask("/dead-events", elsewhere=200),
    ("POST", "/dead-events/confirm"): lambda _, name: Ask("/dead-events/confirm", {"id": "1-999"}, True, 422),
    ("POST", "/dead-events/redrive"): lambda _, name: Ask("/dead-events/redrive", {"id": "1-999"}, True, 422),
    ("GET", "/dead-events/{dead_id}"): lambda _, name: Ask("/dead-events/1-999", admins_only=True, elsewhere=403),
    ("GET", "/dead-events/{dead_id}/download"): lambda _, name: Ask(
        "/dead-events/1-999/download", admins_only=True, elsewhere=403
    ),
    ("GET", "/reference"): lambda _, name: Ask("/reference", elsewhere=200),
    ("GET", "/jobs"): lambda _, name: Ask("/jobs?job=canary"),
    ("POST", "/jobs/{job_id}/stop"): lambda _, name: Ask("/jobs/canary/stop", {}, True),
    ("GET", "/webhooks/{webhook_id}/resend"): lambda id_, name: Ask(f"/webhooks/{id_}/resend?range=1h", {}, True),
    ("POST", "/webhooks/{webhook_id}/resend"): lambda id_, name: Ask(f"/webhooks/{id_}/resend", {"event": "m"}, True),
    ("GET", "/notifications"): lambda _, name: Ask("/notifications", elsewhere=200),
    ("POST", "/notifications/test"): lambda _, name: Ask("/notifications/test", {}, True, 200),
    ("GET", "/webhooks/{webhook_id}/notifications"): lambda id_, name: Ask(f"/webhooks/{id_}/notifications"),
    ("POST", "/webhooks/{webhook_id}/notifications/test"): lambda id_, name: Ask(
        f"/webhooks/{id_}/notifications/test", {}, True
    ),
    ("POST", "/webhooks/{webhook_id}/notifications/ask"): lambda id_, name: Ask(
        f"/webhooks/{id_}/notifications/ask", {"contact": "0"}, True
    ),
    ("GET", "/webhooks"): lambda _, name: Ask(f"/webhooks?org={LUMA_ORG}&sandbox={name}", elsewhere=303),
    ("GET", "/webhooks/new"): lambda _, name: Ask("/webhooks/new", admins_only=True, elsewhere=200),
    ("POST", "/webhooks/new"): lambda _, name: Ask(
        "/webhooks/new", draft(f"{name}-new") | {"action": "save"}, True, 422
    ),
    ("POST", "/webhooks/preview"): lambda id_, name: Ask(
        "/webhooks/preview", draft(name) | {"webhook_id": id_}, admins_only=True
    ),
    ("GET", "/dead-events/confirm"): lambda _, name: Ask("/webhooks/kept-form", elsewhere=303),
    ("GET", "/webhooks/kept-form"): lambda _, name: Ask("/webhooks/kept-form", elsewhere=303),
    ("POST", "/webhooks/kept-form"): lambda _, name: Ask("/webhooks/kept-form", {"kept": "x"}, True),
    ("GET", "/webhooks/{webhook_id}"): lambda id_, name: Ask(f"/webhooks/{id_}"),
    ("GET", "/webhooks/{webhook_id}/configuration"): lambda id_, name: Ask(f"/webhooks/{id_}/configuration"),
    ("GET", "/webhooks/{webhook_id}/audit"): lambda id_, name: Ask(f"/webhooks/{id_}/audit"),
    ("GET", "/webhooks/{webhook_id}/deliveries"): lambda id_, name: Ask(f"/webhooks/{id_}/deliveries"),
    ("GET", "/webhooks/{webhook_id}/deliveries/{event_id}"): lambda id_, name: Ask(f"/webhooks/{id_}/deliveries/msg"),
    ("GET", "/events/{event_id}"): lambda _, name: Ask(f"/events/msg?org={LUMA_ORG}&sandbox={name}"),
    ("GET", "/webhooks/{webhook_id}/edit"): lambda id_, name: Ask(f"/webhooks/{id_}/edit", admins_only=True),
    ("POST", "/webhooks/{webhook_id}/edit"): lambda id_, name: Ask(
        f"/webhooks/{id_}/edit", draft(name) | {"action": "save", "version": "1"}, True
    ),
    ("POST", "/webhooks/{webhook_id}/reactivate"): lambda id_, name: Ask(f"/webhooks/{id_}/reactivate", {}, True),
    ("POST", "/webhooks/{webhook_id}/signing-secrets"): lambda id_, name: Ask(
        f"/webhooks/{id_}/signing-secrets", {"kind": "hmac", "version": "1"}, True
    ),
    ("POST", "/webhooks/{webhook_id}/signing-secrets/end"): lambda id_, name: Ask(
        f"/webhooks/{id_}/signing-secrets/end", {"fingerprint": OLD_SECRET}, True
    ),
    ("POST", "/webhooks/{webhook_id}/signing-keys"): lambda id_, name: Ask(
        f"/webhooks/{id_}/signing-keys", {"starts": "now", "version": "1"}, True
    ),
    ("POST", "/webhooks/{webhook_id}/signing-keys/start"): lambda id_, name: Ask(
        f"/webhooks/{id_}/signing-keys/start", {"fingerprint": NEXT_KEY}, True
    ),
    ("POST", "/webhooks/{webhook_id}/signing-keys/remove"): lambda id_, name: Ask(
        f"/webhooks/{id_}/signing-keys/remove", {"fingerprint": NEXT_KEY}, True
    ),
    ("GET", "/deleted-webhooks"): lambda _, name: Ask("/deleted-webhooks", elsewhere=200),
    ("POST", "/deleted-webhooks/{webhook_id}/restore"): lambda id_, name: Ask(
        f"/deleted-webhooks/{id_}/restore", {}, True
    ),
    ("GET", "/deleted-webhooks/{webhook_id}/erase"): lambda id_, name: Ask(
        f"/deleted-webhooks/{id_}/erase", admins_only=True
    ),
    ("POST", "/deleted-webhooks/{webhook_id}/erase"): lambda id_, name: Ask(f"/deleted-webhooks/{id_}/erase", {}, True),
    ("POST", "/webhooks/{webhook_id}/pause"): lambda id_, name: Ask(f"/webhooks/{id_}/pause", {}, True),
    ("POST", "/webhooks/{webhook_id}/resume"): lambda id_, name: Ask(f"/webhooks/{id_}/resume", {}, True),
    ("GET", "/webhooks/{webhook_id}/test"): lambda id_, name: Ask(f"/webhooks/{id_}/test", admins_only=True),
    ("POST", "/webhooks/{webhook_id}/test"): lambda id_, name: Ask(f"/webhooks/{id_}/test", {}, True),
    ("GET", "/webhooks/{webhook_id}/delete"): lambda id_, name: Ask(f"/webhooks/{id_}/delete", admins_only=True),
    ("POST", "/webhooks/{webhook_id}/delete"): lambda id_, name: Ask(f"/webhooks/{id_}/delete", {"version": "1"}, True),
}
NOTHING_IS_KEPT = {("GET", "/webhooks/{webhook_id}/deliveries/{event_id}"), ("POST", "/webhooks/kept-form")}
BEYOND_THE_ROUTES = {
    "a test event before saving": lambda name: Ask(
        "/webhooks/new", draft(f"{name}-new") | {"action": "test"}, True, 422
    ),
}


@asynccontextmanager
async def signed_in(stage: Stage, rights: tuple[Role, Orgs] | None) -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(stage.base, cookie_jar=aiohttp.CookieJar(unsafe=True)) as session:
        if rights is not None:
            async with session.post("/sign-in", data={"token": await stage.token(*rights)}) as answer:
                session.headers["X-CSRF-Token"] = re.search(r'name="csrf_token" value="([^"]+)"', await answer.text())[
                    1
                ]  # type: ignore[index]
        yield session


async def make(stage: Stage, name: str, *, has_next_key: bool = False) -> StoredWebhook:
    """A webhook of Luma's in a sandbox of its own; a dead event of it."""
    sign: dict[str, JsonValue] = {"algorithm": "ES256", "key": {"value": pem("P-256").decode()}}
    if has_next_key:
        sign["next"] = {"algorithm": "HS256", "key": {"value": NEXT}, "starts": "2100-01-01T00:00:00Z"}
    draft: dict[str, JsonValue] = {
        "name": OWN_NAME,
        "org": LUMA_ORG,
        "sandbox": name,
        "url": "https://hooks.luma.example/in",
        "signing": {"secrets": [{"value": one} for one in SIGNING]},
        "auth": {"type": "jwt", "sign": sign},
    }
    config = await stage.services.webhooks.resolve(draft, webhook_id=None, orgs=None)
    return await stage.services.webhooks.create(config, by="operator", orgs=None)


async def state(stage: Stage, webhook: StoredWebhook) -> object:
    """Returns everything of Luma that a request could have changed."""
    found = await stage.services.webhooks.of_tenant(webhook.tenant, orgs=None)
    new = await stage.services.webhooks.of_tenant(TenantKey(LUMA_ORG, f"{webhook.tenant.sandbox}-new"), orgs=None)
    history = await stage.services.audit.search(AuditQuery(limit=1), orgs=frozenset({LUMA_ORG}))
    return found and found.version, new and new.version, history[0].id, len(stage.dead_events.jobs.made)


async def check(stage: Stage, method: str, ask: Ask, webhook: StoredWebhook, success: set[int]) -> None:
    for actor, rights in ACTORS.items():
        before = await state(stage, webhook)
        async with (
            signed_in(stage, rights) as session,
            session.request(
                method, ask.path, data=ask.form if method == "POST" else None, allow_redirects=False
            ) as got,
        ):
            text = await got.text()
        if rights is None:
            wanted = {303} if got.headers.get("Location", "").startswith("/sign-in") else {0}
        elif ask.admins_only and rights[0] is Role.VIEWER:
            wanted = {403}
        else:
            wanted = success if LUMA_ORG in (rights[1] or ()) else {ask.elsewhere}
        assert got.status in wanted, (actor, got.status, text)
        if actor != "admin":
            assert await state(stage, webhook) == before, actor
        if "elsewhere" in actor:
            assert OWN_NAME not in text, actor
            assert webhook.id not in text or webhook.id in ask.path, actor


async def test_every_page_is_tried_here(stage: Stage) -> None:
    served = {
        (route.method, route.resource.canonical)
        for route in stage.server.build().router.routes()
        if route.resource is not None and route.method != "HEAD"
    }
    pages = {(method, path) for method, path in served if not is_api(path) and not is_public(path)}
    assert pages == ROUTES.keys()


@pytest.mark.parametrize("route", ROUTES, ids=" ".join)
async def test_every_route_checks_role_and_organisation(stage: Stage, route: tuple[str, str]) -> None:
    name = f"s{list(ROUTES).index(route)}"
    webhook = await make(stage, name, has_next_key="/signing-keys/" in route[1])
    if "deleted-webhooks" in route[1]:
        await stage.services.webhooks.delete(webhook.id, expected_version=1, by="operator", orgs=None)
    stage.dead_events.facts = [*dead_facts(), replace(dead_facts()[0], id="1-999", org=LUMA.org, sandbox=LUMA.sandbox)]
    stage.dead_events.jobs.made["canary"] = RedriveModel("canary", *LUMA, "operator", 0.0, 1)
    success = {404} if route in NOTHING_IS_KEPT else {403} if "{dead_id}" in route[1] else {200, 303}
    await check(stage, route[0], ROUTES[route](webhook.id, name), webhook, success)


@pytest.mark.parametrize("what", BEYOND_THE_ROUTES)
async def test_an_action_in_a_form_checks_role_and_organisation(stage: Stage, what: str) -> None:
    name = what.replace(" ", "-")
    await check(stage, "POST", BEYOND_THE_ROUTES[what](name), await make(stage, name), {200, 303})
