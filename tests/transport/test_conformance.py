"""One suite for both HTTP clients: what goes out, what comes back, and what hostile endpoints can do. Real TLS."""

import asyncio
import gzip
import re

import pytest

from dispatcher import __version__
from dispatcher.contract.outcomes import Attempt, FailureReason
from dispatcher.transport import Endpoint, Transport
from tests.transport.conftest import IN_TIME_S, Opener, Serving, post_to
from tests.transport.servers import OK, Peer, Script, answering, none_left_of, what_was_sent_arrives
from tests.transport.servers import Endpoint as Server

PARTIAL = b"HTTP/1.1 500 Poison\r\nx: "


async def answer_to(transport: Transport, serving: Serving, script: Script, **changes: object) -> Attempt:
    """What one POST to a server with this script ends as."""
    async with serving(script) as server:
        return await transport.post(post_to(server.url, **changes))  # type: ignore[arg-type]  # values of a test


# --- what goes out


async def test_a_request_is_exactly_what_its_docstring_says(transport: Transport, serving: Serving) -> None:
    async with serving(answering(OK)) as server:
        endpoint = Endpoint.at(f"https://127.0.0.1:{server.port}/a/../b;c?x=%20y&z", (("X-Mine", "a b"), ("b", "")))
        await transport.post(post_to(endpoint, b'{"a":1}', (("webhook-id", "m1"), ("webhook-attempt", "1"))))
    expected = (
        f"POST /a/../b;c?x=%20y&z HTTP/1.1\r\nhost: 127.0.0.1:{server.port}\r\ncontent-type: application/json\r\n"
        f"user-agent: feedback-dispatcher/{__version__}\r\ncontent-length: 7\r\nwebhook-id: m1\r\n"
        "webhook-attempt: 1\r\n"
        'X-Mine: a b\r\nb: \r\n\r\n{"a":1}'
    )
    assert [expected.encode()] == server.requests


async def test_a_request_without_a_path_asks_for_the_root(transport: Transport, serving: Serving) -> None:
    async with serving(answering(OK)) as server:
        await transport.post(post_to(f"https://127.0.0.1:{server.port}?q"))
    assert server.requests[0].startswith(b"POST /?q HTTP/1.1\r\n")


@pytest.mark.parametrize("size", [0, 1, 1460, 16_384, 65_536, 256_000])
async def test_a_body_of_any_size_arrives_whole(transport: Transport, serving: Serving, size: int) -> None:
    body = bytes(i & 0xFF for i in range(size))
    async with serving(answering(OK)) as server:
        attempts = [await transport.post(post_to(server.url, body)) for _ in range(2)]
    assert [attempt.status for attempt in attempts] == [200, 200]
    assert all(request.endswith(b"\r\n\r\n" + body) for request in server.requests)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("x-a", "a\r\nevil: 1"),
        ("x-a", "a\nb"),
        ("x-a", "a\rb"),
        ("x-a", "a\0b"),
        ("x-a", "ä"),
        ("x-a", "\x7f"),
        ("x a", "b"),
        ("x-a:", "b"),
        ("x-a\r\nb", "c"),
        ("", "b"),
        ("content-length", "1"),
        ("Transfer-Encoding", "chunked"),
        ("HOST", "b"),
        ("connection", "close"),
    ],
)
@pytest.mark.parametrize("whose", ["request", "endpoint"])
async def test_a_header_that_could_smuggle_is_never_sent(
    transport: Transport, serving: Serving, name: str, value: str, whose: str
) -> None:
    async with serving(answering(OK)) as server:
        endpoint = Endpoint.at(server.url, ((name, value),) if whose == "endpoint" else ())
        with pytest.raises(ValueError, match="can't be sent"):
            await transport.post(post_to(endpoint, headers=((name, value),) if whose == "request" else ()))
        assert server.requests == []


# --- what comes back


@pytest.mark.parametrize(
    "status", [200, 201, 202, 204, 299, 301, 302, 307, 308, 304, 400, 410, 429, 500, 501, 503, 599]
)
async def test_a_status_is_reported_as_it_came(transport: Transport, serving: Serving, status: int) -> None:
    head = f"HTTP/1.1 {status} Some Words\r\nlocation: https://10.0.0.1/\r\n".encode()
    end = b"\r\n" if status in (204, 304) else b"content-length: 2\r\n\r\nok"
    async with serving(answering(head + end)) as server:
        first = await transport.post(post_to(server.url))
        second = await transport.post(post_to(server.url))
    assert (status, None, False) == (first.status, first.failure, first.reused)
    assert (status, None, True) == (second.status, second.failure, second.reused)
    assert server.connections == 1
    assert len(server.requests) == 2


