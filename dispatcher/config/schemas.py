"""Generates the JSON Schemas of settings, webhooks, events and payloads from their models.

The schemas are committed under `config/schema/`; a test keeps them current.
"""

from enum import StrEnum
from typing import Final

import msgspec
from pydantic import JsonValue, TypeAdapter

from dispatcher.config.settings import Settings
from dispatcher.config.webhooks import WebhookFile
from dispatcher.contract.envelope import Envelope
from dispatcher.contract.history import HistoryRecord
from dispatcher.contract.payload import FeedbackV1, FeedbackV2

DIALECT: Final = "https://json-schema.org/draft/2020-12/schema"


class SchemaKind(StrEnum):
    """A kind of document that has a schema."""

    SETTINGS = "settings"
    WEBHOOK = "webhook"
    EVENT = "event"
    PAYLOAD = "payload"
    HISTORY = "history"


_TITLES: Final = {
    SchemaKind.SETTINGS: "Settings of the feedback dispatcher (dispatcher.yaml)",
    SchemaKind.WEBHOOK: "Webhooks of the feedback dispatcher (webhooks.d/*.yaml)",
    SchemaKind.EVENT: "Delivery event, the value of a Kafka record, short spelling",
    SchemaKind.PAYLOAD: "Feedback payload, versions 1 and 2",
    SchemaKind.HISTORY: "History record, the value of a record of the history topic, version 1",
}
_REF: Final = "#/$defs/{name}"


def schema_of(kind: SchemaKind) -> dict[str, JsonValue]:
    """Returns the JSON Schema, draft 2020-12, of a document that is written by hand, read from Kafka, or sent."""
    return {"$schema": DIALECT} | _schema(kind) | {"title": _TITLES[kind]}


def _schema(kind: SchemaKind) -> dict[str, JsonValue]:
    match kind:
        case SchemaKind.SETTINGS:
            return TypeAdapter(Settings).json_schema()
        case SchemaKind.WEBHOOK:
            return TypeAdapter(WebhookFile).json_schema()
        case SchemaKind.EVENT:
            return _of_structs(Envelope)
        case SchemaKind.PAYLOAD:
            return _of_structs(FeedbackV1, FeedbackV2)
        case SchemaKind.HISTORY:
            return _of_structs(HistoryRecord)


def _of_structs(*structs: type[msgspec.Struct]) -> dict[str, JsonValue]:
    references, definitions = msgspec.json.schema_components(structs, ref_template=_REF)
    alternatives: list[JsonValue] = list(references)
    choice: dict[str, JsonValue] = {"anyOf": alternatives} if len(alternatives) > 1 else {**references[0]}
    return {"$defs": {**definitions}} | choice
