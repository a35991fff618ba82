"""A token endpoint on the loopback interface, and a client that reaches it: both real HTTP, both aiohttp."""

import asyncio
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import cache

import aiohttp
import trustme
from aiohttp import web

from dispatcher.auth.token_answers import MAX_ANSWER, TokenAnswer
from dispatcher.contract.values import HttpHeaders

Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]


@cache
def authority() -> trustme.CA:
    return trustme.CA()


def token(value: str = "issued", expires_in: object = 3600, **more: object) -> web.Response:
    """A good answer (RFC 6749, section 5.1)."""
    return web.json_response({"access_token": value, "token_type": "Bearer", "expires_in": expires_in, **more})


@dataclass
class TokenServer:
    """Counts requests and answers as the test says; by default with a new token each time."""

    url: str = ""
    forms: list[dict[str, str]] = field(default_factory=list)
    authorizations: list[str | None] = field(default_factory=list)
    answer: Answer | None = None
    released: asyncio.Event = field(default_factory=asyncio.Event)
    """Cleared: requests wait until it is set."""
    arrived: asyncio.Event = field(default_factory=asyncio.Event)
    """Set by the first request."""

    @property
    def requests(self) -> int:
        return len(self.forms)

    def answers(self, *responses: web.Response) -> None:
        """Answers with these in turn, and repeats the last one."""

        async def give(_: web.Request) -> web.Response:
            response = responses[min(self.requests, len(responses)) - 1]
            return web.Response(status=response.status, body=response.body, headers=response.headers)

        self.answer = give

    async def handle(self, request: web.Request) -> web.StreamResponse:
        form = await request.post()
        self.forms.append({name: str(value) for name, value in form.items()})
        self.authorizations.append(request.headers.get("authorization"))
        number = self.requests
        self.arrived.set()
        await self.released.wait()
        return token(f"token-{number}") if self.answer is None else await self.answer(request)


@asynccontextmanager
async def token_server(*, tls: bool = True) -> AsyncIterator[TokenServer]:
    """A token server at a free port, until the block ends."""
    server = TokenServer()
    server.released.set()
    application = web.Application()
    application.router.add_route("*", "/{path:.*}", server.handle)
    context = None
    if tls:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority().issue_cert("localhost").configure_cert(context)
    runner = web.AppRunner(application, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context)
    await site.start()
    server.url = f"{'https' if tls else 'http'}://localhost:{runner.addresses[0][1]}/token"
    try:
        yield server
    finally:
        server.released.set()
        await runner.cleanup()


class HttpEndpoint:
    """A `TokenEndpoint` over aiohttp, without the egress guard: it reaches the loopback interface."""

    def __init__(self, session: aiohttp.ClientSession, trusted: bool = True) -> None:
        self._session = session
        self._context = ssl.create_default_context()
        if trusted:
            authority().configure_trust(self._context)

    async def post_form(self, url: str, headers: HttpHeaders, body: bytes, timeout_s: float) -> TokenAnswer:
        started = time.perf_counter()
        sent = {**dict(headers), "content-type": "application/x-www-form-urlencoded"}
        timeout = aiohttp.ClientTimeout(total=timeout_s)
        try:
            async with self._session.post(
                url, data=body, headers=sent, timeout=timeout, ssl=self._context, allow_redirects=False
            ) as response:
                text = bytearray()
                async for chunk in response.content.iter_any():
                    text += chunk
                    if len(text) > MAX_ANSWER:
                        break
                return TokenAnswer(response.status, bytes(text), "", time.perf_counter() - started)
        except TimeoutError:
            return TokenAnswer(None, detail="no answer in time", elapsed_s=time.perf_counter() - started)
        except aiohttp.ClientError as error:
            return TokenAnswer(None, detail=type(error).__name__, elapsed_s=time.perf_counter() - started)


@asynccontextmanager
async def http_endpoint(*, trusted: bool = True) -> AsyncIterator[HttpEndpoint]:
    async with aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar()) as session:
        yield HttpEndpoint(session, trusted)
