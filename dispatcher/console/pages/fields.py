"""The fields of the webhook form: their names, which are the draft's keys, and their parsing. Pure."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

import orjson
from multidict import MultiMapping
from pydantic import JsonValue

from dispatcher.config.secrets import Secret
from dispatcher.config.units import format_duration
from dispatcher.config.webhook_headers import MAX_HEADERS
from dispatcher.config.webhooks import MESSAGE_STATUSES
from dispatcher.console.formatting import rate
from dispatcher.errors import ProblemCode

Posted = MultiMapping[object]

_HEADER_FIELD: Final = re.compile(r"headers\.[0-9]{1,4}\.[a-z]+")

TEXTS: Final = (
    "name", "org", "sandbox", "sandbox_id", "url", "auth.header", "auth.scheme", "rate_limit", "timeout",
    "connect_timeout",
    *(f"auth.{at}.{key}" for at in ("sign", "fetch.assertion")
      for key in ("algorithm", "kid", "issuer", "subject", "audience", "ttl", "claims")),
    "auth.fetch.token_url", "auth.fetch.client_id", "auth.fetch.scope", "auth.fetch.audience",
    "auth.fetch.parameters", "notify.emails",
)  # fmt: skip
CHOICES: Final = {"auth": ("none", "sign", "fetch"), "auth.fetch.grant": ("client-credentials", "jwt-bearer"),
                  "auth.fetch.client_auth": ("basic", "post"),
                  "campaigns": ("all", "some"), "payload": ("1", "2")}  # fmt: skip
LISTS: Final = {"channels": ("email", "sms"), "events": MESSAGE_STATUSES}
TOKEN_SWITCHES: Final = ("auth.sign.body_hash", "auth.sign.nbf", "auth.sign.jti", "auth.fetch.assertion.nbf")
SWITCHES: Final = ("enabled", *TOKEN_SWITCHES)
SECRETS: Final = (
    "auth.sign.key", "auth.fetch.client_secret", "auth.fetch.assertion.key", "signing.new", "tls.ca", "tls.certificate",
    "tls.key",
)  # fmt: skip
ADVANCED: Final = (
    "events", "campaigns", "payload", "signing", "rate_limit", "timeout", "connect_timeout", "sandbox_id", "tls",
    "enabled", "notify",
)  # fmt: skip
DEFAULTS: Final = {
    "auth": "none", "auth.header": "authorization", "auth.scheme": "Bearer", "auth.sign.algorithm": "ES256",
    "auth.sign.issuer": "feedback-dispatcher", "auth.sign.ttl": "5m", "auth.fetch.grant": "client-credentials",
    "auth.fetch.client_auth": "basic",
    "auth.fetch.assertion.algorithm": "RS256", "auth.fetch.assertion.issuer": "feedback-dispatcher",
    "auth.fetch.assertion.ttl": "5m", "campaigns": "all", "payload": "1", "sandbox": "prod",
}  # fmt: skip

FOR_FIELDS: Final = {
    ProblemCode.NOT_GIVEN: "is missing",
    ProblemCode.EMPTY_TEXT: "fill this in",
    ProblemCode.EMPTY_LIST: "choose at least one",
}
"""Messages for problems that are shown beside a field."""


@dataclass(slots=True)
class HeaderRow:
    """A header parameter, as typed."""

    name: str = ""
    value: str = ""
    is_stored: bool = False
    """True if a value is stored that is never shown: a secret, or text under a name that suggests one.

    It is kept unless a new value is typed.
    """
    sealed: str = ""
    """The typed value, sealed, if the name suggests a secret: the form returns this instead of the value."""


@dataclass(slots=True)
class SecretField:
    """A secret in the form."""

    stored: str = ""
    """Fingerprint of the stored secret."""
    shown: str = ""
    """Fingerprint of the secret that was stored when the browser loaded the form."""
    typed: str = field(default="", repr=False)
    """The typed secret; never shown."""
    is_removed: bool = False

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the typed secret."""
        return Secret(_trimmed(self.typed).encode(errors="replace")).fingerprint()

    def draft(self) -> JsonValue:
        """Returns the secret's value in a draft; None if there is none."""
        if self.typed:
            return {"value": self.typed}
        return {"fingerprint": self.stored} if self.stored and not self.is_removed else None


def rows_of(posted: Posted) -> Iterator[HeaderRow]:
    """Yields the rows in the order of their numbers."""
    numbers = sorted({int(key.split(".")[1]) for key in posted if _HEADER_FIELD.fullmatch(key)})
    for number in numbers[: MAX_HEADERS + 5]:
        name, value = (text_of(posted, f"headers.{number}.{part}") for part in ("name", "value"))
        is_stored = text_of(posted, f"headers.{number}.stored") == "on"
        yield HeaderRow(name, value, is_stored, text_of(posted, f"headers.{number}.sealed", strip=False))


def shown(key: str, value: JsonValue) -> str:
    """Returns a stored value in the form's notation."""
    if value is None:
        return ""
    if key.endswith(("ttl", "timeout")) and isinstance(value, int | float):
        return format_duration(value)
    if key == "rate_limit" and isinstance(value, int | float):
        return rate(value)
    if key.endswith(("audience", "emails")) and isinstance(value, list):
        return ", ".join(map(str, value))
    if key.endswith(("claims", "parameters")):
        return orjson.dumps(value, option=orjson.OPT_INDENT_2).decode() if value else ""
    return str(value)


def text_of(posted: Posted, key: str, *, strip: bool = True) -> str:
    """Returns the text of a field; empty if the form doesn't contain it."""
    value = posted.get(key, "")
    if not isinstance(value, str):  # a file where text belongs
        return ""
    return value.strip() if strip else value


def _trimmed(text: str) -> str:
    return text.removesuffix("\n").removesuffix("\r")


def value_at(document: Mapping[str, JsonValue], key: str) -> JsonValue:
    """Returns the value at a dotted path of a stored document, or None if there is none."""
    at: JsonValue = dict(document)
    for step in key.split("."):
        at = at.get(step) if isinstance(at, dict) else None
    return at


def without_none(values: Mapping[str, JsonValue]) -> dict[str, JsonValue]:
    """Returns the members that are not None."""
    return {key: value for key, value in values.items() if value is not None}
