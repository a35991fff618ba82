"""The contract in: a delivery event, read from a Kafka record (design section 3)."""

import hashlib
from dataclasses import field
from functools import lru_cache, partial
from typing import Any, Final

import orjson

from dispatcher.contract.envelope import (
    FEEDBACK,
    MAX_DEPTH,
    MOST_STATUS,
    MOST_TEXT,
    EventDocument,
    Feedback,
    Header,
    Identity,
    JourneyManagement,
    MessageExecution,
    MessageProfile,
    Sandbox,
    opened,
    validated,
)
from dispatcher.contract.records import Origin, Record
from dispatcher.contract.tenant import TenantKey
from dispatcher.contract.values import slots_dataclass
from dispatcher.errors import UnreadableEvent


@slots_dataclass
class DeliveryEvent:
    """What became of one message, as far as the dispatcher needs to know."""

    tenant: TenantKey
    sandbox_id: str | None
    request_id: str | None = field(repr=False)
    webhook_id: str
    """The delivery's id: the same for every attempt and repeat. Tells nothing about the event."""
    timestamp: str | None
    """The event's own time, ISO-8601 as it came."""
    channel: str
    status: str
    """What became of the message: `feedbackStatus`."""
    webhooks_enabled: bool | None
    execution: MessageExecution = field(repr=False)
    profile: MessageProfile = field(repr=False)
    feedback: Feedback = field(repr=False)
    identities: dict[str, list[Identity]] | None = field(repr=False)
    email_address: str | None = field(repr=False)
    sms_number: str | None = field(repr=False)
    traceparent: str | None


@slots_dataclass
class OtherEvent:
    """An event of another type than message.feedback: nobody's business here."""

    event_type: str


def read_event(record: Record, origin: Origin) -> DeliveryEvent | OtherEvent:
    """The delivery event in a record.

    Raises:
        UnreadableEvent: with the place and the reason, fit for the dead letter and the log.
    """
    document, entity = opened(record.value)
    event_type = entity.get("eventType")
    if isinstance(event_type, str) and event_type != FEEDBACK:
        return OtherEvent(event_type[:200])
    headers = dict(record.headers) if record.headers else {}
    if event_type == FEEDBACK and len(record.value or b"") <= MOST_TEXT:
        at_a_glance = _at_a_glance(document, entity, headers)
        if at_a_glance is not None:
            return at_a_glance
    return _assembled(validated(document), headers, origin)


def _at_a_glance(document: dict[str, Any], entity: dict[str, Any], headers: dict[str, bytes]) -> DeliveryEvent | None:
    """The event, where everything that is usually there is there, and is of its very type.

    None says nothing: then `validated` converts and explains, which takes four times as long. That no text is too long
    follows from the record's length. A list, a text or a number in an object's place raises TypeError here.
    """
    try:
        header, management = document["header"], entity["_experience"]["customerJourneyManagement"]
        sandbox, execution, profile = header["sandbox"], management["messageExecution"], management["messageProfile"]
        feedback = management["messageDeliveryfeedback"]
        schema = document["body"]["xdmMeta"]["schemaRef"]["contentType"]
        org, name, sandbox_id = header["imsOrgId"], sandbox["name"], sandbox["id"]
        request_id, event_id, timestamp = header["requestId"], entity["_id"], entity["timestamp"]
        channel, status = profile["channel"]["_id"], feedback["feedbackStatus"]
    except (KeyError, TypeError):
        return None
    for text in (org, name, sandbox_id, request_id, event_id, timestamp, channel, status, schema):
        if type(text) is not str or not text:
            return None
    identities, switch = entity.get("identityMap"), header.get("webhooksEnabled")
    if type(feedback.get("numberOfMessageParts")) is int:  # a text in the payload
        feedback = feedback | {"numberOfMessageParts": str(feedback["numberOfMessageParts"])}
    if (
        len(status) > MOST_STATUS
        or not (switch is None or type(switch) is bool)
        or not (identities is None or _are_plain(identities))
        or not _is_plain(execution, profile, feedback)
    ):
        return None
    email, sms = management.get("emailChannelContext", _NOTHING), management.get("smsChannelContext", _NOTHING)
    if type(email) is not dict or type(sms) is not dict:
        return None
    address, number = email.get("address"), sms.get("profileNumber")
    if not (address is None or type(address) is str) or not (number is None or type(number) is str):
        return None
    tenant, first_result = _begun(org, name, "event")
    _check_depths(feedback)
    traceparent = _spare(headers, "traceparent") if headers else None
    return DeliveryEvent(
        tenant, sandbox_id, request_id, _ended(first_result, event_id), timestamp, _channel_of(channel), status,
        switch, execution, profile, feedback, identities, address, number, traceparent,
    )  # fmt: skip


_NOTHING: Final[dict[str, Any]] = {}
_MOST_WHOLE: Final = 2**63


