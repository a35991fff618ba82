"""Builds the OpenAPI schemas of webhooks: as a client sends them, and as they are returned. Pure.

They are those of webhook files, with other forms of secrets.
"""

import re
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Final

from pydantic import BaseModel, JsonValue, TypeAdapter
from pydantic.json_schema import JsonSchemaMode

from dispatcher.config.units import PerSecond, Seconds
from dispatcher.config.webhook_auth import Audience
from dispatcher.config.webhooks import Campaigns, WebhookConfig
from dispatcher.console.api.models import WebhookConfiguration, WebhookDraft

Json = dict[str, JsonValue]

_BEFORE_MODEL: Final = "#/components/schemas/"
REF: Final = _BEFORE_MODEL + "{model}"
NULL: Final[Json] = {"type": "null"}


def _ref(name: str) -> Json:
    return {"$ref": REF.format(model=name)}


_FINGERPRINT: Final[Json] = {"type": "string", "pattern": "^[0-9a-f]{12}$"}
_FORMS: Final[list[JsonValue]] = [_ref("NewSecret"), _ref("ShownSecret"), _ref("KeptSecret")]
_SECRETS: Final[Json] = {
    "NewSecret": {
        "description": "A new secret.",
        "type": "object",
        "properties": {"value": {"type": "string", "minLength": 1, "maxLength": 65536, "writeOnly": True}},
        "required": ["value"],
        "additionalProperties": False,
    },
    "ShownSecret": {
        "description": "A secret's fingerprint. In a draft: the stored secret that has it. Secrets are never returned.",
        "type": "object",
        "properties": {"fingerprint": _FINGERPRINT},
        "required": ["fingerprint"],
        "additionalProperties": False,
    },
    "KeptSecret": {
        "description": "The secret that is stored at this place.",
        "type": "object",
        "properties": {"keep": {"type": "boolean", "const": True}},
        "required": ["keep"],
        "additionalProperties": False,
    },
    "DraftSecret": {"description": "A new secret, or one that is stored.", "oneOf": _FORMS},
    "DraftHeader": {
        "description": "The value of a header parameter: text, sent exactly as it is written, or a secret.",
        "oneOf": [{"type": "string"}, *_FORMS],
    },
    "ShownHeader": {
        "description": "The value of a header parameter: text, or a secret's fingerprint.",
        "oneOf": [{"type": "string"}, _ref("ShownSecret")],
    },
}
_CHOICES: Final[Mapping[str, Json]] = {
    "Audience": TypeAdapter[object](Audience).json_schema(),
    "Campaigns": TypeAdapter[object](Campaigns).json_schema(),
    "Duration": TypeAdapter[object](Seconds).json_schema(),
    "Rate": TypeAdapter[object](PerSecond).json_schema(),
}
"""Values that have several types, by name. Without one, client generators invent a name for each use."""
_SECRET_IN_A_FILE: Final = re.compile(r"\{file: [^}]*\}")
_SHARED: Final = frozenset({"Channel", "SigningAlgorithm", "JsonValue", "NoAuth"})
"""Definitions without secrets: the same in drafts and in what is returned."""


@cache
def webhook_schemas() -> Json:
    """Returns the schemas by name."""
    schemas: Json = {**_SECRETS, **_CHOICES}
    schemas |= _of_webhooks(WebhookDraft, "Draft", "validation")
    schemas |= _of_webhooks(WebhookConfiguration, "Shown", "serialization")
    return schemas


def _of_webhooks(model: type[BaseModel], prefix: str, mode: JsonSchemaMode) -> Iterator[tuple[str, JsonValue]]:
    """Yields the webhook's schemas, with `prefix` before unshared names."""
    schema = WebhookConfig.model_json_schema(mode=mode, ref_template=REF)
    definitions = schema.pop("$defs")
    schema["description"] = model.__doc__
    schema["properties"]["headers"]["additionalProperties"] = _ref(f"{prefix}Header")
    names = {name: name if name in _SHARED else f"{prefix}{name}" for name in definitions}
    yield model.__name__, _replaced(schema, names, prefix)
    for name, definition in definitions.items():
        yield names[name], _replaced(definition, names, prefix)


def _replaced(schema: JsonValue, names: Mapping[str, str], prefix: str) -> JsonValue:
    """Returns the schema with the API's names, choices and forms of secrets."""
    if isinstance(schema, dict):
        if _is_reference(schema.get("oneOf")):
            return _ref(f"{prefix}Secret")
        return {key: _replaced(value, names, prefix) for key, value in _with_named_choice(schema).items()}
    if isinstance(schema, list):
        return [_replaced(value, names, prefix) for value in schema]
    if not isinstance(schema, str):
        return schema
    if schema.startswith(_BEFORE_MODEL):
        name = schema.removeprefix(_BEFORE_MODEL)
        return REF.format(model=names.get(name, name))
    return _SECRET_IN_A_FILE.sub("{fingerprint: …}" if prefix == "Shown" else "{value: …}", schema)


def _with_named_choice(schema: Json) -> Json:
    """Returns the schema with a reference in place of a choice that has a name."""
    choices = schema.get("anyOf")
    if not isinstance(choices, list):
        return schema
    wanted = [choice for choice in choices if choice != NULL]
    for name, named in _CHOICES.items():
        if named["anyOf"] == wanted:
            others = {key: value for key, value in schema.items() if key not in named}
            reference: Json = _ref(name) if wanted == choices else {"anyOf": [_ref(name), NULL]}
            return others | reference
    return schema


def _is_reference(choices: JsonValue) -> bool:
    """Returns True if these are the two forms of a reference to a secret in webhook files."""
    kinds = (
        [choice.get("required") for choice in choices if isinstance(choice, dict)] if isinstance(choices, list) else []
    )
    return kinds == [["file"], ["env"]]
