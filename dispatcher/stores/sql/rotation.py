"""Encrypts stored secrets and header parameters again with the first key, for `dispatcher webhooks rotate-keys`."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from sqlalchemy import select, update

from dispatcher.errors import Problem
from dispatcher.stores.sql.audit import write_entry
from dispatcher.stores.sql.database import Database
from dispatcher.stores.sql.encryption import Encryption
from dispatcher.stores.sql.header_values import are_encrypted, renew_headers
from dispatcher.stores.sql.odd_values import problems_of
from dispatcher.stores.sql.records import AuditAction
from dispatcher.stores.sql.rows import next_change
from dispatcher.stores.sql.schema import secrets, webhooks

ROTATE_WITHIN_S: Final = 600.0
_LOST: Final = "can't be decrypted with any of webhooks.encryption_keys"


@dataclass(frozen=True, slots=True)
class Rotation:
    """Result of a key rotation."""

    renewed: int
    problems: Sequence[Problem]
    """Secrets that no key decrypts; they are unchanged. If it is empty, the older keys can be removed."""


async def rotate(database: Database, encryption: Encryption, *, by: str) -> Rotation:
    """Encrypts every secret again in one transaction. Dispatchers with the old and the new key are not affected.

    Raises:
        ConfigError: no key is configured.
        StoreUnavailable: the rotation failed, and every secret is unchanged; or all are encrypted again, and another
            process reads the SQLite file, which still contains the old ciphertexts. Repeating is safe in both cases.
    """
    renewed, problems = 0, list[Problem]()
    async with database.write(ROTATE_WITHIN_S) as connection:
        await next_change(connection)  # prevents edits meanwhile
        rows = (await connection.execute(select(secrets))).mappings().all()
        for row in rows:
            ciphertext = encryption.renew(row["ciphertext"])
            if ciphertext is None:
                problems.append(Problem(_LOST, row["path"], f"sql:{row['webhook_id']}"))
                continue
            key = (secrets.c.webhook_id == row["webhook_id"], secrets.c.path == row["path"])
            await connection.execute(update(secrets).where(*key).values(ciphertext=ciphertext))
            renewed += 1
        statement = select(webhooks.c.id, webhooks.c.config).where(webhooks.c.erased_at.is_(None))
        for row in (await connection.execute(statement)).mappings().all():
            config, count, lost = renew_headers(row["config"], row["id"], encryption)
            problems += [replace(problem, file=f"sql:{row['id']}") for problem in problems_of(row)]
            problems += [Problem(_LOST, f"headers.{name}", f"sql:{row['id']}") for name in lost]
            if count:
                await connection.execute(update(webhooks).where(webhooks.c.id == row["id"]).values(config=config))
            renewed += count
        details = {"renewed": renewed, "problems": len(problems)}
        await write_entry(connection, AuditAction.ROTATE, by, None, None, dict(details))
        await database.note_replaced(connection)
    await database.forget_what_was_replaced()
    return Rotation(renewed, problems)


async def encrypt_headers(database: Database, encryption: Encryption) -> int:
    """Encrypts header parameters that an earlier version stored as text. Returns their number.

    Raises:
        ConfigError: there are such parameters, and no key is configured.
        StoreUnavailable: the database did not answer, and everything is unchanged; or another process reads the SQLite
            file, which still contains the text. Repeating is safe in both cases.
    """
    encrypted = 0
    async with database.write(ROTATE_WITHIN_S) as connection:
        rows = (await connection.execute(select(webhooks.c.id, webhooks.c.config))).mappings().all()
        readable = [row for row in rows if not are_encrypted(row["config"])]
        if readable:
            await next_change(connection)  # prevents edits meanwhile
        for row in readable:
            config, count, _ = renew_headers(row["config"], row["id"], encryption)
            await connection.execute(update(webhooks).where(webhooks.c.id == row["id"]).values(config=config))
            encrypted += count
        if readable:
            await database.note_replaced(connection)
    await database.forget_what_was_replaced()
    return encrypted
