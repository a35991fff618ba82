"""TLS on a connected socket: a handshake, and an asyncio transport whose reads and writes go straight through OpenSSL.

uvloop's TLS lets OpenSSL work on memory and copies every byte between it and the socket. Here OpenSSL has the socket
itself, and a connection has less memory, so that hundreds of them fit into the processor's caches.
"""

import asyncio
import ssl
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final, cast

from dispatcher.transport.tls_sessions import TlsSocket

MOST_READ: Final = 16_384
"""Bytes of one read: the most that a TLS record holds (RFC 8446, section 5.1). OpenSSL keeps nothing of a record that
is read as a whole, so that the event loop sees at the socket whether there is more."""
_LAST_READS: Final = 5
"""Reads after a write has failed: more than an answer may have."""
_HIGH_WATER: Final = 64 * 1024
"""Bytes that may wait to be written before the protocol has to pause."""


async def shake_hands(sock: TlsSocket) -> None:
    """Performs the TLS handshake on a connected socket that doesn't block. The caller limits the time.

    Raises:
        OSError: the handshake failed; `ssl.SSLError` if that is due to TLS.
    """
    loop = asyncio.get_running_loop()
    while True:
        try:
            sock.do_handshake()
        except ssl.SSLWantReadError:
            add, remove = loop.add_reader, loop.remove_reader
        except ssl.SSLWantWriteError:
            add, remove = loop.add_writer, loop.remove_writer
        else:
            return
        await _called_back(sock.fileno(), add, remove)


async def _called_back(fd: int, add: Callable[..., object], remove: Callable[[int], object]) -> None:
    ready = asyncio.get_running_loop().create_future()
    add(fd, _set_done, ready)
    try:
        await ready
    finally:
        remove(fd)


def _set_done(ready: "asyncio.Future[None]") -> None:
    if not ready.done():
        ready.set_result(None)


class TlsTransport(asyncio.Transport):
    """A connection whose handshake is done.

    As other transports, it calls `connection_lost` once, in a later turn of the event loop. What the peer sent before
    a write failed is read first: it may be the answer that explains the failure.
    """

    def __init__(self, sock: TlsSocket, protocol: asyncio.Protocol) -> None:
        """Takes over the socket, and calls the protocol's `connection_made`."""
        self._sock = sock
        self._fd = sock.fileno()
        self._loop = asyncio.get_running_loop()
        self._protocol: asyncio.Protocol = protocol
        self._unsent = b""
        self._is_over = False
        self._is_closing = False
        self._is_reading = True
        self._awaits_writable = False
        self._read_wants_write = False
        self._is_paused = False
        """The protocol must not write now."""
        protocol.connection_made(self)
        if not self._is_over:
            self._loop.add_reader(self._fd, self._on_readable)

    def __repr__(self) -> str:
        state = "closed" if self._is_over else "closing" if self._is_closing else "open"
        return f"<TlsTransport {state} unsent={len(self._unsent)}>"

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """Returns `ssl_object` and `socket`, which are the same, or `sslcontext`."""
        if name == "ssl_object" or name == "socket":
            return self._sock
        return self._sock.context if name == "sslcontext" else default

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        """Replaces the protocol, which must be an `asyncio.Protocol`."""
        self._protocol = cast(asyncio.Protocol, protocol)

    def get_protocol(self) -> asyncio.BaseProtocol:
        """Returns the protocol."""
        return self._protocol

    # Reading

    def is_reading(self) -> bool:
        """Returns whether bytes are passed to the protocol as they come."""
        return self._is_reading and not self._is_over

    def pause_reading(self) -> None:
        """Leaves what comes in the socket, until `resume_reading`."""
        if self.is_reading():
            self._is_reading = False
            self._loop.remove_reader(self._fd)

    def resume_reading(self) -> None:
        """Passes bytes to the protocol again."""
        if not self._is_reading and not self._is_over:
            self._is_reading = True
            self._loop.add_reader(self._fd, self._on_readable)

    def _on_readable(self) -> None:
        if self._unsent:
            self._flush()  # TLS may have to read before it can write
        self._read()

    def _read(self) -> None:
        if self._is_over:
            return
        try:
            data = self._sock.read(MOST_READ)
        except ssl.SSLWantReadError:  # nothing, part of a record, or one without data, such as a session ticket
            return
        except ssl.SSLWantWriteError:
            self._read_wants_write = True
            self._await_writable()
            return
        except OSError as error:
            self._lose(error)
            return
        try:
            if data:
                self._protocol.data_received(data)
            else:
                self._protocol.eof_received()
                self._lose(None)
        except Exception as error:
            self._lose(error)
            raise  # a bug: the event loop reports it

    # Writing

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Sends bytes, now if the socket takes them. What is written to a connection that is lost is left out."""
        if self._is_over or self._is_closing:
            return
        self._unsent = self._unsent + data if self._unsent else bytes(data)
        self._flush()
        if not self._is_paused and len(self._unsent) > _HIGH_WATER:
            self._is_paused = True
            self._protocol.pause_writing()

    def get_write_buffer_size(self) -> int:
        """Returns the bytes that the socket has not taken yet."""
        return len(self._unsent)

    def can_write_eof(self) -> bool:
        """Returns False: TLS ends in both directions at once."""
        return False

    def _flush(self) -> None:
        unsent, sent = self._unsent, 0
        try:
            while sent < len(unsent):  # a record at a time
                sent += self._sock.write(memoryview(unsent)[sent:] if sent else unsent)
        except ssl.SSLWantReadError:
            pass  # `_on_readable` goes on
        except ssl.SSLWantWriteError:
            self._await_writable()
        except OSError as error:
            self._unsent, self._is_closing = b"", True
            self._loop.call_soon(self._end_after_failed_write, error)
            return
        self._unsent = unsent[sent:]
        if self._is_closing and not self._unsent:
            self._end()
        elif self._is_paused and len(self._unsent) <= _HIGH_WATER // 4:
            self._is_paused = False
            self._protocol.resume_writing()

    def _await_writable(self) -> None:
        if not self._awaits_writable:
            self._awaits_writable = True
            self._loop.add_writer(self._fd, self._on_writable)

    def _on_writable(self) -> None:
        self._awaits_writable = False
        self._loop.remove_writer(self._fd)
        if self._unsent:
            self._flush()
        if self._read_wants_write:
            self._read_wants_write = False
            self._read()

    def _end_after_failed_write(self, error: OSError) -> None:
        for _ in range(_LAST_READS):
            self._read()
        self._lose(error)

    # Ends

    def is_closing(self) -> bool:
        """Returns whether the connection is closed, or is about to be."""
        return self._is_closing or self._is_over

    def close(self) -> None:
        """Closes the connection once what was written is sent."""
        if not self.is_closing():
            self._is_closing = True
            if not self._unsent:
                self._end()

    def abort(self) -> None:
        """Closes the connection at once."""
        self._lose(None)

    def _end(self) -> None:
        """Announces the end to the peer, without waiting for its answer, and closes."""
        if not self._is_over:
            with suppress(OSError, ValueError):  # the peer's own end has not come yet, or never will
                self._sock.unwrap()
            self._lose(None)

    def _lose(self, error: Exception | None) -> None:
        if self._is_over:
            return
        self._is_over, self._unsent = True, b""
        self._loop.remove_reader(self._fd)
        self._loop.remove_writer(self._fd)
        self._loop.call_soon(self._report_end, error)

    def _report_end(self, error: Exception | None) -> None:
        try:
            self._protocol.connection_lost(error)
        finally:
            self._sock.close()
