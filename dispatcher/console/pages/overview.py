"""A webhook's pages: overview, configuration, signing secrets and keys, pause, reactivation and deletion."""

import time
from collections.abc import Awaitable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Final

from aiohttp import web

from dispatcher.console.actions import usable_config
from dispatcher.console.model import AttemptQuery, Window
from dispatcher.console.outcomes import known_since
from dispatcher.console.pages.charts import chart_of
from dispatcher.console.pages.configuration import rows_of
from dispatcher.console.pages.renderer import Renderer, admin_of, to
from dispatcher.console.pages.skipped import skipped_lately
from dispatcher.console.pages.verification import snippets_for
from dispatcher.console.probes import keys_path
from dispatcher.console.request_body import form_body, number_in
from dispatcher.console.services import person_of
from dispatcher.console.signing_keys import (
    generate_signing_key,
    remove_signing_key,
    signing_keys_of,
    start_signing_key,
)
from dispatcher.console.signing_secrets import (
    GeneratedSecret,
    Kind,
    ed25519_keys_in,
    end_signing_secret,
    generate_signing_secret,
    signing_secrets_of,
)
from dispatcher.console.webhook_state import WINDOW_S, state_of
from dispatcher.errors import ConfigError, EditConflict
from dispatcher.stores.sql.records import StoredWebhook


def add_to(app: web.Application, renderer: Renderer) -> None:
    """Adds this module's routes to the console."""
    pages = OverviewPage(renderer)
    app.router.add_get("/webhooks/{webhook_id}", pages.show)
    app.router.add_get("/webhooks/{webhook_id}/configuration", pages.configuration)
    app.router.add_post("/webhooks/{webhook_id}/reactivate", pages.reactivate)
    app.router.add_post("/webhooks/{webhook_id}/signing-secrets", pages.generate_secret)
    app.router.add_post("/webhooks/{webhook_id}/signing-secrets/end", pages.end_secret)
    app.router.add_post("/webhooks/{webhook_id}/signing-keys", pages.generate_key)
    app.router.add_post("/webhooks/{webhook_id}/signing-keys/start", pages.start_key)
    app.router.add_post("/webhooks/{webhook_id}/signing-keys/remove", pages.remove_key)
    app.router.add_post("/webhooks/{webhook_id}/pause", pages.pause)
    app.router.add_post("/webhooks/{webhook_id}/resume", pages.resume)
    app.router.add_get("/webhooks/{webhook_id}/delete", pages.ask_delete)
    app.router.add_post("/webhooks/{webhook_id}/delete", pages.delete)


ENDS: Final = {
    "24 hours": timedelta(hours=24),
    "3 days": timedelta(days=3),
    "7 days": timedelta(days=7),
    "30 days": timedelta(days=30),
}
"""How long an older signing secret can still sign."""
STARTS: Final = {
    "in 24 hours": timedelta(hours=24),
    "in 3 days": timedelta(days=3),
    "in 7 days": timedelta(days=7),
    "now": timedelta(0),
}
"""When the next signing key starts."""


