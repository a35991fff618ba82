"""Handlers for a webhook's deliveries: outcomes, attempts, lane, waiting events."""

from dispatcher.console.api.models import (
    AttemptList,
    AttemptPageModel,
    LaneAnswer,
    OutcomesModel,
    OutcomesQuery,
    StateModel,
    WaitingModel,
)
from dispatcher.console.api.route import Call, Empty, Query, Reply
from dispatcher.console.api.webhooks import links
from dispatcher.console.model import AttemptQuery
from dispatcher.console.outcomes import known_since, outcomes_of
from dispatcher.console.webhook_state import state_of
from dispatcher.contract.tenant import TenantKey


async def get_outcomes(call: Call[OutcomesQuery, Empty]) -> Reply:
    tenant, attempts = await _tenant(call), call.services.attempts
    found = await outcomes_of(call.services, tenant, call.query.window)
    since = known_since(call.services, found)
    last = attempts.last_delivery(tenant)
    return Reply(OutcomesModel.of(found, last_delivery=last, known_since=since, problem=attempts.problem))


async def list_attempts(call: Call[AttemptList, Empty]) -> Reply:
    tenant, asked = await _tenant(call), call.query
    query = AttemptQuery(event_id=asked.event_id, outcome=asked.outcome, before=asked.before, limit=asked.limit)
    page = call.services.attempts.search(tenant, query)
    following = None if page.next is None else call.next_page(before=page.next)
    content = AttemptPageModel(items=page.items, next=following, problem=call.services.attempts.problem)
    return Reply(content, links(following))


async def get_state(call: Call[Empty, Empty]) -> Reply:
    webhook = await call.services.webhooks.get(call.id, orgs=call.person.orgs)
    return Reply(StateModel.of(await state_of(call.services, webhook)))


async def get_lane(call: Call[Empty, Empty]) -> Reply:
    return Reply(LaneAnswer(lane=await call.services.lanes.of(await _tenant(call))))


async def get_waiting(call: Call[Empty, Empty]) -> Reply:
    return Reply(WaitingModel(tiers=tuple(await call.services.waiting.of(await _tenant(call)))))


async def _tenant(call: Call[Query, Empty]) -> TenantKey:
    return (await call.services.webhooks.get(call.id, orgs=call.person.orgs)).tenant
