"""Only the worker creates the history store's file: a command that finds none says so and leaves none behind."""

import asyncio
from pathlib import Path

import pytest
from typer.testing import CliRunner

from dispatcher.cli.commands import app
from tests.commands.running import called, write_settings


@pytest.mark.parametrize("arguments", [("trace", "e-1"), ("history", "erase", "--hash", "0" * 32)])
async def test_a_missing_history_store_is_named_and_not_created(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    store = tmp_path / "history.db"
    (tmp_path / "history").write_text(f"sqlite+aiosqlite:///{store}")
    (tmp_path / "webhooks").mkdir()
    settings = tmp_path / "dispatcher.yaml"
    settings.write_text(
        "apiVersion: dispatcher/v1\nkafka: {bootstrap_servers: '127.0.0.1:1'}\nwebhooks: {path: webhooks}\n"
        "history: {url: {file: history}}\n"
    )
    done = await asyncio.to_thread(CliRunner().invoke, app, [*arguments, "-c", str(settings)])
    assert done.exit_code != 0
    shown = str(done.exception) + done.output
    assert f"SQLite at {store}: there is no such file: run `dispatcher history`" in shown
    assert not store.exists()


@pytest.mark.parametrize("command", ["check", "webhooks list"])
async def test_a_missing_database_of_webhooks_leaves_no_webhook_in_use(tmp_path: Path, command: str) -> None:
    config = write_settings(tmp_path, webhooks={"store": "sql", "url": {"env": "URL"}})
    ran = await called(*command.split(), "-c", config, env={"URL": f"sqlite+aiosqlite:///{tmp_path}/webhooks.db"})
    assert ran.status == 78
    assert "run `dispatcher webhooks migrate`): no webhook is known" in ran.err
    assert "last known" not in ran.err
