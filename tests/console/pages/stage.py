"""A running console before the sample world, and browsers to look at it with."""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

from dispatcher.config.secrets import Secret, SecretSource
from dispatcher.config.settings import Settings
from dispatcher.console.model import Person
from dispatcher.console.pages import event_explanation
from dispatcher.console.server import ConsoleServer
from dispatcher.console.services import Services
from dispatcher.console.signing_secrets import generate_signing_secret
from dispatcher.console.sources.dead_events import DeadLetterReader
from dispatcher.console.sources.delivered_events import DeliveredEvents
from dispatcher.console.sources.history import HistoryLookup
from dispatcher.console.sources.test_sender import SampleSender
from dispatcher.contract.tenant import TenantKey
from dispatcher.demo.child_process import free_ports
from dispatcher.notifications.desk import NotificationDesk
from dispatcher.stores.sql.audit import AuditLog
from dispatcher.stores.sql.database import Database
from dispatcher.stores.sql.encryption import Encryption, new_key
from dispatcher.stores.sql.ended_sessions import EndedSessions
from dispatcher.stores.sql.migrate import upgrade
from dispatcher.stores.sql.records import Orgs, Role, StoredWebhook
from dispatcher.stores.sql.repository import WebhookRepository
from dispatcher.stores.sql.tokens import ApiTokens
from tests.console.pages.sample_world import (
    DRAFTS,
    SampleAttempts,
    SampleDeadEvents,
    SampleKeys,
    SampleLanes,
    SampleResends,
    SampleTestEvents,
    SampleWaiting,
    record_of_the_sample_world,
)

SECRETS = {"K": "k" * 32, "U": "sqlite+aiosqlite:///x", "S": "canary-client-secret"}


@dataclass
class Stage:
    """A console that runs."""

    server: ConsoleServer
    services: Services
    dead_events: SampleDeadEvents
    attempts: SampleAttempts
    lanes: SampleLanes
    waiting: SampleWaiting
    webhooks: dict[TenantKey, StoredWebhook] = field(default_factory=dict)

    @property
    def base(self) -> str:
        return f"http://127.0.0.1:{self.server.port}"

    async def token(self, role: Role = Role.ADMIN, orgs: Orgs = None, name: str = "Jana Novák") -> str:
        return (await self.services.tokens.create(name, role, orgs=orgs, by="operator"))[1]

    def path(self, tenant: TenantKey, below: str = "") -> str:
        return f"/webhooks/{self.webhooks[tenant].id}{below}"


def settings_of(
    delivery: Mapping[str, Any] | None = None, egress: Mapping[str, Any] | None = None, **console: Any
) -> Settings:
    return Settings.model_validate(
        {
            "apiVersion": "dispatcher/v1",
            "kafka": {"bootstrap_servers": "127.0.0.1:1"},
            "webhooks": {"store": "sql", "url": {"env": "U"}},
            "delivery": {"drain_timeout": 1} | dict(delivery or {}),
            "egress": dict(egress or {}),
            "console": {"port": free_ports(1)[0], "session_key": {"env": "K"}} | console,
        },
        context=SecretSource(Path("/"), environ=SECRETS).as_context(),
    )


@asynccontextmanager
async def staged(
    directory: Path,
    *,
    is_empty: bool = False,
    settings: Settings | None = None,
    test_events: SampleSender | None = None,
    history: HistoryLookup | None = None,
    notifications: NotificationDesk | None = None,
    url: Secret | None = None,
    dead_events: DeadLetterReader | None = None,
) -> AsyncIterator[Stage]:
    """A console with a database in the directory, or at `url`; with the sample webhooks, unless it is to be empty.

    With `dead_events`, these are shown and sent again instead of the sample ones, and the delivered ones of `history`.
    """
    settings = settings_of() if settings is None else settings
    real, event_explanation.record_at = event_explanation.record_at, record_of_the_sample_world
    url = url or Secret(f"sqlite+aiosqlite:///{directory / 'webhooks.db'}".encode())
    await upgrade(url)
    database = Database(url)
    try:
        webhooks = WebhookRepository(database, Encryption([Secret(new_key().encode())]))
        made = (SampleAttempts(), SampleLanes(), SampleWaiting(), SampleDeadEvents([] if is_empty else None))
        tests = SampleTestEvents(settings) if test_events is None else test_events
        services = Services(
            settings,
            webhooks,
            AuditLog(database),
            ApiTokens(database),
            EndedSessions(database),
            *made,
            made[3].jobs,
            tests,
            SampleKeys(),
            history,
            SampleResends(made[3].jobs),
            notifications,
        )
        if dead_events is not None and history is not None:
            resends = DeliveredEvents(settings, history, dead_events.jobs)
            services = replace(services, dead_events=dead_events, jobs=dead_events.jobs, resends=resends)
        async with ConsoleServer(services) as server:
            stage = Stage(server, services, made[3], made[0], made[1], made[2])
            if not is_empty:
                await _fill(stage)
            yield stage
    finally:
        event_explanation.record_at = real
        await database.close()


async def _fill(stage: Stage) -> None:
    for draft in DRAFTS:
        config = await stage.services.webhooks.resolve(draft, webhook_id=None, orgs=None)
        stored = await stage.services.webhooks.create(config, by="operator", orgs=None)
        if draft["name"] == "Luma order status":
            changed = {**stored.document, "rate_limit": 400.0, "name": "Luma order feedback"}
            config = await stage.services.webhooks.resolve(changed, webhook_id=stored.id, orgs=None)
            stored = await stage.services.webhooks.update(
                stored.id, config, expected_version=1, by="Jana Novák", orgs=None
            )
        stage.webhooks[stored.tenant] = stored


async def add_webhook(stage: Stage, sandbox: str, **others: Any) -> StoredWebhook:
    """Adds a webhook of an organisation that the scenery doesn't have."""
    draft = {"name": f"Fourth Coffee {sandbox}", "org": "F0C4@AdobeOrg", "sandbox": sandbox, **others}
    draft["url"] = "https://hooks.fourthcoffee.example/feedback"
    config = await stage.services.webhooks.resolve(draft, webhook_id=None, orgs=None)
    return await stage.services.webhooks.create(config, by="operator", orgs=None)


async def add_rotated_webhook(stage: Stage, sandbox: str) -> StoredWebhook:
    """Adds a webhook with three signing secrets, of which one ends within a week."""
    operator, webhook = Person("token:1", "Jana Novák", Role.ADMIN, None), await add_webhook(stage, sandbox)
    for end_older_in in (None, timedelta(days=7), None):
        made = await generate_signing_secret(stage.services, operator, webhook.id, "hmac", end_older_in=end_older_in)
    return made.webhook
