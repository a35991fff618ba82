"""Models of the keys that sign a webhook's tokens."""

from datetime import timedelta
from typing import Annotated

from pydantic import Field

from dispatcher.console.api.models.base import RequestModel, ResponseModel
from dispatcher.console.signing_keys import MAX_START, SigningKeyModel


class NewSigningKey(RequestModel):
    """When the next signing key starts."""

    starts_in_hours: Annotated[int, Field(strict=True, ge=0, le=MAX_START // timedelta(hours=1))] = 24
    """From now. Its public key is published at once: give receivers the time for which they cache the JWKS document."""


class SigningKeyList(ResponseModel):
    """The signing keys of a webhook, the newest first; none if the dispatcher signs no tokens for it."""

    items: tuple[SigningKeyModel, ...]
