"""Handlers for the keys that sign tokens: list, generate the next one, start and remove."""

from datetime import timedelta

from dispatcher.console.actions import usable_config
from dispatcher.console.api.models.signing_keys import NewSigningKey, SigningKeyList
from dispatcher.console.api.route import Call, Empty, Reply
from dispatcher.console.model import Person
from dispatcher.console.services import Services
from dispatcher.console.signing_keys import (
    generate_signing_key,
    remove_signing_key,
    signing_keys_of,
    start_signing_key,
)
from dispatcher.stores.sql.records import StoredWebhook


async def list_keys(call: Call[Empty, Empty]) -> Reply:
    stored = await call.services.webhooks.get(call.id, orgs=call.person.orgs)
    return await _reply(call.services, call.person, stored)


async def generate_key(call: Call[Empty, NewSigningKey]) -> Reply:
    starts_in = timedelta(hours=call.body.starts_in_hours)
    stored = await generate_signing_key(call.services, call.person, call.id, starts_in)
    return await _reply(call.services, call.person, stored)


async def start_key(call: Call[Empty, Empty]) -> Reply:
    stored = await start_signing_key(call.services, call.person, call.id, call.path["fingerprint"])
    return await _reply(call.services, call.person, stored)


async def remove_key(call: Call[Empty, Empty]) -> Reply:
    stored = await remove_signing_key(call.services, call.person, call.id, call.path["fingerprint"])
    return await _reply(call.services, call.person, stored)


async def _reply(services: Services, person: Person, stored: StoredWebhook) -> Reply:
    keys = await signing_keys_of(services, person, stored.id, await usable_config(services, person, stored))
    return Reply(SigningKeyList(items=tuple(keys)), {"ETag": f'"{stored.version}"'})
