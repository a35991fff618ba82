"""Builds the OpenAPI 3.1 document of the API from the table of routes and their models. Pure.

It is committed as `config/schema/openapi.json`, which a test keeps up to date, and served as `/api/v1/openapi.json`.
"""

import re
from collections import defaultdict
from collections.abc import Mapping
from functools import cache
from http import HTTPStatus
from typing import Final

from pydantic import BaseModel, JsonValue, TypeAdapter
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaMode, JsonSchemaValue
from pydantic_core import core_schema

from dispatcher.console.api.route import IF_MATCH, AnyRoute, Empty
from dispatcher.console.api.routes import ROUTES
from dispatcher.console.api.webhook_schemas import NULL, REF, Json, webhook_schemas
from dispatcher.console.api_errors import CONTENT_TYPE, ProblemDocument
from dispatcher.stores.sql.records import Role

_JSON: Final = "application/json"
_PROJECT: Final = "https://github.com/feedback-dispatcher/feedback-dispatcher"

TAGS: Final = {
    "Webhooks": "Create, change, test, pause and delete webhooks. An organisation and sandbox have at most one.",
    "Deliveries": "State, counts and latest attempts of a webhook, and the events that wait.",
    "History": "What happened to a message, found by any of its ids.",
    "Dead events": "Events that can't be delivered.",
    "Sending again": "Jobs that send dead and delivered events again.",
    "Notifications": "Contacts of webhooks, and what they were sent.",
    "Audit": "Who did what, and when.",
    "Access": "The caller, and API tokens.",
}
"""Groups of operations, in the order of the reference."""
_TAG_OF: Final = (
    (re.compile(r"/(me|tokens)\b"), "Access"),
    (re.compile(r"/audit\b"), "Audit"),
    (re.compile(r"redrive|/resend\b"), "Sending again"),
    (re.compile(r"/dead-events\b"), "Dead events"),
    (re.compile(r"/history\b"), "History"),
    (re.compile(r"/(notifications|contacts)\b"), "Notifications"),
    (re.compile(r"/(outcomes|attempts|state|lane|waiting|counts)$"), "Deliveries"),
    (re.compile(r"webhooks\b"), "Webhooks"),
)
_DRAFT: Final[Json] = {
    "name": "Luma order status",
    "org": "9E1005A551ED61CA0A490D45@AdobeOrg",
    "sandbox": "prod",
    "channels": ["email", "sms"],
    "url": "https://hooks.luma.example/feedback",
    "signing": {"secrets": [{"value": "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"}]},
}
_TENANT: Final[Json] = {"org": "9E1005A551ED61CA0A490D45@AdobeOrg", "sandbox": "prod"}
_EXAMPLES: Final[Mapping[str, Json]] = {
    "WebhookDraft": _DRAFT,
    "DraftTest": {"webhook": _DRAFT, "channel": "email", "message_status": "bounce"},
    "NewSigningSecret": {"kind": "hmac"},
    "SecretEnd": {"at": "2026-12-01T12:00:00Z"},
    "NewSigningKey": {"starts_in_hours": 24},
    "SampleEvent": {"channel": "email", "message_status": "delivered"},
    "RedriveOrder": _TENANT | {"events": {"select": "matching", "reasons": ["expired"]}},
    "ResendRequest": {"since": "2026-11-28T14:00:00Z", "include": ["delivered", "dead"]},
    "HistorySearchOrder": {"id": "5f0c6a8e-order-1047", "limit": 50},
    "Erasure": {"recipient": "jane@customer.example"},
    "ContactOrder": {"address": "ops@luma.example"},
    "NewToken": {"name": "deploy", "role": "admin", "orgs": [_TENANT["org"]], "expires_in_days": 90},
}
"""Examples of request bodies, by model."""
_WORDS: Final = {
    400: "The body isn't JSON.",
    401: "The token is missing or invalid.",
    403: "The role does not permit this, or the caller does not belong to the organisation.",
    404: "It does not exist, or belongs to an organisation that the caller can't see.",
    409: (
        "The organisation and sandbox already have a webhook, which `existing` names; or their events can't be sent "
        "again, because their webhook is switched off or missing, so that they would be skipped; or they are being "
        "sent again already, by the job that `existing` names: wait until it is done, or stop it."
    ),
    412: "It was changed in the meantime; the header ETag contains its current version.",
    413: "The body is too large.",
    415: "The body is not declared as JSON.",
    422: (
        "Some values can't be used: `errors` names each; or the operator has not set up what the request needs, which "
        "`detail` names."
    ),
    428: "If-Match is missing.",
    429: "It was done a moment ago, or too often: `detail` says when to try again.",
    503: (
        "The database or the broker does not answer, or the console is busy, starting or stopping; Retry-After says "
        "when to try again."
    ),
}


