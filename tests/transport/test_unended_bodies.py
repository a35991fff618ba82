"""Answers whose body doesn't end: the rest is waited for briefly, so that the attempt's permit is soon free again."""

import asyncio

import pytest

from dispatcher.transport import Transport
from dispatcher.transport.token_client import TokenClient
from tests.transport.conftest import IN_TIME_S, Serving, post_to
from tests.transport.servers import OK, Peer, Script

UNENDED = {
    "no framing": b"HTTP/1.1 200 OK\r\n\r\n",
    "no framing, begun": b"HTTP/1.1 200 OK\r\n\r\nok",
    "no framing, HTTP/1.0": b"HTTP/1.0 200 OK\r\n\r\nok",
    "no framing, 410": b"HTTP/1.1 410 Gone\r\n\r\n",
    "no framing, 503": b"HTTP/1.1 503 Busy\r\nretry-after: 7\r\n\r\n",
    "a coding after chunked": b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked, gzip\r\n\r\n2\r\nok\r\n0\r\n\r\n",
    "a length that is too large": b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nok",
    "a length, and nothing": b"HTTP/1.1 503 Busy\r\nretry-after: 7\r\ncontent-length: 3\r\n\r\n",
    "chunks without the last one": b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n",
    "a folded header and a length": b"HTTP/1.1 200 OK\r\nx: y\r\n z\r\ncontent-length: 3\r\n\r\nok",
    "a folded header and no framing": b"HTTP/1.1 200 OK\r\nx: y\r\n z\r\n\r\nok",
}


def beginning(data: bytes, then: bytes = b"") -> Script:
    """Sends the beginning of an answer and leaves the connection open, or sends a byte again and again."""

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(data)
        while then:
            await peer.send(then)
            await asyncio.sleep(0.05)
        await peer.until_closed()

    return script


@pytest.mark.parametrize("keep", [0, 9])
@pytest.mark.parametrize("name", UNENDED)
async def test_the_rest_of_a_body_is_not_waited_for_until_the_deadline(
    transport: Transport, serving: Serving, name: str, keep: int
) -> None:
    data = UNENDED[name]
    async with serving(beginning(data)) as server:
        attempt = await transport.post(post_to(server.url, keep_body=keep, body_wait_s=0.2))
    assert attempt.status == int(data[9:12])
    assert attempt.elapsed_s < IN_TIME_S
    assert attempt.retry_after == ("7" if b"retry-after" in data else None)
    assert attempt.body == (data.partition(b"\r\n\r\n")[2] if keep and b"chunked" not in data else attempt.body)
    assert len(attempt.body) <= keep


async def test_a_body_that_trickles_is_not_waited_for_either(transport: Transport, serving: Serving) -> None:
    async with serving(beginning(b"HTTP/1.1 200 OK\r\ncontent-length: 1000000\r\n\r\nxxxxxxxxx", b"x")) as server:
        attempt = await transport.post(post_to(server.url, keep_body=9))
    assert (attempt.status, attempt.body) == (200, b"x" * 9)
    assert attempt.elapsed_s < IN_TIME_S


async def test_a_body_that_comes_soon_keeps_the_connection(transport: Transport, serving: Serving) -> None:
    async def script(peer: Peer) -> None:
        while True:
            await peer.request()
            head, end, body = OK.partition(b"\r\n\r\n")
            await peer.send(head + end)
            await asyncio.sleep(0.1)
            await peer.send(body)

    async with serving(script) as server:
        attempts = [await transport.post(post_to(server.url, body_wait_s=20.0)) for _ in range(2)]
    assert [(one.status, one.reused) for one in attempts] == [(200, False), (200, True)]


async def test_the_wait_for_one_body_does_not_shorten_the_next_request(transport: Transport, serving: Serving) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        head, end, body = OK.partition(b"\r\n\r\n")
        await peer.send(head + end)
        await asyncio.sleep(0.1)
        await peer.send(body)
        await peer.request()
        await asyncio.sleep(3.5)
        await peer.send(OK)

    async with serving(script) as server:
        attempts = [await transport.post(post_to(server.url, body_wait_s=3.0)) for _ in range(2)]
    assert [(one.status, one.reused) for one in attempts] == [(200, False), (200, True)]


async def test_a_token_is_waited_for(transport: Transport, serving: Serving) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n")
        await asyncio.sleep(1.5)
        await peer.send(b"{}")
        await peer.until_closed()

    async with serving(script) as server:
        answer = await TokenClient(transport).post_form(server.url, (), b"", 20.0)
    assert (answer.status, answer.body) == (200, b"{}")
