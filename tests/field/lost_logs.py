"""Faults of a log: its disk is lost, it is truncated, its topic is recreated, retention removes unread records."""

import asyncio
import shutil

from aiokafka import TopicPartition
from aiokafka.admin.records_to_delete import RecordsToDelete
from aiokafka.errors import KafkaError

from tests.integration.harness import LARGEST_RECORD, until
from tests.kafka import topics
from tests.kafka.apache_kafka import ApacheKafka


async def lose_disk(broker: ApacheKafka, topic: str, *partitions: int) -> None:
    """Kills the broker, removes the partitions' directories, starts it: the logs are empty, the positions stay.

    Partition 0 if none is named.
    """
    broker.kill()
    for partition in partitions or (0,):
        shutil.rmtree(broker.directory / "data" / f"{topic}-{partition}")
    await broker.start()


async def create_anew(broker: ApacheKafka, topic: str, partitions: int = 4) -> None:
    """Deletes the topic and creates it again."""
    async with topics.admin_client(broker.bootstrap_servers) as admin:
        await admin.delete_topics([topic])
    config = {"max.message.bytes": str(LARGEST_RECORD)}

    async def created() -> bool:
        try:
            await topics.create_topic(broker.bootstrap_servers, topic, partitions=partitions, config=config)
        except KafkaError:
            return False
        return True

    await until(created, f"{topic} to be recreated")


async def remove_before(broker: ApacheKafka, topic: str, offset: int, partition: int = 0) -> None:
    """Removes records before an offset, as retention does."""
    async with topics.admin_client(broker.bootstrap_servers) as admin:
        await admin.delete_records({TopicPartition(topic, partition): RecordsToDelete(before_offset=offset)})
    await asyncio.sleep(0.1)
