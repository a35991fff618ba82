"""Dead events on a real broker: followed, sent again one by one, some and all, over interruptions."""

import asyncio
import json
import time
from collections import Counter
from collections.abc import AsyncIterator

import pytest
from aiokafka import TopicPartition
from aiokafka.admin import RecordsToDelete
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.structs import ConsumerRecord

from dispatcher.config.settings import Settings
from dispatcher.console.model import DeadQuery
from dispatcher.console.resend_model import DeadCount, RedriveModel, SkippedCount
from dispatcher.console.sources import dead_events as module
from dispatcher.console.sources import redrive_jobs
from dispatcher.console.sources.dead_event_index import DeadEventIndex
from dispatcher.console.sources.dead_events import DeadLetterReader
from dispatcher.contract.outcomes import DeadReason, SkipReason
from dispatcher.contract.records import Origin, RetryState
from dispatcher.contract.tenant import TenantKey
from dispatcher.demo.broker import EmbeddedBroker
from dispatcher.errors import BrokerUnavailable, DispatcherError, NotFound
from dispatcher.kafka.connection import connection_arguments
from dispatcher.kafka.dead_letters import TRUNCATED
from dispatcher.kafka.producer import Producer
from dispatcher.kafka.topic_reader import TopicReader
from dispatcher.stores.sql.jobs import JobStore
from tests.console.sources.conftest import reader_of, running, settings_for, until
from tests.console.sources.dead_letter_builders import LUMA, OTHER, Grave
from tests.integration.brokers import needs_kafka
from tests.kafka import topics
from tests.kafka.apache_kafka import ApacheKafka
from tests.unit.examples import email_event, webhook

pytestmark = [needs_kafka, pytest.mark.timeout(300)]

ALL = DeadQuery()
MINE = frozenset({LUMA.org})


@pytest.fixture
async def grave(settings: Settings, producer: Producer, mortal: ApacheKafka) -> Grave:
    """Yields the builder of dead events. A redrive waits five seconds for a history topic that is missing."""
    for name in (f"{settings.kafka.prefix}.{suffix}" for suffix in ("retry.30s", "dead", "history")):
        await topics.create_topic(mortal.bootstrap_servers, name, partitions=3)
    return Grave(producer, settings)


@pytest.fixture
async def log(settings: Settings, grave: Grave, job_store: JobStore) -> AsyncIterator[DeadLetterReader]:
    made = reader_of(settings, job_store)
    async with running(made.run(), made.jobs.run()):
        await until(lambda: made.follower.problem is None, "what was there to be read")
        yield made


async def kept(log: DeadLetterReader, count: int) -> list[str]:
    """Ids of LUMA's dead events, once there are so many that were not sent again."""
    await until(lambda: log.count(LUMA, 0.0) == count, f"{count} dead events")
    return [fact.id for fact in log.search(DeadQuery(tenant=LUMA, limit=200), orgs=None).items]


async def done(log: DeadLetterReader, job: RedriveModel) -> RedriveModel:
    async def is_over() -> bool:
        return (await log.jobs.get(job.id, orgs=None)).is_over

    await until(is_over, "the redrive's end")
    return await log.jobs.get(job.id, orgs=None)


async def sent(mortal: ApacheKafka, settings: Settings) -> Counter[Origin]:
    """What went back, by where it first stood."""
    records = await topics.read_all(mortal.bootstrap_servers, f"{settings.kafka.prefix}.retry.30s")
    return Counter(RetryState.of(record).origin for record in records)


