"""TLS on a connected socket: a handshake, and an asyncio transport that decrypts a bounded number of bytes at a time.

uvloop's TLS takes more memory for each connection. OpenSSL on the socket itself would be a little faster,
but one call reads for as long as the peer sends bytes that hold no data (session tickets, key updates, requests
to begin a handshake): a single endpoint could stop the event loop, and all tenants with it. So OpenSSL works on memory
here, the socket is read once in a turn of the event loop, and bytes without data are limited.
"""

import asyncio
import socket
import ssl
from contextlib import suppress
from typing import Any, Final, cast

from dispatcher.transport.tls_sessions import EndlessTls, TlsObject

MOST_READ: Final = 16_384
"""Bytes of one read: the most that a TLS record holds (RFC 8446, section 5.1). OpenSSL keeps nothing of a record that
is read as a whole, so that the memory shows whether there is more."""
MOST_RECEIVED: Final = MOST_READ + 256
"""Bytes that are received from the socket and decrypted at a time: a whole TLS record."""
MOST_OVERHEAD: Final = 4 * 1024 * 1024
"""Bytes that a peer may send beyond the data in them, from one write to the next. The largest head and body that are
read have less even in records of one byte each."""
_HANDSHAKE_PART: Final = 4096
"""Bytes of a handshake that are received at a time: what they take in memory is kept while the connection lasts."""
_MOST_IN_HANDSHAKE: Final = 256 * 1024
"""Bytes of a handshake. OpenSSL accepts certificates of 100 KiB."""
_LAST_READS: Final = 5
"""Times that the socket is read after a write has failed: more than an answer needs."""
_HIGH_WATER: Final = 64 * 1024
"""Bytes that may wait to be written before the protocol has to pause."""


async def shake_hands(sock: socket.socket, tls: TlsObject) -> None:
    """Performs the TLS handshake on a connected socket that doesn't block. The caller limits the time.

    Raises:
        OSError: the handshake failed; `ssl.SSLError` if that is due to TLS.
    """
    loop, received = asyncio.get_running_loop(), 0
    while True:
        try:
            tls.do_handshake()
        except ssl.SSLWantReadError:
            is_done = False
        except ssl.SSLError:
            with suppress(OSError):
                sock.send(tls.outgoing.read())  # the alert says why
            raise
        else:
            is_done = True
        if tls.outgoing.pending:
            await loop.sock_sendall(sock, tls.outgoing.read())
        if is_done:
            return
        if received > _MOST_IN_HANDSHAKE:
            raise EndlessTls("endless handshake")
        data = await loop.sock_recv(sock, _HANDSHAKE_PART)
        received += len(data)
        if data:
            tls.incoming.write(data)
        else:
            tls.incoming.write_eof()


class TlsTransport(asyncio.Transport):
    """A connection whose handshake is done.

    As other transports, it calls `connection_lost` once, in a later turn of the event loop. What the peer sent before
    a write failed is read first: it may be the answer that explains the failure.
    """

    def __init__(self, sock: socket.socket, tls: TlsObject, protocol: asyncio.Protocol) -> None:
        """Takes over the socket, and calls the protocol's `connection_made`."""
        self._sock = sock
        self._tls = tls
        self._incoming, self._outgoing = tls.incoming, tls.outgoing
        self._fd = sock.fileno()
        self._loop = asyncio.get_running_loop()
        self._protocol: asyncio.Protocol = protocol
        self._unsent = b""
        self._overhead = 0
        """Bytes received beyond the data in them, since the last write."""
        self._is_over = False
        self._is_closing = False
        self._is_reading = True
        self._has_ended = False
        """The peer sends no more."""
        self._awaits_writable = False
        self._is_paused = False
        """The protocol must not write now."""
        protocol.connection_made(self)
        if not self._is_over:
            self._loop.add_reader(self._fd, self._on_readable)
            if self._incoming.pending:  # came with the end of the handshake
                self._loop.call_soon(self._decrypt)

    def __repr__(self) -> str:
        state = "closed" if self._is_over else "closing" if self._is_closing else "open"
        return f"<TlsTransport {state} unsent={len(self._unsent)}>"

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """Returns `ssl_object`, `socket` or `sslcontext`."""
        if name == "ssl_object":
            return self._tls
        if name == "socket":
            return self._sock
        return self._tls.context if name == "sslcontext" else default

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
            self._loop.call_soon(self._decrypt)

    def _on_readable(self) -> None:
        try:
            data = self._sock.recv(MOST_RECEIVED)
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            self._lose(error)
            return
        if data:
            self._overhead += len(data)
            self._incoming.write(data)
        else:
            self._has_ended = True
            self._incoming.write_eof()
        self._decrypt()

    def _decrypt(self) -> None:
        """Passes on the data of all that was received."""
        while self._is_reading and not self._is_over:
            try:
                data = self._tls.read(MOST_READ)
            except ssl.SSLWantReadError:  # nothing, part of a record, or one without data, such as a session ticket
                break
            except (ssl.SSLZeroReturnError, ssl.SSLEOFError):
                data = b""
            except OSError as error:
                self._lose(error)
                return
            self._overhead -= len(data)
            self._pass_on(data)
            if not self._incoming.pending and not self._has_ended:
                break
        if self._overhead > MOST_OVERHEAD:
            self._lose(EndlessTls("endless messages without data"))
        elif self._outgoing.pending and not self.is_closing():
            self._flush()  # what TLS itself answers

    def _pass_on(self, data: bytes) -> None:
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
        self._overhead, at = 0, 0
        try:
            while at < len(data):  # a record at a time
                at += self._tls.write(memoryview(data)[at:] if at else data)
        except OSError as error:
            self._fail_to_write(error)
            return
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
        encrypted = self._outgoing.read()
        unsent = self._unsent + encrypted if self._unsent else encrypted
        try:
            sent = self._sock.send(unsent)
        except (BlockingIOError, InterruptedError):
            sent = 0
        except OSError as error:
            self._fail_to_write(error)
            return
        self._unsent = unsent[sent:]
        if self._unsent:
            self._await_writable()
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
        self._flush()

    def _fail_to_write(self, error: OSError) -> None:
        self._unsent, self._is_closing = b"", True
        self._loop.call_soon(self._end_after_failed_write, error)

    def _end_after_failed_write(self, error: OSError) -> None:
        self._is_reading = True  # even if the protocol wanted a pause
        for _ in range(_LAST_READS):
            if not self._is_over:
                self._on_readable()
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
            with suppress(OSError):  # the peer's own end has not come yet, or never will
                self._tls.unwrap()
            with suppress(OSError):
                self._sock.send(self._outgoing.read())
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
