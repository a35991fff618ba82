"""The consumer against a broker in memory: what is begun, what is committed, what a revocation and a stop leave behind.

The records' processing is scripted. The consumer as part of the whole is in tests/unit/test_simulation.py.
"""

import asyncio
import gc
import json
import random
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, cast

import pytest
from aiokafka import TopicPartition
from aiokafka.errors import KafkaConnectionError, LeaderNotAvailableError
from prometheus_client import REGISTRY

from dispatcher.config.kafka_settings import KafkaSettings
from dispatcher.contract.kafka_problems import KafkaReason
from dispatcher.contract.outcomes import Delivered, Outcome
from dispatcher.contract.records import ProcessingAttempt, Record
from dispatcher.delivery.direct_attempt import DirectAttempt
from dispatcher.errors import BrakeEngaged, NotWritten, StoreUnavailable
from dispatcher.kafka.committing import COMMIT_S
from dispatcher.kafka.consumer import Consumer
from dispatcher.kafka.offset_tracker import Run
from dispatcher.kafka.partition import HEADER_BYTES, InFlightRecord, Partition, size_of
from dispatcher.kafka.problems import KafkaProblems
from dispatcher.kafka.read_ahead import ReadAheadLimit
from tests.build_form import interpreted_only
from tests.unit.delivering import builders
from tests.unit.delivering.builders import wall
from tests.unit.examples import EMAIL_EVENT, a_record
from tests.unit.simulation.broker import Broker, Member
from tests.unit.virtual_time import seconds_taken, virtual_time

ONE, OTHER = TopicPartition("t", 0), TopicPartition("t", 1)


class Bench:
    """A group of consumers over one topic of two partitions; controls each record's processing."""

    def __init__(self, *, commits: bool = True, **settings: Any) -> None:
        """`commits`: False if nothing is committed but at a drain or revocation."""
        self.settings = KafkaSettings.model_validate({"bootstrap_servers": "none:1", **settings})
        self.settings = self.settings.model_copy(update={"commit_interval": 0.1 if commits else 3600.0})
        self.chance = random.Random(0)
        self.broker = Broker(self.chance, wall)
        self.chance.choice = lambda options: options[0]  # type: ignore[method-assign]  # no gaps, no delays
        self.chance.random = lambda: 1.0  # type: ignore[method-assign]  # nothing unlikely happens
        self.chance.randint = lambda _, most: most  # type: ignore[method-assign]
        self.group = self.broker.group("g", ("t",))
        self.first_result: list[tuple[int, int]] = []
        self.finished: Counter[tuple[int, int]] = Counter()
        self.under_way: set[tuple[int, int]] = set()
        self.gates: dict[tuple[int, int], asyncio.Event] = {}
        self.script: Callable[[Record], BaseException | float | None] = lambda _: None
        """For a record: an error to raise, seconds to take, or nothing."""
        self.starts = True
        self.most_under_way = 0
        self.consumers: list[Consumer] = []
        self.tasks: list[asyncio.Task[None]] = []

    def produce(self, partition: int, how_many: int) -> None:
        for _ in range(how_many):
            self.broker.append("t", bytes([partition]), b"value", ())

    def consumer(self, *, read_ahead: ReadAheadLimit | None = None, connect: Any = None, **fields: Any) -> Consumer:
        async def joined(listener: Any) -> Any:
            return Member(self.group, listener)

        return Consumer(
            self.settings, ("t",), "g", self.process, read_ahead or ReadAheadLimit(1000, 10**6), drain_timeout_s=5,
            connect=connect or joined, clock=wall, **fields,
        )  # fmt: skip

    async def run(self, consumer: Consumer | None = None) -> Consumer:
        consumer = consumer or self.consumer()
        self.consumers.append(consumer)
        self.tasks.append(asyncio.create_task(consumer.run()))
        await asyncio.sleep(0.5)
        return consumer

    async def stop(self, number: int = -1) -> float:
        self.consumers[number].stop()
        taken = await seconds_taken(self.tasks[number])
        await self.group.settled()
        return taken

    async def process(self, record: Record, processing: ProcessingAttempt) -> Outcome:
        place = (record.partition, record.offset)
        self.first_result.append(place)
        self.under_way.add(place)
        self.most_under_way = max(self.most_under_way, len(self.under_way))
        try:
            if self.starts:
                processing.start()
            what = self.script(record)
            if isinstance(what, BaseException):
                raise what
            await asyncio.sleep(what or 0)
            self.finished[place] += 1
            return Delivered(1)
        finally:
            self.under_way.discard(place)

    def committed(self, tp: TopicPartition = ONE) -> tuple[int, list[Run]]:
        return self.group.covers(tp)


