"""The audit log of changes, append-only, with secrets masked.

Secrets are written as fingerprints. So are the values of header parameters, of claims whose names suggest a secret, and
the path and query of a URL, because tenants put keys there. Contacts are written as a hash of their address.
"""

import hashlib
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Final
from urllib.parse import urlsplit

import orjson
from pydantic import JsonValue
from sqlalchemy import RowMapping, insert, select
from sqlalchemy.ext.asyncio import AsyncConnection

from dispatcher.config.secrets import suggests_a_secret
from dispatcher.contract.redaction import contact_of
from dispatcher.contract.tenant import TenantKey
from dispatcher.stores.sql.database import Database
from dispatcher.stores.sql.documents import fingerprint_in, is_secret_place
from dispatcher.stores.sql.header_values import HEADERS
from dispatcher.stores.sql.odd_values import text_of
from dispatcher.stores.sql.records import MAX_PAGE, AuditAction, AuditEntry, AuditQuery, Orgs
from dispatcher.stores.sql.schema import audit

MAX_VALUE: Final = 2000
"""Maximum number of characters of one value as JSON; a longer one is replaced by its size and fingerprint."""

_CONTACTS: Final = ("notify", "emails")
_ACTIONS = {action.value: action for action in AuditAction}


class AuditLog:
    """Reads the audit, and writes entries about anything but webhooks; changes of webhooks write their own entries."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def record(
        self,
        action: AuditAction,
        *,
        by: str,
        tenant: TenantKey | None = None,
        webhook_id: str | None = None,
        details: Mapping[str, JsonValue] | None = None,
    ) -> None:
        """Adds an entry. `details` are written unmasked, so they must not contain secrets or personal data.

        Raises:
            StoreUnavailable: the entry was not written.
        """
        async with self._database.write() as connection:
            await write_entry(connection, action, by, tenant, webhook_id, details or {})

    async def search(self, query: AuditQuery, *, orgs: Orgs) -> list[AuditEntry]:
        """Returns entries of these organisations. Entries without an organisation need access to all organisations."""
        statement = select(audit).order_by(audit.c.id.desc()).limit(max(1, min(query.limit, MAX_PAGE)))
        if orgs is not None:
            statement = statement.where(audit.c.org.in_(orgs))
        if query.before is not None:
            statement = statement.where(audit.c.id < query.before)
        for column, value in (
            (audit.c.webhook_id, query.webhook_id),
            (audit.c.actor, query.actor),
            (audit.c.action, query.action),
        ):
            if value is not None:
                statement = statement.where(column == str(value))
        async with self._database.read() as connection:
            rows = (await connection.execute(statement)).mappings().all()
        return [_entry(row) for row in rows]


async def write_entry(
    connection: AsyncConnection,
    action: AuditAction,
    by: str,
    tenant: TenantKey | None,
    webhook_id: str | None,
    changes: Mapping[str, JsonValue],
) -> None:
    """Adds an entry within the caller's transaction."""
    await connection.execute(
        insert(audit).values(
            at=datetime.now(UTC),
            actor=by,
            action=action.value,
            org=None if tenant is None else tenant.org,
            sandbox=None if tenant is None else tenant.sandbox,
            webhook_id=webhook_id,
            changes=dict(changes),
        )
    )


def changes_between(before: JsonValue, after: JsonValue) -> dict[str, JsonValue]:
    """Returns the masked differences of two stored documents: `{"before": …, "after": …}` by dotted path.

    None means that a document doesn't exist.
    """
    old, new = dict(_leaves(before, ())), dict(_leaves(after, ()))
    changes: dict[str, JsonValue] = {}
    for path in [*new, *(path for path in old if path not in new)]:
        if old.get(path) != new.get(path):
            changes[".".join(path)] = {"before": _masked(path, old.get(path)), "after": _masked(path, new.get(path))}
    return changes


def _leaves(value: JsonValue, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], JsonValue]]:
    if isinstance(value, dict) and not (is_secret_place(path) and fingerprint_in(value) is not None):
        for key, inner in value.items():
            yield from _leaves(inner, (*path, key))
    elif isinstance(value, list) and any(isinstance(inner, dict) for inner in value):
        for index, inner in enumerate(value):
            yield from _leaves(inner, (*path, str(index)))
    elif value is not None:
        yield path, value


def _masked(path: tuple[str, ...], value: JsonValue) -> JsonValue:
    fingerprint = fingerprint_in(value)
    if fingerprint is not None:
        return f"<secret {fingerprint}>"
    if value is None:
        return None
    if path == _CONTACTS:
        value = _contacts(value)
    if path[0] == HEADERS:
        return f"<secret {_digest(value)}>"
    named_by_tenant = [name for at, name in enumerate(path) if {"claims", "parameters"} & set(path[:at])]
    if any(map(suggests_a_secret, named_by_tenant)):
        return f"<secret {_digest(value)}>"
    if path[-1] in ("url", "token_url") and isinstance(value, str):
        return _origin_of(value)
    size = len(orjson.dumps(value))
    return value if size <= MAX_VALUE else f"<{size} bytes, {_digest(value)}>"


def _origin_of(url: str) -> str:
    try:
        parts = urlsplit(url)
    except ValueError:  # in a row that was edited by hand
        return f"<secret {_digest(url)}>"
    origin = f"{parts.scheme}://{parts.netloc}"
    return url if url in (origin, f"{origin}/") else f"{origin}/<secret {_digest(url)}>"


def _contacts(addresses: JsonValue) -> JsonValue:
    """Returns the hashes of contacts' addresses. Earlier versions wrote the addresses themselves."""
    if not isinstance(addresses, list):
        return addresses
    return [f"<contact {contact_of(str(one))[:12]}>" if "@" in str(one) else one for one in addresses]


def _shown(path: str, change: JsonValue) -> JsonValue:
    if path == ".".join(_CONTACTS) and isinstance(change, dict):
        return {when: _contacts(addresses) for when, addresses in change.items()}
    return change


def _digest(value: JsonValue) -> str:
    return hashlib.blake2b(orjson.dumps(value), digest_size=6, person=b"fingerprint").hexdigest()


def _entry(row: RowMapping) -> AuditEntry:
    action, org, sandbox, webhook_id = (
        None if row[name] is None else text_of(row[name]) for name in ("action", "org", "sandbox", "webhook_id")
    )
    return AuditEntry(
        id=row["id"],
        at=row["at"],
        actor=text_of(row["actor"]),
        action=_ACTIONS.get(action or "", action or ""),
        tenant=None if org is None else TenantKey(org, sandbox or ""),
        webhook_id=webhook_id,
        changes={path: _shown(path, change) for path, change in row["changes"].items()},
    )
