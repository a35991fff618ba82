"""Deletion that can be undone, and secrets that end: what is kept, for how long, and what is erased."""

import contextlib
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import orjson
import pytest
from pydantic import JsonValue
from sqlalchemy import delete, event, select, update

from dispatcher.config.secrets import Secret
from dispatcher.config.webhooks import WebhookConfig
from dispatcher.errors import AlreadyExists, ConfigError, EditConflict, NotFound, StoreUnavailable
from dispatcher.stores.sql import database as database_module
from dispatcher.stores.sql.database import Database
from dispatcher.stores.sql.documents import resolve_draft
from dispatcher.stores.sql.encryption import Encryption, new_key
from dispatcher.stores.sql.erasing import erase_what_is_over
from dispatcher.stores.sql.migrate import upgrade
from dispatcher.stores.sql.records import AuditAction, StoredWebhook
from dispatcher.stores.sql.repository import WebhookRepository
from dispatcher.stores.sql.rotation import encrypt_headers, rotate
from dispatcher.stores.sql.schema import audit, secrets, webhooks
from dispatcher.stores.sql.store import SqlStore
from tests.stores_sql.examples import CANARY, plain, plain_draft, secretive

NOW = datetime(2026, 11, 28, 12, tzinfo=UTC)
A, B, C = (Secret(b"whsec_" + letter * 40) for letter in (b"A", b"B", b"C"))


HS256: dict[str, JsonValue] = {"algorithm": "HS256", "key": {"value": "1" * 32}, "kid": "k1"}
HS256_NEXT: dict[str, JsonValue] = {"algorithm": "HS256", "key": {"value": "2" * 32}}
FETCH: dict[str, JsonValue] = {"grant": "jwt-bearer", "token_url": "https://login.luma.example/t"}


class Clock:
    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> datetime:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def repository(database: Database, encryption: Encryption, clock: Clock) -> WebhookRepository:
    return WebhookRepository(database, encryption, clock=clock)


async def deleted(repository: WebhookRepository, config: WebhookConfig) -> StoredWebhook:
    made = await repository.create(config, by="ada", orgs=None)
    await repository.delete(made.id, expected_version=1, by="ada", orgs=None)
    return made


async def actions(database: Database) -> list[str]:
    async with database.read() as connection:
        return list((await connection.execute(select(audit.c.action).order_by(audit.c.id))).scalars())


async def test_a_deleted_webhook_comes_back_whole(
    repository: WebhookRepository, database: Database, encryption: Encryption, clock: Clock
) -> None:
    made = await deleted(repository, secretive())
    store = SqlStore(database, encryption)
    await store.load()
    assert store.all() == []
    assert [one.id for one in await repository.list_deleted(orgs=None)] == [made.id]
    clock.now += timedelta(days=29, hours=23)
    restored = await repository.restore(made.id, by="bob", orgs=None)
    assert (restored.version, restored.updated_by, restored.deleted_at) == (3, "bob", None)
    assert restored.document == made.document
    assert await repository.for_delivery(made.id, orgs=None) == secretive()
    await store.load()
    assert [one.config for one in store.all()] == [secretive()]
    assert await repository.list_deleted(orgs=None) == []
    assert await actions(database) == ["create", "delete", "restore"]


async def test_a_new_webhook_of_the_tenant_is_in_the_way(repository: WebhookRepository) -> None:
    made = await deleted(repository, secretive())
    new = await repository.create(plain(), by="bob", orgs=None)
    with pytest.raises(AlreadyExists) as refused:
        await repository.restore(made.id, by="ada", orgs=None)
    assert refused.value.existing_id == new.id
    await repository.delete(new.id, expected_version=1, by="bob", orgs=None)
    await repository.restore(made.id, by="ada", orgs=None)
    with pytest.raises(AlreadyExists):
        await repository.restore(new.id, by="bob", orgs=None)


