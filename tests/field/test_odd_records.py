"""Records as other producers write them, and junk in the dispatcher's own topics: each one reaches its outcome."""

import asyncio
import time
from collections import Counter
from collections.abc import Mapping

import pytest
from aiokafka import AIOKafkaProducer

from dispatcher.kafka.topics import held_topic
from tests.commands.running import called as command
from tests.field.readiness import metric
from tests.integration.brokers import needs_kafka
from tests.integration.harness import Dispatcher, Stage, at_first, event, status, tenants, until, webhook_id_of
from tests.kafka import topics

pytestmark = [needs_kafka, pytest.mark.timeout(300)]

(TENANT,) = tenants(1)
ORDINARY = event(TENANT, "ordinary")


async def _send(scene: Stage, values: Mapping[str, bytes], codec: str | None = None) -> None:
    """Writes values in batches of their own codec, and expects the event that each is named after."""
    async with AIOKafkaProducer(bootstrap_servers=scene.bootstrap_servers, compression_type=codec) as producer:
        for name, value in values.items():
            await producer.send(scene.topic, value)
            scene.expected[webhook_id_of(TENANT, name)] = TENANT


async def _read_to_its_end(scene: Stage, topic: str, dispatcher: Dispatcher) -> None:
    """Waits until every record of a topic is committed."""
    group = scene.group_id if topic == scene.topic else f"{scene.group_id}.retry"

    async def is_committed() -> bool:
        ends = await topics.end_offsets(scene.bootstrap_servers, topic)
        found = await topics.committed(scene.bootstrap_servers, group)
        offsets = {tp.partition: state.offset for tp, state in found.items() if tp.topic == topic}
        return all(offsets.get(partition, 0) == end for partition, end in ends.items())

    await until(is_committed, f"{topic} to be read to its end", 60, dispatcher)


async def test_batches_of_every_codec_are_delivered(scene: Stage) -> None:
    scene.mount([scene.webhook(TENANT)])
    async with scene.dispatcher() as dispatcher:
        dispatcher.start()
        for codec in (None, "gzip", "snappy", "lz4", "zstd"):
            await _send(scene, {f"{codec}-{number}": event(TENANT, f"{codec}-{number}") for number in range(30)}, codec)
        await scene.all_accepted(dispatcher)
        assert await scene.dead() == {}
        assert scene.receiver.repeats() == 0


LIBERAL = {
    "mark": b"\xef\xbb\xbf" + event(TENANT, "mark"),
    "framed": b"\x00\x00\x00\x00\x07" + event(TENANT, "framed"),
    "twice": event(TENANT, "twice").replace(b'"requestId"', b'"requestId": "first", "requestId"', 1),
    "surrogate": event(TENANT, "surrogate").replace(b'"requestId"', b'"unused": "\\ud800", "requestId"', 1),
    "huge": event(TENANT, "huge").replace(b'"requestId"', b'"unused": 1' + b"0" * 400 + b', "requestId"', 1),
    "spaces": b"\r\n\t " + event(TENANT, "spaces") + b"\n\n",
}
UNREADABLE = {
    "empty": b"",
    "blank": b" \n",
    "null": b"null",
    "array": b"[" + ORDINARY + b"]",
    "two": ORDINARY + ORDINARY,
    "cut": ORDINARY[:-20],
    "utf-16": ORDINARY.decode().encode("utf-16"),
    "nan": ORDINARY.replace(b'"requestId"', b'"unused": NaN, "requestId"', 1),
    "deep": b'{"header":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "avro": b"\x00\x00\x00\x00\x07" + bytes(range(200)),
    "zeros": bytes(1000),
}


async def test_irrelevant_oddities_are_accepted_and_other_records_die_with_their_reason(scene: Stage) -> None:
    """Good events are between the others in each partition, and all of them arrive."""
    scene.mount([scene.webhook(TENANT)])
    async with scene.dispatcher() as dispatcher:
        dispatcher.start()
        for partition in range(4):
            for name, value in UNREADABLE.items():
                await scene.send(value, partition=partition)
                good = f"after-{name}-{partition}"
                await scene.send(event(TENANT, good), partition=partition)
                scene.expected[webhook_id_of(TENANT, good)] = TENANT
        await _send(scene, LIBERAL)
        await scene.all_accepted(dispatcher)
        await _read_to_its_end(scene, scene.topic, dispatcher)
        await dispatcher.ready()
        letters = await topics.read_all(scene.bootstrap_servers, scene.dead_topic)

    reasons = Counter(dict(letter.headers)["feedback-reason"] for letter in letters)
    assert reasons == Counter({b"unreadable": 4 * len(UNREADABLE)})
    assert Counter(letter.value for letter in letters) == Counter(dict.fromkeys(UNREADABLE.values(), 4))


SPOOFED = [
    (f"feedback-{name}", value)
    for name in (
        "origin-topic", "origin-partition", "origin-offset", "first-seen", "attempts", "not-before", "last-status",
        "reason", "parks", "refusals",
    )
    for value in (b"4102444800", b"\xff\xfe junk")
]  # fmt: skip


