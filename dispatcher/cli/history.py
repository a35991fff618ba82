"""`dispatcher history`: the worker that fills the history store, and the erasure of a person's entries."""

import asyncio
import re
from collections.abc import Sequence
from typing import Annotated

import structlog
import typer
import uvloop
from pydantic import JsonValue

from dispatcher.cli.interpreter import prepare_interpreter
from dispatcher.cli.options import DEFAULT_CONFIG, ConfigPath, counted, settings_at, shell_user
from dispatcher.config.settings import Settings
from dispatcher.errors import ConfigError, Problem
from dispatcher.telemetry.logs import configure_logging
from dispatcher.transport.descriptors import raise_limit

log = structlog.get_logger(__name__)
_HASH = re.compile(r"[0-9a-f]{32}", re.ASCII)
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
    context: typer.Context,
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
    if recipient is not None and not recipient.strip():
        raise typer.BadParameter("must be an address or a number", param_hint="--recipient")
    if hashed is not None and not _HASH.fullmatch(hashed := hashed.strip().lower()):
        raise typer.BadParameter("must be 32 hexadecimal digits", param_hint="--hash")
    source = context.get_parameter_source("config")
    if context.parent is not None and source is not None and source.name == "DEFAULT":
        config = context.parent.params["config"]  # `dispatcher history -c FILE erase`
    erased = asyncio.run(_erase(settings_at(config), recipient, hashed))
    typer.echo(f"{counted(erased, 'entry')} erased")
    if not erased:
        typer.echo("no entry has this recipient: write the address or number as the events have it", err=True)


async def _erase(settings: Settings, recipient: str | None, hashed: str | None) -> int:
    from dispatcher.contract.recipient import recipient_hashes
    from dispatcher.history.worker import history_database
    from dispatcher.stores.sql.history_store import HistoryStore

    configure_logging(settings.log)
    if hashed is not None:
        hashes: tuple[str, ...] = (hashed,)
    else:
        key = settings.history.recipient_key
        if key is None or recipient is None:
            message = "needs a key to find a recipient: without one, entries hold no trace of recipients"
            raise ConfigError([Problem(message, "history.recipient_key")])
        hashes = recipient_hashes(key.reveal(), recipient)
    store = HistoryStore(history_database(settings), settings.history)
    try:
        erased = sum([await store.erase(one) for one in hashes])
    finally:
        await store.close()
    log.warning("a person's history was erased", recipient_hash=list(hashes), entries=erased, by=_operator())
    await _record(settings, hashes, erased)
    return erased


async def _record(settings: Settings, hashes: Sequence[str], erased: int) -> None:
    """Adds an entry to the audit, if there is one."""
    from dispatcher.stores.sql.audit import AuditLog
    from dispatcher.stores.sql.database import Database
    from dispatcher.stores.sql.records import AuditAction

    if settings.webhooks.store != "sql" or settings.webhooks.url is None:
        return
    database = Database(settings.webhooks.url)
    try:
        details: dict[str, JsonValue] = {"recipient_hash": list(hashes), "entries": erased}
        await AuditLog(database).record(AuditAction.ERASE_PERSON, by=_operator(), details=details)
    finally:
        await database.close()


def _operator() -> str:
    user = shell_user()
    return f"dispatcher history erase ({user})" if user else "dispatcher history erase"


def add_to(app: typer.Typer) -> None:
    """Adds this module's commands to the program."""
    app.add_typer(history, name="history")
