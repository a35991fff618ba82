"""Topics of each test's own on the broker that tests may stop, and the database of the jobs."""

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from dispatcher.config.kafka_settings import KafkaSettings
from dispatcher.config.secrets import Secret
from dispatcher.config.settings import Settings
from dispatcher.console.sources.dead_event_index import DeadEventIndex
from dispatcher.console.sources.dead_events import DeadLetterReader
from dispatcher.console.sources.redrive_jobs import RedriveJobs
from dispatcher.kafka.producer import Producer
from dispatcher.stores.sql.database import Database
from dispatcher.stores.sql.jobs import JobStore
from dispatcher.stores.sql.migrate import upgrade
from tests.kafka.apache_kafka import ApacheKafka

_numbers = itertools.count()


@pytest.fixture
def settings(mortal: ApacheKafka) -> Settings:
    """Settings of a console with topics of its own."""
    return settings_for(mortal.bootstrap_servers, f"console-{next(_numbers)}")


@pytest.fixture
async def producer(settings: Settings) -> AsyncIterator[Producer]:
    async with Producer(settings.kafka) as made:
        yield made


@pytest.fixture
async def job_store(tmp_path: Path) -> AsyncIterator[JobStore]:
    """The jobs in a database of the test's own."""
    async with job_store_in(tmp_path) as made:
        yield made


@asynccontextmanager
async def job_store_in(directory: Path) -> AsyncIterator[JobStore]:
    """Jobs in a SQLite file of the directory."""
    url = Secret(f"sqlite+aiosqlite:///{directory / 'webhooks.db'}".encode())
    await upgrade(url)
    database = Database(url)
    try:
        yield JobStore(database)
    finally:
        await database.close()


def reader_of(settings: Settings, store: JobStore, memory: DeadEventIndex | None = None) -> DeadLetterReader:
    """The dead events of one console process, and its jobs."""
    return DeadLetterReader(settings, RedriveJobs(settings.kafka, store), memory)


def settings_for(bootstrap_servers: str, topic: str, **groups: Any) -> Settings:
    kafka = KafkaSettings(bootstrap_servers=bootstrap_servers, topic=topic, topic_prefix=topic).model_dump()
    webhooks = {"store": "yaml", "path": "/nowhere"}
    return Settings.model_validate(
        {"apiVersion": "dispatcher/v1", "kafka": kafka, "webhooks": webhooks, "history": {"store": "none"}} | groups
    )


@asynccontextmanager
async def running(*works: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Tasks that run by the side, and have not ended by themselves at the end."""
    tasks = [asyncio.create_task(work) for work in works]
    try:
        yield
        assert not any(task.done() for task in tasks), tasks
    finally:
        for task in tasks:
            task.cancel()
        for task in tasks:
            with contextlib.suppress(asyncio.CancelledError):
                await task


async def until(condition: Callable[[], object | Awaitable[object]], what: str, within_s: float = 60) -> None:
    """Return when it holds."""
    try:
        async with asyncio.timeout(within_s):
            while True:
                holds = condition()
                if await holds if isinstance(holds, Awaitable) else holds:
                    return
                await asyncio.sleep(0.05)
    except TimeoutError:
        raise AssertionError(f"waited {within_s} s in vain for {what}") from None
