"""Canaries: texts that occur nowhere else, planted in every place that can hold a secret or personal data.

The places are read off the models, so that a new one without a canary fails a test. A canary is searched in plain
text and as base64 (at any offset), hexadecimal digits, percent-encoding and reversed would show it.
"""

import base64
import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import msgspec
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from dispatcher.config.secrets import Secret
from dispatcher.contract.envelope import Envelope

Json = dict[str, Any]


# --- places that can hold a secret or personal data


def secret_places(model: type[BaseModel], before: str = "") -> set[str]:
    """Every field of type `Secret`, and every one that is kept out of `repr`, since it may hold one: `auth.sign.key`."""
    found: set[str] = set()
    for name, about in model.model_fields.items():
        place = f"{before}{name}"
        types = set(_types_in(about))
        if Secret in types or not about.repr:
            found.add(place)
        for inner in types:
            if issubclass(inner, BaseModel):
                found |= secret_places(inner, f"{place}.")
    return found


def _types_in(annotation: object) -> Iterator[type]:
    if isinstance(annotation, FieldInfo):
        annotation = annotation.annotation
    if isinstance(annotation, type) and not get_args(annotation):
        yield annotation
    for inner in get_args(annotation):
        if get_origin(annotation) is not Literal:
            yield from _types_in(inner)


def text_places(struct: type[msgspec.Struct] = Envelope, before: str = "") -> set[str]:
    """Every field of the event that can hold text: `body.xdmEntity.identityMap.*.id`."""
    found: set[str] = set()
    for about in msgspec.structs.fields(struct):
        found |= _places_of(about.type, f"{before}{about.encode_name}")
    return found


def _places_of(annotation: object, place: str) -> set[str]:
    if isinstance(annotation, type) and issubclass(annotation, msgspec.Struct):
        return text_places(annotation, f"{place}.")
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _places_of(inner[0], place)
    if origin in (Union, UnionType):
        return {found for one in inner for found in _places_of(one, place)}
    if origin is list:
        return _places_of(inner[0], place)
    if origin is dict:
        return _places_of(inner[1], f"{place}.*")
    return set() if annotation in (bool, int, float, NoneType) else {place}


# --- what is planted there


@dataclass(frozen=True)
class Canary:
    """One text, and the place that it was planted in."""

    place: str
    text: str

    @cached_property
    def forms(self) -> tuple[str, ...]:
        """Each way in which an output could show it."""
        raw = self.text.encode()
        percent = "".join(f"%{byte:02X}" for byte in raw)
        plain = [self.text, self.text[::-1], percent, percent.lower(), raw.hex(), raw.hex().upper()]
        return (*plain, *_base64_forms(raw))


def _base64_forms(raw: bytes) -> Iterator[str]:
    """What base64 makes of the text wherever it begins within three bytes: the characters that it alone decides."""
    for before in range(3):
        encoded = base64.b64encode(b"x" * before + raw).decode().rstrip("=")
        inner = encoded[-(-before * 8 // 6) : (before + len(raw)) * 8 // 6]
        yield inner
        if "+" in inner or "/" in inner:
            yield inner.replace("+", "-").replace("/", "_")


@dataclass
class Aviary:
    """All canaries of a run, by kind."""

    secrets: dict[str, Canary] = field(default_factory=dict)
    personal: dict[str, Canary] = field(default_factory=dict)

    def secret(self, place: str, text: str | None = None) -> str:
        """Returns the canary of a place that holds a secret; `text` if it can't be chosen freely."""
        return self.secrets.setdefault(place, Canary(place, text or _fresh("s", place))).text

    def person(self, place: str) -> str:
        """The canary of a place that holds personal data."""
        return self.personal.setdefault(place, Canary(place, _fresh("p", place))).text

    def found_in(self, outputs: Mapping[str, str], *, but: Iterable[Canary] = ()) -> list[str]:
        """Each canary that an output shows, with a few words around it."""
        spared = {canary.text for canary in but}
        wanted = [one for one in (*self.secrets.values(), *self.personal.values()) if one.text not in spared]
        return [
            f"{name} shows {canary.place}: …{text[max(0, at - 60) : at + 20]!r}…"
            for name, text in outputs.items()
            for canary in wanted
            for form in canary.forms
            if (at := text.find(form)) >= 0
        ]


def _fresh(kind: str, place: str) -> str:
    return f"cnry{kind}{hashlib.blake2b(place.encode(), digest_size=8).hexdigest()}q"


TRACES = re.compile(
    r"eyJ[\w-]{8,}\.|v1a?,[A-Za-z0-9+/]{40}|whs(?:ec|k)_[A-Za-z0-9+/]{4}|-----BEGIN |Bearer [\w-]{4}|Basic \w{4}"
)
"""What secrets are made into: tokens, signatures, keys, authentication headers."""


def traces_in(outputs: Mapping[str, str]) -> list[str]:
    """Each token, signature or key that an output shows, whosever it is."""
    return [
        f"{name} shows …{text[max(0, match.start() - 60) : match.end()]!r}…"
        for name, text in outputs.items()
        for match in TRACES.finditer(text)
    ]


# --- events

KNOWN_FIELDS: Mapping[str, str] = {
    "header.imsOrgId": "the tenant's name",
    "header.sandbox.id": "the tenant's name",
    "header.sandbox.name": "the tenant's name",
    "body.xdmEntity.eventType": "decides",
    "body.xdmEntity._experience.customerJourneyManagement.messageExecution.campaignType": "decides",
    "body.xdmEntity._experience.customerJourneyManagement.messageProfile.channel._id": "decides",
    "body.xdmEntity._experience.customerJourneyManagement.messageDeliveryfeedback.feedbackStatus": "decides",
}
"""The fields that reveal no person, and that operators see."""


def planted_event(aviary: Aviary, org: str, event_id: str, channel: str = "email", **execution: object) -> Json:
    """An event with a canary in every field that can hold text, known and unknown, but the ones in `KNOWN_FIELDS`."""
    event: Json = {}
    for place in sorted(text_places() - KNOWN_FIELDS.keys()):
        _set(event, place.replace(".*.", ".Email.").split("."), aviary.person(place))
    entity = event["body"]["xdmEntity"]
    entity["identityMap"] = {
        "Email": [{"id": f"{entity['identityMap']['Email']['id']}@canary.example", "primary": True}],
        f"{aviary.person('a namespace')}@canary.example": [{"id": aviary.person("in a strange namespace")}],
    }
    entity["person"] = {"name": {"firstName": aviary.person("an unknown field")}, aviary.person("an unknown key"): 1}
    management = entity["_experience"]["customerJourneyManagement"]
    management["messageExecution"] |= {"campaignType": "ApiTriggered", **execution}
    management["messageProfile"]["channel"] = {"_id": f"https://ns.adobe.com/xdm/channels/{channel}"}
    feedback = management["messageDeliveryfeedback"]
    feedback |= {"feedbackStatus": "bounce", "retryCount": 0, "offers": [{"of": aviary.person("an offer")}]}
    entity["_id"] = f"{entity['_id']}-{event_id}"
    entity["eventType"] = "message.feedback"
    event["header"] |= {"imsOrgId": org, "sandbox": {"id": "sandbox-id", "name": "prod"}}
    return event


def _set(into: Json, path: list[str], value: object) -> None:
    for step in path[:-1]:
        into = into.setdefault(step, {})
    into[path[-1]] = value
