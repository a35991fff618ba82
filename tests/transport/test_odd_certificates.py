"""Certificates of endpoints that OpenSSL accepts and Python can't decode."""

import ssl
from datetime import UTC, datetime
from ipaddress import IPv4Address
from pathlib import Path

import pytest
import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key
from cryptography.x509.oid import AuthorityInformationAccessOID, NameOID

from dispatcher.contract.outcomes import FailureReason
from dispatcher.transport import Transport
from dispatcher.transport.tls_sessions import TlsObject
from tests.transport.conftest import post_to, server_context
from tests.transport.servers import OK, answering
from tests.transport.servers import Endpoint as Server

ADDRESS = x509.IPAddress(IPv4Address("127.0.0.1"))
URI = x509.UniformResourceIdentifier("http://pki.example/MULL")
_ECDSA_WITH_SHA256 = bytes.fromhex("300a06082a8648ce3d040302")

EXTENSIONS: dict[str, x509.ExtensionType] = {
    "name": x509.SubjectAlternativeName([ADDRESS, x509.DNSName("MULL")]),
    "revocation list": x509.CRLDistributionPoints([x509.DistributionPoint([URI], None, None, None)]),
    "issuer": x509.AuthorityInformationAccess([x509.AccessDescription(AuthorityInformationAccessOID.CA_ISSUERS, URI)]),
}
"""An extension with a text that becomes Latin-1."""


def _der(tag: int, value: bytes) -> bytes:
    size = len(value).to_bytes(2)
    return bytes([tag, 0x82]) + size + value if len(value) > 127 else bytes([tag, len(value)]) + value


def odd_context(authority: trustme.CA, path: Path, kind: str) -> ssl.SSLContext:
    """Returns a server's context with a certificate of the authority that is changed before it is signed."""
    issuer = x509.load_pem_x509_certificate(authority.cert_pem.bytes())
    issuers = load_pem_private_key(authority.private_key_pem.bytes(), None)
    assert isinstance(issuers, ec.EllipticCurvePrivateKey)
    key, name = ec.generate_private_key(ec.SECP256R1()), x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "odd")])
    start, end = datetime(2020, 1, 1, tzinfo=UTC), datetime(2040, 1, 1, tzinfo=UTC)
    made = x509.CertificateBuilder(issuer.subject, name, key.public_key(), 1, start, end)
    if kind != "name":
        made = made.add_extension(x509.SubjectAlternativeName([ADDRESS]), critical=False)
    made = made.add_extension(EXTENSIONS[kind], critical=False)
    body = made.sign(issuers, hashes.SHA256()).tbs_certificate_bytes.replace(b"MULL", b"M\xfcll")
    signature = issuers.sign(body, ec.ECDSA(hashes.SHA256()))
    certificate = _der(0x30, body + _ECDSA_WITH_SHA256 + _der(3, b"\0" + signature))
    path.write_bytes(
        ssl.DER_cert_to_PEM_cert(certificate).encode()
        + key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(path)
    return context


@pytest.mark.parametrize("kind", EXTENSIONS)
async def test_a_certificate_that_python_can_t_decode_is_as_good_as_any(
    transport: Transport, authority: trustme.CA, tmp_path: Path, kind: str
) -> None:
    """A tenant chooses its endpoint's certificate and CA: an error in here would hold all tenants' partitions."""
    async with Server(answering(OK), odd_context(authority, tmp_path / "odd.pem", kind)).running() as server:
        attempt = await transport.post(post_to(f"https://127.0.0.1:{server.port}/"))
    assert (attempt.status, attempt.failure) == (200, None), attempt.detail


@pytest.mark.parametrize("error", [RuntimeError("odd"), TypeError("odd"), KeyError("odd"), AssertionError()], ids=repr)
async def test_a_bug_in_a_handshake_is_a_failed_attempt(
    transport: Transport, authority: trustme.CA, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The events of its tenant are parked. An exception would keep them, and then their partitions, unfinished."""

    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(TlsObject, "do_handshake", fail)
    async with Server(answering(OK), server_context(authority)).running() as server:
        attempt = await transport.post(post_to(f"https://127.0.0.1:{server.port}/"))
    assert (attempt.status, attempt.failure) == (None, FailureReason.TLS)
    assert attempt.detail == f"the TLS handshake failed: {type(error).__name__}"