def _is_plain(execution: dict[str, Any], profile: dict[str, Any], feedback: dict[str, Any]) -> bool:
    if type(execution) is not dict:
        return False
    for text in execution.values():
        if type(text) is not str and text is not None:
            return False
    get, is_test, failure = feedback.get, profile.get("isTestExecution"), feedback.get("messageFailure")
    if not (is_test is None or type(is_test) is bool) or not (failure is None or type(failure) is dict):
        return False
    for whole in (get("retryCount"), get("responseCode"), get("responseDurationMillis")):
        if whole is not None and (type(whole) is not int or not -_MOST_WHOLE <= whole < _MOST_WHOLE):
            return False
    texts = get("encoding"), get("numberOfMessageParts"), get("deliveryTimestamp")
    for text in (*texts, profile.get("messageProfileID"), profile.get("requestID")):
        if text is not None and type(text) is not str:
            return False
    return True


def _are_plain(identities: object) -> bool:
    if type(identities) is not dict:
        return False
    for all_ in identities.values():
        if type(all_) is not list:
            return False
        for one in all_:
            if type(one) is not dict or type(one.get("id")) is not str:
                return False
            primary = one.get("primary")
            if primary is not None and type(primary) is not bool:
                return False
    return True


def _spare(headers: dict[str, bytes], name: str) -> str | None:
    value = headers.get(name)
    return value.decode(errors="replace")[:MOST_TEXT] if value else None


def _assembled(event: EventDocument, headers: dict[str, bytes], origin: Origin) -> DeliveryEvent:
    spare = partial(_spare, headers)
    header, entity = event.get("header") or _NO_HEADER, event["body"]["xdmEntity"]
    management = entity["_experience"]["customerJourneyManagement"]
    feedback, sandbox = management["messageDeliveryfeedback"], header.get("sandbox") or _NO_SANDBOX
    profile = management.get("messageProfile") or _NO_PROFILE
    email, sms = management.get("emailChannelContext"), management.get("smsChannelContext")
    org = header.get("imsOrgId") or spare("imsOrgId")
    name = sandbox.get("name") or spare("sandboxName")
    if not org or not name:
        missing, header_name = ("header.sandbox.name", "sandboxName") if org else ("header.imsOrgId", "imsOrgId")
        raise UnreadableEvent(f"{missing}: missing, and there is no record header {header_name}")
    _check_depths(feedback)
    tenant = TenantKey(org, name)
    return DeliveryEvent(
        tenant=tenant,
        sandbox_id=sandbox.get("id") or spare("sandboxId"),
        request_id=header.get("requestId") or profile.get("requestID") or spare("requestId"),
        webhook_id=webhook_id(tenant, entity.get("_id"), origin),
        timestamp=entity.get("timestamp"),
        channel=_channel(management),
        status=feedback["feedbackStatus"],
        webhooks_enabled=header.get("webhooksEnabled"),
        execution=management.get("messageExecution") or _NO_EXECUTION,
        profile=profile,
        feedback=feedback,
        identities=entity.get("identityMap"),
        email_address=email.get("address") if email else None,
        sms_number=sms.get("profileNumber") if sms else None,
        traceparent=spare("traceparent"),
    )


_NO_HEADER: Final = Header()
_NO_SANDBOX: Final = Sandbox()
_NO_PROFILE: Final = MessageProfile()
_NO_EXECUTION: Final = MessageExecution()


def webhook_id(tenant: TenantKey, event_id: str | None, origin: Origin) -> str:
    """`msg_` and 32 hexadecimal digits: of the tenant and the event's id, else of the record's first place."""
    kind, own = ("event", event_id) if event_id else ("record", str(origin))
    return _ended(_begun(*tenant, kind)[1], own)


@lru_cache(maxsize=16_384)
def _begun(org: str, sandbox: str, kind: str) -> "tuple[TenantKey, hashlib.blake2b]":
    """One key for all events of a tenant that are under way, and how their ids begin."""
    # An array without its last value. JSON keeps the parts apart: ("a", "bc") and ("ab", "c") are different deliveries.
    first_result = hashlib.blake2b(orjson.dumps([org, sandbox, kind])[:-1] + b",", digest_size=16)
    return TenantKey(org, sandbox), first_result


def _ended(first_result: "hashlib.blake2b", own: str) -> str:
    digest = first_result.copy()
    digest.update(orjson.dumps(own) + b"]")
    return "msg_" + digest.hexdigest()


def _channel(management: JourneyManagement) -> str:
    reference = (management.get("messageProfile") or _NO_PROFILE).get("channel")
    uri = reference.get("_id") if reference else None
    if uri:
        return _channel_of(uri)
    if management.get("emailChannelContext") is not None:
        return "email"
    if management.get("smsChannelContext") is not None:
        return "sms"
    raise UnreadableEvent("body.xdmEntity._experience.customerJourneyManagement.messageProfile.channel._id: missing")


@lru_cache(maxsize=64)
def _channel_of(uri: str) -> str:
    return uri.rstrip("/").rpartition("/")[2].lower()


def _check_depths(feedback: Feedback) -> None:
    if (offers := feedback.get("offers")) is not None:
        _check_depth(offers, "offers")
    if (exclusion := feedback.get("messageExclusion")) is not None:
        _check_depth(exclusion, "messageExclusion")


def _check_depth(value: object, name: str, depth: int = 0) -> None:
    if depth > MAX_DEPTH:
        raise UnreadableEvent(f"{name}: nested more than {MAX_DEPTH} deep")
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        for inner in value:
            _check_depth(inner, name, depth + 1)
