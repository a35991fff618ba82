"""Creates the authentication header of a webhook's requests. Delivery calls it before each POST."""

from typing import TYPE_CHECKING, Final, Self

from dispatcher.auth.token_answers import TokenEndpoint
from dispatcher.config.webhook_auth import JwtAuth
from dispatcher.config.webhooks import WebhookConfig
from dispatcher.contract.values import HttpHeader

if TYPE_CHECKING:  # they import `cryptography` and `jwt`, 9 MB that only webhooks with tokens need
    from dispatcher.auth.fetched_tokens import FetchedTokens
    from dispatcher.auth.jwt_signer import JwtSigner
    from dispatcher.auth.public_keys import PublicJwk


TOKEN_TIMEOUT_S: Final = 5.0
"""Seconds for one request to a token endpoint, everything included: half of an attempt's time."""


class Authenticator:
    """Authenticates the requests of one revision of a webhook, and caches its token.

    Each revision needs its own, because its key or token endpoint may differ. Times are Unix seconds.
    """

    __slots__ = ("_cached", "_fetched", "_name", "_scheme", "_signer", "needs_body")

    needs_body: bool
    """True if each request needs a token of its own (`body_hash`, `jti`); `cached_header` then always returns None."""

    def __init__(self, auth: JwtAuth | None, signer: "JwtSigner | None", fetched: "FetchedTokens | None") -> None:
        self._signer = signer
        self._fetched = fetched
        self._name = "" if auth is None else auth.header
        self._scheme = f"{auth.scheme} " if auth is not None and auth.scheme else ""
        self._cached: tuple[str, HttpHeader] = ("", ("", ""))
        self.needs_body = auth is not None and auth.sign is not None and (auth.sign.body_hash or auth.sign.jti)

    @classmethod
    def of(
        cls, config: WebhookConfig, token_endpoint: TokenEndpoint, *, token_timeout_s: float = TOKEN_TIMEOUT_S
    ) -> Self:
        """Creates the authenticator of a webhook. `token_endpoint` is used only if its tokens are fetched.

        Raises:
            ValueError: the key can't be used. `problems_of` reports that when the configuration is read.
        """
        auth = config.auth
        if not isinstance(auth, JwtAuth):
            return cls(None, None, None)
        from dispatcher.auth.fetched_tokens import FetchedTokens
        from dispatcher.auth.jwt_signer import JwtSigner

        signer = None if auth.sign is None else JwtSigner(auth.sign, config.origin)
        fetched = None if auth.fetch is None else FetchedTokens(auth.fetch, token_endpoint, token_timeout_s)
        return cls(auth, signer, fetched)

    @property
    def is_none(self) -> bool:
        """True if requests carry no authentication header."""
        return self._signer is None and self._fetched is None

    @property
    def is_fetched(self) -> bool:
        """True if tokens come from a token endpoint, so that a fresh one may help after a 401; see `invalidate`."""
        return self._fetched is not None

    @property
    def public_jwk(self) -> "PublicJwk | None":
        """Public key that verifies our signatures, for the JWKS document; None without one, as with HMAC."""
        signer = self._signer if self._fetched is None else self._fetched.signer
        return None if signer is None else signer.key.public_jwk

    def cached_header(self, now: float) -> HttpHeader | None:
        """Returns the header without waiting, or None if requests carry none or `header` has to be awaited.

        Costs well under a microsecond. Call it in a running loop: a fetched token past its renewal point is renewed
        in a task, while the old one serves.
        """
        if self._signer is not None:
            return None if self.needs_body else self._header(self._signer.token(now))
        token = None if self._fetched is None else self._fetched.kept(now)
        return None if token is None else self._header(token)

    async def header(self, *, webhook_id: str, body: bytes, now: float) -> HttpHeader | None:
        """Returns the header of this request, or None without authentication.

        Waits at most the token endpoint's timeout. Cancelling one caller doesn't cancel the others.

        Raises:
            TokenUnavailable: no token could be fetched; the message says what the tenant can change.
        """
        if self._fetched is not None:
            return self._header(await self._fetched.token(now))
        if self.needs_body and self._signer is not None:
            return self._header(self._signer.token_for(now, webhook_id, body))
        return self.cached_header(now)

    def invalidate(self, header: HttpHeader, *, now: float) -> bool:
        """Reports that the endpoint answered 401 to this header.

        Returns True if the caller should get the header again and retry once, False if a fresh token would not help.
        """
        token = header[1].removeprefix(self._scheme)
        return self._fetched is not None and self._fetched.invalidate(token, now)

    async def close(self) -> None:
        """Cancels a fetch in progress. Call it when the revision is replaced, and at the end of the process."""
        if self._fetched is not None:
            await self._fetched.close()

    def __repr__(self) -> str:
        return f"<Authenticator {self._fetched or self._signer or 'none'}>"

    def _header(self, token: str) -> HttpHeader:
        cached, header = self._cached
        if cached is not token:
            header = (self._name, self._scheme + token)
            self._cached = (token, header)
        return header
