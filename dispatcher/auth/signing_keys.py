"""Loads the keys that sign tokens. Each is read once, and refused if it is of the wrong kind or too weak.

Every refusal says what was found (kind and length, never the key) and what to do.
"""

import re
from dataclasses import dataclass, field
from typing import Final

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, SECP384R1, SECP521R1, EllipticCurvePrivateKey
from cryptography.hazmat.primitives.asymmetric.ec import generate_private_key as generate_ec_key
from cryptography.hazmat.primitives.asymmetric.ed448 import Ed448PrivateKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key as generate_rsa_key
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key
from jwt.algorithms import Algorithm, get_default_algorithms
from jwt.exceptions import InvalidKeyError

from dispatcher.auth.public_keys import CURVES, PrivateKey, PublicJwk, public_jwk_of, thumbprint
from dispatcher.auth.rsa_check import is_sound
from dispatcher.config.webhook_auth import SignedToken, SigningAlgorithm

RSA_BITS: Final = range(2048, 4097)
"""Least: RFC 7518, section 3.3. Most: a signature takes 5 ms at 4,096 bits, in which every other tenant waits."""

HMAC_BYTES: Final = {SigningAlgorithm.HS256: 32, SigningAlgorithm.HS384: 48, SigningAlgorithm.HS512: 64}
"""Shortest secret of each algorithm: as long as its hash (RFC 7518, section 3.2)."""

CURVE_OF: Final = {
    SigningAlgorithm.ES256: "P-256",
    SigningAlgorithm.ES384: "P-384",
    SigningAlgorithm.ES512: "P-521",
}
"""The one curve of each ES algorithm (RFC 7518, section 3.4)."""

EDWARDS: Final = {
    SigningAlgorithm.EDDSA: ("Ed25519", "Ed448"),
    SigningAlgorithm.ED25519: ("Ed25519",),
    SigningAlgorithm.ED448: ("Ed448",),
}
"""Kinds of key: `EdDSA` takes either (RFC 8037), its successors say which (RFC 9864). The signature is the same."""

_CURVES: Final = {"P-256": SECP256R1(), "P-384": SECP384R1(), "P-521": SECP521R1()}
_ALGORITHMS = get_default_algorithms()
_ALGORITHMS |= {name.value: _ALGORITHMS["EdDSA"] for name in EDWARDS}
_PEM_LABEL = re.compile(rb"-----BEGIN ([A-Z0-9 ]{1,40})-----")
_SSH_PUBLIC = (b"ssh-", b"ecdsa-sha2-")


@dataclass(frozen=True, slots=True)
class KeyDescription:
    """Describes a key without revealing it."""

    kind: str
    """`HMAC secret`, `RSA`, `EC P-256`, `Ed25519` or `Ed448`."""
    bits: int
    """Length: of the secret, the modulus or the field."""
    fingerprint: str
    """Distinguishes keys: the public key's SHA-256 thumbprint (RFC 7638), 12 hexadecimal digits of an HMAC secret."""

    def __str__(self) -> str:
        return f"{self.kind}, {self.bits} bits, {self.fingerprint}"


@dataclass(frozen=True, slots=True, eq=False)
class SigningKey:
    """A key that fits its algorithm, ready to sign."""

    algorithm: SigningAlgorithm
    kid: str | None
    """The configured key id, else the thumbprint of a key that has a public half."""
    description: KeyDescription
    public_jwk: PublicJwk | None
    """The key in the JWKS document, with `kid`, `alg` and `use`; None for an HMAC secret."""
    _signer: Algorithm = field(repr=False)
    _key: PrivateKey | bytes = field(repr=False)

    def sign(self, message: bytes) -> bytes:
        """Returns the JWS signature of `message` (RFC 7518, section 3; RFC 8037, section 3.1)."""
        return self._signer.sign(message, self._key)


