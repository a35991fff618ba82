"""Events, records and webhooks to test with: the e-mail bounce of the reference payload, and a delivered SMS."""

import copy
import json
from collections.abc import Mapping, Sequence
from typing import Any

from dispatcher.config.webhook_revision import Webhook
from dispatcher.config.webhooks import WebhookConfig
from dispatcher.contract.events import DeliveryEvent, read_event
from dispatcher.contract.records import Origin, Record
from dispatcher.contract.tenant import TenantKey

ORIGIN = Origin("delivery-events", 3, 41)

Json = dict[str, Any]

EMAIL_EVENT: Json = {
    "header": {
        "imsOrgId": "myImsOrg",
        "sandbox": {"id": "068abf40-575e-11ea-8512-9b1bfdb82603", "name": "prod"},
        "requestId": "8NoByJneShCdCGRnrGS1t1m3CdA73dhR",
        "createdAt": 1753171200000,
        "source": {"name": "feedback"},
    },
    "body": {
        "xdmMeta": {
            "schemaRef": {"id": "https://ns.adobe.com/x", "contentType": "application/vnd.adobe.xed-full+json"}
        },
        "xdmEntity": {
            "_id": "b2c1ad21-04ea-4e5a-9ba5-70f4ba1ee2ab",
            "timestamp": "2025-07-22T08:00:00.000Z",
            "eventType": "message.feedback",
            "identityMap": {"Email": [{"id": "john.doe@luma.com", "primary": True}]},
            "_experience": {
                "customerJourneyManagement": {
                    "messageExecution": {
                        "messageExecutionID": "HUMA-26362805",
                        "messageType": "transactional",
                        "campaignID": "16f24a15-7e21-477c-848a-d5695ca7f137",
                        "campaignVersionID": "2ca10c10-56dd-4505-87cd-fa5da84e7a5d",
                        "campaignType": "ApiTriggered",
                    },
                    "messageProfile": {
                        "messageProfileID": "4218b775-bef3-46b2-aee2-7caae052cf95",
                        "requestID": "of the profile",
                        "channel": {"_id": "https://ns.adobe.com/xdm/channels/email"},
                        "isTestExecution": False,
                    },
                    "messageDeliveryfeedback": {
                        "feedbackStatus": "bounce",
                        "messageFailure": {
                            "category": "sync",
                            "type": "Ignored",
                            "code": "25",
                            "reason": "Admin Failure",
                        },
                        "retryCount": 0,
                    },
                    "emailChannelContext": {"address": "john.doe@luma.com", "namespace": "Email"},
                }
            },
        },
    },
}
"""Spelt xed; becomes the reference payload."""

SMS_EVENT: Json = {
    "header": {"imsOrgId": "myImsOrg", "sandbox": {"id": "068abf40", "name": "prod"}, "requestId": "r-2"},
    "body": {
        "xdmMeta": {"schemaRef": {"contentType": "application/vnd.adobe.xed-full+json"}},
        "xdmEntity": {
            "_id": "sms-1",
            "timestamp": "2025-07-22T08:00:00.000Z",
            "eventType": "message.feedback",
            "identityMap": {"Phone": [{"id": "+4915112345678"}], "ECID": [{"id": "17", "primary": True}]},
            "_experience": {
                "customerJourneyManagement": {
                    "messageExecution": {
                        "messageExecutionID": "HUMA-2",
                        "messageID": "m-2",
                        "messageType": "marketing",
                        "campaignID": "c-2",
                        "campaignVersionID": "v-2",
                        "campaignType": "ApiTriggered",
                    },
                    "messageProfile": {
                        "messageProfileID": "p-2",
                        "channel": {"_id": "https://ns.adobe.com/xdm/channels/sms"},
                    },
                    "messageDeliveryfeedback": {
                        "feedbackStatus": "delivered",
                        "retryCount": 1,
                        "responseCode": 200,
                        "responseDurationMillis": 286,
                        "encoding": "GSM-7",
                        "numberOfMessageParts": 2,
                        "deliveryTimestamp": "2025-07-22T08:00:01Z",
                    },
                    "smsChannelContext": {"profileNumber": "+4915112345678", "smsProvider": "Sinch"},
                }
            },
        },
    },
}


