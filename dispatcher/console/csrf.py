"""Masks CSRF tokens in pages, so that their compressed length reveals nothing about them (BREACH). Pure but for `mask`.

A page contains the token exclusive-or a pad that is new for each page, and the pad: it never repeats.
"""

import binascii
import secrets

from dispatcher.contract import base64url


def mask(token: str) -> str:
    """Masks the token with a new random pad. Returns an empty text for an empty token."""
    raw = token.encode()
    pad = secrets.token_bytes(len(raw))
    return f"{base64url.encode(pad)}.{base64url.encode(_xor(raw, pad))}" if raw else ""


def unmask(text: str) -> str:
    """Returns the token in a masked text, or the text itself if it isn't masked; empty if the mask is malformed."""
    pad_text, dot, masked_text = text.partition(".")
    if not dot:
        return text
    try:
        pad, masked = base64url.decode(pad_text), base64url.decode(masked_text)
    except (ValueError, binascii.Error):
        return ""
    return _xor(masked, pad).decode(errors="replace") if len(pad) == len(masked) else ""


def _xor(left: bytes, right: bytes) -> bytes:
    return bytes(one ^ other for one, other in zip(left, right, strict=True))
