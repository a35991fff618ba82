"""Delivered events on a real broker: found in the history, read again in the topic of events, sent to the retry topic."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from aiokafka import AIOKafkaProducer, TopicPartition
from aiokafka.admin import RecordsToDelete

from dispatcher.config.settings import Settings
from dispatcher.console.resend_model import RedriveModel, ResendCheck, ResendQuery
from dispatcher.console.sources import delivered_events as module
from dispatcher.console.sources.delivered_events import DeliveredEvents
from dispatcher.console.sources.redrive_jobs import RedriveJobs
from dispatcher.contract.events import DeliveryEvent, read_event
from dispatcher.contract.history import HistoryOutcome
from dispatcher.contract.records import Origin, RetryState
from dispatcher.contract.tenant import TenantKey
from dispatcher.errors import DispatcherError, NotFound
from dispatcher.stores.sql import history_search
from dispatcher.stores.sql.jobs import JobStore
from tests.console.history_store import FilledHistory, entry_of, history_in
from tests.console.sources.conftest import running, until
from tests.console.sources.dead_letter_builders import LUMA, OTHER
from tests.integration.brokers import needs_kafka
from tests.kafka import topics
from tests.kafka.apache_kafka import ApacheKafka
from tests.unit.examples import email_event

pytestmark = [needs_kafka, pytest.mark.timeout(300)]

ALL = ResendQuery(since=0.0)
FORGED = RetryState(Origin("forged", 9, 9), 1.0, attempts=99).headers()


@dataclass
class World:
    """A topic of events with its history, and the jobs."""

    settings: Settings
    history: FilledHistory
    jobs: RedriveJobs
    resends: DeliveredEvents
    bootstrap: str
    producer: "AIOKafkaProducer[bytes, bytes]"

    async def delivered(self, tenant: TenantKey, number: int) -> Origin:
        """Writes an event to the topic of events, and its delivery to the history."""
        event = email_event(imsOrgId=tenant.org, _id=f"event-{number}")
        event["header"]["sandbox"]["name"] = tenant.sandbox
        topic, key = self.settings.kafka.topic, str(number).encode()
        at = await self.producer.send_and_wait(
            topic, json.dumps(event).encode(), key, partition=number % 2, headers=[("own", b"1"), *FORGED]
        )
        origin = Origin(topic, at.partition, at.offset)
        place = {"topic": topic, "partition": at.partition, "offset": at.offset, "webhook_id": f"msg_{number}"}
        await self.history.add(entry_of(tenant, str(number), age_s=100 - number, **place))
        return origin

    async def done(self, job: RedriveModel) -> RedriveModel:
        async def is_over() -> bool:
            return (await self.jobs.get(job.id, orgs=None)).is_over

        await until(is_over, "the job's end")
        return await self.jobs.get(job.id, orgs=None)

    async def more_than(self, events: int, job: RedriveModel) -> None:
        """Waits until a job has sent more events."""

        async def are_sent() -> bool:
            return (await self.jobs.get(job.id, orgs=None)).sent > events

        await until(are_sent, f"more than {events} sent events")

    async def sent(self) -> dict[Origin, DeliveryEvent]:
        """Returns the events of the retry topic by their origin."""
        found = {}
        for record in await topics.read_all(self.bootstrap, f"{self.settings.kafka.prefix}.retry.30s"):
            state = RetryState.of(record)
            event = read_event(record, state.origin)
            assert isinstance(event, DeliveryEvent)
            assert (state.attempts, dict(record.headers)["own"]) == (0, b"1")
            assert state.origin not in found
            found[state.origin] = event
        return found


@pytest.fixture
async def world(settings: Settings, mortal: ApacheKafka, tmp_path: Path, job_store: JobStore) -> AsyncIterator[World]:
    prefix = settings.kafka.prefix
    # Without a history topic every job waits five seconds for one at its end.
    for name, partitions in ((settings.kafka.topic, 2), (f"{prefix}.retry.30s", 1), (f"{prefix}.history", 1)):
        await topics.create_topic(mortal.bootstrap_servers, name, partitions=partitions)
    jobs = RedriveJobs(settings.kafka, job_store)
    producer: AIOKafkaProducer[bytes, bytes] = AIOKafkaProducer(bootstrap_servers=mortal.bootstrap_servers)
    await producer.start()
    try:
        async with history_in(tmp_path) as history, running(jobs.run()):
            await asyncio.sleep(0)
            resends = DeliveredEvents(settings, history.lookup, jobs)
            yield World(settings, history, jobs, resends, mortal.bootstrap_servers, producer)
    finally:
        await producer.stop()


async def test_delivered_events_go_back_once_each_as_themselves(world: World) -> None:
    origins = [await world.delivered(LUMA, number) for number in range(8)]
    await world.delivered(OTHER, 20)
    await world.history.add(entry_of(LUMA, "3", age_s=1, webhook_id="msg_3", topic=origins[3].topic, partition=origins[3].partition,
                                     offset=origins[3].offset))  # fmt: skip  # a repeat: delivered twice, sent once
    assert await world.resends.check(LUMA, ALL) == ResendCheck(8, 0)
    some = ResendQuery(event_ids=("msg_2", "msg_5", "msg_20"))  # another tenant's id selects nothing
    job = await world.done(await world.resends.start(LUMA, some, "ada"))
    assert (job.state, job.kind, job.sent, job.by) == ("done", "delivered", 2, "ada")
    assert (await world.sent()).keys() == {origins[2], origins[5]}
    with pytest.raises(NotFound):
        await world.resends.start(LUMA, ResendQuery(event_ids=("msg_20",)), "ada")
    with pytest.raises(NotFound):
        await world.jobs.get(job.id, orgs=frozenset({OTHER.org}))


async def test_a_delivery_before_hundreds_of_other_entries_is_found(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(history_search, "MAX_TIMELINE", 2)
    await world.delivered(LUMA, 1)
    failed = [entry_of(LUMA, "1", age_s=age, outcome=HistoryOutcome.ATTEMPT) for age in (3, 2, 1)]
    await world.history.add(*failed)
    assert await world.resends.check(LUMA, ResendQuery(event_ids=("msg_1",))) == ResendCheck(1, 0)


async def test_lost_or_replaced_records_are_counted_as_gone(world: World) -> None:
    """An offset may belong to another tenant's record if the topic was recreated."""
    origins = [await world.delivered(LUMA, number) for number in range(6)]
    other = await world.delivered(OTHER, 30)
    await world.history.add(entry_of(LUMA, "31", age_s=1, webhook_id="msg_31", topic=other.topic, partition=other.partition,
                                     offset=other.offset))  # fmt: skip
    tp = TopicPartition(origins[0].topic, 0)
    async with topics.admin_client(world.bootstrap) as admin:
        await admin.delete_records({tp: RecordsToDelete(2)})
    assert await world.resends.check(LUMA, ALL) == ResendCheck(5, 2)
    job = await world.done(await world.resends.start(LUMA, ALL, "ada"))
    assert (job.state, job.total, job.sent, job.gone) == ("done", 4, 4, 3)
    sent = await world.sent()
    assert {origin for origin in origins if origin.partition == 1 or origin.offset >= 2} == sent.keys()
    assert {event.tenant for event in sent.values()} == {LUMA}


