"""TLS contexts: 1.2 or newer, certificate and host name verified always; there is no switch for either.

A context belongs to an identity (which CA, which client certificate), not to a webhook: ten thousand tenants with
nothing special share one. It also keeps the sessions of hosts it has spoken to, so that a new connection resumes.
"""

import contextlib
import hashlib
import os
import ssl
import tempfile
import time
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from weakref import WeakKeyDictionary

import structlog

from dispatcher.config.secrets import Secret
from dispatcher.config.webhooks import ClientTls
from dispatcher.contract.outcomes import FailureReason
from dispatcher.transport.failures import TransportError, describe
from dispatcher.transport.request import Endpoint

MAX_CONTEXTS = 1024
MAX_SESSIONS = 1024
BUNDLE_CHECK_S = 10.0
"""How often the operator's CA bundle is looked at for a change."""

log = structlog.get_logger(__name__)


class TlsContext(ssl.SSLContext):
    """A context that offers the last session of a host again (RFC 8446, section 2.2; RFC 5077)."""

    sessions: OrderedDict[str, ssl.SSLSession]

    def wrap_bio(
        self,
        incoming: ssl.MemoryBIO,
        outgoing: ssl.MemoryBIO,
        server_side: bool = False,
        server_hostname: str | bytes | None = None,
        session: ssl.SSLSession | None = None,
    ) -> ssl.SSLObject:
        known = session or self.sessions.get(str(server_hostname))
        return super().wrap_bio(incoming, outgoing, server_side, server_hostname, known)


def remember_session(connection: ssl.SSLObject) -> None:
    """Keep a connection's session for the next one. With TLS 1.3 it has one only after bytes came from the server."""
    context, session, host = connection.context, connection.session, connection.server_hostname
    if not isinstance(context, TlsContext) or session is None or host is None:
        return
    context.sessions[host] = session
    context.sessions.move_to_end(host)
    if len(context.sessions) > MAX_SESSIONS:
        context.sessions.popitem(last=False)


def certificate_expiry(connection: ssl.SSLObject) -> float | None:
    """When the peer's certificate ends, in Unix time. Costly: not for every request."""
    certificate = connection.getpeercert()
    until = certificate.get("notAfter") if certificate else None
    return float(ssl.cert_time_to_seconds(until)) if isinstance(until, str) else None


_LOOK_AGAIN_S = 3600.0
_MOST_HOSTS = 10_000
_expiries: dict[str, tuple[float, float]] = {}
"""Of the process, as its metrics are: by host, when the certificate expires, and when that was looked at."""


def note_expiry(host: str, connection: ssl.SSLObject) -> None:
    """Remember when the host's certificate expires: at a new connection, and once an hour at most."""
    now = time.monotonic()
    _, seen = _expiries.get(host, (0.0, -_LOOK_AGAIN_S))
    if now - seen < _LOOK_AGAIN_S:
        return
    expires = certificate_expiry(connection)
    if expires is not None:
        _expiries.pop(host, None)
        _expiries[host] = (expires, now)
        if len(_expiries) > _MOST_HOSTS:
            del _expiries[next(iter(_expiries))]


def certificate_expiries() -> dict[str, float]:
    """When certificates expire, in Unix time, by host."""
    return {host: expires for host, (expires, _) in _expiries.items()}


def new_context(ca: bytes | None = None, certificate: bytes | None = None, key: bytes | None = None) -> TlsContext:
    """A client context from PEM; the system's CAs where none is given.

    Raises:
        ValueError: which of the three can't be used, and why.
    """
    context = TlsContext(ssl.PROTOCOL_TLS_CLIENT)  # verifies certificate and host name
    context.sessions = OrderedDict()
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.hostname_checks_common_name = False  # RFC 9525, section 6.3
    context.options |= ssl.OP_NO_RENEGOTIATION
    context.set_alpn_protocols(["http/1.1"])
    if ca is None:
        context.load_default_certs()
    else:
        _trust(context, ca)
    if certificate is not None and key is not None:
        _identify(context, certificate, key)
    return context


