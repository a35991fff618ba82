"""Signs JSON Web Tokens (RFC 7519) as a configuration says, and caches them until shortly before they expire.

Time is an argument, in Unix seconds; nothing is read or sent.
"""

import hashlib
import json
import secrets
from collections.abc import Mapping
from typing import Final

import orjson
from pydantic import JsonValue

from dispatcher.auth.signing_keys import SigningKey, load_key
from dispatcher.config.webhook_auth import SignedToken
from dispatcher.contract import base64url

MAX_CLAIMS: Final = 4096
"""Bytes of the further claims as JSON: the token that they make goes into one header line, which servers bound."""

_SKEW_S: Final = 10
_RENEW_S: Final = 30


def renew_margin(life_s: float) -> float:
    """Returns how many seconds before expiry a token is renewed: 30 s or, if longer, 1/5 of its life; at most half."""
    return min(max(life_s / 5, _RENEW_S), life_s / 2)


class JwtSigner:
    """Signs the tokens of one webhook, or the assertions for one token endpoint.

    `iat` lies up to 10 s (at most a fifth of the ttl) in the past, so that a receiver whose clock is behind ours
    accepts the token; `exp` is always `iat` plus the ttl.
    """

    __slots__ = (
        "_cached", "_claims", "_exp", "_has_body_hash", "_has_nbf", "_header", "_iat", "_key", "_next", "_skew",
        "_starts", "_ttl",
    )  # fmt: skip

    def __init__(self, token: SignedToken, audience: str, subject: str | None = None) -> None:
        """Loads the keys that `token` configures. `audience` and `subject` are used if `token` sets none.

        Raises:
            ValueError: the key doesn't fit, or the claims are not JSON or too long; see `problems_of`.
        """
        problem = problem_of_claims(token.claims)
        if problem:
            raise ValueError(f"claims: {problem}")
        self._use(load_key(token))
        self._next: SigningKey | None = None if token.next is None else load_key(token.followed())
        self._starts = 0.0 if token.next is None else token.next.starts.timestamp()
        self._ttl = max(1, int(token.ttl))
        self._skew = min(_SKEW_S, self._ttl // 5)
        aud: JsonValue = list(token.audience) if isinstance(token.audience, list) else token.audience or audience
        self._claims: dict[str, JsonValue] = {**token.claims, "iss": token.issuer, "aud": aud}
        self._has_nbf = token.nbf
        self._has_body_hash = token.body_hash
        if token.subject or subject:
            self._claims["sub"] = token.subject or subject
        self._cached = ""
        self._iat = self._exp = 0

    @property
    def key(self) -> SigningKey:
        """The key that signs, for display and for the JWKS document."""
        return self._key

    def token(self, now: float) -> str:
        """Returns the cached token, or signs a new one if that is due for renewal.

        Also signs a new one if the clock was set back, because the cached token's `iat` would lie in the future.
        """
        if self._is_next_due(now) or not self._iat <= now < self._exp - renew_margin(self._ttl):
            self._iat = int(now) - self._skew
            self._exp = self._iat + self._ttl
            self._cached = self._make(now, self._iat, {})
        return self._cached

    def token_for(self, now: float, webhook_id: str, body: bytes) -> str:
        """Returns a token for this request alone.

        With `body_hash`, `jti` is the webhook-id and `body_sha256` is the body's SHA-256 in base64url. Otherwise `jti`
        is random, so that no two attempts share it.
        """
        if self._has_body_hash:
            digest = base64url.encode(hashlib.sha256(body).digest())
            return self._make(now, int(now) - self._skew, {"jti": webhook_id, "body_sha256": digest})
        return self._make(now, int(now) - self._skew, {"jti": secrets.token_urlsafe(16)})

    def assertion(self, now: float, jti: str) -> str:
        """Returns a token to be used once, as an authorisation grant (RFC 7523, section 3)."""
        return self._make(now, int(now) - self._skew, {"jti": jti})

    def __repr__(self) -> str:
        return f"<JwtSigner {self._key.algorithm}, {self._key.description}>"

    def _use(self, key: SigningKey) -> None:
        self._key = key
        kid = {} if key.kid is None else {"kid": key.kid}
        self._header = _segment({"alg": key.algorithm.value, **kid, "typ": "JWT"})

    def _is_next_due(self, now: float) -> bool:
        return self._next is not None and now >= self._starts

    def _make(self, now: float, iat: int, more: dict[str, str]) -> str:
        if self._next is not None and self._is_next_due(now):
            self._use(self._next)
            self._next = None
        times = {"nbf": iat} if self._has_nbf else {}
        message = self._header + b"." + _segment({**self._claims, "iat": iat, **times, "exp": iat + self._ttl, **more})
        return f"{message.decode()}.{base64url.encode(self._key.sign(message))}"


def _segment(members: Mapping[str, JsonValue]) -> bytes:
    return base64url.encode(orjson.dumps(members)).encode()


def problem_of_claims(claims: dict[str, JsonValue]) -> str | None:
    """Returns why these further claims can't be used in a token, or None if they can."""
    try:
        json.dumps(claims, allow_nan=False)  # orjson would write null for them
        size = len(orjson.dumps(claims))
    except (ValueError, TypeError):
        return "a number is not finite or has over 64 bits, or a text isn't Unicode: write it as plain text"
    return f"at most {MAX_CLAIMS:,} bytes as JSON, these have {size:,}: shorten them" if size > MAX_CLAIMS else None
