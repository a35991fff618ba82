"""A bootstrap name with several addresses: the first one that answers is used, however long another is silent."""

import asyncio
import socket
from collections.abc import Iterator

import pytest
import uvloop

from dispatcher.config.kafka_settings import KafkaSettings
from dispatcher.contract.kafka_problems import KafkaReason
from dispatcher.kafka.connection import admin_client
from dispatcher.kafka.connection_errors import Peer
from dispatcher.kafka.port_diagnosis import diagnose
from tests.conftest import Broker
from tests.silent_addresses import SILENT, resolve, silent

NAME = "brokers.example"


@pytest.fixture
def silent_port(kafka: Broker) -> Iterator[int]:
    """The broker's port, at which another address of this machine is silent."""
    port = int(kafka.bootstrap_servers.rpartition(":")[2])
    with silent(port):
        yield port


class _Resolving:
    """Answers for the bootstrap name, in place of a DNS server."""

    addresses: tuple[str, ...] = ()

    async def getaddrinfo(self, host: str, port: int, **options: int) -> list[object]:
        hosts = self.addresses if host == NAME else [host]
        return [found for one in hosts for found in socket.getaddrinfo(one, port, type=options.get("type", 0))]


class _AsyncioLoop(_Resolving, asyncio.SelectorEventLoop):  # type: ignore[misc]  # its answers are lists
    pass


class _Uvloop(_Resolving, uvloop.Loop):  # type: ignore[misc]  # no types
    pass


async def _list_topics(port: int) -> None:
    settings = KafkaSettings(bootstrap_servers=f"{NAME}:{port}", topic="events", group_id="group")
    async with asyncio.timeout(60), admin_client(settings) as admin:
        assert await admin.list_topics() is not None


@pytest.mark.parametrize("loop", [_AsyncioLoop, _Uvloop])
@pytest.mark.parametrize("addresses", [(SILENT, "127.0.0.1"), ("127.0.0.1", SILENT)], ids=["first", "last"])
def test_a_silent_address_of_the_bootstrap_name_is_passed_over(
    silent_port: int, addresses: tuple[str, ...], loop: type[_AsyncioLoop | _Uvloop], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "addresses", addresses)
    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(_list_topics(silent_port))


async def test_the_protocol_of_a_port_is_found_out_past_a_silent_address(
    silent_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    resolve(monkeypatch, NAME, SILENT, "127.0.0.1")
    found = await diagnose(NAME, silent_port, Peer(f"{NAME}:{silent_port}", "SSL"), ConnectionResetError())
    assert found is not None
    assert found[0] is KafkaReason.PROTOCOL_MISMATCH
