"""Counts of the retry tiers, from the group's commits to the topics' ends."""

import asyncio
import json
import time

import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.structs import OffsetAndMetadata

from dispatcher.config.settings import RetrySettings, Settings
from dispatcher.console.model import TierModel
from dispatcher.console.sources import retry_backlog as module
from dispatcher.console.sources.retry_backlog import RetryBacklog
from dispatcher.contract.records import Origin, RetryState
from dispatcher.contract.tenant import TenantKey
from dispatcher.delivery.retry_policy import RetryPolicy
from dispatcher.errors import BrokerUnavailable, DispatcherError
from dispatcher.kafka.held_topic import HeldTopic, Progress, Snapshot, SnapshotOffsets
from dispatcher.kafka.offset_tracker import encode_runs
from dispatcher.kafka.producer import Producer
from dispatcher.kafka.retry_topics import RetryTopics
from dispatcher.kafka.topics import held_topic
from dispatcher.notifications.waiting_counts import WaitingCounts, count_waiting
from tests.console.sources.conftest import settings_for
from tests.console.sources.dead_letter_builders import LUMA, OTHER
from tests.integration.brokers import needs_kafka
from tests.kafka import topics
from tests.kafka.apache_kafka import ApacheKafka
from tests.unit.examples import a_record, email_event

pytestmark = [needs_kafka, pytest.mark.timeout(300)]

DUE = time.time() + 30
EXPIRES = 1000.0 + 24 * 3600
"""First seen, plus the age limit."""
POLICY = RetryPolicy.of(RetrySettings.model_validate({}))


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
async def parked(settings: Settings, producer: Producer, mortal: ApacheKafka) -> "Parked":
    made = Parked(settings, producer, mortal)
    for topic in (*made.topics, made.held_topic):
        await topics.create_topic(mortal.bootstrap_servers, topic, partitions=1)
    return made


class Parked:
    """Parks events, and commits for the group that reads them."""

    def __init__(self, settings: Settings, producer: Producer, mortal: ApacheKafka) -> None:
        self._retry = RetryTopics(producer, settings.kafka.topic, POLICY)
        self._group = f"{settings.kafka.group_id}.retry"
        self._bootstrap = mortal.bootstrap_servers
        self.topics = self._retry.topics
        self.held_topic = held_topic(settings.kafka.prefix)
        self._held = HeldTopic(producer, self.held_topic)
        self._held_group = f"{settings.kafka.group_id}.held"

    async def park(self, tenant: TenantKey, tier: int, due: float = DUE) -> None:
        event = email_event(imsOrgId=tenant.org)
        journey = RetryState(Origin("t", 0, 1), 1000.0, attempts=1, parks=1, not_before=due)
        await self._retry.park(a_record(json.dumps(event).encode()), journey, tier)

    async def hold(self, tenant: TenantKey, reason: str) -> None:
        state = RetryState(Origin("t", 0, 1), 1000.0, parks=1, reason=reason)
        await self._held.hold(a_record(json.dumps(email_event(imsOrgId=tenant.org)).encode()), state, tenant)

    async def commit_held(self, offset: int, progress: dict[TenantKey, Progress]) -> None:
        """Commits as the reader of held events does: a snapshot, and its offset in the metadata."""
        at = await self._held.write_snapshot(0, Snapshot(progress))
        await self._commit(self._held_group, TopicPartition(self.held_topic, 0), offset, SnapshotOffsets(at).encode())

    async def commit(self, tier: int, offset: int, *finished: tuple[int, int]) -> None:
        tp = TopicPartition(self.topics[tier], 0)
        await self._commit(self._group, tp, offset, encode_runs(offset, finished))

    async def _commit(self, group: str, tp: TopicPartition, offset: int, metadata: str) -> None:
        consumer = AIOKafkaConsumer(bootstrap_servers=self._bootstrap, group_id=group, enable_auto_commit=False)
        await consumer.start()
        try:
            consumer.assign([tp])
            await consumer.commit({tp: OffsetAndMetadata(offset, metadata)})
        finally:
            await consumer.stop()


async def test_each_tenants_events_are_counted_by_tier_with_the_next_that_is_due(
    parked: Parked, settings: Settings
) -> None:
    for due in (DUE + 5, DUE, DUE + 9):
        await parked.park(LUMA, 0, due)
    await parked.park(LUMA, 3, DUE + 900)
    await parked.park(OTHER, 0)
    waiting = RetryBacklog(settings)
    assert await waiting.of(LUMA) == [
        TierModel("30s", 3, pytest.approx(DUE, abs=0.002), expires_at=EXPIRES),
        TierModel("15m", 1, pytest.approx(DUE + 900, abs=0.002), expires_at=EXPIRES),
    ]
    assert [(tier.tier, tier.events) for tier in await waiting.of(OTHER)] == [("30s", 1)]
    assert await waiting.of(TenantKey("nobody", "prod")) == []


