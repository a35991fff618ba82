"""Checks that reading any record returns an event or raises UnreadableEvent, which quotes no value."""

import copy
import json
import re
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from dispatcher.contract.events import DeliveryEvent, read_event
from dispatcher.contract.feedback import encode_feedback
from dispatcher.errors import UnreadableEvent
from tests.unit.examples import (
    EMAIL_EVENT,
    JOURNEYS,
    ORIGIN,
    SMS_EVENT,
    a_record,
    email_event,
    management,
    record,
    xdm_spelling,
)

VALID = json.dumps(EMAIL_EVENT).encode()


def refusal(value: bytes | None) -> str:
    with pytest.raises(UnreadableEvent) as refused:
        read_event(record(value), ORIGIN)
    return str(refused.value)


def nested(depth: int) -> bytes:
    return b'{"a":' * depth + b"1" + b"}" * depth


def with_key(inner: bytes) -> bytes:
    """The valid event with `inner` as a further key of the feedback."""
    return VALID.replace(b'"feedbackStatus"', inner + b', "feedbackStatus"')


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (None, r"the record has no value \(a tombstone\)"),
        (b"", r"not JSON: the value is empty"),
        (b"{", r"not JSON: .+"),
        (VALID[:-7], r"not JSON: .+"),
        (VALID + b"}", r"not JSON: trailing characters \(byte \d+\)"),
        (VALID.replace(b"Admin", b"\xff\xfe"), r"not JSON: not UTF-8 \(byte \d+\)"),
        (VALID.replace(b"Admin", b"\x01"), r"not JSON: .+"),
        (VALID.replace(b'"retryCount": 0', b'"retryCount": NaN'), r"not JSON: .+"),
        (VALID.replace(b'"retryCount": 0', b'"retryCount": Infinity'), r"not JSON: .+"),
        (VALID.replace(b'"retryCount": 0', b'"retryCount": 01'), r"not JSON: .+"),
        (with_key(b'"unused": 1.2.3'), r"not JSON: .+"),
        (with_key(b'"unused": "\\x"'), r"not JSON: .+"),
        (nested(100_000), r"not JSON: nested too deeply"),
        (b"null", r"not a JSON object but null"),
        (b"[]", r"not a JSON object but an array"),
        (b'"text"', r"not a JSON object but a string"),
        (b"17", r"not a JSON object but a number"),
        (b"true", r"not a JSON object but a boolean"),
        (b"{}", r"body: missing, or not an object"),
        (b'{"body": []}', r"body: missing, or not an object"),
        (b'{"body": {}}', r"body\.xdmEntity: missing, or not an object"),
        (b'{"body": {"xdmEntity": 1}}', r"body\.xdmEntity: missing, or not an object"),
    ],
)  # fmt: skip
def test_each_kind_of_broken_record_is_refused_in_words(value: bytes | None, message: str) -> None:
    assert re.fullmatch(message, refusal(value))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"feedbackStatus": ""}, "messageDeliveryfeedback.feedbackStatus: expected str of length >= 1"),
        ({"feedbackStatus": 3}, "messageDeliveryfeedback.feedbackStatus: expected str, got int"),
        ({"feedbackStatus": "x" * 201}, "messageDeliveryfeedback.feedbackStatus: expected str of length <= 200"),
        ({"sandbox": {"id": []}}, "header.sandbox.id: expected str | null, got array"),
        ({"channel": []}, "messageProfile.channel: expected object | null, got array"),
        ({"_id": {}, "messageProfile": "x"}, "messageProfile: expected object | null, got str"),
        ({"eventType": None}, "body.xdmEntity.eventType: expected str, got null"),
        ({"campaignID": {}}, "messageExecution.campaignID: expected str | null, got object"),
        ({"sandbox": "prod"}, "header.sandbox: expected object | null, got str"),
        ({"isTestExecution": "perhaps"}, "messageProfile.isTestExecution: expected bool | null, got str"),
    ],
)
def test_a_wrong_type_is_reported_with_its_place(changes: dict[str, object], message: str) -> None:
    assert message in refusal(json.dumps(email_event(**changes)).encode())


