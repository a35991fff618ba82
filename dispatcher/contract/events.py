"""A delivery event, read from a Kafka record, whose format `docs/events.md` describes."""

import hashlib
from dataclasses import field
from functools import lru_cache
from typing import Final

import orjson

from dispatcher.contract.envelope import (
    MOST_TEXT,
    Feedback,
    Header,
    Identity,
    JourneyManagement,
    MessageExecution,
    MessageProfile,
    Sandbox,
)
from dispatcher.contract.event_reader import OtherEvent, read_envelope
from dispatcher.contract.records import Origin, Record
from dispatcher.contract.tenant import TenantKey
from dispatcher.contract.values import slots_dataclass
from dispatcher.errors import UnreadableEvent

__all__ = ["DeliveryEvent", "OtherEvent", "read_event", "webhook_id"]

_NO_HEADER: Final = Header()
_NO_SANDBOX: Final = Sandbox()
_NO_PROFILE: Final = MessageProfile()
_NO_EXECUTION: Final = MessageExecution()


@slots_dataclass
class DeliveryEvent:
    """The fields of one message's delivery event that the dispatcher uses."""

    tenant: TenantKey
    sandbox_id: str | None
    request_id: str | None = field(repr=False)
    webhook_id: str
    """The delivery's id: the same for every attempt and repeat. It reveals nothing about the event."""
    timestamp: str | None
    """The event's own time, ISO 8601, as the event has it."""
    channel: str
    status: str
    """`feedbackStatus`."""
    webhooks_enabled: bool | None
    execution: MessageExecution = field(repr=False)
    profile: MessageProfile = field(repr=False)
    feedback: Feedback = field(repr=False)
    identities: dict[str, list[Identity]] | None = field(repr=False)
    email_address: str | None = field(repr=False)
    sms_number: str | None = field(repr=False)
    traceparent: str | None
    event_id: str | None = field(default=None, repr=False)
    """XDM `_id`."""


def read_event(record: Record, origin: Origin) -> DeliveryEvent | OtherEvent:
    """Returns the delivery event in a record.

    Raises:
        UnreadableEvent: with the place and the reason, fit for the dead letter and the log.
    """
    envelope = read_envelope(record.value)
    if isinstance(envelope, OtherEvent):
        return envelope
    headers = dict(record.headers) if record.headers else {}
    header = envelope.header or _NO_HEADER
    sandbox = header.sandbox or _NO_SANDBOX
    entity = envelope.body.entity
    management = entity.experience.management
    profile = management.message_profile or _NO_PROFILE
    email, sms = management.email_channel_context, management.sms_channel_context
    org = header.ims_org_id or _header(headers, "imsOrgId")
    name = sandbox.name or _header(headers, "sandboxName")
    if not org or not name:
        missing, header_name = ("header.sandbox.name", "sandboxName") if org else ("header.imsOrgId", "imsOrgId")
        raise UnreadableEvent(f"{missing}: missing, and there is no record header {header_name}")
    channel = None if profile.channel is None else profile.channel.uri
    event_id = entity.id
    kind, own = ("event", event_id) if event_id else ("record", str(origin))
    tenant, id_prefix = _id_prefix(org, name, kind)
    return DeliveryEvent(
        tenant,
        sandbox.id or _header(headers, "sandboxId"),
        header.request_id or profile.request_id or _header(headers, "requestId"),
        _id_of(id_prefix, own),
        entity.timestamp,
        _channel_of(channel) if channel else _channel_of_context(management),
        management.feedback.feedback_status,
        header.webhooks_enabled,
        management.message_execution or _NO_EXECUTION,
        profile,
        management.feedback,
        entity.identity_map,
        None if email is None else email.address,
        None if sms is None else sms.profile_number,
        _header(headers, "traceparent") if headers else None,
        event_id,
    )


def _header(headers: dict[str, bytes | None], name: str) -> str | None:
    value = headers.get(name)
    return value.decode(errors="replace")[:MOST_TEXT] if value else None


def webhook_id(tenant: TenantKey, event_id: str | None, origin: Origin) -> str:
    """Returns `msg_` and 32 hexadecimal digits, derived from the tenant and the event's id, else from the origin."""
    kind, own = ("event", event_id) if event_id else ("record", str(origin))
    return _id_of(_id_prefix(*tenant, kind)[1], own)


@lru_cache(maxsize=16_384)
def _id_prefix(org: str, sandbox: str, kind: str) -> "tuple[TenantKey, hashlib.blake2b]":
    """Returns the tenant's key, as one object for all its events, and the hash of what their webhook-ids share."""
    # An array without its last value. JSON keeps the parts apart: ("a", "bc") and ("ab", "c") are different deliveries.
    prefix = hashlib.blake2b(orjson.dumps([org, sandbox, kind])[:-1] + b",", digest_size=16)
    return TenantKey(org, sandbox), prefix


def _id_of(prefix: "hashlib.blake2b", own: str) -> str:
    digest = prefix.copy()
    digest.update(orjson.dumps(own) + b"]")
    return "msg_" + digest.hexdigest()


def _channel_of_context(management: JourneyManagement) -> str:
    if management.email_channel_context is not None:
        return "email"
    if management.sms_channel_context is not None:
        return "sms"
    raise UnreadableEvent("body.xdmEntity._experience.customerJourneyManagement.messageProfile.channel._id: missing")


@lru_cache(maxsize=64)
def _channel_of(uri: str) -> str:
    return uri.rstrip("/").rpartition("/")[2].lower()
