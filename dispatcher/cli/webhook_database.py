"""Database operations of `dispatcher webhooks`. Imported only when needed, because SQLAlchemy loads slowly."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from dispatcher.config.secrets import Secret
from dispatcher.config.settings import Settings
from dispatcher.config.webhook_lookup import CheckWebhook
from dispatcher.config.webhooks import WebhookConfig
from dispatcher.errors import ConfigError, Problem
from dispatcher.stores.sql.database import Database
from dispatcher.stores.sql.encryption import Encryption
from dispatcher.stores.sql.migrate import schema_problem, upgrade
from dispatcher.stores.sql.repository import WebhookRepository
from dispatcher.stores.sql.rotation import Rotation, encrypt_headers, rotate
from dispatcher.stores.sql.transfer import Imported, Transfer, export_webhooks


async def migrated(settings: Settings) -> str:
    """Migrates the schema and encrypts header parameters. Returns the schema's revision."""
    revision = await upgrade(database_url(settings))
    async with open_database(settings) as database:
        await encrypt_headers(database, Encryption(settings.webhooks.encryption_keys))
    return revision


@asynccontextmanager
async def open_database(settings: Settings) -> AsyncIterator[Database]:
    """Opens the database that the settings name. Its schema must be that of this version.

    Raises:
        ConfigError: the settings name no database, or its schema is of another version.
    """
    database = Database(database_url(settings))
    try:
        problem = await schema_problem(database)
        if problem is not None:
            raise ConfigError([problem])
        yield database
    finally:
        await database.close()


async def rotated(settings: Settings, by: str) -> Rotation:
    """Encrypts the stored secrets again with the first key."""
    async with open_database(settings) as database:
        return await rotate(database, Encryption(settings.webhooks.encryption_keys), by=by)


async def imported(
    settings: Settings, configs: Sequence[WebhookConfig], check: CheckWebhook, by: str, *, replace: bool, dry_run: bool
) -> Imported:
    """Stores these webhooks in the database."""
    encryption = Encryption(settings.webhooks.encryption_keys)
    async with open_database(settings) as database:
        transfer = Transfer(database, encryption, WebhookRepository(database, encryption, check))
        return await transfer.import_webhooks(configs, by=by, replace=replace, dry_run=dry_run)


async def exported(settings: Settings, directory: Path, secrets_dir: Path | None) -> list[Path]:
    """Writes the stored webhooks to files. Returns the files."""
    encryption = Encryption(settings.webhooks.encryption_keys)
    async with open_database(settings) as database:
        configs = await Transfer(database, encryption, WebhookRepository(database, encryption)).configs()
    return export_webhooks(configs, directory, secrets_dir)


def database_url(settings: Settings) -> Secret:
    """Returns the database's URL. Raises ConfigError if another store is configured."""
    if settings.webhooks.store != "sql" or settings.webhooks.url is None:
        raise ConfigError([Problem("this command needs store sql, with url", "webhooks.store")])
    return settings.webhooks.url
