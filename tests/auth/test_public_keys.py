"""Public keys as receivers read them, checked with joserfc."""

import json

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from joserfc.jwk import KeySet, thumbprint

from dispatcher.auth.jwt_signer import JwtSigner
from dispatcher.auth.public_keys import public_jwk_of
from dispatcher.auth.public_keys import thumbprint as ours
from dispatcher.auth.signing_keys import load_key
from dispatcher.config.webhooks import WebhookConfig
from tests.auth.keys import NOW, URL, fetched, jwks_of, pem, signed, webhook
from tests.auth.test_jwt_signer import verified

ASYMMETRIC = ["RS256", "PS512", "ES256", "ES384", "ES512", "EdDSA", "Ed25519", "Ed448"]
PRIVATE_MEMBERS = {"d", "p", "q", "dp", "dq", "qi", "k"}


def jwt_webhook(algorithm: str, **more: object) -> WebhookConfig:
    return webhook({"type": "jwt", "sign": signed(algorithm, None, **more)})


@pytest.mark.parametrize("algorithm", ASYMMETRIC)
def test_the_default_kid_is_the_rfc_7638_thumbprint_in_jwk_and_token(algorithm: str) -> None:
    key = load_key(signed(algorithm))
    assert key.public_jwk is not None

    bare = {name: value for name, value in key.public_jwk.items() if name not in ("kid", "alg", "use")}
    assert key.kid == key.public_jwk["kid"] == thumbprint(bare) == key.description.fingerprint


def test_a_coordinate_that_begins_with_zeros_keeps_its_length() -> None:
    """RFC 7518, section 6.2.1.2; one key in 256 has such an x."""
    keys = (ec.generate_private_key(ec.SECP256R1()) for _ in range(20_000))
    key = next(key for key in keys if key.public_key().public_numbers().x < 1 << 248)

    jwk = public_jwk_of(key)

    assert (len(jwk["x"]), len(jwk["y"])) == (43, 43)
    assert thumbprint(dict(jwk)) == ours(jwk)


def test_a_configured_kid_is_kept() -> None:
    key = load_key(signed("ES256", kid="k1"))

    assert key.public_jwk is not None
    assert key.kid == key.public_jwk["kid"] == "k1"


@pytest.mark.parametrize("algorithm", ["HS256", "HS384", "HS512"])
def test_a_shared_secret_has_no_public_half(algorithm: str) -> None:
    assert load_key(signed(algorithm)).public_jwk is None
    assert load_key(signed(algorithm)).kid is None
    assert jwks_of([jwt_webhook(algorithm)]) == {"keys": []}


@pytest.mark.parametrize("algorithm", ASYMMETRIC)
def test_a_receiver_verifies_a_token_with_nothing_but_the_jwks_document(algorithm: str) -> None:
    others = [jwt_webhook(other) for other in ASYMMETRIC]
    document = json.loads(json.dumps(jwks_of(others)))

    token = JwtSigner(signed(algorithm), URL).token(NOW)

    assert verified(token, KeySet.import_key_set(document), algorithm)["aud"] == URL


def test_the_document_holds_each_public_key_once_and_nothing_private() -> None:
    assertion = {"type": "jwt", "fetch": fetched(grant="jwt-bearer", assertion=signed("EdDSA", kid="k2"))}
    configs = [jwt_webhook("ES256"), jwt_webhook("ES256"), webhook(assertion), webhook()]
    broken = webhook({"type": "jwt", "sign": signed("ES256", pem("P-384"))})

    keys = jwks_of([*configs, broken])["keys"]

    assert sorted(key["alg"] for key in keys) == ["ES256", "EdDSA"]
    assert jwks_of([*configs, broken][::-1])["keys"] == keys
    assert all(key["use"] == "sig" and not key.keys() & PRIVATE_MEMBERS for key in keys)
