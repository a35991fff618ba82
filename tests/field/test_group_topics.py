"""Topics are named after the group: two groups on one topic never meet, and an upgrade from the old names loses nothing."""

from collections import Counter

import pytest
from aiohttp import web
from aiokafka import AIOKafkaProducer, TopicPartition

from dispatcher.config.loader import load_settings
from dispatcher.kafka.former_topics import find_and_claim_former_topics, find_former_topics
from dispatcher.kafka.topics import dead_letter_topic, held_topic, retry_topics
from tests.commands import running
from tests.integration.brokers import needs_kafka
from tests.integration.harness import TIERS, Receiver, Stage, event, status, tenants, until, webhook_id_of
from tests.kafka import topics
from tests.stores.kubelet import MountedVolume

pytestmark = [needs_kafka, pytest.mark.timeout(300)]


async def test_two_groups_on_one_topic_deliver_each_event_once_each(scene: Stage) -> None:
    everybody = tenants(10)
    tried: Counter[tuple[str, str]] = Counter()
    accepted: Counter[tuple[str, str]] = Counter()

    async def fails_at_first(request: web.Request, _receiver: Receiver) -> web.StreamResponse:
        place = (request.path, request.headers["webhook-id"])
        tried[place] += 1
        if tried[place] == 1:
            return web.Response(status=503)
        accepted[place] += 1
        return web.Response()

    other = MountedVolume(scene.directory / "others.d")
    scene.mount([scene.webhook(tenant, f"/a/{tenant.org}") for tenant in everybody])
    first = scene.volume
    scene.volume = other
    scene.mount([scene.webhook(tenant, f"/b/{tenant.org}") for tenant in everybody])
    scene.volume = first
    for tenant in everybody:
        for group in "ab":
            scene.receiver.behave(f"/{group}/{tenant.org}", fails_at_first)
    second_group = f"{scene.topic}-second"
    await scene.create_topics(second_group)
    async with (
        scene.dispatcher("a", retry={"soon_attempts": 0}) as a,
        scene.dispatcher(
            "b",
            retry={"soon_attempts": 0},
            kafka={"group_id": second_group},
            webhooks={"path": str(other.path)},
        ) as b,
    ):
        a.start()
        b.start()
        await scene.produce(everybody, 40)
        await until(lambda: len(accepted) == 80, "each event at both", 60, a)
        await a.ready()
        await b.ready()
    assert set(accepted.values()) == {1}
    assert set(tried.values()) == {2}


@pytest.mark.all_faults
async def test_events_in_topics_of_the_old_names_are_drained_and_redriven(scene: Stage) -> None:
    parked, dying = tenants(2)
    scene.mount([scene.webhook(parked), scene.webhook(dying)])
    scene.receiver.behave(f"/{parked.org}", status(503))
    scene.receiver.behave(f"/{dying.org}", status(301))
    await scene.create_topics(scene.topic)  # the old version's
    async with scene.dispatcher(
        "old",
        kafka={"topic_prefix": scene.topic, "session_timeout": "6s"},
        retry={"soon_attempts": 0, "tiers": ["1s", "4s"]},
    ) as old:
        old.start()
        await scene.produce([parked, dying], 8)

        async def all_written() -> bool:
            ends = [
                sum((await topics.end_offsets(scene.bootstrap_servers, f"{scene.topic}.{name}")).values())
                for name in ("retry.4s", "dead")
            ]
            return ends[0] >= 4 and ends[1] == 4

        await until(all_written, "four parked and four dead", 60, old)
        old.kill9()
    scene.receiver.behave(f"/{parked.org}", None)
    scene.receiver.behave(f"/{dying.org}", None)
    async with scene.dispatcher("new", kafka={"session_timeout": "6s"}) as new:
        ran = await running.called("check", "-c", new.path, "--kafka")
        assert "holds 4 unread events parked by an earlier version" in ran.err, ran
        new.start()
        await until(lambda: "parked by an earlier version" in new.log, "the warning", 60, new)
        parked_ids = {name for name, tenant in scene.expected.items() if tenant == parked}
        await until(lambda: parked_ids <= scene.receiver.accepted.keys(), "what was parked", 60, new)
        await new.ready()
        ran = await running.dispatcher("redrive", "-c", new.path)
        assert ran.status == 0, ran
        assert "4 of 4 sent back" in ran.out
        await scene.all_accepted(new)
        again = await running.dispatcher("redrive", "-c", new.path)
        assert "0 dead events selected; 4 more were sent back by an earlier redrive" in again.out
    ends = await topics.end_offsets(scene.bootstrap_servers, dead_letter_topic(scene.prefix))
    assert sum(ends.values()) == 0, "nothing died again"


