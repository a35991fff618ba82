"""An event that is taken at a glance is the one that the validator would have made of the same record."""

import copy
from collections.abc import Iterator
from typing import Any

import orjson
from hypothesis import given, settings
from hypothesis import strategies as st

from dispatcher.contract import events
from dispatcher.contract.envelope import opened, validated
from dispatcher.contract.events import DeliveryEvent
from dispatcher.contract.feedback import encode_feedback
from dispatcher.errors import UnreadableEvent
from tests.unit.examples import EMAIL_EVENT, ORIGIN, SMS_EVENT, ARecord, Json

Path = tuple[str | int, ...]


def _paths(value: object, at: Path = ()) -> Iterator[Path]:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, one in inner:
        yield (*at, key)
        yield from _paths(one, (*at, key))


_MADE = {"email": EMAIL_EVENT, "sms": SMS_EVENT}
_FULLER: Json = {
    "offers": [{"id": "o"}], "messageExclusion": {"reason": "x"}, "responseCode": 200, "responseDurationMillis": 3,
    "encoding": "GSM-7", "numberOfMessageParts": "2", "deliveryTimestamp": "2025-07-22T08:00:01Z",
}  # fmt: skip

scalars = (
    st.none() | st.booleans() | st.integers(-(2**64), 2**64 - 1) | st.floats(allow_nan=False) | st.text(max_size=8)
)
values = st.recursive(
    scalars | st.sampled_from(["", "x" * 201, "message.feedback", 2**63 - 1, 2**63, -(2**63), "1", "true"]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=5), inner, max_size=2),
    max_leaves=4,
)


@st.composite
def documents(draw: st.DrawFn) -> Json:
    """An event with up to three places changed, removed or added."""
    event = copy.deepcopy(_MADE[draw(st.sampled_from(["email", "sms"]))])
    if draw(st.booleans()):
        management = event["body"]["xdmEntity"]["_experience"]["customerJourneyManagement"]
        management["messageDeliveryfeedback"] |= copy.deepcopy(_FULLER)
    for _ in range(draw(st.integers(0, 3))):
        paths = list(_paths(event))
        if not paths:
            break  # its last key is gone
        *path, last = draw(st.sampled_from(paths))
        place: Any = event
        for step in path:
            place = place[step]
        if draw(st.booleans()) and isinstance(place, dict):
            del place[last]
        else:
            place[last] = draw(values)
    return event


def _validated_way(value: bytes) -> DeliveryEvent | str:
    try:
        document, entity = opened(value)
        if isinstance(entity.get("eventType"), str) and entity["eventType"] != "message.feedback":
            return "other"
        return events._assembled(validated(document), {}, ORIGIN)
    except UnreadableEvent as error:
        return str(error)


def _told(event: DeliveryEvent) -> tuple[object, ...]:
    return (
        event.tenant, event.sandbox_id, event.request_id, event.webhook_id, event.timestamp, event.channel, event.status,
        event.webhooks_enabled, event.email_address, event.sms_number, event.traceparent,
        event.profile.get("isTestExecution"), event.execution.get("campaignID"), event.execution.get("campaignType"),
        encode_feedback(event, 1), encode_feedback(event, 2),
    )  # fmt: skip


taken = 0


@given(documents())
@settings(max_examples=2000)
def test_what_is_taken_at_a_glance_is_what_the_validator_makes(document: Json) -> None:
    global taken
    try:
        value = orjson.dumps(document)
    except orjson.JSONEncodeError:
        return  # a number beyond 64 bits
    slow = _validated_way(value)
    try:
        read = events.read_event(ARecord(value), ORIGIN)
    except UnreadableEvent as error:
        assert str(error) == slow
        return
    if not isinstance(read, DeliveryEvent):
        assert slow == "other"
        return
    assert not isinstance(slow, str), slow
    assert _told(read) == _told(slow)
    opened_document, entity = opened(value)
    taken += events._at_a_glance(opened_document, entity, {}) is not None


def test_that_is_tried_with_many_events_that_are_taken() -> None:
    assert taken > 100


def test_the_usual_events_are_taken_at_a_glance() -> None:
    for event in _MADE.values():
        document, entity = opened(orjson.dumps(event))
        assert events._at_a_glance(document, entity, {}) is not None


def test_an_event_with_headers_keeps_its_traceparent() -> None:
    document, entity = opened(orjson.dumps(EMAIL_EVENT))
    event = events._at_a_glance(document, entity, {"traceparent": b"00-a-b-01", "other": b"\xff"})
    assert event is not None
    assert event.traceparent == "00-a-b-01"
