"""The memory of decompressed batches is bounded, and no partition starves for it."""

import asyncio
import gc
import random
from collections import OrderedDict
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import cramjam
import pytest
from aiokafka import TopicPartition, codec
from aiokafka.consumer import fetcher
from aiokafka.consumer.fetcher import Fetcher, FetchResult, PartitionRecords

from dispatcher.contract.kafka_problems import KafkaReason
from dispatcher.kafka import connection, open_batches, unreadable_records  # noqa: F401  (`connection` patches aiokafka)
from dispatcher.kafka.open_batches import OPEN_BATCHES, BatchTooLarge
from dispatcher.kafka.problems import KafkaProblems
from tests.kafka.raw_batches import NOT_UTF8, batch

GZIP, SNAPPY, LZ4, ZSTD = 1, 2, 3, 4
CODECS = pytest.mark.parametrize("codec_number", [GZIP, SNAPPY, LZ4, ZSTD], ids=["gzip", "snappy", "lz4", "zstd"])
SIZE = 300_000
"""About the bytes of a decompressed batch of these tests."""
RECORDS = 30


@pytest.fixture(autouse=True)
def limits(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Three batches may be open, and one of four times the size may be read."""
    monkeypatch.setattr(unreadable_records, "MOST_TAKEN", 4 * SIZE)
    gc.collect()  # the readers of earlier tests refer to themselves
    assert OPEN_BATCHES.bytes == 0
    before = OPEN_BATCHES.most_bytes, OPEN_BATCHES.largest
    OPEN_BATCHES.most_bytes, OPEN_BATCHES.largest = 2 * SIZE + 20_000, 4 * SIZE
    yield
    OPEN_BATCHES.most_bytes, OPEN_BATCHES.largest = before


def content(
    base: int = 0, number: int = ZSTD, size: int = SIZE, records: int = RECORDS, name: bytes = b"name"
) -> bytes:
    """Returns a batch with about `size` bytes when it is decompressed."""
    return batch([bytes([65 + one % 26]) * (size // records) for one in range(records)], base, number, name)


class Reader:
    """One consumer, from aiokafka's fetched content to its polls."""

    active = True
    paused = False

    def __init__(self) -> None:
        self.positions: dict[TopicPartition, int] = {}
        self.fetcher = SimpleNamespace(
            _records=OrderedDict(), _notify=lambda _future: None, _wait_consume_future=None,
            _subscriptions=SimpleNamespace(reassignment_in_progress=False, is_assigned=lambda _tp: True),
        )  # fmt: skip

    def state_value(self, tp: TopicPartition) -> Any:
        def consumed_to(position: int) -> None:
            self.positions[tp] = position

        return SimpleNamespace(paused=False, position=self.positions.setdefault(tp, 0), consumed_to=consumed_to)

    def fetch(self, partition: int, fetched: bytes) -> TopicPartition:
        tp = TopicPartition("events", partition)
        start = self.positions.setdefault(tp, 0)
        records = PartitionRecords(tp, fetcher.MemoryRecords(fetched), None, start, None, None, True, 1)
        self.fetcher._records[tp] = FetchResult(tp, assignment=self, partition_records=records, backoff=0)
        return tp

    async def poll(self, *partitions: int, most: int = 500) -> dict[int, list[int]]:
        """Returns the offsets that were taken, by partition."""
        wanted = [TopicPartition("events", one) for one in partitions]
        found = await Fetcher.fetched_records(self.fetcher, wanted, 0, max_records=most)
        return {tp.partition: [record.offset for record in records] for tp, records in found.items()}


@CODECS
@pytest.mark.parametrize("size", [200, SIZE, 3 * 1024 * 1024])
async def test_each_codec_is_decompressed_as_by_aiokafka_and_counted(
    monkeypatch: pytest.MonkeyPatch, decoder: str, codec_number: int, size: int
) -> None:
    monkeypatch.setattr(unreadable_records, "MOST_TAKEN", 4 * 1024 * 1024)
    OPEN_BATCHES.largest = 4 * 1024 * 1024
    values = [random.Random(number).randbytes(40) * (size // 100 + 1) for number in range(3)]
    reader = Reader()
    tp = reader.fetch(0, batch(values, 0, codec_number, b"name"))
    result = reader.fetcher._records[tp]
    assert [record.value for record in result.getall(2)] == values[:2]
    assert OPEN_BATCHES.bytes == result.open_bytes
    assert sum(map(len, values)) < OPEN_BATCHES.bytes < sum(map(len, values)) + 100
    assert [record.value for record in result.getall(2)] == values[2:]
    assert OPEN_BATCHES.bytes == 0


@CODECS
async def test_a_batch_that_is_too_large_is_unreadable(decoder: str, codec_number: int) -> None:
    reader = Reader()
    small, large = content(0, codec_number, 1000), content(RECORDS, codec_number, 5 * SIZE)
    tp = reader.fetch(0, small + large)
    assert await reader.poll() == {0: list(range(RECORDS))}
    result = reader.fetcher._records[tp]
    assert isinstance(result.error, BatchTooLarge)
    assert (OPEN_BATCHES.bytes, reader.positions[tp]) == (0, RECORDS)


@pytest.mark.parametrize(
    "payload",
    [codec.gzip_encode(b"a" * SIZE) + codec.gzip_encode(b"b" * SIZE), codec.gzip_encode(b"a" * 2 * SIZE) + b"\0" * 7],
    ids=["members", "padding"],
)
def test_gzip_of_several_members_is_read_and_limited_as_a_whole(payload: bytes) -> None:
    assert open_batches._gzip(payload, 2 * SIZE) == codec.gzip_decode(payload)
    with pytest.raises(BatchTooLarge):
        open_batches._gzip(payload, 2 * SIZE - 1)


def test_a_size_that_a_gzip_claims_wrongly_does_not_pass_the_limit() -> None:
    payload = codec.gzip_encode(b"a" * SIZE)[:-4] + (5).to_bytes(4, "little")
    with pytest.raises(BatchTooLarge):
        open_batches._gzip(payload, SIZE // 2)
    with pytest.raises(EOFError):
        open_batches._gzip(codec.gzip_encode(b"a" * SIZE)[:-8], 2**32)


def test_raw_snappy_as_librdkafka_writes_it_is_read_and_limited() -> None:
    payload = bytes(cramjam.snappy.compress_raw(b"a" * SIZE))
    assert open_batches._snappy(payload, SIZE) == b"a" * SIZE
    with pytest.raises(BatchTooLarge):
        open_batches._snappy(payload, SIZE - 1)


@pytest.mark.parametrize("payload", [b"x" * 99, b"x" * 200_000], ids=["short", "long"])
def test_corrupt_content_is_not_taken_for_too_large(payload: bytes) -> None:
    for decode in (open_batches._lz4, open_batches._zstd):
        with pytest.raises(cramjam.DecompressionError):
            decode(payload, SIZE)


@pytest.mark.parametrize("name", [b"name", NOT_UTF8], ids=["utf8", "any bytes"])
async def test_all_partitions_are_read_with_few_batches_open(decoder: str, name: bytes) -> None:
    """24 partitions with two batches each, of which three may be open; a few records are taken at a time."""
    reader, found = Reader(), {number: list[int]() for number in range(24)}
    for number in found:
        reader.fetch(number, content(0, name=name) + content(RECORDS, name=name))
    most, chance = 0, random.Random(1)
    while reader.fetcher._records:
        polled = await reader.poll(*chance.sample(range(24), 20), most=7)
        for number, offsets in polled.items():
            found[number] += offsets
        most = max(most, OPEN_BATCHES.bytes)
    assert all(offsets == list(range(2 * RECORDS)) for offsets in found.values())
    assert 2 * SIZE < most < 3 * SIZE + 5000
    assert OPEN_BATCHES.bytes == 0


async def test_what_was_fetched_first_is_opened_first() -> None:
    """Partitions that are fetched again and again don't overtake one that waits."""
    reader = Reader()
    for number in range(4):
        reader.fetch(number, content())
    waits, polls = {3}, 0
    while waits:
        polls += 1
        waits -= (await reader.poll(most=RECORDS + 5)).keys()
        for number in {0, 1, 2} - {tp.partition for tp in reader.fetcher._records}:
            reader.fetch(number, content(reader.positions[TopicPartition("events", number)]))
    assert polls < 8


async def test_a_batch_of_a_partition_that_waits_is_closed_for_others_and_opened_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    reader = Reader()
    for number in range(5):
        reader.fetch(number, content(0, number=0) + content(RECORDS))
    for number in (0, 1, 2):
        assert await reader.poll(number, most=RECORDS + 9) == {number: list(range(RECORDS + 9))}
    assert await reader.poll(3) == {3: list(range(RECORDS))}, "its second batch has to wait"
    assert await reader.poll(3) == {}
    monkeypatch.setattr(open_batches, "IDLE_S", -1.0)
    assert await reader.poll(3) == {3: list(range(RECORDS, 2 * RECORDS))}
    assert OPEN_BATCHES.bytes == 0
    for number in (0, 1, 2):
        assert await reader.poll(number) == {number: list(range(RECORDS + 9, 2 * RECORDS))}
    assert await reader.poll(4) == {4: list(range(2 * RECORDS))}


async def test_every_consumer_may_have_one_batch_open() -> None:
    first, second = Reader(), Reader()
    for number in range(4):
        first.fetch(number, content())
        second.fetch(number, content(size=4 * SIZE - 5000))
    for number in range(4):
        await first.poll(number, most=1)
    assert await first.poll(3) == {}
    assert await second.poll(0, most=1) == {0: [0]}
    assert await second.poll(1, most=1) == {}, "but only one while there is no room"
    assert await second.poll(0) == {0: list(range(1, RECORDS))}
    assert await second.poll(1, most=1) == {1: [0]}


async def test_what_is_not_compressed_needs_no_room() -> None:
    reader = Reader()
    for number in range(3):
        reader.fetch(number, content())
        await reader.poll(number, most=1)
    assert OPEN_BATCHES.is_full
    reader.fetch(3, content(number=0))
    assert await reader.poll(3) == {3: list(range(RECORDS))}


@pytest.mark.parametrize("how", ["cleared", "revoked", "sought"])
async def test_a_result_that_is_dropped_frees_its_batch(how: str) -> None:
    reader = Reader()
    tp = reader.fetch(0, content())
    await reader.poll(most=1)
    assert OPEN_BATCHES.bytes
    iterator = reader.fetcher._records[tp]._partition_records._records_iterator
    if how == "cleared":
        reader.fetcher._records.clear()
    else:
        vars(reader).update({"active": False} if how == "revoked" else {"positions": {tp: 7}})
        assert await reader.poll() == {}
    assert OPEN_BATCHES.bytes == 0
    assert iterator.gi_frame is None, "the batch is gone, too"


async def test_one_poll_takes_a_bounded_number_of_bytes_of_a_partition(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unreadable_records, "MOST_TAKEN", 1_000_000)
    OPEN_BATCHES.largest = 20_000_000
    reader = Reader()
    reader.fetch(0, content(size=10_000_000, records=100))
    taken = []
    while reader.fetcher._records:
        taken.append(len((await reader.poll())[0]))
    assert sum(taken) == 100
    assert max(taken) <= 21


async def test_a_partition_with_a_batch_that_is_too_large_rests_longer_and_the_cure_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(unreadable_records, "TOO_LARGE_PAUSE_S", 0.01)
    tp, problems, resumed = TopicPartition("events", 0), KafkaProblems(), asyncio.Event()
    set_error = unreadable_records._pausing_unreadable_partitions(lambda *_: None, lambda _client: problems)
    state = SimpleNamespace(pause=lambda: None, resume=resumed.set)
    assignment = SimpleNamespace(tps={tp}, state_value=lambda _tp: state)
    subscriptions = SimpleNamespace(subscription=SimpleNamespace(assignment=assignment))
    error = unreadable_records.UnreadableBatch(tp, 7, BatchTooLarge(1000))
    set_error(SimpleNamespace(_client=None, _subscriptions=subscriptions), tp, error)
    (problem,) = problems.current
    assert problem.reason == KafkaReason.RECORDS_UNREADABLE
    assert "it has more than 1000 bytes when it is decompressed" in problem.detail
    assert "raise kafka.max_unfinished_bytes" in problem.detail
    await resumed.wait()
