"""A record becomes a DeliveryEvent: both spellings of XDM, what stands in for what is missing, what may be unknown."""

import copy
import json

import pytest

from dispatcher.contract.events import OtherEvent, read_event
from dispatcher.contract.feedback import encode_feedback
from dispatcher.contract.tenant import TenantKey
from dispatcher.errors import UnreadableEvent
from tests.published import published
from tests.unit.examples import (
    EMAIL_EVENT,
    JOURNEYS,
    ORIGIN,
    REMOVED,
    SMS_EVENT,
    email_event,
    management,
    read,
    record,
    sms_event,
    xdm_spelling,
)

STATUSES = ["error", "exclude", "sent", "bounce", "delay", "duplicate", "denylist", "delivered", "read", "unknown"]


@pytest.mark.parametrize("event", [EMAIL_EVENT, SMS_EVENT], ids=["email", "sms"])
def test_both_spellings_of_an_event_are_the_same_event(event: dict[str, object]) -> None:
    assert read(xdm_spelling(event)) == read(event)


def test_the_published_xdm_examples_together_are_an_event() -> None:
    """Adobe publishes the examples by field group; a record has all of them in one entity."""

    def example(name: str) -> dict[str, object]:
        found: dict[str, object] = json.loads(published(f"contracts/xdm/{name}").read_text())
        return found

    entity = {"@id": "e-1", "xdm:timestamp": "2026-08-06T14:30:00Z", "xdm:eventType": "message.feedback"}
    entity |= example("messageexecution.example.1.json") | example("messageprofile.example.1.json")
    entity |= example("message-delivery-feedback.example.1.json")
    entity["xdm:identityMap"] = example("identitymap.example.1.json")
    event = read({"header": EMAIL_EVENT["header"], "body": {"xdmEntity": entity}})

    assert event.channel == "email"
    assert event.status == "bounce"
    payload = json.loads(encode_feedback(event, 1))["messageDeliveryFeedback"]
    assert payload["messageFailure"] == {
        "category": "sync", "type": "Soft", "code": "FR-123", "reason": "Messagebox is Full",
    }  # fmt: skip
    assert event.feedback.retry_count == 1
    assert payload["offers"] == {"offerID": "1234", "placementID": "12345", "propositionID": "9898", "offerCount": 5}
    assert event.execution.campaign_id == "b3012925-ee14-4412-bfa5-5cc452e99ad3"
    assert event.execution.message_type == "marketing"
    assert event.profile.is_test_execution is False
    assert event.email_address == "user@domain.com"
    assert event.identities is not None
    assert list(event.identities) == [
        "https://data.adobe.io/entities/namespace/4",
        "https://data.adobe.io/entities/namespace/10",
        "https://data.adobe.io/entities/namespace/9",
    ]
    assert [one.id for one in event.identities["https://data.adobe.io/entities/namespace/4"]] == [
        "92312748749128", "92312748749239",
    ]  # fmt: skip


def test_the_second_published_feedback_example_passes_too() -> None:
    entity = json.loads(published("contracts/xdm/message-delivery-feedback.example.3.json").read_text())
    entity |= {"xdm:eventType": "message.feedback", f"{JOURNEYS}smsChannelContext/profileNumber": "+49151"}
    event = read({"header": EMAIL_EVENT["header"], "body": {"xdmEntity": entity}})

    assert (event.channel, event.sms_number) == ("sms", "+49151")
    assert event.status == "sent"
    assert (event.feedback.response_code, event.feedback.response_duration_millis) == (200, 286)


def test_the_two_spellings_may_be_mixed_in_one_entity() -> None:
    event = email_event()
    entity = event["body"]["xdmEntity"]
    entity[JOURNEYS + "messageDeliveryfeedback/retryCount"] = 7
    entity["https://ns.adobe.com/experience/customerJourneyManagement"] = {
        JOURNEYS + "smsChannelContext": {JOURNEYS + "smsChannelContext/profileNumber": "+49151"}
    }
    found = read(event)

    assert found.feedback.retry_count == 7
    assert found.status == "bounce"
    assert found.sms_number == "+49151"
    assert found.execution.campaign_id == "16f24a15-7e21-477c-848a-d5695ca7f137"


@pytest.mark.parametrize("status", [*STATUSES, "quarantined-by-a-later-version"])
def test_every_status_passes_known_or_not(status: str) -> None:
    assert read(email_event(feedbackStatus=status)).status == status


