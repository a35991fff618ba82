"""Pages to create and edit a webhook, with a live preview of its request and a test event before it is saved."""

import asyncio
from dataclasses import dataclass, field
from typing import Final

from aiohttp import web
from multidict import MultiDict, MultiMapping
from pydantic import JsonValue

from dispatcher.config.webhook_auth import SigningAlgorithm
from dispatcher.config.webhook_headers import MAX_HEADERS
from dispatcher.config.webhooks import WebhookConfig
from dispatcher.console.actions import send_test
from dispatcher.console.model import Person, TestResultModel
from dispatcher.console.pages.conflicts import FieldConflict, conflicts_of, take_saved
from dispatcher.console.pages.fields import CHOICES, LISTS, SECRETS, HeaderRow
from dispatcher.console.pages.form import WebhookForm, with_placeholders
from dispatcher.console.pages.kept_forms import EDIT_PATH
from dispatcher.console.pages.key_words import describe
from dispatcher.console.pages.renderer import Renderer, admin_of, to
from dispatcher.console.pages.scope import Scope
from dispatcher.console.pages.seen import seen_of
from dispatcher.console.pages.testing import Sample
from dispatcher.console.request_body import form_body, number_in
from dispatcher.console.services import KEPT_FORM_PATH
from dispatcher.errors import AlreadyExists, ConfigError, EditConflict, NotAllowed, NotFound
from dispatcher.stores.sql.documents import resolve_draft
from dispatcher.stores.sql.records import StoredWebhook

_NAMES: Final = {
    "name": "Webhook name", "org": "Organisation", "sandbox": "Sandbox", "sandbox_id": "Sandbox id",
    "channels": "Channels", "url": "Webhook URL", "auth": "Authentication", "auth.header": "Header",
    "auth.scheme": "Scheme", "auth.fetch.grant": "Grant", "auth.fetch.token_url": "Token endpoint",
    "auth.fetch.client_id": "Client id", "auth.fetch.client_secret": "Client secret", "auth.fetch.scope": "Scope",
    "auth.fetch.audience": "Audience", "auth.fetch.client_auth": "Sent by",
    "auth.fetch.parameters": "Further parameters", "connect_timeout": "Connect timeout",
    "headers": "Header parameters", "events": "Events", "campaigns": "Campaign ids",
    "payload": "Payload version", "signing.new": "Signing secret", "rate_limit": "Rate limit", "timeout": "Timeout",
    "enabled": "Deliveries on", "notify.emails": "Contacts", "signing": "Signing secrets",
    "tls.ca": "Own CA", "tls.certificate": "Client certificate", "tls.key": "Client key",
    **{f"auth.{at}.{key}": f"{before}{label}"
       for at, before in (("sign", ""), ("fetch.assertion", "Assertion: "))
       for key, label in (("algorithm", "Algorithm"), ("key", "Signing key"), ("kid", "Key id"), ("issuer", "Issuer"),
                          ("subject", "Subject"), ("audience", "Audience"), ("ttl", "Life of a token"),
                          ("claims", "Further claims"), ("body_hash", "Hash of the body"), ("jti", "Unique id"),
                          ("nbf", "Valid from"))},
}  # fmt: skip


_KEY_REPLACED: Final = (
    "The signing key was replaced by the next one meanwhile. Its algorithm and key id are in the form now; everything "
    "else that you typed is still here. Check it, then save or test it again."
)


@dataclass(slots=True)
class Editing:
    """State of the form for one response."""

    form: WebhookForm
    webhook: StoredWebhook | None
    version: int = 0
    """The webhook's version that the browser loaded."""
    sample: Sample = field(default_factory=Sample)
    is_changed: bool = False
    """True if the form contains unsaved input."""
    status: int = 200
    notice: str = ""
    existing_id: str = ""
    """Id of the webhook that the organisation and sandbox already have."""
    test: TestResultModel | None = None
    path: str = ""
    """Path that the form is posted to, if it is not the request's own."""
    conflict_since: int = 0
    """The version before what another editor saved meanwhile; 0 without a conflict."""

    def note_conflict(self, error: EditConflict) -> None:
        """Prepares the response to an edit of an older version: the next one replaces what was saved meanwhile."""
        self.notice = (
            f"This webhook was {error}. What you typed is still here; saving once more puts it in place of what "
            "was saved meanwhile."
        )
        self.conflict_since = self.conflict_since or self.version
        self.version, self.status = error.current_version, 412


def add_to(app: web.Application, renderer: Renderer) -> None:
    """Adds this module's routes to the console."""
    pages = WebhookEditor(renderer)
    app.router.add_get("/webhooks/new", pages.new)
    app.router.add_post("/webhooks/new", pages.post_new)
    app.router.add_post("/webhooks/preview", pages.preview)
    app.router.add_post(KEPT_FORM_PATH, pages.continue_kept)
    app.router.add_get(KEPT_FORM_PATH, pages.leave_kept)
    app.router.add_get("/webhooks/{webhook_id}/edit", pages.edit)
    app.router.add_post("/webhooks/{webhook_id}/edit", pages.post_edit)


