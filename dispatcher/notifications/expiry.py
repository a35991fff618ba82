"""Finds what expires: certificates, secrets and keys of webhooks, and certificates of the operator's settings."""

import hashlib
from collections.abc import Iterable, Iterator
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final

import structlog

from dispatcher.config.secret_scope import read_regular_file
from dispatcher.config.settings import Settings
from dispatcher.config.webhooks import WebhookConfig
from dispatcher.notifications.news import Expiry

if TYPE_CHECKING:
    from cryptography import x509

MAX_BYTES: Final = 16 * 1024 * 1024
"""Bytes of one file that are read."""
MAX_CERTIFICATES: Final = 100
"""Certificates of one bundle that are looked at."""

log = structlog.get_logger(__name__)


def expiries_of_webhook(config: WebhookConfig) -> tuple[Expiry, ...]:
    """Returns the expiries of a webhook: client certificate, CA, dated signing secrets, and a key being replaced."""
    found: list[Expiry] = []
    for name, secret in (("client certificate", config.tls.certificate), ("CA", config.tls.ca)):
        if secret is not None:
            found += expiries_in(secret.reveal(), name)
    signing, token = config.signing, config.signed_token
    if signing is not None:
        found += [_dated("signing secret", one, one, end) for one, end in signing.ends.items()]
    if token is not None and token.next is not None:
        fingerprint = token.key.fingerprint()
        found.append(_dated("signing key", token.kid or fingerprint, fingerprint, token.next.starts))
    return tuple(found)


def _dated(kind: str, name: str, fingerprint: str, end: datetime) -> Expiry:
    return Expiry(f"the {kind} {name}", f"{fingerprint}-{end.timestamp():.0f}", end.timestamp(), is_rotation=True)


def expiries_of_settings(settings: Settings) -> tuple[Expiry, ...]:
    """Returns the certificates that the operator's settings name. Reads their files, so it blocks."""
    security = settings.kafka.security
    files: list[tuple[str, Path | None]] = [
        ("CA of Kafka", security.ca),
        ("CA bundle of the endpoints", settings.egress.ca_bundle),
    ]
    smtp = settings.notifications.smtp
    if smtp is not None:
        files.append(("CA of the mail server", smtp.ca))
    found: list[Expiry] = []
    for name, path in files:
        found += _latest(expiries_in(_read(path), name))
    found += expiries_in(_read(security.certificate), "client certificate for Kafka")
    return tuple(found)


def expiries_in(pem: bytes, name: str) -> Iterator[Expiry]:
    """Yields the expiry of each certificate in PEM; none if it can't be read, which the code that uses it reports."""
    if b"BEGIN CERTIFICATE" not in pem:
        return
    from cryptography import x509  # takes 7 MB
    from cryptography.hazmat.primitives.serialization import Encoding

    try:
        certificates = x509.load_pem_x509_certificates(pem)[:MAX_CERTIFICATES]
    except (ValueError, x509.InvalidVersion):
        return
    for certificate in certificates:
        subject = _subject_of(certificate)
        der = certificate.public_bytes(Encoding.DER)
        key = hashlib.blake2b(der, digest_size=8)
        end = certificate.not_valid_after_utc
        life = end - certificate.not_valid_before_utc
        text = f"the {name} ({subject})" if subject else f"the {name}"
        yield Expiry(text, key.hexdigest(), end.timestamp(), life_s=life.total_seconds())


def _subject_of(certificate: "x509.Certificate") -> str:
    """Returns at most 80 characters of a certificate's subject; empty if it can't be read.

    OpenSSL, which uses the certificate, does not read it: older CAs wrote `Müller` in Latin-1 into a T61String.
    """
    try:
        return certificate.subject.rfc4514_string()[:80]
    except (ValueError, TypeError):
        return ""


def _latest(expiries: Iterable[Expiry]) -> list[Expiry]:
    """Returns only the one that expires last, because in a public CA bundle some always expire soon."""
    return sorted(expiries, key=lambda one: one.at)[-1:]


def _read(path: Path | None) -> bytes:
    try:
        return b"" if path is None else read_regular_file(path, MAX_BYTES)
    except OSError as error:
        log.info("certificate can't be read for its expiry", path=str(path), error=type(error).__name__)
        return b""
