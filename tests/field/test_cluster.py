"""A cluster of three brokers: leaders move, brokers restart one after the other, replicas are missing. Nothing is lost."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from uuid import uuid4

import pytest

from dispatcher.config.kafka_settings import KafkaSettings
from dispatcher.console.model import DeadQuery
from dispatcher.console.pages.event_explanation import record_at
from dispatcher.console.resend_model import RedriveModel, ResendQuery
from dispatcher.console.sources.dead_events import DeadLetterReader
from dispatcher.console.sources.delivered_events import DeliveredEvents
from dispatcher.contract.records import Origin, Record, RetryState
from dispatcher.contract.tenant import TenantKey
from dispatcher.errors import NotWritten
from dispatcher.kafka.producer import Producer
from dispatcher.kafka.redrive import is_mark
from dispatcher.kafka.topic_tailer import TopicTailer
from dispatcher.kafka.topics import held_topic, retry_topics
from tests.commands import running
from tests.console.history_store import entry_of, history_in
from tests.console.sources.conftest import job_store_in, reader_of, settings_for
from tests.faults.behaviours import now_and_then
from tests.field.readiness import reports, reports_nothing
from tests.integration.brokers import needs_kafka
from tests.integration.harness import (
    LARGEST_RECORD,
    Stage,
    event,
    slowly,
    stage,
    status,
    tenants,
    until,
    webhook_id_of,
)
from tests.kafka import topics
from tests.kafka.cluster import NODES, KafkaCluster

pytestmark = [needs_kafka, pytest.mark.timeout(300)]

TENANTS = tenants(10)


@pytest.fixture(scope="module")
async def cluster() -> AsyncIterator[KafkaCluster]:
    async with KafkaCluster(LARGEST_RECORD) as running:
        yield running


@pytest.fixture
async def scene(cluster: KafkaCluster, tmp_path: Path) -> AsyncIterator[Stage]:
    """Yields a stage of replicated topics whose tenants' events are sometimes parked."""
    async with stage(cluster.bootstrap_servers, tmp_path, replication=NODES) as made:
        made.mount([made.webhook(tenant) for tenant in TENANTS])
        for tenant in TENANTS:
            made.receiver.behave(f"/{tenant.org}", now_and_then(status(503)))
        yield made


