"""The frame of the program: what all its commands share."""

from typing import Protocol

import typer

from dispatcher import __version__
from dispatcher.cli.options import reflow_help
from dispatcher.telemetry.build_form import FORM


class CommandModule(Protocol):
    """A module with commands."""

    def add_to(self, app: typer.Typer) -> None:
        """Adds the module's commands to the program."""


def program(*modules: CommandModule) -> typer.Typer:
    """Returns the program with the commands of these modules, in their order."""
    app = typer.Typer(
        name="dispatcher",
        help="Turns a Kafka stream of message-delivery events into webhooks that can be relied on.",
        no_args_is_help=True,
        add_completion=True,
        pretty_exceptions_enable=False,
    )
    app.callback(invoke_without_command=True)(_version)
    for module in modules:
        module.add_to(app)
    reflow_help(app)
    return app


def _version(version: bool = typer.Option(False, "--version", help="Show the version and exit.")) -> None:
    if version:
        typer.echo(f"feedback-dispatcher {__version__} ({FORM})")
        raise typer.Exit
