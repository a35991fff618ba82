"""Secrets at rest: what the database holds, rotation, and what happens when a key is gone."""

import traceback
from pathlib import Path

import pytest
from pydantic import JsonValue
from sqlalchemy import delete, select, update
from structlog.testing import capture_logs

from dispatcher.config.secrets import Secret
from dispatcher.config.settings import WebhookSettings
from dispatcher.config.webhooks import WebhookConfig
from dispatcher.errors import ConfigError, WebhookUnusable
from dispatcher.stores.sql import schema
from dispatcher.stores.sql.audit import AuditLog
from dispatcher.stores.sql.database import Database
from dispatcher.stores.sql.encryption import Encryption, new_key
from dispatcher.stores.sql.records import AuditAction, AuditQuery, StoredWebhook
from dispatcher.stores.sql.repository import WebhookRepository
from dispatcher.stores.sql.rotation import encrypt_headers, rotate
from dispatcher.stores.sql.store import SqlStore, open_sql_store
from dispatcher.stores.sql.transfer import Transfer
from tests.stores_sql.examples import CANARY, plain, secretive, with_signing


def _key() -> Secret:
    return Secret(new_key().encode())


def test_a_key_that_is_none_is_named_and_not_quoted() -> None:
    with pytest.raises(ConfigError) as caught:
        Encryption([_key(), Secret(CANARY.encode()), Secret(b"\xff")])
    assert [problem.key for problem in caught.value.problems] == [
        "webhooks.encryption_keys[1]",
        "webhooks.encryption_keys[2]",
    ]
    assert CANARY not in str(caught.value)


def test_a_key_with_a_line_end_is_a_key() -> None:
    assert repr(Encryption([Secret(new_key().encode() + b"\r\n")])) == "<Encryption 1 keys>"


def test_a_ciphertext_is_worth_nothing_in_another_webhooks_row() -> None:
    encryption = Encryption([_key()])
    ciphertext = encryption.encrypt(Secret(b"mine"), "a")
    assert encryption.decrypt(ciphertext, "a") == Secret(b"mine")
    assert encryption.decrypt(ciphertext, "b") is None
    assert encryption.decrypt("rubbish", "a") is None
    assert encryption.decrypt(ciphertext.encode(), "a") == Secret(b"mine"), "SQLite holds what was written by hand"  # type: ignore[arg-type]
    assert Encryption([_key()]).decrypt(ciphertext, "a") is None
    assert Encryption([]).decrypt(ciphertext, "a") is None


async def test_without_a_key_only_webhooks_without_secrets_can_be_stored(database: Database) -> None:
    repository = WebhookRepository(database, Encryption([]))
    await repository.create(plain(), by="ada", orgs=None)
    with pytest.raises(ConfigError, match=r"webhooks\.encryption_keys: no key to encrypt secrets with"):
        await repository.create(secretive(sandbox="dev"), by="ada", orgs=None)
    with pytest.raises(ConfigError, match="no key"):
        await rotate_all_of_one(database, Encryption([]))


async def rotate_all_of_one(database: Database, encryption: Encryption) -> None:
    async with database.write() as connection:
        ids = (await connection.execute(select(schema.webhooks.c.id))).scalars().all()
        row = {"webhook_id": ids[0], "path": "p", "ciphertext": "c", "fingerprint": "f"}
        await connection.execute(schema.secrets.insert().values(row))
    await rotate(database, encryption, by="ada")


async def test_after_a_rotation_the_new_key_is_enough(database: Database) -> None:
    old, new = _key(), _key()
    made = await WebhookRepository(database, Encryption([old])).create(secretive(), by="ada", orgs=None)
    before = await _ciphertexts(database)
    done = await rotate(database, Encryption([new, old]), by="bob")
    assert (done.renewed, list(done.problems)) == (11, [])
    assert before.isdisjoint(await _ciphertexts(database))
    repository = WebhookRepository(database, Encryption([new]))
    assert await repository.for_delivery(made.id, orgs=None) == secretive()
    assert (await repository.get(made.id, orgs=None)).version == 1
    (entry,) = await AuditLog(database).search(AuditQuery(action=AuditAction.ROTATE), orgs=None)
    assert entry.changes == {"renewed": 11, "problems": 0}
    assert (
        await AuditLog(database).search(AuditQuery(action=AuditAction.ROTATE), orgs=frozenset({"luma@AdobeOrg"})) == []
    )


async def _ciphertexts(database: Database) -> set[str]:
    async with database.read() as connection:
        return set((await connection.execute(select(schema.secrets.c.ciphertext))).scalars())


