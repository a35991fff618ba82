"""Sends events again for the API and the pages: checks first, starts and stops jobs, and writes audit entries."""

from dataclasses import dataclass
from typing import Final

from pydantic import JsonValue

from dispatcher.console.model import DeadEventModel, DeadQuery, Person, RedriveModel, ResendCheck, ResendQuery
from dispatcher.console.services import Services
from dispatcher.console.webhook_state import state_of
from dispatcher.contract.tenant import TenantKey
from dispatcher.errors import DispatcherError, NotFound
from dispatcher.stores.sql.records import AuditAction, StoredWebhook

MOST_DEAD: Final = 10_000
"""Dead events of one job that are chosen one by one, because the filter isn't one of the dead-letter index."""


@dataclass(frozen=True, slots=True)
class ResendOrder:
    """Selects the events of a webhook that are sent again."""

    query: ResendQuery
    delivered: bool = True
    dead: bool = True
    """Dead events that were not sent again yet. A campaign selects delivered events only."""


@dataclass(frozen=True, slots=True)
class ResendPlan:
    """The events that a resend would send, and reasons why they may fail again."""

    delivered: ResendCheck
    dead: int
    warnings: tuple[str, ...]
    dead_is_cut: bool = False
    """True if more dead events match than one job sends: the first are the newest `MOST_DEAD`."""

    @property
    def events(self) -> int:
        """Number of events that would be sent."""
        return self.delivered.events + self.dead


async def check_resend(services: Services, webhook: StoredWebhook, order: ResendOrder) -> ResendPlan:
    """Counts the events that a resend would send, and collects reasons why they may fail again.

    Raises:
        DispatcherError: the broker or a database doesn't answer.
    """
    delivered = ResendCheck(0, 0)
    warnings: list[str] = []
    if order.delivered and services.resends is not None:
        delivered = await services.resends.check(webhook.tenant, order.query)
    elif order.delivered:
        warnings.append("Delivered events can't be found: there is no history store.")
    if order.dead and order.query.campaign_id is not None and not order.query.event_ids:
        warnings.append("Dead events are left out: they can't be selected by campaign.")
    ids, is_cut = _dead_ids(services, webhook.tenant, order)
    warnings += (await state_of(services, webhook)).reasons
    return ResendPlan(delivered, len(ids), tuple(warnings), is_cut)


@dataclass(frozen=True, slots=True)
class StartedResend:
    """The jobs of a resend."""

    jobs: tuple[RedriveModel, ...]
    dead_is_cut: bool
    """True if more dead events match than the job sends: the newest `MOST_DEAD` are sent first."""


async def start_resend(services: Services, person: Person, webhook: StoredWebhook, order: ResendOrder) -> StartedResend:
    """Starts a job for the delivered events and one for the dead ones, as far as there are any.

    Raises:
        NotFound: nothing matches.
        DispatcherError: too many match, such a job is running, or the broker or a database doesn't answer. If one of
            two jobs was started, the error is not raised.
    """
    jobs: list[RedriveModel] = []
    problem: DispatcherError = NotFound("no event matches")
    if order.delivered and services.resends is not None:
        try:
            jobs.append(await services.resends.start(webhook.tenant, order.query, person.name))
        except DispatcherError as error:
            problem = error
    ids, is_cut = _dead_ids(services, webhook.tenant, order)
    if ids:
        try:
            jobs.append(
                await services.dead_events.redrive(
                    webhook.tenant, ids=ids, query=DeadQuery(), by=person.name, orgs=person.orgs
                )
            )
        except DispatcherError as error:
            problem = error
    if not jobs:
        raise problem
    for job in jobs:
        details: dict[str, JsonValue] = {
            "job": job.id,
            "events": job.total,
            "kind": job.kind,
            "chosen": bool(order.query.event_ids),
        }
        await services.audit.record(
            AuditAction.REDRIVE, by=person.name, tenant=webhook.tenant, webhook_id=webhook.id, details=details
        )
    return StartedResend(tuple(jobs), is_cut and any(job.kind == "dead" for job in jobs))


async def stop_job(services: Services, person: Person, job_id: str) -> RedriveModel:
    """Stops a job after its running batch; does nothing if it is over. Raises NotFound."""
    before = services.dead_events.job(job_id, orgs=person.orgs)
    job = services.dead_events.stop_job(job_id, orgs=person.orgs)
    if not before.is_over and not before.stopping:
        webhook = await services.webhooks.of_tenant(job.tenant, orgs=person.orgs)
        await services.audit.record(
            AuditAction.REDRIVE,
            by=person.name,
            tenant=job.tenant,
            webhook_id=None if webhook is None else webhook.id,
            details={"job": job.id, "stopped": True, "sent": job.sent},
        )
    return job


def _dead_ids(services: Services, tenant: TenantKey, order: ResendOrder) -> tuple[frozenset[str], bool]:
    """Returns the dead events that the order selects and no redrive has sent again, and whether there are more.

    If there are more than `MOST_DEAD`, the newest are returned.
    """
    query = order.query
    if not order.dead or (query.campaign_id is not None and not query.event_ids):
        return frozenset(), False
    event_ids = frozenset(query.event_ids)

    def is_wanted(one: DeadEventModel) -> bool:
        if event_ids:
            return one.event_id in event_ids
        return (
            (query.since is None or one.died_at >= query.since)
            and (query.until is None or one.died_at < query.until)
            and (not query.message_statuses or one.message_status in query.message_statuses)
            and (not query.channels or one.channel in query.channels)
        )

    ids, is_cut = services.dead_events.select(tenant, is_wanted, MOST_DEAD)
    return frozenset(ids), is_cut