async def test_one_then_some_then_all_go_back_each_once(
    log: DeadLetterReader, grave: Grave, settings: Settings, mortal: ApacheKafka
) -> None:
    origins = [await grave.dead_letter() for _ in range(6)]
    others = [await grave.dead_letter(OTHER), await grave.dead_letter(LUMA, DeadReason.REJECTED)]
    await until(lambda: len(log.memory) == 8, "all dead events")
    by_origin = {fact.origin: fact.id for fact in log.search(ALL, orgs=None).items}
    first = frozenset({by_origin[origins[3]]})

    job = await log.redrive(LUMA, ids=first, query=ALL, by="ada", orgs=MINE)
    assert (job.total, job.by, job.tenant) == (1, "ada", LUMA)
    assert (await done(log, job)).sent == 1
    assert await sent(mortal, settings) == Counter([origins[3]])
    await until(lambda: log.get(by_origin[origins[3]], orgs=MINE).redriven, "its mark")

    some = first | {by_origin[origins[0]], by_origin[origins[5]]}
    job = await done(log, await log.redrive(LUMA, ids=some, query=ALL, by="ada", orgs=None))
    assert (job.state, job.total, job.sent, job.already) == ("done", 2, 2, 1)
    await until(lambda: log.count(LUMA, 0.0) == 4, "the marks")

    job = await log.redrive(LUMA, ids=None, query=DeadQuery(reasons=frozenset({"expired"})), by="ada", orgs=MINE)
    assert job.total == 3
    assert (await done(log, job)).sent == 3
    assert await sent(mortal, settings) == Counter(origins)
    assert not set(others) & set(await sent(mortal, settings))
    await until(lambda: log.count(LUMA, 0.0) == 1, "the marks")

    job = await done(log, await log.redrive(LUMA, ids=None, query=ALL, by="ada", orgs=MINE))
    assert (job.sent, job.already) == (1, 6)
    assert await sent(mortal, settings) == Counter([*origins, others[1]])
    assert log.count(OTHER, 0.0) == 1


async def test_events_between_two_chosen_ones_are_not_redriven(
    log: DeadLetterReader, grave: Grave, settings: Settings, mortal: ApacheKafka
) -> None:
    for _ in range(7):  # in three partitions: one has three of them
        await grave.dead_letter()
    await kept(log, 7)
    facts = {fact.id: fact for fact in log.search(DeadQuery(tenant=LUMA), orgs=None).items}
    partitions = Counter(name.partition("-")[0] for name in facts)
    fullest = partitions.most_common(1)[0][0]
    own = sorted((name for name in facts if name.startswith(f"{fullest}-")), key=lambda name: int(name[2:]))
    chosen = {own[0], own[-1]}
    job = await done(log, await log.redrive(LUMA, ids=frozenset(chosen), query=ALL, by="ada", orgs=MINE))
    assert (job.total, job.sent) == (2, 2)
    assert await sent(mortal, settings) == Counter(facts[name].origin for name in chosen)
    await until(lambda: log.count(LUMA, 0.0) == 5, "the marks")


async def test_events_that_the_topic_kept_no_longer_are_counted_as_gone(
    log: DeadLetterReader, grave: Grave, settings: Settings, mortal: ApacheKafka
) -> None:
    """Such events are shown while they are in memory; a redrive then reports that nothing was sent, and why."""
    origins = [await grave.dead_letter() for _ in range(4)]
    ids = await kept(log, 4)
    gone = {ids[0]}
    partition, offset = map(int, ids[0].split("-"))
    tp = TopicPartition(f"{settings.kafka.topic}.dead", partition)
    gone |= {one for one in ids if one.startswith(f"{partition}-")}
    async with topics.admin_client(mortal.bootstrap_servers) as admin:
        await admin.delete_records({tp: RecordsToDelete(offset + 1)})
    job = await done(log, await log.redrive(LUMA, ids=frozenset(ids), query=ALL, by="ada", orgs=MINE))
    assert (job.state, job.sent, job.gone) == ("done", len(origins) - len(gone), len(gone))
    assert (await sent(mortal, settings)).total() == len(origins) - len(gone)


