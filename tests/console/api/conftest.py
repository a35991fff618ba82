"""A console with a real database, on a loopback port. Kafka and the network are faked."""

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from dispatcher.config.secrets import SecretSource
from dispatcher.config.settings import Settings
from dispatcher.console.server import ConsoleServer
from dispatcher.console.services import Services
from dispatcher.demo.child_process import free_ports
from dispatcher.stores.sql.audit import AuditLog
from dispatcher.stores.sql.database import Database
from dispatcher.stores.sql.encryption import Encryption
from dispatcher.stores.sql.ended_sessions import EndedSessions
from dispatcher.stores.sql.records import Orgs, Role, StoredWebhook
from dispatcher.stores.sql.repository import WebhookRepository
from dispatcher.stores.sql.tokens import ApiTokens
from tests.console.api.fakes import (
    LUMA,
    RIVAL,
    FakeAttempts,
    FakeDeadEvents,
    FakeDesk,
    FakeKeys,
    FakeLanes,
    FakeResends,
    FakeTestEvents,
    FakeWaiting,
)
from tests.console.history_store import FilledHistory, history_in
from tests.stores_sql.conftest import database, empty_url, encryption, url
from tests.stores_sql.examples import plain, secretive

__all__ = ["database", "empty_url", "encryption", "url"]

SECRETS = {"K": "k" * 32, "U": "sqlite+aiosqlite:///x", "S": "canary-client-secret"}


@dataclass(frozen=True)
class Answered:
    """An answer, read."""

    status: int
    headers: Mapping[str, str]
    text: str
    json: Any
    cookies: Mapping[str, str]


class Client:
    """A client of one console with one caller's credentials."""

    def __init__(self, base: str, session: aiohttp.ClientSession, token: str | None = None) -> None:
        self.base, self.session, self.token = base, session, token

    async def __call__(self, method: str, path: str, **options: Any) -> Answered:
        headers = dict(options.pop("headers", {}))
        if self.token is not None:
            headers.setdefault("Authorization", f"Bearer {self.token}")
        async with self.session.request(
            method, self.base + path, headers=headers, allow_redirects=False, **options
        ) as answer:
            text = await answer.text()
            is_json = "json" in answer.content_type and text
            cookies = {name: morsel.value for name, morsel in answer.cookies.items()}
            return Answered(
                answer.status, answer.headers, text, await answer.json(content_type=None) if is_json else None, cookies
            )

    async def get(self, path: str, **options: Any) -> Answered:
        return await self("GET", path, **options)

    async def post(self, path: str, **options: Any) -> Answered:
        return await self("POST", path, **options)


@dataclass
class Console:
    """A running console, its database and what stands in for the rest."""

    server: ConsoleServer
    services: Services
    session: aiohttp.ClientSession
    attempts: FakeAttempts
    lanes: FakeLanes
    waiting: FakeWaiting
    dead_events: FakeDeadEvents
    test_events: FakeTestEvents
    resends: FakeResends
    desk: FakeDesk

    @property
    def base(self) -> str:
        return f"http://127.0.0.1:{self.server.port}"

    async def token(self, role: Role = Role.ADMIN, orgs: Orgs = None, name: str = "somebody") -> str:
        return (await self.services.tokens.create(name, role, orgs=orgs, by="test"))[1]

    async def client(self, role: Role = Role.ADMIN, orgs: Orgs = None, name: str = "somebody") -> Client:
        return Client(self.base, self.session, await self.token(role, orgs, name))

    def stranger(self) -> Client:
        return Client(self.base, self.session)


def no_pages(app: web.Application, services: Services) -> None:
    """A page for tests, in the place of all."""

    async def page(request: web.Request) -> web.Response:
        return web.Response(text="a page")

    app.router.add_get("/", page)
    app.router.add_post("/", page)


StartConsole = Callable[..., Any]


@pytest.fixture
async def history(tmp_path: Path) -> AsyncIterator[FilledHistory]:
    """The history store of the console, empty at first."""
    async with history_in(tmp_path) as made:
        yield made


@pytest.fixture
def start(database: Database, encryption: Encryption, history: FilledHistory) -> StartConsole:
    """Starts a console with settings of its own: `async with start(tokens=False) as console`."""

    @asynccontextmanager
    async def started(public_url: str | None = None, **settings: Any) -> AsyncIterator[Console]:
        settings.setdefault("port", free_ports(1)[0])
        group = {"public_url": public_url, "session_key": {"env": "K"}} | settings

        whole = Settings.model_validate(
            {
                "apiVersion": "dispatcher/v1",
                "kafka": {"bootstrap_servers": "127.0.0.1:1"},
                "webhooks": {"store": "sql", "url": {"env": "U"}},
                "delivery": {"drain_timeout": 1},
                "console": group,
            },
            context=SecretSource(Path("/"), environ=SECRETS).as_context(),
        )
        made = (FakeAttempts(), FakeLanes(), FakeWaiting(), FakeDeadEvents(), FakeTestEvents())
        services = Services(
            whole,
            WebhookRepository(database, encryption),
            AuditLog(database),
            ApiTokens(database),
            EndedSessions(database),
            *made[:4],
            made[3].jobs,
            made[4],
            FakeKeys(),
            history.lookup,
            resends := FakeResends(made[3].jobs),
            desk := FakeDesk(),
        )
        jar = aiohttp.DummyCookieJar()
        async with ConsoleServer(services, no_pages) as server, aiohttp.ClientSession(cookie_jar=jar) as session:
            yield Console(server, services, session, *made, resends, desk)

    return started


@pytest.fixture
async def console(start: StartConsole) -> AsyncIterator[Console]:
    """A console that takes tokens."""
    async with start() as started:
        yield started


@pytest.fixture
async def luma(console: Console) -> StoredWebhook:
    """A webhook with a secret in every place."""
    return await console.services.webhooks.create(secretive(*LUMA, name="Luma"), by="test", orgs=None)


@pytest.fixture
async def rival(console: Console) -> StoredWebhook:
    """Another organisation's."""
    return await console.services.webhooks.create(plain(*RIVAL, name="Rival's own"), by="test", orgs=None)
