"""The history worker under the worst: killed again and again, its database restarted, its records repeated.

Afterwards the store equals the ledger: every entry once, every count and all evidence as if nothing had happened.
"""

import asyncio
import random
import time
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import pytest
from aiokafka import AIOKafkaProducer
from sqlalchemy import text

from dispatcher.config.secrets import Secret
from dispatcher.contract.fleet_state import StateEvidence, decode_evidence, evidence_by_tenant
from dispatcher.contract.history import HistoryEntry, HistoryOutcome
from dispatcher.contract.tenant import TenantKey
from dispatcher.errors import StoreUnavailable
from dispatcher.stores.sql.database import Database
from tests.history_records import record_of
from tests.integration.brokers import needs_kafka
from tests.integration.harness import Stage, until
from tests.integration.test_history import Worker, history_settings, topic_of
from tests.kafka import topics
from tests.stores_sql.postgres import Postgres

pytestmark = [needs_kafka, pytest.mark.timeout(300)]

A_RECORD = 170
"""Entries of a record: a turn writes 25,500, so that two turns are a hundredth of what `benchmarks.history` writes."""
_TENANTS = [TenantKey(f"org-{number}", "prod") for number in range(30)]


@dataclass
class Ledger:
    """What was written to the topic, without repeats."""

    entries: list[HistoryEntry] = field(default_factory=list)

    def rows(self) -> Counter[tuple[str, str, str]]:
        return Counter((one.org or "", one.outcome.value, one.webhook_id or "") for one in self.entries)

    def evidence(self) -> dict[TenantKey, StateEvidence]:
        return dict(evidence_by_tenant(self.entries))


def made(chance: random.Random, count: int, first: int) -> list[HistoryEntry]:
    now = int(time.time() * 1000)
    return [
        HistoryEntry(
            now - chance.randrange(3_600_000), chance.choice(list(HistoryOutcome)), *chance.choice(_TENANTS),
            reason=chance.choice(("http_5xx", "suspended", "channel")), webhook_id=f"msg_{first + number}",
            channel="email", status=503, recipient=f"{number % 50:032x}",
        )
        for number in range(count)
    ]  # fmt: skip


async def produce(scene: Stage, ledger: Ledger, chance: random.Random, records: int) -> None:
    """Writes records to the history topic, some of them twice, as a producer does that lost an acknowledgement."""
    producer = AIOKafkaProducer(bootstrap_servers=scene.bootstrap_servers)
    await producer.start()
    try:
        for _ in range(records):
            first = len(ledger.entries)
            entries = made(chance, A_RECORD, first)
            ledger.entries += entries
            value = record_of(7, first, entries)
            for _repeat in range(1 + (chance.random() < 0.2)):
                await producer.send(topic_of(scene), value, key=b"%d" % chance.randrange(256))
        await producer.flush()
    finally:
        await producer.stop()


class Store:
    """Looks into the worker's database."""

    def __init__(self, url: bytes) -> None:
        self._database = Database(Secret(url), create=True, setting="history.url")

    async def size(self) -> int:
        try:
            async with self._database.read() as connection:
                return int((await connection.execute(text("SELECT count(*) FROM history_entries"))).scalar_one())
        except StoreUnavailable:
            return 0  # not made yet, or being restarted

    async def rows(self) -> Counter[tuple[str, str, str]]:
        async with self._database.read() as connection:
            found = await connection.execute(text("SELECT org, outcome, webhook_id FROM history_entries"))
            return Counter((row[0], row[1], row[2]) for row in found)

    async def counted(self) -> int:
        async with self._database.read() as connection:
            return int((await connection.execute(text("SELECT sum(events) FROM history_counts"))).scalar_one())

    async def evidence(self) -> dict[TenantKey, StateEvidence]:
        async with self._database.read() as connection:
            found = await connection.execute(text("SELECT org, sandbox, evidence FROM history_tenants"))
            return {TenantKey(row[0], row[1]): decode_evidence(row[2]) for row in found}

    async def close(self) -> None:
        await self._database.close()


@pytest.fixture(params=["sqlite", "postgresql"])
async def url(request: pytest.FixtureRequest, scene: Stage) -> AsyncIterator[tuple[bytes, Postgres | None]]:
    if request.param == "sqlite":
        yield f"sqlite+aiosqlite:///{scene.directory / 'history.db'}".encode(), None
        return
    server: Postgres = request.getfixturevalue("postgres")
    yield (await server.fresh_database()).encode(), server


@pytest.mark.parametrize("kills", [2, pytest.param(10, marks=pytest.mark.all_faults)])
async def test_a_killed_worker_and_a_restarted_database_lose_and_double_nothing(
    scene: Stage, url: tuple[bytes, Postgres | None], kills: int
) -> None:
    address, server = url
    chance, ledger, store = random.Random(kills), Ledger(), Store(address)
    settings = history_settings(scene)
    (scene.directory / "history-url").write_bytes(address)
    await topics.create_topic(scene.bootstrap_servers, topic_of(scene), partitions=4)
    scene.mount([])
    worker = Worker(scene, settings, kafka={"session_timeout": "3s"})  # a killed one keeps its partitions until then
    try:
        worker.start()
        for turn in range(kills):
            before = await store.size()
            await produce(scene, ledger, chance, 150)

            async def grew(than: int = before) -> bool:
                return await store.size() > than

            await until(grew, "new entries in the store", 90)
            if server is not None and turn == 1:
                await server.restart()
            await asyncio.sleep(chance.random() / 4)
            worker.kill9()
            worker.start()

        async def complete() -> bool:
            return await store.size() >= len(ledger.entries)

        await until(complete, "the store to be complete", 120)
        assert await store.rows() == ledger.rows()
        assert await store.counted() == len(ledger.entries)
        assert await store.evidence() == ledger.evidence()
    finally:
        worker.kill9()
        await store.close()
