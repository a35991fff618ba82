"""What our Kafka clients do on the loop that the daemon runs on, in the instant in which a connection closes."""

import asyncio

import pytest
import uvloop
from aiokafka.conn import create_conn
from aiokafka.errors import KafkaConnectionError
from aiokafka.protocol.metadata import MetadataRequest

from dispatcher.kafka import connection  # noqa: F401  (all of the daemon's clients are made by it)
from tests.conftest import Broker


async def _send_after_the_end(bootstrap_servers: str, turns: int) -> None:
    host, _, port = bootstrap_servers.rpartition(":")
    connected = await create_conn(host, int(port))
    try:
        connected._writer.transport.abort()  # what a reset by the broker does
        for _ in range(turns):
            await asyncio.sleep(0)
        async with asyncio.timeout(60):
            await connected.send(MetadataRequest([]))
    finally:
        connected.close()


@pytest.mark.parametrize("turns", range(5))
def test_writing_to_a_closed_connection_is_a_lost_connection_and_not_a_bug(kafka: Broker, turns: int) -> None:
    """uvloop raises RuntimeError for some turns of the loop, until aiokafka has heard; its tasks would die of it."""
    with (
        asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner,
        pytest.raises(KafkaConnectionError),
    ):
        runner.run(_send_after_the_end(kafka.bootstrap_servers, turns))
