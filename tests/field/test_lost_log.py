"""A position is valid only for the log that it was made of: nothing is lost when the log is another one."""

import asyncio
import re
from collections.abc import Awaitable, Callable

import pytest
from aiohttp import web
from aiokafka import TopicPartition

from dispatcher.kafka.commit_metadata import decode_metadata
from tests.field.lost_logs import create_anew, lose_disk, remove_before
from tests.integration.brokers import needs_kafka
from tests.integration.harness import Dispatcher, Receiver, Stage, event, tenants, until, webhook_id_of
from tests.kafka import topics
from tests.kafka.apache_kafka import ApacheKafka

pytestmark = [needs_kafka, pytest.mark.timeout(300)]

LOST_LINE = "the log of a partition is not the one that was read before"
REMOVED_LINE = "records were removed from a partition before they were read"
ALL_FAULTS = pytest.mark.all_faults
(TENANT,) = tenants(1)

Fault = Callable[[ApacheKafka, str], Awaitable[None]]


async def _produce(scene: Stage, count: int, prefix: str) -> None:
    """Produces to partition 0, so that the offsets are known."""
    for number in range(count):
        await scene.send(event(TENANT, f"{prefix}{number}"), partition=0)
        scene.expected[webhook_id_of(TENANT, f"{prefix}{number}")] = TENANT


def _hold(scene: Stage, event_id: str) -> asyncio.Event:
    """Makes the endpoint answer every event but this one, and that one after `released` is set."""
    released, held = asyncio.Event(), webhook_id_of(TENANT, event_id)

    async def answer(request: web.Request, receiver: Receiver) -> web.StreamResponse:
        if request.headers["webhook-id"] == held:
            await released.wait()
        return receiver.accept(request)

    scene.receiver.behave(f"/{TENANT.org}", answer)
    return released


async def _committed(scene: Stage, position: int, dispatcher: Dispatcher, end: int | None = None) -> None:
    """Waits until partition 0 is committed up to there, and the metadata name everything up to `end` as finished."""
    tp = TopicPartition(scene.topic, 0)

    async def is_committed() -> bool:
        state = (await topics.committed(scene.bootstrap_servers, scene.group_id)).get(tp)
        if state is None or state.offset != position:
            return False
        return decode_metadata(position, state.metadata).end == (end or position)

    await until(is_committed, f"position {position} to be committed", 60, dispatcher)


async def _metric(dispatcher: Dispatcher, name: str, **labels: str) -> float:
    """Returns the sum of the series of this name that have these labels."""
    _, text = await dispatcher.get("/metrics")
    found = re.findall(rf"^{name}(?:{{(.*)}})? ([\d.e+-]+)$", text, re.M)
    wanted = [f'{key}="{value}"' for key, value in labels.items()]
    return sum(float(value) for given, value in found if all(one in given for one in wanted))


async def _five_of_thirty_held(scene: Stage, dispatcher: Dispatcher) -> asyncio.Event:
    """Delivers 30 events of which number 5 hangs: position 5, and 6 to 29 in the metadata."""
    scene.mount([scene.webhook(TENANT, timeout="30s")])
    released = _hold(scene, "old5")
    await _produce(scene, 30, "old")
    dispatcher.start()
    await scene.accepted(29, dispatcher)
    await _committed(scene, 5, dispatcher, end=30)
    return released


FAULTS = {"disk lost": lose_disk, "topic recreated": create_anew}


@pytest.mark.parametrize("grown", [60, *(pytest.param(one, marks=ALL_FAULTS) for one in (30, 10, 3))])
async def test_a_log_lost_and_grown_while_the_process_is_down_is_read_from_its_start(
    scene: Stage, mortal: ApacheKafka, grown: int
) -> None:
    """Past the old ranges, to their end, into them, and not even to the position."""
    async with scene.dispatcher() as dispatcher:
        await _five_of_thirty_held(scene, dispatcher)
        dispatcher.kill9()
        del scene.expected[webhook_id_of(TENANT, "old5")]  # the only copy was on that disk
        scene.receiver.behave(f"/{TENANT.org}", None)
        await lose_disk(mortal, scene.topic)
        await _produce(scene, grown, "new")
        dispatcher.start()
        await scene.all_accepted(dispatcher)

        assert LOST_LINE in dispatcher.log
        assert await _metric(dispatcher, "dispatcher_kafka_log_resets_total", topic=scene.topic) == 1
        await _committed(scene, grown, dispatcher)
        status, text = await dispatcher.get("/readyz")
        assert status == 200, text
        assert f"{scene.topic}/0" in text, "readiness names the partition"
        # The position is the new log's now: another restart repeats nothing.
        repeats = scene.receiver.repeats()
        dispatcher.sigterm()
        assert await dispatcher.wait() == 0
        dispatcher.start()
        await _produce(scene, 5, "after")
        await scene.all_accepted(dispatcher)
        assert scene.receiver.repeats() == repeats
        assert LOST_LINE not in dispatcher.log


