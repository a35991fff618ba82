"""Models of the keys that sign a webhook's tokens."""

from datetime import datetime
from typing import Annotated

from pydantic import Field

from dispatcher.config.webhook_auth import SigningAlgorithm
from dispatcher.console.api.models.base import RequestModel, ResponseModel
from dispatcher.console.signing_keys import KeyRole


class NewSigningKey(RequestModel):
    """When the next signing key starts."""

    starts_in_hours: Annotated[int, Field(strict=True, ge=0, le=2160)] = 24
    """From now. Its public key is published at once: give receivers the time for which they cache the JWKS document."""


class SigningKeyModel(ResponseModel):
    """A key that signs a webhook's tokens, has signed them, or will. The private key is never returned."""

    fingerprint: str
    algorithm: SigningAlgorithm
    key_id: str | None
    """`kid` of its tokens and of its public key; null for a shared secret without one."""
    role: KeyRole
    """`next`: published, it doesn't sign yet. `previous`: published only."""
    added_at: datetime | None
    """null if an older version stored it."""
    signs_from: datetime | None
    """null if it has signed since it was added."""
    signs_until: datetime | None
    """null if it has no end."""
    withdrawn_at: datetime | None
    """When its public key is withdrawn and the key erased; null if that is not planned."""


class SigningKeyList(ResponseModel):
    """The signing keys of a webhook, the newest first; none if the dispatcher signs no tokens for it."""

    items: tuple[SigningKeyModel, ...]
