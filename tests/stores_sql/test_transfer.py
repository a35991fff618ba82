"""YAML to database and back."""

from pathlib import Path

import pytest

from dispatcher.config.documents import read_document
from dispatcher.config.secrets import Secret, SecretSource
from dispatcher.config.webhooks import WebhookConfig, WebhookFile
from dispatcher.errors import AlreadyExists, ConfigError
from dispatcher.stores.sql.audit import AuditLog
from dispatcher.stores.sql.database import Database
from dispatcher.stores.sql.encryption import Encryption
from dispatcher.stores.sql.records import AuditQuery, WebhookQuery
from dispatcher.stores.sql.repository import WebhookRepository
from dispatcher.stores.sql.transfer import Transfer, export_webhooks
from tests.stores_sql.examples import CANARY, plain, secretive, with_signing


@pytest.fixture
def transfer(database: Database, encryption: Encryption, repository: WebhookRepository) -> Transfer:
    return Transfer(database, encryption, repository)


def _read(files: list[Path]) -> list[WebhookConfig]:
    found: list[WebhookConfig] = []
    for path in files:
        context = SecretSource(path.parent).as_context()
        found += WebhookFile.model_validate(read_document(path).data, context=context).webhooks
    return sorted(found, key=lambda config: config.tenant)


def _examples() -> list[WebhookConfig]:
    return [
        plain("0123@AdobeOrg", "0o17", name="on", events=["null", "sent"], campaigns=["1e3", "~", "a: b", "#"]),
        plain("LUMA@AdobeOrg", "prod", timeout="2s", rate_limit="100/m", enabled=False, payload=2, sandbox_id="true"),
        secretive("luma@AdobeOrg", "prod", timeout=1.0005),
        secretive("luma@AdobeOrg", "ünï/cødé ..", name="'\"\\ \u00a0: # 😀\u200d!", channels=["sms"]),
    ]


async def test_the_way_through_the_database_and_back_loses_nothing(transfer: Transfer, tmp_path: Path) -> None:
    given = _examples()
    done = await transfer.import_webhooks(given, by="ada")
    assert done.created == tuple(config.tenant for config in given)
    assert await transfer.configs() == given
    directory = tmp_path / "out"
    files = export_webhooks(await transfer.configs(), directory, directory / "secrets")
    assert len({str(path).casefold() for path in files}) == 4
    assert _read(files) == given
    again = await transfer.import_webhooks(_read(files), by="ada")
    assert again.unchanged == done.created
    assert not again.created
    text = "".join(path.read_text() for path in files)
    assert f"{CANARY}-" not in text
    assert "file: secrets/" in text or 'file: "secrets/' in text
    assert "timeout: 2s" in text or 'timeout: "2s"' in text


async def test_secrets_are_written_for_their_owner_only_and_moved_with_care(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    path = elsewhere / "x"
    config = secretive()
    files = export_webhooks([config], tmp_path / "out", elsewhere)
    secrets = [path for path in elsewhere.rglob("*") if path.is_file()]
    assert len(secrets) == 7
    assert {path.stat().st_mode & 0o777 for path in secrets} == {0o600}
    assert _read(files) == [config]
    with pytest.raises(ConfigError, match="with --secrets-dir"):
        export_webhooks([config, plain(sandbox="dev")], tmp_path / "refused", None)
    assert not (tmp_path / "refused").exists()
    assert len(export_webhooks([plain()], tmp_path / "fine", None)) == 1
    path.write_text("in the way")
    with pytest.raises(ConfigError, match="can't be written"):
        export_webhooks([config], path, path)


@pytest.mark.parametrize("value", [b"a\n", b"a\r\n", b"a\r", b"\n", b"\r\n\r\n", b"\x00\xff"])
def test_a_secret_is_the_same_after_export_whatever_its_end(tmp_path: Path, value: bytes) -> None:
    signing = with_signing("x")
    assert signing.signing is not None
    config = signing.model_copy(update={"signing": signing.signing.model_copy(update={"secrets": [Secret(value)]})})
    (found,) = _read(export_webhooks([config], tmp_path, tmp_path))
    assert [secret.reveal() for secret in found.secrets()] == [value]


async def test_an_import_is_done_whole_or_not_at_all(
    transfer: Transfer, repository: WebhookRepository, database: Database
) -> None:
    there = await repository.create(plain(sandbox="stage"), by="ada", orgs=None)
    wanted = [plain(), plain(sandbox="stage", name="Other"), secretive(sandbox="dev")]
    with pytest.raises(AlreadyExists, match="import with --replace") as caught:
        await transfer.import_webhooks(wanted, by="bob")
    assert caught.value.existing_id == there.id
    with pytest.raises(ConfigError, match="given more than once"):
        await transfer.import_webhooks([*wanted, plain()], by="bob", replace=True)
    result = await transfer.import_webhooks(wanted, by="bob", replace=True, dry_run=True)
    assert (await repository.search(WebhookQuery(), orgs=None)).total == 1
    assert len(await AuditLog(database).search(AuditQuery(), orgs=None)) == 1
    done = await transfer.import_webhooks(wanted, by="bob", replace=True)
    assert done == result
    assert [tenant.sandbox for tenant in done.created] == ["prod", "dev"]
    assert [tenant.sandbox for tenant in done.updated] == ["stage"]
    assert (await repository.get(there.id, orgs=None)).name == "Other"
    assert {entry.actor for entry in await AuditLog(database).search(AuditQuery(limit=3), orgs=None)} == {"bob"}


async def test_a_rotated_secret_is_a_change(transfer: Transfer) -> None:
    await transfer.import_webhooks([with_signing("whsec_a")], by="ada")
    done = await transfer.import_webhooks([with_signing("whsec_b")], by="ada", replace=True)
    assert len(done.updated) == 1
    assert await transfer.configs() == [with_signing("whsec_b")]
