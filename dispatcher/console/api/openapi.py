"""Builds the OpenAPI 3.1 document of the API from the table of routes and their models. Pure.

It is committed as `config/schema/openapi.json`, which a test keeps up to date, and served as `/api/v1/openapi.json`.
"""

from collections import defaultdict
from collections.abc import Iterator
from http import HTTPStatus
from typing import Final

from pydantic import BaseModel, JsonValue
from pydantic.json_schema import JsonSchemaMode, models_json_schema

from dispatcher.config.webhooks import WebhookConfig
from dispatcher.console.api.models import Configuration, WebhookDraft
from dispatcher.console.api.route import IF_MATCH, AnyRoute, Empty
from dispatcher.console.api.routes import ROUTES
from dispatcher.console.api_errors import CONTENT_TYPE, ProblemDocument

_REF: Final = "#/components/schemas/{model}"
_JSON = "application/json"
_Json = dict[str, JsonValue]

_DRAFTED_SECRET: Final[_Json] = {
    "description": "A secret: a new value, the stored secret with a fingerprint, or the secret stored at this place.",
    "oneOf": [
        {
            "type": "object",
            "properties": {"value": {"type": "string", "minLength": 1, "maxLength": 65536, "writeOnly": True}},
            "required": ["value"],
            "additionalProperties": False,
        },
        {
            "type": "object",
            "properties": {"fingerprint": {"type": "string", "pattern": "^[0-9a-f]{12}$"}},
            "required": ["fingerprint"],
            "additionalProperties": False,
        },
        {
            "type": "object",
            "properties": {"keep": {"const": True}},
            "required": ["keep"],
            "additionalProperties": False,
        },
    ],
}
_SHOWN_SECRET: Final[_Json] = {
    "description": "A secret's fingerprint; the secret itself is never returned.",
    "type": "object",
    "properties": {"fingerprint": {"type": "string", "pattern": "^[0-9a-f]{12}$"}},
    "required": ["fingerprint"],
    "additionalProperties": False,
}
_WORDS: Final = {
    400: "The body is no JSON.",
    401: "The token is missing or invalid.",
    403: "The role does not permit this, or the caller does not belong to the organisation.",
    404: "It does not exist, or belongs to an organisation that the caller can't see.",
    409: "The organisation and sandbox already have a webhook: `existing` names it.",
    412: "It was changed in the meantime; the header ETag contains its current version.",
    413: "The body is too large.",
    415: "The body is not declared as JSON.",
    422: "Some values can't be used: `errors` names each.",
    428: "If-Match is missing.",
    503: "The database or the broker does not answer; Retry-After says when to try again.",
}


def openapi_document() -> _Json:
    """Returns the document."""
    paths: defaultdict[str, dict[str, JsonValue]] = defaultdict(dict)
    for route in ROUTES:
        paths[route.full_path][route.method.lower()] = _operation(route)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Feedback dispatcher: admin API",
            "version": "1",
            "description": (
                "Webhooks, their deliveries, dead events and their redrive, audit log and tokens. "
                "Errors are problem documents (RFC 9457). Resources of organisations that the caller can't see are "
                "not found. `x-role` is the least role that an operation needs; operations with "
                "`x-all-organisations` need access to all organisations."
            ),
        },
        "jsonSchemaDialect": "https://json-schema.org/draft/2020-12/schema",
        "security": [{"bearer": []}],
        "paths": dict(paths),
        "components": {
            "schemas": _schemas(),
            "securitySchemes": {
                "bearer": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "A token of `dispatcher tokens create`, or an access token of the OIDC issuer.",
                }
            },
        },
    }


def _operation(route: AnyRoute) -> _Json:
    operation: _Json = {"operationId": route.name, "summary": route.summary, "x-role": route.role.value}
    if route.is_for_all_orgs:
        operation["x-all-organisations"] = True
    parameters: list[JsonValue] = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string", "pattern": f"^{pattern}$"}}
        for name, pattern in route.places.items()
    ]
    if route.wants_version:
        parameters.append(
            {
                "name": "If-Match",
                "in": "header",
                "required": True,
                "description": "The ETag of the version that was read.",
                "schema": {"type": "string", "pattern": IF_MATCH, "examples": ['"3"']},
            }
        )
    parameters += _query_parameters(route.query)
    if parameters:
        operation["parameters"] = parameters
    if route.body is not Empty:
        operation["requestBody"] = {"required": True, "content": {_JSON: {"schema": _ref(route.body)}}}
    responses: dict[str, JsonValue] = {str(route.status): _success(route)}
    for status in sorted(_error_statuses(route)):
        responses[str(status)] = {
            "description": _WORDS[status],
            "content": {CONTENT_TYPE: {"schema": _ref(ProblemDocument)}},
        }
    operation["responses"] = responses
    return operation


