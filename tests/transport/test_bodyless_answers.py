"""Answers that have no body and announce one: its bytes, however late, never answer the next request."""

import asyncio

import pytest

from dispatcher.transport import Transport
from tests.transport.conftest import Serving, post_to
from tests.transport.servers import OK, Peer, answering

POISON = b"0\r\n\r\nHTTP/1.1 410 Gone\r\ncontent-length: 0\r\n\r\n"


@pytest.mark.parametrize("status", [b"204 No Content", b"304 Not Modified"])
@pytest.mark.parametrize(
    "framing",
    [
        b"transfer-encoding: chunked",
        b"Transfer-Encoding: chunked",
        b"content-length: 5",
        b"Content-Length: 44",
        b"x-a: b\r\ncontent-length: 5\r\nx-ratelimit-limit: 0",
    ],
)
async def test_a_body_that_may_not_be_there_is_not_the_next_answer(
    transport: Transport, serving: Serving, status: bytes, framing: bytes
) -> None:
    begun = 0

    async def script(peer: Peer) -> None:
        nonlocal begun
        begun += 1
        await peer.request()
        if begun > 1:
            await peer.send(OK)
            await peer.until_closed()
            return
        await peer.send(b"HTTP/1.1 " + status + b"\r\n" + framing + b"\r\n\r\n")
        await peer.request()
        await peer.send(POISON)

    async with serving(script) as server:
        first = await transport.post(post_to(server.url))
        second = await transport.post(post_to(server.url))
    assert first.status == int(status[:3])
    assert (second.status, second.reused) == (200, False)


@pytest.mark.parametrize("framing", [b"content-length: 7", b"transfer-encoding: chunked"])
async def test_an_interim_answer_with_a_body_ends_the_connection_after_the_answer(
    transport: Transport, serving: Serving, framing: bytes
) -> None:
    async with serving(answering(b"HTTP/1.1 103 Early Hints\r\n" + framing + b"\r\n\r\n" + OK)) as server:
        attempts = [await transport.post(post_to(server.url)) for _ in range(2)]
        await asyncio.sleep(0)
    assert [(one.status, one.reused) for one in attempts] == [(200, False)] * 2


@pytest.mark.parametrize(
    "fields", [b"", b"content-length: 0\r\n", b"x-ratelimit-limit: 5\r\n", b"x-cache-status: HIT\r\ndate: now\r\n"]
)
@pytest.mark.parametrize("status", [b"204 No Content", b"304 Not Modified"])
async def test_an_answer_that_announces_no_body_keeps_the_connection(
    transport: Transport, serving: Serving, status: bytes, fields: bytes
) -> None:
    async with serving(answering(b"HTTP/1.1 " + status + b"\r\n" + fields + b"\r\n")) as server:
        attempts = [await transport.post(post_to(server.url)) for _ in range(2)]
    assert [one.reused for one in attempts] == [False, True]
