"""The reader of the history topic on a broker: its lag, and the position at which it begins."""

import asyncio
import contextlib
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka import AIOKafkaProducer, TopicPartition
from aiokafka.consumer.group_coordinator import GroupCoordinator
from aiokafka.consumer.subscription_state import SubscriptionState
from prometheus_client import REGISTRY

from dispatcher.config.kafka_settings import KafkaSettings
from dispatcher.contract.history import HistoryEntry, HistoryOutcome, HistoryRecord
from dispatcher.contract.history_positions import Move, StoredPositions, TopicAndPartition
from dispatcher.contract.records import Record
from dispatcher.errors import StoreUnavailable
from dispatcher.history.worker import HistoryWorker
from dispatcher.kafka import history_reader
from dispatcher.kafka.commit_metadata import Fingerprint
from dispatcher.kafka.history_reader import HistoryReader, lag_of
from dispatcher.kafka.log_sources import LogSources
from dispatcher.telemetry import metrics
from tests.conftest import Broker
from tests.history_records import record_of
from tests.integration.harness import until
from tests.kafka import topics

PARTITIONS = 2


async def produce(kafka: Broker, topic: str, first: int, count: int) -> None:
    """Writes records with one entry each, alternately to the partitions."""
    producer = AIOKafkaProducer(bootstrap_servers=kafka.bootstrap_servers)
    await producer.start()
    try:
        for number in range(first, first + count):
            entry = HistoryEntry(int(time.time() * 1000), HistoryOutcome.DEAD, "A", "b", webhook_id=f"msg_{number}")
            await producer.send_and_wait(topic, record_of(1, number, [entry]), key=b"1", partition=number % PARTITIONS)
    finally:
        await producer.stop()


@contextlib.asynccontextmanager
async def running(runs: HistoryReader | HistoryWorker) -> AsyncIterator[None]:
    task = asyncio.create_task(runs.run())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait([task])


def settings_for(kafka: Broker, group_id: str) -> KafkaSettings:
    values = {"bootstrap_servers": kafka.bootstrap_servers, "group_id": group_id, "session_timeout": 6}
    return KafkaSettings.model_validate(values)


async def no_positions() -> StoredPositions:
    return StoredPositions()


async def test_the_lag_is_unknown_until_it_was_measured(kafka: Broker) -> None:
    """After each join: a worker that has just joined is behind, and does not say otherwise."""
    settings = settings_for(kafka, "measured")
    await topics.create_topic(kafka.bootstrap_servers, "measured.history", partitions=PARTITIONS)
    await produce(kafka, "measured.history", 0, 10)
    at_writes: list[int | None] = []
    goes_on = asyncio.Event()

    async def write(_records: Sequence[HistoryRecord], _moves: Mapping[TopicAndPartition, Move]) -> None:
        at_writes.append(reader.lag)
        await goes_on.wait()

    reader = HistoryReader(settings, "measured.history", write, no_positions)
    assert reader.lag is None
    async with running(reader):
        await until(lambda: at_writes, "the first write")
        assert reader.problem is None
        assert at_writes[0] in (None, 10)
        goes_on.set()
        await until(lambda: reader.lag == 0, "the end")
    await produce(kafka, "measured.history", 10, 4)
    goes_on.clear()
    at_writes.clear()
    async with running(reader):
        await until(lambda: at_writes, "the first write after it joined again")
        assert at_writes[0] in (None, 14), "without positions it reads everything again"
        goes_on.set()
        await until(lambda: reader.lag == 0, "the end again")


async def test_a_worker_that_can_not_read_or_store_shows_it_in_a_metric(kafka: Broker) -> None:
    fails = True

    async def write(_records: Sequence[HistoryRecord], _moves: Mapping[TopicAndPartition, Move]) -> None:
        if fails:
            raise StoreUnavailable("it is away")

    reader = HistoryReader(settings_for(kafka, "shown"), "shown.history", write, no_positions)
    metrics.initialise()  # the console builds its worker before
    assert not is_reading()
    async with running(reader):
        await until(lambda: "no topic shown.history" in (reader.problem or ""), "the missing topic")
        assert not is_reading()
        await topics.create_topic(kafka.bootstrap_servers, "shown.history", partitions=PARTITIONS)
        await until(is_reading, "it to join")
        await produce(kafka, "shown.history", 0, 1)
        await until(lambda: not is_reading(), "the store that is away")
        fails = False
        await until(is_reading, "the store that is back")


class Stored:
    """A store in memory: the ids of its entries, and the positions."""

    def __init__(self) -> None:
        self.ids: list[str] = []
        self.positions: dict[TopicAndPartition, int] = {}

    async def write(self, records: Sequence[HistoryRecord], moves: Mapping[TopicAndPartition, Move]) -> None:
        for place, move in moves.items():
            assert self.positions.get(place) == move.before
            self.positions[place] = move.after
        self.ids += [entry.webhook_id or "" for record in records for entry in record.entries]

    async def stored_positions(self) -> StoredPositions:
        return StoredPositions(dict(self.positions))

    def has(self, first: int, count: int) -> bool:
        return {f"msg_{number}" for number in range(first, first + count)} <= set(self.ids)


