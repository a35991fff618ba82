"""What expires, in certificates as people have them."""

import ssl
from datetime import UTC, datetime

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from dispatcher.notifications.expiry import expiries_in
from dispatcher.transport.tls import new_context

END = datetime(2040, 1, 1, tzinfo=UTC)


def authority() -> bytes:
    """Returns a CA named MULL, in DER."""
    key, name = ec.generate_private_key(ec.SECP256R1()), x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "MULL")])
    made = x509.CertificateBuilder(name, name, key.public_key(), 1, datetime(2020, 1, 1, tzinfo=UTC), END)
    made = made.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    return made.sign(key, hashes.SHA256()).public_bytes(Encoding.DER)


@pytest.mark.parametrize(
    "subject",
    [b"\x14\x04M\xfcll", b"\x16\x04M\xfcll", b"\x03\x04\0\xff\xff\xff"],
    ids=["Latin-1 in a T61String", "Latin-1 in an IA5String", "a BIT STRING"],
)
def test_a_ca_whose_name_can_not_be_read_expires_like_any_other(subject: bytes) -> None:
    """OpenSSL trusts it, and one webhook's CA must not keep everybody's notifications from being planned."""
    pem = ssl.DER_cert_to_PEM_cert(authority().replace(b"\x0c\x04MULL", subject)).encode()
    new_context(pem)
    (found,) = expiries_in(pem, "CA")
    assert (found.name, found.at) == ("the CA", END.timestamp())


def test_a_certificate_of_an_unknown_version_is_passed_over() -> None:
    pem = ssl.DER_cert_to_PEM_cert(authority().replace(b"\xa0\x03\x02\x01\x02", b"\xa0\x03\x02\x01\x07")).encode()
    assert list(expiries_in(pem, "CA")) == []
