"""What the typed decoder accepts, the lenient reader reads in the same way; and what only the lenient reader accepts."""

import copy
import json
from collections.abc import Iterator
from typing import Any

import orjson
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from dispatcher.contract import event_reader, record_text, spelling
from dispatcher.contract.envelope import Envelope
from dispatcher.contract.event_reader import read_envelope, spelling_of
from dispatcher.contract.events import DeliveryEvent, OtherEvent, read_event
from dispatcher.contract.feedback import encode_feedback
from dispatcher.errors import UnreadableEvent
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
    xdm_spelling,
)

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
        change = draw(st.sampled_from(["remove", "rename", "add", "replace"]))
        if change == "replace" or not isinstance(place, dict):
            place[last] = draw(values)
        elif change == "remove":
            del place[last]
        else:
            key = draw(st.sampled_from(["xdm:", "@", JOURNEYS, f"{JOURNEYS}x/"])) + str(last).removeprefix("_")
            place[key] = place.pop(last) if change == "rename" else draw(values)
    return event


@given(documents())
@settings(max_examples=2000)
def test_both_readers_read_an_event_in_the_same_way(document: Json) -> None:
    value = json.dumps(document).encode()
    try:
        envelope = read_envelope(value)
    except UnreadableEvent as error:
        with pytest.raises(UnreadableEvent) as refused:
            event_reader._read_leniently(value)
        assert str(error) == str(refused.value)
        return
    lenient = event_reader._read_leniently(value)
    assert lenient == envelope
    if isinstance(envelope, Envelope):
        assert _payloads(value) == _payloads(json.dumps(document, separators=(",", ":")).encode())


def _payloads(value: bytes) -> tuple[object, ...]:
    try:
        event = read_event(record(value), ORIGIN)
    except UnreadableEvent as error:
        return (str(error),)
    assert isinstance(event, DeliveryEvent)
    # Values that are passed on keep their white space.
    return event.tenant, event.webhook_id, *(orjson.loads(encode_feedback(event, version)) for version in (1, 2))


@pytest.mark.parametrize(
    "stray",
    [
        {"@id": None}, {"@id": "other"}, {"@type": "x"}, {"@context": {}}, {"@": 1}, {"https://ns.adobe.com/tenant/x": 1},
        {"https://ns.adobe.com/experience/other": {}},
    ],
    ids=str,
)  # fmt: skip
def test_long_keys_that_mean_nothing_do_not_change_what_is_passed_on(stray: Json) -> None:
    """Whichever reader reads such an event, its values keep their keys: they are not *xdm*."""
    event = copy.deepcopy(EMAIL_EVENT)
    event["body"]["xdmEntity"] |= stray
    offers = [{"@id": "o"}, *([{"xdm:name": 1}] if "@type" in stray else [])]  # the latter needs the lenient reader
    management(event)["messageDeliveryfeedback"]["offers"] = offers
    value = json.dumps(event).encode()
    for envelope in (read_envelope(value), event_reader._read_leniently(value)):
        assert isinstance(envelope, Envelope)
        passed_on = envelope.body.entity.experience.management.feedback.offers
        assert json.loads(bytes(passed_on)) == offers
    assert spelling_of(value) == "xed"


def test_usual_events_are_decoded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(event_reader, "_read_leniently")
    for event in _MADE.values():
        read(event)


# --- What doesn't matter (docs/events.md) stops no event.

EXPECTED = encode_feedback(read(EMAIL_EVENT), 2)
VALID = json.dumps(EMAIL_EVENT).encode()
FRAMED = b"\0\0\0\1\x2a"
"""The Confluent wire format: a zero byte and a schema id."""


