"""Standard Webhooks signatures, verified by the packages that receivers use: standardwebhooks and svix."""

import base64
import datetime
import time

import pytest
import standardwebhooks
import svix.webhooks
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from dispatcher.auth.signatures import Signer, problem_of_signing, public_key_of
from dispatcher.config.secrets import Secret
from dispatcher.config.webhooks import Signing
from tests.auth.keys import OLD_WHSEC, WHSEC, WHSK

BODY = '{"requestId":"r","channel":"email","naïve":"☂"}'


def signer(*secrets: str) -> Signer:
    made = Signer.of(Signing(secrets=[Secret(secret.encode()) for secret in secrets]))
    assert made is not None
    return made


def headers(signature: str, timestamp: int, webhook_id: str = "msg_1") -> dict[str, str]:
    return {"webhook-id": webhook_id, "webhook-timestamp": str(timestamp), "webhook-signature": signature}


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


@pytest.mark.parametrize("verifier", [standardwebhooks.Webhook, svix.webhooks.Webhook])
@pytest.mark.parametrize("size", [24, 32, 64])
def test_receivers_libraries_verify_our_signature(
    verifier: type[standardwebhooks.Webhook | svix.webhooks.Webhook], size: int
) -> None:
    secret, now = "whsec_" + b64(bytes(range(size))), int(time.time())

    signature = signer(secret).sign("msg_1", now, BODY.encode())

    verifier(secret).verify(BODY, headers(signature, now))
    for other in (headers(signature, now + 1), headers(signature, now, "msg_2")):
        with pytest.raises(standardwebhooks.WebhookVerificationError):
            verifier(secret).verify(BODY, other)
    with pytest.raises(standardwebhooks.WebhookVerificationError):
        verifier(secret).verify(BODY + " ", headers(signature, now))


def test_the_example_of_the_specification_is_reproduced() -> None:
    """From the Standard Webhooks text and Svix's documentation: the same bytes in, the same signature out."""
    signature = signer("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw").sign(
        "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, b'{"test": 2432232314}'
    )

    assert signature == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


V1A_SECRET = "whsk_6Xb/dCcHpPea21PS1N9VY/NZW723CEc77N4rJCubMbfVKIDij2HKpMKkioLlX0dRqSKJp4AJ6p9lMicMFs6Kvg=="
V1A_PUBLIC = "whpk_1SiA4o9hyqTCpIqC5V9HUakiiaeACeqfZTInDBbOir4="
V1A_SIGNATURE = "hnO3f9T8Ytu9HwrXslvumlUpqtNVqkhqw/enGzPCXe5BdqzCInXqYXFymVJaA7AZdpXwVLPo3mNl8EM+m7TBAg=="


