"""Unexpected errors in the Kafka client's own tasks: it would stop reading, or leave its group, and poll on as if all was well."""

import asyncio
from collections import Counter
from typing import Any

import pytest

from dispatcher.contract.outcomes import Delivered, Outcome
from dispatcher.contract.records import ProcessingAttempt, Record
from dispatcher.kafka.consumer import Consumer
from dispatcher.kafka.read_ahead import ReadAheadLimit
from dispatcher.telemetry import metrics
from tests.field.members import member, settings_of
from tests.integration.brokers import needs_kafka
from tests.integration.harness import Stage, until
from tests.kafka import topics

pytestmark = [needs_kafka, pytest.mark.timeout(300)]


def failing_once(call: Any) -> Any:
    failed = False

    async def patched(*arguments: Any) -> Any:
        nonlocal failed
        if not failed:
            failed = True
            raise ValueError("a bug")
        return await call(*arguments)

    return patched


async def test_partitions_that_another_member_got_meanwhile_are_given_up_and_commits_go_on(scene: Stage) -> None:
    """The group gives them away while the task that would say so has ended: a rebalance revokes what it revokes."""
    topic, seen = f"{scene.topic}-anew", Counter[bytes]()
    await topics.create_topic(scene.bootstrap_servers, topic, partitions=2)
    settings = settings_of(scene, topic)

    async def process(record: Record, attempt: ProcessingAttempt) -> Outcome:
        attempt.start()
        seen[record.value or b""] += 1
        return Delivered(1)

    consumers = [
        Consumer(settings, (topic,), topic, process, ReadAheadLimit(100, 10**6), drain_timeout_s=5) for _ in range(2)
    ]
    running = [asyncio.create_task(consumers[0].run())]
    try:
        await until(lambda: len(consumers[0].owned()) == 2 and consumers[0]._client is not None, "the assignment", 60)
        client = consumers[0]._client
        assert client is not None
        coordinator = client._consumer._coordinator
        coordinator._maybe_do_autocommit = failing_once(coordinator._maybe_do_autocommit)
        client._revived_at = (
            asyncio.get_running_loop().time()
        )  # it is not started again before the other one has joined
        coordinator.coordinator_dead()
        await until(coordinator._coordination_task.done, "the bug", 60)
        running.append(asyncio.create_task(consumers[1].run()))
        await until(lambda: [len(one.owned()) for one in consumers] == [1, 1], "a partition for each", 60)
        for number in range(10):
            await scene.send(b"%d" % number, partition=number % 2, topic=topic)
        await until(lambda: len(seen) == 10, "every record", 60)

        async def all_committed() -> bool:
            found = await topics.committed(scene.bootstrap_servers, topic)
            return sum(one.offset for one in found.values()) == 10

        await until(all_committed, "their commits", 60)
        assert set(seen.values()) == {1}
    finally:
        for one in consumers:
            one.stop()
        await asyncio.wait(running)


@pytest.mark.parametrize("task", ["fetches", "keeps the membership"])
async def test_a_task_of_the_client_that_ends_is_started_again(scene: Stage, task: str) -> None:
    topic = f"{scene.topic}-bugs"
    await topics.create_topic(scene.bootstrap_servers, topic, partitions=2)
    bugs = metrics.ERRORS.labels("consumer")._value.get()
    async with member(scene, topic) as one:
        await until(lambda: len(one.owned) == 2, "the assignment", 60)
        assert one.client is not None
        consumer = one.client._consumer
        if task == "fetches":
            consumer._fetcher._proc_fetch_request = failing_once(consumer._fetcher._proc_fetch_request)
        else:
            consumer._coordinator._maybe_do_autocommit = failing_once(consumer._coordinator._maybe_do_autocommit)
            consumer._coordinator.request_rejoin()
        await until(lambda: metrics.ERRORS.labels("consumer")._value.get() > bugs, "the bug", 60)
        async with member(scene, topic) as other:  # it joins, so the group's leader has to answer for the first
            await until(lambda: len(one.owned) == len(other.owned) == 1, "a partition for each", 60)
            for number in range(2):
                await scene.send(b"%d" % number, partition=number, topic=topic)
            await until(lambda: sorted(one.read + other.read) == [b"0", b"1"], "both records", 60)
