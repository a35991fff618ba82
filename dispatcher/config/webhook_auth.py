"""Authentication of a webhook: no token, one that the dispatcher signs, or one that it fetches."""

from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Annotated, Final, Literal, Self

from pydantic import AwareDatetime, Field, JsonValue, StringConstraints, field_validator, model_validator

from dispatcher.config.endpoint_urls import EndpointUrl
from dispatcher.config.names import Name
from dispatcher.config.secrets import Secret, TextSecret
from dispatcher.config.settings_group import ConfidentialGroup
from dispatcher.config.units import Seconds
from dispatcher.config.webhook_headers import MAX_HEADER_NAME, header_name_problem

MAX_AUDIENCES = 10
MAX_PARAMETERS = 20
MAX_PARAMETER = 2048
KEY_OVERLAP: Final = timedelta(hours=24)
"""Time for which the public key of a replaced signing key stays published."""
_LAST: Final = datetime.max.replace(microsecond=0, tzinfo=UTC)
_TOKEN_REQUEST_FIELDS = frozenset(
    {"grant_type", "assertion", "client_id", "client_secret", "scope", "client_assertion", "client_assertion_type"}
)


class SigningAlgorithm(StrEnum):
    """JWS algorithms (RFC 7518, section 3.1; RFC 8037; RFC 9864). There is no `none`."""

    HS256 = "HS256"
    HS384 = "HS384"
    HS512 = "HS512"
    RS256 = "RS256"
    RS384 = "RS384"
    RS512 = "RS512"
    PS256 = "PS256"
    PS384 = "PS384"
    PS512 = "PS512"
    ES256 = "ES256"
    ES384 = "ES384"
    ES512 = "ES512"
    EDDSA = "EdDSA"
    ED25519 = "Ed25519"
    ED448 = "Ed448"


class NextKey(ConfidentialGroup):
    """The next signing key of a token. Its public key is published before it signs."""

    algorithm: SigningAlgorithm
    """Signing algorithm of this key."""
    key: Secret
    """The HMAC secret, or the private key in PEM."""
    kid: Name | None = None
    """Key id in the token's header; it must differ from that of the key before."""
    starts: AwareDatetime
    """When it signs in place of the key before, with the zone: `2026-12-01T12:00:00Z`. The public key of the key
    before stays published for 24 hours after that."""

    @property
    def previous_ends(self) -> datetime:
        """When the previous key is withdrawn. Receivers may use cached tokens and JWKS documents until then.

        The last moment that there is, for a key that starts within a day of it: people write 9999-12-31 for never.
        """
        return _LAST if self.starts > _LAST - KEY_OVERLAP else self.starts + KEY_OVERLAP


Audience = Name | Annotated[list[Name], Field(min_length=1, max_length=MAX_AUDIENCES)]
"""Claim `aud`: one or several."""


class SignedToken(ConfidentialGroup):
    """A JWT that the dispatcher signs (RFC 7519)."""

    algorithm: SigningAlgorithm
    """Signing algorithm. The key must fit it."""
    key: Secret
    """The HMAC secret, or the private key in PEM."""
    kid: Name | None = None
    """Key id in the token's header, by which the receiver chooses the public key."""
    next: NextKey | None = None
    """The key that signs from a time on: `{algorithm: ES256, key: {file: 2.key}, starts: 2026-12-01T12:00:00Z}`."""
    issuer: Name = "feedback-dispatcher"
    """Claim `iss`."""
    subject: Name | None = None
    """Claim `sub`; left out if it is not given."""
    audience: Audience | None = None
    """Claim `aud`, a text or a list of up to 10; by default the endpoint's origin, `https://hooks.luma.example`."""
    ttl: Annotated[Seconds, Field(ge=10, le=300)] = 300
    """Lifetime of a token, `exp` minus `iat`: 10 s to 5 min."""
    claims: dict[Name, JsonValue] = Field(default_factory=dict, max_length=32, repr=False)
    """Further claims. The dispatcher sets `iss sub aud iat exp nbf jti` itself."""
    nbf: bool = False
    """Claim `nbf`, equal to `iat`, for receivers that require it."""
    jti: bool = False
    """Adds a unique claim `jti`, and signs a token for each request: for receivers that accept a token only once."""
    body_hash: bool = False
    """Signs a token for each request, with `jti` = webhook-id and `body_sha256` = the body's SHA-256 in base64url."""

    @field_validator("claims")
    @classmethod
    def _registered_claims_are_ours(cls, claims: dict[str, JsonValue]) -> dict[str, JsonValue]:
        taken = sorted(claims.keys() & {"iss", "sub", "aud", "iat", "exp", "nbf", "jti", "body_sha256"})
        if taken:
            raise ValueError(
                f"{', '.join(taken)} can't be set here: use issuer, subject, audience, ttl, nbf, jti, or leave it out"
            )
        return claims

    def followed(self) -> Self:
        """Returns the configuration in which the next key signs; the same configuration if there is no next key."""
        if self.next is None:
            return self
        follower = {"algorithm": self.next.algorithm, "key": self.next.key, "kid": self.next.kid}
        return self.model_copy(update=follower | {"next": None})


