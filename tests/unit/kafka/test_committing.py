"""Commits that fail: counted each time, logged at once and then once a minute, and over with the next success."""

import asyncio
from itertools import pairwise

import pytest
from aiokafka import TopicPartition
from aiokafka.errors import (
    CommitFailedError,
    GroupAuthorizationFailedError,
    KafkaError,
    NotCoordinatorForGroupError,
)
from structlog.testing import capture_logs

from dispatcher.config.kafka_settings import KafkaSettings
from dispatcher.contract.kafka_problems import KafkaReason
from dispatcher.contract.records import AssignmentEpoch
from dispatcher.kafka.committing import FAILURE_LASTS_S, Committer
from dispatcher.kafka.metadata_limit import SIZE_REFUSED, TRY_AGAIN_S
from dispatcher.kafka.offset_tracker import MAX_METADATA_BYTES
from dispatcher.kafka.partition import Partition
from dispatcher.kafka.problems import LOG_EVERY_S, KafkaProblems
from dispatcher.telemetry import metrics
from tests.unit.kafka.test_problems import Clock
from tests.unit.virtual_time import virtual_time

pytestmark = pytest.mark.usefixtures("_with_logs")

SETTINGS = KafkaSettings(bootstrap_servers="kafka:9092", topic="events", group_id="a")


class Broker:
    """Raises the error that the test sets, or takes the commit."""

    def __init__(self) -> None:
        self.error: Exception | None = None
        self.asked = 0

    async def commit(self, offsets: dict[TopicPartition, tuple[int, str]]) -> None:
        self.asked += 1
        if self.error is not None:
            raise self.error


@pytest.fixture
def clock() -> Clock:
    metrics.initialise()
    return Clock()


def _partition(scattered: int = 0) -> Partition:
    """Has a position to commit until a commit succeeds, and a number of runs of finished records beyond it."""
    partition = Partition(TopicPartition("events", 0), AssignmentEpoch())
    partition.restored = True
    finished = [8 + number * (number + 3) for number in range(scattered)]
    for offset in range(7, 8 + max(finished, default=0)):
        partition.tracker.start(offset)
    for offset in finished:
        partition.tracker.finish(offset)
    return partition


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (GroupAuthorizationFailedError("a"), "lacks READ on group a"),
        (CommitFailedError("rebalanced"), "given the partitions to another member (CommitFailedError)"),
        (NotCoordinatorForGroupError(), "no broker coordinates group a"),
        (TimeoutError(), "no answer in time"),
    ],
    ids=lambda one: type(one).__name__ if isinstance(one, Exception) else "",
)
async def test_a_failed_commit_is_a_problem_until_one_succeeds(error: Exception, says: str, clock: Clock) -> None:
    problems, broker, partition = KafkaProblems(clock), Broker(), _partition()
    committer = Committer("a", SETTINGS, lambda: 1, problems)
    broker.error = error
    with capture_logs() as lines:
        for _ in range(70):  # one each second
            assert not await committer.commit(broker, [partition])
            clock.now += 1
        warnings = [line["detail"] for line in lines if line["log_level"] == "warning"]
        assert len(warnings) == 2, "at once, and a minute later"
        assert says in warnings[0]
        (problem,) = problems.current
        assert (problem.reason, problem.stops_reading) == (KafkaReason.COMMIT_REFUSED, False)
        assert "offsets of group a can't be committed" in problem.detail
        broker.error = None
        assert await committer.commit(broker, [partition])
    assert problems.current == ()
    assert lines[-1]["event"] == "kafka problem solved"
    assert LOG_EVERY_S <= FAILURE_LASTS_S, "a persisting failure never looks solved in between"


@pytest.mark.parametrize("refusal", SIZE_REFUSED)
async def test_a_broker_that_refuses_every_commit_is_reported(clock: Clock, refusal: type[KafkaError]) -> None:
    problems, broker = KafkaProblems(clock), Broker()
    broker.error = refusal()

    committer = Committer("a", SETTINGS, lambda: 1, problems)
    assert not await committer.commit(broker, [_partition(scattered=20)])
    assert any("even without metadata" in problem.detail for problem in problems.current)
    assert broker.asked == 3, "with all metadata, with half of it, with none"


@pytest.mark.parametrize("refusal", SIZE_REFUSED)
@virtual_time
async def test_full_metadata_is_tried_again_after_a_while_and_the_problem_ends(refusal: type[KafkaError]) -> None:
    """The broker was repaired, or another one coordinates the group now: no restart is needed."""
    problems, broker = KafkaProblems(asyncio.get_running_loop().time), StrictBroker(100, refusal)
    committer, partition = Committer("a", SETTINGS, lambda: 1, problems), _partition(scattered=60)
    assert await committer.commit(broker, [partition])
    assert 0 < broker.lengths[-1] <= 100
    assert {one.reason for one in problems.current} == {KafkaReason.COMMIT_REFUSED}
    partition.committed = None
    asked = len(broker.lengths)
    assert await committer.commit(broker, [partition])
    assert len(broker.lengths) == asked + 1, "the limit is remembered"

    for _ in range(12):  # an hour
        await asyncio.sleep(TRY_AGAIN_S)
        partition.committed = None
        assert await committer.commit(broker, [partition])
        assert problems.current, "it is reported as long as it lasts"
    broker.most = MAX_METADATA_BYTES
    await asyncio.sleep(TRY_AGAIN_S)
    partition.committed = None
    assert await committer.commit(broker, [partition])
    assert broker.lengths[-1] > 100
    assert problems.current == ()


