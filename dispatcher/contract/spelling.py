"""Respells the JSON of an event: *xdm*, whose keys are URIs, becomes *xed*, with short nested keys. Pure.

Works on the documents that the typed reader refuses or can't see through: mixed spellings, and keys that occur twice,
of which the last one wins. If an object has a key in both spellings, the short one counts, unless it is null. Values
are never decoded, so that they leave exactly as they came.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Final

import msgspec
from msgspec import Raw

from dispatcher.contract.envelope import NULL
from dispatcher.contract.event_fields import ENTITY, HEADER, Field, Group, Namespaces, Value
from dispatcher.errors import UnreadableEvent

Tree = dict[str, object]
"""Objects by key, and lists of identities; other values are `Raw`."""

_NAMESPACE: Final = "https://ns.adobe.com/"
_LONG_KEYS: Final = ("xdm:", f"{_NAMESPACE}experience/customerJourneyManagement")
"""Beginnings of the long keys of fields that the reader knows, beside `@id`. `read_envelope` searches for the same."""
_decode_object = msgspec.json.Decoder(dict[str, Raw]).decode
_decode_array = msgspec.json.Decoder(list[Raw]).decode
_decode_text = msgspec.json.Decoder(str).decode
_STRING: Final = rb'"(?:[^"\\]++|\\.)*+"'
_KEYS: Final = re.compile(rb"(%b)[ \t\r\n]*+:|%b" % (_STRING, _STRING), re.DOTALL)
"""Matches all strings, so that none is looked into. The group is a key, or empty."""
_PERHAPS_LONG: Final = re.compile(rb'(?<!\\)(?="[x@h\\])%b(?=[ \t\r\n]*+:)' % _STRING, re.DOTALL)
"""A key that may have a long spelling. Before a quote that opens a string there is no backslash; after one that closes
a string there is none of these letters."""


def objects_of(document: bytes) -> tuple[Raw | None, Mapping[str, Raw]]:
    """Returns an envelope's header, undecoded, and its XDM entity by key, each value undecoded.

    Raises:
        UnreadableEvent: it is not JSON, or there is no entity.
    """
    try:
        envelope: Mapping[str, Raw] = _decode_object(document)
    except msgspec.ValidationError:
        raise UnreadableEvent(f"not a JSON object but {_kind(document.lstrip()[:1])}") from None
    except msgspec.DecodeError as error:
        raise UnreadableEvent(f"not JSON: {str(error).removeprefix('JSON is malformed: ')[:200]}") from None
    except RecursionError:
        raise UnreadableEvent("not JSON: nested too deeply") from None
    body = _fields_of(envelope.get("body"))
    entity = None if body is None else _fields_of(body.get("xdmEntity"))
    if entity is None:
        raise UnreadableEvent(f"{'body' if body is None else 'body.xdmEntity'}: missing, or not an object")
    return envelope.get("header"), entity


def has_long_spelling(entity: Mapping[str, Raw]) -> bool:
    """Returns True if an entity's keys are URIs (*xdm*). Those of fields that the reader doesn't know prove nothing."""
    return any(key.startswith(_LONG_KEYS) for key in entity) or (
        "@id" in entity and _takes_effect("@id", "_id", entity)
    )


def event_type(entity: Mapping[str, Raw]) -> str | None:
    """Returns an entity's event type, in either spelling, or None if it has none or it isn't a string."""
    short = entity.get("eventType", NULL)
    value = entity.get("xdm:eventType", NULL) if short == NULL else short
    try:
        return _decode_text(value)
    except msgspec.MsgspecError:
        return None


def respelled(header: Raw | None, entity: Mapping[str, Raw]) -> Tree:
    """Returns the envelope in the short spelling, with the fields that the reader knows, each of them once."""
    is_long, known = has_long_spelling(entity), Tree()
    for key, value in entity.items():
        path = list(_path(key))
        if len(path) > 1 or _takes_effect(key, path[0], entity):
            _add(known, path, value, is_long=is_long)
    tree: Tree = {"body": {"xdmEntity": known}}
    if header is not None:
        tree["header"] = _known_part(header, HEADER, is_long=False)
    return tree


def _add(known: Tree, path: list[str], value: Raw, *, is_long: bool) -> None:
    """Adds a value to the entity's known fields, if the reader knows the field at this path."""
    field: Field | None = ENTITY
    for step in path:
        field = field.fields.get(step) if isinstance(field, Group) else None
        if field is None:
            return
    if field is not None:
        _merge(known, path, _known_part(value, field, is_long=is_long))