def takes(slow: dict[int, float]) -> Callable[[Record], float | None]:
    """Offsets (of either partition) that take long."""
    return lambda record: slow.get(record.offset)


@virtual_time
async def test_a_commit_has_the_finished_position_and_the_records_finished_beyond_it() -> None:
    bench = Bench()
    bench.produce(0, 10)
    bench.script = takes({3: 100, 6: 100})
    await bench.run()
    await asyncio.sleep(1)

    assert bench.committed() == (3, [(4, 5), (7, 9)])
    await asyncio.sleep(100)
    assert bench.committed() == (10, [])
    assert await bench.stop() < 0.5


@virtual_time
async def test_a_partition_that_no_broker_leads_delays_no_check_of_another() -> None:
    """Its checks are repeated with long waits; another's is made as soon as it is wanted."""
    bench, offline = Bench(), {OTHER}

    async def joined(listener: Any) -> Member:
        member = Member(bench.group, listener)
        bounds = member.bounds

        async def answered(tps: Sequence[TopicPartition]) -> Any:
            led = [tp for tp in tps if tp not in offline]
            if not led:
                raise LeaderNotAvailableError
            return await bounds(led)

        member.bounds = answered  # type: ignore[method-assign]
        return member

    consumer = await bench.run(bench.consumer(connect=joined))
    await asyncio.sleep(120)
    bench.produce(0, 3)
    await asyncio.sleep(1)
    assert bench.committed()[0] == 3

    (other,) = [one for one in consumer.owned() if one.tp not in offline]
    consumer._checker.suspect(other)  # its leader has another connection
    bench.produce(0, 3)
    await asyncio.sleep(1.5)
    assert bench.committed()[0] == 6

    offline.clear()
    bench.produce(1, 3)
    await asyncio.sleep(30)
    assert bench.committed(OTHER)[0] == 3
    await bench.stop()


@virtual_time
async def test_a_crash_repeats_only_what_was_under_way() -> None:
    bench = Bench()
    bench.produce(0, 10)
    bench.script = takes({3: 100, 6: 100})
    await bench.run()
    await asyncio.sleep(1)
    bench.group.members[0].die()
    bench.tasks[0].cancel()
    await asyncio.wait(bench.tasks)
    bench.script = takes({})
    await bench.run()
    await asyncio.sleep(1)

    assert Counter(bench.first_result) == Counter({(0, offset): 1 for offset in range(10)} | {(0, 3): 2, (0, 6): 2})
    assert bench.committed() == (10, [])
    await bench.stop()


@virtual_time
async def test_a_drain_finishes_what_has_started_and_the_next_owner_repeats_nothing() -> None:
    bench = Bench(commits=False)
    bench.produce(0, 20)
    bench.script = takes({3: 2.0, 7: 3.0})
    await bench.run()
    taken = await bench.stop()
    assert taken == pytest.approx(2.5, abs=0.1)
    await bench.run()
    await asyncio.sleep(1)

    assert len(bench.first_result) == len(set(bench.first_result)) == 20
    await bench.stop()


@virtual_time
async def test_a_drain_cancels_at_once_records_of_which_nothing_was_sent() -> None:
    bench = Bench()
    bench.produce(0, 20)
    bench.starts = False
    bench.script = takes({3: 1000.0})
    await bench.run()

    assert await bench.stop() < 0.1
    assert bench.committed() == (3, [(4, 19)])


@virtual_time
async def test_a_drain_takes_no_longer_than_its_time_and_cuts_off_the_rest() -> None:
    bench = Bench()
    bench.produce(0, 20)
    bench.script = takes({3: 1000.0})
    await bench.run()

    assert await bench.stop() == pytest.approx(5, abs=0.1)
    assert bench.under_way == set()
    assert bench.committed() == (3, [(4, 19)])


@virtual_time
async def test_a_broker_that_does_not_answer_does_not_hold_up_a_drain_for_ever() -> None:
    """The commit is repeated until it is answered; Kubernetes kills us long before that."""
    bench = Bench(commits=False)
    bench.produce(0, 5)
    await bench.run()
    bench.broker.faults.commits_hang = True

    assert await bench.stop() < COMMIT_S + 1


