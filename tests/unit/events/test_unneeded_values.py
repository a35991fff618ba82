"""A value of a wrong type kills an event only in the fields that decide about it."""

import copy
import json
from collections.abc import Callable, Iterator

import jsonschema
import msgspec
import pytest
from hypothesis import given, settings

from dispatcher.config.schemas import SchemaKind, schema_of
from dispatcher.contract.event_fields import ENVELOPE, Field, Group
from dispatcher.contract.events import DeliveryEvent, read_event
from dispatcher.contract.feedback import encode_feedback
from dispatcher.contract.payload import FeedbackV1, FeedbackV2
from dispatcher.errors import UnreadableEvent
from tests.unit.events.test_lenient_reading import documents
from tests.unit.examples import (
    EMAIL_EVENT,
    JOURNEYS,
    ORIGIN,
    SMS_EVENT,
    Json,
    email_event,
    management,
    read,
    record,
    sms_event,
    xdm_spelling,
)

Path = tuple[str, ...]
MANAGEMENT: Path = ("body", "xdmEntity", "_experience", "customerJourneyManagement")


def text(value: object) -> object:
    """What is read in the place of a text: a number's digits, too."""
    if isinstance(value, str):
        return value if len(value) <= 10_000 else None
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return json.dumps(value) if is_number else None


def time(value: object) -> object:
    """What is read in the place of a time in ISO 8601, which no number is."""
    return text(value) if isinstance(value, str) else None


