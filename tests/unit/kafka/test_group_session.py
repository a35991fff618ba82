"""A consumer's session in its group: what it knows before anything happened, how errors end, what is reported."""

import asyncio
from typing import Any, cast

from aiokafka import TopicPartition
from aiokafka.errors import KafkaConnectionError, TopicAuthorizationFailedError

from dispatcher.config.kafka_settings import KafkaSettings
from dispatcher.contract.kafka_problems import KafkaReason
from dispatcher.contract.records import Lease
from dispatcher.kafka.group_coordinator import FencedMember
from dispatcher.kafka.group_session import FIRST_REPEAT_S, LONGEST_POLL_WAIT_S, REPORTED_S, WATCH_S, GroupSession
from dispatcher.kafka.log_bounds import LONGEST_ANSWER_S
from dispatcher.kafka.membership import GroupClient
from dispatcher.kafka.problems import KafkaProblems
from dispatcher.kafka.readiness import kafka_checks
from dispatcher.telemetry import metrics
from tests.unit.virtual_time import seconds_taken, virtual_time

TP = TopicPartition("events", 0)


class Bench:
    """A session with the loop's clock, and what it called."""

    def __init__(self) -> None:
        self.now = asyncio.get_running_loop().time
        settings = KafkaSettings.model_validate({"bootstrap_servers": "none:1", "group_id": "g"})
        self.session_s = settings.session_timeout
        self.problems = KafkaProblems(self.now)
        self.fenced = self.renewed = self.looks = 0
        self.session = GroupSession(
            settings, "g", self.problems, lease=Lease(now=self._now), on_fenced=self._fenced, on_renewed=self._renewed
        )

    def _now(self) -> float:
        self.looks += 1
        assert self.looks < 1000, "the lease is looked at again and again without a wait"
        return self.now()

    def _fenced(self) -> None:
        self.fenced += 1

    def _renewed(self) -> None:
        self.renewed += 1

    def reasons(self) -> set[KafkaReason]:
        return {one.reason for one in self.problems.current}


@virtual_time
async def test_a_session_begins_without_an_assignment_or_an_answer() -> None:
    session = Bench().session
    assert (session.joined, session.broker_answers, session.last_poll, session.fenced) == (False, False, 0.0, None)
    assert not session.stopping.is_set()
    assert GroupSession(KafkaSettings.model_validate({"bootstrap_servers": "none:1", "group_id": "g"}), "g").lease
    rebalances = metrics.REBALANCES._value.get()
    session.on_assigned()
    assert (session.joined, session.broker_answers) == (True, True)
    assert metrics.REBALANCES._value.get() == rebalances + 1


@virtual_time
async def test_the_lease_lasts_a_session_from_the_heartbeat_that_was_answered() -> None:
    bench = Bench()
    bench.session.heard(bench.now() - 2)
    assert bench.session.lease.ends_at == bench.now() - 2 + bench.session_s
    assert bench.renewed == 0, "it was not over"
    assert await seconds_taken(bench.session.until_member()) < 0.1, "a member waits for nothing"
    await asyncio.sleep(bench.session_s)
    bench.session.on_poll(5.0)
    assert bench.session.last_poll == 5.0
    assert bench.reasons() == {KafkaReason.SESSION_LOST}
    bench.session.heard(bench.now() - bench.session_s)
    assert (bench.renewed, bench.reasons()) == (0, {KafkaReason.SESSION_LOST}), "the answer is as old as the session"
    waiting = asyncio.create_task(bench.session.until_member())
    await asyncio.sleep(30.5 * FIRST_REPEAT_S)
    assert not waiting.done()
    began = bench.now()
    bench.session.heard(began)
    await waiting
    assert bench.now() - began < 0.1, "the renewal wakes it"
    assert (bench.renewed, bench.reasons()) == (1, set())
    bench.session.on_poll(6.0)
    assert bench.reasons() == set()
    await asyncio.sleep(bench.session_s)
    waiting = asyncio.create_task(bench.session.until_member())
    await asyncio.sleep(30)
    assert not waiting.done(), "it is over again"
    bench.session.heard(bench.now())
    await waiting
    assert bench.renewed == 2


@virtual_time
async def test_polls_after_errors_wait_longer_and_longer_until_one_succeeds() -> None:
    bench, at = Bench(), list[float]()

    async def step() -> None:
        at.append(bench.now())
        if len(at) == 7:
            return
        if len(at) == 9:
            assert bench.reasons() == {KafkaReason.UNREACHABLE}, "the errors are reported"
            raise FencedMember("taken by another")
        raise KafkaConnectionError("gone")

    await bench.session.poll(step)
    waits = [later - earlier for earlier, later in zip(at, at[1:], strict=False)]
    assert all(0 < wait <= LONGEST_POLL_WAIT_S * 1.5 for wait in waits[:6])
    assert waits[5] > 2 * waits[0]
    assert waits[6] < 0.1, "it goes on at once after a success"
    assert waits[7] < 2 * FIRST_REPEAT_S < waits[5], "the waits start again after a success"
    assert bench.session.fenced == "taken by another"
    assert bench.session.stopping.is_set()
    assert bench.fenced == 1
    assert KafkaReason.MEMBER_FENCED in bench.reasons()
    assert "kafka.group_instance_id" in next(
        one.detail for one in bench.problems.current if one.reason is KafkaReason.MEMBER_FENCED
    )