class StrictBroker(Broker):
    """Takes metadata up to a length."""

    def __init__(self, most: int, refusal: type[KafkaError]) -> None:
        super().__init__()
        self.most = most
        self.refusal = refusal
        self.lengths: list[int] = []

    async def commit(self, offsets: dict[TopicPartition, tuple[int, str]]) -> None:
        self.lengths.append(max(len(metadata) for _, metadata in offsets.values()))
        if self.lengths[-1] > self.most:
            raise self.refusal


async def test_a_partition_that_went_to_another_member_ends_the_problem(clock: Clock) -> None:
    problems, broker = KafkaProblems(clock), Broker()
    committer = Committer("a", SETTINGS, lambda: 1, problems)
    broker.error = CommitFailedError()
    assert not await committer.commit(broker, [_partition()])
    assert problems.current
    assert await committer.commit(broker, [])
    assert problems.current == ()


async def test_a_position_that_is_committed_already_is_not_committed_again() -> None:
    broker, partition = Broker(), _partition()
    committer = Committer("a", SETTINGS, lambda: 1, KafkaProblems())
    for _ in range(2):
        assert await committer.commit(broker, [partition])
    assert broker.asked == 1


# When


class SlowBroker(Broker):
    """Takes its time for each commit, and notes when each began."""

    def __init__(self, takes_s: float) -> None:
        super().__init__()
        self.takes_s = takes_s
        self.times: list[float] = []

    async def commit(self, offsets: dict[TopicPartition, tuple[int, str]]) -> None:
        self.times.append(asyncio.get_running_loop().time() - 1000.0)
        await asyncio.sleep(self.takes_s)
        await super().commit(offsets)


async def commit_times(takes_s: float, every_s: float, in_flight: int, for_s: float) -> list[float]:
    """Returns when commits began, while records finish at a fixed interval."""
    broker, partition, problems = SlowBroker(takes_s), Partition(TopicPartition("events", 0)), KafkaProblems()
    partition.restored = True
    settings = SETTINGS.model_copy(update={"commit_interval": 0.05})
    committer = Committer("a", settings, lambda: in_flight, problems)
    running = asyncio.create_task(committer.run(broker, lambda: [partition]))
    for offset in range(round(for_s / every_s)):
        await asyncio.sleep(every_s)
        partition.tracker.start(offset)
        partition.tracker.finish(offset)
        committer.on_finished()
    running.cancel()
    return [round(one, 3) for one in broker.times]


@virtual_time
@pytest.mark.parametrize("takes_s", [0.001, 0.02, 0.035])
async def test_a_commit_that_takes_long_does_not_delay_the_next(takes_s: float) -> None:
    times = await commit_times(takes_s, every_s=0.001, in_flight=1, for_s=1.0)
    assert {round(later - earlier, 3) for earlier, later in pairwise(times)} == {0.05}


@virtual_time
async def test_a_commit_that_takes_longer_than_the_interval_is_followed_by_another_after_a_short_wait() -> None:
    times = await commit_times(takes_s=0.2, every_s=0.001, in_flight=1, for_s=2.0)
    assert {round(later - earlier, 3) for earlier, later in pairwise(times)} <= {0.21, 0.211}


@virtual_time
async def test_records_that_come_seldom_are_committed_soon_each_once() -> None:
    assert await commit_times(takes_s=0.002, every_s=0.5, in_flight=0, for_s=2.0) == [0.51, 1.01, 1.51]


@virtual_time
async def test_a_commit_waits_for_half_as_many_records_as_posts_in_flight_but_no_longer_than_a_second() -> None:
    times = await commit_times(takes_s=0.002, every_s=0.002, in_flight=200, for_s=1.0)
    assert {0.19 < later - earlier < 0.26 for earlier, later in pairwise(times)} == {True}
    times = await commit_times(takes_s=0.002, every_s=0.1, in_flight=200, for_s=5.0)
    assert {0.99 < later - earlier < 1.21 for earlier, later in pairwise(times)} == {True}


@virtual_time
async def test_a_commit_that_fails_is_repeated_about_once_a_second() -> None:
    broker, partition = Broker(), _partition()
    broker.error = CommitFailedError()
    committer = Committer("a", SETTINGS, lambda: 0, KafkaProblems())
    running = asyncio.create_task(committer.run(broker, lambda: [partition]))
    committer.request()
    await asyncio.sleep(30)
    assert 25 <= broker.asked <= 30
    broker.error = None
    await asyncio.sleep(2)
    assert partition.committed is not None
    running.cancel()


@virtual_time
async def test_partitions_without_changes_are_not_examined() -> None:
    looks: list[float] = []

    def partitions() -> list[Partition]:
        looks.append(asyncio.get_running_loop().time())
        return []

    committer = Committer("a", SETTINGS, lambda: 0, KafkaProblems())
    running = asyncio.create_task(committer.run(Broker(), partitions))
    committer.on_finished()
    await asyncio.sleep(30)
    assert len(looks) == 1
    committer.on_finished()
    await asyncio.sleep(30)
    assert len(looks) == 2
    running.cancel()
