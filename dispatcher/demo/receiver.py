"""The tenants' side: an HTTPS server in a thread of its own, one path for each endpoint, and the ledger.

For the demo and for tests. The thread has its own event loop, so that nothing the caller does delays an answer.
Its certificate is by a CA made on the spot; give `ca_pem` to the client as its only trust.
"""

import asyncio
import ssl
import threading
import time
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from types import TracebackType
from typing import Final, Self

import trustme
import uvloop
from aiohttp import web

from dispatcher.demo.behaviours import Always, Behaviour
from dispatcher.demo.checks import ArrivalCheck
from dispatcher.demo.child_process import free_ports
from dispatcher.demo.ledger import Arrival, Ledger

_HOST: Final = "127.0.0.1"
_START_WITHIN_S: Final = 10.0
_STOP_WITHIN_S: Final = 5.0


@dataclass(frozen=True, slots=True)
class DemoEndpoint:
    """An endpoint of the demo's receiver: runs its checks in order, then answers by its behaviour."""

    behaviour: Behaviour = field(default_factory=Always)
    checks: tuple[ArrivalCheck, ...] = ()


class Receiver:
    """The server. `with Receiver({"luma": DemoEndpoint()}) as receiver`, then `receiver.url("luma")`.

    An endpoint may be added or replaced while it runs. A check that fails is a violation in the ledger, and its
    status is the answer. A path without an endpoint answers 404.
    """

    def __init__(
        self, endpoints: Mapping[str, DemoEndpoint], ledger: Ledger | None = None, port: int | None = None
    ) -> None:
        """Prepares a receiver without listening. `port`: None takes a free one, the same for the receiver's life."""
        self.ledger = Ledger() if ledger is None else ledger
        self.port = free_ports(1)[0] if port is None else port
        self._endpoints = dict(endpoints)
        self._ca = trustme.CA()
        self._tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._ca.issue_cert(_HOST, "localhost").configure_cert(self._tls)
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop = asyncio.Event()

    def __repr__(self) -> str:
        return f"<Receiver at {self.port}, {len(self._endpoints)} endpoints, {self.ledger!r}>"

    @property
    def ca_pem(self) -> bytes:
        """Returns the certificate that a client has to trust."""
        return self._ca.cert_pem.bytes()

    def url(self, endpoint: str) -> str:
        """Returns the URL of the endpoint, even before it listens."""
        return f"https://{_HOST}:{self.port}/{endpoint}"

    def set(self, endpoint: str, answers: DemoEndpoint) -> None:
        """Adds an endpoint, or replaces it for requests from now on."""
        self._endpoints[endpoint] = answers

    def __enter__(self) -> Self:
        started: Future[None] = Future()
        self._stop = asyncio.Event()
        self._thread = threading.Thread(target=self._run, args=(started,), name="receiver", daemon=True)
        self._thread.start()
        started.result(_START_WITHIN_S)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._stop.set)
        if self._thread is not None:
            self._thread.join(_STOP_WITHIN_S)
        self._thread = self._loop = None

    def _run(self, started: "Future[None]") -> None:
        try:
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                runner.run(self._serve(started))
        except BaseException as error:
            if started.done():
                raise
            started.set_exception(error)

    async def _serve(self, started: "Future[None]") -> None:
        self._loop = asyncio.get_running_loop()
        runner = web.ServerRunner(web.Server(self._handle, access_log=None), shutdown_timeout=0.5)
        await runner.setup()
        try:
            await web.TCPSite(runner, _HOST, self.port, ssl_context=self._tls, backlog=1024).start()
            started.set_result(None)
            await self._stop.wait()
        finally:
            await runner.cleanup()

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        arrival = await _arrival(request)
        endpoint = self._endpoints.get(arrival.endpoint)
        if endpoint is None:
            self.ledger.record(arrival, 404)
            return web.Response(status=404)
        for check in endpoint.checks:
            refusal = check.refusal(arrival)
            if refusal is not None:
                self.ledger.violate(arrival, refusal.reason)
                self.ledger.record(arrival, refusal.status)
                return web.Response(status=refusal.status, text=refusal.reason)
        answer = await endpoint.behaviour.answer(arrival)
        self.ledger.record(arrival, answer.status)
        if not answer.status:
            if request.transport is not None:
                request.transport.abort()
            return web.Response()
        return web.Response(status=answer.status, headers=answer.headers, body=answer.body)


async def _arrival(request: web.BaseRequest) -> Arrival:
    body = await request.read()
    attempt = request.headers.get("webhook-attempt", "")
    return Arrival(
        endpoint=request.path.removeprefix("/"),
        webhook_id=request.headers.get("webhook-id", ""),
        attempt=int(attempt) if attempt.isascii() and attempt.isdigit() else 0,
        headers=request.headers,
        body=body,
        at=time.time(),
    )