async def test_other_organisations_can_neither_see_nor_restore_nor_erase(repository: WebhookRepository) -> None:
    made = await deleted(repository, secretive())
    others = frozenset({"rival@AdobeOrg"})
    assert await repository.list_deleted(orgs=others) == []
    for step in (
        repository.restore(made.id, by="eve", orgs=others),
        repository.erase(made.id, by="eve", orgs=others),
        repository.get_deleted(made.id, orgs=others),
    ):
        with pytest.raises(NotFound):
            await step


async def test_a_webhook_that_is_not_deleted_can_not_be_restored_or_erased(repository: WebhookRepository) -> None:
    made = await repository.create(secretive(), by="ada", orgs=None)
    for step in (repository.restore(made.id, by="a", orgs=None), repository.erase(made.id, by="a", orgs=None)):
        with pytest.raises(NotFound):
            await step
    assert await repository.for_delivery(made.id, orgs=None) == secretive()


@pytest.mark.parametrize("by_hand", [True, False])
async def test_erased_secrets_are_gone(
    repository: WebhookRepository, database: Database, encryption: Encryption, clock: Clock, *, by_hand: bool
) -> None:
    made = await deleted(repository, secretive())
    assert await erase_what_is_over(database, clock) == (0, 0)
    if by_hand:
        await repository.erase(made.id, by="ada", orgs=None)
    else:
        clock.now += timedelta(days=30)
        assert await erase_what_is_over(database, clock) == (1, 0)
    async with database.read() as connection:
        assert (await connection.execute(select(secrets))).all() == []
        row = (await connection.execute(select(webhooks))).mappings().one()
    assert (row["config"]["headers"], row["erased_at"]) == ({}, clock.now)
    assert await repository.list_deleted(orgs=None) == []
    with pytest.raises(NotFound):
        await repository.restore(made.id, by="ada", orgs=None)
    assert await actions(database) == ["create", "delete", "erase"]
    assert await erase_what_is_over(database, clock) == (0, 0)


async def test_a_deleted_webhook_survives_new_encryption_keys(database: Database) -> None:
    old, new = (Secret(new_key().encode()) for _ in range(2))
    made = await deleted(WebhookRepository(database, Encryption([old])), secretive())
    assert (await rotate(database, Encryption([new, old]), by="ada")).problems == []
    repository = WebhookRepository(database, Encryption([new]))
    await repository.restore(made.id, by="ada", orgs=None)
    assert await repository.for_delivery(made.id, orgs=None) == secretive()


def signed(*listed: Secret, ends: dict[Secret, datetime]) -> WebhookConfig:
    dated = {secret.fingerprint(): end.isoformat() for secret, end in ends.items()}
    draft = plain_draft(signing={"secrets": [{"value": one.reveal_text()} for one in listed], "ends": dated})
    return resolve_draft(draft, {})


async def test_ended_signing_secrets_are_erased_without_an_edit(
    repository: WebhookRepository, database: Database, encryption: Encryption, clock: Clock
) -> None:
    """Dispatchers that loaded the webhook before and after agree on its revision, and a disabled one stays disabled."""
    hour = timedelta(hours=1)
    made = await repository.create(signed(A, B, C, ends={B: NOW + hour, C: NOW + 3 * hour}), by="ada", orgs=None)
    before = SqlStore(database, encryption)
    await before.load()
    assert await erase_what_is_over(database, clock) == (0, 0)
    clock.now += 2 * hour
    assert await erase_what_is_over(database, clock) == (0, 1)
    assert await repository.for_delivery(made.id, orgs=None) == signed(A, C, ends={C: NOW + 3 * hour})
    assert (await repository.get(made.id, orgs=None)).version == 1
    after = SqlStore(database, encryption)
    await after.load()
    await before.load()
    assert before.content_hash == after.content_hash
    assert (await repository.dates_of_secrets(made.id, orgs=None)).keys() == {A.fingerprint(), C.fingerprint()}
    clock.now += 2 * hour
    assert await erase_what_is_over(database, clock) == (0, 1)
    assert await repository.for_delivery(made.id, orgs=None) == signed(A, ends={})
    assert await erase_what_is_over(database, clock) == (0, 0)
    assert (await actions(database))[1:] == [AuditAction.SECRET_END, AuditAction.SECRET_END]


