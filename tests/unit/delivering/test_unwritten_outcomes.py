"""An attempt that was judged is never made again because its outcome can't be written: only the write is repeated.

A consumer over a broker in memory, with the real pipeline. The retry, dead-letter or held topic refuses all writes for
a quarter of an hour.
"""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from structlog.testing import capture_logs

from dispatcher.contract.outcomes import Attempt, Delivered, FailureReason, Outcome
from dispatcher.contract.records import AssignmentEpoch, Lease, ProcessingAttempt, Record, RetryState
from dispatcher.contract.tenant import TenantKey
from dispatcher.errors import NotWritten
from dispatcher.kafka.consumer import Consumer
from dispatcher.kafka.held_topic import tenant_of
from dispatcher.kafka.read_ahead import ReadAheadLimit
from dispatcher.telemetry.event_log import EventLog
from tests.unit.delivering import test_consumer
from tests.unit.delivering.builders import Answer, Bench, wall
from tests.unit.examples import EMAIL_EVENT, ORIGIN, TENANT, a_record, webhook
from tests.unit.offsets import test_held_events
from tests.unit.simulation.broker import Member
from tests.unit.virtual_time import virtual_time

WHILE_S = 900.0
ABORT = Attempt(0.05, status=500, webhook_delivery="abort-message")
EVENT = json.dumps(EMAIL_EVENT).encode()


@asynccontextmanager
async def reading(bench: Bench, group: test_consumer.Bench, *, fast: bool = True) -> AsyncIterator[Consumer]:
    """A consumer of topic `t` that processes with the bench's pipeline."""

    async def joined(listener: Any) -> Any:
        return Member(group.group, listener)

    consumer = Consumer(
        group.settings, ("t",), "g", bench.pipeline.process, ReadAheadLimit(20_000, 10**8), drain_timeout_s=5,
        connect=joined, clock=wall, fast_path=bench.fast_path if fast else None, event_log=EventLog(wall),
    )  # fmt: skip
    task = asyncio.create_task(consumer.run())
    try:
        yield consumer
    finally:
        consumer.stop()
        await asyncio.wait_for(task, 30)
        await group.group.settled()


def produce(group: test_consumer.Bench, value: bytes = EVENT, count: int = 1) -> None:
    for _ in range(count):
        group.broker.append("t", b"\0", value, ())


def tier(name: str) -> str:
    return f"{ORIGIN.topic}.retry.{name}"


DEAD = f"{ORIGIN.topic}.dead"


@virtual_time
@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize(
    ("answer", "refusing", "posts", "refusals"),
    [
        (302, DEAD, 1, 0),
        (501, DEAD, 1, 0),
        (ABORT, DEAD, 1, 0),
        (400, tier("30s"), 1, 1),
        (404, tier("30s"), 1, 0),
        (410, tier("30s"), 1, 0),
        (503, tier("30s"), 4, 0),
        (FailureReason.TIMEOUT, tier("30s"), 4, 0),
        (Attempt(0.05, status=429, retry_after="60"), tier("30s"), 1, 0),
    ],
)
async def test_an_outcome_that_can_not_be_written_repeats_the_write_and_no_post(
    answer: Answer, refusing: str, posts: int, refusals: int, fast: bool
) -> None:
    bench, group = Bench(answer), test_consumer.Bench()
    bench.producer.refuses = {"*"}
    produce(group)
    async with reading(bench, group, fast=fast):
        await asyncio.sleep(WHILE_S)
        assert bench.transport.sent("webhook-attempt") == [str(number + 1) for number in range(posts)]
        assert bench.producer.refused > 30, "the write is repeated"
        assert group.committed()[0] == 0

        bench.producer.refuses = set()
        await asyncio.sleep(60)
        assert len(bench.transport.requests) == posts
        assert {topic: len(records) for topic, records in bench.producer.topics.items()} == {refusing: 1}
        state = RetryState.of(bench.producer.topics[refusing][0])
        assert (state.attempts, state.refusals) == (posts, refusals)
        assert state.parks == (refusing != DEAD), "a refused write doesn't count as parked"
        assert not state.not_before or state.not_before > wall() - 60, "it waits from the write on"
        assert group.committed()[0] == 1


