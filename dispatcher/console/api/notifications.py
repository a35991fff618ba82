"""Handlers for notifications: what was sent, the contacts of a webhook, and tests."""

from dispatcher.console import actions
from dispatcher.console.api.models import (
    ContactList,
    ContactModel,
    ContactOrder,
    NotificationList,
    NotificationModel,
    NotificationPage,
    SentTests,
)
from dispatcher.console.api.route import Call, Empty, Reply
from dispatcher.console.api.webhooks import links
from dispatcher.console.api_errors import ApiError
from dispatcher.console.services import Services
from dispatcher.contract import redaction
from dispatcher.notifications.desk import NotificationDesk
from dispatcher.stores.sql.notification_store import Message


async def list_contacts(call: Call[Empty, Empty]) -> Reply:
    webhook = await call.services.webhooks.get(call.id, orgs=call.person.orgs)
    desk = _desk(call.services)
    shown = (lambda text: text) if call.person.is_admin else redaction.recipient
    contacts = await desk.contacts(webhook.config())
    items = tuple(ContactModel.of(one, address=shown(one.address)) for one in contacts)
    return Reply(ContactList(items=items, problem=desk.problem))


async def ask_contact(call: Call[Empty, ContactOrder]) -> Reply:
    webhook = await call.services.webhooks.get(call.id, orgs=call.person.orgs)
    await _desk(call.services).ask_again(webhook.config(), call.body.address)
    return Reply()


async def test_contacts(call: Call[Empty, Empty]) -> Reply:
    webhook = await call.services.webhooks.get(call.id, orgs=call.person.orgs)
    desk = _desk(call.services)
    return Reply(SentTests(messages=await actions.test_notifications(call.services, desk, call.person, webhook)))


async def test_operator(call: Call[Empty, Empty]) -> Reply:
    desk = _desk(call.services)
    return Reply(SentTests(messages=await actions.test_notifications(call.services, desk, call.person, None)))


async def list_notifications(call: Call[NotificationList, Empty]) -> Reply:
    asked = call.query
    found = await _desk(call.services).recent(
        orgs=call.person.orgs, tenant=asked.tenant, before=asked.before, limit=asked.limit
    )
    following = call.next_page(before=found[-1].id) if len(found) == asked.limit else None
    return Reply(NotificationPage(items=tuple(map(_model, found)), next=following), links(following))


def _desk(services: Services) -> NotificationDesk:
    if services.notifications is None:
        why = "There are no notifications without a history store: the operator sets history.url."
        raise ApiError(404, "no_history", why)
    return services.notifications


def _model(one: Message) -> NotificationModel:
    return NotificationModel.of(one, org=one.tenant.org or None, sandbox=one.tenant.sandbox or None)
