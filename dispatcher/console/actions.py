"""Test events and redrives, by API or by page: who may, what is done, and its line of history."""

from dispatcher.config.webhooks import Channel, WebhookConfig
from dispatcher.console.model import DeadQuery, Person, RedriveJob, TestResult
from dispatcher.console.services import Services
from dispatcher.contract.tenant import TenantKey
from dispatcher.errors import NotAllowed, NotFound
from dispatcher.stores.sql.records import AuditAction


async def send_test(
    services: Services,
    person: Person,
    config: WebhookConfig,
    channel: Channel,
    message_status: str,
    webhook_id: str | None,
) -> TestResult:
    """Send a sample event.

    Args:
        webhook_id: the stored webhook that this is or will be; None before it is saved.

    Raises:
        NotAllowed: the organisation is none of the person's: a sample speaks in its name.
        ConfigError: a key can't be used.
        StoreUnavailable: it was sent, but not written down.
    """
    if not person.may_see(config.org):
        raise NotAllowed("the organisation is none of yours")
    result = await services.test_events.send(config, channel, message_status)
    await services.audit.record(
        AuditAction.TEST,
        by=person.name,
        tenant=config.tenant,
        webhook_id=webhook_id,
        details={
            "channel": channel.value,
            "message_status": message_status,
            "verdict": result.verdict,
            "reason": result.reason,
            "status": result.status,
        },
    )
    return result


async def redrive(
    services: Services, person: Person, tenant: TenantKey, ids: frozenset[str] | None, query: DeadQuery
) -> RedriveJob:
    """Send some (`ids`) of a tenant's dead events again, or all that match; returns when it has begun or waits.

    Raises:
        NotFound: no such tenant for this person, or no such event.
        DispatcherError: the broker can't be reached, or a redrive of the tenant is under way.
        StoreUnavailable: it has begun, but was not written down.
    """
    if not person.may_see(tenant.org):
        raise NotFound("there is no such organisation and sandbox")
    job = await services.dead_events.redrive(tenant, ids=ids, query=query, by=person.name, orgs=person.orgs)
    webhook = await services.webhooks.of_tenant(tenant, orgs=person.orgs)
    await services.audit.record(
        AuditAction.REDRIVE,
        by=person.name,
        tenant=tenant,
        webhook_id=None if webhook is None else webhook.id,
        details={"job": job.id, "events": job.total, "chosen": ids is not None},
    )
    return job
