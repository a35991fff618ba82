"""A receiver, token endpoints among its paths, that asks for client certificates and echoes what it was sent."""

import asyncio
import json
import ssl
from collections import Counter

import trustme
from aiohttp import web

from tests.faults.behaviours import garbage, never_answer, reset_before_the_answer, reset_mid_error_body
from tests.integration.harness import Behaviour, Receiver, status


class Witness(Receiver):
    """Keeps the subjects of the client certificates that it was shown, by path."""

    def __init__(self, clients: trustme.CA, authority: trustme.CA | None = None) -> None:
        super().__init__(authority)
        self._clients = clients
        self.client = clients.issue_cert("dispatcher.example")
        self.shown: Counter[str] = Counter()

    def _context(self) -> ssl.SSLContext:
        context = super()._context()
        context.verify_mode = ssl.CERT_OPTIONAL
        self._clients.configure_trust(context)
        return context

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        transport = request.transport
        if transport is not None and transport.get_extra_info("peercert"):
            self.shown[request.path] += 1
        return await super()._handle(request)


def _sent(request: web.Request, body: bytes) -> str:
    """All that a hostile endpoint knows about a request, in one line of header characters."""
    seen = json.dumps([request.raw_path, dict(request.headers), body.decode(errors="replace")])
    return "".join(c for c in seen if " " <= c <= "~")


async def echo_everywhere(request: web.Request, _receiver: Receiver) -> web.StreamResponse:
    """503 with the request in reason, headers and body."""
    sent = _sent(request, await request.read())
    headers = {
        "Retry-After": sent[:3000],
        "Webhook-Delivery": sent[:3000],
        "Location": sent[:3000],
        "X-Echo": sent[:8000],
    }
    return web.Response(status=503, reason=sent[:1000], headers=headers, text=sent)


async def echo_as_garbage(request: web.Request, _receiver: Receiver) -> web.StreamResponse:
    """Answers with the request's own headers instead of a status line."""
    if request.transport is not None:
        request.transport.write((_sent(request, await request.read())[:2000] + "\r\n\r\n").encode())
    await asyncio.sleep(0.05)
    if request.transport is not None:
        request.transport.abort()
    return web.Response()


async def echo_as_a_broken_header(request: web.Request, _receiver: Receiver) -> web.StreamResponse:
    """A header line without a colon, made of the token."""
    if request.transport is not None:
        line = request.headers.get("authorization", "") + " " + request.raw_path
        request.transport.write(f"HTTP/1.1 200 OK\r\n{line}\r\ncontent-length: {line}\r\n\r\n".encode())
    await asyncio.sleep(0.05)
    return web.Response()


async def moved(request: web.Request, _receiver: Receiver) -> web.StreamResponse:
    """A redirect to a place that has the token in it."""
    return web.Response(status=302, headers={"Location": f"https://10.0.0.1/{request.headers.get('authorization')}"})


FAILING: dict[str, Behaviour] = {
    "401": status(401),
    "400": status(400),
    "404": status(404),
    "410": status(410),
    "429": status(429, retry_after="1"),
    "abort": status(500, webhook_delivery="abort-message"),
    "moved": moved,
    "echo": echo_everywhere,
    "echo-garbage": echo_as_garbage,
    "echo-header": echo_as_a_broken_header,
    "garbage": garbage,
    "reset": reset_before_the_answer,
    "reset-mid": reset_mid_error_body,
    "timeout": never_answer,
}
"""Endpoints that never accept, by the end of their path."""


def issuing(token: str) -> Behaviour:
    """A token endpoint that issues this token."""

    async def answer(_request: web.Request, _receiver: Receiver) -> web.StreamResponse:
        return web.json_response({"access_token": token, "token_type": "Bearer", "expires_in": 3600})

    return answer


async def echo_as_an_error(request: web.Request, _receiver: Receiver) -> web.StreamResponse:
    """An OAuth error whose code and text are what was sent."""
    sent = _sent(request, await request.read())
    return web.json_response(
        {"error": sent, "error_description": sent, "error_uri": sent}, status=400, reason=sent[:500]
    )


async def echo_as_a_page(request: web.Request, _receiver: Receiver) -> web.StreamResponse:
    """HTML with what was sent."""
    return web.Response(text=f"<html>{_sent(request, await request.read())}</html>", content_type="text/html")


async def echo_as_a_bad_token(request: web.Request, _receiver: Receiver) -> web.StreamResponse:
    """A token that can't go into a header."""
    return web.json_response({"access_token": _sent(request, await request.read()) + "\r\n", "token_type": "Bearer"})


REFUSING: dict[str, Behaviour] = {
    "500": echo_everywhere,
    "error": echo_as_an_error,
    "page": echo_as_a_page,
    "bad-token": echo_as_a_bad_token,
    "moved": moved,
    "hang": never_answer,
    "garbage": echo_as_garbage,
}
"""Token endpoints that never issue one, by the end of their path."""
