"""The producer over brokers that refuse: the client is a model of aiokafka's, with its gaps in sequence numbers."""

import asyncio
import random
from collections import Counter, defaultdict
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka.errors import (
    InvalidTimestampError,
    KafkaConnectionError,
    KafkaError,
    MessageSizeTooLargeError,
    OutOfOrderSequenceNumber,
    TopicAuthorizationFailedError,
)

from dispatcher.config.kafka_settings import KafkaSettings
from dispatcher.contract.kafka_problems import KafkaReason
from dispatcher.contract.outcomes import DeadReason
from dispatcher.contract.records import Origin, RetryState
from dispatcher.errors import NotWritten, RecordTooLarge
from dispatcher.kafka import producer_client
from dispatcher.kafka.dead_letters import DeadLetters
from dispatcher.kafka.problems import KafkaProblems
from dispatcher.kafka.producer import SUSPECT_S, Producer
from dispatcher.kafka.producer_client import WRITE_S
from dispatcher.telemetry import metrics
from tests.unit.examples import a_record
from tests.unit.virtual_time import virtual_time

SETTINGS = KafkaSettings(bootstrap_servers="none:1", max_record_bytes=100_000)


@dataclass
class Broker:
    """Topics of one partition, with limits on the size of a batch and with permissions."""

    written: defaultdict[str, list[bytes | None]] = field(default_factory=lambda: defaultdict(list))
    most_bytes: dict[str, int] = field(default_factory=dict)
    closed: set[str] = field(default_factory=set)
    untimely: set[str] = field(default_factory=set)
    """Topics that refuse the records' timestamps."""
    hangs: bool = False
    away: bool = False
    clients: list["Client"] = field(default_factory=list)
    partitions: set[int] = field(default_factory=lambda: {0})
    offline: set[int] = field(default_factory=set)
    """Partitions without a leader."""

    @property
    def idempotent_producers(self) -> int:
        """How many idempotent producers were started."""
        return sum(client.is_idempotent for client in self.clients)

    async def append(self, client: "Client", topic: str, values: Sequence[bytes | None], number: int) -> None:
        await asyncio.sleep(0.01)
        while self.hangs:
            await asyncio.sleep(1)
        if self.away:
            raise KafkaConnectionError
        if client.is_idempotent and number != client.accepted[topic]:
            raise OutOfOrderSequenceNumber
        if topic in self.untimely:
            raise InvalidTimestampError
        if topic in self.closed:
            raise TopicAuthorizationFailedError(topic)
        if sum(len(value or b"") for value in values) > self.most_bytes.get(topic, 1 << 30):
            raise MessageSizeTooLargeError
        client.accepted[topic] += len(values)
        self.written[topic] += values


