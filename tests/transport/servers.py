"""Real servers that misbehave on request: TLS endpoints played by a script, a CONNECT proxy, a DNS server."""

import asyncio
import contextlib
import ipaddress
import re
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import cast

from dnslib import AAAA, CNAME, QTYPE, RR, A, DNSRecord

Script = Callable[["Peer"], Awaitable[None]]

OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"


class Peer:
    """The server's side of one connection."""

    def __init__(self, server: "Endpoint", reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.server = server
        self.reader = reader
        self.writer = writer

    async def request(self) -> bytes:
        """Read one whole request, keep it, and give it back."""
        head = await self.head()
        length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
        whole = head + await self.reader.readexactly(length)
        self.server.requests.append(whole)
        return whole

    async def head(self) -> bytes:
        return await self.reader.readuntil(b"\r\n\r\n")

    async def send(self, *parts: bytes) -> None:
        for part in parts:
            self.writer.write(part)
            await self.writer.drain()

    def reset(self) -> None:
        """End the connection with RST."""
        sock = self.writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()

    def end(self) -> None:
        """End the connection with FIN, without waiting for the peer."""
        self.writer.transport.abort()

    async def until_closed(self) -> None:
        while await self.reader.read(65536):
            pass


async def what_was_sent_arrives() -> None:
    """Waits while a client in this process notices what a server has sent or closed before, on any machine.

    Every turn of the loop reads what is there. A single sleep may be over after one turn if the machine stalls.
    """
    for _ in range(10):
        await asyncio.sleep(0.005)


async def none_left_of(before: set[asyncio.Task[object]]) -> None:
    """Waits until no task is left but those of `before` and of servers."""
    async with asyncio.timeout(60):
        while [one for one in asyncio.all_tasks() - before if "serve" not in str(one.get_coro())]:
            await asyncio.sleep(0.01)


class Endpoint:
    """A server on a free port of 127.0.0.1 whose connections are played by a script."""

    def __init__(self, script: Script, context: ssl.SSLContext | None) -> None:
        self.connections = 0
        self.resumed = 0
        self.requests: list[bytes] = []
        self.port = 0
        self._script = script
        self._context = context
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.port}/feedback"

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        tls = writer.get_extra_info("ssl_object")
        self.resumed += bool(tls is not None and tls.session_reused)
        task = asyncio.current_task()
        if task is not None:
            self._tasks.add(task)
        try:
            with contextlib.suppress(OSError, asyncio.IncompleteReadError):
                await self._script(Peer(self, reader, writer))
        finally:
            writer.transport.abort()
            if task is not None:
                self._tasks.discard(task)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator["Endpoint"]:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            with contextlib.suppress(asyncio.CancelledError):  # else asyncio calls it an error when the test ends
                await self._serve(reader, writer)

        server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=self._context)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            server.close()
            for task in list(self._tasks):
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            await asyncio.sleep(0.01)


def answering(*answer: bytes, close: bool = False) -> Script:
    """Answers every request with these bytes; `close` ends the connection after the first."""

    async def script(peer: Peer) -> None:
        while True:
            await peer.request()
            await peer.send(*answer)
            if close:
                peer.writer.close()
                return

    return script


class ConnectProxy:
    """An HTTP proxy that knows CONNECT. `answer` replaces its own answer, b"" for none at all."""

    def __init__(self, answer: bytes | None = None) -> None:
        self.targets: list[str] = []
        self.authorizations: set[str] = set()
        """Values of `proxy-authorization` that came."""
        self._answer = answer

    async def __call__(self, peer: Peer) -> None:
        head = await peer.head()
        target = head.split()[1].decode()
        self.targets.append(target)
        found = re.search(rb"\r\nproxy-authorization: ([^\r\n]*)", head, re.IGNORECASE)
        if found is not None:
            self.authorizations.add(found[1].decode())
        if self._answer is not None:
            await peer.send(self._answer)
            await peer.until_closed()
            return
        host, _, port = target.rpartition(":")
        await self.relay(peer, host.strip("[]"), int(port))

    async def relay(self, peer: Peer, host: str, port: int) -> None:
        """Answers 200 and relays bytes both ways until one side ends."""
        reader, writer = await asyncio.open_connection(host, port)
        await peer.send(b"HTTP/1.1 200 Connection established\r\n\r\n")
        pumps = [
            asyncio.create_task(forward(peer.reader, writer)),
            asyncio.create_task(forward(reader, peer.writer)),
        ]
        try:
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)
            writer.transport.abort()


