"""Errors of the client that no caller waits for any more leave no traceback in the log: the caller has reported its own."""

import asyncio
import gc
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Any
from uuid import uuid4

import pytest
from aiokafka import TopicPartition

from dispatcher.config.kafka_settings import KafkaSettings
from dispatcher.errors import NotWritten
from dispatcher.kafka import connection
from dispatcher.kafka.membership import Assignments, join
from dispatcher.kafka.producer import Producer
from tests.field.lost_logs import create_anew
from tests.integration.brokers import needs_kafka
from tests.integration.harness import until
from tests.kafka import topics
from tests.kafka.apache_kafka import ApacheKafka

pytestmark = [needs_kafka, pytest.mark.timeout(300)]


@asynccontextmanager
async def _unobserved() -> AsyncIterator[list[str]]:
    """Yields the messages of errors that asyncio reports because nothing has handled them."""
    found: list[str] = []

    def note(_: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        culprit = context.get("task") or context.get("future")
        found.append(f"{context['message']}: {context.get('exception')!r} {culprit}")

    loop = asyncio.get_running_loop()
    others = asyncio.all_tasks()  # kept until the end: what other tests have left would be reported as destroyed
    loop.set_exception_handler(note)
    before = _unseen()
    try:
        yield found
        await asyncio.sleep(0.1)
        gc.collect()
        found += [repr(future) for future in _unseen() if future not in before]
    finally:
        loop.set_exception_handler(None)
        others.clear()


def _unseen() -> list[asyncio.Future[Any]]:
    """Returns futures and tasks with an error that nothing has seen: asyncio reports it when they are forgotten."""
    futures = [one for one in gc.get_objects() if isinstance(one, asyncio.Future)]
    return [one for one in futures if one.done() and one._log_traceback]


@pytest.mark.parametrize("value", [b"value", None])
async def test_records_for_a_partition_that_is_gone_fail_with_their_writes_only(
    mortal: ApacheKafka, monkeypatch: pytest.MonkeyPatch, value: bytes | None
) -> None:
    """The topic was recreated with fewer partitions. A record without a value has a batch of its own."""
    topic = f"fewer-{uuid4().hex[:8]}"
    await topics.create_topic(mortal.bootstrap_servers, topic, partitions=4)
    for module in ("producer", "producer_client"):
        monkeypatch.setattr(f"dispatcher.kafka.{module}.WRITE_S", 10.0)
    settings = KafkaSettings(bootstrap_servers=mortal.bootstrap_servers)
    async with _unobserved() as unobserved, Producer(settings) as producer:
        for number in range(4):
            await producer.write(topic, None, value, [], "held", number)
        await create_anew(mortal, topic, partitions=1)
        writes = [producer.write(topic, None, value, [], "held", number) for number in (1, 2, 3) for _ in range(3)]
        results = await asyncio.gather(*writes, return_exceptions=True)
        assert {type(result) for result in results} == {NotWritten}
        await producer.write(topic, None, value, [], "held", 0)
        await until(lambda: not producer._closing, "the replaced client to be closed")
    assert unobserved == []


class _Nobody:
    """A member that does nothing with its partitions."""

    async def assigned(self, tps: Iterable[TopicPartition], /) -> None: ...
    async def revoked(self, tps: Iterable[TopicPartition], /) -> None: ...
    def heard(self, at: float, /) -> None: ...


async def test_a_commit_that_no_caller_waits_for_fails_without_a_word(
    mortal: ApacheKafka, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a drain while the broker hangs: the caller has given the commit up, and reported that."""
    topic = f"commits-{uuid4().hex[:8]}"
    await topics.create_topic(mortal.bootstrap_servers, topic)
    monkeypatch.setattr(connection, "STOP_S", 2.0)
    async with _unobserved() as unobserved:
        await _commit_in_vain(mortal, topic)
    assert unobserved == []


async def _commit_in_vain(broker: ApacheKafka, topic: str) -> None:
    """Leaves nothing behind that refers to the client: asyncio reports an error when its task is forgotten."""
    tp, settings = TopicPartition(topic, 0), KafkaSettings(bootstrap_servers=broker.bootstrap_servers)
    client = await join(settings, [topic], f"group-{topic}", Assignments(_Nobody()))
    try:
        await until(lambda: client.assignment() == {tp}, "the partition")
        await client.commit({tp: (0, "")})
        for connected in client._consumer._client._conns.values():
            connected._request_timeout = 3.0
        broker.pause()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(1):
                await client.commit({tp: (0, "again")})
        await connection.stopped(client)
        await asyncio.sleep(3)
    finally:
        broker.resume()
