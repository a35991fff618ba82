"""JSON Schemas of what people write and receive, made from the models: for editors, CI and other programs.

They are committed under `config/schema/`, where a test keeps them current.
"""

from enum import StrEnum
from typing import Final

from pydantic import BaseModel, JsonValue

from dispatcher.settings import Settings
from dispatcher.webhooks import WebhookFile

DIALECT: Final = "https://json-schema.org/draft/2020-12/schema"


class SchemaKind(StrEnum):
    """What there is a schema of."""

    SETTINGS = "settings"
    WEBHOOK = "webhook"


_MODELS: dict[SchemaKind, tuple[str, type[BaseModel]]] = {
    SchemaKind.SETTINGS: ("Settings of the feedback dispatcher (dispatcher.yaml)", Settings),
    SchemaKind.WEBHOOK: ("Webhooks of the feedback dispatcher (webhooks.d/*.yaml)", WebhookFile),
}


def schema_of(kind: SchemaKind) -> dict[str, JsonValue]:
    """The JSON Schema, draft 2020-12, of what is written by hand or read from Kafka."""
    title, model = _MODELS[kind]
    return {"$schema": DIALECT} | model.model_json_schema() | {"title": title}
