"""A write that the broker refuses costs the record that it refuses, and nothing behind it."""

import asyncio
import gzip
import hashlib
from uuid import uuid4

import orjson
import pytest
from aiokafka import AIOKafkaProducer

from dispatcher.config.settings import KafkaSettings
from dispatcher.errors import NotWritten
from dispatcher.kafka.producer import Producer
from dispatcher.kafka.topics import held_topic, retry_topics
from tests.commands import running
from tests.integration.brokers import needs_kafka
from tests.integration.harness import (
    LARGEST_RECORD,
    TIERS,
    Stage,
    at_first,
    event,
    status,
    tenants,
    until,
    webhook_id_of,
)
from tests.kafka import topics
from tests.kafka.apache_kafka import ApacheKafka
from tests.unit.examples import email_event

pytestmark = [needs_kafka, pytest.mark.timeout(300)]


def _large(org: str, event_id: str, size: int) -> bytes:
    """Returns an event whose feedback fits, and whose record is large by a field that the mapping drops."""
    document = email_event(imsOrgId=org, _id=event_id)
    document["body"]["xdmEntity"]["padding"] = "x" * size
    return orjson.dumps(document)


async def test_one_refused_write_does_not_poison_the_partition_behind_it(scene: Stage) -> None:
    good, large = tenants(2)
    scene.mount([scene.webhook(good), scene.webhook(large)])
    for tenant in (good, large):
        scene.receiver.behave(f"/{tenant.org}", at_first(status(503)))
    tier = retry_topics(scene.prefix, TIERS)[0]
    await topics.set_config(scene.bootstrap_servers, tier, {"max.message.bytes": "20000"})
    async with scene.dispatcher(retry={"soon_attempts": 0}) as dispatcher:
        dispatcher.start()
        await dispatcher.ready()
        await scene.send(event(good, "before"), b"key", partition=0)  # the partition's first write is accepted
        scene.expected[webhook_id_of(good, "before")] = good
        await scene.all_accepted(dispatcher)
        for number in range(3):
            await scene.send(_large(large.org, f"large{number}", 60_000), b"key", partition=0)
            await scene.send(event(good, f"behind{number}"), b"key", partition=0)
            scene.expected[webhook_id_of(good, f"behind{number}")] = good
        await scene.all_accepted(dispatcher)  # all of them were parked behind the refused ones

        async def dead() -> bool:
            return len(await scene.dead()) == 3

        await until(dead, "the large ones to be dead", 60, dispatcher)
        assert set((await scene.dead()).values()) == {"too_large"}
        # Repaired, the topic takes them, within the time that a topic stays suspect, and without a restart.
        await topics.set_config(scene.bootstrap_servers, tier, {"max.message.bytes": str(LARGEST_RECORD)})
        await scene.send(_large(large.org, "after", 60_000), b"key", partition=0)
        scene.expected[webhook_id_of(large, "after")] = large
        await scene.all_accepted(dispatcher)
        assert len(await scene.dead()) == 3
        assert dispatcher.log.count('"level": "error"') == 0


@pytest.mark.all_faults
async def test_a_limit_that_is_lowered_while_the_process_runs_costs_only_what_is_larger(scene: Stage) -> None:
    """Of the tier, the held topic and the dead letters: each has taken large records before."""
    good, paused = tenants(2)
    webhooks = [scene.webhook(good), scene.webhook(paused)]
    scene.mount([webhooks[0], webhooks[1] | {"paused": True}])
    scene.receiver.behave(f"/{good.org}", at_first(status(503)))
    own = [scene.tier_topics[0], held_topic(scene.prefix), scene.dead_topic]

    async def send_both(name: str) -> None:
        for tenant in (good, paused):
            await scene.send(_large(tenant.org, f"large-{name}", 60_000), b"key", partition=0)
            await scene.send(event(tenant, f"small-{name}"), b"key", partition=0)
            scene.expected[webhook_id_of(tenant, f"small-{name}")] = tenant

    async def written(topic: str) -> int:
        return sum((await topics.end_offsets(scene.bootstrap_servers, topic)).values())

    async with scene.dispatcher(retry={"soon_attempts": 0}) as dispatcher:
        dispatcher.start()
        await send_both("before")

        async def both_held() -> bool:
            return await written(own[1]) == 2

        await until(both_held, "two held events", 60, dispatcher)
        for topic in own:
            await topics.set_config(scene.bootstrap_servers, topic, {"max.message.bytes": "20000"})
        await send_both("lowered")

        async def both_dead() -> bool:
            return await written(scene.dead_topic) == 2

        await until(both_dead, "two dead letters", 60, dispatcher)
        for topic in own:
            await topics.set_config(scene.bootstrap_servers, topic, {"max.message.bytes": str(LARGEST_RECORD)})
        await send_both("after")
        for tenant in (good, paused):
            for name in ("before", "after"):
                scene.expected[webhook_id_of(tenant, f"large-{name}")] = tenant
        scene.mount(webhooks)
        await scene.all_accepted(dispatcher, 90)
        assert await written(scene.dead_topic) == 2
    letters = await topics.read_all(scene.bootstrap_servers, scene.dead_topic)
    assert [dict(one.headers)["feedback-reason"] for one in letters] == [b"too_large"] * 2


