"""The fields of an event that the reader knows, by key, made from the structs of the envelope. Pure."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, get_args

import msgspec
from msgspec import Raw, Struct

from dispatcher.contract.envelope import DECIDES, TIME, Entity, Envelope, Header, Identity


@dataclass(frozen=True, slots=True)
class Value:
    """A field that holds a single value."""

    decode: Callable[[bytes], object]
    """Raises `msgspec.MsgspecError` if the field can't hold a JSON value. Numbers and switches may be in quotes."""
    decides: bool
    """The event's fate depends on it, so that it can't be left out."""
    is_passed_on: bool
    """It is passed on as it came: it can hold anything."""
    may_be_digits: bool
    """It is a text that can hold a number's digits."""


@dataclass(frozen=True, slots=True)
class Group:
    """A field that holds an object with fields of its own."""

    fields: "Mapping[str, Field]"
    decides: bool
    """One of its fields does."""


@dataclass(frozen=True, slots=True)
class Namespaces:
    """The identity map: the keys are data, the values are arrays of identities."""

    identity: Group
    decides: bool = False


Field = Value | Group | Namespaces


def _group(struct: type[Struct]) -> Group:
    fields = {one.encode_name: _field(one.type) for one in msgspec.structs.fields(struct)}
    return Group(fields, any(one.decides for one in fields.values()))


def _field(kind: object) -> Field:
    parts = _parts(kind)
    structs = [one for one in parts if isinstance(one, type) and issubclass(one, Struct)]
    if Identity in structs:
        return Namespaces(_group(Identity))
    if structs:
        return _group(structs[0])
    return Value(
        msgspec.json.Decoder(kind, strict=False).decode,
        DECIDES in parts,
        Raw in parts,
        str in parts and TIME not in parts,
    )


def _parts(kind: object) -> list[object]:
    """Returns a type and everything that it is made of, annotations included."""
    found = [kind, *getattr(kind, "__metadata__", ())]
    for one in get_args(kind):
        found += _parts(one)
    return found


ENVELOPE: Final = _group(Envelope)
HEADER: Final = _group(Header)
ENTITY: Final = _group(Entity)
