"""The decision about one event: reads the record, checks whether its webhook wants it, and encodes the payload. Pure.

The pipeline, the fast path and `explain` share it, so they can't disagree. The console's test sender shares the
payload only: a webhook can be tested before it is enabled.
"""

from typing import Final

from dispatcher.config.webhook_revision import Subscription, Webhook
from dispatcher.contract.events import DeliveryEvent, OtherEvent, read_event
from dispatcher.contract.feedback import encode_feedback
from dispatcher.contract.outcomes import ParkReason, SkipReason
from dispatcher.contract.records import Origin, Record
from dispatcher.errors import UnreadableEvent

API_TRIGGERED: Final = "ApiTriggered"


def decide(event: DeliveryEvent, webhook: Webhook | None) -> tuple[Webhook, bytes] | SkipReason | ParkReason:
    """Returns the webhook and its payload, or why nothing is sent: the reason to skip the event, or to hold it."""
    reason = eligibility(event, webhook)
    if reason is not None or webhook is None:
        return reason or SkipReason.NO_WEBHOOK
    if webhook.subscription.paused:
        return ParkReason.PAUSED
    return webhook, encode_feedback(event, webhook.subscription.payload)


def eligibility(event: DeliveryEvent, webhook: Webhook | None) -> SkipReason | None:
    """Returns the reason to skip the event, or None if the webhook wants it. The first rule that fails counts."""
    if event.profile.is_test_execution:
        return SkipReason.TEST_EXECUTION
    if webhook is None:
        return SkipReason.NO_WEBHOOK
    wanted = webhook.subscription
    if is_of_another_sandbox(event, wanted):
        return SkipReason.NO_WEBHOOK
    if not wanted.enabled:
        return SkipReason.WEBHOOK_DISABLED
    reason = skipped_by_lists(wanted, event.channel, event.status, event.execution.campaign_id)
    if reason is not None:
        return reason
    return SkipReason.CAMPAIGN if campaign_objection(event, wanted) is not None else None


def skipped_by_lists(
    wanted: Subscription, channel: str | None, status: str | None, campaign_id: str | None
) -> SkipReason | None:
    """Returns the reason to skip an event whose channel, status or campaign the webhook doesn't list, or None.

    A value that is None counts as listed.
    """
    if channel is not None and channel not in wanted.channels:
        return SkipReason.CHANNEL
    if status is not None and status not in wanted.statuses:
        return SkipReason.STATUS
    is_of_another = campaign_id is not None and wanted.campaigns is not None and campaign_id not in wanted.campaigns
    return SkipReason.CAMPAIGN if is_of_another else None


def is_of_another_sandbox(event: DeliveryEvent, wanted: Subscription) -> bool:
    """Returns whether event and webhook both have a sandbox id, and these differ. Expects equal sandbox names."""
    return wanted.sandbox_id is not None and event.sandbox_id is not None and wanted.sandbox_id != event.sandbox_id


def campaign_objection(event: DeliveryEvent, wanted: Subscription) -> str | None:
    """Returns why the event's campaign is not wanted, in words, or None if it is wanted."""
    campaign, kind = event.execution.campaign_id, event.execution.campaign_type
    if not campaign:
        return "the message belongs to no campaign"
    if kind is not None and kind != API_TRIGGERED:
        return f"the campaign is {kind}, not {API_TRIGGERED}"
    if event.webhooks_enabled is False:
        return "the campaign has feedback webhooks switched off"
    if wanted.campaigns is not None and campaign not in wanted.campaigns:
        return f"campaign {campaign} is none of the {len(wanted.campaigns)} that are wanted"
    return None


def read_record(record: Record, origin: Origin, max_record_bytes: int) -> DeliveryEvent | OtherEvent:
    """Reads the event in a record.

    Raises:
        UnreadableEvent: it is too large, or can't be read as one.
    """
    if record.value is not None and len(record.value) > max_record_bytes:
        raise UnreadableEvent(f"the record has {len(record.value)} bytes, over the limit of {max_record_bytes}")
    return read_event(record, origin)
