"""Creates, reads, changes and deletes webhooks for the console, the admin API and the command line.

Every method takes the organisations that the caller may see; a webhook of another organisation is not found. Every
change writes its audit entry in the same transaction. Secrets are returned for delivery only.
"""

import asyncio
import uuid
from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import UTC, datetime

import structlog
from pydantic import JsonValue
from sqlalchemy import RowMapping, func, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from dispatcher.config.webhook_lookup import CheckWebhook
from dispatcher.config.webhooks import WebhookConfig
from dispatcher.contract.tenant import TenantKey
from dispatcher.errors import AlreadyExists, ConfigError, EditConflict, NotAllowed, NotFound, Problem, StoreUnavailable
from dispatcher.stores.sql import rows
from dispatcher.stores.sql.audit import changes_between, write_entry
from dispatcher.stores.sql.database import Database
from dispatcher.stores.sql.documents import erased_secrets, extract_secrets, resolve_draft, restore_secrets
from dispatcher.stores.sql.encryption import Encryption
from dispatcher.stores.sql.header_values import open_headers
from dispatcher.stores.sql.odd_values import number_of, problems_of
from dispatcher.stores.sql.records import (
    MAX_PAGE,
    RESTORABLE,
    AuditAction,
    ListedWebhook,
    Orgs,
    StoredWebhook,
    WebhookPage,
    WebhookQuery,
)
from dispatcher.stores.sql.schema import webhooks
from dispatcher.telemetry import metrics

log = structlog.get_logger(__name__)


