"""Access tokens for SASL OAUTHBEARER (RFC 7628): from a token endpoint, from a file, or signed for AWS MSK IAM."""

import asyncio
import ssl
import time
from typing import Final, Protocol

import aiohttp

from dispatcher.auth.fetched_tokens import FetchedTokens
from dispatcher.auth.token_answers import MAX_ANSWER, TokenAnswer
from dispatcher.config.kafka_security import KafkaOauth, KafkaSecurity
from dispatcher.config.secrets import Secret, reread
from dispatcher.config.webhook_auth import FetchedToken
from dispatcher.contract.values import HttpHeaders
from dispatcher.errors import TokenUnavailable
from dispatcher.transport.tls import operator_context

TIMEOUT_S: Final = 8.0
"""Time for one request to the token endpoint: less than a connection may take."""
AWS_MARGIN_S: Final = 60.0
"""Time before its expiry (15 min after it was made) at which a signed AWS token is replaced."""


class TokenSource(Protocol):
    """A source of access tokens."""

    async def token(self, now: float) -> str:
        """Returns a token that is valid at `now`, unix seconds.

        Raises:
            TokenUnavailable: there is none; the message says what to change.
        """
        ...


def token_source(security: KafkaSecurity) -> TokenSource | None:
    """Returns the source that the settings name, or None without `kafka.security.oauth`."""
    oauth = security.oauth
    if oauth is None:
        return None
    if oauth.token is not None:
        return TokenFile(oauth.token)
    return AwsTokens(oauth.aws_region) if oauth.aws_region is not None else EndpointTokens(oauth)


class TokenFile:
    """A token that another program keeps in a file, such as a projected service account token."""

    def __init__(self, secret: Secret) -> None:
        self._secret = secret

    async def token(self, now: float) -> str:  # noqa: ARG002  (the file's writer renews it)
        """Returns the token in the file now."""
        try:
            text = (await asyncio.to_thread(reread, self._secret)).reveal_text().strip()
        except (OSError, ValueError) as error:
            raise TokenUnavailable(f"kafka.security.oauth.token: {error}") from None
        if not text.isascii() or not text.isprintable() or " " in text:
            raise TokenUnavailable("kafka.security.oauth.token: the file must hold one token, and nothing else")
        return text


class EndpointTokens:
    """Fetches tokens by client credentials (RFC 6749, section 4.4), and keeps each until shortly before it expires."""

    def __init__(self, oauth: KafkaOauth) -> None:
        self._oauth = oauth
        self._secret: Secret | None = None
        self._tokens: FetchedTokens | None = None

    async def token(self, now: float) -> str:
        """Returns a kept or newly fetched token. A failed fetch is repeated after 1 s, doubling to 30 s."""
        return await (await self._current()).token(now)

    async def _current(self) -> FetchedTokens:
        """Returns the tokens of the secret that is in the file now."""
        secret = self._oauth.client_secret
        if secret is not None:
            try:
                secret = await asyncio.to_thread(reread, secret)
            except (OSError, ValueError) as error:
                if self._tokens is None:
                    raise TokenUnavailable(f"kafka.security.oauth.client_secret: {error}") from None
                secret = self._secret
        if self._tokens is None or secret != self._secret:
            config = FetchedToken.model_construct(
                grant="client-credentials",
                token_url=self._oauth.token_url or "",
                client_id=self._oauth.client_id,
                client_secret=secret,
                scope=self._oauth.scope,
                audience=self._oauth.audience,
                assertion=None,
            )
            self._secret = secret
            self._tokens = FetchedTokens(config, _OperatorsEndpoint(self._oauth), TIMEOUT_S)
        return self._tokens


class _OperatorsEndpoint:
    """Reaches the operator's own token endpoint: the egress rules are for tenants' addresses, not for this one."""

    def __init__(self, oauth: KafkaOauth) -> None:
        self._oauth = oauth

    async def post_form(self, url: str, headers: HttpHeaders, body: bytes, timeout_s: float) -> TokenAnswer:
        """POSTs a form. Returns an answer without a status if the connection fails."""
        began = time.monotonic()
        timeout = aiohttp.ClientTimeout(total=timeout_s)
        try:
            connector = aiohttp.TCPConnector(ssl=await asyncio.to_thread(self._context), limit=1)
            cookies = aiohttp.DummyCookieJar()
            async with (
                aiohttp.ClientSession(connector=connector, timeout=timeout, cookie_jar=cookies) as http,
                http.post(
                    url,
                    data=body,
                    headers=[*headers, ("content-type", "application/x-www-form-urlencoded")],
                    allow_redirects=False,
                ) as answer,
            ):
                content = await answer.content.read(MAX_ANSWER)
                while len(content) < MAX_ANSWER and (more := await answer.content.read(MAX_ANSWER - len(content))):
                    content += more
                return TokenAnswer(answer.status, content, elapsed_s=time.monotonic() - began)
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError) as error:
            detail = _text_of(error, timeout_s)
            return TokenAnswer(None, detail=detail, elapsed_s=time.monotonic() - began)

    def _context(self) -> ssl.SSLContext:
        ca = self._oauth.ca
        try:
            return operator_context(ca)
        except ssl.SSLError as error:
            raise ValueError(f"kafka.security.oauth.ca: {ca} is not a bundle of certificates in PEM") from error
        except OSError as error:
            raise ValueError(f"kafka.security.oauth.ca: {ca} can't be read ({error.strerror})") from error


def _text_of(error: Exception, timeout_s: float) -> str:
    if isinstance(error, TimeoutError):
        return f"no answer in {timeout_s:g} s"
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        return f"its certificate is not trusted ({error.certificate_error}): set kafka.security.oauth.ca"
    return str(error) or type(error).__name__


class AwsTokens:
    """Signed requests that Amazon MSK accepts as tokens (IAM authentication). Needs the extra `msk-iam`."""

    def __init__(self, region: str) -> None:
        self._region = region
        self._token = ""
        self._until = 0.0

    async def token(self, now: float) -> str:
        """Returns a token signed with the AWS credentials of this pod: environment, web identity, instance metadata.

        Raises:
            TokenUnavailable: the extra is not installed, or AWS has no credentials for this pod.
        """
        if not self._token or now >= self._until:
            self._token, self._until = await asyncio.to_thread(self._sign)
        return self._token

    def _sign(self) -> tuple[str, float]:
        try:
            from aws_msk_iam_sasl_signer import MSKAuthTokenProvider
        except ImportError:
            raise TokenUnavailable("AWS MSK IAM needs the extra: pip install 'feedback-dispatcher[msk-iam]'") from None
        try:
            token, expires_ms = MSKAuthTokenProvider.generate_auth_token(self._region)
        except Exception as error:  # botocore's own hierarchy; AttributeError if it finds no credentials at all
            raise TokenUnavailable(
                f"no AWS credentials to sign with ({type(error).__name__}): give the pod a role "
                "(IRSA or pod identity), or set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
            ) from error
        return token, expires_ms / 1000 - AWS_MARGIN_S