async def test_records_are_kept_even_if_the_broker_reports_too_low_an_end(job_store: JobStore) -> None:
    """The embedded broker reports too low an end after a batch of several; the demo's console still sends all again."""
    async with EmbeddedBroker() as broker:
        settings = settings_for(broker.bootstrap_servers, "events")
        for name in ("events.retry.30s", "events.dead"):
            await topics.create_topic(broker.bootstrap_servers, name, partitions=1)
        log = reader_of(settings, job_store)
        async with Producer(settings.kafka) as producer, running(log.run(), log.jobs.run()):
            grave = Grave(producer, settings)
            await asyncio.gather(*(grave.dead_letter() for _ in range(5)))
            newest, *_ = await kept(log, 5)
            one = await done(log, await log.redrive(LUMA, ids=frozenset({newest}), query=ALL, by="ada", orgs=MINE))
            assert (one.state, one.total, one.sent, one.gone) == ("done", 1, 1, 0)
            rest = await done(log, await log.redrive(LUMA, ids=None, query=ALL, by="ada", orgs=MINE))
            assert (rest.sent, rest.already) == (4, 1)


async def test_only_events_with_the_selected_status_go_back(
    log: DeadLetterReader, grave: Grave, settings: Settings, mortal: ApacheKafka
) -> None:
    await grave.dead_letter(status="sent")
    wanted = await grave.dead_letter(status="bounce")
    await kept(log, 2)
    query = DeadQuery(message_statuses=frozenset({"bounce"}))
    job = await done(log, await log.redrive(LUMA, ids=None, query=query, by="ada", orgs=MINE))
    assert (job.total, job.sent) == (1, 1)
    assert await sent(mortal, settings) == Counter([wanted])


async def test_dead_events_that_can_not_be_sent_are_neither_counted_nor_sent(
    settings: Settings, grave: Grave, producer: Producer, mortal: ApacheKafka, job_store: JobStore
) -> None:
    wanted = await grave.dead_letter()
    whose = (("imsOrgId", LUMA.org.encode()), ("sandboxName", b"prod"))
    await grave.dead_letter(value=b"{", headers=whose)
    value = json.dumps(email_event(imsOrgId=LUMA.org)).encode()
    await producer.write(f"{settings.kafka.prefix}.dead", b"key", value, [(TRUNCATED, b"headers")], "dead")
    await grave.dead_letter(campaign="x" * 9_000)
    limited = settings.model_copy(update={"kafka": settings.kafka.model_copy(update={"max_record_bytes": 9_000})})
    log = reader_of(limited, job_store)
    async with running(log.run(), log.jobs.run()):
        await until(lambda: log.follower.problem is None, "what was there to be read")
        ids = await kept(log, 4)
        page = log.search(ALL, orgs=MINE)
        assert (page.total, page.sendable, await log.count_matching(LUMA, ALL)) == (4, {LUMA: 1}, DeadCount(1))
        job = await done(log, await log.redrive(LUMA, ids=None, query=ALL, by="ada", orgs=MINE))
        assert (job.state, job.total, job.sent, job.unreadable, job.truncated) == ("done", 1, 1, 2, 1)
        job = await done(log, await log.redrive(LUMA, ids=frozenset(ids), query=ALL, by="ada", orgs=MINE))
        assert (job.sent, job.already, job.unreadable, job.truncated, job.gone) == (0, 1, 2, 1, 0)
    assert await sent(mortal, settings) == Counter([wanted])


async def test_events_that_the_retry_topic_refuses_are_named_by_the_job(
    log: DeadLetterReader, grave: Grave, settings: Settings, mortal: ApacheKafka
) -> None:
    await grave.dead_letter()
    await grave.dead_letter(campaign="x" * 9_000)
    retry = ConfigResource(
        ConfigResourceType.TOPIC, f"{settings.kafka.prefix}.retry.30s", {"max.message.bytes": "5000"}
    )
    async with topics.admin_client(mortal.bootstrap_servers) as admin:
        await admin.alter_configs([retry])
    await kept(log, 2)
    job = await done(log, await log.redrive(LUMA, ids=None, query=ALL, by="ada", orgs=MINE))
    assert (job.state, job.total, job.sent, job.too_large) == ("done", 2, 1, 1)


