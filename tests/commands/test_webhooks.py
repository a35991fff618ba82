"""The database of webhooks from the command line: made, filled, listed, its keys rotated, and written out again."""

import json
from pathlib import Path

from dispatcher.stores.sql.encryption import new_key
from tests.commands.running import CANARY, a_webhook, called, write_secret, write_settings, write_webhooks


async def test_from_yaml_into_the_database_and_back(tmp_path: Path) -> None:
    files = write_settings(tmp_path)
    signing = {"secrets": [write_secret(tmp_path, "whsec", "whsec_" + "Y2FuYXJ5LW5ldmVyLXRvLWJlLXNlZW4h")]}
    file = write_webhooks(tmp_path, a_webhook(signing=signing), a_webhook(sandbox="dev", enabled=False))
    listed = await called("webhooks", "list", "-c", files)
    assert listed.status == 0, listed
    assert [line.split()[0] for line in listed.out.splitlines()] == ["TENANT", "myImsOrg/dev", "myImsOrg/prod", "2"]
    env = {"URL": f"sqlite+aiosqlite:///{tmp_path / 'webhooks.db'}", "OLD": new_key(), "NEW": new_key()}
    config = _sql_settings(tmp_path, "OLD")
    unmade = await called("webhooks", "import", file, "-c", config, env=env)
    assert unmade.status in (1, 78)
    migrated = await called("webhooks", "migrate", "-c", config, env=env)
    assert (migrated.status, migrated.out[:25]) == (0, "the schema is at revision"), migrated
    tried = await called("webhooks", "import", file, "-c", config, "--dry-run", env=env)
    assert "myImsOrg/prod: created" in tried.out
    assert "2 webhooks, nothing was stored (--dry-run)" in tried.out
    stored = await called("webhooks", "import", file.parent, "-c", config, env=env)
    assert stored.out.endswith("2 webhooks\n"), stored
    rotated = await called("webhooks", "rotate-keys", "-c", _sql_settings(tmp_path, "NEW", "OLD"), env=env)
    assert rotated.out == "1 secret re-encrypted with the first key\nthe older keys can be removed\n", rotated
    config = _sql_settings(tmp_path, "NEW")
    listed = await called("webhooks", "list", "-c", config, env=env)
    assert "sql:" in listed.out, listed
    assert "disabled" in listed.out
    for ran in (migrated, tried, stored, rotated, listed):
        assert "Y2FuYXJ5" not in ran.out + ran.err
    out, secrets = tmp_path / "out", tmp_path / "out" / "secrets"
    refused = await called("webhooks", "export", out, "-c", config, env=env)
    assert (refused.status, "with --secrets-dir" in refused.err) == (78, True)
    written = await called("webhooks", "export", out, "-c", config, "--secrets-dir", secrets, env=env)
    assert len(written.out.splitlines()) == 2, written
    again = await called("webhooks", "import", out, "-c", config, env=env)
    assert again.out == "myImsOrg/dev: unchanged\nmyImsOrg/prod: unchanged\n2 webhooks\n", again


async def test_a_mistake_is_reported_with_its_place_and_nothing_is_stored(tmp_path: Path) -> None:
    write_settings(tmp_path)
    file = write_webhooks(tmp_path, a_webhook(url=f"ftp://{CANARY}"))
    config = _sql_settings(tmp_path)
    ran = await called("webhooks", "import", file, "-c", config, env={"URL": "sqlite+aiosqlite:///none.db"})
    assert ran.status == 78
    assert f"{file}:8: webhooks[0].url: must begin with https://" in ran.err
    config = write_settings(tmp_path)
    ran = await called("webhooks", "migrate", "-c", config)
    assert (ran.status, ran.err) == (78, f"{config}:1: webhooks.store: this command needs store sql, with url\n")


async def test_a_new_key_is_printed_alone() -> None:
    ran = await called("webhooks", "new-key")
    assert (ran.status, len(ran.out)) == (0, 45)


def _sql_settings(directory: Path, *keys: str) -> Path:
    path = directory / "sql.yaml"
    webhooks = {"store": "sql", "url": {"env": "URL"}, "encryption_keys": [{"env": key} for key in keys]}
    kafka = {"bootstrap_servers": "127.0.0.1:1"}
    path.write_text(json.dumps({"apiVersion": "dispatcher/v1", "kafka": kafka, "webhooks": webhooks}))
    return path
