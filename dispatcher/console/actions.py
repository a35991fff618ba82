"""Actions of the API and the pages: save a webhook, send a test event, redrive, open a dead event's record.

Each checks permissions, executes, and writes an audit entry.
"""

from dataclasses import replace

from dispatcher.config.webhooks import Channel, WebhookConfig
from dispatcher.console.model import DeadEventModel, DeadQuery, DeadRecord, Person, TestResultModel
from dispatcher.console.resend_model import RedriveModel
from dispatcher.console.services import Services
from dispatcher.contract.tenant import TenantKey
from dispatcher.errors import ConfigError, NotAllowed, NotFound, WouldBeSkipped
from dispatcher.notifications.desk import NotificationDesk
from dispatcher.stores.sql.records import AuditAction, ListedWebhook, StoredWebhook


async def save(
    services: Services, person: Person, stored: StoredWebhook, config: WebhookConfig, version: int | None
) -> StoredWebhook:
    """Saves an edit of a webhook.

    Args:
        version: the version that the person has read; None for the one in `stored`.

    Raises:
        NotFound: there is no such webhook any more.
        EditConflict: it was changed meanwhile.
        ConfigError: it can't be used.
    """
    return await services.webhooks.update(
        stored.id,
        config,
        expected_version=stored.version if version is None else version,
        by=person.name,
        orgs=person.orgs,
    )


async def usable_config(services: Services, person: Person, webhook: StoredWebhook) -> WebhookConfig | None:
    """Returns a webhook's configuration with its secrets; None if it can't be used: a secret can't be decrypted.

    Raises:
        NotFound: there is no such webhook any more.
    """
    try:
        return await services.webhooks.for_delivery(webhook.id, orgs=person.orgs)
    except ConfigError:  # the webhook's state and log report it
        return None


async def send_test(
    services: Services,
    person: Person,
    config: WebhookConfig,
    channel: Channel,
    message_status: str,
    webhook_id: str | None,
) -> TestResultModel:
    """Sends a sample event and records it in the audit log.

    Args:
        webhook_id: the stored webhook that is tested; None before it is saved.

    Raises:
        NotAllowed: the person doesn't belong to the organisation, in whose name the sample is sent.
        ConfigError: a key can't be used.
        StoreUnavailable: the event was sent, but not recorded.
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


def why_skipped(webhook: StoredWebhook | ListedWebhook | None) -> str:
    """Returns why events of a tenant with this webhook would be skipped if they were sent again; empty if they aren't.

    Skipped events would still be marked as sent again, and couldn't be sent after the webhook is repaired.
    """
    if webhook is None:
        return "there is no webhook for it: its events would be skipped"
    return "" if webhook.enabled else "the webhook is switched off; switch it on first: its events would be skipped"


def raise_if_skipped(webhook: StoredWebhook | None) -> None:
    """Raises WouldBeSkipped if events that are sent again would be skipped."""
    if reason := why_skipped(webhook):
        raise WouldBeSkipped(reason)


async def redrive(
    services: Services, person: Person, tenant: TenantKey, ids: frozenset[str] | None, query: DeadQuery
) -> RedriveModel:
    """Sends some (`ids`) of a tenant's dead events again, or all that match. Returns once the job runs or is queued.

    The query's campaign may be written as people paste it.

    Raises:
        NotFound: the person can't see the tenant, or an event doesn't exist.
        WouldBeSkipped: the tenant's webhook is switched off, or there is none.
        DispatcherError: the broker can't be reached, or a redrive of the tenant is running.
        StoreUnavailable: the redrive was started, but not recorded.
    """
    if not person.may_see(tenant.org):
        raise NotFound("there is no such organisation and sandbox")
    webhook = await services.webhooks.of_tenant(tenant, orgs=person.orgs)
    raise_if_skipped(webhook)
    query = services.dead_events.with_known_campaign(replace(query, tenant=tenant), orgs=person.orgs)
    job = await services.dead_events.redrive(tenant, ids=ids, query=query, by=person.name, orgs=person.orgs)
    await services.audit.record(
        AuditAction.REDRIVE,
        by=person.name,
        tenant=tenant,
        webhook_id=None if webhook is None else webhook.id,
        details={"job": job.id, "events": job.total, "chosen": ids is not None},
    )
    return job


async def test_notifications(
    services: Services, desk: NotificationDesk, person: Person, webhook: StoredWebhook | None
) -> int:
    """Sends a test to the contacts of a webhook, or to the operator, and records who did it in the audit log.

    Returns the number of messages.

    Raises:
        TooSoon, NotFound: see `NotificationDesk.send_test`.
        StoreUnavailable: the messages were perhaps sent, but not recorded.
    """
    messages = await desk.send_test(None if webhook is None else webhook.config(), person.name)
    await services.audit.record(
        AuditAction.NOTIFY,
        by=person.name,
        tenant=None if webhook is None else webhook.tenant,
        webhook_id=None if webhook is None else webhook.id,
        details={"test": True, "messages": messages},
    )
    return messages


async def open_record(services: Services, person: Person, dead_id: str) -> tuple[DeadEventModel, DeadRecord]:
    """Returns a dead event with its record, for operators, and records in the audit log who has seen it.

    Raises:
        NotAllowed: the person isn't an admin of all organisations: an unreadable record has no tenant.
        NotFound: it isn't a dead event, or no longer in the topic.
        DispatcherError: the broker can't be reached.
    """
    if not person.is_admin or person.orgs is not None:
        raise NotAllowed("records of dead events are for admins of all organisations")
    dead_event = services.dead_events.get(dead_id, orgs=None)
    record = await services.dead_events.record(dead_id)
    await services.audit.record(
        AuditAction.OPEN, by=person.name, tenant=dead_event.tenant, details={"dead_event": dead_id}
    )
    return dead_event, record