@virtual_time
async def test_an_event_that_reaches_the_age_limit_while_its_tier_refuses_it_dies() -> None:
    bench, group = Bench(404), test_consumer.Bench()
    bench.producer.refuses = {tier("30s")}
    produce(group)
    async with reading(bench, group):
        await asyncio.sleep(25 * 3600)

        assert [dead["reason"] for dead in bench.dead()] == ["expired"]
        assert bench.transport.sent("webhook-attempt") == ["1"]


@virtual_time
async def test_a_drain_does_not_wait_for_a_write_that_is_refused_and_the_next_owner_has_the_event() -> None:
    bench, group = Bench(302), test_consumer.Bench()
    bench.producer.refuses = {DEAD}
    produce(group)
    async with reading(bench, group):
        await asyncio.sleep(WHILE_S)
    assert group.committed()[0] == 0
    bench.producer.refuses = set()
    async with reading(bench, group):
        await asyncio.sleep(5)

    assert len(bench.dead()) == 1
    assert len(bench.transport.requests) == 2, "the outcome was known to the first owner only"


@virtual_time
async def test_a_first_attempt_is_not_repeated_while_the_store_does_not_answer() -> None:
    """The webhook is not looked up for an attempt that was judged; quick tries go on after it."""
    for answer, first, all_of_them in ((302, ["1"], ["1"]), (503, ["1"], ["1", "2", "3", "4"])):
        bench, group = Bench(answer, takes_s=1.0), test_consumer.Bench()
        produce(group)
        async with reading(bench, group):
            await asyncio.sleep(0.9)
            bench.store.away = True
            await asyncio.sleep(WHILE_S)
            assert bench.transport.sent("webhook-attempt") == first
            bench.store.away = False
            await asyncio.sleep(120)

        assert bench.transport.sent("webhook-attempt") == all_of_them
        assert group.committed()[0] == 1


@virtual_time
async def test_a_first_attempt_counts_if_its_webhook_has_become_unusable() -> None:
    bench, group = Bench(503, takes_s=1.0), test_consumer.Bench()
    produce(group)
    async with reading(bench, group):
        await asyncio.sleep(0.9)
        bench.store.unusable = True
        await asyncio.sleep(30)

    assert [state.attempts for _, state in bench.parked()] == [1]


@virtual_time
async def test_attempts_count_on_if_the_store_fails_after_an_edit_between_two_quick_tries() -> None:
    bench, group = Bench(503, 503, 200), test_consumer.Bench()
    produce(group)
    async with reading(bench, group, fast=False):
        while not bench.transport.requests:
            await asyncio.sleep(0.01)
        bench.store.put(webhook(url="https://new.example/"))
        bench.store.away = True
        await asyncio.sleep(WHILE_S)
        bench.store.away = False
        await asyncio.sleep(60)

    assert bench.transport.sent("webhook-attempt") == ["1", "2", "3"]


@virtual_time
async def test_an_event_that_was_parked_without_an_attempt_follows_an_edit_while_its_tier_refuses_it() -> None:
    bench, group = Bench(200), test_consumer.Bench()
    bench.store.unusable = True
    bench.producer.refuses = {"*"}
    produce(group)
    async with reading(bench, group):
        await asyncio.sleep(WHILE_S)
        assert bench.transport.requests == []
        bench.store.unusable = False
        await asyncio.sleep(60)
        assert group.committed()[0] == 1

    assert bench.transport.sent("webhook-attempt") == ["1"]


