"""What aiokafka makes of answers, once it is patched."""

import asyncio
from collections.abc import Sequence
from io import BytesIO
from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka import TopicPartition, codec
from aiokafka.client import AIOKafkaClient, ConnectionGroup
from aiokafka.consumer.group_coordinator import GroupCoordinator
from aiokafka.consumer.subscription_state import SubscriptionState
from aiokafka.errors import GroupAuthorizationFailedError, KafkaError
from aiokafka.protocol.commit import OffsetFetchRequest, OffsetFetchResponse_v3
from aiokafka.record.default_records import DefaultRecordBatchBuilder
from aiokafka.record.memory_records import MemoryRecords
from aiokafka.structs import OffsetAndMetadata

import dispatcher.kafka.connection  # noqa: F401  (applies the patches)
from dispatcher.kafka.reconnecting import UPDATES_A_SECOND
from dispatcher.telemetry import metrics
from tests.unit.virtual_time import virtual_time

ONE = TopicPartition("events", 0)
KNOWN = [("events", [(0, 42, "metadata", 0)])]


class Connection:
    """Answers the requests for a group's offsets, the next answer to each."""

    def __init__(self, *answers: tuple[Sequence[Any], int]) -> None:
        self._answers = [OffsetFetchResponse_v3(0, list(topics), code).encode() for topics, code in answers]

    def connected(self) -> bool:
        return True

    def send(self, request: Any, *, expect_response: bool) -> Any:
        del request, expect_response

        async def answer() -> Any:
            return OffsetFetchResponse_v3.decode(BytesIO(self._answers.pop(0)))

        return answer()


def client_of(connection: Connection) -> AIOKafkaClient:
    client = AIOKafkaClient(bootstrap_servers="none:1")
    for group in ConnectionGroup:
        client._conns[1, group] = connection

    async def ready(*_: object, **__: object) -> bool:
        return True

    client.ready = ready
    return client


async def committed(*answers: tuple[Sequence[Any], int]) -> dict[TopicPartition, OffsetAndMetadata]:
    coordinator = GroupCoordinator(client_of(Connection(*answers)), SubscriptionState(), group_id="g")
    coordinator._coordination_task.cancel()
    lookups = 0

    async def find() -> None:
        nonlocal lookups
        lookups += 1
        coordinator.coordinator_id = 1
        coordinator._coordinator_dead_fut = asyncio.get_running_loop().create_future()

    coordinator.ensure_coordinator_known = find
    found: dict[TopicPartition, OffsetAndMetadata] = await coordinator.fetch_committed_offsets([ONE])
    assert lookups == len(answers), "the coordinator is looked for again after each error"
    return found


@virtual_time
@pytest.mark.parametrize("code", [14, 15, 16], ids=["loading", "not available", "not coordinator"])
async def test_requests_to_a_loading_or_moving_coordinator_are_repeated(code: int) -> None:
    """Its answer names no partition, as that of a group without commits does: every position would be lost."""
    assert await committed(([], code), ([], code), (KNOWN, 0)) == {ONE: OffsetAndMetadata(42, "metadata")}


@virtual_time
async def test_a_group_without_commits_has_none() -> None:
    assert await committed(([("events", [(0, -1, "", 0)])], 0)) == {}


@virtual_time
async def test_a_missing_permission_on_the_group_is_raised() -> None:
    with pytest.raises(GroupAuthorizationFailedError, match="g"):
        await committed(([], 30))


@virtual_time
@pytest.mark.parametrize("code", [14, 16, 30])
async def test_group_errors_propagate_to_outside_callers(code: int) -> None:
    with pytest.raises(KafkaError) as raised:
        await client_of(Connection(([], code))).send(1, OffsetFetchRequest("g", None))
    assert raised.value.errno == code


async def test_an_odd_answer_about_metadata_does_not_end_the_task_that_asks() -> None:
    client = client_of(Connection())
    client.cluster.brokers = lambda: [SimpleNamespace(nodeId=1)]

    async def odd(*_: object, **__: object) -> None:
        raise ValueError("a bug")

    client._get_conn = odd
    bugs = metrics.ERRORS.labels("consumer")._value.get()
    assert await client._metadata_update(client.cluster, set()) is False
    assert metrics.ERRORS.labels("consumer")._value.get() == bugs + 1


@virtual_time
async def test_metadata_is_requested_a_few_times_a_second_at_most() -> None:
    client, asked = client_of(Connection()), 0
    client.cluster.brokers = lambda: [SimpleNamespace(nodeId=1)]

    async def unknown(*_: object, **__: object) -> None:
        nonlocal asked
        asked += 1

    client._get_conn = unknown
    until = asyncio.get_running_loop().time() + 10
    while asyncio.get_running_loop().time() < until:
        await client._metadata_update(client.cluster, set())
    assert 5 < asked <= 10 * UPDATES_A_SECOND + UPDATES_A_SECOND


def test_batches_are_compressed_by_the_fastest_level() -> None:
    def built(compression: int) -> bytes:
        batch = DefaultRecordBatchBuilder(2, compression, 0, -1, -1, 0, 100_000)
        for number in range(100):
            assert batch.append(number, 0, b"key", b'{"number":%d,"square":%d}' % (number, number**2), [])
        return bytes(batch.build())

    header = 61  # of a record batch, version 2
    plain, compressed = built(0), built(4)
    assert compressed[header:] == codec.zstd_encode(plain[header:], level=1)
    assert compressed[header:] != codec.zstd_encode(plain[header:], level=3)
    batch = MemoryRecords(compressed).next_batch()
    assert [record.value for record in batch][7] == b'{"number":7,"square":49}'