@virtual_time
async def test_the_watch_says_whether_the_brokers_answer() -> None:
    bench, asked = Bench(), list[list[TopicPartition]]()
    answers: list[Any] = [KafkaConnectionError("gone"), None, {TP: 7}]
    ends: list[Any] = []

    class Client:
        async def end_offsets(self, tps: list[TopicPartition]) -> Any:
            asked.append(tps)
            answer = answers[min(len(asked), len(answers)) - 1]
            if answer is None:
                await asyncio.sleep(LONGEST_ANSWER_S + 10)
            if isinstance(answer, Exception):
                raise answer
            return answer

    partitions: list[TopicPartition] = []
    bench.session.broker_answers = True
    watching = asyncio.create_task(bench.session.watch(cast(GroupClient, Client()), lambda: partitions, ends.append))
    await asyncio.sleep(3 * WATCH_S)
    assert (asked, bench.session.broker_answers) == ([], True), "a member without partitions asks nothing"
    await asyncio.sleep(1)
    partitions.append(TP)
    await asyncio.sleep(WATCH_S)
    assert (bench.session.broker_answers, bench.reasons()) == (False, {KafkaReason.UNREACHABLE})
    bench.session.broker_answers = True
    await asyncio.sleep(WATCH_S + LONGEST_ANSWER_S + 3)
    assert not bench.session.broker_answers, "no answer in time"
    await asyncio.sleep(WATCH_S)
    assert (bench.session.broker_answers, bench.reasons(), ends) == (True, set(), [{TP: 7}])
    watching.cancel()


@virtual_time
async def test_brokers_that_answer_with_an_error_are_not_said_to_be_silent() -> None:
    bench = Bench()

    class Client:
        async def end_offsets(self, _: list[TopicPartition]) -> Any:
            raise TopicAuthorizationFailedError("events")

    bench.session.broker_answers = True
    watching = asyncio.create_task(bench.session.watch(cast(GroupClient, Client()), lambda: [TP]))
    await asyncio.sleep(WATCH_S + 1)
    assert (bench.session.broker_answers, bench.reasons()) == (True, {KafkaReason.PERMISSION_MISSING})
    watching.cancel()


@virtual_time
async def test_a_consumer_that_has_not_joined_says_only_that() -> None:
    bench = Bench()
    failed = {one.name: one.reason for one in kafka_checks([bench.session], []) if not one.ok}
    assert failed == {"consumer g joined": "has not joined the group yet"}
    bench.session.on_assigned()
    bench.session.broker_answers = False
    failed = {one.name: one.reason for one in kafka_checks([bench.session], []) if not one.ok}
    assert failed == {"consumer g broker": "the brokers do not answer; it keeps trying"}


@virtual_time
async def test_partitions_that_do_not_answer_while_others_do_are_named() -> None:
    bench, tps = Bench(), [TopicPartition("events", number) for number in range(8)]
    answered = {tps[0]: 7}

    class Client:
        async def end_offsets(self, _: list[TopicPartition]) -> dict[TopicPartition, int]:
            return answered

    watching = asyncio.create_task(bench.session.watch(cast(GroupClient, Client()), lambda: tps))
    for _ in range(20):
        await asyncio.sleep(WATCH_S)
    (problem,) = bench.problems.current
    assert (problem.reason, problem.stops_reading) == (KafkaReason.PARTITION_OFFLINE, False)
    assert "no broker answers for events/1, events/2, events/3, events/4, events/5 and 2 more:" in problem.detail
    assert bench.session.broker_answers
    answered = dict.fromkeys(tps, 7)
    await asyncio.sleep(WATCH_S)
    assert bench.reasons() == set()
    watching.cancel()


@virtual_time
async def test_a_reported_error_is_forgotten_after_a_while_without_another() -> None:
    bench = Bench()
    bench.session.report(KafkaConnectionError("gone"))
    await asyncio.sleep(REPORTED_S - 1)
    assert bench.reasons() == {KafkaReason.UNREACHABLE}
    await asyncio.sleep(2)
    assert bench.reasons() == set()


@virtual_time
async def test_a_consumer_that_is_stopped_before_it_has_joined_joins_no_more() -> None:
    bench = Bench()

    async def join() -> str:
        await asyncio.sleep(60)
        return "joined"

    connecting = asyncio.create_task(bench.session.connect(join))
    await asyncio.sleep(1)
    bench.session.stopping.set()
    assert await connecting is None
    other = Bench()
    assert await other.session.connect(join) == "joined"