def test_the_known_v1a_signature_is_reproduced() -> None:
    """Svix's server tests itself with these values; the signature is the one in the text of Standard Webhooks."""
    signature = signer(V1A_SECRET).sign("msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, b'{"test": 2432232314}')

    assert signature == f"v1a,{V1A_SIGNATURE}"
    assert public_key_of(Secret(V1A_SECRET.encode())) == V1A_PUBLIC
    key = Ed25519PublicKey.from_public_bytes(base64.b64decode(V1A_PUBLIC.removeprefix("whpk_")))
    key.verify(base64.b64decode(V1A_SIGNATURE), b'msg_p5jXN8AQM9LWM0D4loKWxJek.1614265330.{"test": 2432232314}')


@given(seed=st.binary(min_size=32, max_size=32), body=st.binary(max_size=200), number=st.integers(0, 2**33))
def test_every_v1a_signature_covers_id_time_and_body_exactly(seed: bytes, body: bytes, number: int) -> None:
    """Built from the text of the specification with `cryptography` alone: the string to sign, and nothing of ours."""
    private = Ed25519PrivateKey.from_private_bytes(seed)
    specified = b".".join([b"msg_1", str(number).encode("ascii"), body])

    signature = signer("whsk_" + b64(seed)).sign("msg_1", number, body)

    assert signature == "v1a," + b64(private.sign(specified)), "Ed25519 signatures are deterministic"
    private.public_key().verify(base64.b64decode(signature.removeprefix("v1a,")), specified)
    for other in (specified + b"x", specified[1:], specified.replace(b".", b"", 1)):
        with pytest.raises(InvalidSignature):
            private.public_key().verify(base64.b64decode(signature.removeprefix("v1a,")), other)


@pytest.mark.parametrize("verifier", [standardwebhooks.Webhook, svix.webhooks.Webhook])
def test_during_a_rotation_receivers_with_either_secret_verify(
    verifier: type[standardwebhooks.Webhook | svix.webhooks.Webhook],
) -> None:
    now = int(time.time())

    signature = signer(WHSEC, OLD_WHSEC, WHSK).sign("msg_1", now, BODY.encode())

    assert [part.split(",")[0] for part in signature.split(" ")] == ["v1", "v1", "v1a"]
    for secret in (WHSEC, OLD_WHSEC):
        verifier(secret).verify(BODY, headers(signature, now))
    with pytest.raises(standardwebhooks.WebhookVerificationError):
        verifier("whsec_" + b64(b"s" * 32)).verify(BODY, headers(signature, now))


@pytest.mark.parametrize("with_public_half", [False, True])
def test_an_ed25519_signature_is_verified_with_the_public_key_that_we_show(with_public_half: bool) -> None:
    seed = bytes(range(32))
    public = Ed25519PrivateKey.from_private_bytes(seed).public_key().public_bytes_raw()
    secret = "whsk_" + b64(seed + (public if with_public_half else b""))

    version, _, signature = signer(secret).sign("msg_1", 1_750_000_000, BODY.encode()).partition(",")

    shown = public_key_of(Secret(secret.encode()))
    assert (version, shown) == ("v1a", "whpk_" + b64(public))
    key = Ed25519PublicKey.from_public_bytes(public)
    key.verify(base64.b64decode(signature), b"msg_1.1750000000." + BODY.encode())
    with pytest.raises(InvalidSignature):
        key.verify(base64.b64decode(signature), b"msg_1.1750000001." + BODY.encode())


@given(key=st.binary(min_size=24, max_size=64), body=st.text(max_size=200), number=st.integers(0, 2**31))
def test_every_key_and_body_signs_as_the_reference_does(key: bytes, body: str, number: int) -> None:
    secret = "whsec_" + b64(key)
    when = datetime.datetime.fromtimestamp(number, datetime.UTC)
    ours = signer(secret)

    assert ours.sign("m", number, body.encode()) == standardwebhooks.Webhook(secret).sign("m", when, body)
    assert ours.sign("m", number, body.encode()) == ours.sign("m", number, body.encode()), "no state stays behind"


def test_a_webhook_without_secrets_has_no_signer() -> None:
    assert Signer.of(None) is None
    assert public_key_of(Secret(WHSEC.encode())) is None


@pytest.mark.parametrize(
    ("secret", "said"),
    [
        (b"hunter2hunter2hunter2hunter2", "begins with whsec_"),
        (b"whsec_", "this one has 0"),
        (b"WHSEC_" + WHSEC[6:].encode(), "begins with whsec_"),
        (b"whsec_" + base64.b64encode(b"x" * 23), "this one has 23"),
        (b"whsec_" + base64.b64encode(b"x" * 65), "this one has 65"),
        (b"whsec_" + base64.urlsafe_b64encode(b"\xfb\xff" * 15), "not base64"),
        (b"whsec_" + base64.b64encode(b"x" * 32).rstrip(b"="), "padding"),
        (b"whsec_" + base64.b64encode(b"x" * 32) + b"\n", "not base64"),
        (b"whsec_\xff\xfe", "not base64"),
        (b"whpk_" + base64.b64encode(b"x" * 32), "a public key"),
        (b"whsk_" + base64.b64encode(b"x" * 31), "this one has 31"),
        (b"whsk_" + base64.b64encode(b"x" * 64), "not the public key of the first"),
        (b"whsk_" + base64.b64encode(b"x" * 48), "this one has 48"),
    ],
)
def test_a_secret_that_can_not_sign_is_refused_without_being_quoted(secret: bytes, said: str) -> None:
    problem = problem_of_signing(Secret(secret)) or ""

    assert said in problem
    assert len(secret) < 10 or secret[6:].decode("latin-1") not in problem
    with pytest.raises(ValueError, match=r"."):
        Signer.of(Signing(secrets=[Secret(secret)]))


def test_an_old_secret_signs_until_its_end_and_not_a_second_longer() -> None:
    new, old, older = (Secret(text.encode()) for text in (WHSEC, OLD_WHSEC, WHSK))
    ends = {old.fingerprint(): at(2000), older.fingerprint(): at(1000)}
    dated = Signer.of(Signing(secrets=[new, old, older], ends=ends))
    assert dated is not None
    assert [Signing(secrets=[new, old, older], ends=ends).count_at(now) for now in (999, 1000, 2000)] == [3, 2, 1]
    for timestamp, count in ((999, 3), (1000, 2), (1999, 2), (2000, 1), (999_999, 1), (999, 3)):
        signatures = dated.sign("msg_1", timestamp, b"{}").split()
        assert len(signatures) == count, timestamp
        assert signatures == signer(WHSEC, OLD_WHSEC, WHSK).sign("msg_1", timestamp, b"{}").split()[:count]


def at(seconds: float) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC)


@pytest.mark.parametrize("end", ["2026-12-01T12:00:00", "tomorrow", "", None])
def test_an_end_needs_a_time_with_its_zone(end: object) -> None:
    with pytest.raises(ValidationError):
        Signing.model_validate({"secrets": [Secret(WHSEC.encode())], "ends": {"0" * 12: end}})
