"""Settings of notifications: `notifications`."""

import re
from pathlib import Path
from typing import Annotated, Final, Literal, Self

from pydantic import AfterValidator, Field, StringConstraints, model_validator

from dispatcher.config.endpoint_urls import split_url
from dispatcher.config.secrets import TextSecret
from dispatcher.config.settings_group import LongKey, SettingsGroup
from dispatcher.config.units import NO_SWITCH, Seconds
from dispatcher.config.webhooks import EmailAddress, Signing

_LOOPBACK: Final = ("localhost", "127.0.0.1", "::1")
_HOST: Final = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.:-]{0,253}[A-Za-z0-9])?|::1", re.ASCII)


def _checked_host(host: str) -> str:
    if not _HOST.fullmatch(host):
        raise ValueError("write a host name or an address, without port and brackets")
    return host


def _checked_url(url: str) -> str:
    if split_url(url).scheme != "https":
        raise ValueError("must begin with https://")
    return url


class SmtpSettings(SettingsGroup):
    """The mail server that takes notifications. Its certificate is always verified."""

    host: Annotated[str, AfterValidator(_checked_host)]
    """Host name of the mail server."""
    port: Annotated[int, Field(ge=1, le=65535), NO_SWITCH] | None = None
    """By default 587, with security `tls` 465, with `none` 25."""
    security: Literal["starttls", "tls", "none"] = "starttls"
    """`starttls`: TLS after the greeting, required. `tls`: TLS from the first byte. `none`: no TLS, and no password
    unless the server is on this machine."""
    username: Annotated[str, StringConstraints(min_length=1, max_length=320)] | None = None
    password: TextSecret | None = None
    """Password of `username`. It is read again when its file changes."""
    ca: Path | None = None
    """PEM bundle to verify the mail server with; the system's by default."""
    sender: EmailAddress
    """Address that notifications come from."""
    timeout: Annotated[Seconds, Field(ge=1, le=300)] = 30
    """Time for one message, connecting included."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if (self.username is None) != (self.password is None):
            raise ValueError("username and password belong together: give both")
        if self.security == "none" and self.password is not None and self.host not in _LOOPBACK:
            raise ValueError("the password would be sent in clear text: set security to starttls or tls")
        return self

    @property
    def port_in_use(self) -> int:
        """The configured port, or the default port of `security`."""
        return self.port or {"starttls": 587, "tls": 465, "none": 25}[self.security]


class OperationalWebhookSettings(SettingsGroup):
    """The operator's endpoint for notifications, sent through the egress guard like any webhook."""

    url: Annotated[str, AfterValidator(_checked_url)]
    """HTTPS endpoint that receives a POST for each notification."""
    signing: Signing
    """Standard Webhooks secrets, as for any webhook."""


class NotificationSettings(SettingsGroup):
    """Channels, recipients and timing of notifications. The history worker sends them, if `history.url` is set."""

    smtp: SmtpSettings | None = None
    """Mail server; without it no e-mail is sent."""
    webhook: OperationalWebhookSettings | None = None
    """The operator's endpoint; without it no operational webhook is sent."""
    operator: Annotated[tuple[EmailAddress, ...], Field(max_length=10)] = ()
    """Addresses of the operator, at most 10: they receive what concerns the whole installation, and what concerns
    webhooks without a confirmed contact of their own."""
    link_key: LongKey | None = None
    """At least 32 bytes that sign the links with which contacts confirm their addresses; the same everywhere. Without
    it, or without `console.public_url`, webhooks' contacts can't confirm, and only the operator is notified."""
    every: Annotated[Seconds, Field(ge=60, le=86_400)] = 3600
    """Shortest time between two notifications of one webhook, except that it was disabled."""
    settle: Annotated[Seconds, Field(le=3600)] = 300
    """Time for which a state has to last before it is reported, except that the webhook was disabled."""
    expires_within: Annotated[Seconds, Field(ge=3600, le=7_776_000)] = 14 * 86_400.0
    """Certificates that expire within this time are reported; again three days before the end, and at the end."""

    @property
    def is_on(self) -> bool:
        """True if anything can be sent."""
        return self.smtp is not None or self.webhook is not None
