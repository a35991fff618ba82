"""TLS servers that are set up wrongly, one row each: the request never leaves, and the message says what is wrong.

What the right set-ups do (client certificates, own CAs, rotation, resumption) is in tests/transport/test_tls.
"""

import datetime
import ssl
import warnings
from collections.abc import Callable
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from dispatcher.contract.outcomes import FailureReason
from dispatcher.transport import Transport
from tests.transport.conftest import Opener, post_to
from tests.transport.servers import OK, ConnectProxy, NameServer, answering
from tests.transport.servers import Endpoint as Server

NOW = datetime.datetime.now(datetime.UTC)
DAY = datetime.timedelta(days=1)
HOST = "127.0.0.1"


def serving(chain: bytes, key: bytes, directory: Path) -> ssl.SSLContext:
    """A server's context with this chain, however weak it is."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.set_ciphers("ALL:@SECLEVEL=0")
    (directory / "server.pem").write_bytes(chain + key)
    context.load_cert_chain(directory / "server.pem")
    return context


def of(leaf: trustme.LeafCert) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    leaf.configure_cert(context)
    return context


def speaking(authority: trustme.CA, version: ssl.TLSVersion) -> ssl.SSLContext:
    """A good certificate, and one old version only."""
    context = of(authority.issue_cert(HOST))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        context.minimum_version = context.maximum_version = version
    context.set_ciphers("ALL:@SECLEVEL=0")
    return context


def with_ciphers(authority: trustme.CA, ciphers: str) -> ssl.SSLContext:
    context = of(authority.issue_cert(HOST))
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(f"{ciphers}:@SECLEVEL=0")
    return context


def made(authority: trustme.CA, directory: Path, key: Any = None, **changes: Any) -> ssl.SSLContext:
    """A certificate of the trusted authority's with one thing wrong."""
    key = key or ec.generate_private_key(ec.SECP256R1())
    issuer = x509.load_pem_x509_certificate(authority.cert_pem.bytes())
    signer: Any = load_pem_private_key(authority.private_key_pem.bytes(), None)
    usage = changes.get("usage", ExtendedKeyUsageOID.SERVER_AUTH)
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, changes.get("common", HOST))]))
        .issuer_name(issuer.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(changes.get("since", NOW - DAY))
        .not_valid_after(changes.get("until", NOW + DAY))
        .add_extension(x509.ExtendedKeyUsage([usage]), critical=True)
    )
    if changes.get("names", True):
        address = x509.IPAddress(ip_address(HOST))
        builder = builder.add_extension(x509.SubjectAlternativeName([address]), critical=False)
    certificate = builder.sign(changes.get("signer", signer), hashes.SHA256())
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return serving(certificate.public_bytes(Encoding.PEM), pem, directory)


def self_signed(directory: Path) -> ssl.SSLContext:
    own = trustme.CA()
    return serving(own.cert_pem.bytes(), own.private_key_pem.bytes(), directory)


def without_intermediate(authority: trustme.CA, directory: Path) -> ssl.SSLContext:
    leaf = authority.create_child_ca().issue_cert(HOST)
    return serving(leaf.cert_chain_pems[0].bytes(), leaf.private_key_pem.bytes(), directory)


def from_a_leaf(authority: trustme.CA, directory: Path) -> ssl.SSLContext:
    """Issued by a certificate that isn't an authority's; any tenant of the authority has one (CVE-2014-1266 and kin)."""
    middle_key = ec.generate_private_key(ec.SECP256R1())
    middle = authority.issue_cert("hooks.example")
    issuer = x509.load_pem_x509_certificate(middle.cert_chain_pems[0].bytes())
    signer: Any = load_pem_private_key(middle.private_key_pem.bytes(), None)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, HOST)]))
        .issuer_name(issuer.subject)
        .public_key(middle_key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(NOW - DAY)
        .not_valid_after(NOW + DAY)
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address(HOST))]), critical=False)
        .sign(signer, hashes.SHA256())
    )
    chain = certificate.public_bytes(Encoding.PEM) + middle.cert_chain_pems[0].bytes()
    return serving(chain, middle_key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()), directory)


