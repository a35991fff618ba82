"""A demonstration that needs nothing installed but wheels: a broker, tenants' endpoints, events, and their account.

Importing this loads none of what only the demo needs, so that the command line can offer it where it isn't installed.
"""

import signal
import socket
import sys
from typing import Annotated

import typer

EVENTS = 2000


def start(events: int = EVENTS, *, forever: bool = False) -> int:
    """Runs the demo and returns the exit status."""
    try:
        from dispatcher.demo.run import Options, run
    except ModuleNotFoundError as error:
        print(f"demo: {error.name} is not installed: pip install 'feedback-dispatcher[demo]'", file=sys.stderr)
        return 1
    return run(Options(events=events, forever=forever))


def serve_broker(port: int) -> int:
    """Runs the embedded broker alone until Ctrl-C. Returns the exit status."""
    from dispatcher.demo.broker import BrokerNotInstalledError, EmbeddedBroker
    from dispatcher.demo.child_process import ChildFailedError
    from dispatcher.listener import listen_refusal

    try:
        with socket.create_server(("127.0.0.1", port)):  # the broker itself would say it with a backtrace
            pass
    except OSError as error:
        print(f"demo: {listen_refusal(f'127.0.0.1, --broker {port}', error, 'another port')}", file=sys.stderr)
        return 1
    try:
        with EmbeddedBroker(port) as broker:
            print(f"a Kafka-compatible broker in memory at {broker.bootstrap_servers}; Ctrl-C ends it", flush=True)
            signal.pause()
    except KeyboardInterrupt:
        pass
    except (BrokerNotInstalledError, ChildFailedError) as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
    return 0


def demo_command(
    broker: Annotated[
        int | None, typer.Option("--broker", min=1, max=65535, help="Run only the embedded broker, at this port.")
    ] = None,
    forever: Annotated[bool, typer.Option("--forever", envvar="FOREVER", help="Go on until Ctrl-C.")] = False,
    events: Annotated[int, typer.Option(min=1, envvar="DEMO_EVENTS", help="How many events to produce.")] = EVENTS,
) -> None:
    """Watch events leave a broker as webhooks: everything on this machine, over in 20 seconds."""
    raise typer.Exit(serve_broker(broker) if broker is not None else start(events, forever=forever))


def add_to(app: typer.Typer) -> None:
    """Adds the command to the program."""
    app.command("demo")(demo_command)
