"""Handlers for dead events and their redrive."""

import base64

from dispatcher.console import actions
from dispatcher.console.api.deliveries import moment, moment_or_none, origin_model
from dispatcher.console.api.models import (
    ChosenEvents,
    DeadEventModel,
    DeadEventPage,
    DeadFilter,
    DeadList,
    DeadRecordModel,
    RecordHeader,
    RedriveModel,
    RedriveOrder,
)
from dispatcher.console.api.route import PREFIX, Call, Empty, Reply
from dispatcher.console.api.webhooks import links
from dispatcher.console.api_errors import refused_parameter
from dispatcher.console.model import DeadFact, DeadQuery, Person, RedriveJob
from dispatcher.contract import redaction
from dispatcher.contract.tenant import TenantKey

_REDRIVEN = {"no": False, "yes": True, "both": None}


async def list_dead_events(call: Call[DeadList, Empty]) -> Reply:
    asked = call.query
    if (asked.org is None) != (asked.sandbox is None):
        missing = "org" if asked.org is None else "sandbox"
        raise refused_parameter(missing, "org and sandbox belong together: give both, or neither")
    tenant = None if asked.org is None or asked.sandbox is None else TenantKey(asked.org, asked.sandbox)
    query = _query(asked, tenant, redriven=_REDRIVEN[asked.redriven], before=asked.before, limit=asked.limit)
    page = call.services.dead_events.search(query, orgs=call.person.orgs)
    following = None if page.next is None else call.next_page(before=page.next)
    content = DeadEventPage(
        items=tuple(_event(one, call.person) for one in page.items),
        total=page.total,
        next=following,
        is_complete=page.is_complete,
        problem=call.services.dead_events.problem,
    )
    return Reply(content, links(following))


async def get_dead_event(call: Call[Empty, Empty]) -> Reply:
    return Reply(_event(call.services.dead_events.get(call.id, orgs=call.person.orgs), call.person))


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
    return Reply(job_model(job), {"Location": f"{PREFIX}/redrives/{job.id}"})


async def get_redrive(call: Call[Empty, Empty]) -> Reply:
    return Reply(job_model(call.services.dead_events.job(call.id, orgs=call.person.orgs)))


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
        message_status=asked.message_status,
        since=None if asked.since is None else asked.since.timestamp(),
        until=None if asked.until is None else asked.until.timestamp(),
        redriven=redriven,
        before=before,
        limit=limit,
    )


def _event(fact: DeadFact, person: Person) -> DeadEventModel:
    recipient = fact.recipient
    if recipient is not None and not person.is_admin:
        recipient = redaction.recipient(recipient)
    return DeadEventModel(
        id=fact.id,
        org=None if fact.tenant is None else fact.tenant.org,
        sandbox=None if fact.tenant is None else fact.tenant.sandbox,
        event_id=fact.event_id,
        died_at=moment(fact.died_at),
        first_seen=moment_or_none(fact.first_seen),
        reason=fact.reason,
        detail=fact.detail,
        attempts=fact.attempts,
        last_status=fact.last_status,
        message_status=fact.message_status,
        channel=fact.channel,
        recipient=recipient,
        redriven=fact.redriven,
        origin=origin_model(fact.origin),
    )


def job_model(job: RedriveJob) -> RedriveModel:
    """Converts a job to its model."""
    return RedriveModel(
        id=job.id,
        org=job.tenant.org,
        sandbox=job.tenant.sandbox,
        by=job.by,
        started_at=moment(job.started_at),
        total=job.total,
        sent=job.sent,
        already=job.already,
        gone=job.gone,
        state=job.state,
        kind=job.kind,
        stopping=job.is_stopping and not job.is_over,
        finished_at=moment_or_none(job.finished_at),
        problem=job.problem,
    )