async def test_a_new_date_is_a_new_revision(
    repository: WebhookRepository, database: Database, encryption: Encryption
) -> None:
    store = SqlStore(database, encryption)
    made = await repository.create(signed(A, B, ends={}), by="ada", orgs=None)
    seen = set()
    for version, days in enumerate((1, 2, None), start=1):
        ends = {} if days is None else {B: NOW + timedelta(days=days)}
        await repository.update(made.id, signed(A, B, ends=ends), expected_version=version, by="ada", orgs=None)
        await store.load()
        seen.add(store.content_hash)
    assert len(seen) == 3


async def test_a_secret_keeps_its_date_at_another_place(repository: WebhookRepository, clock: Clock) -> None:
    made = await repository.create(signed(A, ends={}), by="ada", orgs=None)
    clock.now += timedelta(days=1)
    await repository.update(made.id, signed(B, A, ends={}), expected_version=1, by="ada", orgs=None)
    assert await repository.dates_of_secrets(made.id, orgs=None) == {
        A.fingerprint(): NOW,
        B.fingerprint(): NOW + timedelta(days=1),
    }


@dataclass
class SqliteFile:
    """A database with one deleted webhook, whose stored secret can be looked for in the file's bytes."""

    path: Path
    database: Database
    encryption: Encryption
    webhook_id: str = ""
    ciphertext: bytes = b""

    @property
    def url(self) -> Secret:
        return Secret(f"sqlite+aiosqlite:///{self.path}".encode())

    @property
    def repository(self) -> WebhookRepository:
        return WebhookRepository(self.database, self.encryption, clock=lambda: NOW)

    def keeps(self) -> bool:
        return any(self.ciphertext in path.read_bytes() for path in self.path.parent.glob("webhooks.db*"))

    @contextlib.contextmanager
    def read_by_another_process(self) -> Iterator[None]:
        """Its snapshot keeps the log from being cut."""
        with contextlib.closing(sqlite3.connect(self.path, isolation_level=None)) as other:
            other.execute("BEGIN")
            other.execute(f"SELECT count(*) FROM {secrets.name}").fetchall()
            yield


@pytest.fixture
async def sqlite_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[SqliteFile]:
    """Yields a file whose locks are waited for only briefly."""
    monkeypatch.setattr(database_module, "_PRAGMAS", (*database_module._PRAGMAS, "busy_timeout=200"))
    path = tmp_path / "webhooks.db"
    url = Secret(f"sqlite+aiosqlite:///{path}".encode())
    await upgrade(url)
    made = SqliteFile(path, Database(url), Encryption([Secret(new_key().encode())]))
    try:
        webhook = plain(signing={"secrets": [{"value": A.reveal().decode()}]})
        made.webhook_id = (await made.repository.create(webhook, by="ada", orgs=None)).id
        await made.repository.delete(made.webhook_id, expected_version=1, by="ada", orgs=None)
        async with made.database.read() as connection:
            made.ciphertext = (await connection.execute(select(secrets.c.ciphertext))).scalars().one().encode()
        assert made.keeps()
        yield made
    finally:
        await made.database.close()


async def _month_over(file: SqliteFile) -> None:
    with pytest.raises(StoreUnavailable, match="another process reads it"):
        await erase_what_is_over(file.database, lambda: NOW + timedelta(days=31))


async def _erased_by_hand(file: SqliteFile) -> None:
    await file.repository.erase(file.webhook_id, by="ada", orgs=None)
    with pytest.raises(NotFound):
        await file.repository.get_deleted(file.webhook_id, orgs=None)


async def _rotated(file: SqliteFile) -> None:
    with pytest.raises(StoreUnavailable, match="another process reads it"):
        await rotate(file.database, file.encryption, by="ada")