@pytest.mark.parametrize(
    "value",
    [
        b"\xef\xbb\xbf" + VALID,
        b" \r\n\t" + VALID + b"\n",
        b"\n\xef\xbb\xbf " + VALID,
        FRAMED + VALID,
        FRAMED + b"\xef\xbb\xbf\n" + VALID,
        b"\0\x7b\x7b\x7b\x7b" + VALID,
        FRAMED + json.dumps(xdm_spelling(EMAIL_EVENT)).encode(),
        json.dumps(EMAIL_EVENT, indent=4).encode(),
        VALID.replace(b"/", b"\\/"),
        json.dumps(xdm_spelling(EMAIL_EVENT)).encode().replace(b"/", b"\\/"),
        VALID.replace(b'"requestId"', b'"\\u0072equestId"'),
        json.dumps(xdm_spelling(EMAIL_EVENT)).encode().replace(b'"xdm:', b'"\\u0078dm:'),
    ],
)
def test_every_form_of_the_same_json_is_the_same_event(value: bytes) -> None:
    assert encode_feedback(read(value), 2) == EXPECTED


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'"imsOrgId"', b'"imsOrgId": "first", "imsOrgId"'),
        (b'"imsOrgId"', b'"imsOrgId": 17, "imsOrgId"'),
        (b'"imsOrgId"', b'"ims\\u004frgId": "first", "imsOrgId"'),
        (b'"header"', b'"header": [], "header"'),
        (b'"body"', b'"body": {}, "body"'),
        (b'"xdmEntity"', b'"xdmEntity": null, "xdmEntity"'),
        (b'"feedbackStatus"', b'"feedbackStatus": {"no": 1}, "feedbackStatus"'),
        (b'"feedbackStatus"', b'"feedbackStatus": "sent", "feedbackStatus"'),
        (b'"identityMap"', b'"identityMap": {"Phone": [1]}, "identityMap"'),
        (b'"Email": [', b'"Email": 5, "Email": ['),
        (b'"id": "john', b'"id": 5, "id": "john'),
        (b'"messageFailure"', b'"messageFailure": "x", "messageFailure"'),
        (b'"category"', b'"category": [[[]]], "category"'),
        (b'"unused": 1', b'"unused": 1, "unused": 2'),
    ],
)
def test_of_a_key_that_occurs_twice_the_last_value_wins(old: bytes, new: bytes) -> None:
    assert encode_feedback(read(VALID.replace(old, new)), 2) == EXPECTED


@pytest.mark.parametrize("surrogate", [rb"\ud800", rb"\uDFFF", rb"\udc00\ud800", b"\xed\xa0\x80", b"\xed\xbf\xbf"])
def test_a_lone_surrogate_is_the_replacement_character(surrogate: bytes) -> None:
    count = 2 if len(surrogate) == 12 else 1
    for place, text in (("campaignID", b"16f24a15"), ("reason", b"Admin"), ("_id", b"b2c1ad21")):
        event = read(VALID.replace(b'"' + text, b'"' + text + surrogate))
        body = orjson.loads(encode_feedback(event, 1))  # a strict reader
        found = {
            "campaignID": body["messageExecution"]["campaignID"],
            "reason": body["messageDeliveryFeedback"]["messageFailure"]["reason"],
            "_id": "b2c1ad21" + "\ufffd" * count,
        }[place]
        assert found.startswith(text.decode() + "\ufffd" * count)


def test_surrogates_that_make_a_pair_are_one_character() -> None:
    for pair in (rb"\ud83d\ude00", "😀".encode(), b"\xed\xa0\xbd\xed\xb8\x80"):
        payload = orjson.loads(encode_feedback(read(VALID.replace(b"Admin", pair)), 1))
        assert payload["messageDeliveryFeedback"]["messageFailure"]["reason"] == "😀 Failure"


def test_an_escaped_backslash_before_u_does_not_count_as_a_surrogate() -> None:
    payload = orjson.loads(encode_feedback(read(VALID.replace(b"Admin", rb"\\ud800 \\\ud800")), 1))
    assert payload["messageDeliveryFeedback"]["messageFailure"]["reason"] == "\\ud800 \\\ufffd Failure"


NUMBERS = [
    "1" * 400,
    "-" + "9" * 30,
    "1E+999",
    "0.1000000000000000055511151231257827",
    "-0",
    "-0.0",
    "1.0",
    "1e2",
    "2" * 5000,
]


@pytest.mark.parametrize("number", NUMBERS)
@pytest.mark.parametrize("written", ["xed", "xdm"])
def test_values_that_are_passed_on_unread_leave_exactly_as_they_came(number: str, written: str) -> None:
    event = email_event(offers="OFFERS", messageExclusion="EXCLUSION", reason="REASON", code="CODE")
    text = json.dumps(xdm_spelling(event) if written == "xdm" else event)
    offers = f'[{number},{{"ü\\u00fc":{number}}},"\\/"]'
    for name, value in (("OFFERS", offers), ("EXCLUSION", number), ("REASON", f"[{number}]"), ("CODE", number)):
        text = text.replace(f'"{name}"', value)
    payload = encode_feedback(read(text.encode()), 1).decode()

    assert f'"offers":{offers}' in payload
    assert f'"messageExclusion":{number},' in payload
    assert f'"code":{number},"reason":[{number}]' in payload


