"""Which keys are taken and which are refused, and that a refusal says what was found and what to do."""

import base64
from collections.abc import Iterable
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa, x25519
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from dispatcher.auth.signing_keys import load_key, pem_block, problem_of_key
from dispatcher.config.webhook_auth import SigningAlgorithm
from tests.auth.keys import FITTING, key_text, pem, private_key, public_pem, signed

KINDS = ["hmac 31", "hmac 32", "hmac 47", "hmac 48", "hmac 63", "hmac 64", "hmac 200"]
KINDS += ["rsa 1024", "rsa 2048", "rsa 3072", "P-256", "P-384", "P-521", "secp256k1", "Ed25519", "Ed448"]


def fits(algorithm: str, kind: str) -> bool:
    """RFC 7518, section 3, RFC 8037, section 3.1 and RFC 9864, once more and in other words."""
    match algorithm[:2]:
        case "HS":
            return kind.startswith("hmac") and int(kind[5:]) * 8 >= int(algorithm[2:])
        case "RS" | "PS":
            return kind in ("rsa 2048", "rsa 3072")
        case "ES":
            return kind == {"ES256": "P-256", "ES384": "P-384", "ES512": "P-521"}[algorithm]
    return kind in ("Ed25519", "Ed448") if algorithm == "EdDSA" else kind == algorithm  # RFC 9864, section 2.2


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("algorithm", [algorithm.value for algorithm in SigningAlgorithm])
def test_a_key_is_taken_only_by_the_algorithms_it_fits(algorithm: str, kind: str) -> None:
    problem = problem_of_key(signed(algorithm, key_text(kind)))

    assert (problem is None) == fits(algorithm, kind)
    if problem is not None:
        assert algorithm in problem
        assert ":" in problem, "says what to do"


@pytest.mark.parametrize(
    ("algorithm", "key", "said"),
    [
        ("HS256", b"too short", "at least 32 bytes, this one has 9"),
        ("HS512", b"x" * 63, "at least 64 bytes, this one has 63"),
        ("HS256", pem("P-256"), "this is a private key"),
        ("HS256", public_pem("rsa 2048"), "this is a public key"),
        ("HS256", public_pem("rsa 2048", PublicFormat.OpenSSH), "a public key in OpenSSH's format"),
        ("HS256", b'{"kty":"oct","k":"c2VjcmV0c2VjcmV0c2VjcmV0c2VjcmV0"}', "DER or JWK"),
        ("RS256", pem("rsa 1024"), "a key of kind RSA with 1024 bits"),
        ("RS256", pem("P-256"), "a key of kind EC P-256 with 256 bits"),
        ("ES256", pem("P-384"), "or choose ES384"),
        ("ES256", pem("secp256k1"), "a key of kind EC secp256k1"),
        ("ES256", pem("rsa 2048"), "or choose RS256 or RS384"),
        ("EdDSA", pem("P-256"), "an Ed25519 or Ed448 private key"),
        ("Ed25519", pem("Ed448"), "or choose EdDSA or Ed448"),
        ("Ed448", pem("P-256"), "`openssl genpkey -algorithm ED448`"),
        ("ES256", public_pem("P-256"), "this is a public key: give the private key"),
        ("ES256", public_pem("P-256", PublicFormat.OpenSSH), "a public key in OpenSSH's format"),
        ("ES256", b"-----BEGIN CERTIFICATE-----\nAA==\n-----END CERTIFICATE-----", "(certificate): give the private"),
        ("ES256", b'{"kty":"EC","crv":"P-256","d":"AA"}', "a JSON document (a JWK?)"),
        ("ES256", b"\x30\x81\x87", "binary (DER?)"),
        ("ES256", b"hunter2", "7 bytes that aren't PEM"),
        ("ES256", pem("P-256") + pem("P-256"), "holds 2 private keys"),
        ("ES256", pem("P-256", PrivateFormat.OpenSSH), "ssh-keygen -p -m PKCS8"),
        ("ES256", pem("P-256").replace(b"-----END PRIVATE KEY-----", b""), "no END line"),
        ("ES256", b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----", "damaged"),
    ],
)
def test_a_refusal_names_what_was_found_and_never_quotes_it(algorithm: str, key: bytes, said: str) -> None:
    problem = problem_of_key(signed(algorithm, key)) or ""

    assert said in problem
    for line in key.splitlines():
        assert line.startswith(b"-----") or len(line) < 8 or line.decode("latin-1") not in problem


@pytest.mark.parametrize("form", [PrivateFormat.PKCS8, PrivateFormat.TraditionalOpenSSL])
def test_an_encrypted_key_is_refused_as_such(form: PrivateFormat) -> None:
    text = private_key("P-256").private_bytes(Encoding.PEM, form, BestAvailableEncryption(b"passphrase"))

    assert "is encrypted: decrypt it" in (problem_of_key(signed("ES256", text)) or "")


def test_a_key_of_a_kind_that_signs_nothing_is_named() -> None:
    text = x25519.X25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())

    assert "a key of kind X25519" in (problem_of_key(signed("EdDSA", text)) or "")


