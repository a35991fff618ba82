"""The reader of the history topic on a broker: its lag, and the position at which it begins."""

import asyncio
import contextlib
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

from aiokafka import AIOKafkaProducer, TopicPartition
from aiokafka.consumer.subscription_state import SubscriptionState
from prometheus_client import REGISTRY

from dispatcher.config.kafka_settings import KafkaSettings
from dispatcher.contract.history import HistoryEntry, HistoryOutcome, HistoryRecord, encode_records
from dispatcher.contract.history_positions import Move, StoredPositions, TopicAndPartition
from dispatcher.errors import StoreUnavailable
from dispatcher.history.worker import HistoryWorker
from dispatcher.kafka.history_reader import HistoryReader, lag_of
from dispatcher.telemetry import metrics
from tests.conftest import Broker
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
            [(value, _)] = encode_records(1, number, [entry])
            await producer.send_and_wait(topic, value, key=b"1", partition=number % PARTITIONS)
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