class Client:
    """What `Producer` uses of AIOKafkaProducer: records of 5 ms share a batch, a refused batch leaves a gap."""

    def __init__(self, broker: Broker, *, enable_idempotence: bool) -> None:
        self.broker = broker
        self.is_idempotent = enable_idempotence
        self.numbers: Counter[str] = Counter()
        self.accepted: Counter[str] = Counter()
        self._lingering: dict[str, tuple[list[bytes | None], asyncio.Task[None]]] = {}
        self._message_accumulator = self
        self._batches: dict[object, object] = {}
        self._pending_batches: set[object] = set()
        self.client = self.cluster = self
        self._partitions = set(broker.partitions)
        """As they were when the client looked last."""
        self.is_stopped = False
        broker.clients.append(self)

    async def start(self) -> None:
        await asyncio.sleep(0.02)
        if self.broker.away:
            raise KafkaConnectionError

    async def stop(self) -> None:
        self.is_stopped = True

    def fail_all(self, _: Exception) -> None:
        """Does nothing: no caller waits any more."""

    async def partitions_for(self, _: str) -> set[int]:
        return self._partitions

    def available_partitions_for_topic(self, _: str) -> set[int]:
        return self._partitions - self.broker.offline

    async def force_metadata_update(self) -> None:
        self._partitions = set(self.broker.partitions)

    async def send_and_wait(
        self, topic: str, value: bytes | None, key: bytes | None, partition: int | None = None, **_: Any
    ) -> SimpleNamespace:
        assert not (key is None and value is None)
        assert partition is None or partition in self._partitions, "Unrecognized partition"
        if topic not in self._lingering:
            values: list[bytes | None] = []
            self._lingering[topic] = values, asyncio.ensure_future(self._send_soon(topic, values))
        values, sending = self._lingering[topic]
        values.append(value)
        await asyncio.shield(sending)
        return SimpleNamespace(offset=len(self.broker.written[topic]) - 1)

    async def _send_soon(self, topic: str, values: list[bytes | None]) -> None:
        await asyncio.sleep(0.005)
        del self._lingering[topic]
        await self._send(topic, values)

    async def _send(self, topic: str, values: list[bytes | None]) -> None:
        number = self.numbers[topic]
        self.numbers[topic] += len(values)  # given out when the batch leaves, and never taken back
        await self.broker.append(self, topic, values, number)

    def create_batch(self) -> "Batch":
        return Batch()

    async def send_batch(self, batch: "Batch", topic: str, *, partition: int) -> "asyncio.Future[SimpleNamespace]":
        assert partition in self._partitions
        return asyncio.ensure_future(self._written(topic, batch.values))

    async def _written(self, topic: str, values: list[bytes | None]) -> SimpleNamespace:
        await self._send(topic, values)
        return SimpleNamespace(offset=len(self.broker.written[topic]) - 1)


class Batch:
    def __init__(self) -> None:
        self.values: list[bytes | None] = []

    def append(self, *, value: bytes | None, **_: Any) -> None:
        self.values.append(value)

    def close(self) -> None:
        assert len(self.values) == 1


@pytest.fixture
def broker(monkeypatch: pytest.MonkeyPatch) -> Broker:
    made = Broker()

    def client(*, enable_idempotence: bool, **_: Any) -> Client:
        return Client(made, enable_idempotence=enable_idempotence)

    monkeypatch.setattr(producer_client, "AIOKafkaProducer", client)
    return made


async def write(producer: Producer, topic: str, value: bytes | None, key: bytes | None = b"k") -> None:
    await producer.write(topic, key, value, [], "retry")


@virtual_time
async def test_a_refused_record_costs_one_replacement_and_no_other_record(broker: Broker) -> None:
    problems = KafkaProblems()
    broker.most_bytes["t"] = 1000
    async with Producer(SETTINGS, problems) as producer:
        await write(producer, "t", b"before")
        with pytest.raises(RecordTooLarge, match=r"t accepts no record of \d+ bytes"):
            await write(producer, "t", b"x" * 2000)
        for number in range(5):
            await write(producer, "t", b"behind%d" % number)
            await write(producer, "other", b"o")
        assert broker.written["t"] == [b"before", *(b"behind%d" % number for number in range(5))]
        assert [one.reason for one in problems.current] == [KafkaReason.WRITE_REFUSED]
        assert "topic t refused a record" in problems.current[0].detail
        for _ in range(20):
            with pytest.raises(RecordTooLarge):
                await write(producer, "t", b"x" * 2000)
        assert broker.idempotent_producers == 2, "the second one never meets the refused size"
    assert all(client.is_stopped for client in broker.clients)


@virtual_time
async def test_a_batch_above_the_limit_is_written_record_by_record(broker: Broker) -> None:
    broker.most_bytes["t"] = 1000
    async with Producer(SETTINGS) as producer:
        await asyncio.gather(*(write(producer, "t", b"x" * 300) for _ in range(20)))
    assert broker.written["t"] == [b"x" * 300] * 20