async def test_headers_that_a_producer_has_made_up_are_not_believed(scene: Stage) -> None:
    """They would make the event too old, due in a hundred years, or give it another origin and number of attempts."""
    scene.mount([scene.webhook(TENANT)])
    async with (
        AIOKafkaProducer(bootstrap_servers=scene.bootstrap_servers) as producer,
        scene.dispatcher() as dispatcher,
    ):
        dispatcher.start()
        for number, headers in enumerate([*([one] for one in SPOOFED), SPOOFED]):
            await producer.send_and_wait(scene.topic, event(TENANT, f"spoofed-{number}"), headers=headers)
            scene.expected[webhook_id_of(TENANT, f"spoofed-{number}")] = TENANT
        await scene.all_accepted(dispatcher)
        assert await scene.dead() == {}
    attempts = [arrived.headers["webhook-attempt"] for arrived in scene.receiver.at(f"/{TENANT.org}")]
    assert attempts == ["1"] * (len(SPOOFED) + 1)


async def test_junk_in_the_own_topics_holds_nothing_up(scene: Stage) -> None:
    """A script has written to the tiers, the held events and the dead letters."""
    webhook = scene.webhook(TENANT)
    scene.mount([webhook | {"paused": True}])
    scene.receiver.behave(f"/{TENANT.org}", at_first(status(503)))
    own = [*scene.tier_topics, held_topic(scene.prefix), scene.dead_topic]
    headers = [[], [("feedback-first-seen", b"soon")], SPOOFED, [("feedback-not-before", b"99999999999")]]
    async with AIOKafkaProducer(bootstrap_servers=scene.bootstrap_servers) as producer:
        for topic in own:
            for partition in range(4):
                await producer.send_and_wait(topic, None, b"key", partition=partition)
                for one in headers:
                    await producer.send_and_wait(topic, b"junk", partition=partition, headers=one)
    async with scene.dispatcher(retry={"soon_attempts": 0}) as dispatcher:
        dispatcher.start()
        await scene.produce([TENANT], 8)  # too few for the breaker
        await _read_to_its_end(scene, scene.topic, dispatcher)
        assert not scene.receiver.accepted
        scene.mount([webhook])
        await scene.all_accepted(dispatcher)
        for topic in scene.tier_topics:
            await _read_to_its_end(scene, topic, dispatcher)
        await dispatcher.ready()
        assert await scene.dead() == {}


async def test_an_event_without_our_headers_in_a_tier_is_delivered(scene: Stage) -> None:
    """As if it had been copied there by hand: its place in the tier is its origin."""
    scene.mount([scene.webhook(TENANT)])
    async with scene.dispatcher() as dispatcher:
        dispatcher.start()
        await dispatcher.ready()
        for number, topic in enumerate([*scene.tier_topics, held_topic(scene.prefix)]):
            await scene.send(event(TENANT, f"copied-{number}"), topic=topic)
            scene.expected[webhook_id_of(TENANT, f"copied-{number}")] = TENANT
        await scene.all_accepted(dispatcher)
        assert await topics.read_all(scene.bootstrap_servers, scene.dead_topic) == []


async def test_a_partition_that_its_brake_stops_delays_no_other(scene: Stage) -> None:
    """More records wait behind the brake than the process reads ahead at low throughput."""
    scene.mount([scene.webhook(TENANT)])
    producer = await scene.producer()
    async with scene.dispatcher() as dispatcher:
        dispatcher.start()
        await dispatcher.ready()
        await asyncio.gather(*[await producer.send(scene.topic, b"junk", partition=0) for _ in range(2_500)])

        async def waiting() -> bool:
            return (await metric(dispatcher, "dispatcher_unfinished_records") or 0) > 1_500

        await until(waiting, "the junk to wait", 60, dispatcher)
        for number in range(60):
            await scene.send(event(TENANT, f"good{number}"), partition=1 + number % 3)
            scene.expected[webhook_id_of(TENANT, f"good{number}")] = TENANT
        await scene.all_accepted(dispatcher)
        assert (await scene.committed())[0] < 2_500
        dispatcher.kill9()


async def test_a_trace_of_topics_believes_no_headers_of_events_and_no_timestamps(scene: Stage) -> None:
    """Timestamps in seconds lie in 1970: by time, nothing of the topic is read."""
    scene.mount([scene.webhook(TENANT)])
    await topics.set_config(scene.bootstrap_servers, scene.topic, {"retention.ms": "-1"})
    async with AIOKafkaProducer(bootstrap_servers=scene.bootstrap_servers) as producer:
        await producer.send_and_wait(scene.topic, event(TENANT, "forged"), headers=SPOOFED, partition=0)
        seconds = int(time.time())
        await producer.send_and_wait(scene.topic, event(TENANT, "seconds"), timestamp_ms=seconds, partition=1)
    dispatcher = scene.dispatcher()
    for name in ("forged", "seconds"):
        ran = await command("trace", name, "--topics", "-c", dispatcher.path)
        assert (ran.status, "  Arrived" in ran.out, "attempts" in ran.out) == (0, True, False), ran
    ran = await command("trace", "unknown", "--topics", "--since", "2h", "-c", dispatcher.path)
    assert ran.status == 1
    assert "of the topics, records with a timestamp of the last 2h (--since) and the newest" in ran.err
