"""The command line: its commands and their exit codes.

0 done · 1 it could not be done · 2 wrong usage · 3 cut off by a second signal ·
4 another process took this one's place in the group · 78 the configuration can't be used (EX_CONFIG of sysexits.h).
"""

import errno
import os
import sys

import typer

from dispatcher import __version__
from dispatcher.cli import (
    console,
    explain,
    history,
    receive,
    redrive,
    run,
    sample,
    schemas,
    tokens,
    topics,
    trace,
    webhooks,
)
from dispatcher.cli.options import placed, reflow_help
from dispatcher.demo import demo_command
from dispatcher.errors import ConfigError, DispatcherError
from dispatcher.telemetry.build_form import FORM

EX_CONFIG = 78
_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO}
"""Errors of a file or device that output is written to."""

app = typer.Typer(
    name="dispatcher",
    help="Turns a Kafka stream of message-delivery events into webhooks that can be relied on.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
)


@app.callback(invoke_without_command=True)
def _version(version: bool = typer.Option(False, "--version", help="Show the version and exit.")) -> None:
    if version:
        typer.echo(f"feedback-dispatcher {__version__} ({FORM})")
        raise typer.Exit


for module in (
    run, console, history, topics, redrive, explain, trace, webhooks, tokens, schemas, sample, receive,
):  # fmt: skip
    module.add_to(app)
app.command("demo")(demo_command)
reflow_help(app)


def _is_utf8(text: str) -> bool:
    return not any("\ud800" <= character <= "\udfff" for character in text)


def main() -> None:
    """Runs the command in `sys.argv`. A user's mistake is reported in one line, without a traceback."""
    try:
        app()
    except ConfigError as error:
        for problem in error.problems:
            typer.echo(str(placed(problem)), err=True)
        sys.exit(EX_CONFIG)
    except OSError as error:
        if error.errno not in _NO_ROOM:
            raise
        typer.echo(f"dispatcher: the output can't be written: {error.strerror}", err=True)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is buffered would fail once more
        sys.exit(1)
    except UnicodeEncodeError:
        if all(_is_utf8(argument) for argument in sys.argv):
            raise
        typer.echo("dispatcher: an argument is not UTF-8 text", err=True)
        sys.exit(2)
    except DispatcherError as error:
        typer.echo(f"dispatcher: {error}", err=True)
        sys.exit(1)
