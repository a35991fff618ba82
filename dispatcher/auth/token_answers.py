"""Builds requests to token endpoints and reads the answers (RFC 6749, sections 4.4 and 5; RFC 7523). Pure.

No message in here quotes what an endpoint wrote, except an error code that looks like one: its texts may hold
what we sent, and they reach logs and the console.
"""

import base64
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Protocol
from urllib.parse import quote_plus, urlencode, urlsplit

import orjson
from pydantic import JsonValue

from dispatcher.config.webhook_auth import FetchedToken
from dispatcher.contract.values import HttpHeaders
from dispatcher.errors import TokenUnavailable

MAX_ANSWER: Final = 64 * 1024
"""Bytes of an answer; a longer one is refused."""
MAX_TOKEN: Final = 8192
"""Characters of a token: it goes into one header line, and that is what common servers accept."""
DEFAULT_LIFE_S: Final = 300.0
"""Life of a token whose answer doesn't say (RFC 6749, section 5.1 only recommends that it does)."""
MIN_LIFE_S: Final = 1.0
"""Used for a life of 0 or less, so that such an endpoint gets a request a second, not one an event."""
MAX_LIFE_S: Final = 24 * 3600.0
"""A longer life is cut to this."""

_TOKEN = re.compile(r"[\x21-\x7e]+")
_ERROR_CODE = re.compile(r"[a-z][a-z_]{1,39}")
_COMPRESSIONS: Final = {
    b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd",
    b"\x78\x01": "deflate", b"\x78\x5e": "deflate", b"\x78\x9c": "deflate", b"\x78\xda": "deflate",
}  # fmt: skip
"""First bytes of compressed answers (RFC 1952, RFC 8878, RFC 1950); none of them begins a JSON document."""
_HINTS: Final = {
    "invalid_client": "check client_id and client_secret",
    "invalid_grant": "check the assertion's kid, issuer, subject and audience, and that its public key is known there",
    "invalid_request": "check grant, scope and audience",
    "invalid_scope": "check scope",
    "invalid_target": "check audience",
    "unauthorized_client": "allow this client the grant",
    "unsupported_grant_type": "choose the other grant, or allow this one there",
    "no_token_endpoint": "check that token_url is the token endpoint",
}


@dataclass(frozen=True, slots=True)
class TokenAnswer:
    """The answer of a token endpoint, or the reason why there is none."""

    status: int | None
    """None if no answer came."""
    body: bytes = field(default=b"", repr=False)
    """As much of the answer's body as was read; over 64 KiB it is refused."""
    detail: str = ""
    """The failure, if no answer came; safe to show, without secrets."""
    elapsed_s: float = 0.0
    """Seconds the exchange took; a cool-down begins at its end."""
    is_local: bool = False
    """No answer came because the dispatcher's own side failed: no evidence against the tenant."""


class TokenEndpoint(Protocol):
    """Sends requests to token endpoints, through the same egress guard as deliveries."""

    async def post_form(self, url: str, headers: HttpHeaders, body: bytes, timeout_s: float) -> TokenAnswer:
        """Sends `body` by POST as `application/x-www-form-urlencoded`, following no redirect.

        Reads at most 64 KiB of the answer. Returns an answer without a status if the request fails, instead of raising.
        """
        ...


@dataclass(frozen=True, slots=True)
class IssuedToken:
    """A token, and how long it may be used."""

    value: str = field(repr=False)
    life_s: float
    """Seconds from the moment of the request: 1 s to 24 h."""


def form_of(config: FetchedToken, assertion: str | None) -> tuple[HttpHeaders, bytes]:
    """Returns headers and form of a token request; the transport sets the form's content type.

    `assertion` is needed for the grant `jwt-bearer`; it is None for `client-credentials`.
    """
    # A transport that doesn't decompress must say so: some servers compress for clients that say nothing.
    headers: list[tuple[str, str]] = [("accept", "application/json"), ("accept-encoding", "identity")]
    fields: dict[str, str] = {"grant_type": "client_credentials"}
    if assertion is not None:
        fields = {"grant_type": "urn:ietf:params:oauth:grant-type:jwt-bearer", "assertion": assertion}
    if config.client_id is not None and config.client_secret is not None and config.client_auth == "basic":
        # Form-urlencoded before base64 (RFC 6749, section 2.3.1), so that an id may hold a colon.
        pair = f"{quote_plus(config.client_id)}:{quote_plus(config.client_secret.reveal_text())}"
        headers.append(("authorization", "Basic " + base64.b64encode(pair.encode()).decode()))
    elif config.client_id is not None:
        fields["client_id"] = config.client_id  # a public client names itself (RFC 6749, section 3.2.1)
        if config.client_secret is not None:
            fields["client_secret"] = config.client_secret.reveal_text()
    if config.scope is not None:
        fields["scope"] = config.scope
    if config.audience is not None:
        fields["audience"] = config.audience
    return tuple(headers), urlencode(fields | config.parameters).encode()