def test_a_missing_field_is_reported_with_its_place() -> None:
    event = email_event()
    del management(event)["messageDeliveryfeedback"]

    assert refusal(json.dumps(event).encode()) == (
        "body.xdmEntity._experience.customerJourneyManagement.messageDeliveryfeedback: missing"
    )


@pytest.mark.parametrize("depth", [33, 34, 200, 254, 255, 260, 500, 1000])
@pytest.mark.parametrize("key", ["offers", "messageExclusion"])
def test_deep_nesting_in_what_is_passed_on_is_refused(key: str, depth: int) -> None:
    assert "nested" in refusal(with_key(b'"%b": %b' % (key.encode(), nested(depth))))


@pytest.mark.parametrize("depth", [10, 31, 34, 200, 260, 500, 1000])
@pytest.mark.parametrize("place", ["addedLater", "messageFailure"])
def test_deep_nesting_is_refused_or_read_and_encoded(place: str, depth: int) -> None:
    if place == "messageFailure":
        value = VALID.replace(b'"Admin Failure"', nested(depth))
    else:
        value = with_key(b'"addedLater": %b' % nested(depth))
    assert_read_or_refused(value)


def test_an_offer_nested_as_deep_as_the_limit_passes() -> None:
    found = read_event(record(with_key(b'"offers": %b' % nested(32))), ORIGIN)

    assert isinstance(found, DeliveryEvent)


@pytest.mark.parametrize("inner", ['"[[[{{{"', '"\\\\"', '"\\"]]]"', "[[],[],{}]", '{"[{":[]}'])
def test_only_brackets_outside_of_texts_nest(inner: str) -> None:
    own = 2 if inner[0] in "[{" else 0
    for depth, is_read in ((32 - own, True), (33 - own, False)):
        value = with_key(b'"offers": %b%b%b' % (b"[" * depth, inner.encode(), b"]" * depth))
        if is_read:
            assert isinstance(read_event(record(value), ORIGIN), DeliveryEvent)
        else:
            assert "nested more than 32 deep" in refusal(value)


def test_deep_nesting_in_the_long_spelling_is_refused() -> None:
    event = xdm_spelling(EMAIL_EVENT)
    event["body"]["xdmEntity"][JOURNEYS + "messageDeliveryfeedback/offers"] = json.loads(nested(40))

    assert "nested more than 32 deep" in refusal(json.dumps(event).encode())


@pytest.mark.parametrize("name", ["retryCount", "responseCode", "responseDurationMillis"])
@pytest.mark.parametrize("number", [2**31, 2**63, 2**64, -(2**70), 10**400, "9" * 30, 1e300, "1" * 5000])
def test_a_number_that_is_too_large_is_refused_or_passed_on(name: str, number: object) -> None:
    """JSON has numbers of any size; the payload's writer has not."""
    assert_read_or_refused(json.dumps(email_event(**{name: number})).encode() if number != 10**400 else
                           json.dumps(email_event(**{name: 0})).replace(f'"{name}": 0', f'"{name}": 1{"0" * 400}').encode())  # fmt: skip


def test_a_megabyte_of_text_is_refused_in_a_short_message() -> None:
    assert len(refusal(json.dumps(email_event(campaignID="x" * 1_000_000)).encode())) < 1000
    assert len(refusal(b"x" * 1_000_000)) < 1000


def test_a_megabyte_of_unknown_keys_passes() -> None:
    long = "k" * 500_000
    event = email_event()
    entity = event["body"]["xdmEntity"]
    entity[f"https://ns.adobe.com/{long}"] = 1
    entity[f"https://ns.adobe.com/{long}/more"] = 2
    entity["https://ns.adobe.com/" + "/".join("deep" * 10_000)] = 3
    entity["https://ns.adobe.com/experience/" + "/".join("deep" * 10_000)] = 3

    assert isinstance(read_event(record(event), ORIGIN), DeliveryEvent)


