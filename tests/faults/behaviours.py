"""Ways in which an endpoint can be bad, for `Receiver.behave`. Only those accept that say so.

A 2xx status line with complete headers accepts the event, however badly the body ends.
"""

import asyncio
from contextlib import suppress

from aiohttp import web

from tests.integration.harness import Behaviour, Receiver, at_first


async def reset_before_the_answer(request: web.Request, _receiver: Receiver) -> web.StreamResponse:
    """Closes the connection without an answer."""
    _abort(request)
    return web.Response()


async def reset_mid_body(request: web.Request, receiver: Receiver) -> web.StreamResponse:
    """Accepts with 200, promises a hundred bytes, sends ten."""
    receiver.accept(request)
    return await _cut_body(request, 200)


async def reset_mid_error_body(request: web.Request, _receiver: Receiver) -> web.StreamResponse:
    """Answers 503, promises a hundred bytes, sends ten."""
    return await _cut_body(request, 503)


async def _cut_body(request: web.Request, status: int) -> web.StreamResponse:
    response = web.StreamResponse(status=status, headers={"content-length": "100"})
    await response.prepare(request)
    await response.write(b"0123456789")
    _abort(request)
    return response


async def never_answer(_request: web.Request, _receiver: Receiver) -> web.StreamResponse:
    """Reads the request, and that is all."""
    await asyncio.sleep(3600)
    return web.Response()


async def a_byte_a_second(request: web.Request, receiver: Receiver) -> web.StreamResponse:
    """Accepts with 200 and headers at once, then sends a body that trickles past the deadline."""
    receiver.accept(request)
    response = web.StreamResponse(headers={"content-length": "60"})
    await response.prepare(request)
    with suppress(OSError, asyncio.CancelledError):
        for _ in range(60):
            await response.write(b".")
            await asyncio.sleep(1)
    return response


async def a_huge_body_of_an_error(request: web.Request, _receiver: Receiver) -> web.StreamResponse:
    """Answers 503 with a gigabyte, of which only what the client reads is sent."""
    return await _a_gigabyte(request, 503)


async def accept_with_a_huge_body(request: web.Request, receiver: Receiver) -> web.StreamResponse:
    """Answers 200 with a gigabyte that no client needs."""
    receiver.accept(request)
    return await _a_gigabyte(request, 200)


async def _a_gigabyte(request: web.Request, status: int) -> web.StreamResponse:
    response = web.StreamResponse(status=status, headers={"content-length": str(1 << 30)})
    await response.prepare(request)
    piece = b"x" * 65_536
    with suppress(OSError):
        for _ in range((1 << 30) // len(piece)):
            await response.write(piece)
    return response


async def garbage(request: web.Request, _receiver: Receiver) -> web.StreamResponse:
    """Bytes that aren't HTTP."""
    if request.transport is not None:
        request.transport.write(b"\x00\x01\x02 SSH-2.0-nonsense\r\n\r\n" * 5)
    await asyncio.sleep(0.05)
    _abort(request)
    return web.Response()


async def endless_headers(request: web.Request, _receiver: Receiver) -> web.StreamResponse:
    """Answers with more header lines than any client should accept."""
    if request.transport is not None:
        request.transport.write(
            b"HTTP/1.1 200 OK\r\n" + b"".join(b"x-%d: %s\r\n" % (n, b"y" * 900) for n in range(500))
        )
    await asyncio.sleep(0.1)
    _abort(request)
    return web.Response()


async def accept_and_close_keep_alive(request: web.Request, receiver: Receiver) -> web.StreamResponse:
    """Accepts without announcing it, then closes: the next request may just be going out on that connection."""
    response = receiver.accept(request)
    transport = request.transport
    if transport is not None:
        asyncio.get_running_loop().call_later(0.01, transport.close)
    return response


def now_and_then(behaviour: Behaviour) -> Behaviour:
    """Misbehaves on the first request of one event in four, too seldom to open a breaker; accepts the others."""
    once = at_first(behaviour)

    async def answer(request: web.Request, receiver: Receiver) -> web.StreamResponse:
        if request.headers["webhook-id"][-1] in "048c":
            return await once(request, receiver)
        return receiver.accept(request)

    return answer


def _abort(request: web.Request) -> None:
    if request.transport is not None:
        request.transport.abort()
