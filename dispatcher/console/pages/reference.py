"""The API reference, rendered from the OpenAPI document: operations by group, and the schemas that they use."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import orjson
from aiohttp import web

from dispatcher.console.api import openapi_document
from dispatcher.console.api.openapi import TAGS
from dispatcher.console.pages.renderer import Renderer

_REF: Final = "#/components/schemas/"


@dataclass(frozen=True, slots=True)
class Field:
    """A parameter, or a property of a schema."""

    name: str
    kind: str
    """`string`, `Webhook`, `list of Channel`, …"""
    schema: str
    """Name of the schema that the kind is or contains; empty if it is none."""
    is_required: bool
    text: str
    place: str = ""
    """Of a parameter: `path`, `query`, `header`."""


@dataclass(frozen=True, slots=True)
class Operation:
    """One operation."""

    id: str
    method: str
    path: str
    summary: str
    text: str
    parameters: tuple[Field, ...]
    body: str
    """Name of the request's schema; empty without a body."""
    example: str
    responses: tuple[tuple[str, str, str], ...]
    """Status, description, and the name of the schema or empty."""


@dataclass(frozen=True, slots=True)
class Schema:
    """One schema of the API, as its reference page shows it."""

    name: str
    text: str
    fields: tuple[Field, ...]
    choices: str
    """The accepted values, for a type without fields."""


def add_to(app: web.Application, renderer: Renderer) -> None:
    """Adds the route."""
    document: Mapping[str, Any] = openapi_document()
    operations = [(tag, text, tuple(_operations(document, tag))) for tag, text in TAGS.items()]
    schemas = [_schema(name, one) for name, one in document["components"]["schemas"].items()]

    async def show(request: web.Request) -> web.StreamResponse:
        server = renderer.services.settings.console.public_url or f"{request.scheme}://{request.host}"
        return await renderer.page(
            request, "reference.html", at="", groups=operations, schemas=schemas, server=server.rstrip("/")
        )

    app.router.add_get("/reference", show)


def _operations(document: Mapping[str, Any], tag: str) -> Iterator[Operation]:
    for path, item in document["paths"].items():
        for method, one in item.items():
            if one["tags"] != [tag]:
                continue
            content = one.get("requestBody", {}).get("content", {}).get("application/json", {})
            example = content.get("example")
            yield Operation(
                one["operationId"],
                method.upper(),
                path,
                one["summary"],
                one["description"].removeprefix(one["summary"]).strip(),
                tuple(
                    Field(
                        given["name"], *_kind(given["schema"]), given.get("required", False),
                        given.get("description", ""), given["in"],
                    )
                    for given in one.get("parameters", [])
                ),
                _named(content.get("schema", {})),
                "" if example is None else orjson.dumps(example, option=orjson.OPT_INDENT_2).decode(),
                tuple((status, it["description"], _answer(it)) for status, it in one["responses"].items()),
            )  # fmt: skip


def _answer(response: Mapping[str, Any]) -> str:
    """Returns the name of an answer's schema; empty if it has no content."""
    contents = response.get("content", {}).values()
    return next((_named(content["schema"]) for content in contents), "")


def _schema(name: str, schema: Mapping[str, Any]) -> Schema:
    required = schema.get("required", [])
    fields = tuple(
        Field(key, *_kind(one), key in required, one.get("description", ""))
        for key, one in schema.get("properties", {}).items()
    )
    return Schema(name, schema.get("description", ""), fields, "" if fields else _kind(schema)[0])


def _kind(schema: Mapping[str, Any]) -> tuple[str, str]:
    """Returns a schema's kind in words, and the name of the schema that it is or contains."""
    if name := _named(schema):
        return name, name
    for key in ("anyOf", "oneOf"):
        if key in schema:
            kinds = [_kind(one) for one in schema[key]]
            return " or ".join(kind for kind, _ in kinds), next((name for _, name in kinds if name), "")
    if "enum" in schema:
        return " | ".join(map(str, schema["enum"])), ""
    if "const" in schema:
        return str(schema["const"]), ""
    if schema.get("type") == "array":
        kind, name = _kind(schema.get("items", {}))
        return f"list of {kind}", name
    kind = schema.get("format") or schema.get("type", "any value")
    return (" or ".join(kind) if isinstance(kind, list) else str(kind)), ""


def _named(schema: Mapping[str, Any]) -> str:
    return str(schema.get("$ref", "")).removeprefix(_REF)
