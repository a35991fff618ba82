"""What the dispatcher is compared with, measured in the same run on the same core.

`python -m benchmarks.references bare|aiohttp URL CA COUNT CONCURRENCY` posts the dispatcher's own bytes COUNT times and
prints the seconds that it took once every connection was open. `plain` is the consumer of some 60 lines that a user would
write with aiokafka and aiohttp: see `plain.py`.
"""

import asyncio
import ssl
import sys
import time
from collections.abc import Callable
from typing import cast
from urllib.parse import urlsplit

import aiohttp
import httptools
import uvloop

from benchmarks.events import event
from dispatcher.contract.events import DeliveryEvent, read_event
from dispatcher.contract.feedback import encode_feedback
from dispatcher.contract.records import Origin
from dispatcher.contract.tenant import TenantKey
from dispatcher.contract.values import HttpHeaders
from dispatcher.transport.endpoint import Endpoint
from dispatcher.transport.request_head import HeaderBlock


class _Value:
    """A record with nothing but a value."""

    topic, partition, offset, timestamp, key, headers = "t", 0, 0, 0, None, ()

    def __init__(self, value: bytes) -> None:
        self.value: bytes | None = value


def request_parts(url: str) -> tuple[bytes, HttpHeaders, bytes]:
    """Head, changing headers and body of the request that the dispatcher sends for the event of every benchmark."""
    found = read_event(_Value(event(TenantKey("org00000", "prod"), 0)), Origin("t", 0, 0))
    assert isinstance(found, DeliveryEvent)
    body = encode_feedback(found, 1)
    headers = (
        ("webhook-id", found.webhook_id),
        ("webhook-timestamp", str(int(time.time()))),
        ("webhook-attempt", "1"),
        ("webhook-event-time", found.timestamp or ""),
    )
    return HeaderBlock(Endpoint.at(url)).render("application/json", len(body), headers), headers, body


class _Bare(asyncio.Protocol):
    """Writes the request, reads the answer with llhttp, writes it again."""

    def __init__(self, request: bytes, answered: Callable[["_Bare"], None]) -> None:
        self._request = request
        self._answered = answered
        self._parser = httptools.HttpResponseParser(self)
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_message_complete(self) -> None:
        assert self._parser.get_status_code() == 204
        self._answered(self)

    def send(self) -> None:
        """Once more."""
        assert self._transport is not None
        self._transport.write(self._request)


async def bare(url: str, ca: str, count: int, concurrency: int) -> float:
    """A bare asyncio TLS client: as fast as Python can post these bytes one a request."""
    head, _, body = request_parts(url)
    parts = urlsplit(url)
    context = ssl.create_default_context(cafile=ca)
    loop = asyncio.get_running_loop()
    done = loop.create_future()
    left, open_ = count, concurrency

    def answered(connection: _Bare) -> None:
        nonlocal left, open_
        left -= 1
        if left >= concurrency:
            connection.send()
            return
        open_ -= 1
        if not open_ and not done.done():
            done.set_result(None)

    connections = []
    for _ in range(concurrency):
        _, protocol = await loop.create_connection(
            lambda: _Bare(head + body, answered), parts.hostname, parts.port, ssl=context
        )
        connections.append(protocol)
    began = time.monotonic()
    for protocol in connections:
        protocol.send()
    await asyncio.wait_for(done, 120)
    return time.monotonic() - began


async def through_aiohttp(url: str, ca: str, count: int, concurrency: int) -> float:
    """An aiohttp client in a loop, at the same concurrency."""
    _, headers, body = request_parts(url)
    context = ssl.create_default_context(cafile=ca)
    sent = {"content-type": "application/json", **dict(headers)}
    left = count

    async def worker(session: aiohttp.ClientSession) -> None:
        nonlocal left
        while left > 0:
            left -= 1
            async with session.post(url, data=body, headers=sent) as answer:
                await answer.read()
                assert answer.status == 204

    connector = aiohttp.TCPConnector(limit=concurrency, ssl=context)
    async with aiohttp.ClientSession(connector=connector) as session:
        left = concurrency
        await asyncio.gather(*[worker(session) for _ in range(concurrency)])
        left = count
        began = time.monotonic()
        await asyncio.gather(*[worker(session) for _ in range(concurrency)])
        return time.monotonic() - began


def main() -> None:
    kind, url, ca, count, concurrency = sys.argv[1:6]
    client = bare if kind == "bare" else through_aiohttp
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        print(runner.run(client(url, ca, int(count), int(concurrency))))
