"""Builds sample events of a channel and a status, as they would come from the topic. They contain no personal data."""

import secrets
from datetime import UTC, datetime
from typing import Final

import orjson

from dispatcher.config.webhooks import Channel, WebhookConfig
from dispatcher.contract.events import DeliveryEvent, read_event
from dispatcher.contract.records import Origin, Record

MARK: Final = "test-event"
"""Prefix of the request's, the campaign's and the message's id."""
MAIL: Final = "test.recipient@example.com"
"""RFC 2606 reserves the domain for such uses."""
NUMBER: Final = "+15555550100"
"""The number is reserved for fiction."""

_FAILURES: Final = {
    "bounce": {"category": "sync", "type": "Hard", "code": "25", "reason": "Test: the mailbox does not exist"},
    "error": {"category": "async", "type": "Error", "code": "99", "reason": "Test: the message could not be sent"},
    "delay": {"category": "async", "type": "Soft", "code": "20", "reason": "Test: the mailbox is full"},
    "denylist": {"category": "sync", "type": "Ignored", "code": "30", "reason": "Test: the address is denylisted"},
}


def sample_event(config: WebhookConfig, channel: Channel, message_status: str, now: float) -> DeliveryEvent:
    """Returns an event of the webhook's tenant with a new id. `now` is in Unix seconds."""
    unique = secrets.token_hex(8)
    value = orjson.dumps(_document(config, channel, message_status, unique, now))
    event = read_event(Record(MARK, 0, 0, int(now * 1000), None, value, ()), Origin(MARK, 0, 0))
    if not isinstance(event, DeliveryEvent):
        raise TypeError("the sample isn't a delivery event")
    return event


def _document(
    config: WebhookConfig, channel: Channel, message_status: str, unique: str, now: float
) -> dict[str, object]:
    at = datetime.fromtimestamp(now, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    feedback = _feedback(channel, message_status, at)
    sandbox = {"name": config.sandbox} | ({"id": config.sandbox_id} if config.sandbox_id else {})
    message = {"messageExecutionID": f"{MARK}-{unique}", "messageType": "transactional"}
    message |= {"campaignID": MARK, "campaignVersionID": f"{MARK}-1", "campaignType": "ApiTriggered"}
    management: dict[str, object] = {
        "messageExecution": message,
        "messageProfile": {
            "messageProfileID": f"{MARK}-{unique}",
            "channel": {"_id": f"https://ns.adobe.com/xdm/channels/{channel.value}"},
            "isTestExecution": True,  # if it ever got into the topic, dispatchers would skip it
        },
        "messageDeliveryfeedback": feedback,
    }
    if channel is Channel.SMS:
        message["messageID"] = f"{MARK}-{unique}"
        management["smsChannelContext"] = {"profileNumber": NUMBER}
        identities = {"Phone": [{"id": NUMBER, "primary": True}]}
    else:
        management["emailChannelContext"] = {"address": MAIL, "namespace": "Email"}
        identities = {"Email": [{"id": MAIL, "primary": True}]}
    return {
        "header": {"imsOrgId": config.org, "sandbox": sandbox, "requestId": f"{MARK}-{unique}"},
        "body": {
            "xdmMeta": {"schemaRef": {"contentType": "application/vnd.adobe.xed-full+json"}},
            "xdmEntity": {
                "_id": f"{MARK}-{unique}",
                "timestamp": at,
                "eventType": "message.feedback",
                "identityMap": identities,
                "_experience": {"customerJourneyManagement": management},
            },
        },
    }


def _feedback(channel: Channel, message_status: str, at: str) -> dict[str, object]:
    feedback: dict[str, object] = {"feedbackStatus": message_status, "retryCount": 0, "deliveryTimestamp": at}
    if message_status in _FAILURES:
        feedback["messageFailure"] = _FAILURES[message_status]
    if message_status == "exclude":
        feedback["messageExclusion"] = {"reason": "Test: excluded by a rule"}
    if channel is Channel.SMS:
        feedback |= {"responseCode": 200, "responseDurationMillis": 1, "encoding": "GSM-7", "numberOfMessageParts": 1}
    return feedback
