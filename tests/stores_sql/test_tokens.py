"""Tokens for the admin API."""

from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import select

from dispatcher.errors import NotFound
from dispatcher.stores.sql import schema
from dispatcher.stores.sql.audit import AuditLog
from dispatcher.stores.sql.database import Database
from dispatcher.stores.sql.records import AuditQuery, Role
from dispatcher.stores.sql.tokens import ApiTokens

START = datetime(2026, 5, 1, 12, tzinfo=UTC)


class Clock:
    def __init__(self) -> None:
        self.now = START

    def __call__(self) -> datetime:
        return self.now


async def test_a_token_is_good_until_it_expires_or_is_revoked(database: Database) -> None:
    clock = Clock()
    tokens = ApiTokens(database, clock)
    orgs = frozenset({"luma@AdobeOrg"})
    token, text = await tokens.create("ci", Role.VIEWER, orgs=orgs, by="ada", expires_at=START + timedelta(days=1))
    assert text.startswith(f"fdt_{token.id}_")
    assert await tokens.verify(text) == token
    assert await tokens.verify(f"{text[:-1]}{'A' if text[-1] != 'A' else 'B'}") is None
    for wrong in ("", "x" * 10_000_000, f"{text}x", text.upper(), f"fdt_{'0' * 16}_{'A' * 43}", "\0", f" {text}"):
        assert await tokens.verify(wrong) is None
    clock.now += timedelta(days=1)
    assert await tokens.verify(text) is None
    clock.now = START
    await tokens.revoke(token.id, by="bob")
    await tokens.revoke(token.id, by="bob")
    assert await tokens.verify(text) is None
    (listed,) = await tokens.list_all()
    assert (listed.revoked_at, listed.orgs, listed.role) == (START, orgs, Role.VIEWER)
    with pytest.raises(NotFound):
        await tokens.revoke("nobody", by="bob")


async def test_a_token_is_stored_as_its_hash_only(database: Database) -> None:
    token, text = await ApiTokens(database).create("ci", Role.ADMIN, orgs=None, by="ada")
    async with database.read() as connection:
        row = dict((await connection.execute(select(schema.api_tokens))).mappings().one())
    assert text[-43:] not in repr(row)
    assert token.orgs is None
    assert row["orgs"] is None
    history = await AuditLog(database).search(AuditQuery(), orgs=None)
    assert text[-43:] not in repr((token, history))
    assert [str(entry.action) for entry in history] == ["token_create"]


async def test_its_use_is_noted_once_a_minute(database: Database) -> None:
    clock = Clock()
    tokens = ApiTokens(database, clock)
    _, text = await tokens.create("ci", Role.ADMIN, orgs=None, by="ada")
    noted = []
    for seconds in (0, 59, 60):
        clock.now = START + timedelta(seconds=seconds)
        await tokens.verify(text)
        noted.append((await tokens.list_all())[0].last_used_at)
    assert noted == [START, START, START + timedelta(seconds=60)]
