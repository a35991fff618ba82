"""Secrets that were typed into a form that is not saved yet: kept in the form itself, sealed.

So that nobody has to paste a key again because another field was wrong. What the page holds is encrypted with a key
of this process (or the configured session key, which all replicas have), for one person and one place, for an hour.
"""

import base64
import hashlib
import hmac
import secrets
from dataclasses import dataclass
from typing import Final

import orjson
from cryptography.fernet import Fernet, InvalidToken

from dispatcher.config.secrets import Secret

LIFE_S: Final = 3600


@dataclass(frozen=True, slots=True)
class SecretSealer:
    """Seals and opens."""

    fernet: Fernet

    @classmethod
    def of(cls, session_key: Secret | None) -> "SecretSealer":
        """With a key made from the session key, or one that lives as long as the process."""
        root = secrets.token_bytes(32) if session_key is None else session_key.reveal()
        return cls(Fernet(base64.urlsafe_b64encode(hmac.digest(root, b"typed into a form", hashlib.sha256))))

    def seal(self, text: str, *, person: str, place: str) -> str:
        """The text for nobody to read."""
        return self.fernet.encrypt(orjson.dumps([person, place, text])).decode()

    def open(self, sealed: str, *, person: str, place: str) -> str | None:
        """The text; None where it is too old, another's, or not ours."""
        try:
            owner, at, text = orjson.loads(self.fernet.decrypt(sealed.encode(errors="replace"), ttl=LIFE_S))
        except (InvalidToken, ValueError):
            return None
        return text if (owner, at) == (person, place) and isinstance(text, str) else None
