"""Reads the JSON of a record's value into an `Envelope`, whose format `docs/events.md` describes.

One typed decoder reads nearly every event. What it refuses, or what may be spelled in another way, is respelled first
and decoded again, so that duplicate keys, lone surrogates, mixed spellings and numbers in quotes don't kill an event.
What is refused then, and isn't needed, is left out.
"""

import re
from itertools import accumulate
from typing import Final

import msgspec
from msgspec import Raw, Struct

from dispatcher.contract.envelope import FEEDBACK, MAX_DEPTH, Entity, Envelope, Feedback
from dispatcher.contract.event_fields import ENVELOPE
from dispatcher.contract.field_values import left_out, readable
from dispatcher.contract.record_text import needs_repair, repaired, unframed
from dispatcher.contract.spelling import Tree, event_type, has_long_spelling, objects_of, respelled
from dispatcher.errors import UnreadableEvent, unchained

_decode: Final = msgspec.json.Decoder(Envelope).decode
_decode_leniently: Final = msgspec.json.Decoder(Envelope, strict=False).decode
_OPEN: Final = ord("{")
_LONG_PATH: Final = b".com/experience/customerJourney"
_LONG_KEY: Final = b'"xdm:'
_ESCAPED: Final = re.compile(rb"\\(?:u00[2-7]|/experience)")
"""Escapes that can hide a long key: of a visible ASCII character, and of the slash in `_LONG_PATH`."""
_SHALLOW: Final = 2 * MAX_DEPTH
"""Bytes. A value of more than `MAX_DEPTH` levels is longer."""
_MISSING: Final = "Object missing required field `"


class OtherEvent(Struct, frozen=True, gc=False):
    """An event of another type than message.feedback."""

    event_type: str


def read_envelope(value: bytes | None) -> Envelope | OtherEvent:
    """Returns the event in a record's value.

    Raises:
        UnreadableEvent: with the place and the reason, fit for the dead letter and the log; never with a value.
    """
    if value is None:
        raise UnreadableEvent("the record has no value (a tombstone)")
    if not value or value[0] != _OPEN:
        value = unframed(value)
    has_escapes = value.find(b"\\") >= 0  # not `in`, which raises and drops an exception
    if (has_escapes or not value.isascii()) and needs_repair(value):
        value = repaired(value)
    try:
        envelope = _decode(value)
    except (msgspec.MsgspecError, RecursionError):
        envelope = None  # the lenient reader explains, outside of this handler: a traceback could show values
    if envelope is None:
        return _read_leniently(value)
    entity = envelope.body.entity
    if entity.event_type != FEEDBACK:
        return OtherEvent(entity.event_type[:200])
    if (
        value.find(_LONG_PATH) >= 0
        or value.find(_LONG_KEY) >= 0
        or (has_escapes and _ESCAPED.search(value) is not None)
        or _may_have_long_ids(value, entity)
    ):
        return _read_leniently(value)
    check_depths(entity.experience.management.feedback)
    return envelope


def absent_values_of(value: bytes) -> list[str]:
    """Returns the places in a readable event of the values that count as absent, because they are of another type."""
    return list(left_out(respelled(*objects_of(repaired(unframed(value)))), ENVELOPE))


def spelling_of(value: bytes) -> str:
    """Returns `xdm`, if the keys of a readable event's entity are URIs, else `xed`."""
    _, entity = objects_of(repaired(unframed(value)))
    return "xdm" if has_long_spelling(entity) else "xed"


def _may_have_long_ids(value: bytes, entity: Entity) -> bool:
    """Returns True if an id that the typed decoder didn't find may be there as `@id`."""
    profile = entity.experience.management.message_profile
    if entity.id is not None and profile is not None:
        channel = profile.channel
        if channel is not None and channel.uri is not None:
            return False
    return value.find(b'"@id"') >= 0


def _read_leniently(value: bytes) -> Envelope | OtherEvent:
    header, entity = objects_of(value)
    kind = event_type(entity)
    if kind is not None and kind != FEEDBACK:
        return OtherEvent(kind[:200])
    tree = respelled(header, entity)
    envelope: Envelope | None
    try:
        envelope = _decode_leniently(msgspec.json.encode(tree))
    except (msgspec.MsgspecError, RecursionError):
        envelope = None  # as above
    if envelope is None:
        envelope = _decode_what_is_readable(tree)
    check_depths(envelope.body.entity.experience.management.feedback)
    return envelope


def _decode_what_is_readable(tree: Tree) -> Envelope:
    try:
        return _decode_leniently(msgspec.json.encode(readable(tree, ENVELOPE)))
    except msgspec.MsgspecError as error:
        raise unchained(UnreadableEvent(_explained(str(error)))) from None
    except RecursionError:
        raise unchained(UnreadableEvent("not JSON: nested too deeply")) from None


def check_depths(feedback: Feedback) -> None:
    """Refuses passed-on values that are nested more deeply than receivers' parsers accept.

    Raises:
        UnreadableEvent: with the field's name.
    """
    _check_depth(feedback.offers, "offers")
    _check_depth(feedback.message_exclusion, "messageExclusion")
    failure = feedback.message_failure
    if failure is not None:
        _check_depth(failure.category, "messageFailure.category")
        _check_depth(failure.type, "messageFailure.type")
        _check_depth(failure.code, "messageFailure.code")
        _check_depth(failure.reason, "messageFailure.reason")


_STRING: Final = re.compile(rb'"(?:[^"\\]++|\\.)*+"', re.DOTALL)
_STEPS: Final = bytes.maketrans(b"[{]}", b"\x01\x01\xff\xff")
"""What a bracket adds to the depth, as a signed byte."""
_FLAT: Final = bytes(set(range(256)) - set(b"[{]}"))


def _check_depth(value: Raw, name: str) -> None:
    if len(value) <= _SHALLOW:
        return
    text = bytes(value)
    if text.count(b"[") + text.count(b"{") <= MAX_DEPTH:
        return
    steps = memoryview(_STRING.sub(b"", text).translate(_STEPS, _FLAT)).cast("b")
    if max(accumulate(steps), default=0) > MAX_DEPTH:
        raise UnreadableEvent(f"{name}: nested more than {MAX_DEPTH} deep")


def _explained(message: str) -> str:
    """Returns msgspec's message in the form `place: reason`. It never quotes a value, and no key that is data."""
    reason, _, place = message.partition(" - at `$")
    place = place.rstrip("`").lstrip(".").replace("...", "…")
    if reason.startswith(_MISSING):
        return ".".join(filter(None, (place, reason.removeprefix(_MISSING).rstrip("`")))) + ": missing"
    return f"{place}: {reason[:1].lower()}{reason[1:]}".replace("`", "")
