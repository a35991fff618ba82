"""Erases secrets that are not needed any more: of webhooks deleted 30 days ago, and signing secrets that have ended."""

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Final

import structlog
from pydantic import JsonValue
from sqlalchemy import RowMapping, Text, cast, delete, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from dispatcher.contract.tenant import TenantKey
from dispatcher.stores.sql import rows
from dispatcher.stores.sql.audit import write_entry
from dispatcher.stores.sql.database import Database
from dispatcher.stores.sql.documents import fingerprint_in, stored_signing
from dispatcher.stores.sql.records import RESTORABLE, AuditAction
from dispatcher.stores.sql.schema import secrets, webhooks

ERASE_EVERY_S: Final = 600.0
MAX_AT_ONCE: Final = 500
"""Webhooks whose secrets one transaction erases: edits wait for it."""
BY: Final = "dispatcher"
"""The actor in the audit."""
_SIGNING: Final = "signing.secrets."

log = structlog.get_logger(__name__)


async def erase_what_is_over(
    database: Database, clock: Callable[[], datetime] = lambda: datetime.now(UTC)
) -> tuple[int, int]:
    """Erases what is over. Returns the number of webhooks and of signing secrets.

    Nothing is written if there is nothing to erase. Raises `StoreUnavailable` if the database does not answer; all of
    it is then repeated by the next call.
    """
    now = clock()
    deleted = select(webhooks).where(webhooks.c.deleted_at <= now - RESTORABLE, webhooks.c.erased_at.is_(None))
    has_ends = cast(webhooks.c.config, Text).like('%"ends":{"%')
    dated = select(webhooks).where(webhooks.c.erased_at.is_(None), has_ends)
    async with database.read() as connection:
        found = (await connection.execute(deleted.limit(1))).first()
        ended = [row for row in (await connection.execute(dated)).mappings().all() if _ended_in(row, now)]
    if found is None and not ended:
        return 0, 0
    erased = 0
    async with database.write() as connection:
        await rows.next_change(connection)
        gone = (await connection.execute(deleted.limit(MAX_AT_ONCE))).mappings().all()
        for row in gone:
            await rows.erase(connection, row["id"], now)
            await write_entry(connection, AuditAction.ERASE, BY, _tenant(row), row["id"], {})
        for one in ended[:MAX_AT_ONCE]:
            erased += await _erase_ended(connection, one["id"], now)
    await database.forget_what_was_replaced()
    log.info("secrets erased", webhooks=len(gone), signing_secrets=erased)
    return len(gone), erased


def _ended_in(row: RowMapping, now: datetime) -> set[str]:
    """Returns the fingerprints of a webhook's signing secrets that have ended."""
    _, ends = stored_signing(row["config"])
    return {fingerprint for fingerprint, end in ends.items() if end <= now}


async def _erase_ended(connection: AsyncConnection, webhook_id: str, now: datetime) -> int:
    """Erases the ended signing secrets of a webhook.

    It is no edit: the version stays, and a disabled webhook stays disabled (see `loading`).
    """
    statement = select(webhooks).where(webhooks.c.id == webhook_id, webhooks.c.erased_at.is_(None))
    row = (await connection.execute(statement)).mappings().one_or_none()
    ended = set[str]() if row is None else _ended_in(row, now)
    if row is None or not ended:
        return 0
    config = dict(row["config"])
    listed: list[JsonValue] = list(config["signing"]["secrets"])
    kept = [place for place, one in enumerate(listed) if place == 0 or fingerprint_in(one) not in ended]
    ends = {fingerprint: end for fingerprint, end in config["signing"]["ends"].items() if fingerprint not in ended}
    config["signing"] = {**config["signing"], "secrets": [listed[place] for place in kept], "ends": ends}
    own = secrets.c.webhook_id == webhook_id
    gone = [f"{_SIGNING}{place}" for place in range(len(listed)) if place not in kept]
    await connection.execute(delete(secrets).where(own, secrets.c.path.in_(gone)))
    for number, place in enumerate(kept):  # ascending, so that the new path is free
        if number != place:
            moved = update(secrets).where(own, secrets.c.path == f"{_SIGNING}{place}")
            await connection.execute(moved.values(path=f"{_SIGNING}{number}"))
    await connection.execute(update(webhooks).where(webhooks.c.id == webhook_id).values(config=config))
    details: dict[str, JsonValue] = {"secrets": ", ".join(f"<secret {one}>" for one in sorted(ended))}
    await write_entry(connection, AuditAction.SECRET_END, BY, _tenant(row), webhook_id, details)
    return len(gone)


def _tenant(row: RowMapping) -> TenantKey:
    return TenantKey(row["org"], row["sandbox"])