def load_key(token: SignedToken) -> SigningKey:
    """Loads the key of a token that we sign.

    Raises:
        ValueError: it doesn't fit the algorithm; the message says what was found and what to do.
    """
    if token.algorithm in HMAC_BYTES:
        return _hmac_key(token)
    key = _private_key(token.key.reveal(), token.algorithm)
    problem = _misfit(key, token.algorithm)
    if problem:
        raise ValueError(problem)
    bare = public_jwk_of(key)
    fingerprint = thumbprint(bare)
    kid = token.kid or fingerprint
    jwk = {**bare, "kid": kid, "alg": token.algorithm.value, "use": "sig"}
    kind, bits = _kind(key)
    description = KeyDescription(kind, bits, fingerprint)
    return SigningKey(token.algorithm, kid, description, jwk, _ALGORITHMS[token.algorithm], key)


def new_private_key(algorithm: SigningAlgorithm) -> bytes:
    """Generates a key for an algorithm, as PEM. An RSA key of 2,048 bits takes up to a second of the processor.

    Raises:
        ValueError: the algorithm signs with a shared secret, which the receiver needs too.
    """
    key: PrivateKey
    if algorithm in HMAC_BYTES:
        raise ValueError(f"{algorithm} signs with a secret that the receiver needs too: enter it in the form")
    if algorithm in CURVE_OF:
        key = generate_ec_key(_CURVES[CURVE_OF[algorithm]])
    elif algorithm in EDWARDS:
        key = Ed448PrivateKey.generate() if EDWARDS[algorithm] == ("Ed448",) else Ed25519PrivateKey.generate()
    else:
        key = generate_rsa_key(public_exponent=65537, key_size=RSA_BITS.start)
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def problem_of_key(token: SignedToken) -> str | None:
    """Returns why this token's key can't sign with its algorithm, or None if it can."""
    try:
        load_key(token)
    except ValueError as error:
        return str(error)
    return None


def _hmac_key(token: SignedToken) -> SigningKey:
    algorithm, secret = token.algorithm, token.key.reveal()
    least = HMAC_BYTES[algorithm]
    signer = _ALGORITHMS[algorithm]
    make = f"use {least} or more random bytes (openssl rand -base64 {least * 3 // 2})"
    if _PEM_LABEL.search(secret) or secret.startswith(_SSH_PUBLIC):
        raise ValueError(f"{algorithm} signs with a shared secret, this is {_kind_of_text(secret)}: {make}")
    if len(secret) < least:
        raise ValueError(f"{algorithm} needs a secret of at least {least} bytes, this one has {len(secret)}: {make}")
    try:
        prepared: bytes = signer.prepare_key(secret)
    except InvalidKeyError:
        raise ValueError(f"{algorithm} signs with a shared secret, this is a DER or JWK document: {make}") from None
    description = KeyDescription("HMAC secret", len(secret) * 8, token.key.fingerprint())
    return SigningKey(algorithm, token.kid, description, None, signer, prepared)


def _private_key(text: bytes, algorithm: SigningAlgorithm) -> PrivateKey:
    wanted = f"{algorithm} needs {_needed(algorithm)} as PEM"
    labels = [label for label in _PEM_LABEL.findall(text) if label.endswith(b"PRIVATE KEY")]
    if not labels:
        raise ValueError(f"{wanted}, this is {_kind_of_text(text)}: give the private key")
    if len(labels) > 1:
        raise ValueError(f"{wanted}, this holds {len(labels)} private keys: keep the one to sign with")
    if labels[0] == b"ENCRYPTED PRIVATE KEY" or b"Proc-Type: 4,ENCRYPTED" in text:
        raise ValueError(f"{wanted}, this one is encrypted: decrypt it with `openssl pkey -in key.pem -out plain.pem`")
    if labels[0] == b"OPENSSH PRIVATE KEY":
        raise ValueError(f"{wanted}, this one is in OpenSSH's own format: convert it with `ssh-keygen -p -m PKCS8`")
    block = pem_block(text, labels[0])
    if block is None:
        raise ValueError(f"{wanted}, this one has no END line: copy the whole file")
    try:
        # Not validated in here: that takes 0.04 s to seconds with everything held up; `is_sound` does it instead.
        key = load_pem_private_key(block + b"\n", None, unsafe_skip_rsa_key_validation=True)
    except (ValueError, TypeError, UnsupportedAlgorithm):  # the cause may quote the key
        raise ValueError(f"{wanted}, this one is damaged or of an unknown kind: export it once more") from None
    if isinstance(key, RSAPrivateKey | EllipticCurvePrivateKey | Ed25519PrivateKey | Ed448PrivateKey):
        return key
    kind = type(key).__name__.removesuffix("PrivateKey")
    raise ValueError(f"{wanted}, this is a key of kind {kind}: make one with {_command(algorithm)}")