async def test_events_that_the_webhook_would_skip_now_are_counted_by_rule(
    log: DeadLetterReader, grave: Grave, settings: Settings
) -> None:
    for status, campaign in (("bounce", "winter"), ("error", "winter"), ("bounce", "spring")):
        await grave.dead_letter(status=status, campaign=campaign)
    await grave.dead_letter(OTHER, status="error")
    await grave.dead_letter(value=b"{", headers=(("imsOrgId", LUMA.org.encode()), ("sandboxName", b"prod")))
    await kept(log, 4)
    assert log.would_be_skipped(LUMA, webhook().config, ids=None, query=ALL) == ()
    narrow = webhook(events=["bounce"], campaigns=["winter"]).config
    by_rule = {one.reason: one.events for one in log.would_be_skipped(LUMA, narrow, ids=None, query=ALL)}
    assert by_rule == {SkipReason.STATUS: 1, SkipReason.CAMPAIGN: 1}
    sms = webhook(channels=["sms"]).config
    one = log.search(DeadQuery(tenant=LUMA, sendable=True), orgs=None).items[0].id
    assert log.would_be_skipped(LUMA, sms, ids=frozenset({one}), query=ALL) == (SkippedCount(SkipReason.CHANNEL, 1),)
    spring = DeadQuery(campaign_id="spring")
    assert log.would_be_skipped(LUMA, sms, ids=None, query=spring) == (SkippedCount(SkipReason.CHANNEL, 1),)
    await done(log, await log.redrive(LUMA, ids=None, query=spring, by="ada", orgs=MINE))
    await kept(log, 3)
    assert log.would_be_skipped(LUMA, sms, ids=None, query=spring) == ()


async def test_all_of_a_time_go_back_though_the_console_keeps_only_some(
    settings: Settings, grave: Grave, mortal: ApacheKafka, monkeypatch: pytest.MonkeyPatch, job_store: JobStore
) -> None:
    """The memory of the console is bounded for all tenants together; the topic has every dead event."""
    since = int(time.time() * 1000) / 1000  # as exact as the time in a record
    bounces = [await grave.dead_letter(campaign="spring") for _ in range(5)]
    error = await grave.dead_letter(status="error")
    await grave.dead_letter(OTHER)
    await grave.dead_letter(value=b"{", headers=(("imsOrgId", LUMA.org.encode()), ("sandboxName", b"prod")))
    log = reader_of(settings, job_store, DeadEventIndex(4))
    async with running(log.run(), log.jobs.run()):
        await until(lambda: not log.memory.is_all and log.follower.problem is None, "too much to keep")
        assert log.search(DeadQuery(tenant=LUMA), orgs=None).total <= 4
        every = log.search(ALL, orgs=None).items
        for query, number in (
            (DeadQuery(since=since), 6),  # one can't be read
            (DeadQuery(since=time.time() + 60), 0),
            (DeadQuery(until=since - 60), 0),
            (DeadQuery(since=since, message_statuses=frozenset({"error", "sent"})), 1),
            (DeadQuery(since=since, channels=frozenset({"email"})), 6),
            (DeadQuery(since=since, channels=frozenset({"sms"})), 0),
            (DeadQuery(campaign_id="spring"), 5),
            (DeadQuery(reasons=frozenset({"expired"})), 6),
            (DeadQuery(event_ids=frozenset(one.event_id for one in every if one.tenant == OTHER and one.event_id)), 0),
        ):
            assert await log.count_matching(LUMA, query) == DeadCount(number), query
        query = DeadQuery(since=since, campaign_id="spring")
        job = await done(log, await log.redrive(LUMA, ids=None, query=query, by="ada", orgs=MINE))
        assert (job.state, job.total, job.sent) == ("done", 5, 5)
        assert await sent(mortal, settings) == Counter(bounces)
        assert await log.count_matching(LUMA, DeadQuery(since=since, channels=frozenset({"email"}))) == DeadCount(1)
        monkeypatch.setattr(module, "CHECK_S", 0.0)
        with pytest.raises(BrokerUnavailable):
            await log.count_matching(LUMA, query)
    assert error not in await sent(mortal, settings)


