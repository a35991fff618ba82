"""Sets quotas of clients in a running broker (KIP-546), which aiokafka knows no request for."""

import struct

from tests.kafka.raw_request import answer_of

_ALTER_CLIENT_QUOTAS = 49


async def set_consumer_byte_rate(address: str, bytes_a_second: float | None) -> None:
    """Limits what any client id may fetch from a broker; None lifts the limit. `address`: a PLAINTEXT listener."""
    entity = struct.pack(">i", 1) + _text("client-id") + struct.pack(">h", -1)  # null: every client id's default
    operation = _text("consumer_byte_rate") + struct.pack(">d?", bytes_a_second or 0.0, bytes_a_second is None)
    body = struct.pack(">i", 1) + entity + struct.pack(">i", 1) + operation + b"\0"
    answer = await answer_of(address, _ALTER_CLIENT_QUOTAS, body)
    _, _, entries, error_code = struct.unpack_from(">iiih", answer)  # correlation, throttle time
    assert (entries, error_code) == (1, 0), answer


def _text(text: str) -> bytes:
    return struct.pack(">h", len(text)) + text.encode()