@pytest.mark.parametrize("text", [pem("P-256", PrivateFormat.TraditionalOpenSSL), public_pem("P-256") + pem("P-256")])
def test_other_ways_to_write_a_private_key_are_read(text: bytes) -> None:
    parameters = b"-----BEGIN EC PARAMETERS-----\nBggqhkjOPQMBBw==\n-----END EC PARAMETERS-----\n"

    assert problem_of_key(signed("ES256", text)) is None
    assert problem_of_key(signed("ES256", parameters + text)) is None
    assert problem_of_key(signed("ES256", text.replace(b"\n", b"\r\n"))) is None


def pkcs1(numbers: Iterable[int]) -> bytes:
    """An RSA private key of these numbers in PEM (RFC 8017, appendix A.1.2), whether they fit or not."""

    def element(tag: int, content: bytes) -> bytes:
        size = len(content)
        length = bytes([size]) if size < 128 else bytes([0x81, size]) if size < 256 else b"\x82" + size.to_bytes(2)
        return bytes([tag]) + length + content

    integers = (element(2, number.to_bytes(number.bit_length() // 8 + 1)) for number in [0, *numbers])
    lines = base64.encodebytes(element(0x30, b"".join(integers)))
    return b"-----BEGIN RSA PRIVATE KEY-----\n" + lines + b"-----END RSA PRIVATE KEY-----\n"


@pytest.mark.parametrize("change", [-1, 1, 2, 1 << 64, None])
@pytest.mark.parametrize("part", ["n", "e", "d", "p", "q", "dmp1", "dmq1", "iqmp"])
def test_an_rsa_key_whose_numbers_do_not_belong_together_is_refused(part: str, change: int | None) -> None:
    key = private_key("rsa 2048")
    assert isinstance(key, rsa.RSAPrivateKey)
    whole, public = key.private_numbers(), key.public_key().public_numbers()
    numbers = {"n": public.n, "e": public.e, "d": whole.d, "p": whole.p, "q": whole.q}
    numbers |= {"dmp1": whole.dmp1, "dmq1": whole.dmq1, "iqmp": whole.iqmp}
    assert problem_of_key(signed("PS256", pkcs1(numbers.values()))) is None

    numbers[part] = 0 if change is None else numbers[part] + change

    assert problem_of_key(signed("PS256", pkcs1(numbers.values())))


def test_a_key_too_long_to_sign_quickly_is_refused() -> None:
    assert "2,048 to 4,096 bits" in (problem_of_key(signed("RS256", pem("rsa 4608"))) or "")


@pytest.mark.parametrize(
    ("algorithm", "kind", "bits"),
    [("HS256", "HMAC secret", 256), ("PS384", "RSA", 2048), ("ES512", "EC P-521", 521), ("EdDSA", "Ed25519", 256)],
)
def test_a_description_gives_kind_length_and_fingerprint(algorithm: str, kind: str, bits: int) -> None:
    description = load_key(signed(algorithm)).description

    assert (description.kind, description.bits) == (kind, bits)
    assert str(description) == f"{kind}, {bits} bits, {description.fingerprint}"
    assert description == load_key(signed(algorithm)).description
    assert len(description.fingerprint) == (12 if kind == "HMAC secret" else 43)


def test_every_algorithm_has_a_key_here() -> None:
    assert FITTING.keys() == {algorithm.value for algorithm in SigningAlgorithm}


class CountingText(bytes):
    """Bytes that count how many of them `find` may look at."""

    read = 0

    def find(self, sub: Any, start: Any = 0, end: Any = None) -> int:
        found = super().find(sub, start)
        self.read += (len(self) if found < 0 else found) - start
        return found


@pytest.mark.parametrize("line", [b"-----BEGIN PRIVATE KEY-----", b"-----BEGIN A-----\n-----END B-----\n", b"-"])
def test_a_pem_block_is_found_in_one_reading(line: bytes) -> None:
    text = CountingText(line * (64 * 1024 // len(line)))

    assert pem_block(text, b"PRIVATE KEY") is None
    assert 0 < text.read <= 2 * len(text)


def test_a_pem_block_is_cut_out_of_what_surrounds_it() -> None:
    key, other = pem("Ed25519"), b"-----BEGIN CERTIFICATE-----\nAA==\n-----END CERTIFICATE-----\n"

    assert pem_block(other + key + other, b"PRIVATE KEY") == key.rstrip()
    assert problem_of_key(signed("EdDSA", other + key + other)) is None
