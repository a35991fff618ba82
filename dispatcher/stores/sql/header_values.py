"""Encrypts header parameters at rest. Pure.

Tenants also put keys into plain-text header parameters. A stored document therefore has `{"encrypted": "…"}` in the
place of each text; secrets have a fingerprint there, as everywhere. Documents of versions before 0004 contain the text
itself until `dispatcher webhooks migrate` or `rotate-keys` has encrypted it.
"""

from collections.abc import Callable, Mapping
from typing import Final

from pydantic import JsonValue

from dispatcher.config.secrets import Secret
from dispatcher.stores.sql.encryption import Encryption

HEADERS: Final = "headers"
LOST: Final = "?"
"""Fingerprint of a value that no key decrypts: an editor has to enter it again."""

_ENCRYPTED: Final = "encrypted"

Document = Mapping[str, JsonValue]


def seal_headers(document: Document, webhook_id: str, encryption: Encryption) -> dict[str, JsonValue]:
    """Returns the document with its header parameters encrypted, as it is stored.

    Raises:
        ConfigError: no key is configured, and there are header parameters.
    """

    def sealed(value: JsonValue) -> JsonValue:
        if isinstance(value, str):
            return {_ENCRYPTED: encryption.encrypt(Secret(value.encode()), webhook_id)}
        return value

    return _mapped(document, lambda _, value: sealed(value))


def open_headers(document: Document, webhook_id: str, encryption: Encryption) -> tuple[dict[str, JsonValue], list[str]]:
    """Returns a stored document with its header parameters as text, and the names of those that no key decrypts."""
    lost: list[str] = []

    def opened(name: str, value: JsonValue) -> JsonValue:
        ciphertext = _ciphertext_in(value)
        if ciphertext is None:
            return value
        secret = encryption.decrypt(ciphertext, webhook_id)
        if secret is None:
            lost.append(name)
            return {"fingerprint": LOST}
        return secret.reveal_text()

    return _mapped(document, opened), lost


def renew_headers(
    document: Document, webhook_id: str, encryption: Encryption
) -> tuple[dict[str, JsonValue], int, list[str]]:
    """Encrypts a stored document's header parameters with the first key.

    Returns the document, how many parameters were encrypted again, and the names of those that no key decrypts, which
    stay as they are.

    Raises:
        ConfigError: no key is configured, and there are header parameters.
    """
    renewed, lost = 0, list[str]()

    def renew(name: str, value: JsonValue) -> JsonValue:
        nonlocal renewed
        ciphertext = _ciphertext_in(value)
        if ciphertext is not None:
            fresh = encryption.renew(ciphertext)
        else:
            fresh = encryption.encrypt(Secret(value.encode()), webhook_id) if isinstance(value, str) else None
        if fresh is None:
            if ciphertext is not None:
                lost.append(name)
            return value
        renewed += 1
        return {_ENCRYPTED: fresh}

    return _mapped(document, renew), renewed, lost


def are_encrypted(document: Document) -> bool:
    """Returns True unless a stored document has a header parameter in plain text."""
    headers = document.get(HEADERS)
    return not (isinstance(headers, dict) and any(isinstance(value, str) for value in headers.values()))


def without_headers(document: Document) -> dict[str, JsonValue]:
    """Returns a document without header parameters: for a webhook that is deleted."""
    return {**document, HEADERS: {}}


def _mapped(document: Document, change: Callable[[str, JsonValue], JsonValue]) -> dict[str, JsonValue]:
    headers = document.get(HEADERS)
    if not isinstance(headers, dict):
        return dict(document)
    return {**document, HEADERS: {name: change(name, value) for name, value in headers.items()}}


def _ciphertext_in(value: JsonValue) -> str | None:
    if isinstance(value, dict) and value.keys() == {_ENCRYPTED}:
        ciphertext = value[_ENCRYPTED]
        return ciphertext if isinstance(ciphertext, str) else None
    return None