@virtual_time
@pytest.mark.parametrize("answer", [302, 404, 503])
async def test_an_attempt_that_outlasts_the_session_is_not_made_again_once_the_group_answers(answer: int) -> None:
    """Neither the write nor a quick try may go out without the lease. Both wait, and the attempt counts."""
    bench, group = Bench(answer, takes_s=1.0), test_consumer.Bench()
    now = asyncio.get_running_loop().time
    lease = Lease(ends_at=now() + 0.5, now=now)
    epoch = AssignmentEpoch(lease=lease)
    bench.epoch = epoch
    produce(group)
    async with reading(bench, group, fast=False) as consumer:
        consumer.session.lease.now, consumer.session.lease.ends_at = now, now() + 0.8
        await asyncio.sleep(WHILE_S)
        assert bench.transport.sent("webhook-attempt") == ["1"]
        assert bench.producer.topics == {}
        consumer.heard(now())
        await asyncio.sleep(5)
        assert group.committed()[0] == 1

    assert bench.transport.sent("webhook-attempt") == ["1"]
    (written,) = [one for records in bench.producer.topics.values() for one in records]
    assert RetryState.of(written).attempts == 1


@virtual_time
async def test_a_held_event_whose_outcome_can_not_be_written_is_not_sent_again() -> None:
    bench, held = Bench(302), test_held_events.Bench()
    bench.producer.refuses = {DEAD}
    held.reader._processor._process = bench.pipeline.process
    held.broker.append(test_held_events.TOPIC, b"\1", EVENT, test_held_events.tenant_headers(TENANT))
    task = await held.start()
    held.reader.session.lease.ends_at = float("inf")
    held.release()
    await asyncio.sleep(WHILE_S)
    assert bench.transport.sent("webhook-attempt") == ["1"]
    assert bench.producer.refused > 20
    bench.producer.refuses = set()
    await asyncio.sleep(60)

    assert len(bench.dead()) == 1
    assert bench.transport.sent("webhook-attempt") == ["1"]
    await held.stop(task)


@virtual_time
async def test_held_events_whose_outcome_can_not_be_written_delay_no_others() -> None:
    held = test_held_events.Bench()
    other = TenantKey("other@AdobeOrg", "prod")
    tenants = [TenantKey(f"{number}@AdobeOrg", "prod") for number in range(30)]
    held.held.update((other, *tenants))
    for tenant in (*tenants * 50, other):
        held.broker.append(test_held_events.TOPIC, b"\1", EVENT, test_held_events.tenant_headers(tenant))
    sent = []

    async def process(record: Record, attempt: ProcessingAttempt) -> Outcome:
        attempt.start()
        if tenant_of(record.headers) != other:
            raise NotWritten(tier("30s"))
        sent.append(record.offset)
        return Delivered(1)

    held.reader._processor._process = process
    task = await held.start()
    held.reader.session.lease.ends_at = float("inf")
    held.release()
    await asyncio.sleep(600)
    assert len(sent) == 1
    assert len(held.reader._processor.repeated) == 1_500
    await held.stop(task)
    assert held.reader._processor.repeated == set()


@virtual_time
async def test_a_brake_that_is_released_lets_the_record_die_of_what_was_found_first() -> None:
    bench, group = Bench(200, brake=1), test_consumer.Bench()
    await bench.process(a_record(b"{", topic="t", partition=0))
    produce(group, b"{")
    async with reading(bench, group):
        await asyncio.sleep(WHILE_S)
        assert group.committed()[0] == 0
        bench.pipeline.brakes["t", 0].release()
        await asyncio.sleep(60)
        assert group.committed()[0] == 1

    assert [dead["reason"] for dead in bench.dead()] == ["unreadable", "unreadable"]


@pytest.mark.usefixtures("_with_logs")
@pytest.mark.parametrize("fast", [True, False])
@virtual_time
async def test_records_that_wait_for_a_write_are_logged_once_a_minute(fast: bool) -> None:
    bench, group = Bench(404), test_consumer.Bench()
    bench.producer.refuses = {"*"}
    produce(group, count=300)
    with capture_logs() as logs:
        async with reading(bench, group, fast=fast):
            await asyncio.sleep(WHILE_S)

    kept = [line for line in logs if line["event"].startswith("record kept for another try")]
    assert 1 <= len(kept) <= 2 * 16, "the first of a minute, and the number of the others"
    assert sum(line.get("count", 1) for line in kept) > 300 * 20
