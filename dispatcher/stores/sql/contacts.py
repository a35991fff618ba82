"""The contacts of webhooks, known by the hashes of their addresses. Part of the notification store.

All methods run in the caller's transaction.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from sqlalchemy import ColumnElement, RowMapping, Table, delete, select, text, update
from sqlalchemy.ext.asyncio import AsyncConnection

from dispatcher.contract.tenant import TenantKey
from dispatcher.stores.sql.history_schema import contacts, unnamed

KEEP_UNNAMED_MS: Final = 30 * 86_400_000
"""Time for which contacts are kept that no webhook names."""
KEEP_STOPPED_MS: Final = 365 * 86_400_000
"""The same time for contacts who stopped notifications: they are not asked again so soon."""

ContactStatus = Literal["asked", "confirmed", "stopped"]
Contacts = Mapping[tuple[TenantKey, str], "KnownContact"]
"""By tenant and hash of the address."""


@dataclass(frozen=True, slots=True)
class KnownContact:
    """An address of a webhook, known by its hash."""

    status: ContactStatus
    asks: int
    """Confirmation messages so far."""
    asked_at: float
    changed_at: float


class ContactTable:
    """Reads and changes contacts."""

    def __init__(self, keyed: Callable[[str], str]) -> None:
        """Creates the table's access.

        Args:
            keyed: returns the form in which the hash of a contact is stored, also for one that is stored already.
        """
        self._keyed = keyed

    async def all(self, connection: AsyncConnection, *where: ColumnElement[bool]) -> Contacts:
        """Returns the contacts that fulfil the conditions."""
        rows = (await connection.execute(select(contacts).where(*where))).mappings().all()
        return {(_tenant(row), self._keyed(row["contact"])): _contact(row) for row in rows}

    async def of(self, connection: AsyncConnection, tenant: TenantKey) -> dict[str, KnownContact]:
        """Returns the contacts of a webhook, by hash of the address."""
        found = await self.all(connection, contacts.c.org == tenant.org, contacts.c.sandbox == tenant.sandbox)
        return {contact: known for (_, contact), known in found.items()}

    async def note_asked(
        self, connection: AsyncConnection, asked: Sequence[tuple[TenantKey, str]], now_ms: int
    ) -> None:
        """Notes that contacts receive a confirmation message, perhaps once more."""
        await self._key(connection, contacts.c.org.in_(sorted({tenant.org for tenant, _ in asked})))
        await connection.execute(
            text(
                "INSERT INTO history_contacts (org, sandbox, contact, status, asks, asked_at, changed_at) "
                "VALUES (:org, :sandbox, :contact, 'asked', 1, :now, :now) "
                "ON CONFLICT (org, sandbox, contact) DO UPDATE SET asks = history_contacts.asks + 1, "
                "asked_at = excluded.asked_at"
            ),
            _values(asked, now_ms),
        )

    async def set_status(
        self, connection: AsyncConnection, tenant: TenantKey, contact: str, status: ContactStatus, now_ms: int
    ) -> bool:
        """Sets the status of a contact. Returns False if there is no such contact."""
        of_tenant = (contacts.c.org == tenant.org) & (contacts.c.sandbox == tenant.sandbox)
        await self._key(connection, of_tenant)
        statement = update(contacts).where(of_tenant, contacts.c.contact == contact)
        changed = await connection.execute(statement.values(status=status, changed_at=now_ms))
        return changed.rowcount > 0

    async def note_named(
        self, connection: AsyncConnection, is_named: Callable[[TenantKey, str], bool], now_ms: int
    ) -> None:
        """Notes which contacts no webhook names, and deletes those that none has named for long. Keys the others."""
        await self._key(connection)
        rows = (await connection.execute(select(contacts))).mappings().all()
        found = {(_tenant(row), row["contact"]): row for row in rows}
        named = {key for key in found if is_named(*key)}
        noted_rows = (await connection.execute(select(unnamed))).mappings().all()
        noted = {(_tenant(row), row["contact"]): row["unnamed_at"] for row in noted_rows}
        for key in found.keys() & noted.keys() - named:
            keep_ms = KEEP_STOPPED_MS if found[key]["status"] == "stopped" else KEEP_UNNAMED_MS
            if now_ms - noted[key] > keep_ms:
                await connection.execute(delete(contacts).where(*_is_row(contacts, found.pop(key))))
        for row in noted_rows:
            key = (_tenant(row), row["contact"])
            if key in named or key not in found:
                await connection.execute(delete(unnamed).where(*_is_row(unnamed, row)))
        added = sorted(found.keys() - named - noted.keys())
        if added:
            insert = "INSERT INTO history_unnamed (org, sandbox, contact, unnamed_at) "
            values = "VALUES (:org, :sandbox, :contact, :now) ON CONFLICT DO NOTHING"
            await connection.execute(text(insert + values), _values(added, now_ms))

    async def _key(self, connection: AsyncConnection, *where: ColumnElement[bool]) -> None:
        """Replaces the hashes that an older version stored."""
        rows = (await connection.execute(select(contacts).where(*where))).mappings().all()
        known = {(_tenant(row), row["contact"]) for row in rows}
        for row in rows:
            keyed = self._keyed(row["contact"])
            if keyed == row["contact"]:
                continue
            if (_tenant(row), keyed) in known:  # an older version has asked once more meanwhile
                await connection.execute(delete(contacts).where(*_is_row(contacts, row)))
            else:
                await connection.execute(update(contacts).where(*_is_row(contacts, row)).values(contact=keyed))


def _values(of: Sequence[tuple[TenantKey, str]], now_ms: int) -> list[dict[str, object]]:
    return [{"org": tenant.org, "sandbox": tenant.sandbox, "contact": contact, "now": now_ms} for tenant, contact in of]


def _is_row(table: Table, row: RowMapping) -> list[ColumnElement[bool]]:
    return [table.c[name] == row[name] for name in ("org", "sandbox", "contact")]


def _contact(row: RowMapping) -> KnownContact:
    return KnownContact(row["status"], row["asks"], row["asked_at"] / 1000, row["changed_at"] / 1000)


def _tenant(row: RowMapping) -> TenantKey:
    return TenantKey(row["org"], row["sandbox"])