@virtual_time
async def test_a_topic_that_refuses_everything_costs_the_others_one_replacement_a_minute(broker: Broker) -> None:
    broker.closed.add("t")
    async with Producer(SETTINGS) as producer:
        for _ in range(300):
            with pytest.raises(NotWritten):
                await write(producer, "t", b"x")
            await write(producer, "other", b"o")
            await asyncio.sleep(1)
        assert len(broker.written["other"]) == 300
        assert broker.idempotent_producers <= 2 + 300 / SUSPECT_S
        broker.closed.clear()
        await write(producer, "t", b"y")
        assert broker.written["t"] == [b"y"]


@virtual_time
async def test_records_that_are_under_way_behind_a_refusal_are_written_at_once(broker: Broker) -> None:
    broker.most_bytes["t"] = 1000
    async with Producer(SETTINGS) as producer:
        refused = asyncio.ensure_future(write(producer, "t", b"x" * 2000))
        await asyncio.sleep(0.008)  # its batch has left
        behind = [asyncio.ensure_future(write(producer, "t", b"b")) for _ in range(3)]
        await asyncio.gather(*behind)
        with pytest.raises(RecordTooLarge):
            await refused
    assert broker.written["t"] == [b"b"] * 3


@virtual_time
async def test_a_record_that_is_refused_for_its_time_names_the_clock(broker: Broker) -> None:
    problems = KafkaProblems()
    broker.untimely.add("t")
    async with Producer(SETTINGS, problems) as producer:
        with pytest.raises(NotWritten):
            await write(producer, "t", b"x")
    found = {one.reason: one.detail for one in problems.current}
    assert set(found) == {KafkaReason.WRITE_REFUSED, KafkaReason.CLOCK}
    assert "topic t: the broker refused the time of a record" in found[KafkaReason.CLOCK]


@virtual_time
async def test_a_hanging_producer_is_replaced_and_the_next_write_connects_again(broker: Broker) -> None:
    loop = asyncio.get_running_loop()
    async with Producer(SETTINGS) as producer:
        broker.hangs = True
        began = loop.time()
        with pytest.raises(NotWritten, match="topic t took no record: no answer in time"):
            await write(producer, "t", b"x")
        assert loop.time() - began == pytest.approx(WRITE_S, abs=0.1)
        broker.hangs = False
        before = len(broker.clients)
        await write(producer, "t", b"y")
        assert len(broker.clients) == before + 1
    await asyncio.sleep(2)
    assert b"y" in broker.written["t"]


@virtual_time
async def test_a_broker_that_is_away_and_back_is_connected_to_again(broker: Broker) -> None:
    async with Producer(SETTINGS) as producer:
        broker.away = True
        for _ in range(3):
            with pytest.raises(NotWritten):
                await write(producer, "t", b"x")
        broker.away = False
        await write(producer, "t", b"y")
        assert broker.written["t"] == [b"y"]


@virtual_time
async def test_neither_key_nor_value_is_written_as_it_is(broker: Broker) -> None:
    async with Producer(SETTINGS) as producer:
        await write(producer, "t", None, None)
    assert broker.written["t"] == [None]


@virtual_time
@pytest.mark.parametrize("value", [b"v", None])
async def test_a_partition_that_the_client_does_not_know_yet_is_written_to(broker: Broker, value: bytes | None) -> None:
    """Partitions were added to a topic a moment ago; or it was recreated with fewer, and the owner notices it later."""
    async with Producer(SETTINGS) as producer:
        broker.partitions = {0, 1}
        await producer.write("t", None, value, [], "held", partition=1)
        assert broker.written["t"] == [value]
        with pytest.raises(NotWritten, match="it has no partition 2"):
            await producer.write("t", None, value, [], "held", partition=2)
        await write(producer, "t", b"after")
        assert broker.written["t"] == [value, b"after"]


@virtual_time
async def test_a_record_beyond_every_limit_is_not_even_sent(broker: Broker) -> None:
    async with Producer(SETTINGS) as producer:
        with pytest.raises(RecordTooLarge):
            await write(producer, "t", b"x" * 300_000)
        with pytest.raises(RecordTooLarge):
            await producer.write("t", b"k", b"v", [("h", b"x" * 300_000)], "dead")
        assert broker.idempotent_producers == 1
        assert broker.written == {}


