"""The contract in: a delivery event, read from a Kafka record (design section 3).

XDM has two spellings of the same event: *xed*, with short nested keys, and *xdm*, whose keys are URIs. Both are
read into the same `DeliveryEvent`. Unknown fields and statuses pass; what can't be read is refused with the exact
place, and never with a value, since the message reaches logs.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import orjson
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, JsonValue, ValidationError, WithJsonSchema

from dispatcher.errors import UnreadableEvent
from dispatcher.records import Origin, Record
from dispatcher.webhooks import TenantKey

FEEDBACK = "message.feedback"
MAX_DEPTH = 32
"""Nesting of what is passed on as it came (offers, exclusion)."""


class _Part(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True, use_attribute_docstrings=True)


Text = Annotated[str, Field(max_length=10_000)]
Whole = Annotated[int, Field(ge=-(2**63), lt=2**63)]
"""A number that the payload's writer can write."""


class Sandbox(_Part):
    id: Text | None = None
    name: Text | None = None


class Header(_Part):
    """The streaming envelope's header. What it lacks may stand in record headers of the same names."""

    imsOrgId: Text | None = None  # noqa: N815
    sandbox: Sandbox = Sandbox()
    requestId: Text | None = None  # noqa: N815
    webhooksEnabled: bool | None = None  # noqa: N815
    """false: the campaign has feedback webhooks switched off."""


class MessageExecution(_Part):
    messageExecutionID: Text | None = None  # noqa: N815
    messageID: Text | None = None  # noqa: N815
    messageType: Text | None = None  # noqa: N815
    campaignID: Text | None = None  # noqa: N815
    campaignVersionID: Text | None = None  # noqa: N815
    campaignType: Text | None = None  # noqa: N815


class ChannelReference(_Part):
    id: Text | None = Field(default=None, alias="_id")
    """`https://ns.adobe.com/xdm/channels/email`"""


class MessageProfile(_Part):
    messageProfileID: Text | None = None  # noqa: N815
    requestID: Text | None = None  # noqa: N815
    channel: ChannelReference | None = None
    isTestExecution: bool | None = None  # noqa: N815


class MessageFailure(_Part):
    category: JsonValue = None
    type: JsonValue = None
    code: JsonValue = None
    reason: JsonValue = None


def _text_of_number(value: object) -> object:
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


NumberAsText = Annotated[
    Text | None,
    BeforeValidator(_text_of_number),
    WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "integer"}, {"type": "null"}]}),
]


class Feedback(_Part):
    feedbackStatus: Annotated[str, Field(min_length=1, max_length=200)]  # noqa: N815
    """error, exclude, sent, bounce, delay, duplicate, denylist, delivered, read, unknown; further values pass."""
    messageFailure: MessageFailure | None = None  # noqa: N815
    messageExclusion: JsonValue = None  # noqa: N815
    offers: JsonValue = None
    retryCount: Whole | None = None  # noqa: N815
    responseCode: Whole | None = None  # noqa: N815
    responseDurationMillis: Whole | None = None  # noqa: N815
    encoding: Text | None = None
    numberOfMessageParts: NumberAsText = None  # noqa: N815
    deliveryTimestamp: Text | None = None  # noqa: N815


class EmailContext(_Part):
    address: Text | None = None


class SmsContext(_Part):
    profileNumber: Text | None = None  # noqa: N815


class JourneyManagement(_Part):
    messageExecution: MessageExecution = MessageExecution()  # noqa: N815
    messageProfile: MessageProfile = MessageProfile()  # noqa: N815
    messageDeliveryfeedback: Feedback  # noqa: N815
    emailChannelContext: EmailContext | None = None  # noqa: N815
    smsChannelContext: SmsContext | None = None  # noqa: N815


class Experience(_Part):
    customerJourneyManagement: JourneyManagement  # noqa: N815


class Identity(_Part):
    id: Text
    primary: bool | None = None


class Entity(_Part):
    """The XDM experience event."""

    id: Text | None = Field(default=None, alias="_id")
    timestamp: Text | None = None
    eventType: Text  # noqa: N815
    identityMap: dict[str, list[Identity]] | None = None  # noqa: N815
    experience: Experience = Field(alias="_experience")


class SchemaReference(_Part):
    contentType: Text | None = None  # noqa: N815


class Meta(_Part):
    schemaRef: SchemaReference = SchemaReference()  # noqa: N815


class Body(_Part):
    xdmMeta: Meta = Meta()  # noqa: N815
    xdmEntity: Entity  # noqa: N815


