"""Leaves out of an event what can't be read and isn't needed, so that it can't kill the event. Pure.

`docs/events.md` has the rules for producers. Whole numbers in any notation are numbers, and a number in a text's place
is its digits. Any other value of a wrong type counts as absent, unless it decides about the event: whether it is sent,
and to whom, must not be guessed.
"""

import re
from collections.abc import Iterator
from typing import Final

import msgspec
from msgspec import Raw

from dispatcher.contract.envelope import NULL
from dispatcher.contract.event_fields import Field, Group, Namespaces, Value

_NUMBER: Final = re.compile(rb"-?[0-9][0-9.eE+-]*")


def readable(value: object, field: Field) -> object:
    """Returns the value of a field of an event with what can't be read in it left out; null if that is all of it."""
    if isinstance(field, Value):
        return value if not isinstance(value, Raw) else _readable_value(value, field)
    if isinstance(value, dict):
        if isinstance(field, Namespaces):
            return _readable_identities(value, field.identity)
        return {name: readable(inner, field.fields[name]) for name, inner in value.items()}
    return value if field.decides else NULL


def left_out(value: object, field: Field, place: str = "") -> Iterator[str]:
    """Yields the places of the values that `readable` leaves out; never a value, nor a namespace, which is data."""
    if isinstance(field, Group) and isinstance(value, dict):
        for name, inner in value.items():
            yield from left_out(inner, field.fields[name], f"{place}.{name}" if place else name)
    elif isinstance(field, Namespaces) and isinstance(value, dict):
        found = _readable_identities(value, field.identity)
        if any(namespace not in found or len(found[namespace]) < len(every) for namespace, every in value.items()):
            yield place
    elif value != NULL and readable(value, field) == NULL:
        yield place


def _readable_value(value: Raw, field: Value) -> Raw:
    if _can_hold(field, value):
        return value
    text = bytes(value)
    if _NUMBER.fullmatch(text):
        number = float(text)
        if number.is_integer() and _can_hold(field, whole := b"%d" % int(number)):
            return Raw(whole)
        if field.may_be_digits and not field.decides and _can_hold(field, digits := b'"%b"' % text):
            return Raw(digits)
    return value if field.decides else NULL


def _can_hold(field: Value, value: bytes | Raw) -> bool:
    try:
        field.decode(value)
    except msgspec.MsgspecError:
        return False
    return True


def _readable_identities(namespaces: dict[str, object], identity: Group) -> dict[str, list[object]]:
    """Keeps each identity that has an id."""
    found: dict[str, list[object]] = {}
    for namespace, identities in namespaces.items():
        if isinstance(identities, list):
            read = (readable(one, identity) for one in identities)
            found[namespace] = [one for one in read if isinstance(one, dict) and one.get("id", NULL) != NULL]
    return found
