"""What the lean client keeps between requests: which connections rest, for how long, and how many."""

import asyncio
import time

import pytest

from dispatcher.config.settings import DeliverySettings, EgressSettings
from dispatcher.transport.failures import TransportError
from dispatcher.transport.http1 import Http1Transport, pool
from dispatcher.transport.http1.connection import Connection
from dispatcher.transport.http1.pool import Destination, Pool
from tests.transport.conftest import Serving, post_to
from tests.transport.servers import OK, Peer, answering


class Wire(asyncio.Transport):
    """A transport that only knows whether it was closed."""

    def __init__(self) -> None:
        super().__init__()
        self.aborted = False
        self.written = b""

    def abort(self) -> None:
        self.aborted = True

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.written += bytes(data)


def connection_in(of: Pool) -> tuple[Connection, Wire]:
    connection, wire = Connection(of.forget, lambda _: None), Wire()
    connection.connection_made(wire)
    return connection, wire


async def test_the_connection_used_last_is_used_next() -> None:
    a_pool = Pool(8)
    stack = a_pool.stack_of(Destination("https", "a.example", 443, None))
    connections = [connection_in(a_pool)[0] for _ in range(3)]
    for one in connections:
        a_pool.put(stack, one, time.monotonic())
    assert [a_pool.take(stack, time.monotonic()) for _ in range(4)] == [*reversed(connections), None]
    assert repr(a_pool) == "<Pool 0 resting, 1 destinations>"


async def test_past_the_limit_the_connection_that_rested_longest_is_closed() -> None:
    a_pool = Pool(2)
    stacks = [a_pool.stack_of(Destination("https", f"{name}.example", 443, None)) for name in "abc"]
    wires = []
    for stack in stacks:
        connection, wire = connection_in(a_pool)
        a_pool.put(stack, connection, time.monotonic())
        wires.append(wire)
    assert [wire.aborted for wire in wires] == [True, False, False]
    assert a_pool.take(stacks[0], time.monotonic()) is None


async def test_a_destination_without_connections_and_endpoints_is_forgotten() -> None:
    a_pool = Pool(2)
    for i in range(10):
        a_pool.stack_of(Destination("https", f"{i}.example", 443, None))
    assert repr(a_pool) == "<Pool 0 resting, 0 destinations>"


def exchanged(connection: Connection, deadline: float) -> asyncio.Future[TransportError | None]:
    """A request is written; done with what the connection says in the end."""
    said: asyncio.Future[TransportError | None] = asyncio.get_running_loop().create_future()
    connection.exchange(b"POST", deadline, 0, said.set_result)
    return said


async def test_a_connection_that_rested_for_too_long_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "IDLE_S", 0.02)
    a_pool = Pool(2)
    stack = a_pool.stack_of(Destination("https", "a.example", 443, None))
    connection, wire = connection_in(a_pool)
    a_pool.put(stack, connection, time.monotonic())
    await asyncio.sleep(0.05)
    assert wire.aborted
    assert repr(connection) == "<Connection closed requests=0>"
    assert a_pool.take(stack, time.monotonic()) is None


async def test_one_timer_serves_a_short_deadline_after_a_long_one(monkeypatch: pytest.MonkeyPatch) -> None:
    a_pool = Pool(2)
    connection, wire = connection_in(a_pool)
    connection.rest(time.monotonic() + 60)
    failed = await exchanged(connection, time.monotonic() + 0.03)
    assert failed is not None
    assert failed.detail == "no whole answer in time"
    assert wire.aborted


async def test_a_deadline_that_moved_later_does_not_end_the_exchange_early() -> None:
    a_pool = Pool(2)
    connection, _ = connection_in(a_pool)
    connection.rest(time.monotonic() + 0.02)
    waiter = exchanged(connection, time.monotonic() + 5)
    await asyncio.sleep(0.05)
    assert not waiter.done()
    connection.data_received(OK)
    assert await waiter is None
    assert connection.status == 200
    connection.abort()


async def test_leaving_the_transport_ends_requests_under_way(serving: Serving, ca_bundle: object) -> None:
    settings = EgressSettings.model_validate({"allow": ["127.0.0.0/8"], "ca_bundle": ca_bundle})
    under_way = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.request()
        under_way.set()
        await peer.until_closed()

    async with serving(script) as server:
        async with Http1Transport(DeliverySettings(), settings) as transport:
            task = asyncio.create_task(transport.post(post_to(server.url)))
            await under_way.wait()
        attempt = await task
    assert "closed" in attempt.detail


async def test_tenants_of_one_host_share_its_connections(serving: Serving, ca_bundle: object) -> None:
    settings = EgressSettings.model_validate({"allow": ["127.0.0.0/8"], "ca_bundle": ca_bundle})
    async with serving(answering(OK)) as server, Http1Transport(DeliverySettings(), settings) as transport:
        for i in range(5):
            assert (await transport.post(post_to(f"{server.url}/{i}"))).reused == (i > 0)
    assert server.connections == 1
