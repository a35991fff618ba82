"""Handlers for test events and previews, before or after a webhook is saved."""

from dispatcher.config.webhooks import WebhookConfig
from dispatcher.console.actions import send_test
from dispatcher.console.api.models import DraftTest, SampleEvent
from dispatcher.console.api.route import Call, Empty, Reply
from dispatcher.console.api_errors import refused_fields
from dispatcher.errors import ConfigError, NotAllowed


async def test_webhook(call: Call[Empty, SampleEvent]) -> Reply:
    config = await call.services.webhooks.for_delivery(call.id, orgs=call.person.orgs)
    return await _tested(call, config, call.body, call.id)


async def test_draft(call: Call[Empty, DraftTest]) -> Reply:
    return await _tested(call, await _drafted(call), call.body, call.body.webhook_id)


async def preview_draft(call: Call[Empty, DraftTest]) -> Reply:
    config = await _drafted(call)
    return Reply(call.services.test_events.preview(config, call.body.channel, call.body.message_status))


async def _drafted(call: Call[Empty, DraftTest]) -> WebhookConfig:
    try:
        config = await call.services.webhooks.resolve(
            call.body.webhook.root, webhook_id=call.body.webhook_id, orgs=call.person.orgs
        )
    except ConfigError as error:
        raise refused_fields(error.problems, below="webhook") from None
    if not call.person.may_see(config.org):
        raise NotAllowed("the organisation is none of yours")
    return config


async def _tested(
    call: Call[Empty, SampleEvent] | Call[Empty, DraftTest],
    config: WebhookConfig,
    sample: SampleEvent,
    webhook_id: str | None,
) -> Reply:
    return Reply(await send_test(call.services, call.person, config, sample.channel, sample.message_status, webhook_id))