class EventDocument(_Part):
    """The value of a record: an Adobe Experience Platform streaming envelope around an XDM message-feedback event.

    The short spelling (*xed*) is described; the one with URI keys (*xdm*) is read as well. Further fields pass.
    """

    header: Header = Header()
    body: Body


@dataclass(frozen=True, slots=True)
class DeliveryEvent:
    """What became of one message, as far as the dispatcher needs to know."""

    tenant: TenantKey
    sandbox_id: str | None
    request_id: str | None
    webhook_id: str
    """The delivery's id: the same for every attempt and repeat. Tells nothing about the event."""
    timestamp: str | None
    """The event's own time, ISO-8601 as it came."""
    channel: str
    webhooks_enabled: bool | None
    execution: MessageExecution
    profile: MessageProfile
    feedback: Feedback
    identities: dict[str, list[Identity]] | None
    email_address: str | None
    sms_number: str | None
    traceparent: str | None


@dataclass(frozen=True, slots=True)
class OtherEvent:
    """An event of another type than message.feedback: nobody's business here."""

    event_type: str


def read_event(record: Record, origin: Origin) -> DeliveryEvent | OtherEvent:
    """The delivery event in a record.

    Raises:
        UnreadableEvent: with the place and the reason, fit for the dead letter and the log.
    """
    document = _json(record.value)
    entity = _entity(document)
    event_type = entity.get("eventType")
    if isinstance(event_type, str) and event_type != FEEDBACK:
        return OtherEvent(event_type[:200])
    try:
        event = EventDocument.model_validate(document)
    except ValidationError as error:
        raise UnreadableEvent(_explained(error)) from None
    return _assembled(event, dict(record.headers), origin)


def _assembled(event: EventDocument, headers: dict[str, bytes], origin: Origin) -> DeliveryEvent:
    def header(name: str) -> str | None:
        value = headers.get(name)
        return None if not value else value.decode(errors="replace")[:10_000]

    entity = event.body.xdmEntity
    management = entity.experience.customerJourneyManagement
    feedback, sandbox = management.messageDeliveryfeedback, event.header.sandbox
    org = event.header.imsOrgId or header("imsOrgId")
    name = sandbox.name or header("sandboxName")
    if not org or not name:
        missing = "header.imsOrgId" if not org else "header.sandbox.name"
        spare = "imsOrgId" if not org else "sandboxName"
        raise UnreadableEvent(f"{missing}: missing, and there is no record header {spare}")
    _check_depth(feedback.offers, "offers")
    _check_depth(feedback.messageExclusion, "messageExclusion")
    tenant = TenantKey(org, name)
    return DeliveryEvent(
        tenant=tenant,
        sandbox_id=sandbox.id or header("sandboxId"),
        request_id=event.header.requestId or management.messageProfile.requestID or header("requestId"),
        webhook_id=webhook_id(tenant, entity.id, origin),
        timestamp=entity.timestamp,
        channel=_channel(management),
        webhooks_enabled=event.header.webhooksEnabled,
        execution=management.messageExecution,
        profile=management.messageProfile,
        feedback=feedback,
        identities=entity.identityMap,
        email_address=None if management.emailChannelContext is None else management.emailChannelContext.address,
        sms_number=None if management.smsChannelContext is None else management.smsChannelContext.profileNumber,
        traceparent=header("traceparent"),
    )


def webhook_id(tenant: TenantKey, event_id: str | None, origin: Origin) -> str:
    """`msg_` and 32 hexadecimal digits: of the tenant and the event's id, else of the record's first place."""
    own = ("event", event_id) if event_id else ("record", str(origin))
    # JSON keeps the parts apart: ("a", "bc") and ("ab", "c") are different deliveries.
    return "msg_" + hashlib.blake2b(orjson.dumps([*tenant, *own]), digest_size=16).hexdigest()


def _channel(management: JourneyManagement) -> str:
    channel = management.messageProfile.channel
    if channel is not None and channel.id:
        return channel.id.rstrip("/").rpartition("/")[2].lower()
    if management.emailChannelContext is not None:
        return "email"
    if management.smsChannelContext is not None:
        return "sms"
    raise UnreadableEvent("body.xdmEntity._experience.customerJourneyManagement.messageProfile.channel._id: missing")


def _json(value: bytes | None) -> dict[str, Any]:
    if value is None:
        raise UnreadableEvent("the record has no value (a tombstone)")
    try:
        document = orjson.loads(value)
    except orjson.JSONDecodeError as error:
        raise UnreadableEvent(f"not JSON: {str(error)[:200]}") from None
    if not isinstance(document, dict):
        raise UnreadableEvent(f"not a JSON object but {_kind(document)}")
    try:
        colons = orjson.dumps(document).count(b":")
    except orjson.JSONEncodeError:
        raise UnreadableEvent("nested too deeply") from None
    if b"\\u003" in value or value.count(b":") != colons:
        # A key that came twice left a colon behind; only then is the slow reader asked which one it was.
        _refuse_duplicate_keys(value)
    return document


