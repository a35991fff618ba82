"""The contract out: the feedback payload, versions 1 and 2 (design section 4).

Keys and their order are the contract; absent values are null. Nothing here fails: an event that was read can be told.
"""

from typing import Literal, NotRequired

import orjson
from pydantic import ConfigDict, JsonValue, with_config
from typing_extensions import TypedDict

from dispatcher.contract.envelope import FEEDBACK, Identity
from dispatcher.contract.events import DeliveryEvent

MAX_WARNED = 20_000
"""Bytes of a body past which a warning is logged: the limit that Standard Webhooks recommends."""

_EXACT = ConfigDict(extra="forbid", use_attribute_docstrings=True)


@with_config(_EXACT)
class SandboxV1(TypedDict):
    """The sandbox that the message was sent from."""

    id: str | None
    name: str


@with_config(_EXACT)
class ExecutionV1(TypedDict):
    """Which message it was."""

    messageExecutionID: str | None
    messageType: str | None
    """marketing, transactional"""
    campaignID: str | None
    campaignVersionID: str | None


@with_config(_EXACT)
class ExecutionV2(ExecutionV1):
    """Which message it was."""

    messageID: NotRequired[str | None]
    """SMS only."""
    messageProfileID: NotRequired[str | None]
    """SMS only."""
    campaignType: str | None


@with_config(_EXACT)
class StatusV1(TypedDict):
    """What became of the message."""

    value: str
    """error, exclude, sent, bounce, delay, duplicate, denylist, delivered, read, unknown; others may come."""


@with_config(_EXACT)
class FailureV1(TypedDict):
    """Why it was not delivered."""

    category: JsonValue
    type: JsonValue
    code: JsonValue
    reason: JsonValue


@with_config(_EXACT)
class DeliveryFeedbackV1(TypedDict):
    """What became of the message, and why."""

    feedbackStatus: StatusV1
    offers: JsonValue
    messageExclusion: JsonValue
    messageFailure: FailureV1 | None
    retryCount: int | None


@with_config(_EXACT)
class DeliveryFeedbackV2(DeliveryFeedbackV1):
    """What became of the message, and why."""

    responseCode: NotRequired[int | None]
    """SMS only."""
    responseDurationMillis: NotRequired[int | None]
    """SMS only."""
    encoding: str | None
    numberOfMessageParts: str | None
    deliveryTimestamp: str | None


@with_config(_EXACT)
class IdentityV1(TypedDict):
    """One of the recipient's identities in its namespace."""

    id: str
    primary: NotRequired[bool]


@with_config(_EXACT)
class ChannelContextV2(TypedDict):
    """The recipient's addresses."""

    profileAddress: str | None
    profileNumber: str | None


class _Common(TypedDict):
    requestId: str | None
    imsOrg: str
    sandbox: SandboxV1
    channel: str
    """email or sms"""
    eventType: Literal["message.feedback"]


@with_config(_EXACT)
class FeedbackV1(_Common):
    """Version 1 of the payload."""

    messageExecution: ExecutionV1
    messageDeliveryFeedback: DeliveryFeedbackV1
    identityMap: dict[str, list[IdentityV1]] | None


@with_config(_EXACT)
class FeedbackV2(_Common):
    """Version 2 of the payload: with what Journey Optimizer has added since."""

    channelContext: NotRequired[ChannelContextV2]
    """SMS only."""
    messageExecution: ExecutionV2
    messageDeliveryFeedback: DeliveryFeedbackV2
    identityMap: dict[str, list[IdentityV1]] | None


def encode_feedback(event: DeliveryEvent, version: int) -> bytes:
    """The body of the POST: compact JSON in UTF-8, payload version 1 or 2."""
    body = orjson.dumps(_version_1(event) if version == 1 else _version_2(event))
    # orjson leaves its result in the buffer that it wrote to, of 4 KB or more; many bodies wait at once.
    return bytes(memoryview(body))


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
        execution["messageID"] = event.execution.get("messageID")
        execution["messageProfileID"] = event.profile.get("messageProfileID")
    execution["campaignType"] = event.execution.get("campaignType")
    payload["messageExecution"] = execution
    told = _feedback(event)
    if sms:
        told["responseCode"] = feedback.get("responseCode")
        told["responseDurationMillis"] = feedback.get("responseDurationMillis")
    told["encoding"] = feedback.get("encoding")
    told["numberOfMessageParts"] = feedback.get("numberOfMessageParts")
    told["deliveryTimestamp"] = feedback.get("deliveryTimestamp")
    payload["messageDeliveryFeedback"] = told
    payload["identityMap"] = _identity_map(event)
    return payload


def _execution(event: DeliveryEvent) -> dict[str, object]:
    get = event.execution.get
    return {
        "messageExecutionID": get("messageExecutionID"),
        "messageType": get("messageType"),
        "campaignID": get("campaignID"),
        "campaignVersionID": get("campaignVersionID"),
    }


def _feedback(event: DeliveryEvent) -> dict[str, object]:
    get, failure = event.feedback.get, event.feedback.get("messageFailure")
    return {
        "feedbackStatus": {"value": event.status},
        "offers": get("offers"),
        "messageExclusion": get("messageExclusion"),
        "messageFailure": None
        if failure is None
        else {
            "category": failure.get("category"),
            "type": failure.get("type"),
            "code": failure.get("code"),
            "reason": failure.get("reason"),
        },
        "retryCount": get("retryCount"),
    }


def _identity_map(event: DeliveryEvent) -> dict[str, list[dict[str, object]]] | None:
    if event.identities is None:
        return None
    is_email = event.channel == "email"
    found = {}
    for namespace, identities in event.identities.items():
        # The identity namespace of e-mail addresses is called Email; the reference payload spells it email. An SMS
        # event's namespaces stay as they arrived.
        name = "email" if is_email and namespace == "Email" else namespace
        found[name] = [_identity(one) for one in identities]
    return found


def _identity(identity: Identity) -> dict[str, object]:
    primary = identity.get("primary")
    return {"id": identity["id"]} if primary is None else {"id": identity["id"], "primary": primary}
