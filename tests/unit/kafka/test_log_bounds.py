"""Offsets of several logs: one without an answer costs the others nothing."""

import asyncio
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any, cast

import pytest
from aiokafka import TopicPartition
from aiokafka.consumer.fetcher import READ_COMMITTED, READ_UNCOMMITTED
from aiokafka.errors import KafkaError, LeaderNotAvailableError, TopicAuthorizationFailedError

from dispatcher.kafka.log_bounds import LEADER_ANSWERS_S, LONGEST_ANSWER_S, end_offsets, first_offsets
from dispatcher.kafka.membership import GroupClient
from dispatcher.kafka.throttling import noting_throttling
from tests.unit.virtual_time import virtual_time

P0, P1, P2, P3 = EVERY = [TopicPartition("events", number) for number in range(4)]


class Fetcher:
    """Answers with the end of the log, or the one before an open transaction, as its isolation level says."""

    def __init__(self, consumer: "Consumer") -> None:
        self._isolation_level = READ_COMMITTED
        self._consumer = consumer

    async def end_offsets(self, tps: Sequence[TopicPartition], _timeout_ms: int) -> dict[TopicPartition, int]:
        ends = await self._consumer.end_offsets(tps)
        return {tp: end + 2 * (self._isolation_level == READ_UNCOMMITTED) for tp, end in ends.items()}


class Consumer:
    """What aiokafka's consumer does: it answers for all partitions of a call, or never."""

    def __init__(self) -> None:
        self.leaders: dict[TopicPartition, int | None] = {P0: 1, P1: 1, P2: 2, P3: 2}
        self.silent: set[TopicPartition] = set()
        self._listeners: list[Callable[[Consumer], None]] = []
        self.asked: list[set[TopicPartition]] = []
        self.topics: set[str] = set()
        """Topics whose leaders the client requests."""
        self._client = SimpleNamespace(
            cluster=self, _conns={}, force_metadata_update=self._look_again, send=self.assignment,
            add_topic=self.topics.add,
        )  # fmt: skip
        self._subscription = SimpleNamespace(subscription=SimpleNamespace(assignment=object()))
        self.partitions: dict[str, set[int]] = {tp.topic: {one.partition for one in EVERY} for tp in EVERY}
        self.unauthorized_topics: set[str] = set()
        self.leaders_known_later: dict[TopicPartition, int] = {}
        self.takes_s: dict[int, float] = {}
        """Seconds that a leader's answers take."""
        self._request_timeout_ms = 20_000
        self._fetcher = Fetcher(self)

    async def _look_again(self) -> bool:
        self.leaders |= {tp: leader for tp, leader in self.leaders_known_later.items() if tp.topic in self.topics}
        return True

    def leader_for_partition(self, tp: TopicPartition) -> int | None:
        return self.leaders[tp]

    def partitions_for_topic(self, topic: str) -> set[int] | None:
        return self.partitions.get(topic)

    def add_listener(self, listener: Callable[["Consumer"], None]) -> None:
        self._listeners.append(listener)

    def update_metadata(self) -> None:
        for listener in self._listeners:
            listener(self)

    def assignment(self) -> set[TopicPartition]:
        return set(EVERY)

    async def beginning_offsets(self, tps: Sequence[TopicPartition]) -> dict[TopicPartition, int]:
        return dict.fromkeys(await self._answered(tps), 5)

    async def end_offsets(self, tps: Sequence[TopicPartition]) -> dict[TopicPartition, int]:
        return dict.fromkeys(await self._answered(tps), 9)

    async def _answered(self, tps: Sequence[TopicPartition]) -> Sequence[TopicPartition]:
        self.asked.append(set(tps))
        if self.silent & set(tps) or any(self.leaders[tp] in (None, -1) for tp in tps):
            await asyncio.sleep(3600)
        await asyncio.sleep(max(self.takes_s.get(self.leaders[tp] or 0, 0.0) for tp in tps))
        return tps


@virtual_time
async def test_each_leader_is_queried_once() -> None:
    consumer = Consumer()
    assert await end_offsets(cast(Any, consumer), EVERY) == dict.fromkeys(EVERY, 9)
    assert consumer.asked == [{P0, P1}, {P2, P3}]
    assert await first_offsets(cast(Any, consumer), []) == {}


@virtual_time
@pytest.mark.parametrize("leader", [None, -1])
async def test_a_partition_without_a_leader_costs_the_others_nothing(leader: int | None) -> None:
    consumer = Consumer()
    consumer.leaders[P3] = leader
    began = asyncio.get_running_loop().time()
    assert await first_offsets(cast(Any, consumer), EVERY) == dict.fromkeys([P0, P1, P2], 5)
    assert asyncio.get_running_loop().time() - began < 0.1
    with pytest.raises(LeaderNotAvailableError):
        await first_offsets(cast(Any, consumer), [P3])


@virtual_time
async def test_a_leader_that_the_client_does_not_know_yet_is_looked_up() -> None:
    consumer = Consumer()
    consumer.leaders[P3], consumer.leaders_known_later = None, {P3: 2}
    assert await end_offsets(cast(Any, consumer), EVERY) == dict.fromkeys(EVERY, 9)


