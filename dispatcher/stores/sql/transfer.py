"""Imports webhooks from YAML and exports them, without loss: `dispatcher webhooks import` and `export`."""

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from sqlalchemy.ext.asyncio import AsyncConnection

from dispatcher.config.secrets import Secret
from dispatcher.config.webhooks import WebhookConfig
from dispatcher.contract.tenant import TenantKey
from dispatcher.errors import AlreadyExists, ConfigError, Problem
from dispatcher.stores.sql import rows
from dispatcher.stores.sql.database import Database
from dispatcher.stores.sql.documents import extract_secrets, path_text, secrets_of
from dispatcher.stores.sql.encryption import Encryption
from dispatcher.stores.sql.loading import read_rows, select_rows
from dispatcher.stores.sql.repository import WebhookRepository
from dispatcher.stores.sql.schema import webhooks
from dispatcher.stores.sql.yaml_text import file_stem, yaml_document

IMPORT_WITHIN_S: Final = 600.0
EXPORT_WITHIN_S: Final = 60.0


@dataclass(frozen=True, slots=True)
class Imported:
    """Result of an import or a dry run."""

    created: tuple[TenantKey, ...]
    updated: tuple[TenantKey, ...]
    unchanged: tuple[TenantKey, ...]
    """Webhooks that are already stored with the same content and secrets; they are not changed."""


class _DryRun(Exception):
    """Raised to roll back the transaction of a dry run."""


class Transfer:
    """Imports and exports webhooks of every organisation, for the operator."""

    def __init__(self, database: Database, encryption: Encryption, repository: WebhookRepository) -> None:
        self._database = database
        self._encryption = encryption
        self._repository = repository

    async def import_webhooks(
        self, configs: Sequence[WebhookConfig], *, by: str, replace: bool = False, dry_run: bool = False
    ) -> Imported:
        """Stores these webhooks, all or none of them. Webhooks of other tenants are not changed.

        Args:
            configs: the webhooks, with their secrets.
            replace: updates a stored webhook that differs, instead of refusing the import.
            dry_run: does everything except the commit.

        Raises:
            ConfigError: one can't be used, or a tenant is given twice.
            AlreadyExists: a tenant has another webhook, and `replace` is not set.
            StoreUnavailable: the database did not answer; nothing is stored.
        """
        twice = [tenant for tenant, count in Counter(config.tenant for config in configs).items() if count > 1]
        if twice:
            raise ConfigError(Problem(f"{tenant} is given more than once") for tenant in twice)
        for config in configs:
            await self._repository.raise_problems(config)
        done: dict[str, list[TenantKey]] = {"created": [], "updated": [], "unchanged": []}
        try:
            async with self._database.write(IMPORT_WITHIN_S) as connection:
                change = await rows.next_change(connection)
                for config in configs:
                    await self._import(connection, change, config, by, replace, done)
                if dry_run:
                    raise _DryRun
        except _DryRun:
            pass
        return Imported(**{what: tuple(tenants) for what, tenants in done.items()})

    async def configs(self) -> list[WebhookConfig]:
        """Returns every webhook with its secrets, in order of tenants.

        Raises:
            ConfigError: some can't be used. The error names each.
        """
        async with self._database.read(EXPORT_WITHIN_S) as connection:
            selected = await select_rows(connection, webhooks.c.deleted_at.is_(None))
        found = sorted(read_rows(selected, self._encryption), key=lambda row: row.tenant)
        problems = [problem for row in found for problem in row.problems]
        if problems:
            raise ConfigError(problems)
        return [row.webhook.config for row in found if row.webhook is not None]

    async def _import(
        self,
        connection: AsyncConnection,
        change: int,
        config: WebhookConfig,
        by: str,
        replace: bool,
        done: dict[str, list[TenantKey]],
    ) -> None:
        row = await rows.row_of_tenant(connection, config.tenant, None)
        if row is None:
            await self._repository.create_within(connection, change, config, by=by, orgs=None)
            done["created"].append(config.tenant)
            return
        old = rows.stored_webhook(row, self._encryption)
        stored = await rows.secrets_in(connection, old.id, self._encryption)
        document, _ = extract_secrets(config)
        if document == old.document and all(one.secret is not None for one in stored.values()):
            done["unchanged"].append(config.tenant)
            return
        if not replace:
            raise AlreadyExists(f"{config.tenant} has another webhook already: import with --replace", old.id)
        await self._repository.update_within(
            connection, change, old.id, config, expected_version=old.version, by=by, orgs=None
        )
        done["updated"].append(config.tenant)


def export_webhooks(configs: Iterable[WebhookConfig], directory: Path, secrets_dir: Path | None) -> list[Path]:
    """Writes a YAML file for each webhook into `directory`; files of the same names are replaced.

    Args:
        secrets_dir: directory for secrets, each in a file that only its owner can read and the YAML refers to.

    Returns:
        The YAML files.

    Raises:
        ConfigError: there are secrets and no directory for them, or a file can't be written.
    """
    configs = list(configs)
    if secrets_dir is None:
        keys = [(config, path_text(path)) for config in configs for path, _ in secrets_of(config)]
        if keys:
            message = "is a secret: name a directory for secrets with --secrets-dir"
            raise ConfigError(Problem(message, key, str(config.tenant)) for config, key in keys)
    written: list[Path] = []
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for config in configs:
            references = {
                path: _write_secret(secret, (secrets_dir or directory) / file_stem(config.tenant), path_text(path))
                for path, secret in secrets_of(config)
            }
            file = directory / f"{file_stem(config.tenant)}.yaml"
            named = {path: _as_named_from(directory, target) for path, target in references.items()}
            file.write_text(yaml_document(config, named), encoding="utf-8")
            written.append(file)
    except OSError as error:
        raise ConfigError([Problem(f"can't be written ({error.strerror})", "", str(error.filename or ""))]) from None
    return written


def _write_secret(secret: Secret, directory: Path, name: str) -> Path:
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    path, value = directory / name, secret.reveal()
    if value.endswith((b"\n", b"\r")):
        value += b"\r\n"  # a reader removes one line end
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        os.fchmod(descriptor, 0o600)
        file.write(value)
    return path


def _as_named_from(directory: Path, target: Path) -> str:
    """Returns a relative path if the secrets are below the YAML files, so that both can move; else an absolute one."""
    base, absolute = directory.resolve(), target.resolve()
    return str(absolute.relative_to(base)) if absolute.is_relative_to(base) else str(absolute)
