"""Every broker moves to a new address behind the same bootstrap name (KIP-899)."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest

from tests.field.readiness import reports, reports_nothing
from tests.integration.brokers import needs_kafka
from tests.integration.harness import stage, tenants
from tests.kafka.apache_kafka import ApacheKafka
from tests.kafka.server_properties import KafkaOptions

pytestmark = [needs_kafka, pytest.mark.all_faults, pytest.mark.timeout(300)]

TENANTS = tenants(1)


class BootstrapName:
    """Stands for a name that resolves to whatever broker there is: forwards connections to it."""

    def __init__(self) -> None:
        self.port = 0
        self.target = ""

    @asynccontextmanager
    async def serve(self) -> AsyncIterator[None]:
        server = await asyncio.start_server(self._forward, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield
        finally:
            server.close()

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            host, port = self.target.split(":")
            behind_reader, behind_writer = await asyncio.open_connection(host, int(port))
        except OSError:
            writer.close()
            return
        await asyncio.gather(_copy(reader, behind_writer), _copy(behind_reader, writer))


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    writer.close()


async def test_brokers_at_new_addresses_are_found_by_bootstrapping_again(tmp_path: Path) -> None:
    name = BootstrapName()
    async with ApacheKafka(KafkaOptions()) as broker, name.serve():
        name.target = broker.bootstrap_servers
        async with stage(broker.bootstrap_servers, tmp_path) as scene:
            scene.mount([scene.webhook(TENANTS[0])])
            kafka = {"bootstrap_servers": f"127.0.0.1:{name.port}"}
            async with scene.dispatcher(kafka=kafka) as dispatcher:
                dispatcher.start()
                await scene.produce(TENANTS, 5, "before")
                await scene.all_accepted(dispatcher)
                await scene.close()
                await broker.move()
                name.target = ""  # for now, no broker is behind the name
                await reports(dispatcher, "brokers_moved", "no known broker answered for 30 s", timeout_s=90)
                name.target = broker.bootstrap_servers
                scene.bootstrap_servers = broker.bootstrap_servers
                await scene.produce(TENANTS, 5, "after")
                await scene.all_accepted(dispatcher)
                await reports_nothing(dispatcher, 60)
            assert await scene.lost() == 0
