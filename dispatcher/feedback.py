"""The contract out: the feedback payload, versions 1 and 2 (design section 4).

Keys and their order are the contract; absent values are null. Nothing here fails: an event that was read can be told.
"""

import orjson

from dispatcher.events import FEEDBACK, DeliveryEvent, Identity

MAX_WARNED = 20_000
"""Bytes of a body past which a warning is logged: the limit that Standard Webhooks recommends."""


def encode_feedback(event: DeliveryEvent, version: int) -> bytes:
    """The body of the POST: compact JSON in UTF-8, payload version 1 or 2."""
    return orjson.dumps(_version_1(event) if version == 1 else _version_2(event))


def _version_1(event: DeliveryEvent) -> dict[str, object]:
    return {
        "requestId": event.request_id,
        "imsOrg": event.tenant.org,
        "sandbox": {"id": event.sandbox_id, "name": event.tenant.sandbox},
        "channel": event.channel,
        "eventType": FEEDBACK,
        "messageExecution": _execution(event),
        "messageDeliveryFeedback": _feedback(event),
        "identityMap": _identity_map(event),
    }


def _version_2(event: DeliveryEvent) -> dict[str, object]:
    feedback, sms = event.feedback, event.channel == "sms"
    payload: dict[str, object] = {
        "requestId": event.request_id,
        "imsOrg": event.tenant.org,
        "sandbox": {"id": event.sandbox_id, "name": event.tenant.sandbox},
        "channel": event.channel,
        "eventType": FEEDBACK,
    }
    if sms:
        payload["channelContext"] = {"profileAddress": event.email_address, "profileNumber": event.sms_number}
    execution = _execution(event)
    if sms:
        execution["messageID"] = event.execution.messageID
        execution["messageProfileID"] = event.profile.messageProfileID
    payload["messageExecution"] = execution | {"campaignType": event.execution.campaignType}
    told = _feedback(event)
    if sms:
        told["responseCode"] = feedback.responseCode
        told["responseDurationMillis"] = feedback.responseDurationMillis
    payload["messageDeliveryFeedback"] = told | {
        "encoding": feedback.encoding,
        "numberOfMessageParts": feedback.numberOfMessageParts,
        "deliveryTimestamp": feedback.deliveryTimestamp,
    }
    payload["identityMap"] = _identity_map(event)
    return payload


def _execution(event: DeliveryEvent) -> dict[str, object]:
    execution = event.execution
    return {
        "messageExecutionID": execution.messageExecutionID,
        "messageType": execution.messageType,
        "campaignID": execution.campaignID,
        "campaignVersionID": execution.campaignVersionID,
    }


def _feedback(event: DeliveryEvent) -> dict[str, object]:
    feedback, failure = event.feedback, event.feedback.messageFailure
    return {
        "feedbackStatus": {"value": feedback.feedbackStatus},
        "offers": feedback.offers,
        "messageExclusion": feedback.messageExclusion,
        "messageFailure": None
        if failure is None
        else {"category": failure.category, "type": failure.type, "code": failure.code, "reason": failure.reason},
        "retryCount": feedback.retryCount,
    }


def _identity_map(event: DeliveryEvent) -> dict[str, list[dict[str, object]]] | None:
    if event.identities is None:
        return None
    return {_namespace(event, name): [_identity(one) for one in all_] for name, all_ in event.identities.items()}


def _namespace(event: DeliveryEvent, name: str) -> str:
    # The identity namespace of e-mail addresses is called Email; the reference payload spells it email. An SMS
    # event's namespaces stay as they arrived.
    return "email" if name == "Email" and event.channel == "email" else name


def _identity(identity: Identity) -> dict[str, object]:
    if identity.primary is None:
        return {"id": identity.id}
    return {"id": identity.id, "primary": identity.primary}
