"""A TLS receiver that answers POSTs at once, or after a while on paths that begin with `/after-MS/`.

For what nginx can't do (wait), and for runs without a second server. Runs as a process of its own:
`python -m benchmarks.receiver CERTIFICATE` with the PEM of key and chain; prints its port, then serves until it is
ended. It parses no more than it must: what is sent here is our own.
"""

import asyncio
import os
import ssl
import sys
from collections.abc import Callable
from typing import cast

import uvloop

ANSWER = b"HTTP/1.1 204 No Content\r\nserver: receiver\r\ndate: Thu, 01 Jan 2026 00:00:00 GMT\r\n\r\n"
_LENGTH = b"content-length: "


class Receiving(asyncio.Protocol):
    """One connection."""

    def __init__(self, count: Callable[[], None] = lambda: None) -> None:
        self._count = count
        self._pending = b""
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None

    def data_received(self, data: bytes) -> None:
        data = self._pending + data if self._pending else data
        while (head := data.find(b"\r\n\r\n")) >= 0:
            at = data.find(_LENGTH, 0, head) + len(_LENGTH)
            end = head + 4 + int(data[at : data.find(b"\r", at)])
            if len(data) < end:
                break
            self._answer(data)
            data = data[end:]
        self._pending = data

    def _answer(self, request: bytes) -> None:
        self._count()
        if request.startswith(b"POST /after-"):
            after = int(request[12 : request.find(b"/", 12)]) / 1000
            asyncio.get_running_loop().call_later(after, self._write)
        else:
            self._write()

    def _write(self) -> None:
        if self._transport is not None:
            self._transport.write(ANSWER)


async def serve(certificate: str) -> None:
    """Serve until the process is ended."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    server = await asyncio.get_running_loop().create_server(Receiving, "127.0.0.1", 0, ssl=context, backlog=4096)
    print(server.sockets[0].getsockname()[1], flush=True)
    parent = os.getppid()
    while os.getppid() == parent:  # ends with its parent
        await asyncio.sleep(1)


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(sys.argv[1]))
