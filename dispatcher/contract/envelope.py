"""The JSON of a record's value: an Adobe Experience Platform streaming envelope around an XDM event (design section 3).

XDM has two spellings of the same event: *xed*, with short nested keys, and *xdm*, whose keys are URIs. Both are read
into the same document. Unknown fields and statuses pass; what can't be read is refused with the exact place, and never
with a value, since the message reaches logs.
"""

import json
from collections.abc import Callable, Mapping
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

FEEDBACK = "message.feedback"
MAX_DEPTH = 32
"""Nesting of what is passed on as it came (offers, exclusion)."""


MOST_TEXT: Final = 10_000
"""Characters."""
MOST_STATUS: Final = 200

_Text = Annotated[str, Field(max_length=MOST_TEXT)]
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

    feedbackStatus: Required[Annotated[str, Field(min_length=1, max_length=MOST_STATUS)]]
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


def opened(value: bytes | None) -> tuple[dict[str, Any], dict[str, Any]]:
    """The document in a record's value and the XDM entity in it, in the short spelling; nothing else is checked.

    Raises:
        UnreadableEvent: with the place and the reason, fit for the dead letter and the log.
    """
    document = _json(value)
    return document, _entity(document)


def validated(document: dict[str, Any]) -> EventDocument:
    """The document with every field that we know of its type.

    Raises:
        UnreadableEvent: as `opened`.
    """
    try:
        return _validated(document)
    except ValidationError as error:
        raise UnreadableEvent(_explained(error)) from None


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
