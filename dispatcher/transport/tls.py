"""Makes TLS contexts: version 1.2 or newer, certificate and host name always verified, with no setting to disable it.

A context belongs to an identity (CA and client certificate), not to a webhook: ten thousand tenants without either
share one. It also keeps the sessions of the servers it has connected to, so that new connections resume.
"""

import asyncio
import contextlib
import hashlib
import math
import os
import ssl
import stat
import tempfile
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from pathlib import Path
from weakref import WeakKeyDictionary

import structlog

from dispatcher.config.secret_scope import read_regular_file
from dispatcher.config.secrets import Secret
from dispatcher.config.webhooks import ClientTls
from dispatcher.contract.outcomes import FailureReason
from dispatcher.errors import Problem
from dispatcher.tasks import SingleFlight
from dispatcher.transport.failures import TransportError, describe, is_local, local_failure
from dispatcher.transport.request import Endpoint

MAX_CONTEXTS = 1024
MAX_SESSIONS = 1024
_REFUSED_S = 3600.0
MAX_BUNDLE_BYTES = 16 * 1024 * 1024
FIRST_BUNDLE_CHECK_S = 1.0
"""Seconds to the next try while the operator's CA bundle was never read."""
BUNDLE_CHECK_S = 10.0
"""Seconds between two checks of the operator's CA bundle for a change."""

log = structlog.get_logger(__name__)


HostAndPort = tuple[str, int]
"""Host and port of a TLS server."""


DIALLED: ContextVar[HostAndPort] = ContextVar("dialled")
"""The server that the current task connects to. A handshake needs its port, which neither asyncio nor uvloop passes to
`wrap_bio`: sessions belong to host and port. (uvloop takes no subclass of `str` as a host name.)"""


class TlsObject(ssl.SSLObject):
    """A TLS connection that knows its server's host and port."""

    place: HostAndPort | None = None


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

    def wrap_bio(
        self,
        incoming: ssl.MemoryBIO,
        outgoing: ssl.MemoryBIO,
        server_side: bool = False,
        server_hostname: str | bytes | None = None,
        session: ssl.SSLSession | None = None,
    ) -> ssl.SSLObject:
        place = DIALLED.get(None)
        if place is not None and place[0] != server_hostname:
            place = None  # the connection to a proxy, on the way to the server
        if session is None and place is not None:
            session = self.sessions.get(place)
        wrapped = super().wrap_bio(incoming, outgoing, server_side, server_hostname, session)
        if isinstance(wrapped, TlsObject):
            wrapped.place = place
        return wrapped


def remember_session(connection: ssl.SSLObject) -> None:
    """Keeps a connection's session for the next one. With TLS 1.3 it has one only after bytes came from the server."""
    context, session = connection.context, connection.session
    place = connection.place if isinstance(connection, TlsObject) else None
    if isinstance(context, TlsContext) and session is not None and place is not None:
        context.sessions.keep(place, session)


def certificate_expiry(connection: ssl.SSLObject) -> float | None:
    """Returns when the peer's certificate expires, in Unix time. Too costly for every request."""
    certificate = connection.getpeercert()
    until = certificate.get("notAfter") if certificate else None
    return float(ssl.cert_time_to_seconds(until)) if isinstance(until, str) else None


_LOOK_AGAIN_S = 3600.0
_SOON_S = 2 * 86400.0
_HAS_EXPIRED = 10
"""OpenSSL's X509_V_ERR_CERT_HAS_EXPIRED."""
_MAX_PLACES = 10_000
_expiries: dict[HostAndPort, tuple[float, float]] = {}
"""When each server's certificate expires, and when that was read. Process-wide, as the metrics are."""


def note_expiry(place: HostAndPort, connection: ssl.SSLObject) -> None:
    """Remembers when a server's certificate expires: read at a new connection, at most once an hour.

    One that expires within two days is read at every new connection, so that its renewal is seen at once.
    """
    now = time.monotonic()
    known, seen = _expiries.get(place, (0.0, -_LOOK_AGAIN_S))
    if now - seen < _LOOK_AGAIN_S and known > time.time() + _SOON_S:
        return
    expires = certificate_expiry(connection)
    if expires is not None:
        _remember(place, expires)


