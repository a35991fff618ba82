"""Client of an OIDC issuer: its discovery document, its keys and its token endpoint.

Every request has a deadline and a limit on the response's size; redirects are not followed. Keys are fetched again
every ten minutes, and for an unknown key id at most once in 30 s. While the issuer is unavailable, the cached keys stay
in use.
"""

import asyncio
from collections.abc import Callable, Mapping
from time import monotonic
from types import TracebackType
from typing import Final, Self
from urllib.parse import urlsplit

import aiohttp
import jwt
import structlog
from pydantic import JsonValue

from dispatcher.auth.token_answers import json_object
from dispatcher.config.console_settings import OidcSettings
from dispatcher.config.web_addresses import is_protected
from dispatcher.console import measures
from dispatcher.errors import IssuerUnavailable
from dispatcher.transport.failures import TransportError
from dispatcher.transport.tls_contexts import TlsContexts

WITHIN_S: Final = 5.0
MAX_BYTES: Final = 256 * 1024
FRESH_S: Final = 600.0
"""Seconds until cached keys are fetched again, and so until a withdrawn key is refused."""
STALE_S: Final = 86_400.0
"""Seconds for which cached keys stay in use while the issuer is unavailable."""
FETCH_INTERVAL_S: Final = 30.0
FIRST_FETCH_INTERVAL_S: Final = 2.0
"""The same while no key is cached."""

MIN_RSA_BITS: Final = 2048
MAX_RSA_BITS: Final = 16_384
"""Verifying with a longer key would block the event loop for too long."""

log = structlog.get_logger(__name__)

_Document = Mapping[str, JsonValue]


