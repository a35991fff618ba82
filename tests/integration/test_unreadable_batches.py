"""A batch that can't be decoded costs the readers of history and console its own records, and no others."""

import asyncio
import time
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka import AIOKafkaProducer, TopicPartition
from prometheus_client import REGISTRY

from dispatcher.config.settings import Settings
from dispatcher.contract.history import HistoryEntry, HistoryOutcome, HistoryRecord
from dispatcher.contract.history_positions import Move, StoredPositions, TopicAndPartition
from dispatcher.contract.records import Record
from dispatcher.history.topic_search import Wanted, find_in_history_topic
from dispatcher.kafka import history_reader
from dispatcher.kafka.history_reader import HistoryReader
from dispatcher.kafka.topic_tailer import TopicTailer
from tests.history_records import record_of
from tests.integration.brokers import needs_kafka
from tests.integration.harness import until
from tests.integration.test_history_reader import running
from tests.kafka import topics
from tests.kafka.apache_kafka import ApacheKafka

pytestmark = [needs_kafka, pytest.mark.timeout(300)]

PREFIX = "corrupt"
TOPIC = f"{PREFIX}.history"
MARK = b"corrupt-this"
WHOLE = list(range(12))
LOST, LATER = [12, 13, 14], [15, 16, 17]
"""Numbers of the records in the corrupt batch, and of those that were written after it in the same partition."""


def value(number: int, detail: str = "") -> bytes:
    at = int(time.time() * 1000)
    entry = HistoryEntry(at, HistoryOutcome.DEAD, "A", "b", webhook_id=f"msg_{number}", event_id="same", detail=detail)
    return record_of(1, number, [entry])


@pytest.fixture(scope="module")
async def broker(mortal: ApacheKafka) -> ApacheKafka:
    """The broker, with a corrupt batch in the middle of the history topic's partition 1."""
    await topics.create_topic(mortal.bootstrap_servers, TOPIC, partitions=3)
    async with AIOKafkaProducer(bootstrap_servers=mortal.bootstrap_servers, linger_ms=200) as producer:
        for number in WHOLE:
            await producer.send_and_wait(TOPIC, value(number), partition=number % 3)
        details = ["", MARK.decode(), ""]
        sent = [await producer.send(TOPIC, value(n, text), partition=1) for n, text in zip(LOST, details, strict=True)]
        await asyncio.gather(*sent)
        for number in LATER:
            await producer.send_and_wait(TOPIC, value(number), partition=1)
    (log,) = mortal.directory.rglob(f"{TOPIC}-1/00000000000000000000.log")
    with log.open("r+b") as file:
        file.seek(log.read_bytes().index(MARK))
        file.write(b"Corrupt")  # as a bad disk does: the broker sends its log's bytes without looking at them
    return mortal


def settings_for(broker: ApacheKafka) -> Settings:
    kafka = {
        "bootstrap_servers": broker.bootstrap_servers, "topic": "events", "group_id": PREFIX, "session_timeout": 6,
    }  # fmt: skip
    return Settings.model_validate({"apiVersion": "dispatcher/v1", "kafka": kafka, "webhooks": {"path": "/nowhere"}})


def passed_over() -> float:
    return REGISTRY.get_sample_value("dispatcher_kafka_records_passed_over_total") or 0.0


def unreadable() -> float:
    return REGISTRY.get_sample_value("dispatcher_history_stored_total", {"result": "unreadable"}) or 0.0


async def test_the_history_of_every_other_record_is_stored(broker: ApacheKafka) -> None:
    stored: list[int] = []
    positions: dict[TopicAndPartition, int] = {}

    async def write(records: Sequence[HistoryRecord], moves: Mapping[TopicAndPartition, Move]) -> None:
        for place, move in moves.items():
            assert positions.get(place) == move.before
            positions[place] = move.after
        stored.extend(record.first for record in records)

    async def stored_positions() -> StoredPositions:
        return StoredPositions(dict(positions))

    before = unreadable()
    reader = HistoryReader(settings_for(broker).kafka, TOPIC, write, stored_positions)
    async with running(reader):
        await until(lambda: len(set(stored)) >= len(WHOLE + LATER), "the records around the batch", 60)
        assert sorted(stored) == WHOLE + LATER
        assert reader.problem is None
        assert (unreadable() - before, positions) == (3, {(TOPIC, 0): 4, (TOPIC, 1): 10, (TOPIC, 2): 4})


async def test_the_console_follows_a_topic_past_the_batch(broker: ApacheKafka) -> None:
    seen: list[Record] = []
    sink = SimpleNamespace(append=seen.extend, reset=seen.clear)
    tailer = TopicTailer(
        settings_for(broker).kafka, TOPIC, sink, keep_s=3600, most_read=1000, if_missing="create it"
    )  # fmt: skip
    before = passed_over()
    task = asyncio.create_task(tailer.run())
    try:
        await until(lambda: len(seen) >= len(WHOLE + LATER) and tailer.problem is None, "the topic's end", 60)
    finally:
        task.cancel()
        await asyncio.wait([task])
    assert len(seen) == len(WHOLE + LATER)
    assert dict(tailer.read_to) == {0: 4, 1: 10, 2: 4}
    assert not tailer.is_complete
    assert passed_over() - before == 3


async def test_a_trace_finds_what_is_after_the_batch(broker: ApacheKafka) -> None:
    found = await find_in_history_topic(settings_for(broker), Wanted("same"), time.time() - 3600)
    assert found is not None
    assert {one.webhook_id for one in found} == {f"msg_{number}" for number in WHOLE + LATER}


async def test_positions_are_awaited_for_a_limited_time(broker: ApacheKafka, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the group's coordinator is away, aiokafka asks for it for ever, and the worker would claim to store."""
    monkeypatch.setattr(history_reader, "COMMIT_S", 0.1)

    async def never(_tps: Sequence[TopicPartition]) -> None:
        await asyncio.Event().wait()

    async def write(_records: Sequence[HistoryRecord], _moves: Mapping[TopicAndPartition, Move]) -> None:
        pass

    async def no_positions() -> StoredPositions:
        return StoredPositions()

    assignment = SimpleNamespace(tps={TopicPartition(TOPIC, 0)}, active=True)
    subscription = SimpleNamespace(subscription=SimpleNamespace(assignment=assignment))
    consumer: Any = SimpleNamespace(
        _subscription=subscription, _coordinator=SimpleNamespace(fetch_committed_offsets=never)
    )
    reader = HistoryReader(settings_for(broker).kafka, TOPIC, write, no_positions)
    beginning = asyncio.create_task(reader._begin(consumer))
    done, _ = await asyncio.wait([beginning], timeout=60)
    beginning.cancel()
    assert done
    with pytest.raises(TimeoutError):
        beginning.result()