def note_refusal(place: HostAndPort, error: BaseException) -> None:
    """Remembers that a server's certificate has expired, if that is why the handshake failed.

    A refused certificate can't be read. If its time was not known before, it counts as expired now.
    """
    if isinstance(error, ssl.SSLCertVerificationError) and error.verify_code == _HAS_EXPIRED:
        known, _ = _expiries.get(place, (math.inf, 0.0))
        _remember(place, min(known, time.time()))


def _remember(place: HostAndPort, expires: float) -> None:
    _expiries.pop(place, None)
    _expiries[place] = (expires, time.monotonic())
    if len(_expiries) > _MAX_PLACES:
        del _expiries[next(iter(_expiries))]


def certificate_expiries() -> dict[HostAndPort, float]:
    """Returns when certificates expire, in Unix time, by host and port."""
    return {place: expires for place, (expires, _) in _expiries.items()}


def new_context(ca: bytes | None = None, certificate: bytes | None = None, key: bytes | None = None) -> TlsContext:
    """Returns a client context from PEM; with the system's CAs if none is given.

    Raises:
        ValueError: one of the three can't be used; the message says which and why.
        OSError: this machine failed: no file descriptor is free. Another try may succeed.
    """
    context = TlsContext(ssl.PROTOCOL_TLS_CLIENT)  # verifies certificate and host name
    context.sessions = TLSSessions()
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.hostname_checks_common_name = False  # RFC 9525, section 6.3
    context.options |= ssl.OP_NO_RENEGOTIATION
    context.set_alpn_protocols(["http/1.1"])
    if ca is None:
        _check_descriptors()  # without one OpenSSL loads no CA and reports nothing
        context.load_default_certs()
    else:
        _trust(context, ca)
    if certificate is not None and key is not None:
        _identify(context, certificate, key)
        context.post_handshake_auth = True  # for servers that ask once they know the path (RFC 8446, section 4.6.2)
    return context


def operator_context(ca: Path | None) -> ssl.SSLContext:
    """Returns a context for one of the operator's own services: a broker, a mail server, a sign-in service.

    Args:
        ca: a bundle of authorities in PEM; None: those of the system.

    Raises:
        OSError: the bundle can't be read; ssl.SSLError if it is not PEM.
    """
    context = ssl.create_default_context(cafile=None if ca is None else str(ca))
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


def endpoint_context(ca: Path) -> ssl.SSLContext:
    """Returns a context for endpoints without a CA of their own. Raises the errors of `new_context`."""
    return new_context(read_regular_file(ca, MAX_BUNDLE_BYTES))


def bundle_problems(
    ca: Path | None, key: str, load: Callable[[Path], ssl.SSLContext] = operator_context
) -> list[Problem]:
    """Returns the mistake in a bundle of authorities that the setting `key` names; empty if there is none.

    Args:
        load: makes the context as the bundle's user does.
    """
    if ca is None:
        return []
    try:
        if not stat.S_ISREG(ca.stat().st_mode):
            return [Problem(f"{ca} can't be read (it is not a regular file)", key)]
        load(ca)
    except (ssl.SSLError, ValueError) as error:
        return [Problem(f"{ca} is not a bundle of certificates in PEM ({describe(error)})", key)]
    except OSError as error:
        return [Problem(f"{ca} can't be read ({error.strerror or error})", key)]
    return []


