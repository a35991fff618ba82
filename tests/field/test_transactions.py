"""Producers of events that use transactions: markers and aborted records count neither as lag nor as lost."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.errors import CommitFailedError

from tests.field.lost_logs import remove_before
from tests.field.readiness import log_lines, metric, reports, reports_nothing
from tests.integration.brokers import needs_kafka
from tests.integration.harness import LARGEST_RECORD, Dispatcher, Stage, event, tenants, until, webhook_id_of
from tests.integration.impatient import impatient
from tests.kafka.apache_kafka import ApacheKafka

pytestmark = [needs_kafka, pytest.mark.timeout(300)]

(TENANT,) = tenants(1)
ALL_FAULTS = pytest.mark.all_faults
REPORTING_SOON = impatient({"dispatcher.kafka.open_transactions:OPEN_S": 3.0})
"""A dispatcher that reports a transaction after three seconds instead of a minute."""


@asynccontextmanager
async def transactions(scene: Stage) -> AsyncIterator[AIOKafkaProducer]:
    """A producer that leaves its transactions open for up to five minutes."""
    producer = AIOKafkaProducer(
        bootstrap_servers=scene.bootstrap_servers,
        transactional_id=f"{scene.topic}-events",
        transaction_timeout_ms=300_000,
        max_request_size=LARGEST_RECORD,
    )
    await producer.start()
    try:
        yield producer
    finally:
        await producer.stop()


async def send(scene: Stage, producer: AIOKafkaProducer, prefix: str, count: int) -> None:
    for number in range(count):
        await producer.send_and_wait(scene.topic, event(TENANT, f"{prefix}{number}"), partition=0)


def expect(scene: Stage, prefix: str, count: int) -> None:
    scene.expected |= {webhook_id_of(TENANT, f"{prefix}{number}"): TENANT for number in range(count)}


async def done(scene: Stage, dispatcher: Dispatcher, end: int) -> None:
    """Waits until partition 0 has no lag, and is committed up to its end."""

    async def is_done() -> bool:
        lag = await metric(dispatcher, f'dispatcher_kafka_consumer_lag_records{{partition="0",topic="{scene.topic}"}}')
        at = await metric(dispatcher, f'dispatcher_kafka_finished_offset{{partition="0",topic="{scene.topic}"}}')
        return (lag, at) == (0, end) and (await scene.committed()).get(0) == end

    await until(is_done, f"no lag at offset {end}", 60, dispatcher)


async def nothing_is_lost(scene: Stage, dispatcher: Dispatcher) -> None:
    removed = f'dispatcher_kafka_records_removed_unread_total{{topic="{scene.topic}"}}'
    assert await metric(dispatcher, removed) == 0
    for reason in ("truncated", "replaced"):
        resets = f'dispatcher_kafka_log_resets_total{{reason="{reason}",topic="{scene.topic}"}}'
        assert await metric(dispatcher, resets) == 0
    assert scene.receiver.repeats() == 0


@pytest.mark.parametrize("committed", [5, pytest.param(0, marks=ALL_FAULTS)])
async def test_markers_and_aborted_records_are_not_lag_and_not_lost_once_retention_empties_the_log(
    scene: Stage, mortal: ApacheKafka, committed: int
) -> None:
    scene.mount([scene.webhook(TENANT)])
    async with scene.dispatcher() as dispatcher, transactions(scene) as producer:
        dispatcher.start()
        await dispatcher.ready()
        end = 0
        if committed:
            async with producer.transaction():
                await send(scene, producer, "committed", committed)
            expect(scene, "committed", committed)
            await scene.all_accepted(dispatcher)
            end = committed + 1
            await done(scene, dispatcher, end)
        await producer.begin_transaction()
        await send(scene, producer, "aborted", 4)
        await producer.abort_transaction()
        end += 5
        await done(scene, dispatcher, end)

        await remove_before(mortal, scene.topic, end)
        dispatcher.kill9()
        dispatcher.start()
        await dispatcher.ready()
        async with producer.transaction():
            await send(scene, producer, "next", 2)
        expect(scene, "next", 2)
        await scene.all_accepted(dispatcher)
        await done(scene, dispatcher, end + 3)
        await nothing_is_lost(scene, dispatcher)


async def test_a_transaction_that_hangs_is_lag_and_is_named_and_its_end_is_enough(scene: Stage) -> None:
    scene.mount([scene.webhook(TENANT)])
    async with scene.dispatcher() as dispatcher, transactions(scene) as producer:
        dispatcher.program = REPORTING_SOON
        dispatcher.start()
        await dispatcher.ready()
        await scene.send(event(TENANT, "before0"), partition=0)
        expect(scene, "before", 1)
        await producer.begin_transaction()
        await send(scene, producer, "hanging", 3)
        await scene.send(event(TENANT, "behind0"), partition=0)
        await scene.all_accepted(dispatcher)
        series = f'dispatcher_kafka_consumer_lag_records{{partition="0",topic="{scene.topic}"}}'

        async def is_shown() -> bool:
            return await metric(dispatcher, series) == 4

        await until(is_shown, "the records from the transaction on to be lag", 60, dispatcher)
        await reports(
            dispatcher,
            "open_transaction",
            f"--topic {scene.topic} --partition 0 --start-offset 1",
            ready=True,
        )
        await producer.commit_transaction()
        expect(scene, "hanging", 3)
        expect(scene, "behind", 1)
        await scene.all_accepted(dispatcher)
        await reports_nothing(dispatcher, 60)
        await done(scene, dispatcher, 6)


async def test_a_position_that_an_operator_sets_behind_an_open_transaction_waits_for_it(scene: Stage) -> None:
    """As `kafka-consumer-groups.sh --to-latest` does."""
    scene.mount([scene.webhook(TENANT)])
    async with scene.dispatcher() as dispatcher, transactions(scene) as producer:
        dispatcher.program = REPORTING_SOON
        dispatcher.start()
        await dispatcher.ready()
        await scene.produce([TENANT], 40, "old")
        await scene.all_accepted(dispatcher)
        dispatcher.sigterm()
        await dispatcher.wait()
        await producer.begin_transaction()
        await send(scene, producer, "skipped", 10)
        end = await _reset_to_latest(scene)
        dispatcher.start()
        await dispatcher.ready()
        await scene.send(event(TENANT, "new0"), partition=0)
        expect(scene, "new", 1)

        def is_looked_at() -> bool:
            return any(line["event"] == "partitions assigned" for line in log_lines(dispatcher))

        await until(is_looked_at, "the partitions", 60, dispatcher)
        await reports(dispatcher, "open_transaction", f"--topic {scene.topic} --partition 0", ready=True)
        await producer.commit_transaction()
        await scene.all_accepted(dispatcher)
        await done(scene, dispatcher, end + 2)
        await nothing_is_lost(scene, dispatcher)
        assert webhook_id_of(TENANT, "skipped0") not in scene.receiver.seen


async def _reset_to_latest(scene: Stage) -> int:
    """Commits the high watermark of partition 0 for the group. Returns it."""
    tp = TopicPartition(scene.topic, 0)
    consumer: AIOKafkaConsumer[bytes, bytes] = AIOKafkaConsumer(
        bootstrap_servers=scene.bootstrap_servers, group_id=scene.group_id, enable_auto_commit=False
    )
    await consumer.start()
    try:
        consumer.assign([tp])
        end: int = (await consumer.end_offsets([tp]))[tp]

        async def is_committed() -> bool:
            try:
                await consumer.commit({tp: end})
            except CommitFailedError:
                return False  # the group still has its old member
            return True

        await until(is_committed, "the group to be empty", 60)
    finally:
        await consumer.stop()
    return end
