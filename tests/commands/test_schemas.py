"""The schemas of what is read and sent say what the program does."""

import json
from typing import Any

import jsonschema
import pytest

from dispatcher.config.schemas import SchemaKind, schema_of
from dispatcher.contract.feedback import encode_feedback
from tests.unit.examples import REMOVED, Json, email_event, read, sms_event

EVENTS = [
    email_event(),
    sms_event(),
    email_event(messageFailure=REMOVED, identityMap=REMOVED, offers=[{"a": 1}], messageExclusion={"reason": "x"}),
    sms_event(messageExecution={}, smsChannelContext=REMOVED, responseCode=REMOVED),
]


def validator(kind: SchemaKind) -> Any:
    schema = schema_of(kind)
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


@pytest.mark.parametrize("event", EVENTS)
@pytest.mark.parametrize("version", [1, 2])
def test_every_payload_matches_its_schema_and_no_other_version(event: Json, version: int) -> None:
    payload = json.loads(encode_feedback(read(event), version))
    schema = schema_of(SchemaKind.PAYLOAD)
    validator(SchemaKind.PAYLOAD).validate(payload)
    for number in (1, 2):
        own = jsonschema.Draft202012Validator({"$defs": schema["$defs"], "$ref": f"#/$defs/FeedbackV{number}"})
        assert own.is_valid(payload) == (number == version)


@pytest.mark.parametrize("event", EVENTS)
def test_every_event_matches_its_schema(event: Json) -> None:
    validator(SchemaKind.EVENT).validate(event)


def test_an_event_without_a_status_does_not() -> None:
    assert not validator(SchemaKind.EVENT).is_valid(email_event(feedbackStatus=REMOVED))