@virtual_time
async def test_cancelled_it_stops_at_once_and_commits_nothing_that_is_not_finished() -> None:
    bench = Bench()
    bench.produce(0, 20)
    bench.script = takes({3: 1000.0})
    await bench.run()
    bench.tasks[0].cancel()

    assert await seconds_taken(asyncio.wait(bench.tasks)) < 0.1
    assert bench.under_way == set()
    assert bench.committed()[0] == 3


@virtual_time
async def test_a_revoked_partition_is_committed_before_it_is_anothers() -> None:
    """Also what finishes during the short wait; the next owner repeats nothing."""
    bench = Bench(commits=False)
    bench.produce(0, 10)
    bench.produce(1, 10)
    bench.script = takes({4: 3.0})
    await bench.run()
    await bench.run()
    await asyncio.sleep(4)
    assert {len(member.assigned) for member in bench.group.members} == {1}

    assert len(bench.first_result) == len(set(bench.first_result)) == 20
    assert (bench.committed(ONE), bench.committed(OTHER)) == ((10, []), (10, []))
    await bench.stop(0)
    await bench.stop(1)


@virtual_time
@pytest.mark.parametrize("name", ["commit", "getmany", "end_offsets"])
async def test_an_odd_answer_does_not_end_the_consumer(name: str) -> None:
    """aiokafka raises KeyError and AttributeError on answers that it doesn't know."""
    bench = Bench()
    problems = KafkaProblems(asyncio.get_running_loop().time)
    await bench.run(bench.consumer(problems=problems))
    (member,) = bench.group.members

    async def odd(*_: object, **__: object) -> None:
        raise KeyError("an odd answer")

    working = getattr(member, name)
    setattr(member, name, odd)
    bench.produce(0, 3)
    await asyncio.sleep(20)
    assert not bench.tasks[0].done()
    assert problems.reports(KafkaReason.COMMIT_REFUSED if name == "commit" else KafkaReason.UNEXPECTED)
    setattr(member, name, working)
    await asyncio.sleep(60)
    assert bench.committed()[0] == 3
    assert problems.current == ()
    await bench.stop()


@interpreted_only
@virtual_time
async def test_a_bug_while_partitions_are_revoked_leaves_none_of_them_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench()
    bench.produce(0, 3)
    bench.script = takes({1: 1000})
    consumer = await bench.run()
    partitions = list(consumer.owned())

    async def bug(*_: object) -> bool:
        raise AssertionError("a bug")

    monkeypatch.setattr(consumer._committer, "commit", bug)
    with pytest.raises(AssertionError):
        await consumer.revoked([ONE, OTHER])
    assert not consumer.owned()
    await asyncio.sleep(1)
    assert consumer.unfinished == 0
    assert not any(one.epoch.active or one.in_flight for one in partitions)
    bench.tasks[0].cancel()
    await asyncio.wait(bench.tasks)


@virtual_time
async def test_the_gauges_of_a_revoked_partition_are_left_to_its_next_owner() -> None:
    def shown() -> set[str]:
        names = ("dispatcher_kafka_consumer_lag_records", "dispatcher_kafka_finished_offset")
        places = [{"topic": "t", "partition": str(tp.partition)} for tp in (ONE, OTHER)]
        return {
            f"{name} {place['partition']}"
            for name in names
            for place in places
            if REGISTRY.get_sample_value(name, place) is not None
        }

    bench = Bench()
    consumer = await bench.run()
    consumer.observe()
    assert len(shown()) == 4
    await consumer.revoked([ONE])
    assert shown() == {"dispatcher_kafka_consumer_lag_records 1", "dispatcher_kafka_finished_offset 1"}
    await consumer.revoked([ONE, OTHER])
    assert shown() == set()
    await bench.stop()


@virtual_time
async def test_a_request_that_hangs_holds_up_a_rebalance_for_five_seconds_and_is_repeated_by_the_next_owner() -> None:
    bench = Bench()
    bench.produce(0, 10)
    bench.script = takes({4: 1000.0})
    await bench.run()
    bench.consumers.append(bench.consumer())
    bench.tasks.append(asyncio.create_task(bench.consumers[-1].run()))
    await asyncio.sleep(4.9)
    assert bench.under_way == {(0, 4)}
    await asyncio.sleep(0.5)
    bench.script = takes({})
    await asyncio.sleep(0.5)

    assert Counter(bench.first_result)[0, 4] == 2
    assert [bench.first_result.count((0, offset)) for offset in range(10) if offset != 4] == [1] * 9
    await bench.stop(0)
    await bench.stop(1)


