"""Respells the JSON of an event: *xdm*, whose keys are URIs, becomes *xed*, with short nested keys. Pure.

Works on the documents that the typed reader refuses or can't see through: mixed spellings, and keys that occur twice,
of which the last one wins. Values are never decoded, so that they leave exactly as they came.
"""

from collections.abc import Iterator, Mapping
from typing import Final, get_args

import msgspec
from msgspec import Raw, Struct

from dispatcher.contract.envelope import MAX_DEPTH, Entity, Header
from dispatcher.errors import UnreadableEvent

Tree = dict[str, object]
"""Objects by key; values are `Raw`."""
Shape = dict[str, "Shape"]
"""The keys of an object that the reader looks into; an empty one is a value."""

_NAMESPACE: Final = "https://ns.adobe.com/"
_LONG_KEYS: Final = ("xdm:", "@", _NAMESPACE)
_IDENTITIES: Final = "identityMap"
_decode_object = msgspec.json.Decoder(dict[str, Raw]).decode
_decode_array = msgspec.json.Decoder(list[Raw]).decode


def _shape(struct: type[Struct]) -> Shape:
    found: Shape = {}
    for field in msgspec.structs.fields(struct):
        inner = [
            one for one in (field.type, *get_args(field.type)) if isinstance(one, type) and issubclass(one, Struct)
        ]
        found[field.encode_name] = _shape(inner[0]) if inner else {}
    return found


_HEADER: Final = _shape(Header)
_ENTITY: Final = _shape(Entity)


def objects_of(document: bytes) -> tuple[Raw | None, Tree]:
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
    body = _opened(envelope.get("body"))
    entity = None if body is None else _opened(body.get("xdmEntity"))
    if entity is None:
        raise UnreadableEvent(f"{'body' if body is None else 'body.xdmEntity'}: missing, or not an object")
    return envelope.get("header"), {**entity}


def has_long_spelling(entity: Mapping[str, object]) -> bool:
    """Returns True if an entity's keys are URIs (*xdm*)."""
    return any(key.startswith(_LONG_KEYS) for key in entity)


def event_type(entity: Tree) -> str | None:
    """Returns an entity's event type, in either spelling, or None if it has none or it isn't a string."""
    value = entity.get("eventType", entity.get("xdm:eventType"))
    try:
        return msgspec.json.decode(value, type=str) if isinstance(value, Raw) else None
    except msgspec.MsgspecError:
        return None


def respelled(header: Raw | None, entity: Tree) -> bytes:
    """Returns the envelope in the short spelling, with the fields that the reader knows, each of them once."""
    known = _known(_short(entity) if has_long_spelling(entity) else entity, _ENTITY)
    tree: Tree = {"body": {"xdmEntity": known}}
    if header is not None:
        tree["header"] = _known(header, _HEADER)
    return msgspec.json.encode(tree)


def _known(value: object, shape: Shape) -> object:
    """Decodes the objects that the reader looks into: of a key that occurs twice the last value remains."""
    fields = _opened(value) if isinstance(value, Raw) else value
    if not shape or not isinstance(fields, dict):
        return value
    found: Tree = {}
    for key, inner in fields.items():
        name = _short_key(key)
        if name == _IDENTITIES:
            found[name] = _short_identities(inner)
        elif name in shape:
            found[name] = _known(inner, shape[name])
    return found


def _short(entity: Tree) -> Tree:
    """Shortens keys: `https://ns.adobe.com/experience/a/b` to `_experience.a.b`, `xdm:x` to `x`, `@id` to `_id`."""
    short: Tree = {}
    for key, value in entity.items():
        path = list(_path(key))
        if path == [_IDENTITIES]:
            short[_IDENTITIES] = value
        elif path[0] in _ENTITY and len(path) <= MAX_DEPTH:
            _merge(short, path, _short_value(value, 0))
    return short


def _path(key: str) -> Iterator[str]:
    if not key.startswith(_NAMESPACE):
        yield _short_key(key)
        return
    first, *rest = key.removeprefix(_NAMESPACE).strip("/").split("/")
    yield f"_{first}"
    yield from rest


def _merge(into: Tree, path: list[str], value: object) -> None:
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


def _short_key(key: str) -> str:
    if key.startswith("@"):
        return "_" + key[1:]
    if key.startswith(_NAMESPACE):
        return key.rstrip("/").rpartition("/")[2]
    return key.removeprefix("xdm:")


def _short_value(value: object, depth: int) -> object:
    """Respells the keys in a value down to `MAX_DEPTH`; whatever is deeper stays as it is."""
    start = memoryview(value)[0] if isinstance(value, Raw) else 0
    if not isinstance(value, Raw) or depth > MAX_DEPTH or start not in b"{[":
        return value
    if start == ord("["):
        return [_short_value(inner, depth + 1) for inner in _decode_array(value)]
    short: Tree = {}
    for key, inner in _decode_object(value).items():
        _merge(short, [_short_key(key)], _short_value(inner, depth + 1))
    return short


def _short_identities(value: object) -> object:
    # The namespaces are data: `https://data.adobe.io/entities/namespace/4` stays as it is.
    namespaces = _opened(value)
    if namespaces is None:
        return value
    return {namespace: _short_value(identities, 0) for namespace, identities in namespaces.items()}


def _opened(value: object) -> dict[str, Raw] | None:
    """Returns an object's values by key; None if it isn't an object."""
    try:
        return _decode_object(value) if isinstance(value, Raw) else None
    except (msgspec.MsgspecError, RecursionError):
        return None


def _kind(start: bytes) -> str:
    kinds = {b"[": "an array", b'"': "a string", b"t": "a boolean", b"f": "a boolean", b"n": "null"}
    return kinds.get(start, "a number")
