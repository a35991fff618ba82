"""Millions of history entries through the worker, with kills and a restarted database, and searches in the result.

For SQLite and PostgreSQL: entries are written to the topic, a tenth of the records twice. `dispatcher history` stores
them; it is killed ten times and the server is restarted once. Afterwards the store is compared with what was written,
entry by entry. PostgreSQL then gets as many entries again, past the worker, and is searched: ten million rows.
`python -m benchmarks.history` runs this scenario alone.
"""

import asyncio
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml
from aiokafka import AIOKafkaProducer, TopicPartition
from sqlalchemy import text

from dispatcher.config.secrets import Secret
from dispatcher.config.settings import HistorySettings
from dispatcher.contract.history import HistoryEntry, HistoryOutcome, HistoryRecord, kept_as
from dispatcher.contract.tenant import TenantKey
from dispatcher.demo.child_process import ChildProcess, free_ports
from dispatcher.errors import StoreUnavailable
from dispatcher.kafka.topics import history_topic
from dispatcher.stores.sql.database import Database
from dispatcher.stores.sql.history_rows import rows_of
from dispatcher.stores.sql.history_schema import KEPT
from dispatcher.stores.sql.history_search import HistoryQuery, HistorySearch
from dispatcher.stores.sql.history_store import HistoryStore
from tests.history_records import record_of
from tests.kafka import topics
from tests.kafka.apache_kafka import ApacheKafka
from tests.kafka.server_properties import KafkaOptions
from tests.stores_sql.postgres import Postgres

