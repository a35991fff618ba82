"""A broker on a real socket that answers requests about metadata and groups, and advertises what the test wants."""

import asyncio
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

METADATA, FIND_COORDINATOR, DESCRIBE_GROUPS, API_VERSIONS = 3, 10, 15, 18
VERSIONS = {0: 2, 1: 4, 2: 1, METADATA: 8, 8: 2, 9: 2, FIND_COORDINATOR: 1, 11: 2, 12: 3, 13: 1, 14: 1,
            DESCRIBE_GROUPS: 3, API_VERSIONS: 0, 22: 0, 32: 1}  # fmt: skip
"""The newest version of each API that it claims to know."""


@dataclass
class AdvertisedBroker:
    """One real broker, and how it describes its cluster."""

    topic: str
    port: int = 0
    brokers: dict[int, tuple[str, int]] = field(default_factory=dict)
    """Advertised address by number."""
    coordinator: int = 1

    @asynccontextmanager
    async def serve(self) -> AsyncIterator[None]:
        server = await asyncio.start_server(self._answer, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield
        finally:
            server.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                (size,) = struct.unpack(">i", await reader.readexactly(4))
                key, version, correlation = struct.unpack_from(">hhi", await reader.readexactly(size))
                body = struct.pack(">i", correlation) + self._body(key, version)
                writer.write(struct.pack(">i", len(body)) + body)
        except (asyncio.IncompleteReadError, ConnectionError, KeyError):
            writer.close()

    def _body(self, key: int, version: int) -> bytes:
        if key == API_VERSIONS:
            ranges = b"".join(struct.pack(">hhh", one, 0, newest) for one, newest in VERSIONS.items())
            return struct.pack(">hi", 0, len(VERSIONS)) + ranges
        if key == METADATA:
            return self._metadata(version)
        if key == FIND_COORDINATOR:
            host, port = self.brokers[self.coordinator]
            found = struct.pack(">hhi", 0, -1, self.coordinator) if version else struct.pack(">hi", 0, self.coordinator)
            return (struct.pack(">i", 0) if version else b"") + found + _text(host) + struct.pack(">i", port)
        if key == DESCRIBE_GROUPS:
            return struct.pack(">iih", 0, 1, 0) + _text("g") + 3 * _text("") + struct.pack(">ii", 0, -(2**31))
        raise KeyError(key)

    def _metadata(self, version: int) -> bytes:
        body = struct.pack(">i", 0) if version >= 3 else b""
        body += struct.pack(">i", len(self.brokers))
        for number, (host, port) in self.brokers.items():
            body += struct.pack(">i", number) + _text(host) + struct.pack(">ih", port, -1)
        body += (_text("cluster") if version >= 2 else b"") + struct.pack(">i", 1)
        body += struct.pack(">ih", 1, 0) + _text(self.topic) + b"\0" + struct.pack(">ihii", 1, 0, 0, 1)
        body += struct.pack(">i", 0) if version >= 7 else b""
        body += struct.pack(">iiii", 1, 1, 1, 1) + (struct.pack(">i", 0) if version >= 5 else b"")
        return body + (struct.pack(">ii", -(2**31), -(2**31)) if version >= 8 else b"")


def _text(value: str) -> bytes:
    return struct.pack(">h", len(value)) + value.encode()