def email_event(**changes: object) -> Json:
    """The e-mail bounce, with changes: `email_event(feedbackStatus="sent", campaignID=None)`, see `changed`."""
    return changed(EMAIL_EVENT, **changes)


def sms_event(**changes: object) -> Json:
    """The delivered SMS, with changes."""
    return changed(SMS_EVENT, **changes)


REMOVED = object()
"""As a value of `changed`: leave the key out."""


def changed(event: Json, **changes: object) -> Json:
    """Returns a copy in which each named key that occurs (anywhere: their names are unique) has another value.

    `messageFailure={...}` replaces, `messageFailure=REMOVED` removes. A name that does not occur goes into
    messageDeliveryfeedback.
    """
    event = copy.deepcopy(event)
    for name, value in changes.items():
        place = _place_of(event, name)
        if place is None:
            place = management(event)["messageDeliveryfeedback"]
        if value is REMOVED:
            place.pop(name, None)
        else:
            place[name] = value
    return event


def management(event: Json) -> Json:
    """`customerJourneyManagement` of an event."""
    found: Json = event["body"]["xdmEntity"]["_experience"]["customerJourneyManagement"]
    return found


def _place_of(value: object, name: str) -> Json | None:
    if isinstance(value, dict):
        if name in value:
            return value
        for inner in value.values():
            if (found := _place_of(inner, name)) is not None:
                return found
    return None


JOURNEYS = "https://ns.adobe.com/experience/customerJourneyManagement/"


def xdm_spelling(event: Json) -> Json:
    """The same event with URI keys, as `contracts/xdm` spells them."""
    event = copy.deepcopy(event)
    short = event["body"]["xdmEntity"]
    entity: Json = {
        "@id": short["_id"],
        "xdm:timestamp": short["timestamp"],
        "xdm:eventType": short["eventType"],
        "xdm:identityMap": {
            namespace: [{f"xdm:{key}": value for key, value in one.items()} for one in identities]
            for namespace, identities in short["identityMap"].items()
        },
    }
    for group, values in short["_experience"]["customerJourneyManagement"].items():
        entity |= {f"{JOURNEYS}{group}/{key}": _long(group, value) for key, value in values.items()}
    event["body"]["xdmEntity"] = entity
    event["body"]["xdmMeta"]["schemaRef"]["contentType"] = "application/vnd.adobe.xdm+json"
    return event


def _long(group: str, value: object) -> object:
    if isinstance(value, dict):
        return {"@id" if key == "_id" else f"{JOURNEYS}{group}/{key}": inner for key, inner in value.items()}
    return value


def a_record(
    value: bytes | None,
    key: bytes | None = b"key",
    headers: Sequence[tuple[str, bytes | None]] = (),
    topic: str = ORIGIN.topic,
    partition: int = ORIGIN.partition,
    offset: int = ORIGIN.offset,
    timestamp: int = 1_753_171_200_000,
) -> Record:
    """A Kafka record."""
    return Record(topic, partition, offset, timestamp, key, value, headers)


def record(event: object, headers: Mapping[str, bytes] | None = None, **fields: Any) -> Record:
    """A record of an event, or of the bytes given."""
    value = event if isinstance(event, bytes) or event is None else json.dumps(event).encode()
    return a_record(value=value, headers=tuple((headers or {}).items()), **fields)


def read(event: object, headers: Mapping[str, bytes] | None = None) -> DeliveryEvent:
    """The delivery event in a record of it."""
    found = read_event(record(event, headers), ORIGIN)
    assert isinstance(found, DeliveryEvent)
    return found


TENANT = TenantKey("myImsOrg", "prod")


def webhook(tenant: TenantKey = TENANT, **fields: object) -> Webhook:
    """A webhook for the examples' tenant."""
    values = {"name": "Luma", "org": tenant.org, "sandbox": tenant.sandbox, "url": "https://hooks.luma.example/in"}
    return Webhook.of(WebhookConfig.model_validate(values | fields), "luma.yaml:1")
