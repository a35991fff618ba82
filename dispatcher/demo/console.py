"""The console of the demo: the database with the demo's webhooks, and the real `dispatcher console` over it."""

import asyncio
import os
import re
import sys
import time
from pathlib import Path

from dispatcher.checks import webhook_check, webhook_rules
from dispatcher.config.loader import load_settings
from dispatcher.config.secrets import Secret
from dispatcher.config.settings import Settings
from dispatcher.demo.child_process import ChildProcess
from dispatcher.errors import ConfigError
from dispatcher.stores.sql.audit import AuditLog
from dispatcher.stores.sql.database import Database
from dispatcher.stores.sql.encryption import Encryption
from dispatcher.stores.sql.migrate import upgrade
from dispatcher.stores.sql.records import AuditAction, AuditQuery
from dispatcher.stores.sql.repository import WebhookRepository
from dispatcher.stores.sql.transfer import Transfer
from dispatcher.stores.webhook_files import read_directory

IMPORT = "demo"
"""Name in the audit of who made the webhooks."""
_WITHOUT_EFFECT = (AuditAction.OPEN, AuditAction.NOTIFY, AuditAction.CONTACT)
_LINK_WITHIN_S = 30.0
_LINK = re.compile(rb"^http://\S+$", re.MULTILINE)


async def fill_database(config: Path, webhooks: Path) -> None:
    """Writes the files' webhooks to the settings' database, as `dispatcher webhooks migrate` and `import` do."""
    settings = load_settings(config, {})
    url = _database_url(settings)
    check = webhook_check(settings)
    readings = read_directory(webhooks, {}, webhook_rules(settings, webhooks)).values()
    problems = [problem for reading in readings for problem in reading.problems]
    if problems:
        raise ConfigError(problems)
    await upgrade(url)
    database, encryption = Database(url), Encryption(settings.webhooks.encryption_keys)
    try:
        transfer = Transfer(database, encryption, WebhookRepository(database, encryption, check))
        configs = [webhook.config for reading in readings for webhook in reading.webhooks]
        await transfer.import_webhooks(configs, by=IMPORT, replace=False, dry_run=False)
    finally:
        await database.close()


def _database_url(settings: Settings) -> Secret:
    if settings.webhooks.url is None:
        raise ValueError("the demo's settings name a database")
    return settings.webhooks.url


class Console(ChildProcess):
    """Runs `dispatcher console` in a child process."""

    def __init__(self, config: Path) -> None:
        env = {name: value for name, value in os.environ.items() if not name.upper().startswith("DISPATCHER_")}
        command = (sys.executable, "-m", "dispatcher", "console", "-c", str(config), "--sign-in-link")
        super().__init__(command, log=config.parent / "console.log", env=env)
        self._config = config

    async def link(self) -> str | None:
        """Returns the link that signs one browser in, once; None if the console did not start."""
        give_up_at = time.monotonic() + _LINK_WITHIN_S
        while self.running and time.monotonic() < give_up_at:
            found = _LINK.search(self._log.read_bytes())
            if found is not None:
                return found[0].decode()
            await asyncio.sleep(0.1)
        return None

    async def changed_tenants(self) -> frozenset[str]:
        """Returns the organisations that the audit names: edited, tested, or with events that were sent again."""
        database = Database(_database_url(load_settings(self._config, {})))
        found: set[str] = set()
        before: int | None = None
        try:
            while entries := await AuditLog(database).search(AuditQuery(before=before, limit=200), orgs=None):
                before = entries[-1].id
                found |= {
                    one.tenant.org
                    for one in entries
                    if one.tenant is not None and one.actor != IMPORT and one.action not in _WITHOUT_EFFECT
                }
        finally:
            await database.close()
        return frozenset(found)