def openapi_document(server: str = "/") -> Json:
    """Returns the document.

    Args:
        server: URL of the console; relative to the document by default.
    """
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Feedback dispatcher: admin API",
            "version": "1",
            "contact": {"name": "Feedback dispatcher", "url": _PROJECT},
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
            "description": (
                "Webhooks, their deliveries, dead events and their redrive, audit log and tokens. "
                "Errors are problem documents (RFC 9457). Resources of organisations that the caller can't see are "
                "not found. `x-role` is the least role that an operation needs; operations with "
                "`x-all-organisations` need access to all organisations."
            ),
        },
        "jsonSchemaDialect": "https://json-schema.org/draft/2020-12/schema",
        "servers": [{"url": server, "description": "This console."}],
        "tags": [{"name": name, "description": description} for name, description in TAGS.items()],
        "security": [{"bearer": []}],
        "paths": _paths(),
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


@cache  # the console serves the document and renders it, too
def _paths() -> Json:
    paths: defaultdict[str, dict[str, JsonValue]] = defaultdict(dict)
    for route in ROUTES:
        paths[route.full_path][route.method.lower()] = _operation(route)
    return dict(paths)


def _operation(route: AnyRoute) -> Json:
    operation: Json = {
        "operationId": route.name,
        "summary": route.summary,
        "description": _description(route),
        "tags": [next(tag for pattern, tag in _TAG_OF if pattern.search(route.path))],
        "x-role": route.role.value,
    }
    if route.is_for_all_orgs:
        operation["x-all-organisations"] = True
    parameters: list[JsonValue] = [
        {
            "name": name,
            "in": "path",
            "required": True,
            "description": parameter.description,
            "schema": {"type": "string", "pattern": f"^{parameter.pattern}$"},
        }
        for name, parameter in route.path_parameters.items()
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
        content: Json = {"schema": _ref(route.body)}
        if (example := _EXAMPLES.get(route.body.__name__)) is not None:
            content["example"] = example
        operation["requestBody"] = {"required": True, "content": {_JSON: content}}
    responses: dict[str, JsonValue] = {str(route.status): _success(route)}
    for status in sorted(_error_statuses(route)):
        responses[str(status)] = {
            "description": _WORDS[status],
            "content": {CONTENT_TYPE: {"schema": _ref(ProblemDocument)}},
        }
    operation["responses"] = responses
    return operation


def _description(route: AnyRoute) -> str:
    """Returns the summary and the required role."""
    who = "admins" if route.role is Role.ADMIN else "viewers and admins"
    scope = " of all organisations" if route.is_for_all_orgs else ""
    body = "" if route.body is Empty else f" {(route.body.__doc__ or '').strip()}"
    return f"{route.summary}{body} For {who}{scope}."


def _error_statuses(route: AnyRoute) -> set[int]:
    found = {401, 403, 503} | route.error_statuses
    if route.path_parameters:
        found |= {404}
    if route.query is not Empty:
        found |= {422}
    if route.body is not Empty:
        found |= {400, 413, 415, 422}
    if route.wants_version:
        found |= {412, 428}
    return found


def _success(route: AnyRoute) -> Json:
    success: Json = {"description": HTTPStatus(route.status).phrase}
    if route.answer is not None:
        success["content"] = {_JSON: {"schema": _ref(route.answer)}}
    if route.gives_version:
        success["headers"] = {"ETag": {"description": 'The version, `"3"`.', "schema": {"type": "string"}}}
    return success


def _query_parameters(model: type[BaseModel]) -> list[JsonValue]:
    schema = model.model_json_schema(ref_template=REF)
    required = schema.get("required", [])
    parameters: list[JsonValue] = []
    for name, described in schema.get("properties", {}).items():
        inner = {key: value for key, value in described.items() if key not in ("title", "description")}
        parameter: Json = {"name": name, "in": "query", "required": name in required, "schema": _without_null(inner)}
        if "description" in described:
            parameter["description"] = described["description"]
        parameters.append(parameter)
    return parameters


def _without_null(schema: Json) -> Json:
    """Returns the schema without null, because a parameter is omitted instead of null."""
    choices = schema.get("anyOf")
    if isinstance(choices, list):
        left = [choice for choice in choices if choice != NULL]
        if len(left) == 1 and isinstance(left[0], dict):
            schema = {key: value for key, value in schema.items() if key not in ("anyOf", "default")} | left[0]
    return schema


class _WithoutDefaults(GenerateJsonSchema):
    """Leaves the defaults out of responses, which have all fields."""

    def default_schema(self, schema: core_schema.WithDefaultSchema) -> JsonSchemaValue:
        return self.generate_inner(schema["schema"]) if self.mode == "serialization" else super().default_schema(schema)


@cache
def _schemas() -> Json:
    wanted: list[tuple[type[object], JsonSchemaMode]] = [(ProblemDocument, "serialization")]
    for route in ROUTES:
        wanted += [(model, "validation") for model in (route.query, route.body) if model is not Empty]
        wanted += [(route.answer, "serialization")] if route.answer is not None else []
    models = [(model.__name__, mode, TypeAdapter(model)) for model, mode in dict.fromkeys(wanted)]
    _, made = TypeAdapter.json_schemas(models, ref_template=REF, schema_generator=_WithoutDefaults)
    schemas: Json = dict(made["$defs"])
    queries = {route.query.__name__ for route in ROUTES}
    schemas = {name: schema for name, schema in schemas.items() if name not in queries}
    schemas |= webhook_schemas()
    return {name: _tidied(schema) for name, schema in sorted(schemas.items())}


def _tidied(schema: JsonValue) -> JsonValue:
    """Returns the schema in a form that client generators accept.

    Removes titles, from which generators derive colliding names, and defaults that are null, lists or objects. Choices
    without null are exclusive, because their types differ: of `anyOf` OpenAPI Generator's TypeScript client makes an
    object that needs the fields of all.
    """
    if isinstance(schema, list):
        return [_tidied(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    tidied: Json = {}
    for key, value in schema.items():
        is_compound = key == "default" and (value is None or isinstance(value, dict | list))
        if is_compound or (key == "title" and isinstance(value, str)):
            continue
        if key == "anyOf" and isinstance(value, list) and NULL not in value:
            key = "oneOf"
        if key == "properties" and isinstance(value, dict):
            tidied[key] = {name: _tidied(one) for name, one in value.items()}
        else:
            tidied[key] = _tidied(value)
    properties = tidied.get("properties")
    kind = properties.get("type") if isinstance(properties, dict) else None
    if isinstance(kind, dict) and "const" in kind:  # a discriminator has to be required
        required = tidied.get("required")
        tidied["required"] = [*dict.fromkeys([*(required if isinstance(required, list) else []), "type"])]
    return tidied


def _ref(model: type[object]) -> Json:
    return {"$ref": REF.format(model=model.__name__)}
