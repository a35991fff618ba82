"""`dispatcher` with shorter waits: `python -m tests.integration.impatient MODULE:NAME=SECONDS … -- run …`.

For waits that settings don't change, in tests that don't depend on their length.
"""

import sys
from collections.abc import Mapping
from importlib import import_module


def impatient(waits: Mapping[str, float]) -> tuple[str, ...]:
    """Returns the program of a `Dispatcher` in which these constants, `module:NAME`, have other values."""
    return ("-m", __name__, *arguments(waits))


def arguments(waits: Mapping[str, float]) -> tuple[str, ...]:
    """Returns the arguments of `main` that come before the command's."""
    return (*(f"{constant}={seconds}" for constant, seconds in waits.items()), "--")


def _shorten(constant: str, seconds: float) -> None:
    module, _, name = constant.partition(":")
    found = import_module(module)
    if not isinstance(getattr(found, name), float):
        raise TypeError(f"{constant} is not a number of seconds")
    setattr(found, name, seconds)


def main() -> None:
    """Sets the constants, then runs the command."""
    end = sys.argv.index("--")
    for argument in sys.argv[1:end]:
        constant, _, seconds = argument.partition("=")
        _shorten(constant, float(seconds))
    del sys.argv[1 : end + 1]
    from dispatcher.cli import main as command  # after that: what is imported keeps values, not names

    command()


if __name__ == "__main__":
    main()
