"""Public keys in the form that receivers need: a JWK, its thumbprint, a JWKS document."""

import hashlib
from collections.abc import Iterable

import orjson
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from cryptography.hazmat.primitives.asymmetric.ed448 import Ed448PrivateKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey

from dispatcher.contract import base64url

PrivateKey = RSAPrivateKey | EllipticCurvePrivateKey | Ed25519PrivateKey | Ed448PrivateKey

PublicJwk = dict[str, str]
"""A JSON Web Key that holds nothing private (RFC 7517)."""

CURVES = {"secp256r1": "P-256", "secp384r1": "P-384", "secp521r1": "P-521"}
"""Curves of RFC 7518, section 6.2.1.1, by the name that `cryptography` gives them."""


def public_jwk_of(key: PrivateKey) -> PublicJwk:
    """Returns the JWK with only the members that define the public key (RFC 7518, section 6; RFC 8037, section 2)."""
    match key:
        case RSAPrivateKey():
            numbers = key.public_key().public_numbers()
            return {"kty": "RSA", "n": _integer(numbers.n), "e": _integer(numbers.e)}
        case EllipticCurvePrivateKey():
            point = key.public_key().public_numbers()
            size = (key.key_size + 7) // 8
            x, y = base64url.encode(point.x.to_bytes(size)), base64url.encode(point.y.to_bytes(size))
            return {"kty": "EC", "crv": CURVES[key.curve.name], "x": x, "y": y}
        case Ed25519PrivateKey():
            return {"kty": "OKP", "crv": "Ed25519", "x": base64url.encode(key.public_key().public_bytes_raw())}
        case Ed448PrivateKey():
            return {"kty": "OKP", "crv": "Ed448", "x": base64url.encode(key.public_key().public_bytes_raw())}


def thumbprint(jwk: PublicJwk) -> str:
    """Returns the SHA-256 thumbprint of a `public_jwk_of` result (RFC 7638, section 3): 43 characters of base64url."""
    return base64url.encode(hashlib.sha256(orjson.dumps(jwk, option=orjson.OPT_SORT_KEYS)).digest())


def jwks_document(keys: Iterable[PublicJwk]) -> dict[str, list[PublicJwk]]:
    """Returns the JWKS document of these keys (RFC 7517, section 5): each key once, in a stable order."""
    unique = {orjson.dumps(key, option=orjson.OPT_SORT_KEYS): key for key in keys}
    return {"keys": [unique[text] for text in sorted(unique)]}


def _integer(number: int) -> str:
    return base64url.encode(number.to_bytes((number.bit_length() + 7) // 8))
