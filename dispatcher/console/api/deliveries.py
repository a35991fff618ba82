"""Handlers for a webhook's deliveries: outcomes, attempts, lane, waiting events."""

from datetime import UTC, datetime

from dispatcher.console.api.models import (
    AttemptList,
    AttemptModel,
    AttemptPageModel,
    BucketModel,
    LaneAnswer,
    LaneModel,
    OriginModel,
    OutcomesModel,
    OutcomesQuery,
    StateModel,
    TierModel,
    WaitingModel,
)
from dispatcher.console.api.route import Call, Empty, Query, Reply
from dispatcher.console.api.webhooks import links
from dispatcher.console.model import AttemptFact, AttemptQuery
from dispatcher.console.webhook_state import state_of
from dispatcher.contract.records import Origin
from dispatcher.contract.tenant import TenantKey


async def get_outcomes(call: Call[OutcomesQuery, Empty]) -> Reply:
    tenant, attempts = await _tenant(call), call.services.attempts
    found = attempts.outcomes(tenant, call.query.window)
    buckets = tuple(
        BucketModel(start=moment(one.start), delivered=one.delivered, failed=one.failed, dead=one.dead)
        for one in found.buckets
    )
    return Reply(
        OutcomesModel(
            window=found.window,
            bucket_s=found.bucket_s,
            buckets=buckets,
            delivered=found.delivered,
            failed=found.failed,
            dead=found.dead,
            p50_ms=found.p50_ms,
            p95_ms=found.p95_ms,
            last_delivery=moment_or_none(attempts.last_delivery(tenant)),
            problem=attempts.problem,
        )
    )


async def list_attempts(call: Call[AttemptList, Empty]) -> Reply:
    tenant, asked = await _tenant(call), call.query
    query = AttemptQuery(event_id=asked.event_id, outcome=asked.outcome, before=asked.before, limit=asked.limit)
    page = call.services.attempts.search(tenant, query)
    following = None if page.next is None else call.next_page(before=page.next)
    items = tuple(map(_attempt, page.items))
    return Reply(
        AttemptPageModel(items=items, next=following, problem=call.services.attempts.problem), links(following)
    )


async def get_state(call: Call[Empty, Empty]) -> Reply:
    webhook = await call.services.webhooks.get(call.id, orgs=call.person.orgs)
    found = await state_of(call.services, webhook)
    return Reply(
        StateModel(
            state=found.state,
            since=moment_or_none(found.since),
            reasons=found.reasons,
            last_delivery=moment_or_none(found.last_delivery),
            dead=found.dead,
        )
    )


async def get_lane(call: Call[Empty, Empty]) -> Reply:
    lane = await call.services.lanes.of(await _tenant(call))
    if lane is None:
        return Reply(LaneAnswer(lane=None))
    return Reply(LaneAnswer(lane=LaneModel(**{name: getattr(lane, name) for name in LaneModel.model_fields})))


async def get_waiting(call: Call[Empty, Empty]) -> Reply:
    tiers = await call.services.waiting.of(await _tenant(call))
    found = tuple(
        TierModel(
            tier=one.tier,
            reason=one.reason,
            events=one.events,
            next_due=moment_or_none(one.next_due),
            expires_at=moment_or_none(one.expires_at),
            is_at_least=one.is_at_least,
        )
        for one in tiers
    )
    return Reply(WaitingModel(tiers=found))


def moment(seconds: float) -> datetime:
    """Converts Unix seconds to the API's times."""
    return datetime.fromtimestamp(seconds, UTC)


def moment_or_none(seconds: float | None) -> datetime | None:
    return None if seconds is None else moment(seconds)


def origin_model(origin: Origin) -> OriginModel:
    return OriginModel(topic=origin.topic, partition=origin.partition, offset=origin.offset)


async def _tenant(call: Call[Query, Empty]) -> TenantKey:
    return (await call.services.webhooks.get(call.id, orgs=call.person.orgs)).tenant


def _attempt(fact: AttemptFact) -> AttemptModel:
    return AttemptModel(
        at=moment(fact.at),
        event_id=fact.event_id,
        message_status=fact.message_status,
        channel=fact.channel,
        attempt=fact.attempt,
        status=fact.status,
        reason=fact.reason,
        detail=fact.detail,
        verdict=fact.verdict,
        elapsed_ms=fact.elapsed_ms,
        reused=fact.reused,
        origin=None if fact.origin is None else origin_model(fact.origin),
        answer=fact.answer,
    )