def problems_of_pem(tls: ClientTls) -> Iterator[tuple[str, str]]:
    """Yields the mistakes in an endpoint's CA and client certificate, by key: `tls.ca`. Skips unresolved secrets.

    Opens no connection and loads none of the system's CAs, because it runs for every webhook that is read.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if tls.ca is not None and tls.ca.reveal():
        try:
            _trust(context, tls.ca.reveal())
        except ValueError as error:
            yield "tls.ca", f"{error}: give the issuer's certificate, in PEM"
    certificate, key = (b"" if secret is None else secret.reveal() for secret in (tls.certificate, tls.key))
    if certificate and key:
        try:
            _identify(context, certificate, key)
        except (ValueError, OSError) as error:
            yield "tls.certificate", f"{error}: give both in PEM, the certificate of this very key first in its chain"


def _trust(context: ssl.SSLContext, ca: bytes) -> None:
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN  # an intermediate or the leaf alone is enough, as for curl
    try:
        text = ca.decode("ascii", "replace").replace("\ufffd", "?")  # comments may be in any language
        context.load_verify_locations(cadata=text)
    except (ValueError, ssl.SSLError) as error:
        raise ValueError(f"the CA is not a bundle of certificates in PEM ({describe(error)})") from None


def _identify(context: ssl.SSLContext, certificate: bytes, key: bytes) -> None:
    try:
        with as_file(certificate + b"\n" + key) as path:
            context.load_cert_chain(path, password=refuse_passphrase)
    except (ValueError, OSError) as error:
        if is_local(error):
            raise
        raise ValueError(f"the client certificate and its key can't be used ({describe(error)})") from None


def _check_descriptors() -> None:
    for descriptor in [os.open(os.devnull, os.O_RDONLY) for _ in range(2)]:
        os.close(descriptor)


def refuse_passphrase() -> str:
    """Refuses an encrypted key: `load_cert_chain` calls it for the passphrase."""
    raise ValueError("the key is encrypted: give it without a passphrase")  # else OpenSSL would prompt on the terminal


@contextlib.contextmanager
def as_file(data: bytes) -> Iterator[str]:
    """Yields a path with these bytes for `load_cert_chain`, which accepts paths only: in memory on Linux."""
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("client-certificate", os.MFD_CLOEXEC)
        path = f"/proc/self/fd/{descriptor}"
    else:
        descriptor, path = tempfile.mkstemp()  # mode 0600
    try:
        os.write(descriptor, data)
        yield path
    finally:
        os.close(descriptor)
        if not hasattr(os, "memfd_create"):
            os.unlink(path)


_Pem = tuple[bytes | None, bytes | None, bytes | None]
"""CA, client certificate and its key."""


def _identity_of(pem: _Pem) -> bytes:
    # Not `Secret.fingerprint`, which is short: no tenant may be able to make a file that collides with another's.
    return hashlib.sha256(b"".join(hashlib.sha256(part or b"").digest() for part in pem)).digest()


class TlsContexts:
    """The contexts in use, made when first needed. Bounded: the least recently used is dropped."""

    def __init__(self, ca_bundle: Path | None) -> None:
        self._bundle_path = ca_bundle
        self._bundle: bytes | None = None
        self._bundle_stat: tuple[int, int, int] | None = None
        self._look_again = 0.0
        self._of_identity: OrderedDict[bytes, TlsContext] = OrderedDict()
        self._common: TlsContext | TransportError | None = None
        """For the operator's proxy, and for endpoints that have no CA or certificate of their own: nearly all."""
        self._of_endpoint: WeakKeyDictionary[Endpoint, TlsContext | TransportError] = WeakKeyDictionary()
        self._making = asyncio.Lock()
        self._makes = SingleFlight[bytes, None]("TLS context")

    def __len__(self) -> int:
        return len(self._of_identity)

    def is_made(self, endpoint: Endpoint) -> bool:
        """Returns whether `of` doesn't have to make the endpoint's context."""
        if self._bundle_path is not None:
            self._refresh_bundle(self._bundle_path)
        if endpoint.ca is None and endpoint.certificate is None and endpoint.key is None:
            return self._common is not None
        if endpoint in self._of_endpoint:
            return True
        try:
            pem = self._pem_of(endpoint.ca, endpoint.certificate, endpoint.key)
        except TransportError:
            return False
        return _identity_of(pem) in self._of_identity

    async def prepare(self, endpoint: Endpoint, within_s: float) -> None:
        """Makes the endpoint's context in a thread, if it is new, so that `of` finds it.

        Loading the CAs takes some 50 ms. One is made at a time: after a change of the bundle all of them are new.

        Raises:
            TransportError: LOCAL, if it takes too long, or as `of`.
        """
        if self.is_made(endpoint):
            return
        pem = self._pem_of(endpoint.ca, endpoint.certificate, endpoint.key)
        identity = _identity_of(pem)
        task = self._makes.start(identity, lambda: self._make(identity, pem))
        await asyncio.wait({task}, timeout=within_s)
        if not task.done():
            message = f"the dispatcher's own machine failed: no TLS context within {within_s:.2g} s"
            raise TransportError(FailureReason.LOCAL, message)

    async def close(self) -> None:
        """Cancels what `prepare` has begun."""
        await self._makes.close()

    async def _make(self, identity: bytes, pem: _Pem) -> None:
        async with self._making:
            if identity not in self._of_identity:
                with contextlib.suppress(ValueError, OSError):  # `of` reports it
                    self._keep(identity, await asyncio.to_thread(new_context, *pem))

    def of(self, endpoint: Endpoint) -> TlsContext:
        """Returns the context for an endpoint's connections. Blocks the event loop if it is new; see `prepare`.

        Raises:
            TransportError: TLS, if the endpoint's CA or client certificate can't be used. LOCAL, if this machine or the
                operator's bundle fails; that is not remembered.
        """
        if self._bundle_path is not None:
            self._refresh_bundle(self._bundle_path)
        if endpoint.ca is None and endpoint.certificate is None and endpoint.key is None:
            context = self._for_all()
        elif endpoint in self._of_endpoint:
            context = self._of_endpoint[endpoint]
        else:
            context = self._of_endpoint[endpoint] = self._create_context(
                endpoint.ca, endpoint.certificate, endpoint.key
            )
        if isinstance(context, TransportError):
            raise TransportError(context.reason, context.detail)
        return context

    def of_operator(self) -> TlsContext:
        """Returns the context for the operator's own proxy: the bundle and no client certificate.

        Raises:
            TransportError: PROXY, if the bundle can't be used.
        """
        if self._bundle_path is not None:
            self._refresh_bundle(self._bundle_path)
        context = self._for_all()
        if isinstance(context, TransportError):
            raise TransportError(FailureReason.PROXY, context.detail)
        return context

    def _for_all(self) -> TlsContext | TransportError:
        if self._common is None:
            self._common = self._create_context(None, None, None)
        return self._common

    def _create_context(
        self, ca: Secret | None, certificate: Secret | None, key: Secret | None
    ) -> TlsContext | TransportError:
        try:
            pem = self._pem_of(ca, certificate, key)
            identity = _identity_of(pem)
            return self._keep(identity, self._of_identity.get(identity) or new_context(*pem))
        except ValueError as error:
            return TransportError(FailureReason.TLS, str(error))
        except OSError as error:
            raise local_failure(error) from error

    def _pem_of(self, ca: Secret | None, certificate: Secret | None, key: Secret | None) -> _Pem:
        authorities = self._bundle if ca is None else ca.reveal()
        if authorities is None and self._bundle_path is not None:
            # Never fall back to the system's CAs.
            raise TransportError(FailureReason.LOCAL, "the operator's CA bundle can't be read")
        return (
            authorities,
            None if certificate is None else certificate.reveal(),
            None if key is None else key.reveal(),
        )

    def _keep(self, identity: bytes, context: TlsContext) -> TlsContext:
        self._of_identity[identity] = context
        self._of_identity.move_to_end(identity)
        if len(self._of_identity) > MAX_CONTEXTS:
            self._of_identity.popitem(last=False)
        return context

    def _refresh_bundle(self, path: Path) -> None:
        now = time.monotonic()
        if now < self._look_again:
            return
        self._look_again = now + BUNDLE_CHECK_S
        try:
            found = path.stat()
            seen = (found.st_ino, found.st_mtime_ns, found.st_size)
            if seen == self._bundle_stat:
                return
            bundle = read_regular_file(path, MAX_BUNDLE_BYTES)
            new_context(bundle)
        except (OSError, ValueError) as error:
            log.warning("CA bundle can't be used, the last good one stays", why=describe(error))
            if self._bundle is None:
                self._look_again = now + FIRST_BUNDLE_CHECK_S
            return
        self._bundle_stat = seen
        if bundle != self._bundle:
            self._bundle = bundle
            self._common = None
            self._of_identity.clear()
            self._of_endpoint.clear()
