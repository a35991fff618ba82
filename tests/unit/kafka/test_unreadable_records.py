"""Header names of any bytes are read, with both of aiokafka's decoders; a corrupt batch costs no other record."""

from collections.abc import Iterator
from typing import Any

import pytest
from aiokafka import TopicPartition
from aiokafka.consumer import fetcher
from aiokafka.consumer.fetcher import FetchResult, PartitionRecords
from aiokafka.record import memory_records
from aiokafka.record.default_records import _DefaultRecordBatchPy

from dispatcher.kafka import connection, unreadable_records  # noqa: F401  (aiokafka is patched by `connection`)
from tests.kafka.raw_batches import AS_READ, NOT_UTF8, batch

TP = TopicPartition("events", 0)


@pytest.fixture(params=["compiled", "python"])
def decoder(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    kind = str(request.param)
    if kind == "python":
        monkeypatch.setattr(memory_records, "DefaultRecordBatch", _DefaultRecordBatchPy)
        monkeypatch.setattr(unreadable_records, "MemoryRecords", memory_records._MemoryRecordsPy)
    return kind


def _records(content: bytes, fetch_offset: int = 0, aborted: list[tuple[int, int]] | None = None) -> Iterator[Any]:
    records = fetcher.MemoryRecords(content)
    found: Iterator[Any] = PartitionRecords(TP, records, aborted, fetch_offset, None, None, True, 1)
    return found


@pytest.mark.parametrize("codec", [0, 1], ids=["plain", "gzip"])
def test_a_header_name_that_is_not_utf8_is_read_with_replacements(decoder: str, codec: int) -> None:
    content = (
        batch([b"a", b"b"], 0, name=b"fine")
        + batch([b"c", b"d"], 2, codec)
        + batch([b"e"], 4, codec)
        + batch([b"f"], 5, name=b"fine")
    )
    found = [(one.offset, one.value, one.headers[0][0]) for one in _records(content)]
    assert found == [
        (0, b"a", "fine"),
        (1, b"b", "fine"),
        (2, b"c", AS_READ),
        (3, b"d", AS_READ),
        (4, b"e", AS_READ),
        (5, b"f", "fine"),
    ]


def test_reading_begins_within_a_batch(decoder: str) -> None:
    content = batch([b"a", b"b", b"c"], 10)
    assert [one.offset for one in _records(content, 11)] == [11, 12]


def test_a_corrupt_batch_after_an_odd_header_name_is_still_an_error(decoder: str) -> None:
    records = _records(batch([b"a"], 0) + _corrupted(batch([b"b"], 1)))
    assert next(records).offset == 0
    with pytest.raises(Exception, match="CRC"):
        next(records)


class _Assignment:
    active = True
    paused = False

    def __init__(self) -> None:
        self.position = 0

    def state_value(self, _tp: TopicPartition) -> "_Assignment":
        return self

    def consumed_to(self, position: int) -> None:
        self.position = position


@pytest.mark.parametrize("place", ["checksum", "gzip"])
def test_records_before_a_corrupt_batch_are_returned_and_the_position_stays_before_it(decoder: str, place: str) -> None:
    broken = _corrupted(batch([b"c"], 2)) if place == "checksum" else _with_broken_gzip(batch([b"c" * 99], 2, 1))
    content = batch([b"a", b"b"], 0, name=b"fine") + broken
    assignment = _Assignment()
    result = FetchResult(TP, assignment=assignment, partition_records=_records(content), backoff=0)
    assert [one.offset for one in result.getall(500)] == [0, 1]
    assert assignment.position == 2
    assert result.has_more(), "the error is still to be raised"
    assert result.getall(500) == []
    assert str(unreadable_records.UnreadableBatch(TP, 2, result.error)).startswith("events/0: the batch at offset 2")


def test_records_are_returned_in_portions(decoder: str) -> None:
    assignment = _Assignment()
    content = batch([b"a", b"b", b"c"], 0)
    result = FetchResult(TP, assignment=assignment, partition_records=_records(content), backoff=0)
    assert [len(result.getall(2)), assignment.position, len(result.getall(2)), assignment.position] == [2, 2, 1, 3]
    assert not result.has_more()


def _corrupted(content: bytes) -> bytes:
    assert NOT_UTF8 in content
    return content.replace(NOT_UTF8, b"x" * len(NOT_UTF8))


def _with_broken_gzip(content: bytes) -> bytes:
    """The checksum is right, as if a producer had written it so."""
    from aiokafka.record.util import calc_crc32c

    built = bytearray(content)
    built[61:75] = b"\0" * 14
    built[17:21] = calc_crc32c(bytes(built[21:])).to_bytes(4)
    return bytes(built)
