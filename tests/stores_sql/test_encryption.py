"""Secrets at rest: what the database holds, rotation, and what happens when a key is gone."""

import traceback

import pytest
from sqlalchemy import select, update
from structlog.testing import capture_logs

from dispatcher.config.secrets import Secret
from dispatcher.config.settings import WebhookSettings
from dispatcher.errors import ConfigError, WebhookUnusable
from dispatcher.stores.sql import schema
from dispatcher.stores.sql.audit import AuditLog
from dispatcher.stores.sql.database import Database
from dispatcher.stores.sql.encryption import Encryption, new_key
from dispatcher.stores.sql.records import AuditAction, AuditQuery
from dispatcher.stores.sql.repository import WebhookRepository
from dispatcher.stores.sql.rotation import rotate
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
    assert (done.renewed, list(done.problems)) == (7, [])
    assert before.isdisjoint(await _ciphertexts(database))
    repository = WebhookRepository(database, Encryption([new]))
    assert await repository.for_delivery(made.id, orgs=None) == secretive()
    assert (await repository.get(made.id, orgs=None)).version == 1
    (entry,) = await AuditLog(database).search(AuditQuery(action=AuditAction.ROTATE), orgs=None)
    assert entry.changes == {"renewed": 7, "problems": 0}
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
    assert (done.renewed, [problem.key for problem in done.problems]) == (7, ["signing.secrets.0"])
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
    assert [line["event"] for line in lines] == ["webhook refused"] * 7 + ["webhooks loaded"]
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