URI = "https://ns.adobe.com/"


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ('[{"xdm:a" : [1.50, {"@id":"x"}], "b":2}]', '[{"a" : [1.50, {"_id":"x"}], "b":2}]'),
        ('{"https://ns.adobe.com/x/a":1, "https:\\/\\/ns.adobe.com\\/b":2}', '{"a":1, "b":2}'),
        ('{"\\u0078dm:a":1,"xdm:\\u00fc\\"":2}', '{"a":1,"ü\\"":2}'),
        ('["xdm:a","@b",":","@c:",{"d":"\\"xdm:e\\":"}]', None),
        ('{"a":"xdm:b","c\\\\":"@d","@e":"\\\\"}', '{"a":"xdm:b","c\\\\":"@d","_e":"\\\\"}'),
        ('{"a\\"xdm:b":1,"\\\\":"x","\\"@c":[]}', None),
        ('"xdm:a"', None),
        # Keys that would become equal:
        ('{"https://ns.adobe.com/a/id":1,"id":2}', None),
        ('{"@type":1,"_type":2,"xdm:b":3}', None),
        ('{"xdm:a":1,"https://ns.adobe.com/b/a":2}', None),
        ('{"xdm:a":1,"\\u0061":2}', None),
        # The same key:
        ('{"xdm:a":1,"xdm:a":2}', '{"a":1,"a":2}'),
        ('[{"xdm:a":1},{"xdm:a":2}]', '[{"a":1},{"a":2}]'),
    ],
)
def test_keys_in_passed_on_values_become_short_unless_something_would_be_lost(value: str, expected: str | None) -> None:
    event = xdm_spelling(email_event(offers="OFFERS", messageExclusion="OFFERS", reason="OFFERS"))
    payload = encode_feedback(read(json.dumps(event).replace('"OFFERS"', value).encode()), 1).decode()
    assert f'"offers":{expected or value},"messageExclusion":{expected or value},' in payload
    assert f'"reason":{expected or value}}}' in payload


JSON = st.recursive(
    st.none() | st.integers() | st.sampled_from(["", ":", "@", '"', "\\", "xdm:a", '\\"@a":', "x,", "/"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["a", "xdm:b", "@c", 'xdm:"', "x\\", f"{URI}d/e", ":", ""]), inner, max_size=4
        )
    ),
)


@given(JSON, st.sampled_from([None, 1]), st.booleans())
@example(-(2**63) - 1, None, False)  # orjson would read it as a float
@example([2**64], None, False)
def test_any_passed_on_value_keeps_all_but_the_spelling_of_its_keys(
    value: object, indent: int | None, php: bool
) -> None:
    def short(value: object) -> object:
        if isinstance(value, dict):
            names = {"xdm:b": "b", "@c": "_c", 'xdm:"': '"', f"{URI}d/e": "e"}
            return {names.get(key, key): short(inner) for key, inner in value.items()}
        return [short(inner) for inner in value] if isinstance(value, list) else value

    text = json.dumps(value, indent=indent)
    text = text.replace("/", "\\/") if php else text
    event = json.dumps(xdm_spelling(email_event(offers="OFFERS"))).replace('"OFFERS"', text)
    payload = json.loads(encode_feedback(read(event.encode()), 1))
    assert payload["messageDeliveryFeedback"]["offers"] == short(value)


def test_passed_on_values_are_not_taken_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """A megabyte of small values would hold the event loop for half a second."""
    event = xdm_spelling(email_event(identityMap={}, offers="OFFERS"))
    small = json.dumps(event).replace('"OFFERS"', '[[],[{"xdm:a":[]}]]').encode()
    monkeypatch.delattr(spelling, "_decode_array")
    assert bytes(read(small).feedback.offers) == b'[[],[{"a":[]}]]'