async def _headers_encrypted(file: SqliteFile) -> None:
    """An old version stored header parameters as text."""
    text: JsonValue = {"x-canary": file.ciphertext.decode()}
    async with file.database.write() as connection:
        row = (await connection.execute(select(webhooks))).mappings().one()
        await connection.execute(update(webhooks).values(config=row["config"] | {"headers": text}))
        await connection.execute(delete(secrets))
    with pytest.raises(StoreUnavailable, match="another process reads it"):
        await encrypt_headers(file.database, file.encryption)


@pytest.mark.parametrize("replace", [_month_over, _erased_by_hand, _rotated, _headers_encrypted])
@pytest.mark.parametrize("by_itself", [True, False])
async def test_replaced_rows_that_another_process_keeps_are_removed_later(
    sqlite_file: SqliteFile, replace: Callable[[SqliteFile], Awaitable[None]], *, by_itself: bool
) -> None:
    """In a SQLite file, replaced rows stay in free pages until the file is rewritten, even by another process."""
    with sqlite_file.read_by_another_process():
        await replace(sqlite_file)
    assert sqlite_file.keeps()

    later = sqlite_file.database if by_itself else Database(sqlite_file.url)
    try:
        assert await erase_what_is_over(later, lambda: NOW) == (0, 0)
        assert not sqlite_file.keeps()
    finally:
        await later.close()


async def test_a_file_is_rewritten_only_if_rows_in_it_were_replaced(sqlite_file: SqliteFile) -> None:
    before = sqlite_file.path.stat().st_mtime_ns
    assert await erase_what_is_over(sqlite_file.database, lambda: NOW) == (0, 0)
    assert sqlite_file.path.stat().st_mtime_ns == before


async def test_what_another_process_replaces_meanwhile_stays_noted(sqlite_file: SqliteFile) -> None:
    """Its rows may have come into the file after it was rewritten."""
    with contextlib.closing(sqlite3.connect(sqlite_file.path, isolation_level=None)) as other:

        def replace(_connection: object, _cursor: object, statement: str, *_: object) -> None:
            if "wal_checkpoint" in statement:
                other.execute("PRAGMA user_version=2")

        engine = sqlite_file.database._engine.sync_engine
        event.listen(engine, "before_cursor_execute", replace)
        other.execute("PRAGMA user_version=1")
        await sqlite_file.database.forget_what_was_replaced()
        assert other.execute("PRAGMA user_version").fetchone() == (2,)

        event.remove(engine, "before_cursor_execute", replace)
        await sqlite_file.database.forget_what_was_replaced()
        assert other.execute("PRAGMA user_version").fetchone() == (0,)


async def test_nothing_readable_stays(repository: WebhookRepository, database: Database) -> None:
    await deleted(repository, secretive(auth={"type": "none"}))
    async with database.read() as connection:
        row = (await connection.execute(select(webhooks.c.config))).scalar_one()
        stored = (await connection.execute(select(secrets.c.ciphertext))).scalars().all()
    assert CANARY not in str(row)
    assert stored
    assert CANARY not in str(stored)


REPLACED: dict[str, JsonValue] = {
    "signing": {"signing": {"secrets": [{"value": "whsec_A"}, {"value": "whsec_B"}]}},
    **{
        place: {
            "auth": {"type": "jwt", **({"sign": token} if place == "sign" else {"fetch": FETCH | {"assertion": token}})}
        }
        for place in ("sign", "assertion")
        for token in [HS256 | {"next": HS256_NEXT | {"starts": NOW.isoformat()}}]
    },
}