@pytest.mark.parametrize("is_replaced", [True, False])
@pytest.mark.parametrize("is_running", [True, False])
async def test_a_log_is_compared_before_it_is_read_on(
    kafka: Broker, monkeypatch: pytest.MonkeyPatch, *, is_running: bool, is_replaced: bool
) -> None:
    """It was lost and has grown past the position. While it is read, a gap in the fetches is the only sign of that."""
    group_id = f"compared{is_running}{is_replaced}"
    settings, topic, stored = settings_for(kafka, group_id), f"{group_id}.history", Stored()
    await topics.create_topic(kafka.bootstrap_servers, topic, partitions=PARTITIONS)
    await produce(kafka, topic, 0, 10)
    fingerprint, source, gaps, lost = Fingerprint.of, LogSources.of, 0, False

    def fingerprint_in_this_log(record: Record) -> Fingerprint:
        found = fingerprint(record)
        return replace(found, checksum=found.checksum ^ lost)

    monkeypatch.setattr(LogSources, "of", lambda sources, tp: (*source(sources, tp), gaps))
    monkeypatch.setattr(Fingerprint, "of", fingerprint_in_this_log)
    async with contextlib.AsyncExitStack() as run:
        reader = HistoryReader(settings, topic, stored.write, stored.stored_positions)
        await run.enter_async_context(running(reader))
        await until(lambda: stored.has(0, 10) and reader.lag == 0, "the old records")
        if not is_running:
            await run.aclose()
            reader = HistoryReader(settings, topic, stored.write, stored.stored_positions)
        gaps, lost = 1, is_replaced
        await produce(kafka, topic, 10, 4)
        if not is_running:
            await run.enter_async_context(running(reader))
        await until(lambda: stored.has(10, 4) and reader.lag == 0, "the new records")
    assert sorted(set(stored.ids)) == sorted(f"msg_{number}" for number in range(14))
    assert len(stored.ids) == (24 if is_replaced else 14)
    assert stored.positions == {(topic, number): 7 for number in range(PARTITIONS)}


async def test_positions_of_many_partitions_are_requested_at_once(
    kafka: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A slow coordinator answered for one after the other for longer than the answer is waited for."""
    settings, topic, stored = settings_for(kafka, "many"), "many.history", Stored()
    await topics.create_topic(kafka.bootstrap_servers, topic, partitions=8)
    await produce(kafka, topic, 0, 4)
    fetch = GroupCoordinator._do_fetch_commit_offsets

    async def slowly(coordinator: GroupCoordinator, partitions: Any) -> Any:
        await asyncio.sleep(1.0)
        return await fetch(coordinator, partitions)

    monkeypatch.setattr(GroupCoordinator, "_do_fetch_commit_offsets", slowly)
    monkeypatch.setattr(history_reader, "COMMIT_S", 7.0)
    async with running(HistoryReader(settings, topic, stored.write, stored.stored_positions)):
        await until(lambda: stored.has(0, 4), "the records", 60)


async def test_a_process_without_a_worker_is_not_taken_for_one_that_can_not_read() -> None:
    """It has the series too, since every metric is in the same module."""
    shown = "metrics.initialise(); print(REGISTRY.get_sample_value('dispatcher_history_worker_reading'))"
    imports = "from dispatcher.telemetry import metrics; from prometheus_client import REGISTRY"
    command = [sys.executable, "-c", f"{imports}; {shown}"]
    done = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, check=True)
    assert done.stdout == "1.0\n"


def is_reading() -> bool:
    return REGISTRY.get_sample_value("dispatcher_history_worker_reading") == 1


async def test_every_partition_needs_a_position_and_an_end() -> None:
    state = SubscriptionState()
    consumer: Any = SimpleNamespace(_subscription=state)
    first, second = (TopicPartition("t", number) for number in range(2))
    state.subscribe({"t"})
    assert lag_of(consumer) is None, "nothing is assigned yet"
    state.assign_from_subscribed({first, second})
    assert lag_of(consumer) is None
    for tp, position, end in ((first, 7, 10), (second, 5, 25)):
        assert lag_of(consumer) is None
        state.seek(tp, position)
        assert lag_of(consumer) is None
        state.subscription.assignment.state_value(tp).highwater = end
    assert lag_of(consumer) == 23
    state.assign_from_subscribed({first})
    assert lag_of(consumer) is None, "a new assignment"
    state.assign_from_subscribed(set())
    assert lag_of(consumer) == 0, "other workers have all partitions"