async def test_the_headers_that_matter_are_kept(transport: Transport, serving: Serving) -> None:
    reply = b"HTTP/1.1 429 x\r\nRetry-After: 7\r\nWebhook-Delivery: disable\r\nWWW-Authenticate: Bearer\r\n"
    reply += b"content-length: 0\r\n\r\n"
    attempt = await answer_to(transport, serving, answering(reply))
    assert (attempt.retry_after, attempt.webhook_delivery, attempt.www_authenticate) == ("7", "disable", "Bearer")


async def test_headers_of_one_answer_are_not_seen_in_the_next(transport: Transport, serving: Serving) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(b"HTTP/1.1 503 x\r\nretry-after: 7\r\nwww-authenticate: Basic\r\ncontent-length: 2\r\n\r\nno")
        await peer.request()
        await peer.send(b"HTTP/1.1 200 x\r\ncontent-length: 0\r\n\r\n")

    async with serving(script) as server:
        await transport.post(post_to(server.url, keep_body=10))
        attempt = await transport.post(post_to(server.url, keep_body=10))
    assert (attempt.status, attempt.retry_after, attempt.body, attempt.reused) == (200, None, b"", True)
    assert attempt.www_authenticate is None


async def test_a_test_event_keeps_the_body_and_the_phases(transport: Transport, serving: Serving) -> None:
    async with serving(answering(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello")) as server:
        first = await transport.post(post_to(server.url, keep_body=3))
        second = await transport.post(post_to(server.url, keep_body=2048))
    assert (first.body, second.body) == (b"hel", b"hello")
    phases = first.phases
    taken = (phases.dns_s, phases.connect_s, phases.tls_s, phases.request_s, phases.first_byte_s, phases.body_s)
    assert all(seconds is not None and 0 <= seconds < first.elapsed_s for seconds in taken)
    assert sum(seconds or 0.0 for seconds in taken) <= first.elapsed_s
    assert second.phases.request_s is not None
    assert (phases.address, phases.tls_version) == ("127.0.0.1", "TLSv1.3")
    assert phases.certificate_expires
    assert phases.certificate_expires > 1_700_000_000
    assert (second.phases.dns_s, second.phases.tls_s, second.phases.address) == (None, None, "127.0.0.1")


async def test_a_body_is_not_kept_unless_it_is_requested(transport: Transport, serving: Serving) -> None:
    assert (await answer_to(transport, serving, answering(OK))).body == b""


@pytest.mark.parametrize(
    "reply",
    [
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1;ext=1\r\no\r\n1\r\nk\r\n0\r\nx-trailer: 1\r\n\r\n",
        b"HTTP/1.1 200\r\ncontent-length: 2\r\n\r\nok",
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok",
        b"HTTP/1.1 103 Early Hints\r\nlink: </x>\r\nretry-after: 9\r\n\r\n" * 3 + OK,
    ],
)
async def test_every_framing_of_an_answer_is_read_and_the_connection_kept(
    transport: Transport, serving: Serving, reply: bytes
) -> None:
    async with serving(answering(reply)) as server:
        attempts = [await transport.post(post_to(server.url, keep_body=9)) for _ in range(2)]
    assert [(one.status, one.body, one.retry_after) for one in attempts] == [(200, b"ok", None)] * 2
    assert server.connections == 1


async def test_an_answer_may_come_one_byte_at_a_time(transport: Transport, serving: Serving) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        for at in range(len(OK)):
            await peer.send(OK[at : at + 1])
            await asyncio.sleep(0)

    assert (await answer_to(transport, serving, script)).status == 200


@pytest.mark.parametrize(
    "reply",
    [
        b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\nok",
        b"HTTP/1.0 200 OK\r\ncontent-length: 2\r\n\r\nok",
        b"HTTP/1.2 200 OK\r\ncontent-length: 2\r\n\r\nok",
        b"HTTP/2.0 200 OK\r\ncontent-length: 2\r\n\r\nok",
        b"HTTP/1.1 205 Reset\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nconnection: close, keep-alive\r\ncontent-length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: +2\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\ncontent-length: 2, 2\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: gzip\r\n\r\nok",
    ],
)
async def test_a_connection_that_the_endpoint_won_t_keep_is_not_used_again(
    transport: Transport, serving: Serving, reply: bytes
) -> None:
    async with serving(answering(reply)) as server:
        # Two of the answers end with their connection or with the deadline only.
        attempts = [await transport.post(post_to(server.url, timeout_s=5.0, body_wait_s=0.2)) for _ in range(2)]
        assert [(one.status, one.reused) for one in attempts] == [(int(reply[9:12]), False)] * 2
        assert server.connections == 2


async def test_a_body_that_ends_with_the_connection_is_whole(transport: Transport, serving: Serving) -> None:
    attempt = await answer_to(transport, serving, answering(b"HTTP/1.1 200 OK\r\n\r\nok", close=True), keep_body=9)
    assert (attempt.status, attempt.body) == (200, b"ok")


async def test_cookies_are_never_sent_back(transport: Transport, serving: Serving) -> None:
    reply = b"HTTP/1.1 200 OK\r\nset-cookie: a=b; Path=/\r\ncontent-length: 0\r\n\r\n"
    async with serving(answering(reply)) as server:
        for _ in range(2):
            await transport.post(post_to(server.url))
    assert not any(re.search(rb"(?i)\ncookie", request) for request in server.requests)


async def test_a_redirect_is_not_followed(transport: Transport, serving: Serving) -> None:
    async with serving(answering(OK)) as other:
        location = f"HTTP/1.1 307 x\r\nlocation: {other.url}\r\ncontent-length: 0\r\n\r\n".encode()
        assert (await answer_to(transport, serving, answering(location))).status == 307
        assert other.requests == []


async def test_a_compressed_answer_is_not_decompressed(transport: Transport, serving: Serving) -> None:
    bomb = gzip.compress(bytes(20_000_000))[:60_000]
    head = f"HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\ncontent-length: {len(bomb)}\r\n\r\n".encode()
    attempt = await answer_to(transport, serving, answering(head + bomb), keep_body=65_536)
    assert (200, bomb) == (attempt.status, attempt.body)


# --- what hostile endpoints do


@pytest.mark.parametrize("how", ["closed", "reset"])
async def test_an_answer_cut_off_in_its_head_is_a_reset_and_in_its_body_an_answer(
    transport: Transport, serving: Serving, how: str
) -> None:
    cut = 0

    async def script(peer: Peer) -> None:
        await peer.request()
        if cut:
            await peer.send(OK[:cut])
        if how == "reset":
            await asyncio.sleep(0.001)
            peer.reset()
        else:
            peer.end()

    async with serving(script) as server:
        for cut in range(len(OK)):
            attempt = await transport.post(post_to(server.url))
            expected = (FailureReason.RESET, None) if cut < len(OK) - 2 else (None, 200)
            assert (attempt.failure, attempt.status, attempt.reused) == (*expected, False), cut
            assert bool(attempt.detail) is (attempt.status is None)


async def test_an_endpoint_that_never_answers_is_a_timeout(transport: Transport, serving: Serving) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(OK)
        await peer.until_closed()

    async with serving(script) as server:
        await transport.post(post_to(server.url))  # connects, which a busy machine may not do in the time below
        attempt = await transport.post(post_to(server.url, timeout_s=0.3))
    assert (attempt.failure, attempt.status, attempt.reused) == (FailureReason.TIMEOUT, None, True)
    assert 0.29 < attempt.elapsed_s < IN_TIME_S


async def test_an_endpoint_that_never_finishes_the_handshake_is_a_connect_timeout(transport: Transport) -> None:
    async with Server(Peer.until_closed, None).running() as server:
        attempt = await transport.post(post_to(server.url, connect_timeout_s=0.2))
    assert attempt.failure is FailureReason.CONNECT_TIMEOUT
    assert attempt.elapsed_s < IN_TIME_S


async def test_a_body_that_trickles_is_cut_by_the_deadline_of_the_whole(transport: Transport, serving: Serving) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(OK)
        await peer.request()
        await peer.send(b"HTTP/1.1 202 Accepted\r\ncontent-length: 1000000\r\n\r\n")
        while True:
            await peer.send(b"x")
            await asyncio.sleep(0.05)

    async with serving(script) as server:
        await transport.post(post_to(server.url))
        attempt = await transport.post(post_to(server.url, timeout_s=1.0, body_wait_s=20.0))
    assert (attempt.failure, attempt.status, attempt.reused) == (None, 202, True), "the status is known"
    assert attempt.elapsed_s < IN_TIME_S


@pytest.mark.parametrize("framing", [b"content-length: 1000000000", b"transfer-encoding: chunked", b"x: until close"])
async def test_a_gigabyte_is_not_read(transport: Transport, serving: Serving, framing: bytes) -> None:
    sent, over = 0, asyncio.Event()
    piece = b"10000\r\n" + bytes(65536) + b"\r\n" if b"chunked" in framing else bytes(65536)

    async def script(peer: Peer) -> None:
        nonlocal sent
        await peer.request()
        await peer.send(b"HTTP/1.1 200 OK\r\n" + framing + b"\r\n\r\n")
        try:
            while sent < 1_000_000_000:
                await peer.send(piece)
                sent += 65536
        finally:
            over.set()

    async with serving(script) as server, asyncio.timeout(60):
        attempt = await transport.post(post_to(server.url, keep_body=65536))
        await over.wait()
    assert (200, bytes(65536)) == (attempt.status, attempt.body)
    assert sent < 16_000_000  # what the sockets' buffers hold


@pytest.mark.parametrize(
    "head",
    [
        pytest.param(b"".join(b"x-%d: y\r\n" % i for i in range(101)), id="101 headers"),
        pytest.param(b"".join(b"x-%d: %s\r\n" % (i, b"y" * 4000) for i in range(9)), id="36 KB"),
        pytest.param(b"x: " + b"y" * 1_000_000 + b"\r\n", id="one of 1 MB"),
        pytest.param(b"y" * 1_000_000 + b": x\r\n", id="a name of 1 MB"),
    ],
)
async def test_a_flood_of_headers_is_a_protocol_failure(transport: Transport, serving: Serving, head: bytes) -> None:
    reply = b"HTTP/1.1 200 OK\r\n" + head + b"content-length: 0\r\n\r\n"
    attempt = await answer_to(transport, serving, answering(reply))
    assert (attempt.failure, attempt.status) == (FailureReason.PROTOCOL, None)


@pytest.mark.parametrize(
    "head",
    [
        pytest.param(b"".join(b"x-%d: %s\r\n" % (i, b"y" * 300) for i in range(99)), id="99 headers"),
        pytest.param(b"content-security-policy: " + b"y" * 32_000 + b"\r\n", id="one of 32 KB"),
        pytest.param(b"y" * 32_000 + b": x\r\n", id="a name of 32 KB"),
    ],
)
async def test_headers_up_to_the_limit_are_read(transport: Transport, serving: Serving, head: bytes) -> None:
    reply = b"HTTP/1.1 200 OK\r\n" + head + b"content-length: 0\r\n\r\n"
    assert (await answer_to(transport, serving, answering(reply))).status == 200


@pytest.mark.parametrize("line", [b"x: y\r\n", b"HTTP/1.1 102 Processing\r\n\r\n"])
async def test_a_head_without_end_ends(transport: Transport, serving: Serving, line: bytes) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(b"HTTP/1.1 200 OK\r\n" if b":" in line else b"")
        while True:
            await peer.send(line * 100)

    attempt = await answer_to(transport, serving, script)
    assert attempt.failure is FailureReason.PROTOCOL


@pytest.mark.parametrize(
    ("begin", "more"),
    [
        pytest.param(b"1;", b"a=b;" * 4000, id="an extension"),
        pytest.param(b"", b"1;" + b"e" * 8000 + b"\r\na\r\n", id="extensions"),
    ],
)
async def test_chunk_extensions_without_end_end_though_no_body_comes(
    transport: Transport, serving: Serving, begin: bytes, more: bytes
) -> None:
    """Else they would keep the event loop busy until the deadline: the count of the body's bytes does not see them."""

    taken = 0

    async def script(peer: Peer) -> None:
        nonlocal taken
        await peer.request()
        await peer.send(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n", begin)
        while True:
            await peer.send(more)
            taken += len(more)
            await asyncio.sleep(0)  # a drain does not wait if nothing is connected

    attempt = await answer_to(transport, serving, script)
    assert (attempt.failure, attempt.status) == (None, 200)
    assert taken < 16 * 1024 * 1024, "one is read, the rest is what sockets hold"


async def test_trailers_without_end_end(transport: Transport, serving: Serving) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n")
        while True:
            await peer.send(b"x: y\r\n" * 1000)
            await asyncio.sleep(0)

    attempt = await answer_to(transport, serving, script)
    assert (attempt.failure, attempt.status) == (None, 200)


@pytest.mark.filterwarnings("ignore:Sending a large body:ResourceWarning")
async def test_an_answer_before_the_request_was_read_counts_and_ends_the_connection(
    transport: Transport, serving: Serving
) -> None:
    async def script(peer: Peer) -> None:
        await peer.head()
        await peer.send(b"HTTP/1.1 413 Too Large\r\ncontent-length: 0\r\n\r\n")
        await asyncio.sleep(5)

    async with serving(script) as server:
        first = await transport.post(post_to(server.url, bytes(8_000_000)))
        second = await transport.post(post_to(server.url, bytes(8_000_000)))
    assert [(first.status, first.reused), (second.status, second.reused)] == [(413, False)] * 2


@pytest.mark.parametrize(
    "surplus",
    [b"x", b"\0" * 9, b"\r\n\r\ngarbage", OK, b"HTTP/1.1 500 Poison\r\ncontent-length: 0\r\n\r\n", PARTIAL],
)
@pytest.mark.parametrize("when", ["at once", "later"])
async def test_bytes_behind_an_answer_end_the_connection_and_never_answer_the_next_request(
    transport: Transport, serving: Serving, surplus: bytes, when: str
) -> None:
    sent = asyncio.Semaphore(0)

    async def script(peer: Peer) -> None:
        while True:
            await peer.request()
            if when == "at once":
                await peer.send(OK + surplus)
            else:
                await peer.send(OK)
                await asyncio.sleep(0.02)
                await peer.send(surplus)
            sent.release()

    async with serving(script) as server:
        attempts = []
        for _ in range(2):
            attempts.append(await transport.post(post_to(server.url)))
            await sent.acquire()
            await what_was_sent_arrives()
    assert {attempt.status for attempt in attempts} == {200}
    # aiohttp drops the beginning of a further answer with its parser, so that this connection may be used again.
    assert server.connections == 2 or (surplus == PARTIAL and when == "at once")


async def test_a_kept_connection_that_ended_meanwhile_is_not_used(transport: Transport, serving: Serving) -> None:
    closed = asyncio.Semaphore(0)

    async def script(peer: Peer) -> None:
        await answering(OK, close=True)(peer)
        closed.release()

    async with serving(script) as server:
        first = await transport.post(post_to(server.url))
        await closed.acquire()
        await what_was_sent_arrives()
        second = await transport.post(post_to(server.url))
    assert [(first.status, first.reused), (second.status, second.reused)] == [(200, False)] * 2


async def test_a_kept_connection_that_dies_as_the_request_goes_out_says_that_it_was_reused(
    transport: Transport, serving: Serving
) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(OK)
        await peer.request()
        peer.reset()

    async with serving(script) as server:
        await transport.post(post_to(server.url))
        attempt = await transport.post(post_to(server.url))
    assert (attempt.failure, attempt.reused) == (FailureReason.RESET, True)


# --- many at once, and ends


async def test_many_requests_at_once_have_a_connection_each_and_the_connections_are_used_again(
    transport: Transport, serving: Serving
) -> None:
    async with serving(answering(OK)) as server:
        for _ in range(2):
            attempts = await asyncio.gather(*(transport.post(post_to(server.url)) for _ in range(20)))
            assert {200} == {attempt.status for attempt in attempts}
        assert server.connections == 20


async def test_cancelling_a_request_closes_its_connection(transport: Transport, serving: Serving) -> None:
    closed = asyncio.Event()
    arrived = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.request()
        arrived.set()
        await peer.until_closed()
        closed.set()

    async with serving(script) as server:
        task = asyncio.create_task(transport.post(post_to(server.url)))
        await arrived.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        async with asyncio.timeout(60):
            await closed.wait()


async def test_cancelling_a_request_at_any_moment_leaves_the_transport_in_order(
    transport: Transport, serving: Serving
) -> None:
    async with serving(answering(OK)) as server:
        for step in range(40):
            task = asyncio.create_task(transport.post(post_to(server.url)))
            for _ in range(step):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        assert (await transport.post(post_to(server.url))).status == 200


async def test_leaving_the_transport_leaves_no_task_behind(opening: Opener, serving: Serving) -> None:
    async with serving(answering(OK)) as server:
        before = asyncio.all_tasks()
        async with opening() as transport:
            await transport.post(post_to(server.url))
            await transport.post(post_to("https://127.0.0.1:1/"))
        await none_left_of(before)
