"""Handlers for dead events and their redrive."""

import base64
from dataclasses import replace

from dispatcher.console import actions
from dispatcher.console.api.models import (
    ChosenEvents,
    DeadEventPage,
    DeadFilter,
    DeadList,
    DeadRecordModel,
    RecordHeader,
    RedriveOrder,
)
from dispatcher.console.api.route import PREFIX, Call, Empty, Reply
from dispatcher.console.api.webhooks import links
from dispatcher.console.model import DeadEventModel, DeadQuery, Person
from dispatcher.console.request_body import in_any_case
from dispatcher.contract import redaction
from dispatcher.contract.tenant import TenantKey

_REDRIVEN = {"no": False, "yes": True, "both": None}


async def list_dead_events(call: Call[DeadList, Empty]) -> Reply:
    asked = call.query
    query = _query(asked, asked.tenant, redriven=_REDRIVEN[asked.redriven], before=asked.before, limit=asked.limit)
    page = call.services.dead_events.search(query, orgs=call.person.orgs)
    following = None if page.next is None else call.next_page(before=page.next)
    content = DeadEventPage(
        items=tuple(_shown(one, call.person) for one in page.items),
        total=page.total,
        next=following,
        is_complete=page.is_complete,
        problem=call.services.dead_events.problem,
    )
    return Reply(content, links(following))


async def get_dead_event(call: Call[Empty, Empty]) -> Reply:
    return Reply(_shown(call.services.dead_events.get(call.id, orgs=call.person.orgs), call.person))


async def get_dead_record(call: Call[Empty, Empty]) -> Reply:
    _, record = await actions.open_record(call.services, call.person, call.id)
    headers = tuple(RecordHeader(name=name, value=_base64(value)) for name, value in record.headers)
    return Reply(DeadRecordModel(id=call.id, key=_base64(record.key), value=_base64(record.value), headers=headers))


def _base64(value: bytes | None) -> str | None:
    return None if value is None else base64.b64encode(value).decode()


async def redrive(call: Call[Empty, RedriveOrder]) -> Reply:
    order = call.body
    tenant = TenantKey(order.org, order.sandbox)
    chosen = frozenset(order.events.ids) if isinstance(order.events, ChosenEvents) else None
    which = DeadFilter() if isinstance(order.events, ChosenEvents) else order.events
    job = await actions.redrive(call.services, call.person, tenant, chosen, _query(which, tenant))
    return Reply(job, {"Location": f"{PREFIX}/redrives/{job.id}"})


async def get_redrive(call: Call[Empty, Empty]) -> Reply:
    return Reply(await call.services.jobs.get(call.id, orgs=call.person.orgs))


def _query(
    asked: DeadFilter,
    tenant: TenantKey | None,
    *,
    redriven: bool | None = False,
    before: str | None = None,
    limit: int = 200,
) -> DeadQuery:
    return DeadQuery(
        tenant=tenant,
        reasons=frozenset(reason.value for reason in asked.reasons),
        message_statuses=in_any_case(() if asked.message_status is None else [asked.message_status]),
        channels=frozenset() if asked.channel is None else frozenset({asked.channel.value}),
        campaign_id=asked.campaign,
        since=None if asked.since is None else asked.since.timestamp(),
        until=None if asked.until is None else asked.until.timestamp(),
        redriven=redriven,
        before=before,
        limit=limit,
    )


def _shown(event: DeadEventModel, person: Person) -> DeadEventModel:
    if event.recipient is None or person.is_admin:
        return event
    return replace(event, recipient=redaction.recipient(event.recipient))
