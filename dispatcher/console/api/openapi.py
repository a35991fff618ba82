"""Builds the OpenAPI 3.1 document of the API from the table of routes and their models. Pure.

It is committed as `config/schema/openapi.json`, which a test keeps up to date, and served as `/api/v1/openapi.json`.
"""

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from functools import cache
from http import HTTPStatus
from typing import Final

from pydantic import BaseModel, JsonValue, TypeAdapter
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaMode, JsonSchemaValue
from pydantic_core import core_schema

from dispatcher.config.webhooks import WebhookConfig
from dispatcher.console.api.models import Configuration, WebhookDraft
from dispatcher.console.api.route import IF_MATCH, AnyRoute, Empty
from dispatcher.console.api.routes import ROUTES
from dispatcher.console.api_errors import CONTENT_TYPE, ProblemDocument
from dispatcher.stores.sql.records import Role

_BEFORE_MODEL: Final = "#/components/schemas/"
_REF: Final = _BEFORE_MODEL + "{model}"
_JSON = "application/json"
_Json = dict[str, JsonValue]

_FINGERPRINT: Final[_Json] = {"type": "string", "pattern": "^[0-9a-f]{12}$"}
_SECRETS: Final[_Json] = {
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
    "DraftSecret": {
        "description": "A new secret, or one that is stored.",
        "oneOf": [{"$ref": _REF.format(model=name)} for name in ("NewSecret", "ShownSecret", "KeptSecret")],
    },
}
_SHARED: Final = frozenset({"Channel", "SigningAlgorithm", "JsonValue", "NoAuth"})
"""Definitions without secrets: the same in drafts and in what is returned."""
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
_DRAFT: Final[_Json] = {
    "name": "Luma order status",
    "org": "9E1005A551ED61CA0A490D45@AdobeOrg",
    "sandbox": "prod",
    "channels": ["email", "sms"],
    "url": "https://hooks.luma.example/feedback",
    "signing": {"secrets": [{"value": "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"}]},
}
_TENANT: Final[_Json] = {"org": "9E1005A551ED61CA0A490D45@AdobeOrg", "sandbox": "prod"}
_EXAMPLES: Final[Mapping[str, _Json]] = {
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
    409: "The organisation and sandbox already have a webhook: `existing` names it.",
    412: "It was changed in the meantime; the header ETag contains its current version.",
    413: "The body is too large.",
    415: "The body is not declared as JSON.",
    422: "Some values can't be used: `errors` names each.",
    428: "If-Match is missing.",
    429: "It was done a moment ago, or too often: `detail` says when to try again.",
    503: "The database or the broker does not answer; Retry-After says when to try again.",
}


def openapi_document(server: str = "/") -> _Json:
    """Returns the document.

    Args:
        server: URL of the console; relative to the document by default.
    """
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Feedback dispatcher: admin API",
            "version": "1",
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
def _paths() -> _Json:
    paths: defaultdict[str, dict[str, JsonValue]] = defaultdict(dict)
    for route in ROUTES:
        paths[route.full_path][route.method.lower()] = _operation(route)
    return dict(paths)


def _operation(route: AnyRoute) -> _Json:
    operation: _Json = {
        "operationId": route.name,
        "summary": route.summary,
        "description": _description(route),
        "tags": [next(tag for pattern, tag in _TAG_OF if pattern.search(route.path))],
        "x-role": route.role.value,
    }
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
        content: _Json = {"schema": _ref(route.body)}
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
    """Returns the schema without null, because a parameter is omitted instead of null."""
    choices = schema.get("anyOf")
    if isinstance(choices, list):
        left = [choice for choice in choices if choice != {"type": "null"}]
        if len(left) == 1 and isinstance(left[0], dict):
            schema = {key: value for key, value in schema.items() if key not in ("anyOf", "default")} | left[0]
    return schema


class _WithoutDefaults(GenerateJsonSchema):
    """Leaves the defaults out of responses, which have all fields."""

    def default_schema(self, schema: core_schema.WithDefaultSchema) -> JsonSchemaValue:
        return self.generate_inner(schema["schema"]) if self.mode == "serialization" else super().default_schema(schema)