@virtual_time
async def test_nothing_is_committed_for_a_partition_that_we_do_not_own() -> None:
    """We were thrown out of the group without hearing of it: the commit fails, and the process goes on."""
    bench = Bench()
    bench.produce(0, 5)
    await bench.run()
    member = bench.group.members[0]
    bench.group.generation += 1
    bench.produce(0, 5)
    await asyncio.sleep(1)
    assert bench.committed() == (5, [])
    assert not bench.tasks[0].done()

    member.generation = bench.group.generation
    await asyncio.sleep(1)
    assert bench.committed() == (10, [])
    await bench.stop()


@virtual_time
@pytest.mark.parametrize("error", [NotWritten("x"), StoreUnavailable("x"), BrakeEngaged("x"), KeyError("a bug")])
async def test_a_record_that_raises_is_begun_again_with_growing_waits_and_not_passed_by(error: Exception) -> None:
    bench = Bench()
    bench.produce(0, 5)
    times: list[float] = []

    def script(record: Record) -> BaseException | None:
        if record.offset == 2:
            times.append(asyncio.get_running_loop().time())
            return error if len(times) < 8 else None
        return None

    bench.script = script
    await bench.run()
    assert bench.committed() == (2, [(3, 4)])
    await asyncio.sleep(200)

    waits = [round(later - earlier) for earlier, later in zip(times, times[1:], strict=False)]
    assert waits == [1, 2, 4, 8, 16, 30, 30]
    assert bench.committed() == (5, [])
    await bench.stop()


@virtual_time
async def test_a_record_that_waits_to_be_begun_again_does_not_hold_up_a_drain() -> None:
    bench = Bench()
    bench.produce(0, 5)
    bench.script = lambda record: NotWritten("x") if record.offset == 2 else None
    await bench.run()
    await asyncio.sleep(20)

    assert await bench.stop() < 0.1
    assert bench.committed() == (2, [(3, 4)])


@virtual_time
async def test_a_partitions_window_pauses_it_and_not_the_others() -> None:
    bench = Bench(partition_window=5)
    bench.produce(0, 100)
    bench.produce(1, 100)
    bench.script = lambda record: 1000.0 if record.partition == 0 else None
    await bench.run()
    await asyncio.sleep(5)

    assert bench.under_way == {(0, offset) for offset in range(5)}
    assert bench.committed(OTHER) == (100, [])
    bench.produce(1, 50)
    await asyncio.sleep(1)
    assert bench.committed(OTHER) == (150, [])
    bench.tasks[0].cancel()
    await asyncio.wait(bench.tasks)


@virtual_time
async def test_one_record_that_hangs_stops_its_partition_only_at_ten_windows() -> None:
    bench = Bench(partition_window=5)
    bench.produce(0, 200)
    bench.script = takes({10: 1000.0})
    await bench.run()
    await asyncio.sleep(5)

    assert max(bench.first_result) == (0, 10 + 49)
    bench.tasks[0].cancel()
    await asyncio.wait(bench.tasks)


@virtual_time
@pytest.mark.parametrize("read_ahead", [ReadAheadLimit(7, 10**6), ReadAheadLimit(1000, 37)])
async def test_the_process_has_a_bound_on_records_and_bytes(read_ahead: ReadAheadLimit) -> None:
    """Keys and values of six bytes: seven of them pass 37 bytes, and the last one that fits is let in."""
    bench = Bench()
    bench.produce(0, 60)
    bench.produce(1, 60)
    bench.script = lambda _: 0.05
    await bench.run(bench.consumer(read_ahead=read_ahead))
    await asyncio.sleep(2)

    assert bench.most_under_way == 7
    assert (bench.committed(ONE), bench.committed(OTHER)) == ((60, []), (60, []))
    assert (read_ahead.records, read_ahead.bytes) == (0, 0)
    await bench.stop()


@virtual_time
async def test_large_headers_are_within_the_bound_on_bytes() -> None:
    bench, read_ahead = Bench(), ReadAheadLimit(1000, 3_000)
    for _ in range(20):
        bench.broker.append("t", bytes([0]), b"v", [("h", b"x" * 1_000)])
    bench.script = lambda _: 0.05
    await bench.run(bench.consumer(read_ahead=read_ahead))
    await asyncio.sleep(2)

    assert bench.most_under_way == 3
    assert bench.committed()[0] == 20
    assert read_ahead.bytes == 0
    await bench.stop()