async def _produce_slowly(scene: Stage, prefix: str, count: int) -> None:
    for number in range(count // 20):
        await scene.produce(TENANTS, 20, f"{prefix}{number}")
        await asyncio.sleep(0.2)


async def test_a_leader_that_is_killed_is_replaced_and_comes_back(scene: Stage, cluster: KafkaCluster) -> None:
    async with scene.dispatcher(retry={"soon_attempts": 0}) as dispatcher:
        dispatcher.start()
        await dispatcher.ready()
        producing = asyncio.create_task(_produce_slowly(scene, "k", 400))
        await scene.accepted(50, dispatcher)
        leaders = (await cluster.leaders(scene.topic)).values()
        killed = next(node for node in leaders if node is not cluster.nodes[0])
        killed.kill()
        await producing
        await scene.all_accepted(dispatcher, 90)
        await killed.start()
        await scene.produce(TENANTS, 40, "back")
        await scene.all_accepted(dispatcher)
        await reports_nothing(dispatcher, 90)
    assert await scene.lost() == 0
    assert await scene.dead() == {}


@pytest.mark.all_faults
async def test_a_rolling_restart_of_all_brokers_loses_and_repeats_nothing(scene: Stage, cluster: KafkaCluster) -> None:
    async with scene.dispatcher(retry={"soon_attempts": 0}) as dispatcher:
        dispatcher.start()
        await dispatcher.ready()
        producing = asyncio.create_task(_produce_slowly(scene, "r", 2_000))
        await scene.accepted(50, dispatcher)
        for node in reversed(cluster.nodes):
            await node.restart()
            await until(lambda: _all_in_sync(scene, cluster), "all replicas in sync", 60, dispatcher)
        await producing
        await scene.all_accepted(dispatcher, 90)
        await reports_nothing(dispatcher, 90)
        assert dispatcher.running
    assert await scene.lost() == 0
    # A write whose acknowledgement a restart swallowed may be in the tier twice.
    assert scene.receiver.repeats() <= 20


@pytest.mark.all_faults
async def test_leaders_that_move_while_held_events_are_read_cost_none_of_them(
    scene: Stage, cluster: KafkaCluster
) -> None:
    webhooks = [scene.webhook(tenant) for tenant in TENANTS]
    scene.mount([*webhooks[:5], *(webhook | {"paused": True} for webhook in webhooks[5:])])
    for tenant in TENANTS[5:]:
        scene.receiver.behave(f"/{tenant.org}", slowly(0.2))
    async with scene.dispatcher(delivery={"max_in_flight": 10}) as dispatcher:
        dispatcher.start()
        await scene.produce(TENANTS, 600)
        await until(lambda: _ends_at(scene, held_topic(scene.prefix), 300), "300 held events", 60, dispatcher)
        await scene.accepted(300, dispatcher)
        scene.mount(webhooks)
        await scene.accepted(320, dispatcher)
        leaders = (await cluster.leaders(held_topic(scene.prefix))).values()
        killed = next(node for node in leaders if node is not cluster.nodes[0])
        killed.kill()
        await scene.accepted(450, dispatcher, 90)
        await killed.start()
        await scene.all_accepted(dispatcher, 90)
        await reports_nothing(dispatcher, 90)
        assert dispatcher.running
    assert await scene.lost() == 0
    assert await scene.dead() == {}


async def _ends_at(scene: Stage, topic: str, count: int) -> bool:
    return sum((await topics.end_offsets(scene.bootstrap_servers, topic)).values()) >= count


async def test_partitions_without_a_leader_hold_up_no_other(cluster: KafkaCluster, tmp_path: Path) -> None:
    """Topics without replicas lose a third of their partitions with a broker: also at the start, also held events'."""
    async with stage(cluster.bootstrap_servers, tmp_path, replication=1, partitions=NODES) as scene:
        paused = [scene.webhook(tenant) | {"paused": True} for tenant in TENANTS[:2]]
        scene.mount([*paused, *(scene.webhook(tenant) for tenant in TENANTS[2:])])
        async with scene.dispatcher() as dispatcher:
            dispatcher.start()
            await scene.produce(TENANTS, 300, "held")
            await scene.accepted(240, dispatcher)
            dispatcher.kill9()
            for former in (f"{scene.topic}.dead", f"{scene.topic}.retry.2s"):  # looked at before anything is read
                await topics.create_topic(cluster.bootstrap_servers, former, partitions=NODES)
            away = next(node for node in (await cluster.leaders(scene.topic)).values() if node is not cluster.nodes[0])
            led = {number for number, node in (await cluster.leaders(scene.topic)).items() if node is not away}
            away.kill()
            dispatcher.start()
            beside = set()
            for number in range(120):
                tenant, name = TENANTS[2 + number % 8], f"beside-{number}"
                await scene.send(event(tenant, name), partition=min(led))
                beside.add(webhook_id_of(tenant, name))
            await until(lambda: beside <= scene.receiver.accepted.keys(), "the other partitions", 60, dispatcher)
            await reports(dispatcher, "partition_offline", f"{scene.topic}/", ready=True, timeout_s=60)
            scene.mount([scene.webhook(tenant) for tenant in TENANTS])
            await until(lambda: _some_are_sent(scene, TENANTS[:2]), "held events of other partitions", 60, dispatcher)
            await away.start()
            await scene.all_accepted(dispatcher, 120)
            await reports_nothing(dispatcher, 120)
        assert await scene.lost() == 0


async def _some_are_sent(scene: Stage, of: Sequence[TenantKey]) -> bool:
    return any(scene.expected.get(name) in of for name in scene.receiver.accepted)


async def test_dead_events_are_shown_and_sent_back_but_those_of_partitions_without_a_leader(
    cluster: KafkaCluster, tmp_path: Path
) -> None:
    async with stage(cluster.bootstrap_servers, tmp_path, replication=1, partitions=NODES) as scene:
        scene.mount([scene.webhook(tenant) for tenant in TENANTS])
        for tenant in TENANTS:
            scene.receiver.behave(f"/{tenant.org}", status(301))
        async with scene.dispatcher() as dispatcher:
            dispatcher.start()
            await scene.produce(TENANTS, 60)
            await until(lambda: _ends_at(scene, scene.dead_topic, 60), "60 dead events", 60, dispatcher)
            for tenant in TENANTS:
                scene.receiver.behave(f"/{tenant.org}", None)
            leaders = await cluster.leaders(scene.dead_topic)
            lost, away = next((number, node) for number, node in leaders.items() if node is not cluster.nodes[0])
            there = 60 - (await topics.end_offsets(scene.bootstrap_servers, scene.dead_topic))[lost]
            assert 0 < there < 60
            away.kill()
            await until(lambda: _are_led(scene.dead_topic, cluster, NODES - 1), "a partition without a leader", 60)
            shown = _Shown()
            kafka = KafkaSettings(bootstrap_servers=scene.bootstrap_servers)
            tailer = TopicTailer(kafka, scene.dead_topic, shown, keep_s=3600, most_read=1000, if_missing="")
            async with asyncio.TaskGroup() as tasks:
                following = tasks.create_task(tailer.run())
                await until(lambda: shown.count == there, "the dead events of other partitions", 60)
                assert f"no broker answers for {scene.dead_topic}/{lost}: " in (tailer.problem or "")
                ran = await running.dispatcher("redrive", "-c", dispatcher.path)
                assert (ran.status, f"\n{there} dead events selected" in ran.out) == (1, True), ran
                assert (
                    f"warning: no broker answers for {scene.dead_topic}/{lost}: dead events there are left" in ran.err
                )
                await scene.accepted(there * 2 // 3, dispatcher)  # some are in a tier's partition without a leader
                await away.start()
                await until(lambda: shown.count >= 60 and not tailer.problem, "all dead events", 60)
                ran = await running.dispatcher("redrive", "-c", dispatcher.path)
                assert (ran.status, f"\n{60 - there} dead events selected; {there} more" in ran.out) == (0, True), ran
                following.cancel()
            await scene.all_accepted(dispatcher, 120)


async def test_commands_and_probes_name_partitions_without_a_leader_and_read_the_others(
    cluster: KafkaCluster, tmp_path: Path
) -> None:
    async with stage(cluster.bootstrap_servers, tmp_path, replication=1, partitions=NODES) as scene:
        scene.mount([scene.webhook(tenant) for tenant in TENANTS])
        producer = await scene.producer()
        for number in range(NODES):
            await producer.send_and_wait(scene.topic, event(TENANTS[0], f"e{number}"), partition=number)
        leaders = await cluster.leaders(scene.topic)
        lost, away = next((number, node) for number, node in leaders.items() if node is not cluster.nodes[0])
        led = next(number for number, node in leaders.items() if node is not away)
        away.kill()
        await until(lambda: _are_led(scene.topic, cluster, NODES - 1), "a partition without a leader", 60)
        async with scene.dispatcher() as dispatcher:
            place = ("--partition", str(led), "--offset", "0")
            ran = await running.dispatcher("explain", "-c", dispatcher.path, *place)
            assert (ran.status, f"{scene.topic}/{led}/0" in ran.out) == (0, True), ran
            ran = await running.dispatcher("explain", "-c", dispatcher.path, "--partition", str(lost), "--offset", "0")
            assert (ran.status, f"no broker answers for {scene.topic}/{lost}" in ran.err) == (1, True), ran
            kafka = KafkaSettings(bootstrap_servers=scene.bootstrap_servers)
            assert (await record_at(kafka, Origin(scene.topic, led, 0))).offset == 0
            identity = webhook_id_of(TENANTS[0], f"e{led}")
            ran = await running.dispatcher("trace", "-c", dispatcher.path, "--topics", "--webhook-id", identity)
            assert (ran.status, "Arrived" in ran.out) == (0, True), ran
            assert f"warning: no broker answers for {scene.topic}/{lost}" in ran.err
            ran = await running.dispatcher("check", "--kafka", "-c", dispatcher.path)
            assert (ran.status, "no broker leads " in ran.out + ran.err) == (0, True), ran
            assert f"{scene.topic}/{lost}" in ran.out + ran.err, ran
            dispatcher.start()
            await reports(dispatcher, "partition_offline", "no broker leads ", ready=True)
            await away.start()
            await reports_nothing(dispatcher, 90)


@pytest.mark.all_faults
async def test_the_console_sends_again_what_partitions_with_a_leader_have(
    cluster: KafkaCluster, tmp_path: Path
) -> None:
    topic, tenant = f"again-{uuid4().hex[:8]}", TENANTS[0]
    settings = settings_for(cluster.bootstrap_servers, topic)
    dead, tier = f"{topic}.dead", retry_topics(topic, settings.retry.tiers)[0]
    for name in (topic, dead):
        await topics.create_topic(cluster.bootstrap_servers, name, partitions=NODES, replication=1)
    for name in (tier, f"{topic}.history"):
        await topics.create_topic(cluster.bootstrap_servers, name, replication=NODES)
    async with history_in(tmp_path) as history, job_store_in(tmp_path) as jobs, Producer(settings.kafka) as producer:
        for number in range(NODES):
            value = event(tenant, f"e{number}")
            at = await producer.write(topic, b"key", value, [], "retry", number)
            headers = RetryState(Origin(topic, number, at), 1.0, reason="status").headers()
            await producer.write(dead, b"key", value, headers, "dead_letter", number)
            place = {"topic": topic, "partition": number, "offset": at, "webhook_id": f"msg_{number}"}
            await history.add(entry_of(tenant, str(number), age_s=100 - number, **place))
        reader = reader_of(settings, jobs)
        resends = DeliveredEvents(settings, history.lookup, reader.jobs)
        async with asyncio.TaskGroup() as tasks:
            following = [tasks.create_task(work) for work in (reader.run(), reader.jobs.run())]
            await until(lambda: reader.count(tenant, 0.0) == NODES, "all dead events", 60)
            away = cluster.nodes[-1]
            led = [number for number, node in (await cluster.leaders(topic)).items() if node is not away]
            dead_led = [number for number, node in (await cluster.leaders(dead)).items() if node is not away]
            away.kill()
            await until(lambda: _are_led(topic, cluster, len(led)), "a partition without a leader", 60)
            check = await resends.check(tenant, ResendQuery(since=0.0))
            assert (check.events, check.gone, check.is_at_least) == (len(led), 0, True)
            await until(lambda: reader.follower.problem is not None, "the console to know", 60)
            count = await reader.count_matching(tenant, DeadQuery())
            assert (count.events, count.is_at_least) == (len(dead_led), True)
            one = f"{dead_led[0]}-0"
            job = await reader.redrive(tenant, ids=frozenset({one}), query=DeadQuery(), by="me", orgs=None)
            assert await _ended(reader, job) == ("done", 1, "")
            job = await resends.start(tenant, ResendQuery(since=0.0), "me")
            state, sent, problem = await _ended(reader, job)
            assert (state, sent) == ("failed", len(led)), problem
            assert "only the others were sent" in problem
            resume = (await reader.jobs.get(job.id, orgs=None)).resume
            assert resume is not None
            job = await reader.redrive(tenant, ids=None, query=DeadQuery(), by="me", orgs=None)
            state, sent, problem = await _ended(reader, job)
            assert (state, sent) == ("failed", len(dead_led) - 1), problem
            await away.start()
            left = ResendQuery(since=0.0, until=resume.until, checked_at=resume.checked_at)
            assert await _ended(reader, await resends.start(tenant, left, "me")) == ("done", NODES - len(led), "")
            for task in following:
                task.cancel()


async def _ended(reader: DeadLetterReader, job: RedriveModel) -> tuple[str, int, str]:
    async def is_over() -> bool:
        return (await reader.jobs.get(job.id, orgs=None)).is_over

    await until(is_over, "the job's end", 90)
    over = await reader.jobs.get(job.id, orgs=None)
    return over.state, over.sent, over.problem


class _Shown:
    """Counts the events that are shown."""

    count = 0

    def append(self, records: Sequence[Record]) -> None:
        self.count += sum(not is_mark(record) for record in records)

    def reset(self) -> None:
        self.count = 0


async def _are_led(topic: str, cluster: KafkaCluster, count: int) -> bool:
    return len(await cluster.leaders(topic)) == count


@pytest.mark.all_faults
async def test_tiers_with_too_few_replicas_in_sync_are_named_and_lose_nothing(
    scene: Stage, cluster: KafkaCluster
) -> None:
    config = {"min.insync.replicas": "3", "max.message.bytes": str(LARGEST_RECORD)}
    for tier in scene.tier_topics:
        await topics.set_config(scene.bootstrap_servers, tier, config)
    async with scene.dispatcher(retry={"soon_attempts": 0}) as dispatcher:
        dispatcher.start()
        await scene.produce(TENANTS, 100, "before")
        await scene.all_accepted(dispatcher)
        cluster.nodes[-1].kill()
        await scene.produce(TENANTS, 100, "without")
        await reports(dispatcher, "write_refused", "NotEnoughReplicas", ready=True, timeout_s=90)
        await cluster.nodes[-1].start()
        await scene.all_accepted(dispatcher, 120)
        await reports_nothing(dispatcher, 120)
    assert await scene.lost() == 0


async def test_records_are_written_to_partitions_that_have_a_leader(cluster: KafkaCluster) -> None:
    """Whatever their key: it decides only while its partition can be written."""
    topic = f"led-{uuid4().hex[:8]}"
    await topics.create_topic(cluster.bootstrap_servers, topic, partitions=NODES)
    away = next(node for node in (await cluster.leaders(topic)).values() if node is not cluster.nodes[0])
    away.kill()
    await until(lambda: _are_led(topic, cluster, NODES - 1), "a partition without a leader", 60)
    settings = KafkaSettings(bootstrap_servers=cluster.bootstrap_servers)
    async with Producer(settings) as producer:
        records = [*((f"key{number}".encode(), b"value") for number in range(60)), *[(None, b"value")] * 60]
        records += [(None, None)] * 30
        writes = [producer.write(topic, key, value, [("name", b"value")], "retry") for key, value in records]
        assert len(await asyncio.gather(*writes)) == len(records)
    await away.start()
    assert len(await topics.read_all(cluster.bootstrap_servers, topic)) == len(records)


@pytest.mark.all_faults
async def test_a_record_whose_write_has_failed_is_written_to_another_partition(cluster: KafkaCluster) -> None:
    """With one broker away, two of three partitions have too few replicas in sync: they have a leader."""
    topic = f"replicas-{uuid4().hex[:8]}"
    await topics.create_topic(
        cluster.bootstrap_servers, topic, partitions=NODES, replication=2, config={"min.insync.replicas": "2"}
    )
    cluster.nodes[-1].kill()
    async with Producer(KafkaSettings(bootstrap_servers=cluster.bootstrap_servers)) as producer:

        async def write(key: bytes) -> int:
            return await producer.write(topic, key, b"value", [], "retry")

        keys = [f"key{number}".encode() for number in range(60)]
        first = await asyncio.gather(*(write(key) for key in keys), return_exceptions=True)
        left = [key for key, result in zip(keys, first, strict=True) if isinstance(result, NotWritten)]
        assert 0 < len(left) < len(keys)
        again = await asyncio.gather(*(write(key) for key in left), return_exceptions=True)
        assert [result for result in again if isinstance(result, BaseException)] == []
    await cluster.nodes[-1].start()


@pytest.mark.all_faults
async def test_a_partition_of_a_tier_without_a_leader_stops_no_partition_of_events(
    cluster: KafkaCluster, tmp_path: Path
) -> None:
    """More events of one tenant are parked than the process reads ahead; their keys belong to all partitions."""
    async with stage(cluster.bootstrap_servers, tmp_path, replication=1, partitions=NODES) as scene:
        bad, good = TENANTS[:2]
        scene.mount([scene.webhook(bad), scene.webhook(good)])
        scene.receiver.behave(f"/{bad.org}", status(503))
        async with scene.dispatcher(retry={"soon_attempts": 0}) as dispatcher:
            dispatcher.start()
            await dispatcher.ready()
            tier = scene.tier_topics[0]
            away = next(node for node in (await cluster.leaders(tier)).values() if node is not cluster.nodes[0])
            away.kill()
            await until(lambda: _are_led(tier, cluster, NODES - 1), "a partition without a leader", 60, dispatcher)
            led = list(await cluster.leaders(scene.topic))
            producer = await scene.producer()
            writes = [
                await producer.send(scene.topic, event(bad, f"bad{number}"), b"key%d" % number, led[number % len(led)])
                for number in range(4_500)
            ]
            await asyncio.gather(*writes)
            for number in range(60):
                await scene.send(event(good, f"good{number}"), partition=led[number % len(led)])
                scene.expected[webhook_id_of(good, f"good{number}")] = good
            await scene.all_accepted(dispatcher, 90)
            dispatcher.kill9()
        await away.start()


async def _all_in_sync(scene: Stage, cluster: KafkaCluster) -> bool:
    async with topics.admin_client(cluster.bootstrap_servers) as admin:
        described = await admin.describe_topics([scene.topic, *scene.tier_topics])
    return all(len(one["isr"]) == NODES for topic in described for one in topic["partitions"])
