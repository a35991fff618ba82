"""What tests ask of any broker: make a topic, see how far it goes, see what a group has committed, read it all."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress

from aiokafka import AIOKafkaConsumer, ConsumerRecord, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.coordinator.assignors.range import RangePartitionAssignor
from aiokafka.errors import for_code
from aiokafka.protocol.admin import DeleteGroupsRequest
from aiokafka.structs import OffsetAndMetadata

from dispatcher.kafka.committed_offsets import NOT_READY


@asynccontextmanager
async def admin_client(bootstrap_servers: str) -> AsyncIterator[AIOKafkaAdminClient]:
    """Yields a started admin client, over PLAINTEXT."""
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap_servers)
    try:
        await admin.start()
        yield admin
    finally:
        await admin.close()


async def create_topic(
    bootstrap_servers: str,
    name: str,
    *,
    partitions: int = 1,
    replication: int = 1,
    config: Mapping[str, str] | None = None,
) -> None:
    """Creates a topic and waits until the broker lists it.

    Raises aiokafka's error if the broker refuses, such as when the topic exists.
    """
    async with admin_client(bootstrap_servers) as admin:
        topic = NewTopic(name, partitions, replication, topic_configs=dict(config or {}))
        response = await admin.create_topics([topic])  # refusals are in the answer, not raised
    for _, code, message, *_ in response.topic_errors:
        if code:
            raise for_code(code)(message)
    async with asyncio.timeout(60):
        while not await partitions_of(bootstrap_servers, name):
            await asyncio.sleep(0.05)


async def set_config(bootstrap_servers: str, name: str, config: dict[str, str]) -> None:
    """Sets the topic's own configuration; replaces all of it."""
    async with admin_client(bootstrap_servers) as admin:
        await admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, name, configs=config)])


async def delete_topic(bootstrap_servers: str, name: str) -> None:
    """Deletes a topic; no request finds it any more when this returns."""
    async with admin_client(bootstrap_servers) as admin:
        await admin.delete_topics([name])
    async with asyncio.timeout(60):
        while await partitions_of(bootstrap_servers, name):
            await asyncio.sleep(0.05)


async def delete_topics_with(bootstrap_servers: str, part: str) -> None:
    """Deletes every topic whose name has this part. Doesn't wait until they are gone."""
    async with admin_client(bootstrap_servers) as admin:
        await admin.delete_topics([name for name in await admin.list_topics() if part in name])


async def delete_group(bootstrap_servers: str, group: str) -> None:
    """Deletes a group without members: its positions are gone, as after `offsets.retention.minutes`."""
    async with admin_client(bootstrap_servers) as admin:
        node = await admin.find_coordinator(group)
        answer = await admin._send_request(DeleteGroupsRequest([group]), node)
    for _, code in answer.results:
        if code:
            raise for_code(code)(group)


@asynccontextmanager
async def member_with_another_protocol(bootstrap_servers: str, topic: str, group: str) -> AsyncIterator[None]:
    """Runs another program's member of a group, whose assignor no dispatcher has."""
    consumer = AIOKafkaConsumer(
        topic,
        bootstrap_servers=bootstrap_servers,
        group_id=group,
        partition_assignment_strategy=(RangePartitionAssignor,),
    )
    await consumer.start()
    try:
        yield
    finally:
        await consumer.stop()


async def end_offsets(bootstrap_servers: str, topic: str) -> dict[int, int]:
    """Returns the offset that the next record gets by partition; empty if there is no such topic. Never creates it."""
    partitions = await partitions_of(bootstrap_servers, topic)
    if not partitions:
        return {}
    async with _reader(bootstrap_servers) as consumer:
        ends = await consumer.end_offsets(partitions)
    return {partition.partition: offset for partition, offset in ends.items()}


async def read_all(bootstrap_servers: str, topic: str) -> list[ConsumerRecord[bytes, bytes]]:
    """Returns every record in the topic, in order within a partition; committed transactions only."""
    return [record async for record in records_of(bootstrap_servers, topic)]


async def records_of(bootstrap_servers: str, topic: str) -> AsyncIterator[ConsumerRecord[bytes, bytes]]:
    """Yields every record in the topic, in order within a partition; committed transactions only."""
    partitions = await partitions_of(bootstrap_servers, topic)
    if not partitions:
        return
    async with _reader(bootstrap_servers) as consumer:
        ends = await consumer.end_offsets(partitions)
        consumer.assign(partitions)
        await consumer.seek_to_beginning()
        while any([await consumer.position(partition) < end for partition, end in ends.items()]):
            for records in (await consumer.getmany(timeout_ms=200)).values():
                for record in records:
                    yield record


async def partitions_of(bootstrap_servers: str, topic: str) -> list[TopicPartition]:
    """Returns the topic's partitions in order; empty if there is no such topic.

    The request lists all topics: one that named this topic would create it.
    """
    async with admin_client(bootstrap_servers) as admin:
        known = {found["topic"]: found["partitions"] for found in await admin.describe_topics()}
    return [TopicPartition(topic, number) for number in sorted(found["partition"] for found in known.get(topic, []))]


async def committed(bootstrap_servers: str, group: str) -> dict[TopicPartition, OffsetAndMetadata]:
    """Returns what `group` has committed, metadata included; nothing while no coordinator is ready.

    The embedded broker does not answer this.
    """
    async with admin_client(bootstrap_servers) as admin:
        with suppress(*NOT_READY):
            found: dict[TopicPartition, OffsetAndMetadata] = await admin.list_consumer_group_offsets(group)
            return found
    return {}


@asynccontextmanager
async def _reader(bootstrap_servers: str) -> AsyncIterator[AIOKafkaConsumer]:
    consumer = AIOKafkaConsumer(
        bootstrap_servers=bootstrap_servers, enable_auto_commit=False, isolation_level="read_committed"
    )
    await consumer.start()
    try:
        yield consumer
    finally:
        await consumer.stop()


async def commit(bootstrap_servers: str, group: str, tp: TopicPartition, offset: int, metadata: str = "") -> None:
    """Commits an offset for a group without members, as `kafka-consumer-groups.sh --reset-offsets --execute` does."""
    consumer = AIOKafkaConsumer(bootstrap_servers=bootstrap_servers, group_id=group, enable_auto_commit=False)
    await consumer.start()
    try:
        consumer.assign([tp])
        await consumer.commit({tp: OffsetAndMetadata(offset, metadata)})
    finally:
        await consumer.stop()
