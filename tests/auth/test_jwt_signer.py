"""Tokens that we sign, read back by two libraries that had no part in making them."""

import base64
import hashlib
import warnings
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from hypothesis import given
from hypothesis import strategies as st
from joserfc import jwt as joserfc_jwt
from joserfc.errors import SecurityWarning
from joserfc.jwk import ECKey, Key, KeySet, OctKey, OKPKey, RSAKey
from pydantic import ValidationError

from dispatcher.auth.jwt_signer import JwtSigner, problem_of_claims, renew_margin
from dispatcher.config.webhook_auth import SignedToken, SigningAlgorithm
from tests.auth.keys import FITTING, NOW, URL, key_text, pem, signed

ALGORITHMS = [algorithm.value for algorithm in SigningAlgorithm]
AUDIENCE = "https://hooks.luma.example"


def joserfc_key(algorithm: str) -> Key:
    """The verifying key in joserfc, from the same text."""
    text = key_text(FITTING[algorithm])
    if algorithm.startswith("HS"):
        return OctKey.import_key(text)
    if algorithm.startswith("ES"):
        return ECKey.import_key(text)
    return OKPKey.import_key(text) if algorithm.startswith("Ed") else RSAKey.import_key(text)


def verified(token: str, key: Key | KeySet, algorithm: str) -> dict[str, Any]:
    """The claims, after joserfc found the signature right."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SecurityWarning)  # RFC 9864 would rather see Ed25519 than EdDSA
        return joserfc_jwt.decode(token, key, algorithms=[algorithm]).claims


def claims_of(token: str) -> dict[str, Any]:
    claims: dict[str, Any] = jwt.decode(token, options={"verify_signature": False})
    return claims


def by_another_library(token: str, algorithm: str) -> dict[str, Any]:
    """The claims, after PyJWT found the signature right; cryptography itself for the names that PyJWT doesn't know."""
    text = key_text(FITTING[algorithm])
    if algorithm in ("Ed25519", "Ed448"):
        message, _, signature = token.rpartition(".")
        public: Any = load_pem_private_key(text, None).public_key()
        public.verify(base64.urlsafe_b64decode(signature + "=="), message.encode())
        return claims_of(token)
    return jwt.decode(
        token,
        text if algorithm.startswith("HS") else load_pem_private_key(text, None).public_key(),  # type: ignore[arg-type]
        algorithms=[algorithm],
        audience=AUDIENCE,
        options={"verify_exp": False, "verify_iat": False},
    )


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_token_of_each_algorithm_is_verified_by_two_libraries(algorithm: str) -> None:
    token = JwtSigner(signed(algorithm, kid="k1", subject="luma", claims={"tenant": "luma"}), AUDIENCE).token(NOW)

    found = by_another_library(token, algorithm)
    assert verified(token, joserfc_key(algorithm), algorithm) == found
    assert found == {
        "iss": "feedback-dispatcher",
        "sub": "luma",
        "aud": AUDIENCE,
        "iat": NOW - 10,
        "exp": NOW + 290,
        "tenant": "luma",
    }
    assert jwt.get_unverified_header(token) == {"alg": algorithm, "kid": "k1", "typ": "JWT"}


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_manipulated_token_fails_verification(algorithm: str) -> None:
    header, claims, signature = JwtSigner(signed(algorithm), AUDIENCE).token(NOW).split(".")
    flipped = ("B" if signature[0] == "A" else "A") + signature[1:]

    with pytest.raises(Exception, match="bad_signature"):
        verified(f"{header}.{claims}.{flipped}", joserfc_key(algorithm), algorithm)


def test_ed448_signs_too() -> None:
    token = JwtSigner(signed("EdDSA", pem("Ed448")), AUDIENCE).token(NOW)

    assert verified(token, OKPKey.import_key(pem("Ed448")), "EdDSA")["aud"] == AUDIENCE


@pytest.mark.parametrize(
    "name", ["none", "None", "NONE", "", "HS1", "RS1", "ES256K", "HS256 ", "hs256", "dir", "RSA-OAEP"]
)
def test_algorithm_none_and_its_like_do_not_exist(name: str) -> None:
    with pytest.raises(ValidationError):
        signed(name, b"x" * 64)


@pytest.mark.parametrize("algorithm", ["HS256", "ES256", "PS256"])
def test_optional_members_are_left_out_rather_than_null(algorithm: str) -> None:
    token = JwtSigner(signed(algorithm), AUDIENCE).token(NOW)

    assert claims_of(token).keys() == {"iss", "aud", "iat", "exp"}
    assert jwt.get_unverified_header(token).keys() == {"alg", "typ"} | ({"kid"} if algorithm != "HS256" else set())


def test_configured_claims_override_the_defaults() -> None:
    token = JwtSigner(signed(audience="a", subject="s", issuer="i"), AUDIENCE, "assumed").token(NOW)

    assert {name: claims_of(token)[name] for name in ("aud", "sub", "iss")} == {"aud": "a", "sub": "s", "iss": "i"}


@given(
    ttl=st.floats(10, 300),
    times=st.lists(st.floats(1_700_000_000, 1_700_001_000), min_size=1, max_size=30),
)
def test_a_token_is_valid_whenever_it_is_given_out_even_if_the_clock_jumps(ttl: float, times: list[float]) -> None:
    signer = JwtSigner(signed(ttl=ttl), AUDIENCE)
    for now in times:
        claims = claims_of(signer.token(now))
        assert claims["iat"] <= now, "never from the future"
        assert claims["exp"] - claims["iat"] == int(ttl)
        assert claims["exp"] - now >= renew_margin(int(ttl)), "time enough to arrive"


