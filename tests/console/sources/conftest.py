"""Topics of each test's own on the broker that tests may stop."""

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import pytest

from dispatcher.config.kafka_settings import KafkaSettings
from dispatcher.config.settings import Settings
from dispatcher.kafka.producer import Producer
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