async def test_an_upgrade_that_is_killed_before_it_reads_the_former_topics_goes_on_at_the_next_start(
    scene: Stage,
) -> None:
    """The group has never committed in the former topics, and has already committed in a new one."""
    (tenant,) = tenants(1)
    scene.mount([scene.webhook(tenant)])
    former = f"{scene.topic}.retry.1s"
    await topics.create_topic(scene.bootstrap_servers, former, partitions=2)
    async with AIOKafkaProducer(bootstrap_servers=scene.bootstrap_servers) as producer:
        await producer.send_and_wait(former, event(tenant, "parked"), partition=1)
    scene.expected[webhook_id_of(tenant, "parked")] = tenant
    await topics.commit(scene.bootstrap_servers, scene.group_id, TopicPartition(scene.topic, 0), 0)
    async with scene.dispatcher() as dispatcher:
        settings = load_settings(dispatcher.path, {})
        found = await find_and_claim_former_topics(settings)  # at the start that is killed
        assert found.unread == {former: 1}
        own = TopicPartition(retry_topics(scene.prefix, TIERS)[0], 0)
        await topics.commit(scene.bootstrap_servers, f"{scene.group_id}.retry", own, 0)
        assert (await find_former_topics(settings)).unread == {former: 1}
        dispatcher.start()
        await scene.all_accepted(dispatcher)


@pytest.mark.all_faults
@pytest.mark.parametrize("changed", ["tiers", "prefix"])
async def test_events_parked_under_other_settings_are_drained_and_held_ones_reported(
    scene: Stage, changed: str
) -> None:
    parked, held = tenants(2)
    old_prefix = scene.prefix if changed == "tiers" else f"{scene.topic}-old"
    scene.mount([scene.webhook(parked), scene.webhook(held) | {"paused": True}])
    scene.receiver.behave(f"/{parked.org}", status(503))
    settings = {"soon_attempts": 0, "tiers": ["7s", "8s"]}
    if changed == "prefix":
        await scene.create_topics(old_prefix)
    for name in retry_topics(old_prefix, [7.0, 8.0]):
        await topics.create_topic(scene.bootstrap_servers, name, partitions=2)
    async with scene.dispatcher("old", kafka={"topic_prefix": old_prefix}, retry=settings) as old:
        old.start()
        await scene.produce([parked, held], 8)

        async def all_written() -> bool:
            names = retry_topics(old_prefix, [7.0])[0], held_topic(old_prefix)
            ends = [sum((await topics.end_offsets(scene.bootstrap_servers, name)).values()) for name in names]
            commits = await topics.committed(scene.bootstrap_servers, f"{scene.group_id}.held")
            return ends == [4, 4] and bool(commits)

        await until(all_written, "four parked and four held", 60, old)
        old.sigterm()
        await old.wait()
    scene.receiver.behave(f"/{parked.org}", None)
    scene.mount([scene.webhook(parked), scene.webhook(held)])
    async with scene.dispatcher("new") as new:
        name = retry_topics(old_prefix, [7.0])[0]
        ran = await running.called("check", "-c", new.path, "--kafka")
        assert f"topic {name}: holds 4 unread events parked by an earlier version or under other settings" in ran.err
        held_is_named = f"topic {held_topic(old_prefix)}: holds up to 4 held events" in ran.err
        assert held_is_named is (changed == "prefix"), ran.err
        new.start()
        await until(lambda: name in new.log, "the warning", 60, new)
        due = {one for one, tenant in scene.expected.items() if changed == "tiers" or tenant == parked}
        await until(lambda: due <= scene.receiver.accepted.keys(), "what was parked", 60, new)
        if changed == "tiers":
            return
    async with scene.dispatcher("back", kafka={"topic_prefix": old_prefix}) as back:
        back.start()
        await scene.all_accepted(back)


@pytest.mark.all_faults
async def test_a_new_group_leaves_the_old_names_to_their_group(scene: Stage) -> None:
    (tenant,) = tenants(1)
    scene.mount([scene.webhook(tenant)])
    scene.receiver.behave(f"/{tenant.org}", status(503))
    await scene.create_topics(scene.topic)
    async with scene.dispatcher(
        "old", kafka={"topic_prefix": scene.topic, "group_id": "another"}, retry={"soon_attempts": 0, "tiers": ["4s"]}
    ) as old:
        old.start()
        await scene.produce([tenant], 4)

        async def all_parked() -> bool:
            ends = await topics.end_offsets(scene.bootstrap_servers, f"{scene.topic}.retry.4s")
            return sum(ends.values()) >= 4

        await until(all_parked, "the events to be parked", 60, old)
        old.kill9()
    scene.receiver.behave(f"/{tenant.org}", None)
    for name in ("new", "again"):
        async with scene.dispatcher(name) as new:
            new.start()
            await scene.all_accepted(new)
            await new.ready()
            assert "parked by an earlier version" not in new.log
            new.sigterm()
            assert await new.wait() == 0
    assert set(scene.receiver.accepted.values()) == {1}
    assert scene.receiver.accepted.keys() == {webhook_id_of(tenant, f"e-{number}") for number in range(4)}
