"""`dispatcher webhooks`: creates the database of webhooks; imports, exports and lists webhooks.

Modules that need SQLAlchemy are imported only by the commands that use them, because it loads slowly.
"""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from dispatcher.checks import webhook_check, webhook_rules
from dispatcher.cli.options import DEFAULT_CONFIG, By, ConfigPath, actor, counted, quiet_settings_at
from dispatcher.config.settings import Settings
from dispatcher.config.webhook_revision import Webhook
from dispatcher.errors import ConfigError, DispatcherError
from dispatcher.service import checked_webhooks
from dispatcher.stores.webhook_files import read_directory

webhooks = typer.Typer(help="The webhooks that are configured, and the database of them.", no_args_is_help=True)


@webhooks.command()
def migrate(config: ConfigPath = DEFAULT_CONFIG) -> None:
    """Make the database's schema, or bring it up to this version."""
    from dispatcher.cli import webhook_database

    settings = quiet_settings_at(config)
    typer.echo(f"the schema is at revision {asyncio.run(webhook_database.migrated(settings))}")


@webhooks.command("new-key")
def new_key() -> None:
    """Print a fresh key for webhooks.encryption_keys: put it first, keep the older ones until rotate-keys has run."""
    from dispatcher.stores.sql.encryption import new_key as fresh_key

    typer.echo(fresh_key())


@webhooks.command("rotate-keys")
def rotate_keys(config: ConfigPath = DEFAULT_CONFIG, by: By = None) -> None:
    """Re-encrypt every stored secret with the first key."""
    from dispatcher.cli import webhook_database

    rotation = asyncio.run(webhook_database.rotated(quiet_settings_at(config), actor(by)))
    typer.echo(f"{counted(rotation.renewed, 'secret')} re-encrypted with the first key")
    if rotation.problems:
        raise ConfigError(rotation.problems)
    typer.echo("the older keys can be removed")


@webhooks.command("import")
def import_webhooks(
    paths: Annotated[list[Path], typer.Argument(metavar="PATH…", help="YAML files, or directories of them.")],
    config: ConfigPath = DEFAULT_CONFIG,
    replace: Annotated[bool, typer.Option("--replace", help="Replace webhooks that are stored and different.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Try it, and undo it.")] = False,
    by: By = None,
) -> None:
    """Store the webhooks of YAML files in the database with their secrets: all of them, or none."""
    from dispatcher.cli import webhook_database

    settings = quiet_settings_at(config)
    check = webhook_check(settings)
    configs = [webhook.config for path in paths for webhook in _read(path, settings)]
    done = asyncio.run(webhook_database.imported(settings, configs, check, actor(by), replace=replace, dry_run=dry_run))
    for what in ("created", "updated", "unchanged"):
        for tenant in getattr(done, what):
            typer.echo(f"{tenant}: {what}")
    typer.echo(counted(len(configs), "webhook") + (", nothing was stored (--dry-run)" if dry_run else ""))


@webhooks.command()
def export(
    directory: Annotated[
        Path, typer.Argument(metavar="DIR", help="Directory for the YAML files, one for each webhook.")
    ],
    config: ConfigPath = DEFAULT_CONFIG,
    secrets_dir: Annotated[Path | None, typer.Option(help="Directory for the secrets, one file for each.")] = None,
) -> None:
    """Write the database's webhooks as YAML files, which read back as exactly the same webhooks."""
    from dispatcher.cli import webhook_database

    settings = quiet_settings_at(config)
    for file in asyncio.run(webhook_database.exported(settings, directory, secrets_dir)):
        typer.echo(str(file))


@webhooks.command("list")
def list_webhooks(config: ConfigPath = DEFAULT_CONFIG) -> None:
    """List the webhooks in use, of files or of the database."""
    found, problems = asyncio.run(checked_webhooks(quiet_settings_at(config)))
    rows = [("TENANT", "NAME", "CHANNELS", "ENDPOINT", "STATE", "FROM"), *map(_row, found)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows if found else ():
        typer.echo("  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip())
    typer.echo(counted(len(found), "webhook"))
    if problems:
        raise ConfigError(problems)


def _row(webhook: Webhook) -> tuple[str, ...]:
    config = webhook.config
    state = "disabled" if not config.enabled else "paused" if config.paused else "enabled"
    return (str(webhook.tenant), config.name, "+".join(config.channels), config.origin, state, webhook.source)


def _read(path: Path, settings: Settings) -> Iterator[Webhook]:
    """Yields the webhooks in a file or a directory.

    Raises:
        ConfigError: a webhook can't be used.
        DispatcherError: there is no file of webhooks, or it can't be read.
    """
    try:
        directory = path if path.is_dir() else path.parent
        readings = read_directory(directory, {}, webhook_rules(settings, directory))
    except OSError as error:
        raise DispatcherError(f"{path}: can't be read ({error.strerror})") from None
    wanted = list(readings.values()) if path.is_dir() else [readings[path.name]] if path.name in readings else []
    if not wanted:
        raise DispatcherError(f"{path}: no file of webhooks (*.yaml, *.yml, *.json)")
    problems = [problem for reading in wanted for problem in reading.problems]
    if problems:
        raise ConfigError(problems)
    for reading in wanted:
        yield from reading.webhooks


def add_to(app: typer.Typer) -> None:
    """Adds this module's commands to the program."""
    app.add_typer(webhooks, name="webhooks")