ENTRIES: Final = int(os.environ.get("HISTORY_ENTRIES", "5000000"))
"""Smaller numbers help while the benchmark itself is changed."""
TENANTS: Final = 2_000
KILLS: Final = 10
PARTITIONS: Final = 4
A_RECORD: Final = 100
"""Entries of one record: what dispatchers write under load."""
SPREAD_MS: Final = 20 * 3_600_000
"""Age of the oldest entry."""
MOST_S: Final = 3_600
SEARCHED: Final = 2
"""Times as many entries are in the PostgreSQL that is searched: 10 million."""
SEARCH_GOAL_MS: Final = 200
_BATCH: Final = 10_000
SEARCHES: Final = 30
"""Searches of each kind, each for another value."""
_OUTCOMES: Final = (
    HistoryOutcome.ATTEMPT, HistoryOutcome.DELIVERED, HistoryOutcome.DELIVERED, HistoryOutcome.DELIVERED,
    HistoryOutcome.SKIPPED, HistoryOutcome.PARKED, HistoryOutcome.DEAD,
)  # fmt: skip
_REASON: Final = {
    HistoryOutcome.ATTEMPT: "http_5xx", HistoryOutcome.DELIVERED: "http_2xx", HistoryOutcome.SKIPPED: "channel",
    HistoryOutcome.PARKED: "attempt_failed", HistoryOutcome.DEAD: "rejected",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Made:
    """The entries of one run: each is computed from its number, so that the ledger needs no memory."""

    count: int
    newest_ms: int
    tenants: int = TENANTS

    def entry(self, number: int) -> HistoryEntry:
        chance = (number * 2_654_435_761) % 2**32
        event, outcome = number // 3, _OUTCOMES[chance % len(_OUTCOMES)]
        return HistoryEntry(
            self.newest_ms - chance % SPREAD_MS, outcome, *self.tenant(event), reason=_REASON[outcome],
            webhook_id=f"msg_{event:032x}", event_id=f"event-{event}", request_id=f"request-{event // 2}",
            message_execution_id=f"execution-{event // 50}", campaign_id=f"campaign-{event % 997}",
            topic="delivery-events", partition=event % 8, offset=event // 8,
            channel=self.channel(event), message_status=self.status(event),
            recipient=f"{event // 7:032x}", attempt=1, duration_ms=12.5, status=503,
        )  # fmt: skip

    def channel(self, event: int) -> str:
        """Returns an event's channel: three quarters are e-mail, one event in 1,009 is a push."""
        return "push" if event % 1009 == 0 else "sms" if event % 4 == 1 else "email"

    def status(self, event: int) -> str:
        """Returns an event's message status: one event in 53 bounces, one in 2,003 is denied."""
        return "denylist" if event % 2003 == 0 else "bounce" if event % 53 == 0 else "sent"

    def tenant(self, event: int) -> TenantKey:
        """Returns an event's tenant: a third of the events belong to one of 20."""
        return self.tenant_number(event % (20 if event % 3 == 0 else self.tenants))

    def tenant_number(self, number: int) -> TenantKey:
        return TenantKey(f"org-{number:05}@AdobeOrg", "prod")


@dataclass(slots=True)
class Worker:
    """`dispatcher history`, its group, and how often it was killed."""

    child: ChildProcess
    bootstrap_servers: str
    group: str
    topic: str

    async def read(self) -> int:
        """Returns how many records the group has finished."""
        found = await topics.committed(self.bootstrap_servers, self.group)
        return sum(max(0, found[tp].offset) for tp in map(self._partition, range(PARTITIONS)) if tp in found)

    async def wait_for(self, records: int) -> None:
        """Waits until that many records are finished.

        Raises:
            RuntimeError: the worker ended, or it took an hour.
        """
        give_up_at = time.monotonic() + MOST_S
        while await self.read() < records:
            if not self.child.running or time.monotonic() > give_up_at:
                raise RuntimeError(f"waited in vain for {records} records:\n{self.child.log_tail()}")
            await asyncio.sleep(0.5)

    def _partition(self, number: int) -> TopicPartition:
        return TopicPartition(self.topic, number)


async def measure(entries: int = ENTRIES, kinds: tuple[str, ...] = ("sqlite", "postgresql")) -> dict[str, Any]:
    """Entries a second and search times of each kind of store.

    Raises:
        RuntimeError: a store differs from what was written.
    """
    found: dict[str, Any] = {"entries": entries, "kills": KILLS}
    options = KafkaOptions(partitions=PARTITIONS, message_max_bytes=1 << 21, heap_mb=512)
    with tempfile.TemporaryDirectory(prefix="bench-history-") as name:
        async with ApacheKafka(options) as kafka:
            made = Made(entries, int(time.time() * 1000))
            topic = history_topic("history")
            await topics.create_topic(kafka.bootstrap_servers, topic, partitions=PARTITIONS)
            records = await _produce(kafka.bootstrap_servers, topic, made)
            for kind in kinds:
                found[kind] = await _stored(kind, kafka.bootstrap_servers, Path(name), made, records)
    return found


async def _produce(bootstrap_servers: str, topic: str, made: Made) -> int:
    """Writes all entries, a tenth of the records twice. Returns the number of records."""
    producer = AIOKafkaProducer(
        bootstrap_servers=bootstrap_servers, compression_type="zstd", max_batch_size=1 << 18, linger_ms=20
    )
    await producer.start()
    written = 0
    try:
        for first in range(0, made.count, A_RECORD):
            entries = [made.entry(number) for number in range(first, min(first + A_RECORD, made.count))]
            value = record_of(7, first, entries)
            for _repeat in range(2 if first // A_RECORD % 10 == 0 else 1):
                await producer.send(topic, value, partition=written % PARTITIONS)
                written += 1
        await producer.flush()
    finally:
        await producer.stop()
    return written


@asynccontextmanager
async def _database(kind: str, directory: Path) -> AsyncIterator[tuple[str, Postgres | None]]:
    """Yields the URL of an empty database, and its server if it has one."""
    if kind == "sqlite":
        yield f"sqlite+aiosqlite:///{directory / 'history.db'}", None
        return
    with Postgres() as server:
        yield await server.fresh_database(), server


async def _stored(kind: str, bootstrap_servers: str, directory: Path, made: Made, records: int) -> dict[str, Any]:
    chance = random.Random(11)
    async with AsyncExitStack() as opened:
        url, server = await opened.enter_async_context(_database(kind, directory))
        worker = _worker(kind, bootstrap_servers, directory, url)
        opened.callback(worker.child.kill)
        began = time.monotonic()
        worker.child.start()
        for number in range(1, KILLS + 1):
            await worker.wait_for(records * number // (KILLS + 1))
            if server is not None and number == KILLS // 2:
                await server.restart()
            await asyncio.sleep(chance.random() / 4)
            worker.child.kill()
            worker.child.start()
        await worker.wait_for(records)
        took = time.monotonic() - began
        worker.child.kill()
        database = Database(Secret(url.encode()), create=True, setting="history.url")
        opened.push_async_callback(database.close)
        problems = await differences(database, made)
        if problems:
            raise RuntimeError(f"{kind}: the store differs from what was written: {problems}")
        searched = made
        if kind == "postgresql":
            searched = Made(made.count * SEARCHED, made.newest_ms, made.tenants)
            store = HistoryStore(database, HistorySettings.model_validate({}))
            await fill(store, searched, made.count)
            async with database.write(MOST_S) as connection:
                await connection.execute(text("SET LOCAL statement_timeout = 0"))
                await connection.execute(text("ANALYZE history_entries"))  # as autovacuum does, sooner or later
        taken = await _search_ms(database, searched)
        return {
            "entries_per_second_with_kills": round(made.count / took),
            "searched_entries": searched.count,
            "search_ms": taken,
            "slowest_search_ms": max(one["max"] for one in taken.values()),
            "searches_over_goal": [name for name, one in taken.items() if one["max"] > SEARCH_GOAL_MS],
        }


async def fill(store: HistoryStore, made: Made, first: int = 0) -> None:
    """Stores the entries from this number on, past topic and worker."""
    for begin in range(first, made.count, _BATCH):
        entries = [made.entry(number) for number in range(begin, min(begin + _BATCH, made.count))]
        await store.write(rows_of(HistoryRecord(1, 7, begin, entries))[0])


def _worker(kind: str, bootstrap_servers: str, directory: Path, url: str) -> Worker:
    own, webhooks = directory / "own", directory / "webhooks"
    own.mkdir(exist_ok=True)
    webhooks.mkdir(exist_ok=True)
    secret, key = own / f"{kind}-url", own / "recipient-key"
    secret.write_text(url)
    key.write_bytes(b"k" * 32)
    group = f"history-{kind}"
    settings = {
        "apiVersion": "dispatcher/v1",
        "kafka": {"bootstrap_servers": bootstrap_servers, "topic": "delivery-events", "topic_prefix": "history",
                  "group_id": group, "session_timeout": "6s"},
        "webhooks": {"path": str(webhooks)},
        "history": {"url": {"file": str(secret)}, "recipient_key": {"file": str(key)}},
        "ops": {"host": "127.0.0.1", "port": free_ports(1)[0]},
        "log": {"level": "warning"},
    }  # fmt: skip
    path = directory / f"{kind}.yaml"
    path.write_text(yaml.safe_dump(settings))
    command = [sys.executable, "-m", "dispatcher", "history", "-c", str(path)]
    child = ChildProcess(command, log=directory / f"{kind}.log")
    return Worker(child, bootstrap_servers, f"{group}.history", history_topic("history"))


async def differences(database: Database, made: Made) -> list[str]:
    """Compares the store with what was written, row by row. Returns at most ten differences."""
    found: list[str] = []
    seen = bytearray(made.count)
    columns = 'number, kept, "at", org, outcome, reason, webhook_id, request_id, campaign_id, recipient'
    async with database.read(MOST_S) as connection:
        # Unsorted: millions of rows can't be sorted within the time that the database allows a statement.
        rows = await connection.stream(text(f"SELECT {columns} FROM history_entries"))
        async for row in rows:
            one = made.entry(row[0])
            wanted = (KEPT[kept_as(one)], one.at, one.org, one.outcome.value, one.reason, one.webhook_id,
                      one.request_id, one.campaign_id, one.recipient)  # fmt: skip
            if tuple(row[1:]) != wanted or seen[row[0]]:
                found.append(f"{row[0]} is stored {seen[row[0]] + 1} times, as {tuple(row[1:])}")
            seen[row[0]] = 1
            if len(found) == 10:
                return found
        counted = int((await connection.execute(text("SELECT sum(events) FROM history_counts"))).scalar_one())
    if 0 in seen or counted != made.count:
        found.append(f"{made.count} entries were written, {sum(seen)} are stored and {counted} counted")
    return found


def _queries(made: Made, event: int) -> Mapping[str, HistoryQuery]:
    tenant, since = made.tenant(event), made.newest_ms / 1000 - 3600
    return {
        "request id": HistoryQuery(any_id=f"request-{event // 2}"),
        "webhook-id": HistoryQuery(any_id=f"msg_{event:032x}"),
        "message execution id": HistoryQuery(any_id=f"execution-{event // 50}"),
        "recipient": HistoryQuery(recipients=(f"{event // 7:032x}",)),
        "campaign": HistoryQuery(any_id=f"campaign-{event % 997}"),
        "unknown id": HistoryQuery(any_id=f"unknown-{event}"),
        "tenant": HistoryQuery(tenant=tenant),
        "tenant, an hour": HistoryQuery(tenant=tenant, since=since),
        "tenant, dead": HistoryQuery(tenant=tenant, outcomes=frozenset({HistoryOutcome.DEAD})),
        "tenant, reason": HistoryQuery(tenant=tenant, reasons=frozenset({"http_5xx"})),
        "tenant, campaign": HistoryQuery(tenant=tenant, campaign_id=f"campaign-{event % 997}"),
        "tenant, common status": HistoryQuery(tenant=tenant, message_statuses=frozenset({"sent"})),
        "tenant, rare status": HistoryQuery(tenant=tenant, message_statuses=frozenset({"denylist"})),
        "tenant, two statuses": HistoryQuery(tenant=tenant, message_statuses=frozenset({"sent", "bounce"})),
        "tenant, common channel": HistoryQuery(tenant=tenant, channels=frozenset({"email"})),
        "tenant, rare channel": HistoryQuery(tenant=tenant, channels=frozenset({"push"})),
        "tenant, status and channel": HistoryQuery(
            tenant=tenant, message_statuses=frozenset({"bounce"}), channels=frozenset({"sms"})
        ),
        "tenant, unknown channel": HistoryQuery(tenant=tenant, channels=frozenset({"letter"})),
        "tenant, nothing matches": HistoryQuery(tenant=tenant, reasons=frozenset({"unknown"})),
    }


async def _search_ms(database: Database, made: Made) -> dict[str, dict[str, float]]:
    """Returns median and maximum of each kind of search, the first page of it."""
    search, chance = HistorySearch(database), random.Random(5)
    taken: dict[str, list[float]] = {}
    for _ in range(SEARCHES):
        event = chance.randrange(made.count // 3)
        for name, query in _queries(made, event).items():
            began = time.perf_counter()
            with suppress(StoreUnavailable):  # too slow: it counts with the time it was given
                await search.search(query, orgs=None)
            taken.setdefault(name, []).append((time.perf_counter() - began) * 1000)
    return {
        name: {"median": round(statistics.median(times), 1), "max": round(max(times), 1)}
        for name, times in taken.items()
    }


if __name__ == "__main__":
    print(yaml.safe_dump(asyncio.run(measure(kinds=tuple(sys.argv[1:]) or ("sqlite", "postgresql"))), sort_keys=False))
