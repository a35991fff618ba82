"""base64url without padding (RFC 4648, section 5; RFC 7515, section 2)."""

import base64


def encode(data: bytes) -> str:
    """Returns the text of the bytes, without padding."""
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def decode(text: str) -> bytes:
    """Returns the bytes of a text without padding. Raises ValueError if it contains any other character."""
    return base64.b64decode(text.encode() + b"=" * (-len(text) % 4), altchars=b"-_", validate=True)
