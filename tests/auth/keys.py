"""Keys and configurations for the tests of `dispatcher.auth`: made once a run, none of them real."""

import base64
from collections.abc import Mapping
from functools import cache
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from dispatcher.auth.problems import published_keys_of
from dispatcher.auth.public_keys import PrivateKey, PublicJwk, jwks_document
from dispatcher.config.secrets import Secret
from dispatcher.config.webhook_auth import FetchedToken, SignedToken
from dispatcher.config.webhooks import WebhookConfig

NOW = 1_750_000_000.0
URL = "https://hooks.luma.example/feedback"
TOKEN_URL = "https://login.luma.example/oauth/token"
WHSEC = "whsec_" + base64.b64encode(bytes(range(32))).decode()
OLD_WHSEC = "whsec_" + base64.b64encode(bytes(range(50, 74))).decode()
WHSK = "whsk_" + base64.b64encode(bytes(range(100, 132))).decode()

CURVES = {"P-256": ec.SECP256R1(), "P-384": ec.SECP384R1(), "P-521": ec.SECP521R1(), "secp256k1": ec.SECP256K1()}
FITTING = {
    **{f"HS{bits}": f"hmac {bits // 8}" for bits in (256, 384, 512)},
    **{f"{family}{bits}": "rsa 2048" for family in ("RS", "PS") for bits in (256, 384, 512)},
    "ES256": "P-256",
    "ES384": "P-384",
    "ES512": "P-521",
    "EdDSA": "Ed25519",
    "Ed25519": "Ed25519",
    "Ed448": "Ed448",
}
"""A key that fits, for each algorithm."""


@cache
def private_key(kind: str) -> PrivateKey:
    """A private key: `rsa 2048`, `P-256`, `Ed25519`."""
    if kind.startswith("rsa "):
        return rsa.generate_private_key(65537, int(kind[4:]))
    if kind == "Ed25519":
        return ed25519.Ed25519PrivateKey.generate()
    return ed448.Ed448PrivateKey.generate() if kind == "Ed448" else ec.generate_private_key(CURVES[kind])


def pem(kind: str, form: PrivateFormat = PrivateFormat.PKCS8) -> bytes:
    return private_key(kind).private_bytes(Encoding.PEM, form, NoEncryption())


def public_pem(kind: str, form: PublicFormat = PublicFormat.SubjectPublicKeyInfo) -> bytes:
    encoding = Encoding.OpenSSH if form is PublicFormat.OpenSSH else Encoding.PEM
    return private_key(kind).public_key().public_bytes(encoding, form)


def key_text(kind: str) -> bytes:
    """What the secret holds: `hmac 32` is a secret of 32 bytes, anything else a private key in PEM."""
    return bytes(range(33, 33 + int(kind[5:]))) if kind.startswith("hmac ") else pem(kind)


def signed(algorithm: str = "HS256", key: bytes | None = None, **more: object) -> SignedToken:
    """A token signed by `algorithm`, with a key that fits unless another is given."""
    secret = Secret(key_text(FITTING[algorithm]) if key is None else key)
    return SignedToken.model_validate({"algorithm": algorithm, "key": secret, **more})


def fetched(**more: object) -> FetchedToken:
    """A token fetched by client credentials, unless `more` changes that."""
    base: dict[str, object] = {"grant": "client-credentials", "token_url": TOKEN_URL}
    base |= {"client_id": "luma", "client_secret": Secret(b"client-secret")}
    return FetchedToken.model_validate({key: value for key, value in {**base, **more}.items() if value is not None})


def webhook(auth: Mapping[str, Any] | None = None, **more: object) -> WebhookConfig:
    """A webhook with this authentication."""
    base = {"name": "Luma", "org": "org", "sandbox": "prod", "url": URL, "auth": auth or {"type": "none"}}
    return WebhookConfig.model_validate({**base, **more})


def jwks_of(configs: list[WebhookConfig]) -> dict[str, list[PublicJwk]]:
    """The JWKS document of these webhooks' public keys, regardless of when they are withdrawn."""
    return jwks_document([key for config in configs for key, _ in published_keys_of(config)])
