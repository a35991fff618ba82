"""Makes up realistic delivery events for the demo, tests and benchmarks.

The same arguments always make the same bytes: whatever they don't set is derived from the event's id. What must
happen to each event is decided by `demo.planning`, not here.
"""

import random
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from enum import StrEnum
from functools import partial
from typing import Final

import orjson

FEEDBACK: Final = "message.feedback"
CAMPAIGN: Final = "16f24a15-7e21-477c-848a-d5695ca7f137"
API_TRIGGERED: Final = "ApiTriggered"
STATUSES: Final = (
    "sent", "delivered", "bounce", "error", "delay", "exclude", "duplicate", "denylist", "read", "unknown",
)  # fmt: skip

Json = dict[str, object]
Renaming = Callable[[str], str]

_CHANNELS: Final = "https://ns.adobe.com/xdm/channels/"
_EXPERIENCE: Final = "https://ns.adobe.com/experience/customerJourneyManagement"
_SCHEMA: Final = "https://ns.adobe.com/demo/schemas/4a6f8b1c2d3e4f50617283940a1b2c3d"
_CONTENT_TYPE: Final = "application/vnd.adobe.{}+json;version=1.0"
_EPOCH: Final = 1_790_000_000.0
_NAMES: Final = ("ada", "bo", "chidi", "dana", "emre", "fatima", "goran", "hana", "ines", "jun", "kofi", "lena")
_FAILURES: Final = {
    "email": (
        ("sync", "Hard", "550", "5.1.1 user unknown"),
        ("async", "Soft", "452", "4.2.2 mailbox full"),
        ("sync", "Ignored", "25", "Admin Failure"),
    ),
    "sms": (
        ("async", "Hard", "30005", "Unknown destination handset"),
        ("sync", "Soft", "30003", "Unreachable destination handset"),
    ),
}


class Spelling(StrEnum):
    """How an event's keys are written; the schema's content type determines it."""

    XED = "xed"
    """Short and nested: `_experience.customerJourneyManagement.messageExecution`."""
    XDM = "xdm"
    """URIs: `https://ns.adobe.com/experience/customerJourneyManagement/messageExecution`."""


def make_event(
    *,
    org: str | None,
    event_id: str,
    sandbox: str | None = "prod",
    channel: str = "email",
    status: str = "delivered",
    spelling: Spelling = Spelling.XED,
    event_type: str = FEEDBACK,
    campaign: str | None = CAMPAIGN,
    campaign_type: str | None = API_TRIGGERED,
    webhooks_enabled: bool | None = None,
    test_execution: bool = False,
    at: float = _EPOCH,
) -> bytes:
    """Returns the value of one record, about 1.5 kB.

    `org` and `sandbox` None leave them to record headers. `at`: unix seconds of what happened.
    """
    chance = random.Random(event_id)
    header = _header(chance, org, sandbox, webhooks_enabled, at)
    management: Json = {
        "messageExecution": _execution(chance, campaign, campaign_type, at),
        "messageProfile": _profile(chance, channel, test_execution=test_execution),
        "messageDeliveryfeedback": _feedback(chance, channel, status, at),
    }
    identities = _identities(chance, channel, management)
    time = datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    if spelling is Spelling.XED:
        entity = _short(event_id, time, event_type, identities, management)
    else:
        entity = _long(event_id, time, event_type, identities, management)
    kind = "xed-full" if spelling is Spelling.XED else "xdm"
    meta = {"schemaRef": {"id": _SCHEMA, "contentType": _CONTENT_TYPE.format(kind)}}
    return orjson.dumps({"header": header, "body": {"xdmMeta": meta, "xdmEntity": entity}})


