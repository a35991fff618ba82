"""Servers that endpoints really use: nginx, Node.js and OpenSSL, each on a free port of 127.0.0.1."""

import asyncio
import contextlib
import shutil
import socket
import ssl
import struct
import threading
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import trustme

from tests.transport.servers import forward

NGINX = shutil.which("nginx") or "/usr/sbin/nginx"
NODE = shutil.which("node") or "node"


def free_port() -> int:
    """Returns a port that no process listens on."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


async def _listening(port: int) -> None:
    async with asyncio.timeout(30):
        while True:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
            except OSError:
                await asyncio.sleep(0.05)
                continue
            writer.close()
            return


@contextlib.asynccontextmanager
async def _running(port: int, *command: str) -> AsyncIterator[int]:
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL
    )
    try:
        await _listening(port)
        yield port
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        await process.wait()


def _write_certificate(directory: Path, leaf: trustme.LeafCert) -> tuple[Path, Path]:
    directory.mkdir(parents=True, exist_ok=True)
    chain, key = directory / "chain.pem", directory / "key.pem"
    chain.write_bytes(b"".join(pem.bytes() for pem in leaf.cert_chain_pems))
    key.write_bytes(leaf.private_key_pem.bytes())
    return chain, key


@contextlib.asynccontextmanager
async def nginx(directory: Path, leaf: trustme.LeafCert, location: str, server: str = "") -> AsyncIterator[int]:
    """nginx with TLS; yields its port. `location` is what `location /` holds, `server` further directives."""
    chain, key = _write_certificate(directory, leaf)
    port, config = free_port(), directory / "nginx.conf"
    temporary = "".join(
        f"{what}_temp_path {directory}/{what};" for what in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    config.write_text(
        f"daemon off; master_process off; pid {directory}/pid; error_log {directory}/error.log;"
        f"events {{}} http {{ access_log off; {temporary} server {{ listen 127.0.0.1:{port} ssl;"
        f"ssl_certificate {chain}; ssl_certificate_key {key}; {server} location / {{ {location} }} }} }}\n"
    )
    async with _running(port, NGINX, "-c", str(config), "-p", str(directory), "-e", str(directory / "error.log")):
        yield port


@contextlib.asynccontextmanager
async def node(directory: Path, leaf: trustme.LeafCert, script: str, options: str = "") -> AsyncIterator[int]:
    """A Node.js HTTPS server; yields its port. `script` sees `server`; `options` go into `createServer`."""
    chain, key = _write_certificate(directory, leaf)
    port, program = free_port(), directory / "server.js"
    program.write_text(
        f"const fs = require('fs'), https = require('https');\n"
        f"const server = https.createServer({{cert: fs.readFileSync('{chain}'), key: fs.readFileSync('{key}'),"
        f" {options}}});\n{script}\nserver.listen({port}, '127.0.0.1');\n"
    )
    async with _running(port, NODE, str(program)):
        yield port


class PostHandshakeServer:
    """An OpenSSL server that asks for a client certificate after it has read the request (RFC 8446, section 4.6.2).

    As Apache httpd does for a protected directory. Answers 200 with the certificate's common name, or 403 without one.
    """

    def __init__(self, authority: trustme.CA, clients: trustme.CA) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert("127.0.0.1").configure_cert(context)
        clients.configure_trust(context)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.verify_mode = ssl.CERT_REQUIRED
        context.post_handshake_auth = True
        self._context = context
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.asked = 0
        self._plain: socket.socket | None = None

    @contextlib.contextmanager
    def running(self) -> Iterator["PostHandshakeServer"]:
        thread = threading.Thread(target=self._serve, daemon=True)
        thread.start()
        try:
            yield self
        finally:
            for sock in (self._listener, self._plain):
                with contextlib.suppress(OSError):
                    if sock is not None:
                        sock.shutdown(socket.SHUT_RDWR)
            self._listener.close()
            thread.join(10)

    def _serve(self) -> None:
        while True:
            try:
                plain, _ = self._listener.accept()
            except OSError:
                return
            self._plain = plain.dup()
            with (
                contextlib.suppress(OSError),
                self._plain,
                self._context.wrap_socket(plain, server_side=True) as connection,
            ):
                self._answer(connection)

    def _answer(self, connection: ssl.SSLSocket) -> None:
        connection.settimeout(10)
        while True:
            request = b""
            while b"\r\n\r\n{}" not in request:
                piece = connection.recv(65536)
                if not piece:
                    return
                request += piece
            if not connection.getpeercert():
                self.asked += 1
                connection.verify_client_post_handshake()
                connection.do_handshake()
                self._wait_for_certificate(connection)
            status = b"200 OK" if connection.getpeercert() else b"403 Forbidden"
            connection.sendall(b"HTTP/1.1 " + status + b"\r\ncontent-length: 0\r\n\r\n")

    def _wait_for_certificate(self, connection: ssl.SSLSocket) -> None:
        connection.settimeout(0.1)  # a read takes the client's answer in, though no data follows
        for _ in range(50):
            with contextlib.suppress(TimeoutError):
                connection.recv(0) or connection.recv(1)
            if connection.getpeercert():
                break
        connection.settimeout(10)


@dataclass
class ResumptionRefuser:
    """A TCP relay before a TLS server that turns away every ClientHello which offers a session.

    `how`: alert (handshake_failure, RFC 8446 section 6.2), close, or silent.
    """

    target: int
    how: str
    offered: int = 0
    accepted: int = 0
    port: int = 0
    _tasks: "set[asyncio.Task[None]]" = field(default_factory=set)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator["ResumptionRefuser"]:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.current_task()
            if task is not None:
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
            with contextlib.suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
                await self._serve(reader, writer)
            writer.transport.abort()

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            server.close()
            for task in list(self._tasks):
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readexactly(5)
        hello = await reader.readexactly(int.from_bytes(head[3:5], "big"))
        if offers_session(hello):
            self.offered += 1
            if self.how == "silent":
                await reader.read(-1)
            if self.how == "alert":
                writer.write(b"\x15\x03\x03\x00\x02\x02\x28")
                await writer.drain()
            writer.close()
            await writer.wait_closed()
            return
        self.accepted += 1
        inner_reader, inner_writer = await asyncio.open_connection("127.0.0.1", self.target)
        inner_writer.write(head + hello)
        pumps = [asyncio.create_task(forward(reader, inner_writer)), asyncio.create_task(forward(inner_reader, writer))]
        try:
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)
            inner_writer.transport.abort()


def offers_session(hello: bytes) -> bool:
    """Whether a ClientHello offers a session: a pre-shared key, or a ticket (RFC 8446, section 4.2.11; RFC 5077)."""
    at = 4 + 2 + 32
    at += 1 + hello[at]
    at += 2 + int.from_bytes(hello[at : at + 2], "big")
    at += 1 + hello[at]
    end = at + 2 + int.from_bytes(hello[at : at + 2], "big")
    at += 2
    while at < end:
        kind, size = struct.unpack_from("!HH", hello, at)
        if kind == 41 or (kind == 35 and size > 0):
            return True
        at += 4 + size
    return False
