"""Erases secrets that are not needed any more: of webhooks deleted 30 days ago, signing secrets that have ended, and
signing keys that another one has replaced.
"""

from collections.abc import Callable, Container
from copy import deepcopy
from datetime import UTC, datetime
from typing import Any, Final

import structlog
from pydantic import JsonValue
from sqlalchemy import RowMapping, Text, cast, delete, or_, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from dispatcher.config.documents import Loc
from dispatcher.config.webhook_auth import KEY_OVERLAP
from dispatcher.contract.tenant import TenantKey
from dispatcher.stores.sql import rows
from dispatcher.stores.sql.audit import write_entry
from dispatcher.stores.sql.database import Database
from dispatcher.stores.sql.documents import fingerprint_in, path_text, stored_next_key, stored_signing
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
    """Erases secrets that are not needed any more. Returns the number of webhooks, and of signing secrets and keys.

    Nothing is written if there is nothing to erase. Raises `StoreUnavailable` if the database does not answer, or if
    erased secrets are still in a SQLite file because another process reads it; the next call repeats what is missing.
    """
    now = clock()
    deleted = select(webhooks).where(webhooks.c.deleted_at <= now - RESTORABLE, webhooks.c.erased_at.is_(None))
    document = cast(webhooks.c.config, Text)
    has_dates = or_(document.like('%"ends":{"%'), document.like('%"starts":"%'))
    dated = select(webhooks).where(webhooks.c.erased_at.is_(None), has_dates)
    async with database.read() as connection:
        found = (await connection.execute(deleted.limit(1))).first()
        rows_with_dates = (await connection.execute(dated)).mappings().all()
    ended = [row for row in rows_with_dates if _ended_in(row, now) or _replaced_in(row, now)]
    if found is None and not ended:
        await database.forget_what_was_replaced()  # of earlier calls, or of other processes
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
        await database.note_replaced(connection)
    await database.forget_what_was_replaced()
    log.info("secrets erased", webhooks=len(gone), signing_secrets=erased)
    return len(gone), erased


def _ended_in(row: RowMapping, now: datetime) -> set[str]:
    """Returns the fingerprints of a webhook's signing secrets that have ended."""
    _, ends = stored_signing(row["config"])
    return {fingerprint for fingerprint, end in ends.items() if end <= now}


def _replaced_in(row: RowMapping, now: datetime) -> Loc | None:
    """Returns the place of the token whose next key started a day ago; None if there is none."""
    found = stored_next_key(row["config"])
    return found[0] if found is not None and found[1] <= now - KEY_OVERLAP else None


async def _erase_ended(connection: AsyncConnection, webhook_id: str, now: datetime) -> int:
    """Erases the ended signing secrets of a webhook, and its key if the next one has replaced it.

    It isn't an edit: the version stays, and a disabled webhook stays disabled (see `loading`).
    """
    statement = select(webhooks).where(webhooks.c.id == webhook_id, webhooks.c.erased_at.is_(None))
    row = (await connection.execute(statement)).mappings().one_or_none()
    if row is None:
        return 0
    config = deepcopy(row["config"])
    gone = await _erase_secrets(connection, row, config, _ended_in(row, now))
    gone += await _replace_key(connection, row, config, now)
    if gone:
        await connection.execute(update(webhooks).where(webhooks.c.id == webhook_id).values(config=config))
    return gone


async def _erase_secrets(
    connection: AsyncConnection, row: RowMapping, config: dict[str, Any], ended: Container[str]
) -> int:
    """Erases signing secrets by fingerprint, but never the first, and changes the document. Returns how many."""
    if not ended:
        return 0
    listed: list[JsonValue] = list(config["signing"]["secrets"])
    kept = [place for place, one in enumerate(listed) if place == 0 or fingerprint_in(one) not in ended]
    ends = {fingerprint: end for fingerprint, end in config["signing"]["ends"].items() if fingerprint not in ended}
    config["signing"] = {**config["signing"], "secrets": [listed[place] for place in kept], "ends": ends}
    gone = [place for place in range(len(listed)) if place not in kept]
    await _drop(connection, row["id"], [f"{_SIGNING}{place}" for place in gone])
    for number, place in enumerate(kept):  # ascending, so that the new path is free
        if number != place:
            await _move(connection, row["id"], f"{_SIGNING}{place}", f"{_SIGNING}{number}")
    shown = ", ".join(f"<secret {fingerprint_in(listed[place])}>" for place in gone)
    await write_entry(connection, AuditAction.SECRET_END, BY, _tenant(row), row["id"], {"secrets": shown})
    return len(gone)


async def _replace_key(connection: AsyncConnection, row: RowMapping, config: dict[str, Any], now: datetime) -> int:
    """Replaces the signing key by the next one, in the rows and the document. Returns 1 if it did, else 0."""
    place = _replaced_in(row, now)
    if place is None:
        return 0
    token: Any = config
    for step in place:
        token = token[step]
    following, before = token.pop("next"), fingerprint_in(token["key"])
    token |= {name: following.get(name) for name in ("algorithm", "key", "kid")} | {"next": None}
    at = path_text(place)
    await _drop(connection, row["id"], [f"{at}.key"])
    await _move(connection, row["id"], f"{at}.next.key", f"{at}.key")
    await write_entry(connection, AuditAction.KEY_END, BY, _tenant(row), row["id"], {"key": f"<secret {before}>"})
    return 1


async def _drop(connection: AsyncConnection, webhook_id: str, paths: list[str]) -> None:
    await connection.execute(delete(secrets).where(secrets.c.webhook_id == webhook_id, secrets.c.path.in_(paths)))


async def _move(connection: AsyncConnection, webhook_id: str, path: str, to: str) -> None:
    moved = update(secrets).where(secrets.c.webhook_id == webhook_id, secrets.c.path == path)
    await connection.execute(moved.values(path=to))


def _tenant(row: RowMapping) -> TenantKey:
    return TenantKey(row["org"], row["sandbox"])