SetUp = Callable[[trustme.CA, Path], ssl.SSLContext]
REFUSED: dict[str, tuple[SetUp, str]] = {
    "expired": (lambda ca, to: made(ca, to, since=NOW - 3 * DAY, until=NOW - DAY), "certificate has expired"),
    "expired a minute ago": (
        lambda ca, to: made(ca, to, until=NOW - datetime.timedelta(minutes=1)),
        "certificate has expired",
    ),
    "not yet valid": (lambda ca, to: made(ca, to, since=NOW + DAY, until=NOW + 2 * DAY), "not yet valid"),
    "self-signed": (lambda _, to: self_signed(to), "self-signed certificate"),
    "of an unknown authority": (lambda *_: of(trustme.CA().issue_cert(HOST)), "unable to get local issuer"),
    "signed by another in the authority's name": (
        lambda ca, to: made(ca, to, signer=ec.generate_private_key(ec.SECP256R1())),
        "certificate signature failure|unable to get local issuer",
    ),
    "its intermediate is missing": (without_intermediate, "unable to get local issuer"),
    "issued by a non-authority": (from_a_leaf, "invalid CA certificate"),
    "for another host": (lambda ca, _: of(ca.issue_cert("hooks.example")), "not valid for '127.0.0.1'"),
    "for another address": (lambda ca, _: of(ca.issue_cert("127.0.0.2")), "not valid for '127.0.0.1'"),
    "for localhost": (lambda ca, _: of(ca.issue_cert("localhost")), "not valid for '127.0.0.1'"),
    "for a wildcard": (lambda ca, _: of(ca.issue_cert("*.example")), "not valid for '127.0.0.1'"),
    "the host in the common name only": (lambda ca, to: made(ca, to, names=False), "not valid for '127.0.0.1'"),
    "for clients": (lambda ca, to: made(ca, to, usage=ExtendedKeyUsageOID.CLIENT_AUTH), "unsuitable certificate purpose"),
    "an RSA key of 1,024 bits": (lambda ca, to: made(ca, to, rsa.generate_private_key(65537, 1024)), "key too small|key too weak"),
    "TLS 1.0 only": (lambda ca, _: speaking(ca, ssl.TLSVersion.TLSv1), "protocol version|during the TLS handshake"),
    "TLS 1.1 only": (lambda ca, _: speaking(ca, ssl.TLSVersion.TLSv1_1), "protocol version|during the TLS handshake"),
    "ciphers without authentication": (lambda ca, _: with_ciphers(ca, "aNULL"), "handshake failure|during the TLS"),
    "ciphers without encryption": (lambda ca, _: with_ciphers(ca, "eNULL"), "handshake failure|during the TLS"),
}  # fmt: skip
GOOD: dict[str, SetUp] = {
    "an ordinary certificate": lambda ca, to: made(ca, to),
    "an intermediate that is sent along": lambda ca, _: of(ca.create_child_ca().issue_cert(HOST)),
    "TLS 1.2 only": lambda ca, _: speaking(ca, ssl.TLSVersion.TLSv1_2),
    "TLS 1.3 only": lambda ca, _: speaking(ca, ssl.TLSVersion.TLSv1_3),
    "an RSA key of 2,048 bits": lambda ca, to: made(ca, to, rsa.generate_private_key(65537, 2048)),
}


@pytest.mark.parametrize("name", REFUSED)
async def test_a_server_that_is_set_up_wrongly_gets_no_request(
    transport: Transport, authority: trustme.CA, tmp_path: Path, name: str
) -> None:
    make, says = REFUSED[name]
    async with Server(answering(OK), make(authority, tmp_path)).running() as server:
        attempt = await transport.post(post_to(server.url))
        assert server.requests == []
    assert (attempt.failure, attempt.status) == (FailureReason.TLS, None)
    assert any(one in attempt.detail for one in says.split("|")), attempt.detail
    assert "\n" not in attempt.detail


@pytest.mark.parametrize("name", GOOD)
async def test_the_same_server_without_the_mistake_gets_it(
    transport: Transport, authority: trustme.CA, tmp_path: Path, name: str
) -> None:
    async with Server(answering(OK), GOOD[name](authority, tmp_path)).running() as server:
        attempt = await transport.post(post_to(server.url))
    assert (attempt.failure, attempt.status) == (None, 200), attempt.detail


async def test_a_name_in_the_common_name_only_does_not_count_as_a_host_name(
    opening: Opener, authority: trustme.CA, tmp_path: Path
) -> None:
    context = made(authority, tmp_path, names=False, common="hooks.example")
    async with NameServer().running() as dns, Server(answering(OK), context).running() as server:
        dns.zone["hooks.example"] = [["127.0.0.1"]]
        async with opening(nameservers=(dns.address,)) as client:
            attempt = await client.post(post_to(f"https://hooks.example:{server.port}/"))
        assert (attempt.failure, server.requests) == (FailureReason.TLS, [])
    assert "not valid for 'hooks.example'" in attempt.detail


async def test_a_refused_server_is_refused_behind_the_proxy_as_well(
    opening: Opener, authority: trustme.CA, tmp_path: Path
) -> None:

    async with (
        Server(ConnectProxy(), None).running() as proxy,
        opening(proxy=f"http://127.0.0.1:{proxy.port}") as client,
    ):
        for name, (make, says) in REFUSED.items():
            async with Server(answering(OK), make(authority, tmp_path)).running() as server:
                attempt = await client.post(post_to(server.url))
                assert (attempt.failure, server.requests) == (FailureReason.TLS, []), name
            assert any(one in attempt.detail for one in says.split("|")), (name, attempt.detail)
