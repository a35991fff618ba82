"""The payload that tenants are sent: keys and their order are the contract."""

import json
from collections.abc import Callable

import orjson
import pytest

from dispatcher.contract.feedback import encode_feedback
from tests.published import DATA
from tests.unit.examples import (
    EMAIL_EVENT,
    REMOVED,
    SMS_EVENT,
    Json,
    email_event,
    management,
    read,
    sms_event,
    xdm_spelling,
)

REFERENCE = orjson.dumps(orjson.loads((DATA / "feedback-v1.json").read_bytes()))
"""The reference payload as compact JSON: orjson keeps the order of keys."""


@pytest.mark.parametrize("event", [EMAIL_EVENT, xdm_spelling(EMAIL_EVENT)], ids=["xed", "xdm"])
def test_the_reference_event_becomes_the_reference_payload_byte_for_byte(event: dict[str, object]) -> None:
    assert encode_feedback(read(event), 1) == REFERENCE


A, B, C = {"id": "a@b.c", "primary": True}, {"id": "old@b.c"}, {"id": "17", "primary": False}


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("write", [dict, lambda event: xdm_spelling(event)], ids=["xed", "xdm"])
@pytest.mark.parametrize(
    ("identities", "expected"),
    [
        ({"Email": [A], "email": [B]}, {"email": [A, B]}),
        ({"email": [B], "Email": [A]}, {"email": [B, A]}),
        ({"email": [B], "ECID": [C], "Email": [A, C]}, {"email": [B, A, C], "ECID": [C]}),
        ({"Email": [], "email": [B]}, {"email": [B]}),
        ({"Email": [A], "email": []}, {"email": [A]}),
        ({"Email": [A], "EMAIL": [B]}, {"email": [A], "EMAIL": [B]}),
    ],
)
def test_no_identity_of_an_email_is_lost_if_the_namespace_occurs_in_both_spellings(
    identities: Json, expected: Json, write: Callable[[Json], Json], version: int
) -> None:
    payload = encode_feedback(read(write(email_event(identityMap=identities))), version)
    found = json.loads(payload)["identityMap"]
    assert found == expected
    assert list(found) == list(expected)


def test_an_sms_keeps_both_spellings_of_a_namespace() -> None:
    identities = {"Email": [A], "email": [B]}
    assert json.loads(encode_feedback(read(sms_event(identityMap=identities)), 1))["identityMap"] == identities


def test_an_email_in_version_2_has_three_keys_more_at_their_places() -> None:
    """Nothing but campaignType, encoding, numberOfMessageParts and deliveryTimestamp is added."""
    expected = json.loads(REFERENCE)
    expected["messageExecution"]["campaignType"] = "ApiTriggered"
    expected["messageDeliveryFeedback"] |= {"encoding": None, "numberOfMessageParts": None, "deliveryTimestamp": None}

    assert encode_feedback(read(EMAIL_EVENT), 2) == orjson.dumps(expected)


def test_an_sms_in_version_2() -> None:
    assert encode_feedback(read(SMS_EVENT), 2).decode() == (
        '{"requestId":"r-2","imsOrg":"myImsOrg","sandbox":{"id":"068abf40","name":"prod"},"channel":"sms",'
        '"eventType":"message.feedback",'
        '"channelContext":{"profileAddress":null,"profileNumber":"+4915112345678"},'
        '"messageExecution":{"messageExecutionID":"HUMA-2","messageType":"marketing","campaignID":"c-2",'
        '"campaignVersionID":"v-2","messageID":"m-2","messageProfileID":"p-2","campaignType":"ApiTriggered"},'
        '"messageDeliveryFeedback":{"feedbackStatus":{"value":"delivered"},"offers":null,"messageExclusion":null,'
        '"messageFailure":null,"retryCount":1,"responseCode":200,"responseDurationMillis":286,"encoding":"GSM-7",'
        '"numberOfMessageParts":"2","deliveryTimestamp":"2025-07-22T08:00:01Z"},'
        '"identityMap":{"Phone":[{"id":"+4915112345678"}],"ECID":[{"id":"17","primary":true}]}}'
    )


def test_an_sms_in_version_1_has_the_keys_of_version_1() -> None:
    assert encode_feedback(read(SMS_EVENT), 1).decode() == (
        '{"requestId":"r-2","imsOrg":"myImsOrg","sandbox":{"id":"068abf40","name":"prod"},"channel":"sms",'
        '"eventType":"message.feedback",'
        '"messageExecution":{"messageExecutionID":"HUMA-2","messageType":"marketing","campaignID":"c-2",'
        '"campaignVersionID":"v-2"},'
        '"messageDeliveryFeedback":{"feedbackStatus":{"value":"delivered"},"offers":null,"messageExclusion":null,'
        '"messageFailure":null,"retryCount":1},'
        '"identityMap":{"Phone":[{"id":"+4915112345678"}],"ECID":[{"id":"17","primary":true}]}}'
    )


def test_unknown_values_are_null() -> None:
    event = email_event(requestId=REMOVED, requestID=REMOVED, id=REMOVED, identityMap=REMOVED, retryCount=REMOVED)
    management(event)["messageExecution"] = {}
    del management(event)["messageDeliveryfeedback"]["messageFailure"]

    assert encode_feedback(read(event), 1).decode() == (
        '{"requestId":null,"imsOrg":"myImsOrg","sandbox":{"id":null,"name":"prod"},"channel":"email",'
        '"eventType":"message.feedback",'
        '"messageExecution":{"messageExecutionID":null,"messageType":null,"campaignID":null,"campaignVersionID":null},'
        '"messageDeliveryFeedback":{"feedbackStatus":{"value":"bounce"},"offers":null,"messageExclusion":null,'
        '"messageFailure":null,"retryCount":null},"identityMap":null}'
    )


def test_offers_and_exclusions_pass_as_they_came() -> None:
    offers = [{"offerID": "1", "b": [1, 2.5, None, True], "a": {"ü": "☂"}}]
    event = read(email_event(offers=offers, messageExclusion={"reason": "Marketing", "z": 0}))
    feedback = json.loads(encode_feedback(event, 1))["messageDeliveryFeedback"]

    assert feedback["offers"] == offers
    assert feedback["messageExclusion"] == {"reason": "Marketing", "z": 0}


def test_a_partly_described_failure_has_nulls_for_the_rest() -> None:
    event = read(email_event(messageFailure={"reason": "x", "more": 1, "code": 25}))
    feedback = json.loads(encode_feedback(event, 1))["messageDeliveryFeedback"]

    assert feedback["messageFailure"] == {"category": None, "type": None, "code": 25, "reason": "x"}


def test_only_an_emails_email_namespace_is_respelt() -> None:
    identities = {"Email": [{"id": "a@b"}], "Phone": [{"id": "1", "primary": False}]}
    email = json.loads(encode_feedback(read(email_event(identityMap=identities)), 1))
    sms = json.loads(encode_feedback(read(sms_event(identityMap=identities)), 1))

    assert email["identityMap"] == {"email": [{"id": "a@b"}], "Phone": [{"id": "1", "primary": False}]}
    assert sms["identityMap"] == identities


def test_text_beyond_ascii_goes_out_as_utf_8() -> None:
    assert "Grüße ☂".encode() in encode_feedback(read(email_event(messageType="Grüße ☂")), 1)