class FetchedToken(ConfidentialGroup):
    """A token from the tenant's token endpoint (RFC 6749, section 4.4; RFC 7523, section 2.1)."""

    grant: Literal["client-credentials", "jwt-bearer"]
    token_url: EndpointUrl
    """URL of the token endpoint; the rules of the webhook's URL apply."""
    client_id: Name | None = None
    client_secret: TextSecret | None = None
    """The client's secret; it is sent as `client_auth` says."""
    client_auth: Literal["basic", "post"] = "basic"
    """Method of sending client_id and client_secret (RFC 6749, section 2.3.1): HTTP Basic, or the form."""
    assertion: SignedToken | None = None
    """The assertion of grant `jwt-bearer`; its audience is the token endpoint by default."""
    scope: Name | None = None
    audience: Name | None = None
    """Parameter `audience`, which some authorisation servers require."""
    parameters: dict[Name, Annotated[str, StringConstraints(max_length=MAX_PARAMETER)]] = Field(
        default_factory=dict, max_length=MAX_PARAMETERS, repr=False
    )
    """Further parameters of the token request, `{resource: https://api.luma.example}`: at most 20. No secrets: they
    are stored and shown as text."""

    @field_validator("parameters")
    @classmethod
    def _fields_are_set_by_the_grant(cls, parameters: dict[str, str]) -> dict[str, str]:
        taken = sorted(parameters.keys() & _TOKEN_REQUEST_FIELDS)
        if taken:
            raise ValueError(f"{', '.join(taken)} can't be set here: use the setting of that name, or leave it out")
        return parameters

    @model_validator(mode="after")
    def _what_the_grant_needs(self) -> Self:
        if self.grant == "client-credentials" and (self.client_id is None or self.client_secret is None):
            raise ValueError("grant client-credentials needs client_id and client_secret: give both")
        if self.grant == "jwt-bearer" and self.assertion is None:
            raise ValueError("grant jwt-bearer needs assertion, the signed token: give its algorithm and key")
        if self.audience is not None and "audience" in self.parameters:
            raise ValueError("audience is given twice, as a setting and in parameters: keep one")
        return self


class NoAuth(ConfidentialGroup):
    """No authentication header."""

    type: Literal["none"] = "none"


class JwtAuth(ConfidentialGroup):
    """A JSON Web Token in a header, signed by the dispatcher or fetched from a token endpoint."""

    type: Literal["jwt"]
    sign: SignedToken | None = None
    fetch: FetchedToken | None = None
    header: Annotated[str, StringConstraints(max_length=MAX_HEADER_NAME)] = "authorization"
    """Name of the header with the token."""
    scheme: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9._-]*$", max_length=32)] = "Bearer"
    """Word before the token; empty for the bare token."""

    @field_validator("header")
    @classmethod
    def _header_is_ours_to_set(cls, name: str) -> str:
        problem = header_name_problem(name, frozenset())
        if problem:
            raise ValueError(problem)
        return name.lower()

    @model_validator(mode="after")
    def _one_way_to_a_token(self) -> Self:
        if (self.sign is None) == (self.fetch is None):
            raise ValueError("give either sign (a token that the dispatcher signs) or fetch (a token endpoint)")
        return self


Auth = Annotated[NoAuth | JwtAuth, Field(discriminator="type")]