@pytest.mark.parametrize(
    "value",
    [
        b"1" * 400,
        b"-1E+999",
        b'"x"',
        b"[]",
        b"{}",
        b"null",
        b"true",
        b'"' + b"x" * 20_000 + b'"',
        b"[" * 900 + b"]" * 900,
    ],
)
def test_fields_that_are_not_used_cannot_kill_an_event(value: bytes) -> None:
    for old in (b'"createdAt": 1753171200000', b'"source": {"name": "feedback"}', b'"namespace": "Email"'):
        name = old.partition(b":")[0]
        assert encode_feedback(read(VALID.replace(old, name + b": " + value)), 2) == EXPECTED
    for place in (
        b'"imsOrgId"',
        b'"xdmEntity"',
        b'"_id"',
        b'"timestamp"',
        b'"feedbackStatus"',
        b'"category"',
        b'"campaignID"',
    ):
        changed = VALID.replace(place, b'"addedLater": ' + value + b", " + place, 1)
        assert encode_feedback(read(changed), 2) == EXPECTED
    meta = email_event(xdmMeta="META")
    assert encode_feedback(read(json.dumps(meta).encode().replace(b'"META"', value)), 2) == EXPECTED


@pytest.mark.parametrize(
    "key",
    ["xdm:more", "@more", "https://ns.adobe.com/more", "https://ns.adobe.com/", "https://ns.adobe.com/experience"],
)
@pytest.mark.parametrize("value", ["x", [1], {"@id": {"xdm:a": 1}}, None])
def test_unknown_long_keys_cannot_kill_an_event(key: str, value: object) -> None:
    for event in (email_event(), email_event(retryCount="0"), xdm_spelling(EMAIL_EVENT)):
        entity = event["body"]["xdmEntity"]
        if "_experience" in entity or not key.endswith("experience"):
            event["body"]["xdmEntity"] = {**entity, key: value}
            assert encode_feedback(read(event), 2) == EXPECTED
        event["body"]["xdmEntity"] = {key: value, **entity}
        assert encode_feedback(read(event), 2) == EXPECTED


def test_numbers_and_switches_in_quotes_are_read() -> None:
    event = read(email_event(retryCount="3", isTestExecution="true"))
    assert (event.feedback.retry_count, event.profile.is_test_execution) == (3, True)


def test_parts_that_are_null_are_missing() -> None:
    event = email_event(header=None, identityMap=None, messageExecution=None)
    event["header"] = None
    assert read(event, {"imsOrgId": b"o", "sandboxName": b"s"}).execution.campaign_id is None


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (
            b"\0\0\0\0\x07\x02\x10luma@AdobeOrg",
            "not JSON: Avro or Protobuf in a schema registry's wire format (schema id 7)",
        ),
        (b"\0\0\0\0\x07\0\x0a\x03abc", "not JSON: Avro or Protobuf in a schema registry's wire format (schema id 7)"),
        (b"Obj\x01\x04\x14avro.codec", "not JSON: an Avro object container file"),
        (b"\xc3\x01" + b"\x11" * 8 + b"\x02a", "not JSON: Avro in single-object encoding"),
        (b"\x0a\x0dluma@AdobeOrg\x12\x04prod\x18\x01", "not JSON: this looks like Protobuf"),
        (b"\x1aluma@AdobeOrg\x08prod\x02", "not JSON: binary data, perhaps Avro or Protobuf"),
    ],
)
def test_avro_and_protobuf_are_named(value: bytes, reason: str) -> None:
    with pytest.raises(UnreadableEvent) as refused:
        read_event(record(value), ORIGIN)
    assert str(refused.value).startswith(reason)
    assert str(refused.value).endswith("the producer has to write JSON or JSON Schema")


def test_of_a_large_value_only_the_start_is_examined(monkeypatch: pytest.MonkeyPatch) -> None:
    """A megabyte of Protobuf fields would hold the event loop for half a second."""
    examined = 0

    def counted(value: bytes, at: int) -> tuple[int, int]:
        nonlocal examined
        examined += 1
        return varint(value, at)

    varint = record_text._varint
    monkeypatch.setattr(record_text, "_varint", counted)
    for value in (b"\x0a\x00" * 500_000, b"\x0a\x0dluma@AdobeOrg" + b"\x12\x80\x80\x02" + b"x" * 2**15):
        with pytest.raises(UnreadableEvent, match="this looks like Protobuf"):
            read_event(record(value), ORIGIN)
    with pytest.raises(UnreadableEvent, match="binary data"):
        read_event(record(b"\x08\x01" * 500_000), ORIGIN)
    assert examined < 10_000


