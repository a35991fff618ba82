"""The contract in: a delivery event, read from a Kafka record (design section 3)."""

import hashlib
from dataclasses import field
from functools import lru_cache
from typing import Final

import orjson

from dispatcher.envelope import (
    MAX_DEPTH,
    EventDocument,
    Feedback,
    Header,
    Identity,
    JourneyManagement,
    MessageExecution,
    MessageProfile,
    Sandbox,
    read_envelope,
)
from dispatcher.errors import UnreadableEvent
from dispatcher.records import Origin, Record
from dispatcher.values import fast_value
from dispatcher.webhooks import TenantKey


@fast_value
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


@fast_value
class OtherEvent:
    """An event of another type than message.feedback: nobody's business here."""

    event_type: str


def read_event(record: Record, origin: Origin) -> DeliveryEvent | OtherEvent:
    """The delivery event in a record.

    Raises:
        UnreadableEvent: with the place and the reason, fit for the dead letter and the log.
    """
    document = read_envelope(record.value)
    if isinstance(document, str):
        return OtherEvent(document)
    return _assembled(document, dict(record.headers) if record.headers else {}, origin)


def _assembled(event: EventDocument, headers: dict[str, bytes], origin: Origin) -> DeliveryEvent:
    def spare(name: str) -> str | None:
        value = headers.get(name) if headers else None
        return value.decode(errors="replace")[:10_000] if value else None

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
    if (offers := feedback.get("offers")) is not None:
        _check_depth(offers, "offers")
    if (exclusion := feedback.get("messageExclusion")) is not None:
        _check_depth(exclusion, "messageExclusion")
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
    own = ("event", event_id) if event_id else ("record", str(origin))
    # JSON keeps the parts apart: ("a", "bc") and ("ab", "c") are different deliveries.
    return "msg_" + hashlib.blake2b(orjson.dumps([*tenant, *own]), digest_size=16).hexdigest()


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


def _check_depth(value: object, name: str, depth: int = 0) -> None:
    if depth > MAX_DEPTH:
        raise UnreadableEvent(f"{name}: nested more than {MAX_DEPTH} deep")
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        for inner in value:
            _check_depth(inner, name, depth + 1)