def problems_of_pem(tls: ClientTls) -> Iterator[tuple[str, str]]:
    """What is wrong with an endpoint's CA and client certificate, by key: `tls.ca`. Unresolved secrets are passed over.

    Opens no connection, and loads none of the system's CAs: it is asked of every webhook that is read.
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
        except ValueError as error:
            yield "tls.certificate", f"{error}: give both in PEM, the certificate of this very key first in its chain"


def _trust(context: ssl.SSLContext, ca: bytes) -> None:
    try:
        context.load_verify_locations(cadata=ca.decode("ascii"))
    except (ValueError, ssl.SSLError) as error:
        why = "not ASCII" if isinstance(error, UnicodeDecodeError) else describe(error)
        raise ValueError(f"the CA is not a bundle of certificates in PEM ({why})") from None


def _identify(context: ssl.SSLContext, certificate: bytes, key: bytes) -> None:
    try:
        with _as_file(certificate + b"\n" + key) as path:
            context.load_cert_chain(path, password=_no_password)
    except (ValueError, OSError) as error:
        raise ValueError(f"the client certificate and its key can't be used ({describe(error)})") from None


def _no_password() -> str:
    raise ValueError("the key is encrypted: give it without a passphrase")  # else OpenSSL would ask the terminal


@contextlib.contextmanager
def _as_file(data: bytes) -> Iterator[str]:
    """Bytes as a path, for `load_cert_chain`, which takes nothing else: in memory where the system can (Linux)."""
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


class TlsContexts:
    """The contexts in use, made when first needed. Bounded: the least recently used goes."""

    def __init__(self, ca_bundle: Path | None) -> None:
        self._bundle_path = ca_bundle
        self._bundle: bytes | None = None
        self._bundle_stat: tuple[int, int, int] | None = None
        self._look_again = 0.0
        self._of_identity: OrderedDict[bytes, TlsContext] = OrderedDict()
        self._common: TlsContext | TransportError | None = None
        """For the operator's proxy, and for endpoints that have no CA or certificate of their own: nearly all."""
        self._of_endpoint: WeakKeyDictionary[Endpoint, TlsContext | TransportError] = WeakKeyDictionary()

    def __len__(self) -> int:
        return len(self._of_identity)

    def of(self, endpoint: Endpoint) -> TlsContext:
        """The context for an endpoint's connections.

        Raises:
            Failed: TLS, where the endpoint's CA or client certificate can't be used.
        """
        if self._bundle_path is not None:
            self._refresh_bundle(self._bundle_path)
        if endpoint.ca is None and endpoint.certificate is None and endpoint.key is None:
            context = self._for_all()
        elif endpoint in self._of_endpoint:
            context = self._of_endpoint[endpoint]
        else:
            context = self._of_endpoint[endpoint] = self._made(endpoint.ca, endpoint.certificate, endpoint.key)
        if isinstance(context, TransportError):
            raise TransportError(context.reason, context.detail)
        return context

    def of_operator(self) -> TlsContext:
        """The context for the operator's own proxy: the bundle and no client certificate.

        Raises:
            Failed: PROXY, where the bundle can't be used.
        """
        if self._bundle_path is not None:
            self._refresh_bundle(self._bundle_path)
        context = self._for_all()
        if isinstance(context, TransportError):
            raise TransportError(FailureReason.PROXY, context.detail)
        return context

    def _for_all(self) -> TlsContext | TransportError:
        if self._common is None:
            self._common = self._made(None, None, None)
        return self._common

    def _made(self, ca: Secret | None, certificate: Secret | None, key: Secret | None) -> TlsContext | TransportError:
        try:
            return self._of_pem(ca, certificate, key)
        except ValueError as error:
            return TransportError(FailureReason.TLS, str(error))

    def _of_pem(self, ca: Secret | None, certificate: Secret | None, key: Secret | None) -> TlsContext:
        authorities = self._bundle if ca is None else ca.reveal()
        if authorities is None and self._bundle_path is not None:
            raise ValueError("the operator's CA bundle can't be read")  # never fall back to the system's CAs
        pem = (
            authorities,
            None if certificate is None else certificate.reveal(),
            None if key is None else key.reveal(),
        )
        # Not `Secret.fingerprint`, which is short: one tenant must not be able to make a file that meets another's.
        identity = hashlib.sha256(b"".join(hashlib.sha256(part or b"").digest() for part in pem)).digest()
        context = self._of_identity.get(identity)
        if context is None:
            context = self._of_identity[identity] = new_context(*pem)
            if len(self._of_identity) > MAX_CONTEXTS:
                self._of_identity.popitem(last=False)
        self._of_identity.move_to_end(identity)
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
            bundle = path.read_bytes()
            new_context(bundle)
        except (OSError, ValueError) as error:
            log.warning("CA bundle can't be used, the last good one stays", why=describe(error))
            return
        self._bundle_stat = seen
        if bundle != self._bundle:
            self._bundle = bundle
            self._common = None
            self._of_identity.clear()
            self._of_endpoint.clear()
