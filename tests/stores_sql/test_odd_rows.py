"""Rows that were edited by hand in SQLite, which accepts any value in any column: an odd one costs itself only."""

from collections.abc import Awaitable, Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import text

from dispatcher.config.secrets import Secret
from dispatcher.contract.tenant import TenantKey
from dispatcher.errors import ConfigError, DispatcherError
from dispatcher.stores.sql.audit import AuditLog
from dispatcher.stores.sql.database import Database
from dispatcher.stores.sql.encryption import Encryption
from dispatcher.stores.sql.erasing import erase_what_is_over
from dispatcher.stores.sql.records import AuditAction, AuditQuery, Role, StoredWebhook, WebhookQuery
from dispatcher.stores.sql.repository import WebhookRepository
from dispatcher.stores.sql.rotation import encrypt_headers, rotate
from dispatcher.stores.sql.store import SqlStore
from dispatcher.stores.sql.tokens import ApiTokens
from tests.stores_sql.examples import plain, secretive

COLUMNS = (
    *("org", "sandbox", "name", "url", "channels", "search", "created_by", "updated_by", "config"),
    *("version", "changed", "enabled", "created_at", "updated_at", "deleted_at", "erased_at", "id"),
)
VALUES = ("x'FC00'", "'odd'", "1e300", "'{\"paused\": tru'", "'[1]'", "'null'", "'\"text\"'", "''", "-1")


@pytest.fixture
def empty_url(tmp_path: Path) -> Secret:
    """PostgreSQL refuses such values."""
    return Secret(f"sqlite+aiosqlite:///{tmp_path / 'webhooks.db'}".encode())


async def _execute(database: Database, *statements: str) -> None:
    async with database.write() as connection:
        for statement in statements:
            await connection.execute(text(statement.replace(":", r"\:")))


async def _read_everything(
    repository: WebhookRepository, database: Database, encryption: Encryption, bad: StoredWebhook, good: StoredWebhook
) -> None:
    for paused in (None, False):
        for sort in ("name", "tenant", "created", "updated"):
            query = WebhookQuery(sort=sort, paused=paused)
            page = await repository.search(query, orgs=None)
            assert good.id in [one.id for one in page.items]
            assert len(page.items) == page.total
            assert good.id in [one.id for one in await repository.list_all(query, orgs=None)]
    assert await repository.list_all(WebhookQuery(paused=True), orgs=None) == []
    assert good in (await repository.search(WebhookQuery(), orgs=None, numbers={good.tenant: 1})).items
    assert good.tenant in await repository.tenants(orgs=None, limit=10)
    assert good.tenant in await repository.list_tenants([bad.tenant, good.tenant], orgs=None)
    assert good in await repository.get_all([bad.id, good.id], orgs=None)
    await repository.list_deleted(orgs=None)
    await repository.of_tenant(bad.tenant, orgs=None)
    await repository.last_deleted(bad.tenant, orgs=None)
    reads: list[Callable[[], Awaitable[object]]] = [
        lambda: repository.get(bad.id, orgs=None),
        lambda: repository.get_deleted(bad.id, orgs=None),
        lambda: repository.dates_of_secrets(bad.id, orgs=None),
        lambda: repository.for_delivery(bad.id, orgs=None),
        lambda: repository.resolve(dict(bad.document), webhook_id=bad.id, orgs=None, expected_version=1),
        lambda: encrypt_headers(database, encryption),
        lambda: rotate(database, encryption, by="ada"),
        lambda: erase_what_is_over(database, lambda: datetime.now(UTC) + timedelta(days=31)),
    ]
    for read in reads:
        with suppress(DispatcherError):
            await read()


@pytest.mark.parametrize("column", COLUMNS)
async def test_an_odd_row_of_a_webhook_breaks_no_read(
    repository: WebhookRepository, database: Database, encryption: Encryption, column: str
) -> None:
    bad = await repository.create(secretive("bad"), by="ada", orgs=None)
    good = await repository.create(plain("good"), by="ada", orgs=None)
    await _execute(database, "CREATE TABLE kept AS SELECT * FROM webhooks")
    move = "UPDATE webhook_secrets SET webhook_id = (SELECT id FROM webhooks ORDER BY rowid LIMIT 1)"
    for value in VALUES:
        odd = f"UPDATE webhooks SET {column} = {value} WHERE rowid = 1"
        await _execute(database, "PRAGMA defer_foreign_keys=ON", odd, move)
        await _read_everything(repository, database, encryption, bad, good)
        back = f"UPDATE webhooks SET {column} = (SELECT {column} FROM kept WHERE rowid = 1) WHERE rowid = 1"
        await _execute(database, "PRAGMA defer_foreign_keys=ON", back, move)


