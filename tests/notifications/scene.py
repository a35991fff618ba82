"""A notifier over a real store, with entries written as the history worker writes them, and a clock of its own."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from dispatcher.config.secrets import SecretSource
from dispatcher.config.settings import Settings
from dispatcher.config.webhook_revision import Webhook
from dispatcher.config.webhooks import WebhookConfig
from dispatcher.contract.history import HistoryEntry, HistoryOutcome, HistoryRecord
from dispatcher.contract.tenant import TenantKey
from dispatcher.history.states import StateJudge
from dispatcher.notifications.desk import NotificationDesk
from dispatcher.notifications.notifier import CHANNELS, Notifier, composer_of
from dispatcher.notifications.waiting_counts import WaitingCounts
from dispatcher.stores.sql.audit import AuditLog
from dispatcher.stores.sql.database import Database
from dispatcher.stores.sql.history_rows import rows_of
from dispatcher.stores.sql.history_states import TenantStates
from dispatcher.stores.sql.history_store import HistoryStore
from dispatcher.stores.sql.notification_store import NotificationStore
from tests.notifications.receivers import PASSWORD, USER, Certificates, Endpoint, MailServer
from tests.stores_sql.history_examples import NOW, Clock

LUMA = TenantKey("luma@AdobeOrg", "prod")
CONTACT, OPERATOR = "ops@luma.example", "noc@operator.example"
SECRET = "whsec_" + "c2VjcmV0LXNlY3JldC1zZWNyZXQtMTIzNA=="
PUBLIC_URL = "https://console.example"


def settings_for(
    directory: Path, issued: Certificates, mail: MailServer | None, endpoint: Endpoint | None, **more: Any
) -> Settings:
    """Settings as in dispatcher.yaml, with real files for the secrets."""
    for name, value in (("mail", PASSWORD), ("link", "k" * 32), ("whsec", SECRET)):
        (directory / name).write_text(value)
    notifications: dict[str, Any] = {
        "operator": [OPERATOR], "link_key": {"file": "link"}, "settle": "1m",
    }  # fmt: skip
    if mail is not None:
        notifications["smtp"] = {
            "host": "localhost", "port": mail.port, "username": USER, "password": {"file": "mail"},
            "ca": str(issued.ca), "sender": "dispatcher@operator.example", "timeout": "60s",
        }  # fmt: skip
    if endpoint is not None:
        notifications["webhook"] = {"url": endpoint.url, "signing": {"secrets": [{"file": "whsec"}]}}
    smtp = more.pop("smtp", {})
    document = {
        "apiVersion": "dispatcher/v1",
        "kafka": {"bootstrap_servers": "127.0.0.1:1"},
        "webhooks": more.pop("webhooks", {"path": str(directory)}),
        "egress": {"allow": ["127.0.0.1/32", "localhost"], "ca_bundle": str(issued.ca)},
        "console": {"public_url": PUBLIC_URL},
        "notifications": notifications | more,
    }
    if smtp:
        document["notifications"]["smtp"] |= smtp
    return Settings.model_validate(document, context=SecretSource(directory).as_context())


def webhook_of(tenant: TenantKey = LUMA, *emails: str, **more: Any) -> Webhook:
    values = {
        "name": "Luma order status", "org": tenant.org, "sandbox": tenant.sandbox, "url": "https://hooks.luma.example/x",
        "notify": {"emails": list(emails)},
    }  # fmt: skip
    return Webhook.of(WebhookConfig.model_validate(values | more), "test")


class Scene:
    """What a test does: entries arrive, time passes, the worker works."""

    def __init__(self, settings: Settings, history: Database, audit: AuditLog | None = None) -> None:
        self.clock = Clock()
        self.settings = settings
        self.webhooks: list[Webhook] = []
        self.unusable: set[TenantKey] = set()
        """Tenants whose webhook exists, and can't be used as it is."""
        self.states = TenantStates(history, self.clock)
        self.store = self._new_store(history)
        self.history = HistoryStore(history, settings.history, self.clock)
        self.waiting: WaitingCounts | None = WaitingCounts({})
        self.audit = audit
        self.desk = NotificationDesk(settings, self.store, audit, self.clock)
        self._judge = StateJudge(self.states, lambda: self.webhooks, clock=self.clock)
        self._writer = 0
        self._database = history
        self.notifier = self._notifier_over(self.store)

    def new_notifier(self) -> Notifier:
        """Another worker over the same database."""
        return self._notifier_over(self._new_store(self._database))

    def _new_store(self, history: Database) -> NotificationStore:
        return NotificationStore(history, self.clock, composer_of(self.settings).keyed)

    def _notifier_over(self, store: NotificationStore) -> Notifier:

        async def count(_: Settings) -> WaitingCounts | None:
            return self.waiting

        return Notifier(
            self.settings, self.states, store, lambda: self.webhooks, self.audit, count, clock=self.clock,
            is_held=lambda tenant: tenant in self.unusable,
        )  # fmt: skip

    async def happen(
        self, outcome: HistoryOutcome, count: int = 1, tenant: TenantKey = LUMA, every_s: float = 30, **more: Any
    ) -> None:
        """Entries of one outcome, up to now."""
        self._writer += 1
        values = {"reason": "http_5xx", "status": 503, "detail": "answered 503", "attempt": 1} | more
        if outcome is HistoryOutcome.DELIVERED:
            values |= {"reason": "http_2xx", "status": 200, "detail": ""}
        made = [
            HistoryEntry(int((self.clock.now - number * every_s) * 1000), outcome, *tenant, **values)  # type: ignore[arg-type]
            for number in range(count)
        ]
        await self.history.write(rows_of(HistoryRecord(1, self._writer, 0, made))[0])

    async def work(self, after_s: float = 0.0) -> int:
        """Lets time pass; then the worker judges, plans and sends. Returns the number of messages tried."""
        self.clock.now += after_s
        await self._judge.judge_once(0, self.clock.now)
        await self.notifier.plan_once()
        return await self.notifier.send_due(*CHANNELS)


@asynccontextmanager
async def open_scene(settings: Settings, history: Database, audit: AuditLog | None = None) -> AsyncIterator[Scene]:
    scene = Scene(settings, history, audit)
    await scene.history.prepare()
    async with scene.notifier:
        yield scene


__all__ = ["NOW"]
