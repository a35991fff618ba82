"""Code that verifies a webhook's requests, in several languages, filled with the webhook's values. Pure.

The code contains no secret: it reads them from the environment.
"""

from dataclasses import dataclass
from typing import Final

import orjson
from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

from dispatcher.config.settings import Settings
from dispatcher.config.webhook_auth import JwtAuth
from dispatcher.config.webhooks import WebhookConfig
from dispatcher.console.probes import keys_path
from dispatcher.errors import ConfigError
from dispatcher.stores.sql.records import StoredWebhook

LANGUAGES: Final = {
    "Python": "receiver.py.txt",
    "Node": "receiver.mjs.txt",
    "Go": "receiver.go.txt",
    "Java": "Receiver.java.txt",
}
_snippets: Final = Environment(
    loader=PackageLoader("dispatcher.console.pages", "snippets"),
    autoescape=select_autoescape(default=False, default_for_string=False),  # the page escapes the whole code
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
)
_snippets.filters["literal"] = lambda text: orjson.dumps(text).decode()  # a JSON string is valid in all four


@dataclass(frozen=True, slots=True)
class ExpectedToken:
    """Properties of the dispatcher's signed tokens that a receiver checks."""

    header: str
    """Name of the header, in lower case."""
    prefix: str
    """Text before the token: `Bearer `."""
    algorithm: str
    is_shared: bool
    """True if the receiver verifies with the signing key itself (HS…), False if with a public key."""
    jwks: str
    """URL of the public keys."""
    issuer: str
    audience: str


@dataclass(frozen=True, slots=True)
class Snippet:
    """Code for one language."""

    language: str
    code: str


def expected_token(config: WebhookConfig, settings: Settings) -> ExpectedToken | None:
    """Returns what the webhook's tokens contain; None unless the dispatcher signs them."""
    auth = config.auth
    if not isinstance(auth, JwtAuth) or auth.sign is None:
        return None
    sign = auth.sign
    return ExpectedToken(
        header=auth.header,
        prefix=f"{auth.scheme} " if auth.scheme else "",
        algorithm=str(sign.algorithm),
        is_shared=sign.algorithm.startswith("HS"),
        jwks=(settings.console.public_url or "https://console.example") + keys_path(config.tenant),
        issuer=sign.issuer,
        audience=(sign.audience[0] if isinstance(sign.audience, list) else sign.audience) or config.origin,
    )


def snippets_for(webhook: StoredWebhook, settings: Settings, *, has_hmac: bool = True) -> list[Snippet]:
    """Returns the code for each language; nothing if it would verify neither a signature nor a token.

    Args:
        has_hmac: whether the webhook's signing secrets, if it has any, include one for HMAC, which the code verifies.
    """
    try:
        config = webhook.config()
    except ConfigError:  # of another version of this program
        return []
    token, signed = expected_token(config, settings), config.signing is not None and has_hmac
    if token is None and not signed:
        return []
    return [
        Snippet(language, _snippets.get_template(name).render(jwt=token, signed=signed))
        for language, name in LANGUAGES.items()
    ]
