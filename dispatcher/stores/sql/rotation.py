"""Every stored secret encrypted anew under the first key, for `dispatcher webhooks rotate-keys`."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from sqlalchemy import select, update

from dispatcher.errors import Problem
from dispatcher.stores.sql.audit import write_entry
from dispatcher.stores.sql.database import Database
from dispatcher.stores.sql.encryption import Encryption
from dispatcher.stores.sql.records import AuditAction
from dispatcher.stores.sql.rows import next_change
from dispatcher.stores.sql.schema import secrets

ROTATE_WITHIN_S: Final = 600.0


@dataclass(frozen=True, slots=True)
class Rotation:
    """What became of the secrets."""

    renewed: int
    problems: Sequence[Problem]
    """Secrets that no key decrypts; they are as they were. Empty: the older keys can be taken away."""


async def rotate(database: Database, encryption: Encryption, *, by: str) -> Rotation:
    """Encrypt every secret anew, in one transaction. Dispatchers with the old and the new key notice nothing.

    Raises:
        ConfigError: no key is configured.
        StoreUnavailable: the database did not do it; every secret is as it was.
    """
    renewed, problems = 0, list[Problem]()
    async with database.write(ROTATE_WITHIN_S) as connection:
        await next_change(connection)  # no edit meanwhile
        rows = (await connection.execute(select(secrets))).mappings().all()
        for row in rows:
            ciphertext = encryption.renew(row["ciphertext"])
            if ciphertext is None:
                message = "can't be decrypted with any of webhooks.encryption_keys"
                problems.append(Problem(message, row["path"], f"sql:{row['webhook_id']}"))
                continue
            key = (secrets.c.webhook_id == row["webhook_id"], secrets.c.path == row["path"])
            await connection.execute(update(secrets).where(*key).values(ciphertext=ciphertext))
            renewed += 1
        details = {"renewed": renewed, "problems": len(problems)}
        await write_entry(connection, AuditAction.ROTATE, by, None, None, dict(details))
    return Rotation(renewed, problems)