async def test_a_topic_that_takes_too_long_is_counted_in_part(
    settings: Settings, grave: Grave, monkeypatch: pytest.MonkeyPatch, job_store: JobStore
) -> None:
    for _ in range(3):
        await grave.dead_letter()
    log = reader_of(settings, job_store)  # nothing was read yet, as just after a start
    read = TopicReader.records

    async def slowly(reader: TopicReader) -> AsyncIterator[list[ConsumerRecord[bytes, bytes]]]:
        async for records in read(reader):
            yield records
        if any(first < end for first, end in reader.ranges.values()) and log.count(LUMA, 0.0) == 0:
            await asyncio.Event().wait()

    assert await log.count_matching(LUMA, ALL) == DeadCount(3)
    monkeypatch.setattr(TopicReader, "records", slowly)
    monkeypatch.setattr(module, "CHECK_S", 6.0)
    assert (await log.count_matching(LUMA, ALL)).is_at_least


async def test_another_organisations_event_can_not_be_redriven(log: DeadLetterReader, grave: Grave) -> None:
    await grave.dead_letter()
    await grave.dead_letter(OTHER)
    await until(lambda: len(log.memory) == 2, "all dead events")
    (mine,) = [fact.id for fact in log.search(DeadQuery(tenant=LUMA), orgs=None).items]
    (other,) = [fact.id for fact in log.search(DeadQuery(tenant=OTHER), orgs=None).items]
    for tenant, ids, orgs in (
        (OTHER, None, MINE),
        (LUMA, frozenset({other}), MINE),
        (LUMA, frozenset({mine, other}), None),
        (OTHER, frozenset({mine}), None),
        (LUMA, frozenset({"0-99999"}), None),
    ):
        with pytest.raises(NotFound):
            await log.redrive(tenant, ids=ids, query=ALL, by="ada", orgs=orgs)
    job = await log.redrive(OTHER, ids=None, query=ALL, by="ada", orgs=None)
    with pytest.raises(NotFound):
        await log.jobs.get(job.id, orgs=MINE)
    await done(log, job)


async def test_one_redrive_of_a_tenant_at_a_time(
    log: DeadLetterReader, grave: Grave, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "RATE", 4.0)  # it takes seconds
    await asyncio.gather(*(grave.dead_letter() for _ in range(12)))
    await kept(log, 12)
    job = await log.redrive(LUMA, ids=None, query=ALL, by="ada", orgs=None)
    with pytest.raises(DispatcherError, match="are being sent again already"):
        await log.redrive(LUMA, ids=None, query=ALL, by="eve", orgs=None)
    progress = set()
    while (now := await log.jobs.get(job.id, orgs=None)).state == "running":
        progress.add(now.sent)
        await asyncio.sleep(0.01)
    assert len(progress) > 2, "the progress is reported"
    assert now.sent == 12


async def test_redrives_of_many_tenants_wait_for_their_turn(
    settings: Settings, grave: Grave, mortal: ApacheKafka, monkeypatch: pytest.MonkeyPatch, job_store: JobStore
) -> None:
    monkeypatch.setattr(redrive_jobs, "MOST_REDRIVES", 1)
    monkeypatch.setattr(redrive_jobs, "MOST_WAITING", 1)
    monkeypatch.setattr(module, "RATE", 4.0)  # it takes seconds
    origins = [await grave.dead_letter() for _ in range(10)] + [await grave.dead_letter(OTHER)]
    third = TenantKey("third@AdobeOrg", "prod")
    await grave.dead_letter(third)
    log = reader_of(settings, job_store)
    async with running(log.run(), log.jobs.run()):
        await until(lambda: len(log.memory) == 12, "all dead events")
        first = await log.redrive(LUMA, ids=None, query=ALL, by="ada", orgs=None)
        second = await log.redrive(OTHER, ids=None, query=ALL, by="ada", orgs=None)
        assert (first.state, second.state, second.total) == ("running", "waiting", 1)
        for tenant, why in ((OTHER, "are being sent again already"), (third, "waiting for their turn")):
            with pytest.raises(DispatcherError, match=why):
                await log.redrive(tenant, ids=None, query=ALL, by="ada", orgs=None)
        states = set()
        while (now := await log.jobs.search(orgs=None, ids=[first.id, second.id]))[1].state == "running":
            states.add(now[0].state)
            await asyncio.sleep(0.01)
        assert states == {"waiting"}
        assert (await done(log, second)).sent == 1
        assert now[1].sent == 10
    assert await sent(mortal, settings) == Counter(origins)