def _refuse_duplicate_keys(value: bytes) -> None:
    def unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
        keys = dict(pairs)
        if len(keys) < len(pairs):
            raise UnreadableEvent("an object has the same key twice (RFC 8259, section 4)")
        return keys

    try:
        json.loads(value, object_pairs_hook=unique)
    except RecursionError:
        raise UnreadableEvent("nested too deeply") from None


def _entity(document: dict[str, Any]) -> dict[str, Any]:
    """The XDM entity, in the short spelling; replaced in the document where it came in the other one."""
    body = document.get("body")
    entity = body.get("xdmEntity") if isinstance(body, dict) else None
    if not isinstance(body, dict) or not isinstance(entity, dict):
        place = "body" if not isinstance(body, dict) else "body.xdmEntity"
        raise UnreadableEvent(f"{place}: missing, or not an object")
    if has_long_spelling(entity):
        entity = body["xdmEntity"] = _short_spelling(entity)
    return entity


def has_long_spelling(entity: Mapping[str, object]) -> bool:
    """Whether an entity's keys are URIs (*xdm*)."""
    return "eventType" not in entity or any(":" in key for key in entity)


_NAMESPACE = "https://ns.adobe.com/"


def _short_spelling(entity: dict[str, Any]) -> dict[str, Any]:
    """xdm to xed: `https://ns.adobe.com/experience/a/b` is `_experience.a.b`, `xdm:x` is `x`, `@id` is `_id`."""
    short: dict[str, Any] = {}
    for key, value in entity.items():
        if key == "xdm:identityMap" or key == "identityMap":
            short["identityMap"] = _short_identities(value)
        elif key.startswith(_NAMESPACE):
            *path, last = key.removeprefix(_NAMESPACE).strip("/").split("/")
            path = [f"_{path[0]}", *path[1:]] if path else []
            _merge(short, [*path, last] if path else [f"_{last}"], _short_value(value))
        else:
            _merge(short, [_short_key(key)], _short_value(value))
    return short


def _merge(into: dict[str, Any], path: list[str], value: object) -> None:
    for step in path[:-1]:
        inner = into.setdefault(step, {})
        if not isinstance(inner, dict):
            raise UnreadableEvent(f"body.xdmEntity: {_step(step)} is given both as a value and as an object")
        into = inner
    last = path[-1]
    if isinstance(value, dict) and isinstance(into.get(last), dict):
        into[last] |= value
    else:
        into[last] = value


def _short_key(key: str) -> str:
    if key.startswith("@"):
        return "_" + key[1:]
    if key.startswith(_NAMESPACE):
        return key.rstrip("/").rpartition("/")[2]
    return key.removeprefix("xdm:")


def _short_value(value: object, depth: int = 0) -> object:
    if depth > MAX_DEPTH:
        raise UnreadableEvent(f"body.xdmEntity: nested more than {MAX_DEPTH} deep")
    if isinstance(value, dict):
        return {_short_key(key): _short_value(inner, depth + 1) for key, inner in value.items()}
    if isinstance(value, list):
        return [_short_value(inner, depth + 1) for inner in value]
    return value


def _short_identities(value: object) -> object:
    # The namespaces are data: `https://data.adobe.io/entities/namespace/4` stays as it is.
    if not isinstance(value, dict):
        return value
    return {namespace: _short_value(identities) for namespace, identities in value.items()}


def _check_depth(value: object, name: str, depth: int = 0) -> None:
    if depth > MAX_DEPTH:
        raise UnreadableEvent(f"{name}: nested more than {MAX_DEPTH} deep")
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        for inner in value:
            _check_depth(inner, name, depth + 1)


def _explained(error: ValidationError) -> str:
    # Without input and context: an event's values are personal data.
    problems = error.errors(include_url=False, include_input=False, include_context=False)
    told = [f"{'.'.join(map(_step, problem['loc']))}: {problem['msg']}" for problem in problems[:5]]
    if len(problems) > 5:
        told.append(f"and {len(problems) - 5} more")
    return "; ".join(told)[:1000]


def _step(step: int | str) -> str:
    return str(step)[:80] if isinstance(step, int) or "@" not in step else "…"


def _kind(value: object) -> str:
    names = {list: "an array", str: "a string", int: "a number", float: "a number", bool: "a boolean"}
    return names.get(type(value), "null")
