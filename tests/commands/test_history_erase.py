"""Erasing a person on the command line: however the number is written, with a trace that has no address."""

import asyncio
from pathlib import Path

import pytest
from typer.testing import CliRunner

from dispatcher.cli.commands import app
from dispatcher.config.secrets import Secret
from dispatcher.config.settings import HistorySettings
from dispatcher.contract.history import HistoryEntry, HistoryOutcome, HistoryRecord
from dispatcher.contract.recipient import recipient_hash
from dispatcher.stores.sql.audit import AuditLog
from dispatcher.stores.sql.database import Database
from dispatcher.stores.sql.history_rows import rows_of
from dispatcher.stores.sql.history_store import HistoryStore
from dispatcher.stores.sql.migrate import upgrade
from dispatcher.stores.sql.records import AuditQuery
from tests.commands.running import called, write_settings
from tests.stores_sql.history_examples import NOW

KEY = b"k" * 48
NUMBER = "+49 170 1234567"


async def test_a_person_is_erased_with_a_trace_and_a_warning_if_there_was_none(tmp_path: Path) -> None:
    history_url = Secret(f"sqlite+aiosqlite:///{tmp_path}/history.db".encode())
    webhooks_url = Secret(f"sqlite+aiosqlite:///{tmp_path}/webhooks.db".encode())
    await upgrade(webhooks_url)
    opened = Database(history_url, create=True, setting="history.url")
    store = HistoryStore(opened, HistorySettings.model_validate({}), lambda: NOW)
    await store.prepare()
    hashed = recipient_hash(KEY, NUMBER)
    made = [HistoryEntry(int(NOW * 1000), HistoryOutcome.DEAD, "A", "prod", recipient=hashed)]
    await store.write(rows_of(HistoryRecord(1, 1, 0, made))[0])
    await opened.close()
    for name, value in (("key", KEY), ("history", history_url.reveal()), ("webhooks", webhooks_url.reveal())):
        (tmp_path / name).write_bytes(value)
    settings = tmp_path / "dispatcher.yaml"
    settings.write_text(
        "apiVersion: dispatcher/v1\nkafka: {bootstrap_servers: '127.0.0.1:1'}\n"
        "webhooks: {store: sql, url: {file: webhooks}, encryption_keys: [{file: encryption}]}\n"
        "history: {url: {file: history}, recipient_key: {file: key}}\n"
    )
    (tmp_path / "encryption").write_text("A" * 43 + "=")

    def erase(number: str) -> tuple[str, str]:
        done = CliRunner().invoke(app, ["history", "erase", "--recipient", number, "-c", str(settings)])
        assert done.exit_code == 0, done.output
        return done.stdout, done.stderr

    shown, logged = await asyncio.to_thread(erase, "49 170 1234567")
    assert "1 entry erased" in shown
    assert hashed in logged
    assert "no entry has this recipient" not in logged
    shown, logged = await asyncio.to_thread(erase, NUMBER)
    assert "0 entries erased" in shown
    assert "no entry has this recipient" in logged
    assert "1234567" not in shown + logged
    audit = Database(webhooks_url)
    entries = await AuditLog(audit).search(AuditQuery(action="erase_person"), orgs=None)
    await audit.close()
    assert [one.changes["entries"] for one in entries] == [0, 1]
    assert all(hashed in one.changes["recipient_hash"] for one in entries)
    assert not any("1234567" in str(one.changes) for one in entries)


@pytest.mark.parametrize(
    "arguments", [("-c", "FILE", "erase"), ("erase", "-c", "FILE"), ("-c", "other", "erase", "-c", "FILE")]
)
async def test_the_settings_file_can_be_named_before_the_subcommand_or_after_it(
    tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    config = write_settings(tmp_path)
    words = [str(config) if word == "FILE" else word for word in arguments]
    ran = await called("history", *words, "--hash", "a" * 32)
    assert ran.status == 78
    assert ran.err.startswith(f"{config}:"), ran.err
    assert "history.url" in ran.err