@virtual_time
async def test_an_odd_answer_costs_its_own_partitions_only() -> None:
    consumer = Consumer()
    answered = consumer.end_offsets

    async def odd(tps: Sequence[TopicPartition]) -> dict[TopicPartition, int]:
        if P3 in tps:
            raise KeyError("topics")
        return await answered(tps)

    consumer.end_offsets = odd  # type: ignore[method-assign]
    assert await end_offsets(cast(Any, consumer), EVERY) == dict.fromkeys([P0, P1, P2], 9)
    with pytest.raises(KafkaError, match="odd answer: KeyError"):
        await end_offsets(cast(Any, consumer), [P3])


@virtual_time
async def test_a_leaders_error_is_raised_if_no_other_answers() -> None:
    consumer = Consumer()

    async def refused(_: Sequence[TopicPartition]) -> dict[TopicPartition, int]:
        raise TopicAuthorizationFailedError("events")

    consumer.end_offsets = refused  # type: ignore[method-assign]
    with pytest.raises(TopicAuthorizationFailedError):
        await end_offsets(cast(Any, consumer), EVERY)


@virtual_time
async def test_a_partition_whose_leader_does_not_answer_for_it_costs_the_others_little_time() -> None:
    consumer = Consumer()
    consumer.silent = {P3}
    began = asyncio.get_running_loop().time()
    assert await end_offsets(cast(Any, consumer), EVERY) == dict.fromkeys([P0, P1, P2], 9)
    assert asyncio.get_running_loop().time() - began <= 2 * LEADER_ANSWERS_S + 1
    with pytest.raises(TimeoutError):
        await end_offsets(cast(Any, consumer), [P3])


@virtual_time
async def test_bounds_are_of_the_partitions_that_answer_and_only_those_without_a_leader_count_as_moved() -> None:
    consumer = Consumer()
    client = GroupClient(cast(Any, consumer))
    before = {tp: client.source_of(tp) for tp in EVERY}
    consumer.leaders[P3] = -1
    consumer.update_metadata()
    assert not client.was_deleted(P3.topic)
    assert {tp for tp in EVERY if client.source_of(tp) != before[tp]} == {P3}
    assert {tp: (one.start, one.end) for tp, one in (await client.bounds(EVERY)).items()} == {
        P0: (5, 11), P1: (5, 11), P2: (5, 11),
    }  # fmt: skip
    assert await client.end_offsets([P0]) == {P0: 11}, "the records of open transactions are there, too"
    assert await client.stable_ends([P0]) == {P0: 9}
    consumer.leaders[P3] = 2
    assert client.source_of(P3) != before[P3], "its log may have been replaced meanwhile"


class Throttled:
    """The answer of a broker to a client that has used up its quota."""

    def __init__(self, seconds: float) -> None:
        self.throttle_time_ms = int(seconds * 1000)


async def _throttle(consumer: Consumer, leader: int, seconds: float) -> None:
    async def send(*_: object, **__: object) -> Throttled:
        return Throttled(seconds)

    await noting_throttling(send)(consumer._client, leader, "fetch")


@virtual_time
async def test_a_leader_that_slows_this_process_down_is_waited_for() -> None:
    """Its answer to the fetch that waits before the question may say that it takes as long again."""
    consumer = Consumer()
    consumer.takes_s = {1: 18.0}
    await _throttle(consumer, 1, 10.0)
    asyncio.get_running_loop().call_later(10.0, lambda: asyncio.ensure_future(_throttle(consumer, 1, 8.0)))
    assert await end_offsets(cast(Any, consumer), EVERY) == dict.fromkeys(EVERY, 9)
    client = GroupClient(cast(Any, consumer))
    assert client.is_throttled(P0)
    assert not client.is_throttled(P2)
    await asyncio.sleep(5)
    assert not client.is_throttled(P0)


@pytest.mark.parametrize(
    ("left", "is_authorized", "was_deleted"),
    [({0, 1}, True, True), (set(), True, True), ({0, 1, 2, 3}, True, False), (set(), False, False)],
)
def test_a_topic_that_lost_a_partition_was_deleted_until_it_is_assigned_again(
    left: set[int], is_authorized: bool, was_deleted: bool
) -> None:
    """One that may not be described any more was not."""
    consumer = Consumer()
    client = GroupClient(cast(Any, consumer))
    consumer.partitions[P3.topic] = left
    consumer.leaders |= {tp: None for tp in EVERY if tp.partition not in left}
    consumer.unauthorized_topics = set() if is_authorized else {P3.topic}
    consumer.update_metadata()
    consumer.partitions[P3.topic] = {0, 1, 2, 3}
    consumer.update_metadata()
    assert client.was_deleted(P3.topic) is was_deleted

    consumer._subscription.subscription.assignment = object()
    assert not client.was_deleted(P3.topic)
    consumer.update_metadata()
    assert not client.was_deleted(P3.topic)


@virtual_time
@pytest.mark.parametrize("seconds", [0.0, 1.0, 10.0, 1e6])
async def test_a_leader_that_does_not_answer_is_given_up_whatever_its_throttle_time(seconds: float) -> None:
    consumer = Consumer()
    consumer.silent = {P0}
    await _throttle(consumer, 1, seconds)
    began = asyncio.get_running_loop().time()
    assert await end_offsets(cast(Any, consumer), [P0, P2, P3]) == dict.fromkeys([P2, P3], 9)
    assert asyncio.get_running_loop().time() - began <= LONGEST_ANSWER_S
    with pytest.raises(TimeoutError):
        await end_offsets(cast(Any, consumer), [P0])
