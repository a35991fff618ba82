"""OpenID Connect: verifies access tokens and signs browsers in at the issuer (authorization code with PKCE).

A token's claims are used only after its signature, issuer, audience and times were verified. Only asymmetric
algorithms are accepted, so that a public key never serves as an HMAC secret. Roles and organisations come from the
claims.
"""

import asyncio
import hashlib
from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import Final, Self
from urllib.parse import urlencode, urlsplit

import aiohttp
import jwt
import structlog
from pydantic import JsonValue

from dispatcher.config.console_settings import OidcSettings
from dispatcher.config.secrets import RotatingSecret, Secret
from dispatcher.console.issuer import Issuer
from dispatcher.console.model import Person
from dispatcher.console.sessions import Handshake
from dispatcher.contract import base64url
from dispatcher.errors import DispatcherError, IssuerUnavailable
from dispatcher.stores.sql.records import Role

ALGORITHMS: Final = frozenset(
    {"RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"}
)
LEEWAY_S: Final = 30.0
"""Seconds by which the issuer's clock may differ from ours."""
MAX_NAME: Final = 200
_ELSEWHERE: Final = (
    "is not in the token, probably because it is too long: have the issuer put in only the values that count here"
)
_TYPES = frozenset({"jwt", "at+jwt", "application/at+jwt"})

log = structlog.get_logger(__name__)


class TokenRefused(DispatcherError):
    """The token can't be accepted; the message says why, without quoting it."""


class Oidc:
    """Verifies tokens of one issuer. An async context manager that owns the HTTP connections."""

    def __init__(self, settings: OidcSettings, redirect_uri: str) -> None:
        self._settings = settings
        self._redirect_uri = redirect_uri
        self._issuer = Issuer(settings)
        secret = settings.client_secret
        self._secret = (
            None if secret is None else RotatingSecret(secret, "console.oidc.client_secret", Secret.reveal_text)
        )

    @property
    def can_sign_in(self) -> bool:
        """True if a client id is configured, so that browsers can sign in at the issuer."""
        return self._settings.client_id is not None

    async def __aenter__(self) -> Self:
        await self._issuer.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._issuer.__aexit__(kind, error, traceback)

    async def person_of_access_token(self, text: str) -> Person:
        """Returns the holder of an access token.

        Raises:
            TokenRefused: the token can't be accepted.
            IssuerUnavailable: the issuer's keys could not be fetched, and none are cached.
        """
        return self._person(await self._verified(text, self._settings.audience))

    async def sign_in_url(self, handshake: Handshake) -> str:
        """Returns the URL at the issuer where the browser signs in. Raises IssuerUnavailable."""
        endpoint = await self._issuer.endpoint("authorization_endpoint")
        challenge = base64url.encode(hashlib.sha256(handshake.verifier.encode()).digest())
        query = urlencode(
            {
                "response_type": "code",
                "client_id": self._settings.client_id or "",
                "redirect_uri": self._redirect_uri,
                "scope": " ".join(self._settings.scopes),
                "state": handshake.state,
                "nonce": handshake.nonce,
                "code_challenge": challenge,
                "code_challenge_method": "S256",
            }
        )
        return f"{endpoint}{'&' if urlsplit(endpoint).query else '?'}{query}"

    async def redeem(self, code: str, handshake: Handshake) -> Person:
        """Exchanges the issuer's code for an ID token and returns its holder.

        Raises:
            TokenRefused: the issuer does not accept the code, or its ID token can't be accepted.
            IssuerUnavailable: the issuer did not answer.
        """
        form = {
            "grant_type": "authorization_code",
            "code": code,
            "redirect_uri": self._redirect_uri,
            "client_id": self._settings.client_id or "",
            "code_verifier": handshake.verifier,
        }
        headers: dict[str, str] = {}
        if self._secret is not None:
            secret = await asyncio.to_thread(self._secret.current)
            if await self._issuer.takes_basic():
                headers["Authorization"] = aiohttp.encode_basic_auth(
                    _form_encoded(self._settings.client_id or ""), _form_encoded(secret.reveal_text()), "utf-8"
                )
            else:
                form["client_secret"] = secret.reveal_text()
        answer = await self._issuer.post("token_endpoint", form, headers)
        token = None if answer is None else answer.get("id_token")
        if not isinstance(token, str):
            raise TokenRefused("the issuer did not take the code, or gave no ID token")
        claims = await self._verified(token, self._settings.client_id or "")
        if claims.get("nonce") != handshake.nonce:
            raise TokenRefused("its nonce is not that of this sign-in")
        if claims.get("azp", self._settings.client_id) != self._settings.client_id:
            raise TokenRefused("it was made for another client")
        if _is_elsewhere(claims, self._settings.role_claim):
            log.warning("signed in as a viewer", why=f"claim {self._settings.role_claim} {_ELSEWHERE}")
        return self._person(claims)

    async def _verified(self, text: str, audience: str) -> Mapping[str, JsonValue]:
        try:
            header = jwt.get_unverified_header(text)
        except (jwt.PyJWTError, ValueError, TypeError, ArithmeticError, RecursionError):
            raise TokenRefused("it isn't a token") from None
        algorithm, key_id, kind = header.get("alg"), header.get("kid"), header.get("typ", "JWT")
        if not isinstance(algorithm, str) or algorithm not in ALGORITHMS:
            raise TokenRefused("its algorithm is not taken here")
        if not isinstance(kind, str) or kind.lower() not in _TYPES:
            raise TokenRefused("it is another kind of token")
        key = await self._issuer.key(key_id if isinstance(key_id, str) else None, algorithm)
        if key is None:
            raise TokenRefused("it was signed with a key that the issuer does not name")
        try:
            claims: dict[str, JsonValue] = jwt.decode(
                text,
                key,
                algorithms=[algorithm],
                audience=audience,
                issuer=self._settings.issuer,
                leeway=LEEWAY_S,
                options={"require": ["exp", "iss", "aud", "sub"]},
            )
        except jwt.ExpiredSignatureError:
            raise TokenRefused("it has expired") from None
        except jwt.ImmatureSignatureError:
            raise TokenRefused("it is not good yet") from None
        except jwt.InvalidIssuerError:
            raise TokenRefused("another issuer made it") from None
        except jwt.InvalidAudienceError:
            raise TokenRefused("it was made for another audience") from None
        except jwt.MissingRequiredClaimError as error:
            raise TokenRefused(f"claim {error.claim} is missing") from None
        except (jwt.PyJWTError, ValueError, TypeError, ArithmeticError, RecursionError):
            raise TokenRefused("its signature or its form is wrong") from None
        return claims

    def _person(self, claims: Mapping[str, JsonValue]) -> Person:
        settings = self._settings
        subject = claims.get("sub")
        orgs = frozenset(_texts(_claim(claims, settings.orgs_claim)))  # an organisation's id may contain spaces
        if not isinstance(subject, str) or not subject:
            raise TokenRefused("claim sub is missing")
        if not orgs:
            is_elsewhere = _is_elsewhere(claims, settings.orgs_claim)
            why = _ELSEWHERE if is_elsewhere else "names no organisation"
            raise TokenRefused(f"claim {settings.orgs_claim} {why}")
        roles = set(_roles(_claim(claims, settings.role_claim)))
        role = Role.ADMIN if roles & set(settings.admin_values) else Role.VIEWER
        return Person(f"oidc:{subject}", self._name(claims, subject), role, None if "*" in orgs else orgs)

    def _name(self, claims: Mapping[str, JsonValue], subject: str) -> str:
        name = _claim(claims, self._settings.name_claim)
        text = name if isinstance(name, str) and name.strip() else subject
        return "".join(character for character in text if character.isprintable())[:MAX_NAME]