@pytest.mark.parametrize("part", REPLACED)
@pytest.mark.parametrize("how", ["fingerprint", "keep"])
async def test_an_edit_of_what_the_store_has_changed_meanwhile_is_a_conflict(
    repository: WebhookRepository, database: Database, clock: Clock, part: str, how: str
) -> None:
    """The version stays, so that no endpoint is enabled again; but its secrets are no longer those that were shown."""
    made = await repository.create(plain(**REPLACED[part]), by="ada", orgs=None)
    if part == "signing":
        ends = {Secret(b"whsec_B").fingerprint(): NOW.isoformat()}
        shown = {**made.document, "signing": {**made.document["signing"], "ends": ends}}
        config = await repository.resolve(shown, webhook_id=made.id, orgs=None, expected_version=1)
        made = await repository.update(made.id, config, expected_version=1, by="ada", orgs=None)
    draft = orjson.loads(orjson.dumps(dict(made.document)))
    if how == "keep":
        draft = _with_keep(draft)
    for _ in range(2):
        await repository.resolve(draft, webhook_id=made.id, orgs=None, expected_version=made.version)
        clock.now += timedelta(days=1)
    assert await erase_what_is_over(database, clock) == (0, 1)
    with pytest.raises(EditConflict, match="read the webhook again") as caught:
        await repository.resolve(draft, webhook_id=made.id, orgs=None, expected_version=made.version)
    assert caught.value.current_version == made.version
    with pytest.raises(ConfigError, match="no such secret is stored here"):
        await repository.resolve(draft, webhook_id=made.id, orgs=None)
    again = await repository.get(made.id, orgs=None)
    await repository.resolve(dict(again.document), webhook_id=made.id, orgs=None, expected_version=made.version)


def _with_keep(value: JsonValue) -> JsonValue:
    if isinstance(value, dict):
        if value.keys() == {"fingerprint"}:
            return {"keep": True}
        return {key: _with_keep(inner) for key, inner in value.items()}
    return [_with_keep(inner) for inner in value] if isinstance(value, list) else value


@pytest.mark.parametrize("place", ["sign", "assertion"])
async def test_a_replaced_key_is_erased_a_day_after_the_next_one_started_without_an_edit(
    repository: WebhookRepository, database: Database, encryption: Encryption, clock: Clock, place: str
) -> None:
    def config(*keys: str) -> WebhookConfig:
        token: JsonValue = {"algorithm": "HS256", "key": {"value": keys[0] * 32}, "kid": keys[0]}
        if keys[1:]:
            following = {"algorithm": "HS384", "key": {"value": keys[1] * 48}, "kid": keys[1]}
            token |= {"next": following | {"starts": NOW.isoformat()}}
        if keys == ("2",):
            token |= {"algorithm": "HS384", "key": {"value": "2" * 48}}
        fetch: JsonValue = {"grant": "jwt-bearer", "token_url": "https://login.luma.example/t", "assertion": token}
        return plain(auth={"type": "jwt", **({"sign": token} if place == "sign" else {"fetch": fetch})})

    made = await repository.create(config("1", "2"), by="ada", orgs=None)
    added = await repository.dates_of_secrets(made.id, orgs=None)
    before = SqlStore(database, encryption)
    await before.load()
    clock.now += timedelta(hours=23, minutes=59)
    assert await erase_what_is_over(database, clock) == (0, 0)
    clock.now += timedelta(minutes=1)
    assert await erase_what_is_over(database, clock) == (0, 1)
    assert await repository.for_delivery(made.id, orgs=None) == config("2")
    assert (await repository.get(made.id, orgs=None)).version == 1
    after = SqlStore(database, encryption)
    await after.load()
    assert before.content_hash == after.content_hash
    async with database.read() as connection:
        left = (await connection.execute(select(secrets.c.path, secrets.c.fingerprint))).all()
    (key,) = config("2").secrets()
    assert [path.rpartition(".")[2] for path, _ in left] == ["key"]
    assert await repository.dates_of_secrets(made.id, orgs=None) == {key.fingerprint(): added[key.fingerprint()]}
    assert await erase_what_is_over(database, clock) == (0, 0)
    assert (await actions(database))[1:] == [AuditAction.KEY_END]


async def test_a_key_that_never_starts_keeps_no_other_secret_from_being_erased(
    repository: WebhookRepository, database: Database, clock: Clock
) -> None:
    never = HS256 | {"next": HS256_NEXT | {"starts": "9999-12-31T23:59:59Z"}}
    await repository.create(plain(sandbox="never", auth={"type": "jwt", "sign": never}), by="ada", orgs=None)
    await deleted(repository, secretive())
    clock.now += timedelta(days=30)
    assert await erase_what_is_over(database, clock) == (1, 0)