async def test_a_job_is_stopped_after_its_batch_and_another_may_start(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "RATE", 20.0)
    for number in range(60):
        await world.delivered(LUMA, number)
    job = await world.resends.start(LUMA, ALL, "ada")
    with pytest.raises(DispatcherError, match="are being sent again already"):
        await world.resends.start(LUMA, ALL, "eve")
    await world.more_than(0, job)
    assert (await world.jobs.stop(job.id, orgs=None)).stopping
    stopped = await world.done(job)
    assert stopped.state == "stopped"
    assert 0 < stopped.sent < 60
    assert len(await world.sent()) == stopped.sent
    assert [one.id for one in await world.jobs.search(orgs=frozenset({LUMA.org}))] == [job.id]
    assert await world.jobs.search(orgs=frozenset({OTHER.org})) == []


async def test_one_job_sends_all_that_match_however_many(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A job stopped at 10,000: an hour of 100 events a second was 36 orders with times that were chosen by hand."""
    monkeypatch.setattr(module, "MOST_EVENTS", 4)
    monkeypatch.setattr(module, "_PAGE", 2)
    origins = [await world.delivered(LUMA, number) for number in range(11)]
    check = await world.resends.check(LUMA, ALL)
    assert (check.events, check.is_at_least, check.left_out, check.sent_before) == (4, True, 0, 0)
    job = await world.resends.start(LUMA, ALL, "ada")
    assert (job.total, job.total_is_at_least, job.resume is not None) == (4, True, True)
    job = await world.done(job)
    assert (job.state, job.sent, job.total, job.total_is_at_least, job.resume) == ("done", 11, 11, False, None)
    assert (await world.sent()).keys() == set(origins)


async def test_an_event_that_was_delivered_twice_is_sent_once_by_a_job_of_several_parts(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MOST_EVENTS", 2)
    monkeypatch.setattr(module, "_PAGE", 2)
    origins = [await world.delivered(LUMA, number) for number in range(6)]
    place = {"topic": origins[0].topic, "partition": origins[0].partition, "offset": origins[0].offset}
    await world.history.add(entry_of(LUMA, "0", age_s=1, **place))  # the newest and the oldest
    job = await world.done(await world.resends.start(LUMA, ALL, "ada"))
    assert (job.state, job.sent, job.already) == ("done", 6, 1)
    assert (await world.sent()).keys() == set(origins)  # asserts that none is there twice


async def test_a_stopped_job_goes_on_where_it_ended(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RATE", 10.0)
    monkeypatch.setattr(module, "MOST_EVENTS", 20)
    monkeypatch.setattr(module, "_PAGE", 10)
    origins = [await world.delivered(LUMA, number) for number in range(60)]
    job = await world.resends.start(LUMA, ALL, "ada")
    await world.more_than(20, job)
    await world.jobs.stop(job.id, orgs=None)
    stopped = await world.done(job)
    assert (stopped.state, 20 < stopped.sent < 60) == ("stopped", True)
    assert stopped.resume is not None
    rest = replace(ALL, until=stopped.resume.until, checked_at=stopped.resume.checked_at)
    monkeypatch.setattr(module, "MOST_EVENTS", 100)
    check = await world.resends.check(LUMA, rest)
    assert (check.events, check.left_out < stopped.sent) == (60 - stopped.sent, True)  # none of the first part
    monkeypatch.setattr(module, "RATE", 500.0)
    job = await world.done(await world.resends.start(LUMA, rest, "ada"))
    assert (job.state, job.sent, job.already) == ("done", 60 - stopped.sent, check.left_out)
    assert (await world.sent()).keys() == set(origins)


async def test_a_check_names_those_that_were_sent_again_before(world: World) -> None:
    """After a stopped job, or one of another pod, the next check counted all of them as new, without a word."""
    origins = [await world.delivered(LUMA, number) for number in range(5)]
    for number, age_s in ((0, 2.0), (3, 4.0), (4, 200.0)):  # the last one before that delivery
        place = {name: getattr(origins[number], name) for name in ("topic", "partition", "offset")}
        redriven = entry_of(
            LUMA, str(number), age_s=age_s, outcome=HistoryOutcome.REDRIVEN, reason="delivered", **place
        )
        await world.history.add(redriven)
    check = await world.resends.check(LUMA, ALL)
    assert (check.events, check.left_out, check.sent_before) == (5, 0, 2)
    assert check.sent_before_since == pytest.approx(time.time() - 4, abs=60)
    check = await world.resends.check(LUMA, replace(ALL, checked_at=check.sent_before_since))
    assert (check.events, check.left_out, check.sent_before) == (3, 2, 0)


async def test_an_order_that_is_given_twice_sends_nothing_twice(world: World) -> None:
    """Going back and pressing once more, or a client's repeat after a time-out; after another check they are sent."""
    origins = [await world.delivered(LUMA, number) for number in range(4)]
    checked = replace(ALL, checked_at=time.time())
    some = ResendQuery(event_ids=("msg_1",), checked_at=checked.checked_at)
    assert (await world.done(await world.resends.start(LUMA, some, "ada"))).sent == 1
    job = await world.done(await world.resends.start(LUMA, checked, "ada"))
    assert (job.total, job.sent, job.already) == (3, 3, 1)
    for again in (some, checked):
        with pytest.raises(NotFound, match="sent again since they were checked"):
            await world.resends.start(LUMA, again, "ada")
    assert (await world.sent()).keys() == set(origins)
    another = DeliveredEvents(
        world.settings, world.history.lookup, world.jobs
    )  # of another pod: knows the history only
    place = {"topic": origins[0].topic, "partition": origins[0].partition, "offset": origins[0].offset}
    await world.history.add(entry_of(LUMA, "0", age_s=-1, outcome=HistoryOutcome.REDRIVEN, reason="delivered", **place))
    with pytest.raises(NotFound, match="sent again since they were checked"):
        await another.start(LUMA, ResendQuery(event_ids=("msg_0",), checked_at=checked.checked_at), "ada")
    later = ResendQuery(event_ids=("msg_1",), checked_at=time.time())
    assert (await world.done(await world.resends.start(LUMA, later, "ada"))).sent == 1
