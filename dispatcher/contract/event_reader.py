"""Reads the JSON of a record's value into an `Envelope` (design section 3).

One typed decoder reads nearly every event. What it refuses, or what may be spelled in another way, is respelled first
and decoded again, so that duplicate keys, lone surrogates, mixed spellings and numbers in quotes don't kill an event.
"""

import re
from typing import Final

import msgspec
from msgspec import Raw, Struct

from dispatcher.contract.envelope import FEEDBACK, MAX_DEPTH, Envelope, Feedback
from dispatcher.contract.record_text import needs_repair, repaired, unframed
from dispatcher.contract.spelling import event_type, has_long_spelling, objects_of, respelled
from dispatcher.errors import UnreadableEvent, unchained

_decode: Final = msgspec.json.Decoder(Envelope).decode
_decode_leniently: Final = msgspec.json.Decoder(Envelope, strict=False).decode
_OPEN: Final = ord("{")
_LONG_PATH: Final = b"adobe.com/experience"
_LONG_KEY: Final = re.compile(rb'"(?:xdm:|@)|\\')
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
    if needs_repair(value):
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
    if _may_have_long_keys(value, envelope):
        return _read_leniently(value)
    check_depths(entity.experience.management.feedback)
    return envelope


def spelling_of(value: bytes) -> str:
    """Returns `xdm`, if the keys of a readable event's entity are URIs, else `xed`."""
    _, entity = objects_of(repaired(unframed(value)))
    return "xdm" if has_long_spelling(entity) else "xed"


def _may_have_long_keys(value: bytes, envelope: Envelope) -> bool:
    """Returns True if a field that the typed decoder didn't find may be there in the other spelling."""
    if value.find(_LONG_PATH) >= 0:  # bytes take an exception to find out that `in` was not asked for a number
        return True
    entity = envelope.body.entity
    management = entity.experience.management
    profile = management.message_profile
    is_usual = (
        entity.id is not None
        and entity.timestamp is not None
        and entity.identity_map is not None
        and management.message_execution is not None
        and profile is not None
        and profile.channel is not None
        and profile.channel.uri is not None
    )
    return not is_usual and _LONG_KEY.search(value) is not None


def _read_leniently(value: bytes) -> Envelope | OtherEvent:
    header, entity = objects_of(value)
    kind = event_type(entity)
    if kind is not None and kind != FEEDBACK:
        return OtherEvent(kind[:200])
    try:
        envelope = _decode_leniently(respelled(header, entity))
    except msgspec.MsgspecError as error:
        raise unchained(UnreadableEvent(_explained(str(error)))) from None
    except RecursionError:
        raise unchained(UnreadableEvent("not JSON: nested too deeply")) from None
    check_depths(envelope.body.entity.experience.management.feedback)
    return envelope


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


_NESTING: Final = re.compile(rb'"(?:[^"\\]|\\.)*"|[\[{]|[\]}]', re.DOTALL)


def _check_depth(value: Raw, name: str) -> None:
    if len(value) <= 2 * MAX_DEPTH:
        return
    text = bytes(value)
    if text.count(b"[") + text.count(b"{") <= MAX_DEPTH:
        return
    depth = 0
    for match in _NESTING.finditer(text):
        mark = text[match.start()]
        depth += (mark in b"[{") - (mark in b"]}")
        if depth > MAX_DEPTH:
            raise UnreadableEvent(f"{name}: nested more than {MAX_DEPTH} deep")


def _explained(message: str) -> str:
    """Returns msgspec's message in the form `place: reason`. It never quotes a value, and no key that is data."""
    reason, _, place = message.partition(" - at `$")
    place = place.rstrip("`").lstrip(".").replace("...", "…")
    if reason.startswith(_MISSING):
        return ".".join(filter(None, (place, reason.removeprefix(_MISSING).rstrip("`")))) + ": missing"
    return f"{place}: {reason[:1].lower()}{reason[1:]}".replace("`", "")
