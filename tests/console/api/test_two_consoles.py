"""Two consoles as processes on one database: both show and stop a redrive, whichever runs it, and however that ends."""

import asyncio
import signal
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from dispatcher.config.secrets import Secret
from dispatcher.config.settings import Settings
from dispatcher.contract.records import Origin, RetryState
from dispatcher.demo.child_process import free_ports
from dispatcher.kafka.producer import Producer
from dispatcher.stores.sql.database import Database
from dispatcher.stores.sql.encryption import Encryption, new_key
from dispatcher.stores.sql.records import Role
from dispatcher.stores.sql.repository import WebhookRepository
from dispatcher.stores.sql.tokens import ApiTokens
from tests.commands.running import start, write_settings
from tests.console.sources.conftest import producer, settings, until
from tests.console.sources.dead_letter_builders import LUMA, Grave
from tests.integration.brokers import needs_kafka
from tests.kafka import topics
from tests.kafka.apache_kafka import ApacheKafka
from tests.stores_sql.examples import plain

__all__ = ["producer", "settings"]
pytestmark = [needs_kafka, pytest.mark.slow, pytest.mark.timeout(300)]

EVENTS = 700
"""At a hundred a second, several seconds."""


@dataclass
class OneConsole:
    """A console process, and a client of it."""

    configuration: Path
    port: int
    token: str
    process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        self.process = await start("console", "-c", self.configuration)

        async def is_ready() -> bool:
            with suppress(aiohttp.ClientError):
                return (await self.ask("GET", "/dead-events?limit=1"))[1].get("is_complete") is True
            return False

        await until(is_ready, "the console")

    async def end(self, number: signal.Signals) -> None:
        if self.process is not None and self.process.returncode is None:
            self.process.send_signal(number)
            await self.process.communicate()

    async def ask(self, method: str, path: str, document: object = None) -> tuple[int, Any]:
        headers = {"Authorization": f"Bearer {self.token}"}
        async with (
            aiohttp.ClientSession(headers=headers) as client,
            client.request(method, f"http://127.0.0.1:{self.port}/api/v1{path}", json=document) as answer,
        ):
            return answer.status, await answer.json(content_type=None)

    async def order(self) -> tuple[int, Any]:
        """Orders all dead events again."""
        document = {"org": LUMA.org, "sandbox": LUMA.sandbox, "events": {"select": "matching"}}
        return await self.ask("POST", "/dead-events/redrive", document)

    async def job(self, job_id: str) -> Any:
        status, job = await self.ask("GET", f"/redrives/{job_id}")
        assert status == 200, job
        return job

    async def shows(self, job_id: str, state: str, more_than: int = -1) -> Any:
        """Waits until the job is shown in a state, with more sent events than these. Returns it."""

        async def is_shown() -> bool:
            job = await self.job(job_id)
            return job["state"] == state and job["sent"] > more_than

        await until(is_shown, f"a job that is {state}")
        return await self.job(job_id)


@asynccontextmanager
async def consoles(
    tmp_path: Path, url: Secret, settings: Settings, key: str, token: str
) -> AsyncIterator[list[OneConsole]]:
    made = []
    for port in free_ports(2):
        directory = tmp_path / str(port)
        directory.mkdir()
        (directory / "url").write_text(url.reveal_text())
        (directory / "key").write_text(key)
        kafka = {"topic": settings.kafka.topic, "topic_prefix": settings.kafka.prefix}
        webhooks = {"store": "sql", "url": {"file": "url"}, "encryption_keys": [{"file": "key"}]}
        path = write_settings(
            directory, str(settings.kafka.bootstrap_servers), kafka=kafka, webhooks=webhooks,
            history={"store": "none"}, console={"port": port},
        )  # fmt: skip
        made.append(OneConsole(path, port, token))
    try:
        await asyncio.gather(*(one.start() for one in made))
        yield made
    finally:
        await asyncio.gather(*(one.end(signal.SIGKILL) for one in made))


async def test_a_redrive_is_followed_and_stopped_at_another_console_and_outlasts_a_killed_one(
    tmp_path: Path, url: Secret, settings: Settings, producer: Producer, mortal: ApacheKafka
) -> None:
    for name in (f"{settings.kafka.prefix}.{suffix}" for suffix in ("retry.30s", "dead", "history")):
        await topics.create_topic(mortal.bootstrap_servers, name, partitions=1)
    grave = Grave(producer, settings)
    origins = await asyncio.gather(*(grave.dead_letter() for _ in range(EVENTS)))
    database, key = Database(url), new_key()
    await WebhookRepository(database, Encryption([Secret(key.encode())])).create(plain(*LUMA), by="ada", orgs=None)
    _, token = await ApiTokens(database).create("ada", Role.ADMIN, orgs=frozenset({LUMA.org}), by="operator")
    await database.close()
    async with consoles(tmp_path, url, settings, key, token) as (one, another):
        status, first = await one.order()
        assert (status, first["state"]) == (202, "running"), first
        status, refused = await another.order()
        assert (status, refused["type"].rpartition(":")[2], refused["existing"]) == (
            409,
            "already_running",
            f"/api/v1/redrives/{first['id']}",
        )
        await another.shows(first["id"], "running", more_than=0)
        assert (await another.ask("POST", f"/redrives/{first['id']}/stop"))[1]["stopping"] is True
        stopped = await one.shows(first["id"], "stopped", more_than=0)
        assert stopped["sent"] < EVENTS

        _, second = await one.order()
        await another.shows(second["id"], "running", more_than=0)
        await one.end(signal.SIGKILL)
        lost = await another.shows(second["id"], "failed", more_than=0)
        assert lost["problem"].startswith("interrupted: the console that ran it was restarted")
        await one.start()
        listed = (await one.ask("GET", "/redrives"))[1]["items"]
        assert listed == [lost, stopped]

        _, third = await one.order()
        await another.shows(third["id"], "running")
        await one.end(signal.SIGTERM)
        ended = await another.job(third["id"])
        assert (ended["state"], "the console was stopped" in ended["problem"]) == ("failed", True), ended

        _, last = await another.order()
        await another.shows(last["id"], "done")
    records = await topics.read_all(mortal.bootstrap_servers, f"{settings.kafka.prefix}.retry.30s")
    sent: Counter[Origin] = Counter(RetryState.of(record).origin for record in records)
    assert sent.keys() == set(origins)
    assert sent.total() - len(sent) <= 100, "the killed console's last batch"