def whole(value: object) -> object:
    """What is read in the place of a whole number, which may be in quotes, and in any notation."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = value if isinstance(value, int) else float(value)
    except ValueError:
        return None
    return int(number) if number == number // 1 and abs(number) < 2**63 else None


def count(value: object) -> object:
    """What is read in the place of a text that may also be a whole number."""
    number = None if isinstance(value, str) else whole(value)
    return text(value) if number is None else str(number)


def an_object(value: object) -> object:
    """What is read in the place of an object."""
    return value if isinstance(value, dict) else None


def anything(value: object) -> object:
    """What is read in the place of a value that is passed on."""
    return value


UNNEEDED: dict[Path, Callable[[object], object]] = {
    ("header", "requestId"): text,
    ("body", "xdmEntity", "_id"): text,
    ("body", "xdmEntity", "timestamp"): time,
    (*MANAGEMENT, "messageExecution", "messageExecutionID"): text,
    (*MANAGEMENT, "messageExecution", "messageID"): text,
    (*MANAGEMENT, "messageExecution", "messageType"): text,
    (*MANAGEMENT, "messageExecution", "campaignVersionID"): text,
    (*MANAGEMENT, "messageProfile", "messageProfileID"): text,
    (*MANAGEMENT, "messageProfile", "requestID"): text,
    (*MANAGEMENT, "messageDeliveryfeedback", "messageFailure"): an_object,
    (*MANAGEMENT, "messageDeliveryfeedback", "messageFailure", "category"): anything,
    (*MANAGEMENT, "messageDeliveryfeedback", "messageFailure", "type"): anything,
    (*MANAGEMENT, "messageDeliveryfeedback", "messageFailure", "code"): anything,
    (*MANAGEMENT, "messageDeliveryfeedback", "messageFailure", "reason"): anything,
    (*MANAGEMENT, "messageDeliveryfeedback", "messageExclusion"): anything,
    (*MANAGEMENT, "messageDeliveryfeedback", "offers"): anything,
    (*MANAGEMENT, "messageDeliveryfeedback", "retryCount"): whole,
    (*MANAGEMENT, "messageDeliveryfeedback", "responseCode"): whole,
    (*MANAGEMENT, "messageDeliveryfeedback", "responseDurationMillis"): whole,
    (*MANAGEMENT, "messageDeliveryfeedback", "encoding"): text,
    (*MANAGEMENT, "messageDeliveryfeedback", "numberOfMessageParts"): count,
    (*MANAGEMENT, "messageDeliveryfeedback", "deliveryTimestamp"): time,
    (*MANAGEMENT, "emailChannelContext"): an_object,
    (*MANAGEMENT, "emailChannelContext", "address"): text,
    (*MANAGEMENT, "smsChannelContext"): an_object,
    (*MANAGEMENT, "smsChannelContext", "profileNumber"): text,
}
IDENTITIES: Path = ("body", "xdmEntity", "identityMap")
DECIDING: tuple[Path, ...] = (
    ("header", "imsOrgId"),
    ("header", "sandbox", "id"),
    ("header", "sandbox", "name"),
    ("header", "webhooksEnabled"),
    ("body", "xdmEntity", "eventType"),
    (*MANAGEMENT, "messageExecution", "campaignID"),
    (*MANAGEMENT, "messageExecution", "campaignType"),
    (*MANAGEMENT, "messageProfile", "channel", "_id"),
    (*MANAGEMENT, "messageProfile", "isTestExecution"),
    (*MANAGEMENT, "messageDeliveryfeedback", "feedbackStatus"),
)
ODD: tuple[object, ...] = (
    None, "", "x", "250 2.0.0 OK", "5", "5.0", "1.5", "true", "null", "é\U0001f600", "x" * 10_000, "x" * 10_001, True, False, 0, 5,
    -1, 1.5, 12.7, 2.0, 1e15, 1e16, 1e18, -1e18, 1e19, 1e300, 2**53 + 1, 2**63 - 1, 2**63, 2**64, 10**400, 1_700_000_000_000,
    [], {}, [1], [{}], {"a": 1}, {"id": "x"}, {"xdm:a": {"@id": [1]}},
)  # fmt: skip
EVENTS = {"email": EMAIL_EVENT, "sms": SMS_EVENT}


def put(event: Json, path: Path, value: object) -> Json:
    """Returns the event with a value in a place; objects on the way are made."""
    event = copy.deepcopy(event)
    place = event
    for step in path[:-1]:
        if not isinstance(place.get(step), dict):
            place[step] = {}
        place = place[step]
    place[path[-1]] = value
    return event


def put_xdm(event: Json, path: Path, value: object) -> Json:
    """Returns the event in the long spelling with a value in a place, which is named in the short spelling."""
    long = xdm_spelling(event)
    entity = long["body"]["xdmEntity"]
    if path[0] == "header":
        return put(long, path, value)
    if path[:4] != MANAGEMENT:
        entity["@id" if path[2] == "_id" else f"xdm:{path[2]}"] = value
        return long
    group, *rest = path[4:]
    if not rest:
        for key in [key for key in entity if key.startswith(f"{JOURNEYS}{group}/")]:
            del entity[key]
        entity[JOURNEYS + group] = value
        return long
    key, *inner = rest
    if inner:
        name = "@id" if inner == ["_id"] else f"{JOURNEYS}{group}/{inner[0]}"
        entity[f"{JOURNEYS}{group}/{key}"] = {**(entity.get(f"{JOURNEYS}{group}/{key}") or {}), name: value}
    else:
        entity[f"{JOURNEYS}{group}/{key}"] = value
    return long


SPELLINGS = {"xed": put, "xdm": put_xdm}


def _fields(field: Field, at: Path = ()) -> Iterator[tuple[Path, Field]]:
    if isinstance(field, Group):
        for name, inner in field.fields.items():
            yield from _fields(inner, (*at, name))
    if not isinstance(field, Group) or not field.decides:
        yield at, field


def test_every_field_is_in_one_of_the_tables() -> None:
    found = dict(_fields(ENVELOPE))
    assert {path for path, field in found.items() if field.decides} == set(DECIDING)
    assert {path for path, field in found.items() if not field.decides} == set(UNNEEDED) | {IDENTITIES}


def payloads(event: DeliveryEvent) -> tuple[object, ...]:
    """What is sent and in which headers, with each body checked against its structs."""
    bodies = tuple(encode_feedback(event, version) for version in (1, 2))
    msgspec.json.decode(bodies[0], type=FeedbackV1)
    msgspec.json.decode(bodies[1], type=FeedbackV2)
    return (
        event.tenant,
        event.webhook_id,
        event.timestamp,
        event.email_address,
        event.sms_number,
        *map(json.loads, bodies),
    )


@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("channel", EVENTS)
@pytest.mark.parametrize("path", UNNEEDED, ids=lambda path: path[-1])
def test_an_unneeded_field_of_any_value_is_read_or_counts_as_absent(path: Path, channel: str, spelling: str) -> None:
    write, event = SPELLINGS[spelling], EVENTS[channel]
    for value in ODD:
        found, expected = read(write(event, path, value)), read(put(event, path, UNNEEDED[path](value)))
        if spelling == "xdm" and UNNEEDED[path] is anything and value == ODD[-1]:
            expected = read(put(event, path, {"a": {"_id": [1]}}))
        assert payloads(found) == payloads(expected), value


@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("channel", EVENTS)
def test_all_unneeded_fields_may_be_odd_at_once(channel: str, spelling: str) -> None:
    for value in ODD:
        event = EVENTS[channel]
        for path in UNNEEDED:
            event = SPELLINGS["xed"](event, path, value)
        if spelling == "xdm":
            event = xdm_spelling(event)
        payloads(read(event))


@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize(
    ("identities", "expected"),
    [
        ([], None),
        ("x", None),
        (5, None),
        (None, None),
        ({}, {}),
        ({"ECID": 5, "Phone": [{"id": "+1"}]}, {"Phone": [{"id": "+1"}]}),
        ({"ECID": None, "Phone": {"id": "x"}}, {}),
        ({"Phone": []}, {"Phone": []}),
        ({"Phone": [{}, None, 5, [], "x", {"id": None}, {"id": {}}, {"id": "+1", "primary": True}]},
         {"Phone": [{"id": "+1", "primary": True}]}),
        ({"Phone": [{"id": 49151, "primary": "true"}, {"id": "b", "primary": []}]},
         {"Phone": [{"id": "49151", "primary": True}, {"id": "b"}]}),
        ({"Phone": [{"id": "x" * 10_001}, {"id": "b"}]}, {"Phone": [{"id": "b"}]}),
    ],
)  # fmt: skip
def test_identities_that_can_be_read_remain(identities: object, expected: object, spelling: str) -> None:
    event = SPELLINGS[spelling](sms_event(), IDENTITIES, identities)
    for version in (1, 2):
        assert json.loads(encode_feedback(read(event), version))["identityMap"] == expected


@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("path", DECIDING, ids=lambda path: path[-1])
def test_a_deciding_field_of_a_wrong_type_is_refused_with_its_place(path: Path, spelling: str) -> None:
    """Guessed, it would send what must not be sent, or skip what must not be lost."""
    for channel in EVENTS.values():
        values: tuple[object, ...] = ([], {"a": 1}, 1.5)
        for value in values:
            with pytest.raises(UnreadableEvent) as refused:
                read_event(record(SPELLINGS[spelling](channel, path, value)), ORIGIN)
            assert str(refused.value).startswith(".".join(path) + ": expected ")


@pytest.mark.parametrize("field", ["messageExecution", "messageProfile", "messageDeliveryfeedback"])
def test_an_object_with_a_deciding_field_is_an_object(field: str) -> None:
    event = email_event()
    management(event)[field] = []
    with pytest.raises(UnreadableEvent, match=rf"{field}: expected object.*, got array"):
        read_event(record(event), ORIGIN)


SCHEMA = jsonschema.Draft202012Validator(schema_of(SchemaKind.EVENT))


@given(documents())
@settings(max_examples=300)
def test_what_the_schema_allows_is_read(document: Json) -> None:
    """Beside the schema, an event needs a tenant, which record headers may name, and a channel."""
    try:
        read_event(record(document, {"imsOrgId": b"o", "sandboxName": b"s"}), ORIGIN)
    except UnreadableEvent as error:
        has_no_channel = str(error).endswith("messageProfile.channel._id: missing")
        text = json.dumps(document)  # with what no schema can refuse: keys of the other spelling, and what isn't JSON
        is_another = any(mark in text for mark in ('"xdm:', '"@', JOURNEYS, "Infinity"))
        assert has_no_channel or is_another or not SCHEMA.is_valid(document)