async def test_a_secret_that_no_key_decrypts_costs_its_own_webhook_only(url: Secret, database: Database) -> None:
    lost, kept = _key(), _key()
    bad = await WebhookRepository(database, Encryption([lost])).create(with_signing("whsec_a"), by="ada", orgs=None)
    repository = WebhookRepository(database, Encryption([kept]))
    good = await repository.create(secretive(sandbox="dev"), by="ada", orgs=None)
    settings = WebhookSettings(store="sql", url=url, encryption_keys=[kept])
    async with open_sql_store(settings) as store:
        assert [webhook.tenant for webhook in store.all()] == [good.tenant]
        assert (await store.get(good.tenant)) is store.all()[0]
        assert [str(problem).partition(": ")[0] for problem in store.problems] == [f"sql:{bad.id}"]
        assert [problem.key for problem in store.problems] == ["signing.secrets.0"]
        with pytest.raises(WebhookUnusable, match="can't be decrypted"):
            await store.get(bad.tenant)
    with pytest.raises(ConfigError, match="can't be decrypted"):
        await repository.for_delivery(bad.id, orgs=None)
    with pytest.raises(ConfigError, match="give it again"):
        await repository.resolve(dict(bad.document), webhook_id=bad.id, orgs=None)
    with pytest.raises(ConfigError, match="can't be decrypted"):
        await Transfer(database, Encryption([kept]), repository).configs()
    done = await rotate(database, Encryption([kept]), by="ada")
    assert (done.renewed, [problem.key for problem in done.problems]) == (11, ["signing.secrets.0"])
    again = with_signing("whsec_a")
    await repository.update(bad.id, again, expected_version=1, by="ada", orgs=None)
    assert await repository.for_delivery(bad.id, orgs=None) == again


async def test_no_secret_is_in_a_log_line_or_an_error(database: Database) -> None:
    made = await WebhookRepository(database, Encryption([_key()])).create(secretive(), by="ada", orgs=None)
    good = SqlStore(database, Encryption([]))
    with capture_logs() as lines:
        await good.load()
        with pytest.raises(WebhookUnusable) as caught:
            await good.get(made.tenant)
    assert [line["event"] for line in lines] == ["webhook refused"] * 11 + ["webhooks loaded"]
    assert CANARY not in repr((lines, good, list(good.problems)))
    assert CANARY not in "".join(traceback.format_exception(caught.value))


async def test_with_not_one_webhook_usable_the_start_is_refused(url: Secret, database: Database) -> None:
    await WebhookRepository(database, Encryption([_key()])).create(with_signing("whsec_a"), by="ada", orgs=None)
    with pytest.raises(ConfigError, match="can't be decrypted"):
        async with open_sql_store(WebhookSettings(store="sql", url=url, encryption_keys=[_key()])):
            pass


async def test_a_stored_configuration_that_this_version_does_not_know_is_a_problem(
    database: Database, repository: WebhookRepository, encryption: Encryption
) -> None:
    made = await repository.create(plain(), by="ada", orgs=None)
    newer = dict(made.document) | {"invented": True}
    async with database.write() as connection:
        await connection.execute(update(schema.webhooks).values(config=newer))
    store = SqlStore(database, encryption)
    await store.load()
    assert [(problem.key, problem.file) for problem in store.problems] == [("invented", f"sql:{made.id}")]
    with pytest.raises(WebhookUnusable, match="invented"):
        await store.get(made.tenant)
    assert (await repository.get(made.id, orgs=None)).document == newer


async def _contents(database: Database) -> str:
    """Everything that the database holds, and for SQLite every byte of its files."""
    found = []
    async with database.read() as connection:
        for table in schema.metadata.sorted_tables:
            found += [repr(tuple(row)) for row in (await connection.execute(select(table))).all()]
        if not database.is_postgresql:
            (file,) = {row[2] for row in await connection.exec_driver_sql("PRAGMA database_list")}
            found += [path.read_bytes().decode("latin-1") for path in Path(file).parent.glob(f"{Path(file).name}*")]
    return "\n".join(found)


async def test_no_header_parameter_can_be_read_in_the_database_neither_one_that_was_replaced(
    database: Database,
) -> None:
    repository = WebhookRepository(database, Encryption([_key()]))

    def config(name: str, value: str) -> WebhookConfig:
        return plain(headers={name: value, "X-Secret": {"value": f"{value}-secret"}})

    made = await repository.create(config("X-Environment", "canary-first"), by="ada", orgs=None)
    assert _headers(await repository.get(made.id, orgs=None))["X-Environment"] == "canary-first"
    for version, value in enumerate(("canary-second", "canary-third"), start=1):
        await repository.update(made.id, config("X-A", value), expected_version=version, by="ada", orgs=None)
    assert (await repository.for_delivery(made.id, orgs=None)).header_texts() == {
        "X-A": "canary-third",
        "X-Secret": "canary-third-secret",
    }
    assert "canary" not in await _contents(database)
    await repository.delete(made.id, expected_version=3, by="ada", orgs=None)
    contents = await _contents(database)
    assert "canary" not in contents
    assert "X-Environment" in contents, "the history names what was changed"


