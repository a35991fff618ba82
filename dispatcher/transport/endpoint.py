"""Defines the target of a webhook's requests, which changes with the webhook."""

import re
from dataclasses import dataclass, field

from dispatcher.config.endpoint_urls import split_url
from dispatcher.config.secrets import Secret
from dispatcher.config.webhooks import WebhookConfig
from dispatcher.contract.values import HttpHeaders

_RAW = re.compile(r"%(?![0-9A-Fa-f]{2})|[^A-Za-z0-9\-._~:/?@!$&'()*+,;=%]")


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class Endpoint:
    """The target of a webhook's requests. Made once for each revision of the webhook, compared by identity.

    A transport may keep what it derives (an SSL context, a rendered header block, a pool) for as long as the
    endpoint lives, and no longer.
    """

    scheme: str
    host: str
    """Host name or address in lower case, without brackets."""
    port: int
    target: str = field(repr=False)
    """Path and query, as they go into the request line."""
    authority: str
    """The `Host` header, with the port unless it is the scheme's default."""
    headers: HttpHeaders = field(default=(), repr=False)
    """The tenant's header parameters; they come last in the request."""
    ca: Secret | None = None
    certificate: Secret | None = None
    key: Secret | None = None
    is_webhook: bool = False
    """Requests go to a webhook's own endpoint, whose CA the webhook may name; else to a service beside it."""
    derived: "dict[object, object]" = field(default_factory=dict, init=False, repr=False)
    """Data that each transport derives from the endpoint and keeps for the endpoint's lifetime."""

    @property
    def url(self) -> str:
        """The whole URL. It may hold a secret in its path: never log it."""
        return f"{self.scheme}://{self.authority}{self.target}"

    @classmethod
    def at(cls, url: str, headers: HttpHeaders = ()) -> "Endpoint":
        """Returns the endpoint of a URL that `webhooks.split_url` accepts."""
        parts = split_url(url)
        host = (parts.hostname or "").rstrip(".")
        default = 443 if parts.scheme == "https" else 80
        port = parts.port or default
        bracketed = f"[{host}]" if ":" in host else host
        target = request_target(url)
        authority = bracketed if port == default else f"{bracketed}:{port}"
        return cls(parts.scheme, host, port, target, authority, headers)

    @classmethod
    def of(cls, config: WebhookConfig) -> "Endpoint":
        """Returns the endpoint of a webhook."""
        plain = cls.at(config.url, tuple(config.header_texts().items()))
        tls = config.tls
        return cls(
            plain.scheme, plain.host, plain.port, plain.target, plain.authority, plain.headers,
            tls.ca, tls.certificate, tls.key, is_webhook=True,
        )  # fmt: skip


def request_target(url: str) -> str:
    """Returns path and query of a URL as they go into the request line (RFC 9112, section 3.2.1).

    Characters that a URI may not hold as they are (RFC 3986, section 3.3: brackets, braces, quotes, `|`, `^`, a percent
    sign without its two digits) are percent-encoded, since many servers answer them with 400. A lone `?` stays.
    """
    rest = url.partition("://")[2]
    at = next((index for index, char in enumerate(rest) if char in "/?"), len(rest))
    path = rest[at:]
    return _RAW.sub(lambda match: f"%{ord(match[0]):02X}", path if path.startswith("/") else f"/{path}")
