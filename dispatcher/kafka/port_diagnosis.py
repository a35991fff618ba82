"""Finds out what a port speaks after a broker closed a connection without a reason.

Kafka closes the connection if TLS is spoken to a plaintext port, or if a client doesn't authenticate on a SASL port.
A second connection tries the other protocol; only an answer in Kafka's own protocol counts.
"""

import asyncio
import ssl
import struct
from typing import Final

from dispatcher.connecting import open_connection
from dispatcher.contract.kafka_problems import KafkaReason
from dispatcher.kafka.connection_errors import Explanation, Peer

_WITHIN_S: Final = 3.0
_API_VERSIONS: Final = 18
_SASL_HANDSHAKE: Final = 17
_MAX_ANSWER: Final = 64 * 1024
_CORRELATION: Final = 0x66646273


async def diagnose(host: str, port: int, peer: Peer, error: BaseException) -> Explanation | None:
    """Returns what is wrong if the port's own answers show it, else None. Takes up to 6 s."""
    if isinstance(error, ConnectionRefusedError | TimeoutError):
        return None
    if peer.uses_tls and isinstance(error, ConnectionResetError | ssl.SSLError):
        if await _answers(host, port, _API_VERSIONS, b"", None):
            plain = "SASL_PLAINTEXT" if peer.protocol == "SASL_SSL" else "PLAINTEXT"
            return (
                KafkaReason.PROTOCOL_MISMATCH,
                f"the port does not speak TLS: kafka.security.protocol is {peer.protocol}; "
                f"use the broker's TLS port, or protocol {plain}",
            )
    elif not peer.protocol.startswith("SASL"):
        body = struct.pack(">h", 5) + b"PLAIN"
        answer = await _answers(host, port, _SASL_HANDSHAKE, body, _context() if peer.uses_tls else None)
        mechanisms = _mechanisms(answer)
        if mechanisms:
            return (
                KafkaReason.PROTOCOL_MISMATCH,
                f"the port wants SASL ({', '.join(mechanisms)}): kafka.security.protocol is {peer.protocol}; "
                f"set it to {'SASL_SSL' if peer.uses_tls else 'SASL_PLAINTEXT'}, with mechanism, username and password",
            )
    return None


def _context() -> ssl.SSLContext:
    """Returns a context that verifies nothing, because no secret is sent: only the protocol is examined."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


async def _answers(host: str, port: int, api: int, body: bytes, context: ssl.SSLContext | None) -> bytes:
    """Returns the body of the answer to one request; empty if there is none or it isn't Kafka's."""
    client = b"feedback-dispatcher"
    version = 1 if api == _SASL_HANDSHAKE else 0
    message = struct.pack(">hhih", api, version, _CORRELATION, len(client)) + client + body
    try:
        async with asyncio.timeout(_WITHIN_S):
            reader, writer = await open_connection(host, port, _WITHIN_S, context)
            try:
                writer.write(struct.pack(">i", len(message)) + message)
                (size,) = struct.unpack(">i", await reader.readexactly(4))
                if not 4 <= size <= _MAX_ANSWER:
                    return b""
                answer = await reader.readexactly(size)
            finally:
                writer.close()
    except (OSError, EOFError, TimeoutError, RuntimeError):
        return b""
    return answer[4:] if answer[:4] == struct.pack(">i", _CORRELATION) else b""


def _mechanisms(answer: bytes) -> list[str]:
    """Returns the SASL mechanisms in a SaslHandshake answer; empty if the listener has none, or it is cut short."""
    found: list[str] = []
    try:
        (count,) = struct.unpack_from(">i", answer, 2)
        at = 6
        for _ in range(max(0, min(count, 20))):
            (length,) = struct.unpack_from(">h", answer, at)
            (name,) = struct.unpack_from(f"{max(0, length)}s", answer, at + 2)
            found.append(name.decode("ascii", "replace"))
            at += 2 + len(name)
    except struct.error:
        return []
    return found