@pytest.mark.parametrize("grown", [60, pytest.param(10, marks=ALL_FAULTS)])
@pytest.mark.parametrize("fault", ["disk lost", pytest.param("topic recreated", marks=ALL_FAULTS)])
async def test_a_log_lost_and_grown_while_the_process_runs_is_read_from_its_start(
    scene: Stage, mortal: ApacheKafka, fault: str, grown: int
) -> None:
    """And what was read of the old one, of which no other copy is left, is delivered."""
    async with scene.dispatcher() as dispatcher:
        released = await _five_of_thirty_held(scene, dispatcher)
        await FAULTS[fault](mortal, scene.topic)
        await _produce(scene, grown, "new")
        await until(lambda: len(scene.missing()) == 1, "every new event", 60, dispatcher)
        released.set()
        await scene.all_accepted(dispatcher)

        assert dispatcher.running
        assert (LOST_LINE in dispatcher.log) or fault == "topic recreated"
        await _committed(scene, grown, dispatcher)


@ALL_FAULTS
async def test_a_topic_recreated_while_the_process_is_down_is_read_from_its_start(
    scene: Stage, mortal: ApacheKafka
) -> None:
    async with scene.dispatcher() as dispatcher:
        await _five_of_thirty_held(scene, dispatcher)
        dispatcher.kill9()
        del scene.expected[webhook_id_of(TENANT, "old5")]
        scene.receiver.behave(f"/{TENANT.org}", None)
        await create_anew(mortal, scene.topic)
        await _produce(scene, 60, "new")
        dispatcher.start()
        await scene.all_accepted(dispatcher)
        await _committed(scene, 60, dispatcher)


async def test_records_that_retention_took_unread_while_the_process_was_down_are_counted(
    scene: Stage, mortal: ApacheKafka
) -> None:
    async with scene.dispatcher() as dispatcher:
        await _five_of_thirty_held(scene, dispatcher)
        dispatcher.kill9()
        scene.receiver.behave(f"/{TENANT.org}", None)
        await _produce(scene, 30, "new")
        await remove_before(mortal, scene.topic, 40)
        for name in [f"new{number}" for number in range(10)] + ["old5"]:
            del scene.expected[webhook_id_of(TENANT, name)]
        dispatcher.start()
        await scene.all_accepted(dispatcher)

        assert REMOVED_LINE in dispatcher.log
        name = "dispatcher_kafka_records_removed_unread_total"
        assert await _metric(dispatcher, name, topic=scene.topic) == 11, "5, and 30 to 39; 6 to 29 were delivered"
        status, text = await dispatcher.get("/readyz")
        assert status == 200
        assert "11 unread records" in text
        assert scene.receiver.repeats() == 0


@ALL_FAULTS
async def test_records_that_retention_took_unread_while_the_partition_stood_still_are_counted(
    scene: Stage, mortal: ApacheKafka
) -> None:
    scene.mount([scene.webhook(TENANT, timeout="30s")])
    released = asyncio.Event()

    async def answer(request: web.Request, receiver: Receiver) -> web.StreamResponse:
        await released.wait()
        return receiver.accept(request)

    scene.receiver.behave(f"/{TENANT.org}", answer)
    async with scene.dispatcher(kafka={"partition_window": 10}, delivery={"lane_max_wait": "60s"}) as dispatcher:
        dispatcher.start()
        await dispatcher.ready()
        await _produce(scene, 10, "read")
        await until(lambda: len(scene.receiver.seen) == 10, "the window to be full", 60, dispatcher)
        await _produce(scene, 1, "buffered")  # fetched, and waits for room
        await asyncio.sleep(1)
        await _produce(scene, 2000, "late")
        await remove_before(mortal, scene.topic, 1900)
        released.set()
        await until(lambda: REMOVED_LINE in dispatcher.log, "the gap to be logged", 60, dispatcher)
        removed = int(await _metric(dispatcher, "dispatcher_kafka_records_removed_unread_total", topic=scene.topic))
        assert removed > 0
        await until(lambda: len(scene.missing()) == removed, "all the others", 60, dispatcher)
        await _committed(scene, 2011, dispatcher)
        assert dispatcher.running


@ALL_FAULTS
@pytest.mark.parametrize("tier", ["1s"])
async def test_a_tier_whose_log_is_lost_loses_nothing_that_was_read_and_goes_on(
    scene: Stage, mortal: ApacheKafka, tier: str
) -> None:
    """The retry consumer has positions, too."""
    topic = f"{scene.prefix}.retry.{tier}"
    scene.mount([scene.webhook(TENANT)])

    async def answer(request: web.Request, receiver: Receiver) -> web.StreamResponse:
        first = receiver.seen[request.headers["webhook-id"]] == 1
        return web.Response(status=503) if first else receiver.accept(request)

    scene.receiver.behave(f"/{TENANT.org}", answer)
    async with scene.dispatcher(retry={"soon_attempts": 0}) as dispatcher:
        dispatcher.start()
        await _produce(scene, 8, "old")
        await scene.all_accepted(dispatcher)
        assert sum((await topics.end_offsets(scene.bootstrap_servers, topic)).values()) == 8
        await asyncio.sleep(1.5)
        dispatcher.kill9()
        await lose_disk(mortal, topic, *range(4))
        dispatcher.start()
        await dispatcher.ready()
        await _produce(scene, 8, "new")
        await scene.all_accepted(dispatcher)
