"""Seals secrets that were typed into a form that is not saved yet, so that the form itself can keep them.

Users then don't have to paste a key again because another field was wrong. The sealed text is encrypted with a key of
this process (or the configured session key, which all replicas share), for one person and one field, for an hour.
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
    """Encrypts and decrypts typed secrets."""

    fernet: Fernet

    @classmethod
    def of(cls, session_key: Secret | None) -> "SecretSealer":
        """Returns a sealer with a key derived from the session key, or with a random key if there is none."""
        root = secrets.token_bytes(32) if session_key is None else session_key.reveal()
        return cls(Fernet(base64.urlsafe_b64encode(hmac.digest(root, b"typed into a form", hashlib.sha256))))

    def seal(self, text: str, *, person: str, place: str) -> str:
        """Encrypts the text for one person and one field."""
        return self.fernet.encrypt(orjson.dumps([person, place, text])).decode()

    def open(self, sealed: str, *, person: str, place: str) -> str | None:
        """Returns the text, or None if it is too old, or sealed for another person, field or key."""
        try:
            owner, at, text = orjson.loads(self.fernet.decrypt(sealed.encode(errors="replace"), ttl=LIFE_S))
        except (InvalidToken, ValueError):
            return None
        return text if (owner, at) == (person, place) and isinstance(text, str) else None