def test_a_token_is_kept_until_it_is_due_for_renewal() -> None:
    signer = JwtSigner(signed(), AUDIENCE)
    first = signer.token(NOW)

    assert signer.token(NOW + 229) is first
    assert signer.token(NOW + 231) is not first
    assert claims_of(signer.token(NOW + 231))["exp"] == NOW + 231 + 290


def test_a_clock_that_was_set_back_makes_a_new_token() -> None:
    signer = JwtSigner(signed(), AUDIENCE)
    signer.token(NOW)

    assert claims_of(signer.token(NOW - 3600))["iat"] == NOW - 3600 - 10


@pytest.mark.parametrize(("life_s", "margin_s"), [(10, 5), (60, 30), (100, 30), (300, 60), (3600, 720), (1, 0.5)])
def test_a_token_is_renewed_a_fifth_of_its_life_or_30_s_before_its_end(life_s: float, margin_s: float) -> None:
    assert renew_margin(life_s) == margin_s


def test_a_token_for_one_request_names_it_and_covers_its_body() -> None:
    signer = JwtSigner(signed("ES256", body_hash=True), AUDIENCE)
    body = b'{"requestId": "r"}'

    claims = verified(signer.token_for(NOW, "msg_1", body), joserfc_key("ES256"), "ES256")

    digest = base64.urlsafe_b64encode(hashlib.sha256(body).digest()).decode().rstrip("=")
    assert (claims["jti"], claims["body_sha256"]) == ("msg_1", digest)
    assert claims_of(signer.token_for(NOW, "msg_2", body))["jti"] == "msg_2"


@pytest.mark.parametrize(
    "claims",
    [{"a": float("nan")}, {"a": [1, {"b": float("inf")}]}, {"a": 2**64}, {"a": "\ud800"}, {"a": "x" * 4096}],
)
def test_claims_that_are_not_json_or_too_long_are_refused(claims: dict[str, Any]) -> None:
    assert ":" in (problem_of_claims(claims) or "")
    token = signed()
    with pytest.raises(ValueError, match=r"^claims: "):
        JwtSigner(token.model_copy(update={"claims": claims}), AUDIENCE)


def test_claims_travel_as_they_were_written() -> None:
    claims = {"roles": ["a", "b"], "nested": {"n": 1.5, "none": None}, "Ünïcode": "☂", "big": 2**63, "flag": True}

    token = JwtSigner(signed(claims=claims), AUDIENCE).token(NOW)

    assert {name: claims_of(token)[name] for name in claims} == claims


def test_a_signer_shows_its_kind_and_not_its_key() -> None:
    token: SignedToken = signed("HS256", b"canary-" * 8)

    assert "HS256, HMAC secret, 448 bits" in repr(JwtSigner(token, URL))
    assert "canary" not in repr(JwtSigner(token, URL)) + repr(JwtSigner(token, URL).key)


def test_nbf_is_the_time_of_issue() -> None:
    claims = claims_of(JwtSigner(signed(nbf=True), AUDIENCE).token(NOW))

    assert claims["nbf"] == claims["iat"] <= NOW
    assert "nbf" not in claims_of(JwtSigner(signed(), AUDIENCE).token(NOW))


def test_a_jti_is_different_in_each_token_and_covers_no_body() -> None:
    signer = JwtSigner(signed(jti=True), AUDIENCE)

    claims = [claims_of(signer.token_for(NOW, "evt_1", b"body")) for _ in range(5)]

    assert len({one["jti"] for one in claims}) == 5
    assert all("body_sha256" not in one for one in claims)


def test_a_jti_with_a_body_hash_is_the_webhook_id() -> None:
    signer = JwtSigner(signed(jti=True, body_hash=True), AUDIENCE)

    claims = claims_of(signer.token_for(NOW, "evt_1", b"body"))

    assert (claims["jti"], claims["body_sha256"] != "") == ("evt_1", True)


def test_an_audience_may_be_a_list() -> None:
    audiences = ["https://a.example", AUDIENCE]
    token = JwtSigner(signed(audience=audiences), "unused").token(NOW)

    assert claims_of(token)["aud"] == audiences
    assert by_another_library(token, "HS256")["aud"] == audiences


@pytest.mark.parametrize("audience", [[], ["a"] * 11, ["x" * 201], [1], ""])
def test_an_audience_that_can_not_be_one_is_refused(audience: object) -> None:
    with pytest.raises(ValidationError):
        signed(audience=audience)


@pytest.mark.parametrize("algorithm", ["ES256", "EdDSA", "HS256"])
def test_the_next_key_signs_from_its_start_whatever_token_is_kept(algorithm: str) -> None:
    following = {"algorithm": "ES384", "key": {"value": ""}, "starts": NOW + 60}
    following["key"] = signed("ES384").key  # type: ignore[assignment]
    signer = JwtSigner(signed(algorithm, next=following | {"kid": "2"}), AUDIENCE)

    before = [signer.token(NOW + at) for at in (0, 59.9)] + [signer.token_for(NOW + 59, "m", b""), signer.assertion(NOW + 59, "a")]  # fmt: skip
    after = [signer.token(NOW + 60), signer.token_for(NOW + 60, "m", b""), signer.assertion(NOW + 61, "a")]

    assert {jwt.get_unverified_header(one)["alg"] for one in before} == {algorithm}
    assert {tuple(jwt.get_unverified_header(one).items()) for one in after} == {
        (("alg", "ES384"), ("kid", "2"), ("typ", "JWT"))
    }
    assert verified(after[0], joserfc_key("ES384"), "ES384")["exp"] > NOW + 60
    assert signer.token(NOW + 61) is after[0]