@virtual_time
async def test_a_budget_that_another_consumer_has_used_up_is_found_free_again() -> None:
    bench = Bench()
    read_ahead = ReadAheadLimit(3, 10**6, records=3)
    bench.produce(0, 5)
    bench.produce(1, 5)
    await bench.run(bench.consumer(read_ahead=read_ahead))
    assert bench.first_result == []
    for _ in range(3):
        read_ahead.remove(0, 0.0)
    await asyncio.sleep(1)

    assert len(bench.first_result) == 10
    await bench.stop()


WAITS = [BrakeEngaged("most would die"), NotWritten("t.retry.30s"), StoreUnavailable("away"), RuntimeError("a bug")]


@virtual_time
@pytest.mark.parametrize("error", WAITS, ids=lambda error: type(error).__name__)
async def test_records_that_are_repeated_for_long_stop_no_other_partition(error: Exception) -> None:
    """Each other record takes a second, so the limit is at its least."""
    bench, read_ahead = Bench(partition_window=10_000), ReadAheadLimit(20_000, 10**8)
    bench.produce(0, 12_000)
    bench.script = lambda record: error if record.partition == 0 else 1.0
    await bench.run(bench.consumer(read_ahead=read_ahead))
    await asyncio.sleep(10)
    bench.produce(1, 100)
    await asyncio.sleep(10)

    assert bench.committed(OTHER)[0] == 100
    assert 0 < read_ahead.repeated <= 20_000 / 5, "one partition takes its share only"
    assert read_ahead.records == 0
    bench.script = lambda _: None
    await asyncio.sleep(120)
    assert bench.committed(ONE)[0] == 12_000, "and its records go on once they can"
    assert (read_ahead.records, read_ahead.repeated, read_ahead.bytes) == (0, 0, 0)
    await bench.stop()


@virtual_time
async def test_large_records_that_are_repeated_leave_memory_to_the_other_partitions() -> None:
    bench, read_ahead = Bench(), ReadAheadLimit(20_000, 900_000)
    bench.script = lambda record: NotWritten("t.retry.30s") if record.partition == 0 else None
    await bench.run(bench.consumer(read_ahead=read_ahead))
    for _ in range(5_000):
        bench.broker.append("t", bytes([0]), b"x" * 290, ())
    await asyncio.sleep(20)
    bench.produce(1, 100)
    await asyncio.sleep(10)

    assert bench.committed(OTHER)[0] == 100
    assert read_ahead.repeated
    assert await bench.stop() < 6
    assert (read_ahead.records, read_ahead.repeated, read_ahead.bytes) == (0, 0, 0)


@virtual_time
async def test_records_that_are_not_due_wait_and_hold_up_no_other_partition() -> None:
    bench = Bench()
    bench.produce(0, 3)
    bench.produce(1, 3)
    began = wall()
    due = {(0, 0): began + 20, (0, 1): began + 21.5, (0, 2): began}
    await bench.run(bench.consumer(due_in_s=lambda record, now: due.get((record.partition, record.offset), 0) - now))
    assert [partition for partition, _ in bench.first_result] == [1, 1, 1]
    await asyncio.sleep(18)
    assert len(bench.first_result) == 3
    await asyncio.sleep(2)
    assert bench.first_result[3:] == [(0, 0)]
    await asyncio.sleep(2)

    assert bench.first_result[3:] == [(0, 0), (0, 1), (0, 2)]
    await bench.stop()


@virtual_time
async def test_records_that_come_before_the_assignment_is_known_wait_for_it() -> None:
    """Else what the last owner finished would be repeated."""
    bench = Bench()
    bench.produce(0, 10)
    bench.script = takes({3: 100})
    await bench.run()
    await asyncio.sleep(1)
    bench.group.members[0].die()
    bench.tasks[0].cancel()
    await asyncio.wait(bench.tasks)
    bench.chance.choice = lambda options: options[-1]  # type: ignore[method-assign]  # the listener is called late
    bench.script = takes({})
    await bench.run()
    await asyncio.sleep(1)

    assert Counter(bench.first_result)[0, 5] == 1
    assert Counter(bench.first_result)[0, 3] == 2
    await bench.stop()