async def test_finished_records_are_no_longer_counted(parked: Parked, settings: Settings) -> None:
    """The commit's position, and what its metadata says is done beyond it."""
    for _ in range(10):
        await parked.park(LUMA, 0)
    await parked.commit(0, 3, (5, 6), (9, 9))  # left: 3, 4, 7, 8
    assert [tier.events for tier in await RetryBacklog(settings).of(LUMA)] == [4]
    await parked.commit(0, 10)
    assert await RetryBacklog(settings).of(LUMA) == []


async def test_held_events_are_counted_by_reason_without_those_that_are_finished(
    parked: Parked, settings: Settings
) -> None:
    """The snapshot that the commit names lists the events that are finished beyond the position."""
    for tenant, reason in [(LUMA, "paused")] * 4 + [(OTHER, "unusable")] * 3 + [(LUMA, "suspended")]:
        await parked.hold(tenant, reason)
    assert await RetryBacklog(settings).of(LUMA) == [
        TierModel("held", 4, None, reason="paused", expires_at=EXPIRES),
        TierModel("held", 1, None, reason="suspended", expires_at=EXPIRES),
    ]
    await parked.commit_held(1, {OTHER: Progress(5, 7, (5,)), LUMA: Progress(2, 8, (2, 3))})  # left: 2 and 3, and 5
    assert await RetryBacklog(settings).of(LUMA) == [TierModel("held", 2, None, reason="paused", expires_at=EXPIRES)]
    assert await RetryBacklog(settings).of(OTHER) == [TierModel("held", 1, None, reason="unusable", expires_at=EXPIRES)]


async def test_the_number_of_examined_records_is_limited_and_that_is_shown(parked: Parked, settings: Settings) -> None:
    for _ in range(20):
        await parked.park(LUMA, 0)
    await parked.park(LUMA, 1)
    found = await RetryBacklog(settings, most_read=8).of(LUMA)
    assert [(tier.tier, tier.events, tier.is_at_least) for tier in found] == [("30s", 7, True), ("2m", 1, False)]


async def test_simultaneous_callers_share_one_cached_count(
    parked: Parked, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    await parked.park(LUMA, 0)
    clock = Clock()
    waiting = RetryBacklog(settings, clock=clock)
    counts = 0
    count = waiting._count

    async def counted() -> object:
        nonlocal counts
        counts += 1
        return await count()

    monkeypatch.setattr(waiting, "_count", counted)
    given_up = asyncio.create_task(waiting.of(LUMA))
    await asyncio.sleep(0)
    given_up.cancel()
    found = await asyncio.gather(*(waiting.of(LUMA) for _ in range(20)))
    assert counts == 1
    assert {tier.events for tiers in found for tier in tiers} == {1}
    await parked.park(LUMA, 0)
    clock.now += 9
    assert [tier.events for tier in await waiting.of(LUMA)] == [1]
    clock.now += 2
    assert [tier.events for tier in await waiting.of(LUMA)] == [2]
    await waiting.close()


async def test_a_caller_awaits_no_slow_count_to_its_end(
    parked: Parked, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A broker that takes connections and doesn't answer held every page of a webhook for 20 seconds."""
    await parked.park(LUMA, 0)
    clock = Clock()
    waiting = RetryBacklog(settings, clock=clock)
    answers, count, counts = asyncio.Event(), waiting._count, 0

    async def slowly() -> object:
        nonlocal counts
        counts += 1
        await answers.wait()
        return await count()

    monkeypatch.setattr(waiting, "_count", slowly)
    with monkeypatch.context() as patched:
        patched.setattr(module, "CALLER_WAITS_S", 0.01)
        with pytest.raises(BrokerUnavailable):
            await waiting.of(LUMA)
        patched.setattr(module, "CALLER_WAITS_S", 120.0)
        clock.now += module.CALLER_WAITS_S
        async with asyncio.timeout(60):  # the next caller does not wait as long again
            with pytest.raises(BrokerUnavailable):
                await waiting.of(LUMA)
        clock.now -= module.CALLER_WAITS_S
    answers.set()
    assert [tier.events for tier in await waiting.of(LUMA)] == [1]
    assert counts == 1


async def test_a_broker_that_is_away_is_an_error_not_a_zero() -> None:
    waiting = RetryBacklog(settings_for("127.0.0.1:1", "events"))
    for _ in range(2):
        with pytest.raises(DispatcherError, match="nothing listens there"):
            await waiting.of(LUMA)


async def test_a_tier_that_is_missing_is_named(settings: Settings) -> None:
    with pytest.raises(DispatcherError, match=r"there is no topic console-\d+\.retry\.30s"):
        await RetryBacklog(settings).of(LUMA)


async def test_a_count_for_notifications_says_if_it_is_a_lower_bound(settings: Settings, parked: Parked) -> None:
    for _ in range(3):
        await parked.park(LUMA, 0)
    await parked.hold(LUMA, "paused")
    assert await count_waiting(settings) == WaitingCounts({LUMA: 4}, is_at_least=False)
    assert await count_waiting(settings, max_read=4) == WaitingCounts({LUMA: 4}, is_at_least=False)
    assert await count_waiting(settings, max_read=2) == WaitingCounts({LUMA: 2}, is_at_least=True)
