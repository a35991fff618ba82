"""Handlers that send a webhook's events again, and handlers of the jobs that do so."""

from dispatcher.console import resending
from dispatcher.console.api.models import (
    RedriveList,
    RedrivePage,
    ResendCheckModel,
    ResendJobs,
    ResendRequest,
)
from dispatcher.console.api.route import Call, Empty, Reply
from dispatcher.console.request_body import in_any_case
from dispatcher.console.resend_model import ResendQuery
from dispatcher.console.resending import ResendOrder


async def check_resend(call: Call[Empty, ResendRequest]) -> Reply:
    webhook = await call.services.webhooks.get(call.id, orgs=call.person.orgs)
    plan = await resending.check_resend(call.services, webhook, _order(call.body))
    return Reply(
        ResendCheckModel(
            delivered=plan.delivered.events,
            delivered_is_at_least=plan.delivered.is_at_least,
            left_out=plan.delivered.left_out,
            sent_before=plan.delivered.sent_before,
            sent_before_since=plan.delivered.sent_before_since,
            dead=plan.dead.events,
            dead_is_at_least=plan.dead.is_at_least,
            gone=plan.delivered.gone,
            delivered_since=plan.delivered_since,
            would_be_skipped=plan.skipped,
            warnings=plan.warnings,
        )
    )


async def resend(call: Call[Empty, ResendRequest]) -> Reply:
    webhook = await call.services.webhooks.get(call.id, orgs=call.person.orgs)
    jobs = await resending.start_resend(call.services, call.person, webhook, _order(call.body))
    return Reply(ResendJobs(items=jobs))


async def list_redrives(call: Call[RedriveList, Empty]) -> Reply:
    asked = call.query
    jobs = await call.services.jobs.search(orgs=call.person.orgs, tenant=asked.tenant)
    return Reply(RedrivePage(items=tuple(jobs)))


async def stop_redrive(call: Call[Empty, Empty]) -> Reply:
    return Reply(await resending.stop_job(call.services, call.person, call.id))


def _order(asked: ResendRequest) -> ResendOrder:
    query = ResendQuery(
        event_ids=tuple(dict.fromkeys(asked.event_ids)),
        since=None if asked.since is None else asked.since.timestamp(),
        until=None if asked.until is None else asked.until.timestamp(),
        message_statuses=in_any_case(asked.message_statuses),
        channels=frozenset(asked.channels),
        reasons=in_any_case(asked.reasons),
        campaign_id=asked.campaign,
        checked_at=None if asked.checked_at is None else asked.checked_at.timestamp(),
    )
    return ResendOrder(query, "delivered" in asked.include, "dead" in asked.include)
