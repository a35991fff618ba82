"""Sends events again for the API and the pages: checks first, starts and stops jobs, and writes audit entries."""

import asyncio
import time
from collections.abc import Awaitable
from dataclasses import dataclass, replace
from typing import Literal

from pydantic import JsonValue

from dispatcher.config.webhooks import WebhookConfig
from dispatcher.console.actions import raise_if_skipped
from dispatcher.console.model import DeadQuery, Person
from dispatcher.console.resend_model import DeadCount, RedriveModel, ResendCheck, ResendQuery, SkippedCount
from dispatcher.console.services import Services
from dispatcher.console.sources.skip_forecast import add_skipped
from dispatcher.console.webhook_state import WebhookState, state_of
from dispatcher.contract.search_text import first_known
from dispatcher.errors import ConfigError, DispatcherError, NotFound
from dispatcher.stores.sql.records import AuditAction, StoredWebhook
from dispatcher.tasks import cancel_and_wait


@dataclass(frozen=True, slots=True)
class ResendOrder:
    """Selects the events of a webhook that are sent again."""

    query: ResendQuery
    delivered: bool = True
    dead: bool = True
    """Dead events that were not sent again yet."""

    @property
    def dead_query(self) -> DeadQuery:
        """Selects the dead events; a selection by id ignores the other conditions."""
        query = self.query
        if query.event_ids:
            return DeadQuery(event_ids=frozenset(query.event_ids))
        return DeadQuery(
            reasons=query.reasons,
            message_statuses=query.message_statuses,
            channels=query.channels,
            campaign_id=query.campaign_id,
            since=query.since,
            until=query.until,
        )


@dataclass(frozen=True, slots=True)
class ResendPlan:
    """The events that a resend would send, and reasons why they may fail again."""

    delivered: ResendCheck
    dead: DeadCount
    warnings: tuple[str, ...]
    skipped: tuple[SkippedCount, ...]
    """How many of the events the webhook would skip, because its lists have changed."""
    skipped_is_at_least: bool
    """True if not all events that match were looked at, so that more may be skipped."""
    webhook_state: WebhookState
    delivered_since: float | None = None
    """Time from which on deliveries are kept, if the order begins earlier: the ones before can't be sent again."""
    campaign_id: str | None = None
    """The order's campaign as the events have it; as it was typed if none is known."""

    @property
    def events(self) -> int:
        """Number of events that would be sent, as far as they were counted."""
        return self.delivered.events + self.dead.events

    @property
    def is_at_least(self) -> bool:
        """True if more events may match than were counted: all that match are sent."""
        return self.delivered.is_at_least or self.dead.is_at_least

    @property
    def is_empty(self) -> bool:
        """True if nothing matches."""
        return not self.events and not self.is_at_least


async def check_resend(services: Services, webhook: StoredWebhook, order: ResendOrder) -> ResendPlan:
    """Counts the events that a resend would send, and collects reasons why they may fail again.

    Raises:
        WouldBeSkipped: the webhook is switched off.
        DispatcherError: the broker or a database doesn't answer.
    """
    raise_if_skipped(webhook)
    order = await _with_known_campaign(services, webhook, order)
    # Concurrently, because a person waits, and each takes seconds if the broker does not answer.
    checks = (
        asyncio.create_task(_check_delivered(services, webhook, order)),
        asyncio.create_task(_count_dead(services, webhook, order)),
        asyncio.create_task(state_of(services, webhook)),
    )
    try:
        await asyncio.wait(checks)
    finally:
        await cancel_and_wait(*checks)
    if failed := [error for check in checks if (error := check.exception()) is not None]:
        raise failed[0]
    delivered, dead, webhook_state = checks[0].result(), checks[1].result(), checks[2].result()
    skipped_dead = would_be_skipped(services, webhook, None, order.dead_query) if order.dead else ()
    warnings = []
    if order.delivered and services.resends is None:
        warnings.append("Delivered events can't be found: there is no history store.")
    return ResendPlan(
        delivered,
        dead,
        (*warnings, *webhook_state.reasons),
        add_skipped(delivered.skipped, skipped_dead),
        delivered.is_at_least or (order.dead and services.dead_events.problem is not None),
        webhook_state,
        _kept_since(services, order),
        order.query.campaign_id,
    )


async def _with_known_campaign(services: Services, webhook: StoredWebhook, order: ResendOrder) -> ResendOrder:
    """Returns the order with the campaign as the events have it; as it was typed if none is known.

    It is the first reading that an entry of the history or a dead event has, whichever of them the order includes.
    If each had its own, dead events of another campaign could be sent: `spring:sale` also reads as `sale`.

    Raises:
        StoreUnavailable: the history store did not answer in time.
    """
    typed, tenant = order.query.campaign_id, webhook.tenant
    if typed is None or order.query.event_ids:
        return order
    known: set[str | None] = set()
    if order.delivered and services.history is not None:
        known.add(await services.history.known_campaign(typed, tenant=tenant))
    if order.dead:
        known.add(services.dead_events.known_campaign(typed, tenant=tenant, orgs=frozenset({tenant.org})))
    return replace(order, query=replace(order.query, campaign_id=first_known(typed, known) or typed))