async def test_a_batch_of_small_records_above_the_limit_is_written_one_by_one(scene: Stage) -> None:
    everybody = tenants(40)
    scene.mount([scene.webhook(tenant) for tenant in everybody])
    for tenant in everybody:
        scene.receiver.behave(f"/{tenant.org}", at_first(status(503)))
    tier = retry_topics(scene.prefix, TIERS)[0]
    await topics.set_config(
        scene.bootstrap_servers, tier, {"max.message.bytes": "4000"}
    )  # two records of the events at most
    async with scene.dispatcher(retry={"soon_attempts": 0}) as dispatcher:
        await scene.produce(everybody, 120)
        dispatcher.start()
        await scene.all_accepted(dispatcher)
        assert await scene.dead() == {}


async def test_every_record_reaches_an_outcome(scene: Stage) -> None:
    """Null key and null value, and values that no topic of ours takes, and no partition stands still behind them."""
    (good,) = tenants(1)
    scene.mount([scene.webhook(good)])
    await topics.set_config(scene.bootstrap_servers, scene.topic, {"max.message.bytes": str(LARGEST_RECORD)})
    await topics.set_config(scene.bootstrap_servers, scene.dead_topic, {"max.message.bytes": "300000"})
    huge = _large(good.org, "huge", 2_300_000)  # compressed it passes the limits of its topic
    strange = {
        "nothing at all": (None, None, []),
        "nothing but a header": (None, None, [("a", b"b")]),
        "a header without a value": (b"{", b"k", [("a", None)]),
        "a key as large as a value": (b"{", b"k" * 900_000, []),
        "headers as large as a value": (b"{", b"k", [("h", b"x" * 900_000)]),
        "a value as large as the limit": (b"{" + b"x" * 1_040_000, b"k", []),
        "twice the limit": (huge, b"huge", []),
        "eight times the limit": (b"{" + b" " * 8_000_000, b"k", []),
    }
    producer = AIOKafkaProducer(
        bootstrap_servers=scene.bootstrap_servers, max_request_size=20_000_000, compression_type="gzip"
    )
    await producer.start()
    async with scene.dispatcher() as dispatcher:
        dispatcher.start()
        for number, (value, key, headers) in enumerate(strange.values()):
            batch = producer.create_batch()  # `send` refuses a record without key and value
            batch.append(key=key, value=value, timestamp=None, headers=headers)
            batch.close()
            await (await producer.send_batch(batch, scene.topic, partition=number % 4))
            await scene.send(event(good, f"behind{number}"), partition=number % 4)
            scene.expected[webhook_id_of(good, f"behind{number}")] = good
        await producer.stop()
        await scene.all_accepted(dispatcher)

        async def finished() -> bool:
            return sum((await scene.committed()).values()) == 2 * len(strange)

        await until(finished, "every record to be finished", 60, dispatcher)
    letters = await topics.read_all(scene.bootstrap_servers, scene.dead_topic)
    assert len(letters) == len(strange)
    found = {dict(one.headers).get("feedback-size"): one for one in letters}
    cut = found[str(len(huge)).encode()]
    headers = dict(cut.headers)
    assert headers["feedback-reason"] == b"unreadable"
    assert headers["feedback-origin-topic"] == scene.topic.encode()
    assert headers["feedback-sha256"] == hashlib.sha256(huge).hexdigest().encode()
    assert b"value" in headers["feedback-truncated"]
    assert huge.startswith(cut.value)
    assert len(cut.value) > 100_000
    assert cut.key == b"huge"
    assert gzip.compress(huge)  # the reason why its topic took it


@pytest.mark.all_faults
async def test_the_letter_of_a_record_that_was_cut_is_not_sent_back(scene: Stage) -> None:
    (good,) = tenants(1)
    scene.mount([scene.webhook(good)])
    scene.receiver.behave(f"/{good.org}", status(301))
    await topics.set_config(scene.bootstrap_servers, scene.dead_topic, {"max.message.bytes": "30000"})
    async with scene.dispatcher() as dispatcher:
        dispatcher.start()
        await scene.send(_large(good.org, "cut", 60_000))
        await scene.send(event(good, "whole"))

        async def dead() -> bool:
            return sum((await topics.end_offsets(scene.bootstrap_servers, scene.dead_topic)).values()) == 2

        await until(dead, "two dead letters", 60, dispatcher)
        scene.receiver.behave(f"/{good.org}", None)
        scene.expected[webhook_id_of(good, "whole")] = good
        ran = await running.dispatcher("redrive", "-c", dispatcher.path)
        assert ran.status == 0, ran
        assert "1 of 1 sent back" in ran.out
        assert "1 of the selected dead letters carry only a part of their event" in ran.out
        await scene.all_accepted(dispatcher)
        assert webhook_id_of(good, "cut") not in scene.receiver.accepted


@pytest.mark.all_faults
async def test_a_write_during_half_a_minute_without_a_broker_is_stored_once(mortal: ApacheKafka) -> None:
    """An idempotent producer that waits for the broker repeats nothing; one that is replaced would."""
    topic = f"away-{uuid4().hex[:8]}"
    await topics.create_topic(mortal.bootstrap_servers, topic, partitions=3)
    settings = KafkaSettings(bootstrap_servers=mortal.bootstrap_servers, topic="t", group_id="g")
    async with Producer(settings) as producer:

        async def write(number: int) -> None:
            await asyncio.sleep(number * 0.005)
            while True:
                try:
                    await producer.write(topic, b"%d" % number, b"x", (), "retry")
                except NotWritten:
                    await asyncio.sleep(1)
                else:
                    return

        async with asyncio.TaskGroup() as writes:
            for number in range(600):
                writes.create_task(write(number))
            await asyncio.sleep(1)
            mortal.kill()
            await asyncio.sleep(32)
            await mortal.start()
    written = await topics.read_all(mortal.bootstrap_servers, topic)
    assert sorted(int(one.key or b"") for one in written) == list(range(600))