async def forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Passes on what is read until either side closes."""
    with contextlib.suppress(OSError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()


class NameServer(asyncio.DatagramProtocol):
    """A DNS server, by UDP and TCP. A name has a sequence of answers, the last of which repeats.

    `zone["a.example"] = [["1.2.3.4"], ["127.0.0.1"]]` rebinds after the first query (of either type); an entry that
    isn't an address is a CNAME. `truncate` holds the names that UDP does not have room for; `silent` those without any
    answer.
    """

    def __init__(self) -> None:
        self.zone: dict[str, list[Sequence[str]]] = {}
        self.truncate: set[str] = set()
        self.silent: set[str] = set()
        self.silent_kinds: set[str] = set()
        """A or AAAA: no question of the kind is answered."""
        self.failing_kinds: dict[str, int] = {}
        """The response code for questions of a kind."""
        self.delays: dict[str, float] = {}
        """Seconds by which answers of a kind are late (UDP)."""
        self.forge: Callable[[bytes], list[bytes]] | None = None
        self.queries: list[tuple[str, str]] = []
        self.address = ""
        self._transport: asyncio.DatagramTransport | None = None
        self._asked: dict[tuple[str, str], int] = {}

    def answer(self, packet: bytes, by_tcp: bool) -> bytes | None:
        query = DNSRecord.parse(packet)
        name = str(query.q.qname).rstrip(".").lower()
        kind = QTYPE[query.q.qtype]
        self.queries.append((name, kind))
        if name in self.silent or kind in self.silent_kinds:
            return None
        reply = query.reply()
        if kind in self.failing_kinds:
            reply.header.rcode = self.failing_kinds[kind]
            return bytes(reply.pack())
        if name in self.truncate and not by_tcp:
            reply.header.tc = 1
            return bytes(reply.pack())
        if name not in self.zone:
            reply.header.rcode = 3
            return bytes(reply.pack())
        turn = self._asked[name, kind] = self._asked.get((name, kind), 0) + 1
        answers = self.zone[name]
        self._add(reply, name, kind, answers[min(turn, len(answers)) - 1])
        return bytes(reply.pack())

    def _add(self, reply: DNSRecord, name: str, kind: str, values: Sequence[str]) -> None:
        for value in values:
            if ":" in value:
                if kind == "AAAA":
                    reply.add_answer(RR(name, QTYPE.AAAA, rdata=AAAA(ipaddress.IPv6Address(value).exploded), ttl=0))
            elif value.replace(".", "").isdigit():
                if kind == "A":
                    reply.add_answer(RR(name, QTYPE.A, rdata=A(value), ttl=0))
            else:
                reply.add_answer(RR(name, QTYPE.CNAME, rdata=CNAME(value), ttl=0))
                if value in self.zone and not value.startswith("elsewhere."):
                    self._add(reply, value, kind, self.zone[value][-1])

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.DatagramTransport, transport)

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        reply = self.answer(data, by_tcp=False)
        if self._transport is None or reply is None:
            return
        for forged in self.forge(reply) if self.forge is not None else []:
            self._transport.sendto(forged, addr)
        late_s = self.delays.get(QTYPE[DNSRecord.parse(data).q.qtype], 0.0)
        asyncio.get_running_loop().call_later(late_s, self._transport.sendto, reply, addr)

    async def _tcp(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            (size,) = struct.unpack("!H", await reader.readexactly(2))
            reply = self.answer(await reader.readexactly(size), by_tcp=True)
            if reply is not None:
                writer.write(struct.pack("!H", len(reply)) + reply)
                await writer.drain()
        writer.close()

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator["NameServer"]:
        loop = asyncio.get_running_loop()
        tcp = await asyncio.start_server(self._tcp, "127.0.0.1", 0)
        port = tcp.sockets[0].getsockname()[1]
        udp, _ = await loop.create_datagram_endpoint(lambda: self, local_addr=("127.0.0.1", port))
        self.address = f"127.0.0.1:{port}"
        try:
            yield self
        finally:
            udp.close()
            tcp.close()
            await tcp.wait_closed()