class WebhookEditor:
    """Serves the form that creates and edits a webhook."""

    def __init__(self, renderer: Renderer) -> None:
        self._renderer = renderer
        self._sealer = renderer.sealer

    async def new(self, request: web.Request) -> web.StreamResponse:
        person = admin_of(request)
        scope = Scope.of(request, person)
        own = next(iter(person.orgs)) if person.orgs is not None and len(person.orgs) == 1 else ""
        asked = [request.query.get(name, "").strip()[:200] for name in ("org", "sandbox")]
        form = WebhookForm.blank(asked[0] or scope.org or own, asked[1] or scope.sandbox or "")
        editing = Editing(form, None)
        if scope.tenant is not None:
            existing = await self._renderer.services.webhooks.of_tenant(scope.tenant, orgs=person.orgs)
            editing.existing_id = "" if existing is None else existing.id
        return await self._show(request, person, editing)

    async def edit(self, request: web.Request) -> web.StreamResponse:
        person = admin_of(request)
        webhook = await self._renderer.webhook(request)
        form = WebhookForm.of_document(webhook.document)
        return await self._show(request, person, Editing(form, webhook, webhook.version))

    async def post_new(self, request: web.Request) -> web.StreamResponse:
        return await self._post(request, admin_of(request), None)

    async def post_edit(self, request: web.Request) -> web.StreamResponse:
        return await self._post(request, admin_of(request), await self._renderer.webhook(request))

    async def _post(self, request: web.Request, person: Person, webhook: StoredWebhook | None) -> web.StreamResponse:
        posted = await form_body(request)
        editing = self._editing(posted, person, webhook)
        form = editing.form
        action = str(posted.get("action", "save"))
        if action == "add-header":
            if len(form.headers) < MAX_HEADERS:
                form.headers.append(HeaderRow())
        elif action.startswith("remove-header."):
            number = number_in(action.partition(".")[2])
            if number is not None and number < len(form.headers):
                del form.headers[number]
        elif action.startswith("take.") and webhook is not None:
            take_saved(form, action.partition(".")[2], webhook.document)
        elif action in ("save", "test"):
            saved = await self._submit(editing, person, action)
            if saved is not None:
                return to(f"/webhooks/{saved.id}?done={'created' if webhook is None else 'saved'}")
        return await self._show(request, person, editing)

    async def _submit(self, editing: Editing, person: Person, action: str) -> StoredWebhook | None:
        """Tests or saves the webhook. Returns it if it was saved."""
        if editing.form.take_replaced_keys():
            editing.notice, editing.status = _KEY_REPLACED, 412
            return None
        saved = None
        try:
            config = await self._resolved(editing, person, editing.version if action == "save" else None)
            if config is not None and action == "test":
                await self._test(editing, config, person)
            elif config is not None:
                saved = await self._saved(editing, config, person)
        except EditConflict as error:
            editing.note_conflict(error)
        if editing.form.errors:
            editing.status = 422
        return saved

    def _editing(self, posted: MultiMapping[str], person: Person, webhook: StoredWebhook | None) -> Editing:
        document = {} if webhook is None else webhook.document
        form = WebhookForm.of_post(posted, document, self._sealer, person.id)
        if webhook is not None:  # organisation and sandbox can't be edited
            form.texts |= {"org": webhook.tenant.org, "sandbox": webhook.tenant.sandbox}
        version, since = (number_in(posted.get(key, "")) or 0 for key in ("version", "conflict_since"))
        return Editing(form, webhook, version, Sample.of(posted), True, conflict_since=since)

    async def leave_kept(self, _request: web.Request) -> web.StreamResponse:
        """Redirects to the list, because choices in the top bar of the kept form's page lead to this path."""
        return to("/")

    async def continue_kept(self, request: web.Request) -> web.StreamResponse:
        """Shows a form again that was posted after its session had ended."""
        person = admin_of(request)
        kept = self._sealer.kept((await form_body(request)).get("kept", ""))
        found = None if kept is None else EDIT_PATH.fullmatch(kept.path)
        if kept is None or found is None or kept.owner != person.id:
            raise NotFound("this form can't be shown again: it is older than an hour, or of another person")
        webhook = None
        if found[1] is not None:
            webhook = await self._renderer.services.webhooks.get(found[1], orgs=person.orgs)
        editing = self._editing(MultiDict(kept.fields), person, webhook)
        editing.notice, editing.path = (
            "You are signed in again. Nothing was saved yet: what you entered is here.",
            kept.path,
        )
        return await self._show(request, person, editing)

    async def _resolved(self, editing: Editing, person: Person, version: int | None) -> WebhookConfig | None:
        """Returns the configuration, or None after adding the problems to the form.

        Raises:
            EditConflict: the webhook has another version than `version`. It is raised before any problem, which may
                come from what was saved meanwhile.
        """
        form, webhook = editing.form, editing.webhook
        draft = form.draft(_stored_headers(webhook))
        try:
            config = await self._renderer.services.webhooks.resolve(
                draft,
                webhook_id=None if webhook is None else webhook.id,
                orgs=person.orgs,
                expected_version=version,
            )
        except ConfigError as error:
            form.add_problems(error.problems)
            config = None
        for place in form.keys_in_use:
            described = await asyncio.to_thread(describe, form, place)
            if described is not None and described.is_wrong and place not in form.errors:
                form.add_error(place, described.text)
        form.sort_errors()
        return None if form.errors else config

    async def _test(self, editing: Editing, config: WebhookConfig, person: Person) -> None:
        sample, webhook = editing.sample, editing.webhook
        webhook_id = None if webhook is None else webhook.id
        try:
            editing.test = await send_test(
                self._renderer.services, person, config, sample.channel, sample.message_status, webhook_id
            )
        except ConfigError as error:
            editing.form.add_problems(error.problems)
        except NotAllowed as error:
            editing.form.add_error("org", str(error))

    async def _saved(self, editing: Editing, config: WebhookConfig, person: Person) -> StoredWebhook | None:
        webhooks, webhook, form = self._renderer.services.webhooks, editing.webhook, editing.form
        try:
            if webhook is None:
                return await webhooks.create(config, by=person.name, orgs=person.orgs)
            return await webhooks.update(
                webhook.id, config, expected_version=editing.version, by=person.name, orgs=person.orgs
            )
        except ConfigError as error:
            form.add_problems(error.problems)
        except NotAllowed as error:
            form.add_error("org", str(error))
        except AlreadyExists as error:
            editing.existing_id, editing.status = error.existing_id, 409
        return None

    async def preview(self, request: web.Request) -> web.StreamResponse:
        """Returns the preview only, for the script."""
        person = admin_of(request)
        posted = await form_body(request)
        webhook_id = str(posted.get("webhook_id", ""))
        webhook = await self._renderer.services.webhooks.get(webhook_id, orgs=person.orgs) if webhook_id else None
        document = {} if webhook is None else webhook.document
        form = WebhookForm.of_post(posted, document, self._sealer, person.id)
        if webhook is not None:
            form.texts |= {"org": webhook.tenant.org, "sandbox": webhook.tenant.sandbox}
        shown, missing = await asyncio.to_thread(self._preview, form, webhook, Sample.of(posted))
        form.draft(_stored_headers(webhook))  # for its errors about header parameters
        return self._renderer.plain(
            request,
            "preview.html",
            preview=shown,
            missing=missing,
            form=form,
            described={place: await asyncio.to_thread(describe, form, place) for place in SECRETS},
        )

    def _preview(
        self, form: WebhookForm, webhook: StoredWebhook | None, sample: Sample
    ) -> tuple[TestResultModel | None, list[str]]:
        """Returns the request, or the fields that are missing for it."""
        kept, form.errors = form.errors, {}
        try:
            config = resolve_draft(with_placeholders(form.draft(_stored_headers(webhook))), {})
        except ConfigError as error:
            keys = [problem.key or "headers" for problem in error.problems]
            return None, list(dict.fromkeys(_NAMES.get(key.partition("[")[0], key) for key in keys))
        finally:
            form.errors = kept
        return self._renderer.services.test_events.preview(config, sample.channel, sample.message_status), []

    async def _show(self, request: web.Request, person: Person, editing: Editing) -> web.StreamResponse:
        form, webhook = editing.form, editing.webhook
        shown, missing = await asyncio.to_thread(self._preview, form, webhook, editing.sample)
        sealed = {
            place: self._sealer.seal(one.typed, person=person.id, place=place)
            for place, one in form.secrets.items()
            if one.typed
        }
        conflicts: list[FieldConflict] = []
        if webhook is not None and 0 < editing.conflict_since < webhook.version:
            audit = self._renderer.services.audit
            conflicts = await conflicts_of(form, webhook, editing.conflict_since, audit, person.orgs)
        return await self._renderer.page(
            request,
            "form.html",
            conflicts=conflicts,
            at="webhooks",
            status=editing.status,
            editing=editing,
            form=form,
            webhook=webhook,
            posts_to=editing.path or request.path,
            owner=self._sealer.seal_owner(person.id),
            preview=shown,
            missing=missing,
            sealed=sealed,
            names=_NAMES,
            described={place: await asyncio.to_thread(describe, form, place) for place in SECRETS},
            algorithms=[algorithm.value for algorithm in SigningAlgorithm],
            seen=await seen_of(self._renderer.services, person, None if webhook is None else webhook.tenant),
            lists=LISTS,
            choices=CHOICES,
            max_headers=MAX_HEADERS,
            default_timeout=self._renderer.services.settings.delivery.timeout,
            default_connect_timeout=self._renderer.services.settings.delivery.connect_timeout,
        )


def _stored_headers(webhook: StoredWebhook | None) -> dict[str, JsonValue]:
    headers = None if webhook is None else webhook.document.get("headers")
    return dict(headers) if isinstance(headers, dict) else {}
