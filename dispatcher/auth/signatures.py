"""Signs requests by Standard Webhooks: `v1` (HMAC-SHA256) and `v1a` (Ed25519), one signature for each secret.

The signed content is `{webhook-id}.{webhook-timestamp}.{body}`. During a rotation the old and the new secret both sign,
and a receiver accepts the request if any of the signatures fits.
"""

import base64
import binascii
import hmac
from collections.abc import Callable
from math import inf
from typing import TYPE_CHECKING, Final, Self

from dispatcher.config.secrets import Secret
from dispatcher.config.webhooks import Signing

if TYPE_CHECKING:  # imported by the first `whsk_` secret: `cryptography` takes 7 MB
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

HMAC_BYTES: Final = range(24, 65)
"""Bytes of a `whsec_` secret, as Standard Webhooks has them."""
SEED_BYTES: Final = 32
"""Bytes of an Ed25519 seed (RFC 8032, section 5.1.5); a `whsk_` may hold its public key after it."""

_Sign = Callable[[bytes], str]


class Signer:
    """Signs the requests of one webhook."""

    __slots__ = ("_ends", "_next_end", "_signs")

    def __init__(self, signs: tuple[_Sign, ...], ends: tuple[float, ...] = ()) -> None:
        """Creates a signer.

        Args:
            ends: when each secret stops signing, in Unix seconds; empty if none does.
        """
        self._signs = signs
        self._ends = ends or (inf,) * len(signs)
        self._next_end = min(self._ends, default=inf)

    @classmethod
    def of(cls, signing: Signing | None) -> Self | None:
        """Creates the signer of a webhook. Returns None if it has no signing secrets.

        Raises:
            ValueError: a secret can't sign; see `problem_of_signing`.
        """
        if signing is None:
            return None
        ends = tuple(inf if (end := signing.end_of(secret)) is None else end for secret in signing.secrets)
        return cls(tuple(_signer_of(secret) for secret in signing.secrets), ends)

    def sign(self, webhook_id: str, timestamp: int, body: bytes) -> str:
        """Returns the value of `webhook-signature`: one signature per secret, in their order, separated by spaces.

        Secrets that have ended at `timestamp` don't sign.

        `timestamp` is the value of `webhook-timestamp`: Unix seconds of the attempt. `webhook_id` has no dots.
        """
        message = b"%b.%d.%b" % (webhook_id.encode(), timestamp, body)
        signs = self._signs
        if timestamp >= self._next_end:
            signs = tuple(sign for sign, end in zip(signs, self._ends, strict=True) if timestamp < end)
        return signs[0](message) if len(signs) == 1 else " ".join([sign(message) for sign in signs])

    def __repr__(self) -> str:
        return f"<Signer [{len(self._signs)} secrets]>"


def problem_of_signing(secret: Secret) -> str | None:
    """Returns why this secret can't sign webhooks, or None if it can."""
    try:
        _signer_of(secret)
    except ValueError as error:
        return str(error)
    return None


def public_key_of(secret: Secret) -> str | None:
    """Returns the `whpk_…` that verifies `v1a` signatures, or None for a `whsec_`, which has no public half.

    Raises:
        ValueError: a `whsk_` that can't sign.
    """
    if not secret.reveal().startswith(b"whsk_"):
        return None
    public = _private_key(secret).public_key().public_bytes_raw()
    return "whpk_" + base64.b64encode(public).decode()


def _signer_of(secret: Secret) -> _Sign:
    prefix = secret.reveal()[:6]
    if prefix == b"whsec_":
        return _v1(_hmac_key(secret))
    if prefix[:5] == b"whsk_":
        return _v1a(_private_key(secret))
    if prefix[:5] == b"whpk_":
        raise ValueError("this is a public key (whpk_…), which only verifies: give the private key, whsk_…")
    raise ValueError(
        "a signing secret begins with whsec_ (HMAC-SHA256) or whsk_ (Ed25519): "
        "write whsec_ before 24 to 64 random bytes in base64"
    )


def _v1(key: bytes) -> _Sign:
    keyed = hmac.new(key, digestmod="sha256")  # the key is hashed once; each signature starts from a copy

    def sign(message: bytes) -> str:
        state = keyed.copy()
        state.update(message)
        return "v1," + binascii.b2a_base64(state.digest(), newline=False).decode()

    return sign


def _v1a(key: "Ed25519PrivateKey") -> _Sign:
    def sign(message: bytes) -> str:
        return "v1a," + binascii.b2a_base64(key.sign(message), newline=False).decode()

    return sign


def _hmac_key(secret: Secret) -> bytes:
    key = _decoded(secret, len("whsec_"))
    if len(key) not in HMAC_BYTES:
        raise ValueError(
            f"whsec_ must hold 24 to 64 bytes in base64, this one has {len(key)}: "
            "make one with `echo whsec_$(openssl rand -base64 32)`"
        )
    return key


def _private_key(secret: Secret) -> "Ed25519PrivateKey":
    data = _decoded(secret, len("whsk_"))
    if len(data) not in (SEED_BYTES, 2 * SEED_BYTES):
        raise ValueError(f"whsk_ must hold an Ed25519 key of 32 or 64 bytes in base64, this one has {len(data)}")
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    key = Ed25519PrivateKey.from_private_bytes(data[:SEED_BYTES])
    if data[SEED_BYTES:] not in (b"", key.public_key().public_bytes_raw()):
        raise ValueError("the second half of this whsk_ is not the public key of the first: copy the key once more")
    return key


def _decoded(secret: Secret, start: int) -> bytes:
    try:
        return base64.b64decode(secret.reveal()[start:], validate=True)
    except binascii.Error:
        raise ValueError(
            "what follows the prefix is not base64: use the standard alphabet (+ and /) with its padding (=)"
        ) from None