async def _check_delivered(services: Services, webhook: StoredWebhook, order: ResendOrder) -> ResendCheck:
    if not order.delivered or services.resends is None:
        return ResendCheck(0, 0)
    return await services.resends.check(webhook.tenant, order.query, _config_of(webhook))


async def _count_dead(services: Services, webhook: StoredWebhook, order: ResendOrder) -> DeadCount:
    if not order.dead:
        return DeadCount(0)
    return await services.dead_events.count_matching(webhook.tenant, order.dead_query)


def would_be_skipped(
    services: Services, webhook: StoredWebhook, ids: frozenset[str] | None, query: DeadQuery
) -> tuple[SkippedCount, ...]:
    """Returns how many of the dead events the webhook would skip, by reason, as far as the console keeps them.

    Args:
        ids: the selected events, for which `query` is ignored; None for all that match it.
    """
    config = _config_of(webhook)
    return () if config is None else services.dead_events.would_be_skipped(webhook.tenant, config, ids=ids, query=query)


def _config_of(webhook: StoredWebhook) -> WebhookConfig | None:
    try:
        return webhook.config()
    except ConfigError:  # of another version of this program: the webhook's state reports it
        return None


def _kept_since(services: Services, order: ResendOrder) -> float | None:
    """Returns the time from which on deliveries are kept, if the order begins earlier."""
    if not order.delivered or order.query.event_ids or services.resends is None:
        return None
    kept = time.time() - services.settings.history.keep.delivered
    return kept if order.query.since is None or order.query.since < kept else None


async def start_resend(
    services: Services, person: Person, webhook: StoredWebhook, order: ResendOrder
) -> tuple[RedriveModel, ...]:
    """Starts a job for the delivered events and one for the dead ones, as far as there are any.

    Returns the jobs. If one was started and the other could not be, the other is a failed job that says why.

    Raises:
        NotFound: nothing matches.
        WouldBeSkipped: the webhook is switched off.
        AlreadyRunning: such a job is running.
        DispatcherError: the broker or a database doesn't answer.
    """
    raise_if_skipped(webhook)
    order = await _with_known_campaign(services, webhook, order)
    jobs: list[RedriveModel] = []
    problems: dict[Literal["delivered", "dead"], DispatcherError] = {}
    missing: list[NotFound] = []

    async def start(kind: Literal["delivered", "dead"], starting: Awaitable[RedriveModel]) -> None:
        try:
            jobs.append(await starting)
        except NotFound as error:  # nothing of this kind matches
            missing.append(error)
        except DispatcherError as error:
            problems[kind] = error

    if order.delivered and services.resends is not None:
        await start("delivered", services.resends.start(webhook.tenant, order.query, person.name))
    if order.dead:
        await start("dead", _start_redrive(services, person, webhook, order.dead_query))
    if not jobs:
        raise next(iter([*problems.values(), *missing]), NotFound("no event matches"))
    for job in jobs:
        await _audit_start(services, person, webhook, order, job)
    failed = [
        await services.jobs.add_failed(webhook.tenant, person.name, kind, error.for_tenants)
        for kind, error in problems.items()
    ]
    return (*jobs, *failed)


async def _audit_start(
    services: Services, person: Person, webhook: StoredWebhook, order: ResendOrder, job: RedriveModel
) -> None:
    details: dict[str, JsonValue] = {
        "job": job.id,
        "events": job.total,
        "kind": job.kind,
        "chosen": bool(order.query.event_ids),
        **({"at_least": True} if job.total_is_at_least else {}),
    }
    await services.audit.record(
        AuditAction.REDRIVE, by=person.name, tenant=webhook.tenant, webhook_id=webhook.id, details=details
    )


async def _start_redrive(services: Services, person: Person, webhook: StoredWebhook, query: DeadQuery) -> RedriveModel:
    """Starts a job that reads the whole dead-letter topic, because the console may not have all of it in memory.

    Raises:
        NotFound: nothing matches.
    """
    dead = services.dead_events
    if dead.problem is None and not (await dead.count_matching(webhook.tenant, query)).events:
        raise NotFound("no dead event matches")
    return await dead.redrive(webhook.tenant, ids=None, query=query, by=person.name, orgs=person.orgs)


async def stop_job(services: Services, person: Person, job_id: str) -> RedriveModel:
    """Stops a job of any console after its running batch; does nothing if it is over. Raises NotFound."""
    before = await services.jobs.get(job_id, orgs=person.orgs)
    job = await services.jobs.stop(job_id, orgs=person.orgs)
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
