"""The keys with which receivers verify a webhook's signatures."""

from datetime import UTC, datetime

from dispatcher.auth.signatures import public_key_of
from dispatcher.config.secrets import Secret
from dispatcher.config.webhooks import Signing
from dispatcher.console.signing_secrets import ed25519_keys_in
from tests.auth.keys import WHSEC, WHSK

NOW = 1_790_000_000.0


def signing(*texts: str, ends_at: float | None = None) -> Signing:
    """Returns the signing secrets; the last one ends at a time."""
    secrets = [Secret(one.encode()) for one in texts]
    ends = {} if ends_at is None else {secrets[-1].fingerprint(): datetime.fromtimestamp(ends_at, UTC)}
    return Signing.model_construct(secrets=secrets, ends=ends)


def test_a_secret_that_has_ended_hides_no_public_key() -> None:
    """It is stored until the next sweep, and signs nothing."""
    keys = [public_key_of(Secret(WHSK.encode()))]
    assert ed25519_keys_in(signing(WHSK, WHSEC, ends_at=NOW), NOW) == keys
    assert ed25519_keys_in(signing(WHSK, WHSEC, ends_at=NOW + 1), NOW) == []
    assert ed25519_keys_in(signing(WHSK, WHSEC), NOW) == []
    assert ed25519_keys_in(signing(WHSK), NOW) == keys
    assert ed25519_keys_in(None, NOW) == []