def pem_block(text: bytes, label: bytes) -> bytes | None:
    """Returns the first PEM block with this label, or None if there is none or its END line is missing.

    Reads the text once. A regular expression would read the rest of it again for every BEGIN line without an END
    line, and tenants write this text.
    """
    begin, end = b"-----BEGIN %b-----" % label, b"-----END %b-----" % label
    start = text.find(begin)
    last = text.find(end, start + len(begin))
    return None if start < 0 or last < 0 else text[start : last + len(end)]


def _misfit(key: PrivateKey, algorithm: SigningAlgorithm) -> str | None:
    kind, bits = _kind(key)
    if _takes(algorithm, kind) and (kind != "RSA" or bits in RSA_BITS):
        damaged = isinstance(key, RSAPrivateKey) and not is_sound(key)
        return "this RSA key is damaged, its numbers don't belong together: export it once more" if damaged else None
    others = [name.value for name in SigningAlgorithm if _takes(name, kind)]
    instead = f", or choose {' or '.join(others)}" if others and algorithm.value not in others else ""
    found = f"this is a key of kind {kind} with {bits} bits"
    return f"{algorithm} needs {_needed(algorithm)}, {found}: make one with {_command(algorithm)}{instead}"


def _takes(algorithm: SigningAlgorithm, kind: str) -> bool:
    if algorithm in HMAC_BYTES:
        return False
    if algorithm in CURVE_OF:
        return kind == f"EC {CURVE_OF[algorithm]}"
    if algorithm in EDWARDS:
        return kind in EDWARDS[algorithm]
    return kind == "RSA"


def _kind(key: PrivateKey) -> tuple[str, int]:
    match key:
        case RSAPrivateKey():
            return "RSA", key.key_size
        case EllipticCurvePrivateKey():
            return f"EC {CURVES.get(key.curve.name, key.curve.name)}", key.key_size
        case Ed25519PrivateKey():
            return "Ed25519", 256
        case Ed448PrivateKey():
            return "Ed448", 456


def _needed(algorithm: SigningAlgorithm) -> str:
    if algorithm in CURVE_OF:
        return f"an EC private key on curve {CURVE_OF[algorithm]}"
    if algorithm in EDWARDS:
        return f"an {' or '.join(EDWARDS[algorithm])} private key"
    return f"an RSA private key of {RSA_BITS.start:,} to {RSA_BITS.stop - 1:,} bits"


def _command(algorithm: SigningAlgorithm) -> str:
    if algorithm in CURVE_OF:
        return f"`openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:{CURVE_OF[algorithm]}`"
    if algorithm in EDWARDS:
        return f"`openssl genpkey -algorithm {EDWARDS[algorithm][0].upper()}`"
    return "`openssl genpkey -algorithm RSA -pkeyopt rsa_keygen_bits:2048`"


def _kind_of_text(text: bytes) -> str:
    """Describes by its beginning a text that was expected to be a key. Never quotes it."""
    label = _PEM_LABEL.search(text)
    if label is not None:
        name = label[1].decode()
        if name.endswith("PUBLIC KEY"):
            return "a public key"
        return "a private key" if name.endswith("PRIVATE KEY") else f"a PEM document ({name.lower()})"
    if text.startswith(_SSH_PUBLIC):
        return "a public key in OpenSSH's format"
    if text.lstrip().startswith(b"{"):
        return "a JSON document (a JWK?)"
    if text.startswith(b"\x30"):
        return "binary (DER?)"
    return f"{len(text)} bytes that aren't PEM"
