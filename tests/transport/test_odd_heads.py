"""Answers that strict parsers refuse: what it costs to read their heads, and what of their bodies is kept."""

import asyncio

import pytest

from dispatcher.contract.outcomes import FailureReason
from dispatcher.transport import Transport, answer_head
from tests.transport.conftest import IN_TIME_S, Serving, post_to
from tests.transport.servers import Peer, Script

MOST_READS = 20


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Sizes of the heads that were read leniently, one for each reading."""
    sizes: list[int] = []
    read = answer_head.read_answer_head

    def counting(data: bytes) -> answer_head.AnswerHead | None:
        sizes.append(len(data))
        return read(data)

    monkeypatch.setattr(answer_head, "read_answer_head", counting)
    return sizes


def dripping(begin: bytes, drip: bytes, end: bytes = b"") -> Script:
    """A server that sends `begin`, then `drip` one byte at a time, then `end`."""

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(begin)
        for at in range(len(drip)):
            await peer.send(drip[at : at + 1])
            await asyncio.sleep(0)
        await peer.send(end)
        await peer.until_closed()

    return script


@pytest.mark.parametrize(
    ("begin", "drip"),
    [
        pytest.param(b"HTTP/1.1 200 OK\r\nx : ", b"y" * 5000, id="a value"),
        pytest.param(b"HTTP/1.1 200 OK\r\nx : y\r\n", b"x: y\r\n" * 90, id="headers"),
        pytest.param(b"HTTP/1.1 200 OK\nx: ", b"y" * 5000, id="a value after a bare line feed"),
        pytest.param(b"", b"HTTP/1.1 103 Early\r\nx : y\r\n\r\n" * 16 + b"HTTP/1.1 200 OK", id="interim answers"),
    ],
)
async def test_a_head_that_drips_is_read_only_when_it_may_be_complete(
    transport: Transport, serving: Serving, reads: list[int], begin: bytes, drip: bytes
) -> None:
    async with serving(dripping(begin, drip, b"\r\ncontent-length: 0\r\n\r\n")) as server:
        attempt = await transport.post(post_to(server.url))
    assert (attempt.status, attempt.detail) == (200, "")
    assert 0 < len(reads) <= MOST_READS


async def test_empty_lines_that_drip_end_the_attempt(transport: Transport, serving: Serving, reads: list[int]) -> None:
    """Each of them could be the end of a head."""
    async with serving(dripping(b"HTTP/1.1 103 Early\r\nx : y\r\n\r\n", b"\n" * 2000)) as server:
        attempt = await transport.post(post_to(server.url))
    assert attempt.failure is FailureReason.PROTOCOL
    assert len(reads) <= MOST_READS


@pytest.mark.parametrize("cut", range(1, 5))
async def test_an_empty_line_may_be_cut_anywhere(transport: Transport, serving: Serving, cut: int) -> None:
    head = b"HTTP/1.1 202 Accepted\r\nx : y\r\n\r\n"

    async def script(peer: Peer) -> None:
        await peer.request()
        for part in (head[:-cut], head[-cut:]):
            await peer.send(part)
            await asyncio.sleep(0.02)
        await peer.until_closed()

    async with serving(script) as server:
        assert (await transport.post(post_to(server.url))).status == 202


# --- the body behind an odd head, if it is kept

FOLDED = b"HTTP/1.1 200 OK\r\nx-a: b\r\n c\r\n"


async def kept_body(
    transport: Transport, serving: Serving, *parts: bytes, close: bool = False, keep_body: int = 9
) -> tuple[int | None, bytes, int]:
    """Returns status and kept body of the first of two answers in these parts, and the number of connections."""

    async def script(peer: Peer) -> None:
        await peer.request()
        for part in parts:
            await peer.send(part)
            await asyncio.sleep(0.02)
        if not close:
            await peer.until_closed()

    async with serving(script) as server:
        attempt = await transport.post(post_to(server.url, keep_body=keep_body, body_wait_s=20.0))
        following = await transport.post(post_to(server.url, body_wait_s=20.0))
        assert not following.reused
    assert attempt.elapsed_s < IN_TIME_S, "ended by a deadline"
    return attempt.status, attempt.body, server.connections


@pytest.mark.parametrize(
    "head",
    [
        FOLDED + b"content-length: 2\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nx-a : b\r\ncontent-length: 2\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length : 2\r\n\r\n",
        b"HTTP/1.1 200 OK\ncontent-length: 2\n\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-length: 2\r\n\r\n",
    ],
)
@pytest.mark.parametrize("parts", [(b"ok",), (b"o", b"k"), (b"ok, thanks",)])
async def test_a_body_behind_an_odd_head_is_kept_whenever_it_comes(
    transport: Transport, serving: Serving, head: bytes, parts: tuple[bytes, ...]
) -> None:
    assert await kept_body(transport, serving, head, *parts) == (200, b"ok", 2)
    assert await kept_body(transport, serving, head + parts[0], *parts[1:]) == (200, b"ok", 2)


async def test_a_body_without_a_length_ends_with_the_connection(transport: Transport, serving: Serving) -> None:
    assert await kept_body(transport, serving, FOLDED + b"\r\n", b"o", b"k", close=True) == (200, b"ok", 2)


async def test_no_more_of_it_is_kept_than_wanted(transport: Transport, serving: Serving) -> None:
    head = FOLDED + b"content-length: 10\r\n\r\n"
    assert await kept_body(transport, serving, head, b"012", b"3456789", keep_body=5) == (200, b"01234", 2)


@pytest.mark.parametrize(
    "framing",
    [
        b"content-length: 2\r\ncontent-length: 3",
        b"transfer-encoding: chunked\r\ncontent-length: 2",
        b"content-length: 1x",
        b"content-length: 0",
    ],
)
async def test_a_body_in_doubt_is_not_waited_for(transport: Transport, serving: Serving, framing: bytes) -> None:
    head = FOLDED + framing + b"\r\n\r\n"
    status, _, connections = await kept_body(transport, serving, head)
    assert (status, connections) == (200, 2)


async def test_of_a_body_in_doubt_what_came_with_the_head_is_kept(transport: Transport, serving: Serving) -> None:
    head = b"HTTP/1.1 200 OK\r\nx-a : b\r\ncontent-length: 2\r\ncontent-length: 3\r\n\r\n"
    assert await kept_body(transport, serving, head + b"ok") == (200, b"ok", 2)
