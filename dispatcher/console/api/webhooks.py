"""Handlers for webhooks: search, create, change, delete, restore, enable, pause, signing secrets."""

from datetime import timedelta
from typing import TypeVar

import structlog

from dispatcher.console import masking
from dispatcher.console.api.models import (
    DeletedWebhook,
    DeletedWebhooks,
    GeneratedSecretModel,
    NewSigningSecret,
    SecretEnd,
    SigningSecretList,
    Webhook,
    WebhookConfiguration,
    WebhookDraft,
    WebhookList,
    WebhookPage,
    WebhookSummary,
)
from dispatcher.console.api.route import PREFIX, Call, Empty, Reply
from dispatcher.console.model import Person
from dispatcher.console.signing_secrets import end_signing_secret, generate_signing_secret, signing_secrets_of
from dispatcher.errors import DispatcherError
from dispatcher.stores.sql.records import RESTORABLE, StoredWebhook, WebhookQuery

Summary = TypeVar("Summary", bound=WebhookSummary)

log = structlog.get_logger(__name__)


async def list_webhooks(call: Call[WebhookList, Empty]) -> Reply:
    asked = call.query
    query = WebhookQuery(**{name: getattr(asked, name) for name in WebhookList.model_fields})
    page = await call.services.webhooks.search(query, orgs=call.person.orgs)
    end = asked.offset + len(page.items)
    following = call.next_page(offset=end) if page.items and end < page.total else None
    items = tuple(_summary(WebhookSummary, one, call.person) for one in page.items)
    return Reply(WebhookPage(items=items, total=page.total, next=following), links(following))


async def get_webhook(call: Call[Empty, Empty]) -> Reply:
    return _reply(await call.services.webhooks.get(call.id, orgs=call.person.orgs), call.person)


async def create_webhook(call: Call[Empty, WebhookDraft]) -> Reply:
    webhooks, orgs = call.services.webhooks, call.person.orgs
    config = await webhooks.resolve(call.body.root, webhook_id=None, orgs=orgs)
    stored = await webhooks.create(config, by=call.person.name, orgs=orgs)
    return _reply(stored, call.person, {"Location": f"{PREFIX}/webhooks/{stored.id}"})


async def replace_webhook(call: Call[Empty, WebhookDraft]) -> Reply:
    webhooks, orgs = call.services.webhooks, call.person.orgs
    version = call.wanted_version((await webhooks.get(call.id, orgs=orgs)).version)
    read = None if call.takes_any_version else version
    config = await webhooks.resolve(call.body.root, webhook_id=call.id, orgs=orgs, expected_version=read)
    stored = await webhooks.update(call.id, config, expected_version=version, by=call.person.name, orgs=orgs)
    return _reply(stored, call.person)


async def delete_webhook(call: Call[Empty, Empty]) -> Reply:
    webhooks, orgs = call.services.webhooks, call.person.orgs
    version = call.wanted_version((await webhooks.get(call.id, orgs=orgs)).version)
    await webhooks.delete(call.id, expected_version=version, by=call.person.name, orgs=orgs)
    return Reply()


async def enable_webhook(call: Call[Empty, Empty]) -> Reply:
    stored = await call.services.webhooks.reactivate(call.id, by=call.person.name, orgs=call.person.orgs)
    try:
        await call.services.lanes.enable(stored.tenant)
    except DispatcherError as error:  # they notice it in the store, only later
        log.warning("dispatchers could not enable a tenant", why=str(error))
    return _reply(stored, call.person)


async def pause_webhook(call: Call[Empty, Empty]) -> Reply:
    return await _set_paused(call, paused=True)


async def resume_webhook(call: Call[Empty, Empty]) -> Reply:
    return await _set_paused(call, paused=False)


async def _set_paused(call: Call[Empty, Empty], *, paused: bool) -> Reply:
    webhooks, person = call.services.webhooks, call.person
    return _reply(await webhooks.set_paused(call.id, paused=paused, by=person.name, orgs=person.orgs), person)


async def generate_secret(call: Call[Empty, NewSigningSecret]) -> Reply:
    hours = call.body.end_older_in_hours
    end_older_in = None if hours is None else timedelta(hours=hours)
    made = await generate_signing_secret(call.services, call.person, call.id, call.body.kind, end_older_in=end_older_in)
    content = GeneratedSecretModel(
        secret=made.text,
        fingerprint=made.fingerprint,
        public_key=made.public_key,
        older_end_at=made.older_end,
        version=made.webhook.version,
    )
    return Reply(content, {"ETag": f'"{made.webhook.version}"'})


async def list_secrets(call: Call[Empty, Empty]) -> Reply:
    stored = await call.services.webhooks.get(call.id, orgs=call.person.orgs)
    found = await signing_secrets_of(call.services, call.person, stored)
    return Reply(SigningSecretList(items=tuple(found)))


async def end_secret(call: Call[Empty, SecretEnd]) -> Reply:
    fingerprint = call.path["fingerprint"]
    return _reply(await end_signing_secret(call.services, call.person, call.id, fingerprint, call.body.at), call.person)


async def list_deleted(call: Call[Empty, Empty]) -> Reply:
    found = await call.services.webhooks.list_deleted(orgs=call.person.orgs)
    return Reply(DeletedWebhooks(items=tuple(_deleted(one, call.person) for one in found)))


async def restore_webhook(call: Call[Empty, Empty]) -> Reply:
    person = call.person
    return _reply(await call.services.webhooks.restore(call.id, by=person.name, orgs=person.orgs), person)


async def erase_webhook(call: Call[Empty, Empty]) -> Reply:
    await call.services.webhooks.erase(call.id, by=call.person.name, orgs=call.person.orgs)
    return Reply()


def _deleted(stored: StoredWebhook, person: Person) -> DeletedWebhook:
    deleted_at = stored.deleted_at or stored.updated_at
    until = deleted_at + RESTORABLE
    return _summary(DeletedWebhook, stored, person, deleted_at=deleted_at, restorable_until=until)


def links(following: str | None) -> dict[str, str]:
    """Returns the header that names the next page (RFC 8288)."""
    return {"Link": f'<{following}>; rel="next"'} if following else {}


def _reply(stored: StoredWebhook, person: Person, headers: dict[str, str] | None = None) -> Reply:
    document = dict(stored.document) if person.is_admin else masking.document(stored.document)
    webhook = _summary(Webhook, stored, person, configuration=WebhookConfiguration(document))
    return Reply(webhook, {"ETag": f'"{stored.version}"'} | (headers or {}))


def _summary(model: type[Summary], stored: StoredWebhook, person: Person, **values: object) -> Summary:
    url = stored.url if person.is_admin else masking.url(stored.url)
    return model.of(stored, org=stored.tenant.org, sandbox=stored.tenant.sandbox, url=url, **values)
