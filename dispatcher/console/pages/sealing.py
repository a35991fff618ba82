"""Seals secrets that were typed into a form that is not saved yet, so that the form itself can keep them.

Users then don't have to paste a key again because another field was wrong. The sealed text is encrypted with a key of
this process (or the configured session key, which all replicas share), for one person and one field, for an hour. If
the session ends while a form is edited, the whole form is kept in the same way, in the page that asks to sign in again.
"""

import base64
import hashlib
import hmac
import secrets
import zlib
from dataclasses import dataclass, field
from typing import Final

import orjson
from cryptography.fernet import Fernet, InvalidToken

from dispatcher.config.secrets import Secret

LIFE_S: Final = 3600
"""Seconds for which a sealed text or form can be opened."""
OWNER_LIFE_S: Final = 7 * 86_400
"""Seconds for which a form that was left open can still be kept at the end of its session."""
_OWNER, _FORM = "its author", "the whole form"


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

    def seal_owner(self, person: str) -> str:
        """Returns a sealed text that identifies a form's author, even after the session has ended."""
        return self.fernet.encrypt(orjson.dumps([person, _OWNER, ""])).decode()

    def owner_of(self, sealed: str) -> str | None:
        """Returns the person in a text of `seal_owner`, or None if it has expired or another key sealed it."""
        try:
            owner, at, _ = orjson.loads(self.fernet.decrypt(sealed.encode(errors="replace"), ttl=OWNER_LIFE_S))
        except (InvalidToken, ValueError):
            return None
        return owner if at == _OWNER and isinstance(owner, str) else None

    def keep(self, kept: "KeptForm") -> str:
        """Encrypts a whole form for its author."""
        content = zlib.compress(orjson.dumps([kept.owner, _FORM, kept.path, kept.fields]))
        return self.fernet.encrypt(content).decode()

    def kept(self, sealed: str) -> "KeptForm | None":
        """Decrypts a form that `keep` encrypted. Returns None if it is older than an hour or of another key."""
        try:
            content = zlib.decompress(self.fernet.decrypt(sealed.encode(errors="replace"), ttl=LIFE_S))
            owner, at, path, fields = orjson.loads(content)
        except (InvalidToken, ValueError, zlib.error):
            return None
        return KeptForm(owner, path, [(name, value) for name, value in fields]) if at == _FORM else None


@dataclass(frozen=True, slots=True)
class KeptForm:
    """A form that was posted after its session had ended."""

    owner: str
    """Id of the person who opened it."""
    path: str
    """Path that it was posted to."""
    fields: list[tuple[str, str]] = field(repr=False)
    """Names and values, secrets included."""
