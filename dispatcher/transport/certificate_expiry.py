"""Remembers when the certificates of the servers that were connected to expire."""

import math
import ssl
import time

from dispatcher.transport.tls_sessions import HostAndPort, TlsObject


def certificate_expiry(connection: TlsObject) -> float | None:
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


def note_expiry(place: HostAndPort, connection: TlsObject) -> None:
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
