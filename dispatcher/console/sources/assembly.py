"""Every source of the console's facts, built once; its tasks belong to whoever opens it."""

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
    """What `parts.Parts` needs beside the stores. `run` is a task of the server's."""

    attempts: AttemptLogReader
    lanes: RunningLanes
    waiting: RetryBacklog
    dead_events: DeadLetterReader
    test_events: SampleSender
    keys: PublishedKeys
    store: SqlStore

    async def run(self) -> None:
        """Follow the topics and the store, and carry redrives out, until cancelled. Never ends by itself."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self.attempts.run(), name="attempt log")
            tasks.create_task(self.dead_events.run(), name="dead letters")
            tasks.create_task(self.store.run(), name="webhook source")


@asynccontextmanager
async def open_sources(settings: Settings) -> AsyncIterator[Sources]:
    """Open them; neither broker nor database need be there.

    Raises:
        ConfigError: as `open_sql_store`.
    """
    async with AsyncExitStack() as parts:
        store = await parts.enter_async_context(open_sql_store(settings.webhooks))
        lanes = await parts.enter_async_context(RunningLanes(settings.console))
        waiting = RetryBacklog(settings)
        parts.push_async_callback(waiting.close)
        yield Sources(
            attempts=AttemptLogReader(settings),
            lanes=lanes,
            waiting=waiting,
            dead_events=DeadLetterReader(settings),
            test_events=SampleSender(settings),
            keys=PublishedKeys(store),
            store=store,
        )