def token_in(answer: TokenAnswer, config: FetchedToken) -> IssuedToken:
    """Returns the token in the answer to `form_of(config, …)`.

    Raises:
        TokenUnavailable: it carries none; the message says what the tenant can change.
    """
    endpoint = endpoint_name(config)
    if answer.status is None:
        problem = f"{endpoint} could not be reached: {_plain(answer.detail) or 'no answer'}"
        raise TokenUnavailable(problem, is_local=answer.is_local)
    compression = _compression_of(answer.body)
    if compression:
        raise TokenUnavailable(
            f"{endpoint} answered {answer.status} compressed ({compression}), though it was asked for "
            "accept-encoding: identity: have it send plain JSON"
        )
    document = json_object(answer.body)
    # A server that sends every member sends `"error": null` beside a token.
    if not 200 <= answer.status < 300 or (document is not None and document.get("error")):
        raise TokenUnavailable(f"{endpoint} answered {answer.status}{_error_in(document, answer.status, config)}")
    if document is None or len(answer.body) >= MAX_ANSWER:
        raise TokenUnavailable(f"{endpoint} answered {answer.status} with {_without_document(answer.body)}")
    return IssuedToken(_access_token(document, endpoint), _life_s(document.get("expires_in")))


def endpoint_name(config: FetchedToken) -> str:
    """Returns the endpoint's name for messages: its host only, because the URL may hold a secret."""
    return f"token endpoint {urlsplit(config.token_url).hostname}"


def json_object(body: bytes) -> dict[str, JsonValue] | None:
    """Returns the JSON object in an answer, read liberally; None if there is none."""
    text = body.removeprefix(b"\xef\xbb\xbf")
    document: object
    try:
        document = orjson.loads(text)
    except orjson.JSONDecodeError:
        document = _liberal_document(text)
    return document if isinstance(document, dict) else None


def _liberal_document(text: bytes) -> object:
    """Reads JSON that strict readers refuse, because the invalid part may be in a member that is not used.

    Accepts NaN, numbers of any length, control characters, lone surrogates and bytes that are not UTF-8.
    """
    try:
        return json.loads(text.decode("utf-8", "replace"), parse_int=float, strict=False)
    except (ValueError, RecursionError):
        return None


def _without_document(body: bytes) -> str:
    """Returns what came instead of a JSON object, and what the tenant can change."""
    if len(body) >= MAX_ANSWER:
        found = "64 KiB or more"
    elif body.lstrip()[:1] == b"<":
        found = "HTML"
    elif _breaks_off(body):
        return "no JSON object but the beginning of one: the answer broke off"
    else:
        found = "no JSON object"
    return f"{found}: {_HINTS['no_token_endpoint']}"


def _breaks_off(body: bytes) -> bool:
    """Returns whether an answer that isn't JSON could be if more of it had come."""
    text = body.decode("utf-8", "replace").strip()
    try:
        json.loads(text, strict=False)
    except json.JSONDecodeError as error:
        is_at_end = error.pos >= len(text) or error.msg.startswith("Unterminated string")
        return is_at_end and text.startswith("{")
    except (ValueError, RecursionError):
        pass
    return False


def _compression_of(body: bytes) -> str:
    """Returns the name of the compression format that the body's first bytes indicate; empty if none."""
    return next((name for magic, name in _COMPRESSIONS.items() if body.startswith(magic)), "")


def _access_token(document: Mapping[str, object], endpoint: str) -> str:
    token, kind = document.get("access_token"), document.get("token_type") or "bearer"
    if not isinstance(token, str) or not token:
        raise TokenUnavailable(f"{endpoint} answered without an access_token: {_HINTS['no_token_endpoint']}")
    if not _TOKEN.fullmatch(token) or len(token) > MAX_TOKEN:
        raise TokenUnavailable(
            f"{endpoint} gave an access_token that can't go into a header: "
            f"it must be up to {MAX_TOKEN:,} visible ASCII characters"
        )
    if not isinstance(kind, str) or not kind.lower().startswith("bearer"):
        raise TokenUnavailable(f"{endpoint} didn't return a bearer token (token_type): configure it to issue one")
    return token


def _life_s(expires_in: object) -> float:
    try:
        life_s = float(expires_in) if isinstance(expires_in, int | float | str) else math.nan
    except (ValueError, OverflowError):
        life_s = math.nan
    if math.isnan(life_s) or isinstance(expires_in, bool):
        return DEFAULT_LIFE_S
    return min(max(life_s, MIN_LIFE_S), MAX_LIFE_S)


def _error_in(document: Mapping[str, object] | None, status: int, config: FetchedToken) -> str:
    code = None if document is None else document.get("error")
    secret = "" if config.client_secret is None else config.client_secret.reveal_text()
    if isinstance(code, str) and _ERROR_CODE.fullmatch(code) and not (secret and secret in code):
        return f" ({code}): {_HINTS.get(code, 'see its documentation for this code')}"
    if 300 <= status < 400:
        return ", a redirect, which is never followed: set token_url to where it points"
    if status in (401, 403):
        return f": {_HINTS['invalid_client']}"
    if status in (404, 405):
        return ": check token_url"
    return ": try again later" if status == 429 or status >= 500 else ": check token_url and the grant's settings"


def _plain(text: str) -> str:
    return "".join(character if character.isprintable() else "?" for character in text[:256])
