"""Builds every source of the console's data once. The caller runs and owns their tasks."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

from dispatcher.config.settings import Settings
from dispatcher.console.sources.attempts import AttemptLogReader
from dispatcher.console.sources.dead_events import DeadLetterReader
from dispatcher.console.sources.jwks import PublishedKeys
from dispatcher.console.sources.lanes import RunningLanes
from dispatcher.console.sources.test_sender import SampleSender
from dispatcher.console.sources.waiting import RetryBacklog
from dispatcher.stores.sql.store import SqlStore, open_sql_store


@dataclass(frozen=True, slots=True)
class Sources:
    """The sources that `services.Services` consists of besides the stores. The caller runs `run` as a task."""

    attempts: AttemptLogReader
    lanes: RunningLanes
    waiting: RetryBacklog
    dead_events: DeadLetterReader
    test_events: SampleSender
    keys: PublishedKeys
    store: SqlStore

    async def run(self) -> None:
        """Tails the topics, watches the store and runs redrives until cancelled. Never returns."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self.attempts.run(), name="attempt log")
            tasks.create_task(self.dead_events.run(), name="dead letters")
            tasks.create_task(self.store.run(), name="webhook source")


@asynccontextmanager
async def open_sources(settings: Settings) -> AsyncIterator[Sources]:
    """Opens the sources. Neither the broker nor the database needs to be available.

    Raises:
        ConfigError: see `open_sql_store`.
    """
    async with AsyncExitStack() as stack:
        store = await stack.enter_async_context(open_sql_store(settings.webhooks))
        lanes = await stack.enter_async_context(RunningLanes(settings.console))
        waiting = RetryBacklog(settings)
        stack.push_async_callback(waiting.close)
        yield Sources(
            attempts=AttemptLogReader(settings),
            lanes=lanes,
            waiting=waiting,
            dead_events=DeadLetterReader(settings),
            test_events=SampleSender(settings),
            keys=PublishedKeys(store),
            store=store,
        )