def _claim(claims: Mapping[str, JsonValue], name: str) -> JsonValue:
    """Returns a claim by its name, else by dotted path: names may contain dots (`https://…/roles`)."""
    if name in claims:
        return claims[name]
    at: JsonValue = dict(claims)
    for step in name.split("."):
        at = at.get(step) if isinstance(at, dict) else None
    return at


def _texts(value: JsonValue) -> Iterator[str]:
    """Returns the values of a claim: one text, or the texts of a list."""
    for item in value if isinstance(value, list) else [value]:
        if isinstance(item, str) and item:
            yield item


def _roles(value: JsonValue) -> Iterator[str]:
    """Returns the roles of a claim: the texts of a list as they are, of one text also its words, as in `scope`."""
    for text in _texts(value):
        yield text
        if isinstance(value, str):  # a role of a list is a whole name: `HR admin` isn't `admin`
            yield from text.split()


def _is_elsewhere(claims: Mapping[str, JsonValue], name: str) -> bool:
    """Returns True if the issuer left a claim out and names another place for it (OpenID Connect Core, 5.6.2)."""
    names = claims.get("_claim_names")
    return _claim(claims, name) is None and isinstance(names, dict) and not {name, name.split(".")[0]}.isdisjoint(names)


def _form_encoded(text: str) -> str:
    """Encodes credentials for HTTP Basic as RFC 6749, section 2.3.1 requires."""
    return urlencode({"": text})[1:]


__all__ = ["ALGORITHMS", "IssuerUnavailable", "Oidc", "TokenRefused"]
