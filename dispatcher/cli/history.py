"""`dispatcher history`: the worker that fills the history store, and the erasure of a person's entries."""

import asyncio
from typing import Annotated

import typer
import uvloop

from dispatcher.cli.interpreter import prepare_interpreter
from dispatcher.cli.options import DEFAULT_CONFIG, ConfigPath, quiet_settings_at, settings_at
from dispatcher.config.settings import Settings
from dispatcher.errors import ConfigError, Problem
from dispatcher.telemetry.logs import configure_logging
from dispatcher.transport.descriptors import raise_limit

history = typer.Typer(help="The history store: what happened to each event.", invoke_without_command=True)


@history.callback()
def run(context: typer.Context, config: ConfigPath = DEFAULT_CONFIG) -> None:
    """Store what the history topic reports, until a signal."""
    if context.invoked_subcommand is not None:
        return
    from dispatcher.checks import webhook_rules
    from dispatcher.history.process import HistoryProcess  # imports SQLAlchemy, which takes its time

    settings = settings_at(config)
    configure_logging(settings.log)
    process = HistoryProcess(settings, webhook_rules(settings))
    raise_limit()
    prepare_interpreter()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        raise typer.Exit(runner.run(process.run()))


@history.command()
def erase(
    recipient: Annotated[
        str | None, typer.Option(help="Address or number; it is hashed with history.recipient_key.")
    ] = None,
    hashed: Annotated[
        str | None, typer.Option("--hash", help="The hash itself: 32 hexadecimal digits.", metavar="HEX")
    ] = None,
    config: ConfigPath = DEFAULT_CONFIG,
) -> None:
    """Erase a person's entries from the store. Entries that the topic still holds are refused from then on."""
    if (recipient is None) == (hashed is None):
        raise typer.BadParameter("give either --recipient or --hash")
    erased = asyncio.run(_erase(quiet_settings_at(config), recipient, hashed))
    typer.echo(f"{erased} entries erased")


async def _erase(settings: Settings, recipient: str | None, hashed: str | None) -> int:
    from dispatcher.contract.history import recipient_hash
    from dispatcher.history.worker import history_database
    from dispatcher.stores.sql.history_store import HistoryStore

    if hashed is None:
        key = settings.history.recipient_key
        if key is None or recipient is None:
            message = "needs a key to find a recipient: without one, entries hold no trace of recipients"
            raise ConfigError([Problem(message, "history.recipient_key")])
        hashed = recipient_hash(key.reveal(), recipient)
    store = HistoryStore(history_database(settings), settings.history)
    try:
        return await store.erase(hashed.strip().lower())
    finally:
        await store.close()


def add_to(app: typer.Typer) -> None:
    """Adds this module's commands to the program."""
    app.add_typer(history, name="history")
