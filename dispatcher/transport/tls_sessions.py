"""Resumes TLS sessions: a context keeps the last session of each server, which it offers to the next connection."""

import asyncio
import ssl
import time
from collections import OrderedDict
from contextvars import ContextVar
from typing import Any, cast

MAX_SESSIONS = 1024
_REFUSED_S = 3600.0

HostAndPort = tuple[str, int]
"""Host and port of a TLS server."""


DIALLED: ContextVar[HostAndPort] = ContextVar("dialled")
"""The server that the current task connects to. A handshake needs its port, which neither asyncio nor uvloop passes to
`wrap_bio`: sessions belong to host and port. (uvloop takes no subclass of `str` as a host name.)"""


class EndlessTls(ssl.SSLError):
    """A peer sends TLS messages without end. `reason` says which, in words as OpenSSL's."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class TlsObject(ssl.SSLObject):
    """TLS whose bytes pass through memory; it knows its server's host and port."""

    place: HostAndPort | None = None
    incoming: ssl.MemoryBIO
    """What was received and is not decrypted yet."""
    outgoing: ssl.MemoryBIO
    """What is encrypted, to be sent."""

    def getpeercert(self, binary_form: bool = False) -> Any:
        """Returns the peer's certificate; empty if it has text that isn't UTF-8, which OpenSSL accepts.

        asyncio and uvloop read it at the end of every handshake, and need nothing of it: a revocation list's URL in
        Latin-1 would end the connection.
        """
        try:
            return super().getpeercert(binary_form)
        except UnicodeDecodeError:
            return {}


def tls_of(transport: asyncio.BaseTransport) -> TlsObject | None:
    """Returns the TLS layer of a connection, if it has one."""
    found = transport.get_extra_info("ssl_object")
    return found if isinstance(found, TlsObject) else None


class TLSSessions:
    """The last session of each server, bounded. A server that refused one is offered none for an hour."""

    def __init__(self) -> None:
        self._kept: OrderedDict[HostAndPort, ssl.SSLSession] = OrderedDict()
        self._refused: OrderedDict[HostAndPort, float] = OrderedDict()

    def get(self, place: HostAndPort) -> ssl.SSLSession | None:
        """Returns the session to offer, if any."""
        return self._kept.get(place)

    def keep(self, place: HostAndPort, session: ssl.SSLSession) -> None:
        """Keeps a session for the next connection."""
        if self._refused and time.monotonic() < self._refused.get(place, 0.0):
            return
        self._kept[place] = session
        self._kept.move_to_end(place)
        if len(self._kept) > MAX_SESSIONS:
            self._kept.popitem(last=False)

    def forget(self, place: HostAndPort, *, is_refused: bool) -> None:
        """Forgets the server's session. If `is_refused`, none is kept for an hour."""
        self._kept.pop(place, None)
        if not is_refused:
            return
        self._refused[place] = time.monotonic() + _REFUSED_S
        self._refused.move_to_end(place)
        if len(self._refused) > MAX_SESSIONS:
            self._refused.popitem(last=False)


class TlsContext(ssl.SSLContext):
    """A TLS context that resumes the last session of each host and port (RFC 8446, section 2.2; RFC 5077)."""

    sslobject_class = TlsObject
    sessions: TLSSessions

    def wrap(self, place: HostAndPort) -> TlsObject:
        """Returns TLS with a server, before the handshake."""
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        wrapped = self.wrap_bio(incoming, outgoing, False, place[0], self.sessions.get(place))
        wrapped.place, wrapped.incoming, wrapped.outgoing = place, incoming, outgoing
        return wrapped

    def wrap_bio(
        self,
        incoming: ssl.MemoryBIO,
        outgoing: ssl.MemoryBIO,
        server_side: bool = False,
        server_hostname: str | bytes | None = None,
        session: ssl.SSLSession | None = None,
    ) -> TlsObject:
        place = DIALLED.get(None)
        if place is not None and place[0] != server_hostname:
            place = None  # the connection to a proxy, on the way to the server
        if session is None and place is not None:
            session = self.sessions.get(place)
        wrapped = cast(TlsObject, super().wrap_bio(incoming, outgoing, server_side, server_hostname, session))
        wrapped.place = place
        return wrapped


def remember_session(connection: TlsObject) -> None:
    """Keeps a connection's session for the next one. With TLS 1.3 it has one only after bytes came from the server."""
    context, session, place = connection.context, connection.session, connection.place
    if isinstance(context, TlsContext) and session is not None and place is not None:
        context.sessions.keep(place, session)