class WebhookRepository:
    """Creates, reads, updates and deletes webhooks.

    Every method raises `StoreUnavailable` if the database does not answer. The change is then rolled back, unless it
    happened during the commit.
    """

    def __init__(
        self,
        database: Database,
        encryption: Encryption,
        check: CheckWebhook = lambda _: [],
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._database = database
        self._encryption = encryption
        self._check = check
        self._clock = clock

    async def get(self, webhook_id: str, *, orgs: Orgs) -> StoredWebhook:
        """Returns the webhook with this id. Raises NotFound."""
        async with self._database.read() as connection:
            return rows.stored_webhook(await rows.row_of(connection, webhook_id, orgs), self._encryption)

    async def of_tenant(self, tenant: TenantKey, *, orgs: Orgs) -> StoredWebhook | None:
        """Returns the webhook of this organisation and sandbox, or None if there is none."""
        async with self._database.read() as connection:
            row = await rows.row_of_tenant(connection, tenant, orgs)
        return None if row is None else rows.stored_webhook(row, self._encryption)

    async def search(
        self, query: WebhookQuery, *, orgs: Orgs, numbers: Mapping[TenantKey, int] | None = None
    ) -> WebhookPage:
        """Returns a page of the query's results among the webhooks of these organisations.

        Args:
            numbers: numbers of tenants by which to sort instead of `query.sort`; tenants without one have 0.
        """
        if not rows.is_storable(query.text, query.org or "", query.sandbox or ""):
            return WebhookPage((), 0)
        matching = rows.matching(query, orgs)
        if numbers is None:
            page = rows.page_of(matching, query)
        else:
            page = rows.page_by_number(matching, query, numbers, is_postgresql=self._database.is_postgresql)
        async with self._database.read() as connection:
            total = (await connection.execute(select(func.count()).select_from(matching.subquery()))).scalar_one()
            found = (await connection.execute(page)).mappings().all()
        return WebhookPage(tuple(rows.stored_webhook(row, self._encryption) for row in found), total)

    async def list_all(self, query: WebhookQuery, *, orgs: Orgs) -> list[ListedWebhook]:
        """Returns all results of the query in its order, at most `MAX_LISTED`; offset and limit are ignored."""
        if not rows.is_storable(query.text, query.org or "", query.sandbox or ""):
            return []
        async with self._database.read() as connection:
            return await rows.listed(connection, query, orgs)

    async def list_tenants(self, tenants: Collection[TenantKey], *, orgs: Orgs) -> dict[TenantKey, ListedWebhook]:
        """Returns the webhooks of these tenants; leaves out tenants that have none."""
        async with self._database.read() as connection:
            return {one.tenant: one for one in await rows.listed_of(connection, tenants, orgs)}

    async def tenants(self, words: str = "", *, orgs: Orgs, limit: int) -> list[TenantKey]:
        """Returns organisation and sandbox of the webhooks in which all the words appear, in their order."""
        if not rows.is_storable(words):
            return []
        async with self._database.read() as connection:
            return await rows.tenants_of(connection, words, orgs, limit)

    async def get_all(self, webhook_ids: Sequence[str], *, orgs: Orgs) -> list[StoredWebhook]:
        """Returns the webhooks with these ids in their order; leaves out those that don't exist. At most 200."""
        async with self._database.read() as connection:
            found = await rows.rows_of(connection, webhook_ids[:MAX_PAGE], orgs)
        by_id = {one.id: one for one in (rows.stored_webhook(row, self._encryption) for row in found)}
        return [by_id[one] for one in webhook_ids if one in by_id]

    async def resolve(
        self, draft: JsonValue, *, webhook_id: str | None, orgs: Orgs, expected_version: int | None = None
    ) -> WebhookConfig:
        """Returns the configuration that a draft describes, with the secrets that it keeps; see `documents`.

        The result can be tested before it is saved with `create` or `update`.

        Args:
            webhook_id: the webhook that is being edited; None for a new one.
            expected_version: the version from which the draft was made; None if that doesn't matter.

        Raises:
            ConfigError: the draft can't be used. The error names every problem by its key.
            EditConflict: the webhook has changed meanwhile, or a secret that the draft keeps was replaced or erased.
            NotFound: there is no such webhook.
        """
        if webhook_id is None:
            config = await asyncio.to_thread(resolve_draft, draft, {})
        else:
            async with self._database.read() as connection:
                row = await rows.row_of(connection, webhook_id, orgs)
                stored = await rows.secrets_in(connection, webhook_id, self._encryption)
            document, _ = open_headers(row["config"], webhook_id, self._encryption)
            if expected_version is not None:
                _raise_conflict(rows.stored_webhook(row, self._encryption), expected_version)
                _raise_erased(erased_secrets(draft, stored, document), expected_version)
            config = await asyncio.to_thread(resolve_draft, draft, stored, document)
        await self.raise_problems(config)
        return config

    async def for_delivery(self, webhook_id: str, *, orgs: Orgs) -> WebhookConfig:
        """Returns the configuration with its secrets. Use it for deliveries only.

        Raises:
            NotFound: there is no such webhook.
            ConfigError: a secret can't be decrypted, or this version can't use the configuration.
        """
        async with self._database.read() as connection:
            row = await rows.row_of(connection, webhook_id, orgs)
            stored = await rows.secrets_in(connection, webhook_id, self._encryption)
        if not row["config"]:
            raise ConfigError(problems_of(row))
        document, lost = open_headers(row["config"], webhook_id, self._encryption)
        locked = [one.path for one in stored.values() if one.secret is None]
        locked += [f"headers.{name}" for name in lost]
        if locked:
            message = (
                "can't be decrypted with the configured keys: give the secret again, or configure the old key again"
            )
            raise ConfigError(Problem(message, path) for path in locked)
        return restore_secrets(document, {one.path: one.secret for one in stored.values() if one.secret is not None})

    async def create(self, config: WebhookConfig, *, by: str, orgs: Orgs) -> StoredWebhook:
        """Adds a webhook.

        Raises:
            AlreadyExists: its organisation and sandbox have one; the error has its id.
            NotAllowed: its organisation is not in `orgs`.
            ConfigError: it can't be used or stored, or it has secrets and no encryption key is configured.
        """
        await self.raise_problems(config)
        async with self._database.write() as connection:
            change = await rows.next_change(connection)
            return await self.create_within(connection, change, config, by=by, orgs=orgs)

    async def update(
        self, webhook_id: str, config: WebhookConfig, *, expected_version: int, by: str, orgs: Orgs
    ) -> StoredWebhook:
        """Replaces a webhook's configuration. One with the same content counts as an edit, too.

        Raises:
            NotFound: there is no such webhook.
            EditConflict: the webhook has changed meanwhile; the error has its version.
            ConfigError: as for `create`, or organisation or sandbox differ.
        """
        await self.raise_problems(config)
        async with self._database.write() as connection:
            change = await rows.next_change(connection)
            return await self.update_within(
                connection, change, webhook_id, config, expected_version=expected_version, by=by, orgs=orgs
            )

    async def reactivate(self, webhook_id: str, *, by: str, orgs: Orgs) -> StoredWebhook:
        """Re-enables a webhook that the dispatcher had disabled, as an edit does. Raises NotFound."""
        async with self._database.write() as connection:
            change = await rows.next_change(connection)
            row = await rows.row_of(connection, webhook_id, orgs)
            return await self._change_members(connection, change, row, {}, AuditAction.ENABLE, by)

    async def set_paused(self, webhook_id: str, *, paused: bool, by: str, orgs: Orgs) -> StoredWebhook:
        """Pauses or resumes a webhook: the events of a paused webhook are held until it is resumed or they expire.

        Changes nothing if the webhook is in that state already. Raises NotFound.
        """
        async with self._database.write() as connection:
            change = await rows.next_change(connection)
            row = await rows.row_of(connection, webhook_id, orgs)
            old = rows.stored_webhook(row, self._encryption)
            if old.paused == paused:
                return old
            action = AuditAction.PAUSE if paused else AuditAction.RESUME
            return await self._change_members(connection, change, row, {"paused": paused}, action, by)

    async def delete(self, webhook_id: str, *, expected_version: int, by: str, orgs: Orgs) -> None:
        """Deletes a webhook; its tenant can have a new one. It can be restored for 30 days, until it is erased.

        Raises:
            NotFound: there is no such webhook.
            EditConflict: the webhook has changed meanwhile; the error has its version.
        """
        async with self._database.write() as connection:
            change = await rows.next_change(connection)
            old = rows.stored_webhook(await rows.row_of(connection, webhook_id, orgs), self._encryption)
            _raise_conflict(old, expected_version)
            now = self._clock()
            await rows.mark_deleted(connection, old.id, old.version + 1, change, now, by, now)
            changes = changes_between(dict(old.document), None)
            await write_entry(connection, AuditAction.DELETE, by, old.tenant, old.id, changes)

    async def list_deleted(self, *, orgs: Orgs) -> list[StoredWebhook]:
        """Returns the webhooks that can be restored, the last deleted first: at most 200."""
        async with self._database.read() as connection:
            statement = rows.restorable(orgs, self._clock() - RESTORABLE).order_by(webhooks.c.deleted_at.desc())
            found = (await connection.execute(statement.limit(MAX_PAGE))).mappings().all()
        return [rows.stored_webhook(row, self._encryption) for row in found]

    async def get_deleted(self, webhook_id: str, *, orgs: Orgs) -> StoredWebhook:
        """Returns a webhook that can be restored. Raises NotFound."""
        async with self._database.read() as connection:
            return await self._deleted(connection, webhook_id, orgs)

    async def last_deleted(self, tenant: TenantKey, *, orgs: Orgs) -> StoredWebhook | None:
        """Returns the webhook of a tenant that was deleted last, even if it can't be restored any more, or None."""
        if not rows.is_storable(*tenant):
            return None
        statement = rows.deleted(orgs).where(webhooks.c.org == tenant.org, webhooks.c.sandbox == tenant.sandbox)
        async with self._database.read() as connection:
            found = await connection.execute(statement.order_by(webhooks.c.deleted_at.desc()).limit(1))
            row = found.mappings().one_or_none()
        return None if row is None else rows.stored_webhook(row, self._encryption)

    async def restore(self, webhook_id: str, *, by: str, orgs: Orgs) -> StoredWebhook:
        """Undoes a deletion of the last 30 days.

        Raises:
            NotFound: no deleted webhook with this id can be restored.
            AlreadyExists: its organisation and sandbox have a new one; the error has its id.
        """
        async with self._database.write() as connection:
            change = await rows.next_change(connection)
            old = await self._deleted(connection, webhook_id, orgs)
            existing = await rows.row_of_tenant(connection, old.tenant, None)
            if existing is not None:
                raise AlreadyExists(
                    "this organisation and sandbox have a new webhook: delete that first", existing["id"]
                )
            await rows.mark_deleted(connection, old.id, old.version + 1, change, None, by, self._clock())
            await write_entry(connection, AuditAction.RESTORE, by, old.tenant, old.id, {})
            return rows.stored_webhook(await rows.row_of(connection, webhook_id, orgs), self._encryption)

    async def erase(self, webhook_id: str, *, by: str, orgs: Orgs) -> None:
        """Erases the secrets of a deleted webhook; it can't be restored afterwards. Raises NotFound.

        If another process reads a SQLite file at that moment, the erased secrets leave the file with the next
        `erase_what_is_over`.
        """
        async with self._database.write() as connection:
            await rows.next_change(connection)
            old = await self._deleted(connection, webhook_id, orgs)
            await rows.erase(connection, old.id, self._clock())
            await write_entry(connection, AuditAction.ERASE, by, old.tenant, old.id, {})
            await self._database.note_replaced(connection)
        try:
            await self._database.forget_what_was_replaced()
        except StoreUnavailable as error:  # the erasure itself is committed
            metrics.STORE_FAILURES.inc()
            log.warning("erased secrets are still in the file", webhook=old.id, error=str(error))

    async def _deleted(self, connection: AsyncConnection, webhook_id: str, orgs: Orgs) -> StoredWebhook:
        row = None
        if rows.is_storable(webhook_id):
            statement = rows.restorable(orgs, self._clock() - RESTORABLE).where(webhooks.c.id == webhook_id)
            row = (await connection.execute(statement)).mappings().one_or_none()
        if row is None:
            raise NotFound("there is no deleted webhook with this id that can be restored")
        return rows.stored_webhook(row, self._encryption)

    async def dates_of_secrets(self, webhook_id: str, *, orgs: Orgs) -> dict[str, datetime]:
        """Returns when each secret was added, by fingerprint; those of versions before 0005 are left out.

        Raises NotFound.
        """
        async with self._database.read() as connection:
            await rows.row_of(connection, webhook_id, orgs)
            stored = await rows.secrets_in(connection, webhook_id, self._encryption)
        return {one.fingerprint: one.added_at for one in stored.values() if one.added_at is not None}

    async def create_within(
        self, connection: AsyncConnection, change: int, config: WebhookConfig, *, by: str, orgs: Orgs
    ) -> StoredWebhook:
        """Does the same as `create`, in a transaction that has counted `change`."""
        if orgs is not None and config.org not in orgs:
            raise NotAllowed("you have no access to this organisation")
        document, secrets = extract_secrets(config)
        existing = await rows.row_of_tenant(connection, config.tenant, None)
        if existing is not None:
            raise AlreadyExists("this organisation and sandbox have a webhook already: edit that", existing["id"])
        webhook_id = str(uuid.uuid4())
        await self._put(connection, change, webhook_id, config, document, by)
        await rows.put_secrets(connection, webhook_id, secrets, self._encryption, self._clock())
        changes = changes_between(None, document)
        await write_entry(connection, AuditAction.CREATE, by, config.tenant, webhook_id, changes)
        return rows.stored_webhook(await rows.row_of(connection, webhook_id, orgs), self._encryption)

    async def update_within(
        self,
        connection: AsyncConnection,
        change: int,
        webhook_id: str,
        config: WebhookConfig,
        *,
        expected_version: int,
        by: str,
        orgs: Orgs,
    ) -> StoredWebhook:
        """Does the same as `update`, in a transaction that has counted `change`."""
        old = rows.stored_webhook(await rows.row_of(connection, webhook_id, orgs), self._encryption)
        _raise_conflict(old, expected_version)
        moved = [key for key in ("org", "sandbox") if getattr(config, key) != getattr(old.tenant, key)]
        if moved:
            raise ConfigError(Problem("can't be changed: delete this webhook and create another", key) for key in moved)
        document, secrets = extract_secrets(config)
        await self._put(connection, change, old.id, config, document, by, old=old)
        await rows.put_secrets(connection, old.id, secrets, self._encryption, self._clock())
        changes = changes_between(dict(old.document), document)
        await write_entry(connection, AuditAction.EDIT, by, old.tenant, old.id, changes)
        return rows.stored_webhook(await rows.row_of(connection, webhook_id, orgs), self._encryption)

    async def _change_members(
        self,
        connection: AsyncConnection,
        change: int,
        row: RowMapping,
        members: Mapping[str, JsonValue],
        action: AuditAction,
        by: str,
    ) -> StoredWebhook:
        """Changes members of a stored document. The others stay as they are stored, even if no key decrypts them.

        Raises ConfigError if the document can't be read: what is left of it would be replaced.
        """
        if not row["config"]:
            raise ConfigError(problems_of(row))
        values = {"config": {**row["config"], **members}, "version": number_of(row["version"]) + 1}
        values |= {"changed": change, "updated_at": self._clock(), "updated_by": by}
        await connection.execute(update(webhooks).where(webhooks.c.id == row["id"]).values(values))
        await write_entry(connection, action, by, TenantKey(row["org"], row["sandbox"]), row["id"], {})
        return rows.stored_webhook(await rows.row_of(connection, row["id"], None), self._encryption)

    async def _put(
        self,
        connection: AsyncConnection,
        change: int,
        webhook_id: str,
        config: WebhookConfig,
        document: Mapping[str, JsonValue],
        by: str,
        old: StoredWebhook | None = None,
    ) -> None:
        now = self._clock()
        values: dict[str, object] = {"changed": change, "updated_at": now, "updated_by": by}
        if old is None:
            values |= {"version": 1, "created_at": now, "created_by": by}
        else:
            values |= {"version": old.version + 1}
        await rows.put_row(connection, webhook_id, config, document, values, self._encryption, is_new=old is None)

    async def raise_problems(self, config: WebhookConfig) -> None:
        """Raises ConfigError if the check finds problems in a configuration."""
        problems = await asyncio.to_thread(self._check, config)
        if problems:
            raise ConfigError(Problem(message, key) for key, message in problems)


def _raise_conflict(stored: StoredWebhook, expected_version: int) -> None:
    if stored.version != expected_version:
        message = f"changed by {stored.updated_by} meanwhile: version {stored.version}, not {expected_version}"
        raise EditConflict(message, stored.version)


def _raise_erased(keys: Sequence[str], version: int) -> None:
    if keys:
        message = f"the secret at {keys[0]} was replaced or erased meanwhile: read the webhook again"
        raise EditConflict(message, version)
