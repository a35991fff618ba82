"""Pages to create and edit a webhook, with a live preview of its request and a test event before it is saved."""

import asyncio
from typing import Final

from aiohttp import web
from multidict import MultiDict, MultiMapping
from pydantic import JsonValue

from dispatcher.config.webhook_auth import SigningAlgorithm
from dispatcher.config.webhook_headers import MAX_HEADERS
from dispatcher.config.webhooks import WebhookConfig
from dispatcher.console.actions import send_test
from dispatcher.console.model import Person, TestResultModel
from dispatcher.console.pages.conflicts import FieldConflict, conflicts_of, is_edited_since, take_saved
from dispatcher.console.pages.editing import Editing
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
        person = admin_of(request)
        return await self._post(request, person, self._editing(await form_body(request), person, None))

    async def post_edit(self, request: web.Request) -> web.StreamResponse:
        person = admin_of(request)
        posted = await form_body(request)
        return await self._post(
            request, person, await self._editing_of(request.match_info["webhook_id"], posted, person)
        )

    async def _post(self, request: web.Request, person: Person, editing: Editing) -> web.StreamResponse:
        posted = await form_body(request)
        form, webhook = editing.form, editing.webhook
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
        elif action == "restore" and editing.is_deleted and webhook is not None:
            await self._restore(editing, webhook.id, person)
        elif action in ("save", "test") and editing.status != 404:
            saved = await self._submit(editing, person, action)
            if saved is not None:
                return to(f"/webhooks/{saved.id}?done={'created' if webhook is None else 'saved'}")
        return await self._show(request, person, editing)

    async def _submit(self, editing: Editing, person: Person, action: str) -> StoredWebhook | None:
        """Tests or saves the webhook. Returns it if it was saved."""
        if editing.form.take_replaced_keys():
            editing.notice, editing.status = _KEY_REPLACED, 412
            return None
        saved, webhook_id = None, "" if editing.webhook is None else editing.webhook.id
        try:
            config = await self._resolved(editing, person, editing.version if action == "save" else None)
            if config is not None and action == "test":
                await self._test(editing, config, person)
            elif config is not None:
                saved = await self._saved(editing, config, person)
        except NotFound:
            editing.note_deleted(await self._deleted(webhook_id, person))
        except EditConflict as error:
            if await self._keeps_what_was_saved(editing, person, error):
                editing.version = error.current_version
                return await self._submit(editing, person, action)
            editing.note_conflict(error)
        if editing.form.errors:
            editing.status = 422
        return saved

    async def _keeps_what_was_saved(self, editing: Editing, person: Person, error: EditConflict) -> bool:
        """Returns True if saving overwrites nothing: the webhook was only paused, resumed, reactivated or restored."""
        webhook = editing.webhook
        if webhook is None or error.current_version <= editing.version:
            return False
        audit = self._renderer.services.audit
        return not await is_edited_since(webhook.id, editing.version, error.current_version, audit, person.orgs)

    async def _deleted(self, webhook_id: str, person: Person) -> StoredWebhook | None:
        """Returns a deleted webhook; None if it can't be restored."""
        try:
            return await self._renderer.services.webhooks.get_deleted(webhook_id, orgs=person.orgs)
        except NotFound:
            return None

    async def _restore(self, editing: Editing, webhook_id: str, person: Person) -> None:
        try:
            restored = await self._renderer.services.webhooks.restore(webhook_id, by=person.name, orgs=person.orgs)
            editing.note_restored(restored)
        except AlreadyExists as error:
            editing.existing_id, editing.status = error.existing_id, 409

    async def _editing_of(self, webhook_id: str, posted: MultiMapping[str], person: Person) -> Editing:
        """Returns the state of a posted form of a webhook, which may have been deleted meanwhile."""
        try:
            webhook = await self._renderer.services.webhooks.get(webhook_id, orgs=person.orgs)
        except NotFound:
            deleted = await self._deleted(webhook_id, person)
            editing = self._editing(posted, person, deleted)
            editing.note_deleted(deleted)
            return editing
        return self._editing(posted, person, webhook)

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
        fields = MultiDict(kept.fields)
        if found[1] is None:
            editing = self._editing(fields, person, None)
        else:
            editing = await self._editing_of(found[1], fields, person)
        notice = "You are signed in again. Nothing was saved yet: what you entered is here."
        editing.notice, editing.path = f"{notice} {editing.notice}".strip(), editing.path or kept.path
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
        editing = (
            await self._editing_of(webhook_id, posted, person) if webhook_id else self._editing(posted, person, None)
        )
        form, webhook = editing.form, editing.webhook
        if webhook_id and webhook is None:
            raise NotFound("there is no such webhook")
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
        if webhook is not None and webhook.problems:
            found = "; ".join(problem.message for problem in webhook.problems)
            missing_here = "What could not be read is missing here: enter it again, above all the authentication."
            editing.notice = f"The database has a damaged row of this webhook: {found}. {missing_here} {editing.notice}"
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