async def test_a_console_that_stops_in_the_middle_repeats_nothing(
    settings: Settings, grave: Grave, mortal: ApacheKafka, monkeypatch: pytest.MonkeyPatch, job_store: JobStore
) -> None:
    monkeypatch.setattr(module, "RATE", 12.0)  # it would take five seconds
    origins = await asyncio.gather(*(grave.dead_letter() for _ in range(60)))
    first = reader_of(settings, job_store)
    async with running(first.run(), first.jobs.run()):
        await kept(first, 60)
        job = await first.redrive(LUMA, ids=None, query=ALL, by="ada", orgs=None)

        async def has_begun() -> bool:
            return (await first.jobs.get(job.id, orgs=None)).sent >= 10

        await until(has_begun, "the first batch")
    stopped = await first.jobs.get(job.id, orgs=None)
    assert stopped.state == "failed"
    assert "none goes twice" in stopped.problem
    assert 10 <= (await sent(mortal, settings)).total() < 60
    with pytest.raises(DispatcherError, match="starting or stopping"):
        await first.redrive(LUMA, ids=None, query=ALL, by="ada", orgs=None)
    monkeypatch.setattr(module, "RATE", 10_000.0)
    second = reader_of(settings, job_store)
    async with running(second.run(), second.jobs.run()):
        await until(lambda: second.follower.problem is None, "what was there to be read")
        await done(second, await second.redrive(LUMA, ids=None, query=ALL, by="ada", orgs=None))
    assert await sent(mortal, settings) == Counter(origins)


async def test_without_a_broker_a_redrive_does_not_begin(job_store: JobStore) -> None:
    log = reader_of(settings_for("127.0.0.1:1", "events"), job_store)
    async with running(log.run(), log.jobs.run()):
        await until(lambda: log.problem == BrokerUnavailable().for_tenants, "the broker to be named away")
        with pytest.raises(BrokerUnavailable) as raised:
            await log.redrive(LUMA, ids=None, query=ALL, by="ada", orgs=None)
        assert "Kafka does not answer" in raised.value.for_tenants


async def test_a_topic_that_can_not_be_written_fails_the_redrive_and_says_why(
    settings: Settings, grave: Grave, mortal: ApacheKafka, monkeypatch: pytest.MonkeyPatch, job_store: JobStore
) -> None:
    """Its events stay in the topic: the next redrive sends them."""
    arguments = connection_arguments(settings.kafka) | {"request_timeout_ms": 3_000}  # for which a topic is looked for
    monkeypatch.setattr("dispatcher.kafka.producer_client.connection_arguments", lambda *_: arguments)
    await grave.dead_letter()
    async with topics.admin_client(mortal.bootstrap_servers) as admin:
        await admin.delete_topics([f"{settings.kafka.prefix}.retry.30s"])
    log = reader_of(settings, job_store)
    async with running(log.run(), log.jobs.run()):
        await kept(log, 1)
        job = await done(log, await log.redrive(LUMA, ids=None, query=ALL, by="ada", orgs=None))
        assert (job.state, job.sent) == ("failed", 0)
        assert job.problem == "Kafka does not take records right now"
        assert log.count(LUMA, 0.0) == 1


async def test_the_record_of_an_unreadable_event_is_read_whole(log: DeadLetterReader, grave: Grave) -> None:
    value = b"\x00\xff no event"
    await grave.dead_letter(reason=DeadReason.UNREADABLE, value=value, headers=(("source", b"importer"),))
    await until(lambda: log.search(ALL, orgs=None).total == 1, "the dead event")
    dead_id = log.search(ALL, orgs=None).items[0].id
    record = await log.record(dead_id)
    assert (record.value, dict(record.headers)["source"]) == (value, b"importer")
    assert dict(record.headers)["feedback-reason"] == DeadReason.UNREADABLE.value.encode()
    for absent in ("0-999", "99-0", "x"):
        with pytest.raises(NotFound):
            await log.record(absent)