def _error_statuses(route: AnyRoute) -> set[int]:
    found = {401, 403, 503} | route.error_statuses
    if route.places:
        found |= {404}
    if route.query is not Empty:
        found |= {422}
    if route.body is not Empty:
        found |= {400, 413, 415, 422}
    if route.wants_version:
        found |= {412, 428}
    return found


def _success(route: AnyRoute) -> _Json:
    success: _Json = {"description": HTTPStatus(route.status).phrase}
    if route.answer is not None:
        success["content"] = {_JSON: {"schema": _ref(route.answer)}}
    if route.gives_version:
        success["headers"] = {"ETag": {"description": 'The version, `"3"`.', "schema": {"type": "string"}}}
    return success


def _query_parameters(model: type[BaseModel]) -> list[JsonValue]:
    schema = model.model_json_schema(ref_template=_REF)
    required = schema.get("required", [])
    parameters: list[JsonValue] = []
    for name, described in schema.get("properties", {}).items():
        inner = {key: value for key, value in described.items() if key not in ("title", "description")}
        parameter: _Json = {"name": name, "in": "query", "required": name in required, "schema": _without_null(inner)}
        if "description" in described:
            parameter["description"] = described["description"]
        parameters.append(parameter)
    return parameters


def _without_null(schema: _Json) -> _Json:
    """Returns the schema without null: a parameter is omitted instead."""
    choices = schema.get("anyOf")
    if isinstance(choices, list):
        left = [choice for choice in choices if choice != {"type": "null"}]
        if len(left) == 1 and isinstance(left[0], dict):
            schema = {key: value for key, value in schema.items() if key not in ("anyOf", "default")} | left[0]
    return schema


def _schemas() -> _Json:
    wanted: list[tuple[type[BaseModel], JsonSchemaMode]] = [(ProblemDocument, "serialization")]
    for route in ROUTES:
        wanted += [(model, "validation") for model in (route.query, route.body) if model is not Empty]
        wanted += [(route.answer, "serialization")] if route.answer is not None else []
    _, made = models_json_schema(list(dict.fromkeys(wanted)), ref_template=_REF)
    schemas: _Json = dict(made["$defs"])
    queries = {route.query.__name__ for route in ROUTES}
    schemas = {name: schema for name, schema in schemas.items() if name not in queries}
    schemas |= _of_webhooks(WebhookDraft, "Draft", "validation", _DRAFTED_SECRET)
    schemas |= _of_webhooks(Configuration, "Shown", "serialization", _SHOWN_SECRET)
    return dict(sorted(schemas.items()))


def _of_webhooks(
    model: type[BaseModel], prefix: str, mode: JsonSchemaMode, secret: _Json
) -> Iterator[tuple[str, JsonValue]]:
    """Yields the webhook's schema with another form of secrets, its definitions with a prefix."""
    schema = WebhookConfig.model_json_schema(mode=mode, ref_template=f"#/components/schemas/{prefix}{{model}}")
    definitions = schema.pop("$defs")
    schema["description"] = model.__doc__
    schema["title"] = model.__name__
    yield model.__name__, _replaced(schema, secret)
    for name, definition in definitions.items():
        yield f"{prefix}{name}", _replaced(definition, secret)


def _replaced(schema: JsonValue, secret: _Json) -> JsonValue:
    if isinstance(schema, dict):
        if _is_reference(schema.get("oneOf")):
            return secret | {key: value for key, value in schema.items() if key in ("title", "description", "default")}
        return {key: _replaced(value, secret) for key, value in schema.items()}
    if isinstance(schema, list):
        return [_replaced(value, secret) for value in schema]
    return schema


def _is_reference(choices: JsonValue) -> bool:
    """Returns True if these are the two forms of a reference to a secret in webhook files."""
    kinds = (
        [choice.get("required") for choice in choices if isinstance(choice, dict)] if isinstance(choices, list) else []
    )
    return kinds == [["file"], ["env"]]


def _ref(model: type[BaseModel]) -> _Json:
    return {"$ref": _REF.format(model=model.__name__)}