@cache
def _schemas() -> _Json:
    wanted: list[tuple[type[object], JsonSchemaMode]] = [(ProblemDocument, "serialization")]
    for route in ROUTES:
        wanted += [(model, "validation") for model in (route.query, route.body) if model is not Empty]
        wanted += [(route.answer, "serialization")] if route.answer is not None else []
    models = [(model.__name__, mode, TypeAdapter(model)) for model, mode in dict.fromkeys(wanted)]
    _, made = TypeAdapter.json_schemas(models, ref_template=_REF, schema_generator=_WithoutDefaults)
    schemas: _Json = dict(made["$defs"])
    queries = {route.query.__name__ for route in ROUTES}
    schemas = {name: schema for name, schema in schemas.items() if name not in queries}
    schemas |= _SECRETS
    schemas |= _of_webhooks(WebhookDraft, "Draft", "validation", "DraftSecret")
    schemas |= _of_webhooks(Configuration, "Shown", "serialization", "ShownSecret")
    return {name: _tidied(schema) for name, schema in sorted(schemas.items())}


def _tidied(schema: JsonValue) -> JsonValue:
    """Returns the schema in a form that client generators accept.

    Removes titles, from which generators derive colliding names, and defaults that are null, lists or objects. Merges
    null into the first of more than two choices.
    """
    if isinstance(schema, list):
        return [_tidied(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    tidied: _Json = {}
    for key, value in schema.items():
        is_compound = key == "default" and (value is None or isinstance(value, dict | list))
        if is_compound or (key == "title" and isinstance(value, str)):
            continue
        if key == "properties" and isinstance(value, dict):
            tidied[key] = {name: _tidied(one) for name, one in value.items()}
        else:
            tidied[key] = _tidied(value)
    if "anyOf" in tidied:
        tidied["anyOf"] = _without_third_null(tidied["anyOf"])
    properties = tidied.get("properties")
    kind = properties.get("type") if isinstance(properties, dict) else None
    if isinstance(kind, dict) and "const" in kind:  # a discriminator has to be required
        required = tidied.get("required")
        tidied["required"] = [*dict.fromkeys([*(required if isinstance(required, list) else []), "type"])]
    return tidied


def _without_third_null(choices: JsonValue) -> JsonValue:
    """Returns the choices with null as a type of the first one if there are more than two."""
    if not isinstance(choices, list) or len(choices) < 3 or {"type": "null"} not in choices:
        return choices
    first, *others = [one for one in choices if one != {"type": "null"}]
    if not isinstance(first, dict) or "type" not in first:
        return choices
    return [first | {"type": [first["type"], "null"]}, *others]


def _of_webhooks(
    model: type[BaseModel], prefix: str, mode: JsonSchemaMode, secret: str
) -> Iterator[tuple[str, JsonValue]]:
    """Yields the webhook's schemas, with `secret` for references to secrets and `prefix` before unshared names."""
    schema = WebhookConfig.model_json_schema(mode=mode, ref_template=_REF)
    definitions = schema.pop("$defs")
    schema["description"] = model.__doc__
    names = {name: name if name in _SHARED else f"{prefix}{name}" for name in definitions}
    yield model.__name__, _replaced(schema, names, secret)
    for name, definition in definitions.items():
        yield names[name], _replaced(definition, names, secret)


def _replaced(schema: JsonValue, names: Mapping[str, str], secret: str) -> JsonValue:
    if isinstance(schema, dict):
        if _is_reference(schema.get("oneOf")):
            return {"$ref": _REF.format(model=secret)}
        return {key: _replaced(value, names, secret) for key, value in schema.items()}
    if isinstance(schema, list):
        return [_replaced(value, names, secret) for value in schema]
    if isinstance(schema, str) and schema.startswith(_BEFORE_MODEL):
        name = schema.removeprefix(_BEFORE_MODEL)
        return _REF.format(model=names.get(name, name))
    return schema


def _is_reference(choices: JsonValue) -> bool:
    """Returns True if these are the two forms of a reference to a secret in webhook files."""
    kinds = (
        [choice.get("required") for choice in choices if isinstance(choice, dict)] if isinstance(choices, list) else []
    )
    return kinds == [["file"], ["env"]]


def _ref(model: type[object]) -> _Json:
    return {"$ref": _REF.format(model=model.__name__)}