async def test_a_header_parameter_that_no_key_decrypts_has_to_be_given_again(url: Secret, database: Database) -> None:
    made = await WebhookRepository(database, Encryption([_key()])).create(
        plain(headers={"X.Env": "canary"}), by="ada", orgs=None
    )
    kept = _key()
    repository = WebhookRepository(database, Encryption([kept]))
    await repository.create(plain(sandbox="dev"), by="ada", orgs=None)
    shown = await repository.get(made.id, orgs=None)
    with pytest.raises(ConfigError, match="give it again"):
        await repository.resolve(dict(shown.document), webhook_id=made.id, orgs=None)
    with pytest.raises(ConfigError, match=r"headers\.X\.Env: can't be decrypted"):
        await repository.for_delivery(made.id, orgs=None)
    async with open_sql_store(WebhookSettings(store="sql", url=url, encryption_keys=[kept])) as store:
        assert [problem.key for problem in store.problems] == ["headers.X.Env"]
        with pytest.raises(WebhookUnusable):
            await store.get(made.tenant)
    done = await rotate(database, Encryption([kept]), by="ada")
    assert [problem.key for problem in done.problems] == ["headers.X.Env"]
    await repository.update(made.id, plain(headers={"X.Env": "new"}), expected_version=1, by="ada", orgs=None)
    assert (await repository.for_delivery(made.id, orgs=None)).header_texts() == {"X.Env": "new"}


async def test_without_a_key_no_header_parameter_is_stored(database: Database) -> None:
    repository = WebhookRepository(database, Encryption([]))
    with pytest.raises(ConfigError, match=r"webhooks\.encryption_keys: no key to encrypt secrets with"):
        await repository.create(plain(headers={"X-A": "b"}), by="ada", orgs=None)


async def test_plaintext_of_an_earlier_version_is_encrypted_and_removed(database: Database) -> None:
    encryption = Encryption([_key()])
    repository = WebhookRepository(database, encryption)
    made = await repository.create(plain(headers={"X-Env": "new"}), by="ada", orgs=None)
    readable: dict[str, JsonValue] = {"X-Env": "canary-stored", "X-Key": "canary-too"}
    async with database.write() as connection:
        config = {**made.document, "headers": readable}
        await connection.execute(update(schema.webhooks).values(config=config))
    assert "canary" in await _contents(database)
    assert _headers(await repository.get(made.id, orgs=None)) == readable

    with pytest.raises(ConfigError, match="no key"):
        await encrypt_headers(database, Encryption([]))
    assert await encrypt_headers(database, encryption) == 2
    assert await encrypt_headers(database, encryption) == 0

    assert "canary" not in await _contents(database)
    assert _headers(await repository.get(made.id, orgs=None)) == readable


@pytest.mark.parametrize("change", ["pause and resume", "reactivate"])
async def test_an_undecryptable_secret_survives_unrelated_changes(database: Database, change: str) -> None:
    """The old key, configured again, still decrypts it; until then the webhook stays unusable."""
    old, new = _key(), _key()
    given = secretive(headers={"X-Text": "text", "X-Key": {"value": "header secret"}})
    made = await WebhookRepository(database, Encryption([old])).create(given, by="ada", orgs=None)
    repository = WebhookRepository(database, Encryption([new]))
    if change == "reactivate":
        await repository.reactivate(made.id, by="bo", orgs=None)
    else:
        assert (await repository.set_paused(made.id, paused=True, by="bo", orgs=None)).paused
        assert not (await repository.set_paused(made.id, paused=False, by="bo", orgs=None)).paused

    store = SqlStore(database, Encryption([new]))
    await store.load()
    assert store.all() == []
    both = WebhookRepository(database, Encryption([new, old]))
    assert await both.for_delivery(made.id, orgs=None) == given


async def test_a_secret_that_is_not_stored_makes_the_webhook_unusable(database: Database) -> None:
    """It would be delivered with an empty one otherwise."""
    encryption = Encryption([_key()])
    repository = WebhookRepository(database, encryption)
    given = secretive(headers={"X-Key": {"value": "header secret"}})
    made = await repository.create(given, by="ada", orgs=None)
    async with database.write() as connection:
        await connection.execute(delete(schema.secrets))
    store = SqlStore(database, encryption)
    await store.load()
    assert store.all() == []
    keys = {problem.key for problem in store.problems}
    assert "headers.X-Key" in keys
    assert len(keys) == len(given.secrets())
    with pytest.raises(ConfigError, match="no such secret is stored here: give it again"):
        await repository.for_delivery(made.id, orgs=None)


def _headers(stored: StoredWebhook) -> dict[str, JsonValue]:
    headers = stored.document["headers"]
    assert isinstance(headers, dict)
    return headers
