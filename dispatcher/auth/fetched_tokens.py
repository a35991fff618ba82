"""Fetches tokens from a tenant's token endpoint, caches them for all callers, and renews them before they expire.

An endpoint gets one request at a time. After a failure it gets none for 1 s, doubling to 30 s.
"""

import asyncio
import secrets
from dataclasses import dataclass, field
from typing import Final

from dispatcher.auth.jwt_signer import JwtSigner, renew_margin
from dispatcher.auth.token_answers import (
    MAX_LIFE_S,
    IssuedToken,
    TokenAnswer,
    TokenEndpoint,
    endpoint_name,
    form_of,
    token_in,
)
from dispatcher.config.webhook_auth import FetchedToken
from dispatcher.errors import TokenUnavailable
from dispatcher.tasks import SingleFlight

COOL_DOWN_S: Final = 1.0
"""Pause after the first failure; it doubles with each further failure."""
MAX_COOL_DOWN_S: Final = 30.0
REFRESH_EVERY_S: Final = 10.0
"""A refused token is discarded at most this often, so an endpoint that refuses every token causes few fetches."""


@dataclass(frozen=True, slots=True)
class _CachedToken:
    value: str = field(repr=False)
    renew_at: float
    expires_at: float


class FetchedTokens:
    """Fetches and caches the token of one webhook. Times are Unix seconds, passed in by the caller."""

    def __init__(self, config: FetchedToken, endpoint: TokenEndpoint, timeout_s: float) -> None:
        """Creates the cache without fetching. Each request to `endpoint` may take `timeout_s` seconds.

        Raises:
            ValueError: the assertion's key doesn't fit; see `problems_of`.
        """
        self._config = config
        self._endpoint = endpoint
        self._timeout_s = timeout_s
        self._signer = assertion_signer(config)
        self._kept: _CachedToken | None = None
        self._fetches = SingleFlight[None, IssuedToken | TokenUnavailable]("token fetch")
        self._failures = 0
        self._problem = TokenUnavailable("")
        self._asked_again_at = 0.0
        self._refreshed_at: float | None = None
        self._closed = False

    @property
    def signer(self) -> JwtSigner | None:
        """The signer of assertions, or None if the grant is `client-credentials`."""
        return self._signer

    def kept(self, now: float) -> str | None:
        """Returns the cached token if it is valid at `now`, or None if one has to be fetched. Never waits.

        A token past its renewal point is still used, while one request fetches the next.
        """
        kept = self._kept
        if kept is None or not kept.expires_at - MAX_LIFE_S <= now < kept.expires_at:
            return None
        if now >= kept.renew_at and not self._closed and self._cooling_s(now) <= 0:
            self._start_fetch(now)
        return kept.value

    async def token(self, now: float) -> str:
        """Returns a token that is valid at `now`. All callers share one request, and no caller can cancel it.

        Raises:
            TokenUnavailable: there is none; the message says what the tenant can change.
        """
        kept = self.kept(now)
        if kept is not None:
            return kept
        if self._closed:
            raise TokenUnavailable(f"{endpoint_name(self._config)} gets no more requests: its webhook was closed")
        cooling_s = self._cooling_s(now)
        if cooling_s > 0:
            problem = self._problem
            raise TokenUnavailable(f"{problem}; the next request is in {cooling_s:.1f} s", is_local=problem.is_local)
        fetch = self._start_fetch(now)
        await asyncio.wait({fetch})  # doesn't cancel the fetch if this caller is cancelled
        if fetch.cancelled():
            raise TokenUnavailable(f"{endpoint_name(self._config)} gets no more requests: its webhook was closed")
        answer = fetch.result()
        if isinstance(answer, TokenUnavailable):
            raise TokenUnavailable(str(answer), is_local=answer.is_local)
        return answer.value

    def invalidate(self, token: str, now: float) -> bool:
        """Reports that the endpoint refused this token. Returns True if a retry with another one may work.

        Discards the token only if it is the cached one, and at most one token in 10 s.
        """
        if self._kept is None or self._kept.value != token:
            return True
        if self._refreshed_at is not None and 0 <= now - self._refreshed_at < REFRESH_EVERY_S:
            return False
        self._refreshed_at = now
        self._kept = None
        return True

    async def close(self) -> None:
        """Cancels a request in progress; its callers get TokenUnavailable."""
        self._closed = True
        await self._fetches.close()

    def __repr__(self) -> str:
        state = "kept" if self._kept else "none"
        return f"<FetchedTokens {self._config.grant} [token: {state}, failures in a row: {self._failures}]>"

    def _cooling_s(self, now: float) -> float:
        left_s = self._asked_again_at - now
        return left_s if left_s <= 2 * MAX_COOL_DOWN_S else 0.0  # more: the clock was set back

    def _start_fetch(self, now: float) -> "asyncio.Task[IssuedToken | TokenUnavailable]":
        return self._fetches.start(None, lambda: self._fetch(now))

    async def _fetch(self, now: float) -> IssuedToken | TokenUnavailable:
        """Fetches a token. Returns a failure instead of raising it, so that each caller raises its own exception."""
        answer = await self._answer(now)
        try:
            issued = token_in(answer, self._config)
        except TokenUnavailable as error:
            self._failed(error, now + answer.elapsed_s)
            return error
        self._failures, self._asked_again_at = 0, 0.0
        expires_at = now + issued.life_s
        self._kept = _CachedToken(issued.value, expires_at - renew_margin(issued.life_s), expires_at)
        return issued

    async def _answer(self, now: float) -> TokenAnswer:
        assertion = None if self._signer is None else self._signer.assertion(now, secrets.token_urlsafe(16))
        headers, body = form_of(self._config, assertion)
        try:
            async with asyncio.timeout(self._timeout_s):
                return await self._endpoint.post_form(self._config.token_url, headers, body, self._timeout_s)
        except TimeoutError:
            return TokenAnswer(None, detail=f"no answer in {self._timeout_s:g} s", elapsed_s=self._timeout_s)
        except Exception:
            self._failed(
                TokenUnavailable(f"{endpoint_name(self._config)} could not be reached: an internal error"), now
            )
            raise

    def _failed(self, problem: TokenUnavailable, at: float) -> None:
        cool_down_s = min(COOL_DOWN_S * 2.0 ** min(self._failures, 10), MAX_COOL_DOWN_S)
        self._failures += 1
        self._problem = problem
        self._asked_again_at = at + cool_down_s


def assertion_signer(config: FetchedToken) -> JwtSigner | None:
    """Returns the signer of `jwt-bearer` assertions (RFC 7523, section 3), or None with client credentials.

    By default `aud` is the token endpoint, and `sub` is the client_id or, if there is none, the issuer.

    Raises:
        ValueError: the key or a claim can't be used.
    """
    if config.grant != "jwt-bearer" or config.assertion is None:
        return None
    return JwtSigner(config.assertion, config.token_url, config.client_id or config.assertion.issuer)
