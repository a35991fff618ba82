"""`dispatcher console`: the admin API and the pages, as a process of their own."""

import asyncio
from typing import Annotated

import typer
import uvloop

from dispatcher.cli.interpreter import prepare_interpreter
from dispatcher.cli.options import DEFAULT_CONFIG, ConfigPath, settings_at
from dispatcher.telemetry.logs import configure_logging
from dispatcher.transport.descriptors import raise_limit


def console(
    config: ConfigPath = DEFAULT_CONFIG,
    sign_in_link: Annotated[
        bool,
        typer.Option(
            "--sign-in-link", help="Print a link that signs one browser in as admin, once, within ten minutes."
        ),
    ] = False,
) -> None:
    """Serve the admin API and the console until a signal (SIGTERM drains, a second one stops at once)."""
    from dispatcher.cli.console_process import ConsoleProcess  # SQLAlchemy takes its time

    settings = settings_at(config)
    configure_logging(settings.log)
    process = ConsoleProcess(settings, typer.echo if sign_in_link else None)
    raise_limit()
    prepare_interpreter()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        raise typer.Exit(runner.run(process.run()))


def add_to(app: typer.Typer) -> None:
    """Adds the command `console` to the program."""
    app.command()(console)
