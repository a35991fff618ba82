"""`dispatcher schema`: JSON Schema of what is read and sent, for editors and validators."""

import json

import typer

from dispatcher.schemas import SchemaKind, schema_of


def schema(kind: SchemaKind) -> None:
    """Print the JSON Schema (draft 2020-12) of the settings, a webhook file, an event or a payload."""
    typer.echo(json.dumps(schema_of(kind), indent=2, ensure_ascii=False))


def add_to(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(schema)