class Issuer:
    """Client of one issuer. An async context manager that owns the HTTP connections."""

    def __init__(self, settings: OidcSettings, clock: Callable[[], float] = monotonic) -> None:
        self._settings = settings
        self._clock = clock
        self._contexts = TlsContexts(settings.ca)
        self._client: aiohttp.ClientSession | None = None
        self._discovery: _Document | None = None
        self._discovered_at = 0.0
        self._keys: dict[str | None, list[jwt.PyJWK]] = {}
        self._fetched_at: float | None = None
        self._last_fetch_at: float | None = None
        self._fetch_lock = asyncio.Lock()

    async def __aenter__(self) -> Self:
        self._client = aiohttp.ClientSession(
            timeout=aiohttp.ClientTimeout(total=WITHIN_S),
            connector=aiohttp.TCPConnector(limit=8),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            headers={"Accept": "application/json", "Accept-Encoding": "identity"},
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._contexts.close()
        if self._client is not None:
            await self._client.close()

    async def key(self, key_id: str | None, algorithm: str) -> jwt.PyJWK | None:
        """Returns the key with this id for this algorithm, or None if the issuer has none.

        Raises:
            IssuerUnavailable: no key is cached, and none could be fetched.
        """
        found = self._known(key_id, algorithm)
        age = None if self._fetched_at is None else self._clock() - self._fetched_at
        if found is not None and age is not None and (age < FRESH_S or (age < STALE_S and self._fetch_lock.locked())):
            return found
        async with self._fetch_lock:
            if self._may_fetch():
                self._last_fetch_at = self._clock()
                try:
                    await self._fetch_keys()
                except IssuerUnavailable as error:
                    log.warning("OIDC keys could not be fetched; the cached ones stay in use", why=str(error))
        if self._fetched_at is None or self._clock() - self._fetched_at >= STALE_S:
            raise IssuerUnavailable("the sign-in service does not answer, and its keys are not known")
        return self._known(key_id, algorithm)

    async def endpoint(self, name: str) -> str:
        """Returns the URL of an endpoint in the discovery document. Raises IssuerUnavailable."""
        url = (await self._discovered()).get(name)
        if not isinstance(url, str) or not is_protected(url):
            raise IssuerUnavailable(f"the sign-in service names no {name} with https")
        return url

    async def takes_basic(self) -> bool:
        """Returns True if the token endpoint accepts the client's secret by HTTP Basic, which is the default."""
        methods = (await self._discovered()).get("token_endpoint_auth_methods_supported")
        return not isinstance(methods, list) or "client_secret_basic" in methods

    async def post(self, name: str, form: Mapping[str, str], headers: Mapping[str, str]) -> _Document | None:
        """Posts a form. Returns the response's document, or None for a 4xx. Raises IssuerUnavailable."""
        return await self._fetch("token", "POST", await self.endpoint(name), form, headers)

    def _known(self, key_id: str | None, algorithm: str) -> jwt.PyJWK | None:
        # Without an id, the key is used only if it is the only one for the algorithm.
        fitting = [key for key in self._keys.get(key_id, ()) if key.algorithm_name == algorithm]
        if key_id is None and not fitting:
            fitting = [key for keys in self._keys.values() for key in keys if key.algorithm_name == algorithm]
        return fitting[0] if len(fitting) == 1 or (key_id is not None and fitting) else None

    def _may_fetch(self) -> bool:
        every = FETCH_INTERVAL_S if self._fetched_at is not None else FIRST_FETCH_INTERVAL_S
        return self._last_fetch_at is None or self._clock() - self._last_fetch_at >= every

    async def _fetch_keys(self) -> None:
        url = self._settings.jwks_url or await self.endpoint("jwks_uri")
        document = await self._fetch("keys", "GET", url)
        entries = None if document is None else document.get("keys")
        if not isinstance(entries, list):
            measures.KEY_FETCH_FAILURES.labels("keys").inc()
            raise IssuerUnavailable("the document at the sign-in service's jwks_uri isn't a JWKS document")
        keys: dict[str | None, list[jwt.PyJWK]] = {}
        for entry in entries[:100]:
            for key in _usable(entry):
                keys.setdefault(key.key_id, []).append(key)
        self._keys, self._fetched_at = keys, self._clock()

    async def _discovered(self) -> _Document:
        now = self._clock()
        if self._discovery is None or now - self._discovered_at >= FRESH_S:
            url = self._settings.issuer.rstrip("/") + "/.well-known/openid-configuration"
            try:
                document = await self._fetch("discovery", "GET", url)
                if document is None or document.get("issuer") != self._settings.issuer:
                    measures.KEY_FETCH_FAILURES.labels("discovery").inc()
                    raise IssuerUnavailable(f"{url} is not the discovery document of console.oidc.issuer")
                self._discovery = document
            except IssuerUnavailable as error:
                if self._discovery is None:
                    raise
                log.warning("OIDC discovery failed; the cached document stays in use", why=str(error))
            self._discovered_at = now
        return self._discovery

    async def _fetch(
        self,
        what: str,
        method: str,
        url: str,
        form: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> _Document | None:
        if self._client is None:
            raise IssuerUnavailable("not opened")
        if not is_protected(url):
            raise IssuerUnavailable(f"{url}: only https, or a loopback address")
        problem = "its answer is not what it should be"
        try:
            await self._contexts.prepare(None, WITHIN_S)  # the CA as its file has it now
            async with self._client.request(
                method, url, data=form, headers=headers, ssl=self._contexts.of_operator(), allow_redirects=False
            ) as answer:
                body = await _bounded(answer)
                if what == "token" and 400 <= answer.status < 500:
                    log.warning("OIDC token endpoint refused a code", status=answer.status)
                    return None
                document = json_object(body) if answer.status == 200 else None
                if document is not None:
                    return document
                problem = f"it answered {answer.status}" if answer.status != 200 else problem
        except (aiohttp.ClientError, TransportError, TimeoutError, OSError, ValueError) as error:
            problem = type(error).__name__
        measures.KEY_FETCH_FAILURES.labels(what).inc()
        raise IssuerUnavailable(f"the sign-in service at {urlsplit(url).netloc} gives no {what}: {problem}")


async def _bounded(answer: aiohttp.ClientResponse) -> bytes:
    body = bytearray()
    async for chunk in answer.content.iter_chunked(16_384):
        body += chunk
        if len(body) > MAX_BYTES:
            raise ValueError("larger than any such document")
    return bytes(body)


def _usable(entry: JsonValue) -> list[jwt.PyJWK]:
    """Returns a key of the document once for each algorithm that it may be used with.

    Returns nothing if `use` or `key_ops` (RFC 7517, section 4) excludes verifying signatures.
    """
    if not isinstance(entry, dict) or not _is_for_verifying(entry):
        return []
    named = entry.get("alg")
    kind = f"{entry.get('kty')} {entry.get('crv', '')}".strip()
    keys = []
    for algorithm in _ALGORITHMS.get(kind, ()):
        if named in (None, algorithm):
            try:
                key = jwt.PyJWK.from_dict(entry, algorithm)
            except (jwt.PyJWTError, ValueError, TypeError, ArithmeticError):
                log.warning("a key of the OIDC issuer can't be used", kty=kind, algorithm=algorithm)
                continue
            if kind != "RSA" or MIN_RSA_BITS <= key.key.key_size <= MAX_RSA_BITS:
                keys.append(key)
    return keys


def _is_for_verifying(entry: Mapping[str, JsonValue]) -> bool:
    operations = entry.get("key_ops", ["verify"])
    key_id = entry.get("kid")
    return (
        entry.get("use", "sig") == "sig"
        and isinstance(operations, list)
        and "verify" in operations
        and (key_id is None or isinstance(key_id, str))
    )


_ALGORITHMS: Final[Mapping[str, tuple[str, ...]]] = {
    "RSA": ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512"),
    "EC P-256": ("ES256",),
    "EC P-384": ("ES384",),
    "EC P-521": ("ES512",),
    "OKP Ed25519": ("EdDSA",),
    "OKP Ed448": ("EdDSA",),
}
