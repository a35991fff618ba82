"""Sets quotas of clients in a running broker (KIP-546), which aiokafka knows no request for."""

import asyncio
import struct

_ALTER_CLIENT_QUOTAS = 49


async def set_consumer_byte_rate(address: str, bytes_a_second: float | None) -> None:
    """Limits what any client id may fetch from a broker; None lifts the limit. `address`: a PLAINTEXT listener."""
    entity = struct.pack(">i", 1) + _text("client-id") + struct.pack(">h", -1)  # null: every client id's default
    operation = _text("consumer_byte_rate") + struct.pack(">d?", bytes_a_second or 0.0, bytes_a_second is None)
    body = struct.pack(">i", 1) + entity + struct.pack(">i", 1) + operation + b"\0"
    header = struct.pack(">hhih", _ALTER_CLIENT_QUOTAS, 0, 1, -1)
    host, port = address.rsplit(":", 1)
    async with asyncio.timeout(20):
        reader, writer = await asyncio.open_connection(host, int(port))
        try:
            writer.write(struct.pack(">i", len(header + body)) + header + body)
            (size,) = struct.unpack(">i", await reader.readexactly(4))
            answer = await reader.readexactly(size)
        finally:
            writer.close()
    _, _, entries, error_code = struct.unpack_from(">iiih", answer)  # correlation, throttle time
    assert (entries, error_code) == (1, 0), answer


def _text(text: str) -> bytes:
    return struct.pack(">h", len(text)) + text.encode()
