"""Sends a broker requests that aiokafka has no classes for."""

import asyncio
import struct


async def answer_of(address: str, key: int, body: bytes, *, is_flexible: bool = False) -> bytes:
    """Returns the answer to a request of version 0, from its correlation id on.

    Args:
        address: a PLAINTEXT listener.
        key: the request's API key.
        is_flexible: the request has tagged fields (KIP-482).
    """
    header = struct.pack(">hhih", key, 0, 1, -1) + (b"\0" if is_flexible else b"")
    host, port = address.rsplit(":", 1)
    async with asyncio.timeout(60):
        reader, writer = await asyncio.open_connection(host, int(port))
        try:
            writer.write(struct.pack(">i", len(header + body)) + header + body)
            (size,) = struct.unpack(">i", await reader.readexactly(4))
            return await reader.readexactly(size)
        finally:
            writer.close()