def test_unknown_fields_pass_everywhere() -> None:
    event = copy.deepcopy(EMAIL_EVENT)

    def strew(value: object) -> None:
        if isinstance(value, dict):
            for inner in list(value.values()):
                strew(inner)
            value["addedLater"] = {"deep": [1, None, {"er": True}]}
        elif isinstance(value, list):
            for inner in value:
                strew(inner)

    identities = event["body"]["xdmEntity"].pop("identityMap")  # its keys are data
    strew(event)
    event["body"]["xdmEntity"]["identityMap"] = identities

    assert read(event) == read(EMAIL_EVENT)


def test_record_headers_stand_in_for_what_the_envelope_lacks() -> None:
    event = email_event(imsOrgId=REMOVED, requestId=REMOVED, requestID=REMOVED, sandbox={})
    headers = {"imsOrgId": b"org@x", "sandboxId": b"id-1", "sandboxName": b"stage", "requestId": b"r-9"}
    found = read(event, headers)

    assert found.tenant == TenantKey("org@x", "stage")
    assert (found.sandbox_id, found.request_id) == ("id-1", "r-9")


def test_the_envelope_goes_before_record_headers() -> None:
    headers = {"imsOrgId": b"other", "sandboxId": b"other", "sandboxName": b"other", "requestId": b"other"}

    assert read(EMAIL_EVENT, headers) == read(EMAIL_EVENT)


def test_an_event_without_a_header_object_is_read_from_record_headers_alone() -> None:
    event = email_event()
    del event["header"]

    assert read(event, {"imsOrgId": b"o", "sandboxName": b"s"}).tenant == TenantKey("o", "s")


@pytest.mark.parametrize(
    ("changes", "headers", "expected"),
    [
        ({}, {"requestId": b"record"}, "8NoByJneShCdCGRnrGS1t1m3CdA73dhR"),
        ({"requestId": REMOVED}, {"requestId": b"record"}, "of the profile"),
        ({"requestId": None}, {"requestId": b"record"}, "of the profile"),
        ({"requestId": REMOVED, "requestID": REMOVED}, {"requestId": b"record"}, "record"),
        ({"requestId": REMOVED, "requestID": REMOVED}, {}, None),
    ],
)
def test_the_request_id_is_the_headers_else_the_profiles_else_the_records(
    changes: dict[str, object], headers: dict[str, bytes], expected: str | None
) -> None:
    assert read(email_event(**changes), headers).request_id == expected


@pytest.mark.parametrize(
    ("missing", "headers", "message"),
    [
        ("imsOrgId", {"sandboxName": b"s"}, "header.imsOrgId: missing, and there is no record header imsOrgId"),
        ("sandbox", {"imsOrgId": b"o"}, "header.sandbox.name: missing, and there is no record header sandboxName"),
    ],
)
def test_an_event_without_a_tenant_is_refused(missing: str, headers: dict[str, bytes], message: str) -> None:
    with pytest.raises(UnreadableEvent) as refused:
        read(email_event(**{missing: REMOVED}), headers)

    assert str(refused.value) == message


@pytest.mark.parametrize(
    ("channel", "expected"),
    [
        ({"_id": "https://ns.adobe.com/xdm/channels/email"}, "email"),
        ({"_id": "https://ns.adobe.com/xdm/channels/SMS/"}, "sms"),
        ({"_id": "https://ns.adobe.com/xdm/channels/push"}, "push"),
        ({"_id": "email"}, "email"),
        ({}, "email"),
        (REMOVED, "email"),
    ],
)
def test_the_channel_is_the_end_of_its_uri_or_that_of_the_context(channel: object, expected: str) -> None:
    assert read(email_event(channel=channel)).channel == expected


def test_the_sms_context_determines_the_channel() -> None:
    assert read(sms_event(channel=REMOVED)).channel == "sms"


def test_an_event_of_no_channel_is_refused() -> None:
    event = email_event(channel=REMOVED)
    del management(event)["emailChannelContext"]

    with pytest.raises(UnreadableEvent, match=r"messageProfile\.channel\._id: missing"):
        read(event)


@pytest.mark.parametrize("entity", [{"eventType": "message.tracking"}, {"xdm:eventType": "message.tracking", "x": [1]}])
def test_an_event_of_another_type_need_be_nothing_else(entity: dict[str, object]) -> None:
    found = read_event(record({"body": {"xdmEntity": entity}}), ORIGIN)

    assert found == OtherEvent("message.tracking")


def test_the_traceparent_comes_from_the_record() -> None:
    trace = b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"

    assert read(EMAIL_EVENT, {"traceparent": trace}).traceparent == trace.decode()
    assert read(EMAIL_EVENT).traceparent is None


def test_a_count_of_message_parts_is_text_whichever_way_it_came() -> None:
    for parts in (3, "3"):
        payload = json.loads(encode_feedback(read(sms_event(numberOfMessageParts=parts)), 2))
        assert payload["messageDeliveryFeedback"]["numberOfMessageParts"] == "3"