def malformed_records(org: str, event_id: str) -> dict[str, bytes | None]:
    """Returns records that aren't events, by the name of the mistake. All belong in the dead letters."""
    good = make_event(org=org, event_id=event_id)
    document = orjson.loads(good)
    without_status = orjson.loads(good)
    feedback = without_status["body"]["xdmEntity"]["_experience"]["customerJourneyManagement"]
    del feedback["messageDeliveryfeedback"]["feedbackStatus"]
    no_tenant = {**document, "header": {"requestId": "r"}}
    no_entity = {**document, "body": {"xdmMeta": {}}}
    return {
        "tombstone": None,
        "empty": b"",
        "truncated": good[: len(good) // 2],
        "bad UTF-8": good.replace(b"transactional", b"trans\xff\xfeional"),
        "array": b"[" + good + b"]",
        "no status": orjson.dumps(without_status),
        "no tenant": orjson.dumps(no_tenant),
        "no entity": orjson.dumps(no_entity),
        "key twice": good[:-1] + b',"header":{}}',
        "text": b"hello, is this thing on?",
    }


def _header(
    chance: random.Random, org: str | None, sandbox: str | None, webhooks_enabled: bool | None, at: float
) -> Json:
    header: Json = {
        "schemaRef": {"id": _SCHEMA, "contentType": _CONTENT_TYPE.format("xed-full")},
        "source": {"name": "message feedback"},
        "datasetId": f"{chance.getrandbits(96):024x}",
        "createdAt": int(at * 1000),
        "requestId": _token(chance),
    }
    if org is not None:
        header["imsOrgId"] = org
    if sandbox is not None:
        header["sandbox"] = {"id": _uuid(random.Random(f"{org}/{sandbox}")), "name": sandbox}
    if webhooks_enabled is not None:
        header["webhooksEnabled"] = webhooks_enabled
    return header


def _execution(chance: random.Random, campaign: str | None, campaign_type: str | None, at: float) -> Json:
    execution: Json = {
        "messageExecutionID": f"HUMA-{chance.randrange(10**8):08d}",
        "messageID": _uuid(chance),
        "messageType": "transactional",
        "campaignID": campaign,
        "campaignVersionID": _uuid(chance),
        "campaignActionID": _uuid(chance),
        "batchInstanceID": _uuid(chance),
        "messagePublishedAt": int((at - 86_400) * 1000),
    }
    if campaign is None:
        del execution["campaignID"]
    if campaign_type is not None:
        execution["campaignType"] = campaign_type
    return execution


def _profile(chance: random.Random, channel: str, *, test_execution: bool) -> Json:
    return {
        "messageProfileID": _uuid(chance),
        "requestID": _token(chance),
        "channel": {"_id": _CHANNELS + channel, "_type": _CHANNELS + channel},
        "isTestExecution": test_execution,
        "variant": "A",
    }


def _feedback(chance: random.Random, channel: str, status: str, at: float) -> Json:
    feedback: Json = {"feedbackStatus": status, "retryCount": 0}
    if status in ("bounce", "error", "delay", "denylist"):
        failure = chance.choice(_FAILURES.get(channel, _FAILURES["email"]))
        feedback["messageFailure"] = dict(zip(("category", "type", "code", "reason"), failure, strict=True))
        feedback["retryCount"] = chance.randrange(3)
    if status == "exclude":
        feedback["messageExclusion"] = {"reason": "TypologyRule", "ruleID": _uuid(chance)}
    if status == "sent":
        feedback |= {"responseCode": 200, "responseDurationMillis": chance.randrange(20, 400)}
    if channel == "sms":
        feedback |= {"encoding": "GSM-7", "numberOfMessageParts": 1 + chance.randrange(2)}
        if status == "delivered":
            feedback["deliveryTimestamp"] = datetime.fromtimestamp(at, UTC).isoformat().replace("+00:00", "Z")
    return feedback


def _identities(chance: random.Random, channel: str, management: Json) -> Json:
    """Returns the recipient's identities; the channel's own context repeats them."""
    if channel == "sms":
        number = f"+1555{chance.randrange(10**7):07d}"
        management["smsChannelContext"] = {"profileNumber": number, "smsProvider": "demo-gateway"}
        return {"Phone": [{"id": number, "primary": True}]}
    address = f"{chance.choice(_NAMES)}.{chance.randrange(10**5)}@mail.example"
    management["emailChannelContext"] = {"address": address, "namespace": "Email", "domain": "mail.example"}
    return {"Email": [{"id": address, "primary": True}]}


def _short(event_id: str, time: str, event_type: str, identities: Json, management: Json) -> Json:
    return {
        "_id": event_id,
        "timestamp": time,
        "eventType": event_type,
        "identityMap": identities,
        "_experience": {"customerJourneyManagement": management},
    }


def _long(event_id: str, time: str, event_type: str, identities: Json, management: Json) -> Json:
    entity: Json = {
        "@id": event_id,
        "xdm:timestamp": time,
        "xdm:eventType": event_type,
        "xdm:identityMap": _prefixed(identities, lambda key: key if key in identities else f"xdm:{key}"),
    }
    for part, members in management.items():
        place = f"{_EXPERIENCE}/{part}"
        entity[place] = _prefixed(members, partial(_uri, place))
    return entity


def _uri(place: str, key: str) -> str:
    return f"@{key[1:]}" if key.startswith("_") else f"{place}/{key}"


def _prefixed(value: object, rename: Renaming) -> object:
    if isinstance(value, Mapping):
        return {rename(key): _prefixed(inner, rename) for key, inner in value.items()}
    if isinstance(value, list):
        return [_prefixed(inner, rename) for inner in value]
    return value


def _uuid(chance: random.Random) -> str:
    digits = f"{chance.getrandbits(128):032x}"
    return f"{digits[:8]}-{digits[8:12]}-4{digits[13:16]}-a{digits[17:20]}-{digits[20:]}"


def _token(chance: random.Random) -> str:
    return "".join(chance.choices("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789", k=32))
