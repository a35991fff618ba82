"""Tokens for the admin API: created by an operator, shown once, stored as their SHA-256.

A token has 256 random bits, so that a plain hash is enough: no slow hash is necessary.
"""

import hashlib
import hmac
import re
import secrets
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Final

from sqlalchemy import RowMapping, insert, select, update

from dispatcher.errors import NotFound, StoreUnavailable
from dispatcher.stores.sql.audit import write_entry
from dispatcher.stores.sql.database import Database
from dispatcher.stores.sql.odd_values import text_of
from dispatcher.stores.sql.records import ApiToken, AuditAction, Orgs, Role
from dispatcher.stores.sql.schema import api_tokens

_SHAPE = re.compile(r"fdt_([0-9a-f]{16})_([A-Za-z0-9_-]{43})")
_NO_HASH = b"0" * 64
USE_NOTED_EVERY: Final = timedelta(minutes=1)


class ApiTokens:
    """Creates, verifies and revokes tokens. Every method raises `StoreUnavailable` if the database does not answer."""

    def __init__(self, database: Database, clock: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self._database = database
        self._clock = clock

    async def create(
        self, name: str, role: Role, *, orgs: Orgs, by: str, expires_at: datetime | None = None
    ) -> tuple[ApiToken, str]:
        """Creates a new token and returns it with its plaintext, `fdt_…`, which can't be retrieved later.

        Args:
            orgs: organisations that the token gives access to; None for all.
        """
        token_id, text = secrets.token_hex(8), secrets.token_urlsafe(32)
        text = f"fdt_{token_id}_{text}"
        token = ApiToken(token_id, name, role, orgs, self._clock(), by, expires_at, None, None)
        async with self._database.write() as connection:
            await connection.execute(
                insert(api_tokens).values(
                    id=token.id,
                    hash=_hash(text),
                    name=name,
                    role=role.value,
                    orgs=None if orgs is None else sorted(orgs),
                    created_at=token.created_at,
                    created_by=by,
                    expires_at=expires_at,
                )
            )
            details = {"token": token.id, "name": name, "role": role.value}
            await write_entry(connection, AuditAction.TOKEN_CREATE, by, None, None, dict(details))
        return token, text

    async def verify(self, text: str) -> ApiToken | None:
        """Returns the token with this text; None if there is none, or if it has expired or was revoked.

        Costs at most one look-up by key, and none if the text doesn't have the form of a token.
        """
        match = _SHAPE.fullmatch(text[:128])
        if match is None:
            return None
        async with self._database.read() as connection:
            statement = select(api_tokens).where(api_tokens.c.id == match[1])
            row = (await connection.execute(statement)).mappings().one_or_none()
        is_right = hmac.compare_digest(_hash(text).encode(), _NO_HASH if row is None else text_of(row["hash"]).encode())
        if row is None or not is_right:
            return None
        token, now = _token(row), self._clock()
        if token.revoked_at is not None or (token.expires_at is not None and token.expires_at <= now):
            return None
        if token.last_used_at is None or now - token.last_used_at >= USE_NOTED_EVERY:
            with suppress(StoreUnavailable):  # the time of the last use is not worth refusing a token
                await self._note_use(token.id, now)
        return token

    async def list_all(self) -> list[ApiToken]:
        """Returns every token, revoked ones included, the newest first."""
        statement = select(api_tokens).order_by(api_tokens.c.created_at.desc(), api_tokens.c.id)
        async with self._database.read() as connection:
            return [_token(row) for row in (await connection.execute(statement)).mappings().all()]

    async def revoke(self, token_id: str, *, by: str) -> None:
        """Revokes a token immediately. Revoking it again has no effect. Raises NotFound."""
        async with self._database.write() as connection:
            found = await connection.execute(
                update(api_tokens)
                .where(api_tokens.c.id == token_id, api_tokens.c.revoked_at.is_(None))
                .values(revoked_at=self._clock())
                .returning(api_tokens.c.name)
            )
            name = found.scalar_one_or_none()
            if name is None:
                known = await connection.execute(select(api_tokens.c.id).where(api_tokens.c.id == token_id))
                if known.scalar_one_or_none() is None:
                    raise NotFound("there is no such token")
                return
            details = {"token": token_id, "name": name}
            await write_entry(connection, AuditAction.TOKEN_REVOKE, by, None, None, dict(details))

    async def _note_use(self, token_id: str, now: datetime) -> None:
        async with self._database.write() as connection:
            await connection.execute(update(api_tokens).where(api_tokens.c.id == token_id).values(last_used_at=now))


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _token(row: RowMapping) -> ApiToken:
    """Returns a row as a value. A role that this version doesn't know gives access to no organisation."""
    known = {role.value: role for role in Role}
    orgs = None if row["orgs"] is None else frozenset(map(str, row["orgs"]))
    return ApiToken(
        id=text_of(row["id"]),
        name=text_of(row["name"]),
        role=known.get(row["role"], Role.VIEWER),
        orgs=orgs if row["role"] in known else frozenset(),
        created_at=row["created_at"],
        created_by=text_of(row["created_by"]),
        expires_at=row["expires_at"],
        revoked_at=row["revoked_at"],
        last_used_at=row["last_used_at"],
    )
