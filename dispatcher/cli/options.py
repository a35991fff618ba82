"""Options that several commands share."""

import getpass
import inspect
import os
from pathlib import Path
from typing import Annotated

import typer

from dispatcher.config.loader import load_settings, with_place
from dispatcher.config.settings import Settings
from dispatcher.contract.tenant import TenantKey
from dispatcher.errors import Problem
from dispatcher.telemetry.logs import configure_logging

ConfigPath = Annotated[
    Path,
    typer.Option("--config", "-c", envvar="DISPATCHER_CONFIG", help="The settings file.", show_default=True),
]
DEFAULT_CONFIG = Path("/etc/dispatcher/dispatcher.yaml")

By = Annotated[str | None, typer.Option(help="Who the audit names; by default the user of this shell.")]

_loaded: list[Path] = []
"""Files of settings that this command has read."""


def settings_at(path: Path) -> Settings:
    """Returns the settings, with the environment's overrides.

    Raises:
        ConfigError: they can't be used.
    """
    _loaded.append(path)
    return load_settings(path, os.environ)


def placed(problem: Problem) -> Problem:
    """Returns a problem of the settings with file and line of its value, or the variable that the value came from."""
    return with_place(problem, _loaded[-1], os.environ) if _loaded else problem


def quiet_settings_at(path: Path) -> Settings:
    """Returns the settings like `settings_at`, and logs only errors, for commands whose output is the answer.

    `log.level: debug` (`DISPATCHER_LOG__LEVEL=debug`) logs everything, also what the Kafka client logs.
    """
    settings = settings_at(path)
    configure_logging(settings.log, is_quiet=True)
    return settings


def actor(by: str | None) -> str:
    """Returns the name for the audit log: `by` if it is given, else the user of this shell."""
    user = shell_user()
    return by or (f"{user} (command line)" if user else "command line")


def shell_user() -> str | None:
    """Returns the name of the user that runs the command; None if it has none, as in some containers."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return None


def counted(count: int, thing: str) -> str:
    """Returns a number and its noun: `1 webhook`, `2 webhooks`, `0 entries`."""
    if count == 1:
        return f"{count} {thing}"
    return f"{count} {thing.removesuffix('y')}ies" if thing.endswith("ry") else f"{count} {thing}s"


def reflow_help(app: typer.Typer) -> None:
    """Joins the lines of each paragraph of the commands' help: Typer keeps the line breaks of docstrings."""
    for command in app.registered_commands:
        text = command.help or inspect.getdoc(command.callback) or ""
        command.help = "\n\n".join(" ".join(paragraph.split()) for paragraph in text.split("\n\n"))
    for group in app.registered_groups:
        if group.typer_instance is not None:
            reflow_help(group.typer_instance)


def parsed_tenant(text: str) -> TenantKey:
    """Returns the tenant in a text of the form `ORG/SANDBOX`.

    Raises:
        typer.BadParameter: it is something else.
    """
    org, slash, sandbox = text.rpartition("/")
    if not (org and slash and sandbox):
        raise typer.BadParameter("write a tenant as ORG/SANDBOX: 9E10@AdobeOrg/prod", param_hint="--tenant")
    return TenantKey(org, sandbox)