def test_a_megabyte_of_unknown_fields_passes() -> None:
    event = email_event(addedLater=["x" * 1000] * 1000)

    assert isinstance(read_event(record(event), ORIGIN), DeliveryEvent)


CANARY = "canary.77@private.example"


def places(value: object, path: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    """The path of everything in a document."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    found = [path] if path else []
    for key, one in inner:
        found += places(one, (*path, key))
    return found


def put(event: Any, path: tuple[str | int, ...], value: object) -> None:
    for step in path[:-1]:
        event = event[step]
    event[path[-1]] = value


EVENTS = {"xed": EMAIL_EVENT, "sms": SMS_EVENT, "xdm": xdm_spelling(EMAIL_EVENT)}


@pytest.mark.parametrize("spelling", EVENTS)
def test_no_message_ever_quotes_a_value(spelling: str) -> None:
    """An address in any place, as text, key, number of the wrong kind or list, is never in the refusal: it is logged."""
    refused = 0
    for path in places(EVENTS[spelling]):
        for planted in (CANARY, {CANARY: CANARY}, [CANARY], [{"id": {CANARY: [CANARY]}}], CANARY * 1000):
            event = copy.deepcopy(EVENTS[spelling])
            put(event, path, planted)
            try:
                read_event(record(event), ORIGIN)
            except UnreadableEvent as error:
                refused += 1
                assert "canary" not in str(error), path
                assert error.__cause__ is None
                assert error.__context__ is None or error.__suppress_context__, "a traceback would show it"

    assert refused >= 60


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.just(CANARY),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


@given(st.binary(max_size=200))
@example(b"\x00" * 10)
def test_arbitrary_bytes_are_refused(value: bytes) -> None:
    refusal(value)


@given(JSON)
def test_arbitrary_json_is_read_or_refused(value: object) -> None:
    assert_read_or_refused(json.dumps(value).encode(errors="surrogatepass"))


@given(spelling=st.sampled_from(sorted(EVENTS)), data=st.data())
def test_a_valid_event_with_anything_anywhere_is_read_or_refused(spelling: str, data: st.DataObject) -> None:
    event = copy.deepcopy(EVENTS[spelling])
    for _ in range(data.draw(st.integers(1, 3))):
        path = data.draw(st.sampled_from(places(event)))
        put(event, path, data.draw(JSON))
        if not places(event):
            break
    assert_read_or_refused(json.dumps(event).encode(errors="surrogatepass"))


@given(st.data())
def test_a_valid_event_with_any_bytes_changed_is_read_or_refused(data: st.DataObject) -> None:
    value = bytearray(VALID)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(value) - 1))
        value[at : at + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=4))
    assert_read_or_refused(bytes(value))


@given(st.lists(st.tuples(st.sampled_from(["imsOrgId", "sandboxName", "sandboxId", "requestId", "traceparent", "x"]),
                          st.none() | st.binary(max_size=20))))  # fmt: skip
def test_record_headers_may_be_anything(headers: list[tuple[str, Any]]) -> None:
    """A Kafka header's value may be null; names may come twice."""
    event = email_event(imsOrgId=None, requestId=None, sandbox={})
    assert_read_or_refused(json.dumps(event).encode(), headers)


def assert_read_or_refused(value: bytes, headers: list[tuple[str, Any]] | None = None) -> None:
    """No other error; and what is read can be encoded in both versions, as JSON that a strict reader takes."""
    try:
        event = read_event(a_record(value, headers=headers or ()), ORIGIN)
    except UnreadableEvent as error:
        assert 0 < len(str(error)) <= 1100
        assert CANARY not in str(error)
        return
    if isinstance(event, DeliveryEvent):
        for version in (1, 2):
            assert json.loads(encode_feedback(event, version))["imsOrg"] == event.tenant.org
