"""Members of a consumer group in the tests' own process, so that what the client does can be looked at and broken."""

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager, suppress

from aiokafka import TopicPartition
from aiokafka.errors import KafkaError

from dispatcher.config.kafka_settings import KafkaSettings
from dispatcher.kafka.membership import Assignments, GroupClient, join
from tests.integration.harness import Stage

SESSION_S = 6


class Owner:
    """Reads its partitions from the start."""

    def __init__(self) -> None:
        self.owned: set[TopicPartition] = set()
        self.read: list[bytes] = []
        self.client: GroupClient | None = None
        self._sought: set[TopicPartition] = set()

    async def assigned(self, tps: Iterable[TopicPartition], /) -> None:
        self.owned, self._sought = set(tps), set()

    async def revoked(self, tps: Iterable[TopicPartition], /) -> None:
        self.owned -= set(tps)

    def heard(self, at: float, /) -> None:
        """Ignores heartbeats."""

    async def poll(self) -> None:
        while True:
            try:
                await self._poll_once()
            except KafkaError:
                await asyncio.sleep(0.1)

    async def _poll_once(self) -> None:
        assert self.client is not None
        for tp in self.owned - self._sought:
            self.client.seek(tp, 0)
        self._sought = set(self.owned)
        if not self.owned:
            self.client.raise_coordination_error()
            await asyncio.sleep(0.1)
            return
        for records in (await self.client.getmany(*self.owned, timeout_ms=100, max_records=10)).values():
            self.read += [record.value for record in records if record.value is not None]


def settings_of(scene: Stage, topic: str) -> KafkaSettings:
    """Settings of a group that is named after its topic, with a short session."""
    return KafkaSettings.model_validate(
        {"bootstrap_servers": scene.bootstrap_servers, "group_id": topic, "session_timeout": f"{SESSION_S}s"}
    )


@asynccontextmanager
async def member(scene: Stage, topic: str) -> AsyncIterator[Owner]:
    """A member of that group, which polls."""
    made = Owner()
    made.client = await join(settings_of(scene, topic), [topic], topic, Assignments(made))
    polling = asyncio.create_task(made.poll())
    try:
        yield made
    finally:
        polling.cancel()
        with suppress(asyncio.CancelledError):
            await polling
        await made.client.stop()