@virtual_time
async def test_a_broker_that_is_away_at_the_start_is_waited_for() -> None:
    bench = Bench()
    bench.produce(0, 3)
    result = 0

    async def connect(listener: Any) -> Any:
        nonlocal result
        result += 1
        if result < 4:
            raise KafkaConnectionError
        return Member(bench.group, listener)

    consumer = await bench.run(bench.consumer(connect=connect))
    assert not consumer.session.joined
    await asyncio.sleep(10)

    assert consumer.session.joined
    assert len(bench.first_result) == 3
    await bench.stop()


@virtual_time
async def test_it_can_be_stopped_while_the_broker_is_away() -> None:
    async def connect(_: Any) -> Any:
        await asyncio.sleep(10_000)

    bench = Bench()
    await bench.run(bench.consumer(connect=connect))

    assert await bench.stop() < 0.1


@virtual_time
async def test_a_lost_broker_is_waited_for_and_reported() -> None:
    bench = Bench()
    consumer = await bench.run()
    bench.broker.faults.away = True
    bench.produce(0, 3)
    await asyncio.sleep(60)
    assert not consumer.session.broker_answers
    assert not bench.tasks[0].done()
    bench.broker.faults.away = False
    await asyncio.sleep(40)

    assert consumer.session.broker_answers
    assert bench.committed() == (3, [])
    await bench.stop()


@virtual_time
async def test_a_commit_that_fails_is_covered_by_the_next() -> None:
    bench = Bench()
    await bench.run()
    bench.broker.faults.away = True
    await asyncio.sleep(0.01)
    bench.broker.faults.away = False
    bench.produce(0, 3)
    await asyncio.sleep(3)

    assert bench.committed() == (3, [])
    await bench.stop()


@virtual_time
async def test_the_repr_of_a_consumer_shows_its_state() -> None:
    bench = Bench()
    bench.produce(0, 3)
    bench.script = lambda _: 100.0
    consumer = await bench.run()

    assert repr(consumer) == "<Consumer g 2 partitions, 3 unfinished>"
    oldest = consumer.observe()
    assert oldest is not None
    assert oldest == pytest.approx(wall(), abs=1)
    bench.tasks[0].cancel()
    await asyncio.wait(bench.tasks)


@pytest.mark.parametrize("implausible", [0, -1, 1_800_000_000, 1_900_000_000_000, 1_700_000_000_000])
def test_the_oldest_record_is_found_whatever_the_timestamps_of_the_others(implausible: int) -> None:
    """They are missing, in seconds, in the future or over a year old: such a record counts from its reading."""
    now = 1_800_000_000.0
    partition = Partition(ONE)

    def begin(timestamp: int, read_at: float) -> None:
        stored = a_record(b"v", b"k", (), "t", 0, len(partition.in_flight), timestamp)
        item = InFlightRecord(cast(Any, None), partition, stored)
        item.read_at = read_at
        partition.in_flight[stored.offset] = item

    assert partition.oldest(now) is None
    begin(implausible, now - 60)
    assert partition.oldest(now) == now - 60
    begin(int(now - 3600) * 1000, now - 30)
    assert partition.oldest(now) == now - 3600


@pytest.mark.parametrize("headers", [(), (("h", b"x" * 900),), (("x" * 900, None),), (("", b""),) * 9])
@pytest.mark.parametrize(("key", "value"), [(b"k" * 900, b"v"), (None, None), (b"k", b"v" * 900)])
def test_keys_and_headers_count_as_memory(headers: Any, key: bytes | None, value: bytes | None) -> None:
    """A header without text takes memory, too: a fetch may have hundreds of thousands."""
    text = sum(len(name) + len(text or b"") for name, text in headers)
    counted = size_of(a_record(value, key, headers))
    assert counted == len(key or b"") + len(value or b"") + text + HEADER_BYTES * len(headers)


def _under_way() -> int:
    """Works and flights that exist."""
    return sum(isinstance(one, InFlightRecord | DirectAttempt) for one in gc.get_objects())


@virtual_time
async def test_records_of_the_fast_path_are_freed_without_the_garbage_collector() -> None:
    bench = Bench()
    for _ in range(5):
        bench.broker.append("t", b"\0", json.dumps(EMAIL_EVENT).encode(), ())
    gc.collect()
    gc.disable()
    before = _under_way()  # other tests end their processes in mid-air
    try:
        await bench.run(bench.consumer(fast_path=builders.Bench(200).fast_path))
        await asyncio.sleep(5)

        assert bench.committed() == (5, [])
        assert bench.first_result == [], "none took the slow path"
        assert _under_way() == before
    finally:
        gc.enable()
    await bench.stop()
