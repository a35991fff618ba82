"""The command line: its commands and their exit codes.

0 done · 1 it could not be done · 2 wrong usage · 3 cut off by a second signal ·
4 another process took this one's place in the group · 78 the configuration can't be used (EX_CONFIG of sysexits.h).
"""

import errno
import os
import sys
from collections.abc import Sequence

import typer

from dispatcher.cli import run
from dispatcher.cli.options import placed
from dispatcher.cli.program import program
from dispatcher.errors import ConfigError, DispatcherError

EX_CONFIG = 78
_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO}
"""Errors of a file or device that output is written to."""


def load(arguments: Sequence[str]) -> typer.Typer:
    """Loads the program with all commands; for `run` and `check` without the others, so that they start sooner."""
    if arguments[:1] in (["run"], ["check"]):
        return program(run)
    from dispatcher.cli.commands import app

    return app


def _is_utf8(text: str) -> bool:
    return not any("\ud800" <= character <= "\udfff" for character in text)


def main(app: typer.Typer | None = None) -> None:
    """Runs the command in `sys.argv`. A user's mistake is reported in one line, without a traceback.

    Args:
        app: what `load` returned for `sys.argv`; it is loaded by default.
    """
    try:
        (app or load(sys.argv[1:]))()
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
