"""A demonstration that needs nothing installed but wheels: a broker, tenants' endpoints, events, and their account.

Importing this loads none of what only the demo needs, so that the command line can offer it where it isn't installed.
"""

import sys
from typing import Annotated

import typer

EVENTS = 2000


def start(events: int = EVENTS, *, forever: bool = False) -> int:
    """Run the demo; gives the exit status."""
    try:
        from dispatcher.demo.run import Options, run
    except ModuleNotFoundError as error:
        print(f"demo: {error.name} is not installed: pip install 'feedback-dispatcher[demo]'", file=sys.stderr)
        return 1
    return run(Options(events=events, forever=forever))


def demo_command(
    forever: Annotated[bool, typer.Option("--forever", envvar="FOREVER", help="Go on until Ctrl-C.")] = False,
    events: Annotated[int, typer.Option(min=1, envvar="DEMO_EVENTS", help="How many events to produce.")] = EVENTS,
) -> None:
    """Watch events leave a broker as webhooks: everything on this machine, over in 20 seconds."""
    raise typer.Exit(start(events, forever=forever))