class OverviewPage:
    """Serves a webhook's own pages and the actions on them."""

    def __init__(self, renderer: Renderer) -> None:
        self._renderer = renderer

    async def show(self, request: web.Request) -> web.StreamResponse:
        webhook = await self._renderer.webhook(request)
        # A day's chart of a webhook that is minutes old would have one bar.
        is_young = datetime.now(UTC) - webhook.created_at < timedelta(hours=1)
        asked = request.query.get("window", "")
        window: Window = asked if asked in WINDOW_S else "1h" if is_young else "24h"
        webhook_state = await state_of(self._renderer.services, webhook, window)
        skipped = await skipped_lately(self._renderer.services, webhook.tenant, window)
        recent = self._renderer.services.attempts.search(webhook.tenant, AttemptQuery(limit=6))
        return await self._renderer.page(
            request,
            "overview.html",
            at="webhooks",
            tab="overview",
            webhook=webhook,
            host=webhook.host,
            webhook_state=webhook_state,
            window=window,
            windows=tuple(WINDOW_S),
            chart=chart_of(webhook_state.outcomes),
            recent=recent.items,
            skipped=skipped,
            is_answering=self._renderer.services.lanes.is_answering,
            known_since=known_since(self._renderer.services, webhook_state.outcomes),
            problem=self._renderer.services.attempts.problem,
        )

    async def generate_secret(self, request: web.Request) -> web.StreamResponse:
        """Generates a signing secret and shows it once.

        A browser that loads the page again repeats the request: the version in the form lets that be a conflict.
        """
        person = admin_of(request)
        posted = await form_body(request)
        kind: Kind = "ed25519" if posted.get("kind") == "ed25519" else "hmac"
        end_older_in = ENDS.get(posted.get("end_older", ""))
        services, webhook_id, version = self._renderer.services, request.match_info["webhook_id"], _version_in(posted)
        try:
            made = await generate_signing_secret(services, person, webhook_id, kind, version, end_older_in)
        except EditConflict:
            return await self._configuration(request, problem=_repeated("secret"), status=412)
        except ConfigError as error:
            return await self._configuration(request, problem=_why(error))
        return await self._configuration(request, made)

    async def end_secret(self, request: web.Request) -> web.StreamResponse:
        """Lets an older signing secret end: now, or after the chosen time."""
        person, posted = admin_of(request), await form_body(request)
        end_in = ENDS.get(posted.get("end_in", ""))
        at = None if end_in is None else datetime.now(UTC) + end_in
        services, webhook_id = self._renderer.services, request.match_info["webhook_id"]
        try:
            await end_signing_secret(services, person, webhook_id, posted.get("fingerprint", ""), at)
        except (ConfigError, EditConflict) as error:
            return await self._configuration(request, problem=_why(error))
        return to(f"/webhooks/{webhook_id}/configuration?done={'secret-removed' if at is None else 'secret-dated'}")

    async def generate_key(self, request: web.Request) -> web.StreamResponse:
        """Generates the next signing key; its public key is published at once."""
        person, posted = admin_of(request), await form_body(request)
        starts_in = STARTS.get(posted.get("starts", ""), STARTS["in 24 hours"])
        services, webhook_id, version = self._renderer.services, request.match_info["webhook_id"], _version_in(posted)
        change = generate_signing_key(services, person, webhook_id, starts_in, version)
        return await self._changed_keys(request, change, "key-generated", is_repeated=True)

    async def start_key(self, request: web.Request) -> web.StreamResponse:
        """Lets the next signing key sign now."""
        person, posted = admin_of(request), await form_body(request)
        services, webhook_id = self._renderer.services, request.match_info["webhook_id"]
        change = start_signing_key(services, person, webhook_id, posted.get("fingerprint", ""))
        return await self._changed_keys(request, change, "key-started")

    async def remove_key(self, request: web.Request) -> web.StreamResponse:
        """Erases the next or the previous signing key."""
        person, posted = admin_of(request), await form_body(request)
        services, webhook_id = self._renderer.services, request.match_info["webhook_id"]
        change = remove_signing_key(services, person, webhook_id, posted.get("fingerprint", ""))
        return await self._changed_keys(request, change, "key-removed")

    async def _changed_keys(
        self, request: web.Request, change: Awaitable[StoredWebhook], done: str, *, is_repeated: bool = False
    ) -> web.StreamResponse:
        """Waits for the change. `is_repeated`: a conflict means that a browser has sent the form again."""
        try:
            stored = await change
        except (ConfigError, EditConflict) as error:
            if is_repeated and isinstance(error, EditConflict):
                return await self._configuration(request, problem=_repeated("key"), status=412)
            return await self._configuration(request, problem=_why(error))
        return to(f"/webhooks/{stored.id}/configuration?done={done}")

    async def configuration(self, request: web.Request) -> web.StreamResponse:
        return await self._configuration(request)

    async def _configuration(
        self, request: web.Request, made: GeneratedSecret | None = None, problem: str = "", status: int = 422
    ) -> web.StreamResponse:
        webhook, person = await self._renderer.webhook(request), person_of(request)
        config = await usable_config(self._renderer.services, person, webhook)
        public_keys = [] if config is None else ed25519_keys_in(config.signing, time.time())
        return await self._renderer.page(
            request,
            "configuration.html",
            at="webhooks",
            tab="configuration",
            status=status if problem else 200,
            made=made,
            problem=problem,
            webhook=webhook,
            host=webhook.host,
            webhook_state=await state_of(self._renderer.services, webhook),
            sections=rows_of(webhook, self._renderer.services.settings, shows_paths=person.is_admin),
            signing=await signing_secrets_of(self._renderer.services, person, webhook),
            ends=tuple(ENDS),
            keys=await signing_keys_of(self._renderer.services, person, webhook.id, config),
            starts=tuple(STARTS),
            jwks=keys_path(webhook.tenant),
            public_keys=public_keys,
            snippets=snippets_for(webhook, self._renderer.services.settings, has_hmac=not public_keys),
        )

    async def reactivate(self, request: web.Request) -> web.StreamResponse:
        person = admin_of(request)
        webhook = await self._renderer.webhook(request)
        await self._renderer.services.webhooks.reactivate(webhook.id, by=person.name, orgs=person.orgs)
        await self._renderer.services.lanes.enable(webhook.tenant)
        return to(f"/webhooks/{webhook.id}?done=reactivated")

    async def pause(self, request: web.Request) -> web.StreamResponse:
        return await self._set_paused(request, paused=True)

    async def resume(self, request: web.Request) -> web.StreamResponse:
        return await self._set_paused(request, paused=False)

    async def _set_paused(self, request: web.Request, *, paused: bool) -> web.StreamResponse:
        person, webhook_id = admin_of(request), request.match_info["webhook_id"]
        await self._renderer.services.webhooks.set_paused(webhook_id, paused=paused, by=person.name, orgs=person.orgs)
        return to(f"/webhooks/{webhook_id}?done={'paused' if paused else 'resumed'}")

    async def ask_delete(self, request: web.Request) -> web.StreamResponse:
        admin_of(request)
        return await self._delete_page(request)

    async def delete(self, request: web.Request) -> web.StreamResponse:
        person = admin_of(request)
        version = _version_in(await form_body(request))
        try:
            await self._renderer.services.webhooks.delete(
                request.match_info["webhook_id"],
                expected_version=version,
                by=person.name,
                orgs=person.orgs,
            )
        except EditConflict as error:
            return await self._delete_page(request, problem=str(error))
        return to("/deleted-webhooks?done=deleted")

    async def _delete_page(self, request: web.Request, problem: str = "") -> web.StreamResponse:
        webhook = await self._renderer.webhook(request)
        webhook_state = await state_of(self._renderer.services, webhook)
        return await self._renderer.page(
            request,
            "delete.html",
            at="webhooks",
            status=412 if problem else 200,
            webhook=webhook,
            webhook_state=webhook_state,
            problem=problem,
        )


def _version_in(posted: Mapping[str, str]) -> int:
    """Returns the version of the webhook that the form was made of; 0, which none has, if it names none."""
    return number_in(posted.get("version", "")) or 0


def _repeated(what: str) -> str:
    return (
        "This form was sent before, as when its page is loaded again, or the webhook was changed meanwhile. "
        f"No other {what} was generated; the table below has the present ones. If you need another, generate it now"
    )


def _why(error: ConfigError | EditConflict) -> str:
    if isinstance(error, EditConflict):
        return f"This webhook was {error}: try again"
    return " ".join(problem.message for problem in error.problems)