@pytest.mark.parametrize(
    "value", [b"\0", b"\0\0\0\0\1", b"\xef\xbb\xbf", b" ", FRAMED + b"  ", b"\xff" * 40, b"\x80" * 12]
)
def test_stumps_are_refused(value: bytes) -> None:
    with pytest.raises(UnreadableEvent, match=r"^not JSON: "):
        read_event(record(value), ORIGIN)


def test_the_spelling_is_that_of_the_entity_s_keys() -> None:
    assert spelling_of(FRAMED + VALID) == "xed"
    assert spelling_of(b"\xef\xbb\xbf" + json.dumps(xdm_spelling(EMAIL_EVENT)).encode()) == "xdm"


@pytest.mark.parametrize(
    "missing", ["_id", "timestamp", "identityMap", "messageExecution", "messageProfile", "channel"]
)
def test_fields_missing_in_the_short_spelling_are_read_from_the_long_one(missing: str) -> None:
    """A mixed event, in which any one part has long keys only."""
    event, long = email_event(), xdm_spelling(EMAIL_EVENT)["body"]["xdmEntity"]
    entity = event["body"]["xdmEntity"]
    where = management(event) if missing.startswith("message") else entity
    if missing == "channel":
        channel = management(event)["messageProfile"]["channel"]
        channel["@id"] = channel.pop("_id")
    else:
        del where[missing]
    entity |= {key: value for key, value in long.items() if missing in key or key == f"@{missing[1:]}"}
    assert encode_feedback(read(event), 2) == EXPECTED
    assert read(event) == read(EMAIL_EVENT)


def _renamed(value: object, path: Path, name: str) -> object:
    if isinstance(value, dict):
        step, *rest = path
        return {name if key == step and not rest else key: _renamed(inner, (*rest,), name) if key == step and rest else inner
                for key, inner in value.items()}  # fmt: skip
    assert isinstance(value, list)
    return [_renamed(inner, path[1:], name) for inner in value]


ENTITY = ("body", "xdmEntity")


@pytest.mark.parametrize("written", ["plain", "slashes", "escaped"])
@pytest.mark.parametrize("channel", _MADE)
def test_any_key_of_a_usual_event_may_have_its_long_spelling(channel: str, written: str) -> None:
    event = copy.deepcopy(_MADE[channel])
    management(event)["messageProfile"]["isTestExecution"] = True
    management(event)["messageDeliveryfeedback"] |= copy.deepcopy(_FULLER)
    expected = read(event)
    entity = event["body"]["xdmEntity"]
    paths = [path for path in _paths(entity) if isinstance(path[-1], str)]
    passed_on = {"offers", "messageExclusion", "messageFailure"}
    renamed = [path for path in paths if path[0] != "identityMap" or len(path) != 2]  # but for a namespace
    renamed = [path for path in renamed if not passed_on & set(path[:-1])]
    assert len(renamed) > 20
    for path in renamed:
        last = str(path[-1])
        at_the_top = len(path) == 1
        longs = [f"@{last[1:]}"] if last.startswith("_") else [f"xdm:{last}"]
        if not last.startswith("_") and not at_the_top and path[0] != "identityMap":
            longs.append(f"{JOURNEYS}{path[-2]}/{last}")
        for long in longs:
            document = {**event, "body": {"xdmEntity": _renamed(entity, path, long)}}
            text = json.dumps(document)
            if written == "slashes":
                text = text.replace("/", r"\/")
            elif written == "escaped":
                text = text.replace(long, f"\\u{ord(long[0]):04x}{long[1:]}")
            assert read(text.encode()) == expected, long


@pytest.mark.parametrize("key", ["@id", "xdm:_id"])
def test_if_a_key_is_there_in_both_spellings_the_short_one_counts(key: str) -> None:
    for retry_count in (0, "0"):  # read by the typed decoder, and by the lenient reader
        event = email_event(retryCount=retry_count)
        entity, channel = event["body"]["xdmEntity"], management(event)["messageProfile"]["channel"]
        for place in (entity, channel):
            place[key] = "other"
        assert encode_feedback(read(event), 2) == EXPECTED
        for place in (entity, channel):
            place[key], place["_id"] = place["_id"], None
        assert read(event) == read(EMAIL_EVENT)


def test_the_event_type_may_be_in_the_long_spelling_beside_null() -> None:
    event = email_event(eventType=None)
    event["body"]["xdmEntity"]["xdm:eventType"] = "message.tracking"
    assert read_event(record(event), ORIGIN) == OtherEvent("message.tracking")
