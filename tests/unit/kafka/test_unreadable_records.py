"""Header names of any bytes are read, with both of aiokafka's decoders; a corrupt batch costs no other record."""

import asyncio
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka import TopicPartition, errors
from aiokafka.consumer import fetcher
from aiokafka.consumer.fetcher import FetchResult, PartitionRecords
from aiokafka.protocol.fetch import FetchRequest

from dispatcher.contract.kafka_problems import KafkaReason
from dispatcher.kafka import connection, unreadable_records  # noqa: F401  (aiokafka is patched by `connection`)
from dispatcher.kafka.problems import KafkaProblems
from tests.kafka.raw_batches import AS_READ, NOT_UTF8, batch

TP = TopicPartition("events", 0)


def _records(content: bytes, fetch_offset: int = 0, aborted: list[tuple[int, int]] | None = None) -> Iterator[Any]:
    records = fetcher.MemoryRecords(content)
    found: Iterator[Any] = PartitionRecords(TP, records, aborted, fetch_offset, None, None, True, 1)
    return found


@pytest.mark.parametrize("codec", [0, 1], ids=["plain", "gzip"])
def test_a_header_name_that_is_not_utf8_is_read_with_replacements(decoder: str, codec: int) -> None:
    long = b"c" * 99  # shorter ones are not compressed
    content = (
        batch([b"a", b"b"], 0, name=b"fine")
        + batch([long, b"d"], 2, codec)
        + batch([long], 4, codec)
        + batch([b"f"], 5, name=b"fine")
    )
    assert (long in content) is (codec == 0)
    found = [(one.offset, one.value, one.headers[0][0]) for one in _records(content)]
    assert found == [
        (0, b"a", "fine"),
        (1, b"b", "fine"),
        (2, long, AS_READ),
        (3, b"d", AS_READ),
        (4, long, AS_READ),
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


@pytest.mark.parametrize("length", [-(2**31), -13, -12, 2**31 - 1])
def test_a_batch_of_an_impossible_length_after_an_odd_header_name_ends_the_content(decoder: str, length: int) -> None:
    broken = bytearray(batch([b"b"], 1))
    broken[8:12] = length.to_bytes(4, signed=True)
    assert [one.offset for one in _records(batch([b"a"], 0) + bytes(broken))] == [0]


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


def test_nothing_is_returned_of_a_partition_that_was_taken_away_or_sought(decoder: str) -> None:
    for change in ({"active": False}, {"position": 1}):
        assignment = _Assignment()
        result = FetchResult(TP, assignment=assignment, partition_records=_records(batch([b"a"], 0)), backoff=0)
        vars(assignment).update(change)
        assert result.getall(500) == []
        assert not result.has_more()


async def test_the_error_of_a_batch_is_set_before_the_next_poll_and_once() -> None:
    """The poll that finds it returns what it has of all partitions."""
    broken, fine = TP, TopicPartition("events", 1)
    found: list[tuple[TopicPartition, str]] = []

    async def fetched_records(fetcher: Any, *arguments: Any, **named: Any) -> Any:
        return list(fetcher._records), arguments, named

    poll = unreadable_records._raising_between_polls(fetched_records)
    records = SimpleNamespace(next_fetch_offset=7, _records=None)
    results = {
        broken: SimpleNamespace(error=ValueError("x" * 500), _partition_records=records),
        fine: SimpleNamespace(),
    }
    consumer = SimpleNamespace(_records=results, _set_error=lambda tp, error: found.append((tp, str(error))))
    assert await poll(consumer, 1, timeout=2) == ([fine], (1,), {"timeout": 2})
    assert await poll(consumer) == ([fine], (), {})
    assert [tp for tp, _ in found] == [broken]
    assert found[0][1].startswith("events/0: the batch at offset 7 can't be decoded (ValueError: xxx")
    assert len(found[0][1]) < 300


class _Client:
    """An AIOKafkaClient, as far as it matters here."""


class _Partition:
    """What aiokafka keeps of an assigned partition."""

    position = 7
    highwater = 100
    has_valid_position = True
    is_paused = False

    def __init__(self) -> None:
        self.seeks: list[int] = []

    def pause(self) -> None:
        self.is_paused = True

    def resume(self) -> None:
        self.is_paused = False

    def seek(self, position: int) -> None:
        self.seeks.append(position)


def _fetcher(state: _Partition) -> Any:
    assignment = SimpleNamespace(tps={TP}, state_value=lambda _tp: state)
    subscriptions = SimpleNamespace(subscription=SimpleNamespace(assignment=assignment))
    return SimpleNamespace(_client=None, _subscriptions=subscriptions)


@pytest.mark.parametrize(
    ("error", "seeks", "detail"),
    [
        (unreadable_records.UnreadableBatch(TP, 7, ValueError("broken")), [], "the batch at offset 7 can't be decoded"),
        (errors.RecordTooLargeError(), [7], "no complete batch at offset 7"),
    ],
)
async def test_an_unreadable_partition_is_reported_and_rests(
    monkeypatch: pytest.MonkeyPatch, error: Exception, seeks: list[int], detail: str
) -> None:
    monkeypatch.setattr(unreadable_records, "PAUSE_S", 0.01)
    problems, state, raised = KafkaProblems(), _Partition(), list[Exception]()
    set_error = unreadable_records._pausing_unreadable_partitions(
        lambda _fetcher, _tp, error: raised.append(error), lambda _client: problems
    )
    set_error(_fetcher(state), TP, error)
    assert state.is_paused
    assert [(one.reason, one.source) for one in problems.current] == [(KafkaReason.RECORDS_UNREADABLE, "events/0")]
    assert detail in problems.current[0].detail
    while state.is_paused:
        await asyncio.sleep(0.01)
    assert state.seeks == seeks
    set_error(_fetcher(state), TopicPartition("events", 1), error)  # revoked meanwhile
    assert (state.is_paused, raised) == (False, [])
    other = errors.OffsetOutOfRangeError({TP: 7})
    set_error(_fetcher(state), TP, other)
    assert (state.is_paused, raised) == (False, [other])


@pytest.mark.parametrize("problems", [None, KafkaProblems()])
async def test_an_unreadable_batch_of_no_consumer_of_ours_is_left_to_aiokafka(problems: KafkaProblems | None) -> None:
    """Without problems to report to, it is another client; without an assignment, the consumer is being closed."""
    error, raised = unreadable_records.UnreadableBatch(TP, 7, ValueError("broken")), list[Exception]()
    set_error = unreadable_records._pausing_unreadable_partitions(
        lambda _fetcher, _tp, error: raised.append(error), lambda _client: problems
    )
    subscriptions = SimpleNamespace(subscription=SimpleNamespace(assignment=None))
    set_error(SimpleNamespace(_client=None, _subscriptions=subscriptions), TP, error)
    assert raised == ([error] if problems is None else [])
    assert problems is None or not problems.current


@pytest.mark.parametrize(
    ("from_offset", "after"), [(10, 13), (11, 13), (12, 13), (13, 20), (15, 20), (20, 21), (21, 22), (500, 501)]
)
def test_the_offset_after_an_unreadable_batch_is_that_of_its_header(from_offset: int, after: int) -> None:
    """From within a batch its end; from a gap, as compaction leaves them, the next batch; otherwise the next offset."""
    content = batch([b"a", b"b", b"c"], 10) + batch([b"d"], 20)
    assert unreadable_records.TolerantRecords(content, from_offset).offset_after_next() == after
    assert unreadable_records.TolerantRecords(content[:30], from_offset).offset_after_next() == from_offset + 1


@pytest.mark.parametrize(
    ("error", "sought", "passed"),
    [
        (unreadable_records.UnreadableBatch(TP, 7, ValueError("broken"), 12), [12], [(7, 12)]),
        (unreadable_records.UnreadableBatch(TP, 7, ValueError("beyond the log"), 2**40), [8], [(7, 8)]),
        (unreadable_records.UnreadableBatch(TP, 3, ValueError("sought since"), 12), [], []),
        (errors.RecordTooLargeError(), [], [(7, 8)]),
    ],
)
async def test_an_unreadable_batch_is_passed_over_on_request(
    error: Exception, sought: list[int], passed: list[tuple[int, int]]
) -> None:
    raised: list[Exception] = []
    found: list[tuple[int, int]] = []
    consumer: Any = SimpleNamespace(_client=_Client())
    unreadable_records.pass_over_unreadable(consumer, lambda _tp, first, end: found.append((first, end)))
    set_error = unreadable_records._pausing_unreadable_partitions(
        lambda _fetcher, _tp, error: raised.append(error), lambda _client: None
    )
    fetcher = _fetcher(_Partition())
    fetcher._client = consumer._client
    seeks: list[int] = []
    fetcher.seek_to = lambda _tp, offset: seeks.append(offset)
    set_error(fetcher, TP, error)
    set_error(fetcher, TopicPartition("events", 1), error)  # revoked meanwhile
    assert (seeks, found, raised) == (sought, passed, [])


async def test_only_fetches_of_the_dispatchers_clients_are_looked_at() -> None:
    problems = KafkaProblems()

    async def answer(*_arguments: Any, **_named: Any) -> Any:
        return SimpleNamespace(topics=[("events", [(0, 2, 0)])])

    fetch = FetchRequest(100, 1, 1, 0, [])
    await unreadable_records._reporting_log_errors(answer, lambda _client: None)(None, 3, fetch)
    await unreadable_records._reporting_log_errors(answer, lambda _client: problems)(None, 3, SimpleNamespace())
    assert not problems.current


@pytest.mark.parametrize(("code", "reported"), [(-1, 1), (0, 0), (1, 0), (2, 1), (56, 1), (76, 1)])
async def test_a_fetch_that_is_refused_because_of_the_log_is_reported(code: int, reported: int) -> None:
    problems = KafkaProblems()
    response = SimpleNamespace(topics=[("events", [(0, code, 0)])])

    async def answer(*_arguments: Any, **_named: Any) -> Any:
        return response

    send = unreadable_records._reporting_log_errors(answer, lambda _client: problems)
    fetch = FetchRequest(100, 1, 1, 0, [])
    assert await send(None, 3, fetch) is response
    assert [(one.reason, one.source) for one in problems.current] == [
        (KafkaReason.RECORDS_UNREADABLE, "events/0")
    ] * reported
    assert all("broker 3 can't read its log" in one.detail for one in problems.current)


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
