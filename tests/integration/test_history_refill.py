"""A store that lost entries gets them again from the topic, though the group has committed them."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from uuid import uuid4

import pytest
from prometheus_client import REGISTRY
from sqlalchemy import text

from dispatcher.config.secrets import Secret
from dispatcher.config.settings import HistorySettings, Settings
from dispatcher.errors import StoreUnavailable
from dispatcher.history.worker import HistoryWorker
from dispatcher.stores.sql.database import Database
from dispatcher.stores.sql.history_schema import metadata
from dispatcher.stores.sql.history_store import HistoryStore
from tests.conftest import Broker
from tests.integration.brokers import needs_kafka
from tests.integration.harness import until
from tests.integration.test_history_reader import PARTITIONS, produce, running
from tests.kafka import topics
from tests.stores_sql.conftest import empty_url

__all__ = ["empty_url"]

pytestmark = pytest.mark.timeout(300)


class World:
    """A topic, and a worker that fills a store from it."""

    def __init__(self, kafka: Broker, url: Secret) -> None:
        self._kafka, self._url = kafka, url
        self._written = 0
        group_id = f"refilled-{uuid4().hex[:8]}"
        self.topic = f"{group_id}.history"
        values = {"bootstrap_servers": kafka.bootstrap_servers, "group_id": group_id, "session_timeout": 6}
        document = {"apiVersion": "dispatcher/v1", "kafka": values, "webhooks": {"path": "/x"}}
        self._settings = Settings.model_validate(document)
        self.database = self._opened()

    def _opened(self) -> Database:
        return Database(self._url, create=True, setting="history.url")

    async def reopen(self) -> None:
        await self.database.close()
        self.database = self._opened()

    async def produce(self, count: int) -> None:
        await produce(self._kafka, self.topic, self._written, count)
        self._written += count

    @asynccontextmanager
    async def worker(self) -> AsyncIterator[None]:
        async with running(
            HistoryWorker(self._settings, HistoryStore(self.database, HistorySettings.model_validate({})))
        ):
            yield

    async def complete(self) -> None:
        """Returns when the store has every entry that was ever written, and has counted it."""

        async def has_all() -> bool:
            try:
                async with self.database.read() as connection:
                    counted = await connection.execute(text("SELECT sum(events) FROM history_counts"))
                    stored = await connection.execute(text("SELECT count(*) FROM history_entries"))
                    return bool(stored.scalar_one() == self._written == counted.scalar_one())
            except StoreUnavailable:
                return False

        await until(has_all, f"{self._written} entries in the store", 60)

    async def committed(self) -> None:
        """Returns when the worker's group has committed the topic's end, which follows the write to the store."""

        async def has_all() -> bool:
            ends = await topics.end_offsets(self._kafka.bootstrap_servers, self.topic)
            found = await topics.committed(self._kafka.bootstrap_servers, self.topic)
            return {tp.partition: state.offset for tp, state in found.items()} == {
                partition: end for partition, end in ends.items() if end
            }

        await until(has_all, "the end of the topic to be committed", 60)

    async def execute(self, *statements: str) -> None:
        async with self.database.write() as connection:
            for statement in statements:
                await connection.execute(text(statement))


@pytest.fixture
async def world(kafka: Broker, empty_url: Secret) -> AsyncIterator[World]:
    made = World(kafka, empty_url)
    await topics.create_topic(kafka.bootstrap_servers, made.topic, partitions=PARTITIONS)
    yield made
    await made.database.close()


async def drop(world: World) -> None:
    await world.execute(*(f"DROP TABLE {name}" for name in metadata.tables))


async def lose(world: World) -> None:
    if world.database.is_postgresql:
        await drop(world)
        return
    path = Path(world.database.name.removeprefix("SQLite at "))
    await world.database.close()
    for suffix in ("", "-wal", "-shm"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)
    await world.reopen()


_SAVED = ("history_entries", "history_counts", "history_positions")


async def back_up(world: World) -> None:
    await world.execute(*(f"CREATE TABLE saved_{name} AS SELECT * FROM {name}" for name in _SAVED))


async def restore(world: World) -> None:
    await world.execute(
        *(f"DELETE FROM {name}" for name in _SAVED),
        *(f"INSERT INTO {name} SELECT * FROM saved_{name}" for name in _SAVED),
    )


def repeated() -> float:
    return REGISTRY.get_sample_value("dispatcher_history_stored_total", {"result": "repeated"}) or 0.0


@pytest.mark.parametrize("damage", [lose, restore])
async def test_entries_that_a_store_has_lost_are_stored_again(
    world: World, damage: Callable[[World], Awaitable[None]]
) -> None:
    async with world.worker():
        await world.produce(10)
        await world.complete()
    await back_up(world)
    async with world.worker():
        await world.produce(30)
        await world.complete()
    await damage(world)
    async with world.worker():
        await world.complete()
        await world.produce(3)
        await world.complete()


@pytest.mark.parametrize("damage", [drop, restore])
async def test_a_running_worker_notices_it_with_the_next_record(
    world: World, damage: Callable[[World], Awaitable[None]]
) -> None:
    async with world.worker():
        await world.produce(10)
        await world.complete()
        await back_up(world)
        await world.produce(30)
        await world.complete()
        await damage(world)
        await world.produce(1)
        await world.complete()


@needs_kafka
async def test_a_store_of_a_version_without_positions_is_not_filled_again(world: World) -> None:
    async with world.worker():
        await world.produce(20)
        await world.complete()
        await world.committed()
    before = repeated()
    await world.execute("DROP TABLE history_positions")
    for _ in range(2):
        async with world.worker():
            await world.produce(4)
            await world.complete()
            await world.committed()
    assert repeated() == before
