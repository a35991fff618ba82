"""The table that users read, played by a real TLS server: both HTTP clients see and do what it says."""

import asyncio

import pytest

from dispatcher.transport import Transport
from tests.transport.conftest import Serving, post_to
from tests.transport.servers import OK, Peer, Script, what_was_sent_arrives
from tests.transport.verdict_table import AnswerRow, answers

ROWS = answers()


def playing(row: AnswerRow, is_over: asyncio.Event) -> Script:
    """A server that answers its first request as the row says, and every later one on any connection with 200.

    Sets `is_over` when the client has to wait for nothing more of the first answer.
    """
    played = False

    async def script(peer: Peer) -> None:
        nonlocal played
        while True:
            await peer.request()
            if played:
                await peer.send(OK)
                continue
            played = True
            await peer.send(row.data)
            match row.then:
                case "closes":
                    peer.writer.close()
                    is_over.set()
                    return
                case "resets":
                    await what_was_sent_arrives()  # else the bytes are lost with the reset
                    peer.reset()
                    is_over.set()
                    return
                case "trickling":
                    is_over.set()
                    while True:
                        await peer.send(b"x")
                        await asyncio.sleep(0.05)
                case "silent":
                    is_over.set()
                    await peer.until_closed()
                    return
                case _:
                    is_over.set()

    return script


@pytest.mark.parametrize("row", ROWS, ids=[row.name for row in ROWS])
async def test_an_answer_means_what_the_table_says(transport: Transport, serving: Serving, row: AnswerRow) -> None:
    ends_by_deadline = row.then in ("silent", "trickling")
    deadlines = {"timeout_s": 3.0, "body_wait_s": 0.2} if ends_by_deadline else {}
    is_over = asyncio.Event()
    async with serving(playing(row, is_over)) as server, asyncio.timeout(60):
        attempt = await transport.post(post_to(server.url, **deadlines))
        await is_over.wait()
        await what_was_sent_arrives()
        following = await transport.post(post_to(server.url))

    seen = str(attempt.status) if attempt.failure is None else attempt.failure.value
    assert (seen, attempt.retry_after) == (row.expected, "7" if b"retry-after: 7" in row.data else None)
    assert following.status == 200
    assert following.reused is row.is_kept
    assert server.connections == (1 if row.is_kept else 2)


@pytest.mark.parametrize("pieces", ["one byte at a time", "head and body apart"])
@pytest.mark.parametrize("row", [row for row in ROWS if row.then == "keeps"], ids=lambda row: row.name)
async def test_it_means_the_same_however_the_network_cuts_it(
    transport: Transport, serving: Serving, row: AnswerRow, pieces: str
) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        parts = [row.data[at : at + 1] for at in range(len(row.data))]
        if pieces != "one byte at a time":
            parts = [part for part in row.data.partition(b"\r\n\r\n") if part]
        for part in parts:
            await peer.send(part)
            await asyncio.sleep(0.001)
        await peer.until_closed()

    async with serving(script) as server:
        attempt = await transport.post(post_to(server.url, timeout_s=20.0))  # aiohttp waits for it after a wrong chunk

    assert row.expected == (str(attempt.status) if attempt.failure is None else attempt.failure.value)


@pytest.mark.parametrize(
    "framing", ["content-length: 90", "transfer-encoding: chunked", "content-length: 1\r\ncontent-length: 1"]
)
async def test_a_wish_counts_however_the_body_is_framed(transport: Transport, serving: Serving, framing: str) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(f"HTTP/1.1 200 OK\r\nWebhook-Delivery: disable\r\n{framing}\r\n\r\n!".encode())
        peer.writer.close()

    async with serving(script) as server:
        attempt = await transport.post(post_to(server.url))

    assert (attempt.status, attempt.webhook_delivery) == (200, "disable")