async def test_a_damaged_configuration_is_named_kept_and_replaced_by_saving(
    repository: WebhookRepository, database: Database, encryption: Encryption
) -> None:
    made = await repository.create(plain("bad"), by="ada", orgs=None)
    await _execute(database, "UPDATE webhooks SET config = '{\"paused\": tru', version = 'x'")
    found = await repository.get(made.id, orgs=None)
    assert (found.name, found.url, found.channels) == (made.name, made.url, made.channels)
    named = [
        "its column config isn't a JSON object: correct the row",
        "its column version isn't a whole number: correct",
    ]
    with pytest.raises(ConfigError) as caught:
        found.config()
    assert all(one in str(caught.value) for one in named)
    for read in (
        repository.for_delivery(made.id, orgs=None),
        repository.set_paused(made.id, paused=True, by="ada", orgs=None),
        repository.reactivate(made.id, by="ada", orgs=None),
    ):
        with pytest.raises(ConfigError, match=named[0]):
            await read
    assert [one.key for one in (await rotate(database, encryption, by="ada")).problems] == [""]
    async with database.read() as connection:
        assert (await connection.execute(text("SELECT config FROM webhooks"))).scalar_one() == '{"paused": tru'
    saved = await repository.update(made.id, plain("bad"), expected_version=found.version, by="ada", orgs=None)
    assert saved.problems == ()
    assert saved.config() == plain("bad")


async def test_an_odd_secret_has_to_be_given_again(repository: WebhookRepository, database: Database) -> None:
    made = await repository.create(secretive("bad"), by="ada", orgs=None)
    await _execute(database, "UPDATE webhook_secrets SET ciphertext = x'FC00', added_at = 'x', fingerprint = x'FC'")
    with pytest.raises(ConfigError, match="give the secret again"):
        await repository.for_delivery(made.id, orgs=None)
    await repository.dates_of_secrets(made.id, orgs=None)


async def test_changes_are_followed_beside_rows_with_odd_ids(
    repository: WebhookRepository, database: Database, encryption: Encryption
) -> None:
    for org in ("a", "b", "c"):
        await repository.create(plain(org), by="ada", orgs=None)
    await _execute(database, "UPDATE webhooks SET config = '[]', id = CASE org WHEN 'b' THEN x'39' ELSE org END")
    store = SqlStore(database, encryption)
    await store.load()
    good = await repository.create(plain("good"), by="ada", orgs=None)
    await store.load()
    assert [one.tenant for one in store.all()] == [good.tenant]


ODD_TOKENS = {
    "expires_at = 'x'": "expired",
    "revoked_at = x'FC'": "revoked",
    "orgs = 'null'": "of no organisation",
    "orgs = '{\"a\": 1}'": "of no organisation",
    "orgs = 'x'": "of no organisation",
    "role = 'owner'": "of a role that this version doesn't know",
    "role = x'FC'": "of no role",
    "hash = x'FC'": "without a hash",
}


@pytest.mark.parametrize(("change", "why"), ODD_TOKENS.items())
async def test_an_odd_token_gives_no_access_and_breaks_no_list(database: Database, change: str, why: str) -> None:
    tokens = ApiTokens(database)
    bad, typed = await tokens.create("bad", Role.ADMIN, orgs=None, by="ada")
    good, _ = await tokens.create("good", Role.ADMIN, orgs=None, by="ada")
    await _execute(database, f"UPDATE api_tokens SET {change} WHERE name = 'bad'")
    found = await tokens.verify(typed)
    assert found is None or found.orgs == frozenset(), why
    assert good in await tokens.list_all()
    assert bad.id in [one.id for one in await tokens.list_all()]


@pytest.mark.parametrize("column", ["at", "actor", "action", "org", "sandbox", "webhook_id", "changes"])
async def test_an_odd_entry_of_the_audit_breaks_no_list(database: Database, column: str) -> None:
    audit = AuditLog(database)
    await audit.record(AuditAction.TEST, by="ada", tenant=TenantKey("good", "prod"), webhook_id="w")
    columns = ("at", "actor", "action", "org", "sandbox", "webhook_id", "changes")
    for value in VALUES:
        odd = ", ".join(value if name == column else name for name in columns)
        await _execute(database, f"INSERT INTO audit ({', '.join(columns)}) SELECT {odd} FROM audit WHERE id = 1")
    entries = await audit.search(AuditQuery(), orgs=None)
    assert len(entries) == len(VALUES) + 1
    assert all(isinstance(one.actor, str) and isinstance(one.webhook_id, str) for one in entries)
