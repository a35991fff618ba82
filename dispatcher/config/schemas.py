"""JSON Schemas of what people write and receive, made from the models: for editors, CI and other programs.

They are committed under `config/schema/`, where a test keeps them current.
"""

from enum import StrEnum
from typing import Any, Final

from pydantic import JsonValue, TypeAdapter

from dispatcher.config.settings import Settings
from dispatcher.config.webhooks import WebhookFile
from dispatcher.contract.envelope import EventDocument
from dispatcher.contract.feedback import FeedbackV1, FeedbackV2

DIALECT: Final = "https://json-schema.org/draft/2020-12/schema"


class SchemaKind(StrEnum):
    """What there is a schema of."""

    SETTINGS = "settings"
    WEBHOOK = "webhook"
    EVENT = "event"
    PAYLOAD = "payload"


_ADAPTERS: dict[SchemaKind, tuple[str, TypeAdapter[Any]]] = {
    SchemaKind.SETTINGS: ("Settings of the feedback dispatcher (dispatcher.yaml)", TypeAdapter(Settings)),
    SchemaKind.WEBHOOK: ("Webhooks of the feedback dispatcher (webhooks.d/*.yaml)", TypeAdapter(WebhookFile)),
    SchemaKind.EVENT: ("Delivery event, the value of a Kafka record, short spelling", TypeAdapter(EventDocument)),
    SchemaKind.PAYLOAD: ("Feedback payload, versions 1 and 2", TypeAdapter(FeedbackV1 | FeedbackV2)),
}


def schema_of(kind: SchemaKind) -> dict[str, JsonValue]:
    """The JSON Schema, draft 2020-12, of what is written by hand, read from Kafka or sent."""
    title, adapter = _ADAPTERS[kind]
    return {"$schema": DIALECT} | adapter.json_schema() | {"title": title}
