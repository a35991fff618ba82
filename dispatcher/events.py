"""The contract in: a delivery event, read from a Kafka record (design section 3).

XDM has two spellings of the same event: *xed*, with short nested keys, and *xdm*, whose keys are URIs. Both are
read into the same `DeliveryEvent`. Unknown fields and statuses pass; what can't be read is refused with the exact
place, and never with a value, since the message reaches logs.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import field
from typing import Annotated, Any, Final, Required

import orjson
from pydantic import (
    BeforeValidator,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
    WithJsonSchema,
    with_config,
)
from typing_extensions import TypedDict

from dispatcher.errors import UnreadableEvent
from dispatcher.records import Origin, Record
from dispatcher.values import fast_value
from dispatcher.webhooks import TenantKey

FEEDBACK = "message.feedback"
MAX_DEPTH = 32
"""Nesting of what is passed on as it came (offers, exclusion)."""


_Text = Annotated[str, Field(max_length=10_000)]
Text = _Text | None
Whole = Annotated[int, Field(ge=-(2**63), lt=2**63)] | None
"""A number that the payload's writer can write."""

Json = Annotated[object, WithJsonSchema({})]
"""Any value: it comes from a JSON reader, so that nothing is left to check."""

_READ = with_config(ConfigDict(extra="ignore", use_attribute_docstrings=True))
# Typed dictionaries, not models: validated three times as fast, and this is done for every event.


@_READ
class Sandbox(TypedDict, total=False):
    """The sandbox that the message was sent from."""

    id: Text
    name: Text


@_READ
class Header(TypedDict, total=False):
    """The streaming envelope's header. What it lacks may stand in record headers of the same names."""

    imsOrgId: Text
    sandbox: Sandbox
    requestId: Text
    webhooksEnabled: bool | None
    """false: the campaign has feedback webhooks switched off."""


@_READ
class MessageExecution(TypedDict, total=False):
    """Which message it was."""

    messageExecutionID: Text
    messageID: Text
    messageType: Text
    campaignID: Text
    campaignVersionID: Text
    campaignType: Text


@_READ
class ChannelReference(TypedDict, total=False):
    """The channel, by its URI."""

    _id: Text
    """`https://ns.adobe.com/xdm/channels/email`"""


@_READ
class MessageProfile(TypedDict, total=False):
    """Whom the message was for."""

    messageProfileID: Text
    requestID: Text
    channel: ChannelReference | None
    isTestExecution: bool | None


@_READ
class MessageFailure(TypedDict, total=False):
    """Why it was not delivered."""

    category: Json
    type: Json
    code: Json
    reason: Json


def _text_of_number(value: object) -> object:
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


NumberAsText = Annotated[
    Text,
    BeforeValidator(_text_of_number),
    WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "integer"}, {"type": "null"}]}),
]


@_READ
class Feedback(TypedDict, total=False):
    """What became of the message."""

    feedbackStatus: Required[Annotated[str, Field(min_length=1, max_length=200)]]
    """error, exclude, sent, bounce, delay, duplicate, denylist, delivered, read, unknown; further values pass."""
    messageFailure: MessageFailure | None
    messageExclusion: Json
    offers: Json
    retryCount: Whole
    responseCode: Whole
    responseDurationMillis: Whole
    encoding: Text
    numberOfMessageParts: NumberAsText
    deliveryTimestamp: Text


@_READ
class EmailContext(TypedDict, total=False):
    """Where an e-mail went."""

    address: Text


@_READ
class SmsContext(TypedDict, total=False):
    """Where an SMS went."""

    profileNumber: Text


@_READ
class JourneyManagement(TypedDict, total=False):
    """The part of the event that tells of the message."""

    messageExecution: MessageExecution
    messageProfile: MessageProfile
    messageDeliveryfeedback: Required[Feedback]
    emailChannelContext: EmailContext | None
    smsChannelContext: SmsContext | None


@_READ
class Experience(TypedDict):
    """Adobe's own fields of the event."""

    customerJourneyManagement: JourneyManagement


@_READ
class Identity(TypedDict, total=False):
    """One of the recipient's identities in its namespace."""

    id: Required[_Text]
    primary: bool | None


@_READ
class Entity(TypedDict, total=False):
    """The XDM experience event."""

    _id: Text
    timestamp: Text
    eventType: Required[_Text]
    identityMap: dict[str, list[Identity]] | None
    _experience: Required[Experience]


@_READ
class SchemaReference(TypedDict, total=False):
    """Which schema the event was written by."""

    contentType: Text


@_READ
class Meta(TypedDict, total=False):
    """What is told of the event's form."""

    schemaRef: SchemaReference


@_READ
class Body(TypedDict, total=False):
    """The streaming envelope's content."""

    xdmMeta: Meta
    xdmEntity: Required[Entity]


@_READ
class EventDocument(TypedDict, total=False):
    """The value of a record: an Adobe Experience Platform streaming envelope around an XDM message-feedback event.

    The short spelling (*xed*) is described; the one with URI keys (*xdm*) is read as well. Further fields pass.
    """

    header: Header
    body: Required[Body]


_validated: Callable[[object], EventDocument] = TypeAdapter(EventDocument).validator.validate_python


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
    document = _json(record.value)
    entity = _entity(document)
    event_type = entity.get("eventType")
    if isinstance(event_type, str) and event_type != FEEDBACK:
        return OtherEvent(event_type[:200])
    try:
        event = _validated(document)
    except ValidationError as error:
        raise UnreadableEvent(_explained(error)) from None
    return _assembled(event, dict(record.headers), origin)


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
        return uri.rstrip("/").rpartition("/")[2].lower()
    if management.get("emailChannelContext") is not None:
        return "email"
    if management.get("smsChannelContext") is not None:
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
        again = orjson.dumps(document)
    except orjson.JSONEncodeError:
        raise UnreadableEvent("nested too deeply") from None
    # Compact JSON comes back as it was, unless a key came twice; in other JSON such a key leaves a colon behind. Only
    # then is the slow reader asked.
    if again != value and (b"\\u003" in value or value.count(b":") != again.count(b":")):
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
    return "eventType" not in entity or ":" in "".join(entity)


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
    told = [f"{_place(problem['loc'])}: {problem['msg']}" for problem in problems[:5]]
    if len(problems) > 5:
        told.append(f"and {len(problems) - 5} more")
    return "; ".join(told)[:1000]


def _place(steps: tuple[int | str, ...]) -> str:
    # Namespaces are data: a producer that confuses namespace and identity has put a person there.
    after = steps.index("identityMap") + 1 if "identityMap" in steps else len(steps)
    return ".".join("…" if at == after else _step(step) for at, step in enumerate(steps))


def _step(step: int | str) -> str:
    return str(step)[:80] if isinstance(step, int) or "@" not in step else "…"


def _kind(value: object) -> str:
    names = {list: "an array", str: "a string", int: "a number", float: "a number", bool: "a boolean"}
    return names.get(type(value), "null")