def failures(kind: str) -> float:
    counted: float = metrics.PRODUCE_FAILURES.labels(kind)._value.get()
    return counted


@virtual_time
async def test_only_a_write_that_is_repeated_counts_as_a_failure(broker: Broker) -> None:
    """A record that is too large for a retry topic dies at once: no partition waits for it."""
    broker.most_bytes["t"] = 1000
    before = failures("retry")
    async with Producer(SETTINGS) as producer:
        for size in (2000, 300_000):
            with pytest.raises(RecordTooLarge):
                await write(producer, "t", b"x" * size)
        assert failures("retry") == before
        broker.closed.add("t")
        with pytest.raises(NotWritten):
            await write(producer, "t", b"x")
        assert failures("retry") == before + 1


@virtual_time
async def test_a_dead_letter_fails_only_if_not_even_its_shortest_form_is_written(broker: Broker) -> None:
    record = a_record(b"x" * 50_000, b"k", (("h", b"x" * 50_000),), "t", 0, 7, 0)
    state = RetryState(Origin("t", 0, 7), 0.0)
    before = failures("dead")
    async with Producer(SETTINGS) as producer:
        letters = DeadLetters(producer, "d")
        for most, refusals in ((100, 0), (-1, 1), (-1, 2)):
            broker.most_bytes["d.dead"] = most
            with pytest.raises(RecordTooLarge) if refusals else nullcontext():
                await letters.dead_letter(record, state, DeadReason.TOO_LARGE, "x")
            assert failures("dead") == before + refusals
    assert len(broker.written["d.dead"]) == 1


@pytest.mark.parametrize("seed", range(30))
def test_acknowledged_records_are_written_once_despite_refusals(broker: Broker, seed: int) -> None:
    """Limits, permissions and absences come and go while records of three topics are written and repeated."""
    virtual_time(_history)(broker, random.Random(seed))


async def _history(broker: Broker, chance: random.Random) -> None:
    topics = ["a", "b", "c"]
    done: Counter[tuple[str, bytes]] = Counter()

    async def vary() -> None:
        for _ in range(40):
            await asyncio.sleep(chance.uniform(0.1, 4))
            broker.closed = {topic for topic in topics if chance.random() < 0.2}
            broker.most_bytes = {topic: chance.choice((50, 400, 1 << 30)) for topic in topics}
            broker.away = chance.random() < 0.1
        broker.closed, broker.most_bytes, broker.away = set(), {}, False

    async def see_through(producer: Producer, topic: str, value: bytes) -> None:
        await asyncio.sleep(chance.uniform(0, 60))
        while True:
            try:
                await write(producer, topic, value)
            except NotWritten:
                await asyncio.sleep(chance.uniform(0.1, 2))
            else:
                done[topic, value] += 1
                return

    async with Producer(SETTINGS) as producer:
        records = [
            see_through(producer, chance.choice(topics), b"%d" % number + b"x" * chance.choice((0, 100, 1000)))
            for number in range(150)
        ]
        await asyncio.gather(vary(), *records)
        assert len(producer._closing) <= 2
    written = Counter((topic, value) for topic, values in broker.written.items() for value in values)
    assert written == done
    assert all(client.is_stopped for client in broker.clients)


def test_the_model_leaves_a_gap_as_aiokafka_does() -> None:
    """Without this the tests above would prove nothing."""

    @virtual_time
    async def gap() -> None:
        broker = Broker(most_bytes={"t": 10})
        client = Client(broker, enable_idempotence=True)
        await client.send_and_wait("t", b"a", b"k")
        with pytest.raises(MessageSizeTooLargeError):
            await client.send_and_wait("t", b"a" * 20, b"k")
        with pytest.raises(OutOfOrderSequenceNumber):
            await client.send_and_wait("t", b"a", b"k")

    gap()
    assert issubclass(OutOfOrderSequenceNumber, KafkaError)
