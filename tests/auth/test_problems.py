"""What `dispatcher check` and the stores hear about authentication and signing."""

import pytest
from pydantic import ValidationError

from dispatcher.auth.problems import problems_of
from dispatcher.config.secrets import Secret
from dispatcher.config.webhooks import WebhookConfig
from tests.auth.keys import OLD_WHSEC, WHSEC, WHSK, fetched, key_text, pem, signed, webhook


def fingerprint(text: str) -> str:
    return Secret(text.encode()).fingerprint()


def ending(text: str) -> dict[str, object]:
    """Two signing secrets, and the end of one that may be another."""
    return {**signing(WHSEC, OLD_WHSEC), "ends": {fingerprint(text): "2026-12-01T12:00:00Z"}}


def signing(*secrets: str) -> dict[str, list[Secret]]:
    return {"secrets": [Secret(secret.encode()) for secret in secrets]}


@pytest.mark.parametrize(
    "config",
    [
        webhook(),
        webhook({"type": "jwt", "sign": signed("ES256")}, signing=signing(WHSEC, OLD_WHSEC, WHSK)),
        webhook(signing=ending(OLD_WHSEC)),
        webhook({"type": "jwt", "fetch": fetched()}),
        webhook({"type": "jwt", "fetch": fetched(grant="jwt-bearer", assertion=signed("EdDSA"))}),
    ],
)
def test_a_sound_configuration_has_no_problems(config: WebhookConfig) -> None:
    assert problems_of(config) == []


@pytest.mark.parametrize(
    ("config", "key", "said"),
    [
        (webhook({"type": "jwt", "sign": signed(key=b"weak")}), "auth.sign.key", "at least 32 bytes"),
        (webhook({"type": "jwt", "sign": signed(claims={"a": "x" * 5000})}), "auth.sign.claims", "shorten"),
        (
            webhook({"type": "jwt", "fetch": fetched(grant="jwt-bearer", assertion=signed("ES256", pem("P-384")))}),
            "auth.fetch.assertion.key",
            "curve P-256",
        ),
        (
            webhook({"type": "jwt", "fetch": fetched(grant="jwt-bearer", assertion=signed(body_hash=True))}),
            "auth.fetch.assertion.body_hash",
            "leave it out",
        ),
        (
            webhook({"type": "jwt", "fetch": fetched(assertion=signed())}),
            "auth.fetch.assertion",
            "belongs to grant jwt-bearer",
        ),
        (
            webhook({"type": "jwt", "fetch": fetched(grant="jwt-bearer", assertion=signed(), client_id=None)}),
            "auth.fetch.client_id",
            "give both or neither",
        ),
        (webhook(signing=signing(WHSEC, "whsec_AAAA")), "signing.secrets[1]", "24 to 64 bytes"),
        (webhook(signing=signing(WHSEC, WHSEC)), "signing.secrets[1]", "there already"),
        (webhook(signing=ending(WHSK)), f"signing.ends.{fingerprint(WHSK)}", "no signing secret has this fingerprint"),
        (webhook(signing=ending(WHSEC)), f"signing.ends.{fingerprint(WHSEC)}", "the first secret can't end"),
    ],
)
def test_each_mistake_is_named_with_its_place(config: WebhookConfig, key: str, said: str) -> None:
    ((place, message),) = problems_of(config)

    assert place == key
    assert said in message


def test_every_mistake_is_found_not_only_the_first() -> None:
    token = signed(key=b"weak", claims={"a": "x" * 5000})
    config = webhook({"type": "jwt", "sign": token}, signing=signing("a", "b"))

    places = [place for place, _ in problems_of(config)]

    assert places == ["auth.sign.claims", "auth.sign.key", "signing.secrets[0]", "signing.secrets[1]"]


def test_references_that_were_not_resolved_are_passed_over() -> None:
    absent = Secret(b"", {"file": "absent.pem"})
    token = {"algorithm": "ES256", "key": absent}

    config = webhook({"type": "jwt", "sign": token}, signing={"secrets": [absent, absent]})

    assert problems_of(config) == []


def test_the_token_that_is_signed_is_the_endpoints_or_the_assertion() -> None:
    assertion = webhook({"type": "jwt", "fetch": fetched(grant="jwt-bearer", assertion=signed("ES384"))})

    token = assertion.signed_token

    assert token is not None
    assert token.algorithm == "ES384"
    assert webhook().signed_token is None
    assert webhook({"type": "jwt", "fetch": fetched()}).signed_token is None


@pytest.mark.parametrize(
    ("following", "key", "message"),
    [
        ({"algorithm": "ES256", "key": "P-384"}, "auth.sign.next.key", "needs an EC private key on curve P-256"),
        ({"algorithm": "ES256", "key": "P-256"}, "auth.sign.next.key", "is the key that signs before it"),
        ({"algorithm": "ES384", "key": "P-384", "kid": "1"}, "auth.sign.next.kid", "can't tell them apart"),
        ({"algorithm": "ES384", "key": "P-384", "kid": "2"}, None, ""),
    ],
)
def test_the_next_key_has_to_differ_and_to_fit(following: dict[str, str], key: str | None, message: str) -> None:
    dated = following | {"key": Secret(key_text(following["key"])), "starts": "2026-12-01T12:00:00Z"}
    found = problems_of(webhook({"type": "jwt", "sign": signed("ES256", kid="1", next=dated)}))

    assert [place for place, _ in found] == ([] if key is None else [key])
    assert all(message in text for _, text in found)


def test_the_start_of_a_key_needs_a_zone() -> None:
    following = {"algorithm": "ES384", "key": Secret(key_text("P-384")), "starts": "2026-12-01T12:00:00"}
    with pytest.raises(ValidationError, match="timezone"):
        signed("ES256", next=following)
