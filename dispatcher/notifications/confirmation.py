"""Links with which contacts confirm their address, or stop notifications. Pure; times are Unix seconds.

A token is signed, expires, and serves one purpose for one address of one webhook. It holds a hash of the address, so
that no URL shows whose it is.
"""

import hashlib
import hmac
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

import msgspec

from dispatcher.contract import base64url
from dispatcher.contract.tenant import TenantKey
from dispatcher.errors import BadLink

CONFIRM_WITHIN_S: Final = 7 * 86_400.0
STOP_WITHIN_S: Final = 365 * 86_400.0
MAX_TOKEN: Final = 2048
KEYED: Final = "k"
"""First character of a keyed hash; older versions stored hashes without a key."""
_DOMAIN: Final = b"dispatcher notification link 1"


class Purpose(StrEnum):
    """The purpose of a link in an e-mail."""

    CONFIRM = "confirm"
    STOP = "stop"


@dataclass(frozen=True, slots=True)
class Link:
    """Content of a link's token."""

    purpose: Purpose
    tenant: TenantKey
    contact: str
    """Hash of the address, see `LinkSigner.keyed`; links of older versions have that of `redaction.contact_of`."""


class _Claims(msgspec.Struct, array_like=True):
    purpose: Purpose
    org: str
    sandbox: str
    contact: str
    expires: int


class LinkSigner:
    """Makes and checks tokens under `notifications.link_key`."""

    def __init__(self, key: bytes) -> None:
        self._key = hashlib.blake2b(key, digest_size=32, person=b"contact links").digest()

    def keyed(self, contact: str) -> str:
        """Returns the form of a contact's hash that is stored: without the key, no address can be tried against it."""
        if contact.startswith(KEYED):
            return contact
        digest = hashlib.blake2b(contact.encode(), digest_size=15, key=self._key, person=b"contact").hexdigest()
        return f"{KEYED}{digest}"

    def token(self, link: Link, now: float) -> str:
        """Returns the token of a link, fit for a URL."""
        within_s = CONFIRM_WITHIN_S if link.purpose is Purpose.CONFIRM else STOP_WITHIN_S
        claims = _Claims(link.purpose, link.tenant.org, link.tenant.sandbox, link.contact, int(now + within_s))
        body = msgspec.json.encode(claims)
        return f"{base64url.encode(body)}.{base64url.encode(self._mac(body))}"

    def link(self, token: str, now: float) -> Link:
        """Returns what a token says.

        Raises:
            BadLink: it isn't one of ours, or has expired.
        """
        body_text, _, mac_text = token[: MAX_TOKEN + 1].partition(".")
        try:
            body, mac = base64url.decode(body_text), base64url.decode(mac_text)
        except ValueError:
            raise BadLink("This link is incomplete: copy the whole of it from the e-mail.") from None
        if len(token) > MAX_TOKEN or not hmac.compare_digest(mac, self._mac(body)):
            raise BadLink("This link is incomplete or was not made here: copy the whole of it from the e-mail.")
        try:
            claims = msgspec.json.decode(body, type=_Claims)
        except msgspec.DecodeError:
            raise BadLink("This link is of another version: ask for a new one in the console.") from None
        if now >= claims.expires:
            raise BadLink("This link has expired: ask for a new one in the console.")
        return Link(claims.purpose, TenantKey(claims.org, claims.sandbox), claims.contact)

    def _mac(self, body: bytes) -> bytes:
        return hmac.digest(self._key, _DOMAIN + body, "sha256")
