"""Encrypts secrets at rest with the first of the operator's Fernet keys, and decrypts with any of them.

A ciphertext is bound to its webhook: in another webhook's row it can't be decrypted.
"""

import hmac
from collections.abc import Sequence

from cryptography.fernet import Fernet, InvalidToken, MultiFernet

from dispatcher.config.secrets import Secret
from dispatcher.errors import ConfigError, Problem
from dispatcher.stores.sql.odd_values import text_of

_KEY = "webhooks.encryption_keys"
_HOW_TO = "create one with `dispatcher webhooks new-key`"


class Encryption:
    """Encrypts and decrypts webhooks' secrets. Pure."""

    def __init__(self, keys: Sequence[Secret]) -> None:
        """Uses `keys`, newest first. Without keys, webhooks with secrets can't be stored.

        Raises:
            ConfigError: one of them is not a Fernet key. The error names its position and quotes nothing of it.
        """
        fernets: list[Fernet] = []
        problems: list[Problem] = []
        for index, key in enumerate(keys):
            try:
                fernets.append(Fernet(key.reveal().strip()))
            except ValueError:
                message = f"not a Fernet key (32 bytes in URL-safe base64): {_HOW_TO}"
                problems.append(Problem(message, f"{_KEY}[{index}]"))
        if problems:
            raise ConfigError(problems)
        self._fernet = MultiFernet(fernets) if fernets else None
        self._keys = len(fernets)

    def __repr__(self) -> str:
        return f"<Encryption {self._keys} keys>"

    def encrypt(self, secret: Secret, webhook_id: str) -> str:
        """Returns the ciphertext of a secret, bound to this webhook.

        Raises:
            ConfigError: no key is configured.
        """
        return self._configured().encrypt(_bound_to(webhook_id) + secret.reveal()).decode()

    def decrypt(self, ciphertext: str, webhook_id: str) -> Secret | None:
        """Returns the secret; None if no configured key decrypts it, or if it belongs to another webhook."""
        if self._fernet is None:
            return None
        try:
            plain = self._fernet.decrypt(text_of(ciphertext).encode())
        except InvalidToken:
            return None
        binding = _bound_to(webhook_id)
        if not hmac.compare_digest(plain[: len(binding)], binding):
            return None
        return Secret(plain[len(binding) :])

    def renew(self, ciphertext: str) -> str | None:
        """Returns the ciphertext encrypted again with the first key; None if no key decrypts it.

        Raises:
            ConfigError: no key is configured.
        """
        try:
            return self._configured().rotate(text_of(ciphertext).encode()).decode()
        except InvalidToken:
            return None

    def _configured(self) -> MultiFernet:
        if self._fernet is None:
            raise ConfigError([Problem(f"no key to encrypt secrets with: {_HOW_TO}", _KEY)])
        return self._fernet


def new_key() -> str:
    """Returns a new key for the first place in `webhooks.encryption_keys`."""
    return Fernet.generate_key().decode()


def _bound_to(webhook_id: str) -> bytes:
    return text_of(webhook_id).encode() + b"\n"