def _path(key: str) -> Iterator[str]:
    """Yields the short keys that a key of the entity stands for.

    `https://ns.adobe.com/experience/a/b` is `_experience.a.b`, `xdm:x` is `x`, `@id` is `_id`.
    """
    if not key.startswith(_NAMESPACE):
        yield _short_key(key)
        return
    first, *rest = key.removeprefix(_NAMESPACE).strip("/").split("/")
    yield f"_{first}"
    yield from rest


def _merge(into: Tree, path: list[str], value: object) -> None:
    """Sets the value at a path, and makes the objects on the way. Merges an object into one that is there."""
    for step in path[:-1]:
        inner = into.get(step)
        if not isinstance(inner, dict):
            inner = into[step] = {}
        into = inner
    last, here = path[-1], into.get(path[-1])
    if isinstance(value, dict) and isinstance(here, dict):
        for key, inner in value.items():
            _merge(here, [key], inner)
    else:
        into[last] = value


def _known_part(value: Raw, field: Field, *, is_long: bool) -> object:
    """Returns the fields of a value that the reader knows, each once; a value that isn't an object as it came."""
    if isinstance(field, Value):
        return _with_short_keys(value) if is_long and field.is_passed_on else value
    fields = _fields_of(value)
    if fields is None:
        return value
    if isinstance(field, Namespaces):  # `https://data.adobe.io/entities/namespace/4` is data and stays as it is
        return {name: _known_identities(inner, field.identity) for name, inner in fields.items()}
    found: Tree = {}
    for key, inner in fields.items():
        name = _short_key(key) if key.startswith(("@", *_LONG_KEYS)) else key
        if name in field.fields and _takes_effect(key, name, fields):
            _merge(found, [name], _known_part(inner, field.fields[name], is_long=is_long))
    return found


def _known_identities(value: Raw, identity: Group) -> object:
    try:
        return [_known_part(one, identity, is_long=False) for one in _decode_array(value)]
    except (msgspec.MsgspecError, RecursionError):
        return value


def _takes_effect(key: str, short: str, fields: Mapping[str, Raw]) -> bool:
    """Returns False for a long key if its object has the short key too, unless that is null."""
    return key == short or fields.get(short, NULL) == NULL


def _short_key(key: str) -> str:
    if key.startswith("@"):
        return "_" + key[1:]
    if key.startswith(_NAMESPACE):
        return key.rstrip("/").rpartition("/")[2]
    return key.removeprefix("xdm:")


def _with_short_keys(value: Raw) -> Raw:
    """Returns a value that is passed on, with the keys in it shortened and all else as it came.

    If two different keys of the value would become equal, all of them stay as they came: nothing may be lost.
    """
    text = bytes(value)
    if text[:1] not in b"{[" or _PERHAPS_LONG.search(text) is None:
        return value
    keys = {key: _decode_text(key) for key in set(_KEYS.findall(text)) if key}
    short = {key: _short_key(name) for key, name in keys.items()}
    if len(set(short.values())) < len(short):
        return value
    written = {key: msgspec.json.encode(name) for key, name in short.items() if name != keys[key]}
    return Raw(_PERHAPS_LONG.sub(lambda match: written.get(match[0], match[0]), text))


def _fields_of(value: Raw | None) -> dict[str, Raw] | None:
    """Returns an object's values by key; None if it isn't an object."""
    try:
        return None if value is None else _decode_object(value)
    except (msgspec.MsgspecError, RecursionError):
        return None


def _kind(start: bytes) -> str:
    kinds = {b"[": "an array", b'"': "a string", b"t": "a boolean", b"f": "a boolean", b"n": "null"}
    return kinds.get(start, "a number")
