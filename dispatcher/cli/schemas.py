"""`dispatcher schema`: prints schemas of what is read, sent and served, for editors, validators and clients."""

import json
from enum import StrEnum
from typing import Annotated

import typer
from pydantic import JsonValue

from dispatcher.config.schemas import SchemaKind, schema_of


class Printed(StrEnum):
    """Documents that `dispatcher schema` can print: the kinds of `SchemaKind`, and the admin API's document."""

    SETTINGS = SchemaKind.SETTINGS
    WEBHOOK = SchemaKind.WEBHOOK
    EVENT = SchemaKind.EVENT
    PAYLOAD = SchemaKind.PAYLOAD
    HISTORY = SchemaKind.HISTORY
    OPENAPI = "openapi"


def schema(kind: Annotated[Printed, typer.Argument(help="Which document.")]) -> None:
    """Print a JSON Schema (draft 2020-12), of settings, webhook file, event, payload or history; or OpenAPI 3.1."""
    typer.echo(json.dumps(_document(kind), indent=2, ensure_ascii=False))


def _document(kind: Printed) -> dict[str, JsonValue]:
    if kind is Printed.OPENAPI:
        from dispatcher.console.api import openapi_document  # SQLAlchemy takes its time

        return openapi_document()
    return schema_of(SchemaKind(kind.value))


def add_to(app: typer.Typer) -> None:
    """Adds the command `schema` to the program."""
    app.command()(schema)
