"""The configuration of one tenant's webhook, with every check that needs no network.

Each error message says what the tenant has to change. The egress guard (`transport.egress`) decides whether the
address of the URL may be connected to.
"""

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from functools import cached_property
from itertools import islice
from typing import Annotated, Final, Literal, Self
from urllib.parse import SplitResult, urlsplit

import orjson
from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    PlainSerializer,
    PlainValidator,
    StringConstraints,
    ValidationError,
    ValidationInfo,
    ValidatorFunctionWrapHandler,
    field_validator,
    model_validator,
)
from pydantic_core import ErrorDetails, InitErrorDetails, PydanticCustomError, PydanticKnownError

from dispatcher.config.secrets import Name, Secret, resolve_secret
from dispatcher.config.units import PerSecond, Seconds
from dispatcher.contract.tenant import TenantKey

MAX_HEADERS = 20
MAX_HEADER_NAME = 64
MAX_HEADER_VALUE = 4096
MAX_URL = 2048
MAX_STATUSES = 50
MAX_AUDIENCES = 10
MAX_PARAMETERS = 20
MAX_PARAMETER = 2048
MAX_CONTACTS = 10
MAX_SIGNING_SECRETS = 4
KEY_OVERLAP: Final = timedelta(hours=24)
"""Time for which the public key of a replaced signing key stays published."""
MAX_CAMPAIGNS = 1000
"""Maximum number of campaign ids: each event is compared with them on the event loop."""

_TOKEN = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")  # RFC 9110, section 5.6.2
_VISIBLE = re.compile(r"[\x20-\x7e]*")
_RESERVED = frozenset(
    {
        "host", "connection", "transfer-encoding", "te", "trailer", "trailers", "upgrade", "keep-alive", "expect",
        "user-agent", "cookie", "traceparent",
    }
)  # fmt: skip
_TOKEN_REQUEST_FIELDS = frozenset(
    {"grant_type", "assertion", "client_id", "client_secret", "scope", "client_assertion", "client_assertion_type"}
)
_RESERVED_PREFIXES = ("content-", "proxy-", "webhook-")


class Channel(StrEnum):
    """A channel whose feedback a webhook can receive."""

    EMAIL = "email"
    SMS = "sms"


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


class _Model(BaseModel):
    """Base of models that may hold secrets. Validation errors never quote their values."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, hide_input_in_errors=True)


class NextKey(_Model):
    """The key that follows the one that signs a token. Its public key is published before it signs."""

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
        """When the key before it is withdrawn: receivers may have cached tokens and documents until then."""
        return self.starts + KEY_OVERLAP


class SignedToken(_Model):
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
    audience: Name | Annotated[list[Name], Field(min_length=1, max_length=MAX_AUDIENCES)] | None = None
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
        """Returns the token as the next key signs it; itself if there is none."""
        if self.next is None:
            return self
        follower = {"algorithm": self.next.algorithm, "key": self.next.key, "kid": self.next.kid}
        return self.model_copy(update=follower | {"next": None})


class FetchedToken(_Model):
    """A token from the tenant's token endpoint (RFC 6749, section 4.4; RFC 7523, section 2.1)."""

    grant: Literal["client-credentials", "jwt-bearer"]
    token_url: Annotated[str, AfterValidator(lambda url: _checked_url(url)), Field(repr=False)]
    """URL of the token endpoint; the rules of the webhook's URL apply."""
    client_id: Name | None = None
    client_secret: Secret | None = None
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


class NoAuth(_Model):
    """No authentication header."""

    type: Literal["none"] = "none"


class JwtAuth(_Model):
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


class Signing(_Model):
    """Signatures by Standard Webhooks: one for each secret, the newest first."""

    secrets: list[Secret] = Field(min_length=1, max_length=MAX_SIGNING_SECRETS)
    """`whsec_…` (HMAC-SHA256, signature v1) or `whsk_…` (Ed25519, signature v1a); several during a rotation."""
    ends: dict[Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{12}$")], AwareDatetime] = Field(
        default_factory=dict, max_length=MAX_SIGNING_SECRETS
    )
    """When older secrets stop signing, by fingerprint, with the zone: `{3f0a955b21c4: 2026-12-01T12:00:00Z}`. The
    first secret can't have an end."""

    def end_of(self, secret: Secret) -> float | None:
        """Returns when the secret stops signing, in Unix seconds; None if it has no end."""
        end = self.ends.get(secret.fingerprint()) if self.ends else None
        return None if end is None else end.timestamp()

    def count_at(self, now: float) -> int:
        """Returns how many secrets sign at a time, in Unix seconds."""
        return len(self.secrets) - sum(end.timestamp() <= now for end in self.ends.values())

    def without_dated(self) -> Self:
        """Returns the same without the secrets that have an end."""
        secrets = [self.secrets[0], *(one for one in self.secrets[1:] if one.fingerprint() not in self.ends)]
        return self.model_copy(update={"secrets": secrets, "ends": {}})


class ClientTls(_Model):
    """CA and client certificate of one endpoint, in addition to the operator's settings."""

    ca: Secret | None = None
    """PEM bundle to verify the endpoint with, instead of the operator's."""
    certificate: Secret | None = None
    """Client certificate chain, PEM."""
    key: Secret | None = None
    """The client certificate's private key, PEM."""

    @model_validator(mode="after")
    def _a_pair(self) -> Self:
        if (self.certificate is None) != (self.key is None):
            raise ValueError("certificate and key belong together: give both")
        return self


def header_name_problem(name: str, taken: frozenset[str]) -> str | None:
    """Returns why a header parameter can't have this name, or None if it can. `taken`: further reserved names."""
    lower = name.lower()
    if not _TOKEN.fullmatch(name) or len(name) > MAX_HEADER_NAME:
        return f"not a header name: use up to {MAX_HEADER_NAME} letters, digits and any of !#$%&'*+-.^_`|~"
    if lower in _RESERVED or lower in taken or lower.startswith(_RESERVED_PREFIXES):
        return f"{lower} is set by the dispatcher and can't be replaced: choose another name"
    return None


def header_value_problem(value: str) -> str | None:
    """Returns why a header parameter can't have this value, or None if it can."""
    if not _VISIBLE.fullmatch(value) or value != value.strip():
        return "not a header value: use visible ASCII characters, no space at either end, no line break"
    if len(value) > MAX_HEADER_VALUE:
        return f"longer than {MAX_HEADER_VALUE} characters: shorten it"
    return None


def header_problems(given: object, taken: frozenset[str]) -> Iterator[tuple[str, str]]:
    """Yields name and reason of each header parameter that can't be sent. The model checks the values' types.

    Only the first `MAX_HEADERS` are looked at: more are a mistake anyway, and their number is the author's choice.
    """
    seen: set[str] = set()
    for name, raw in islice(given.items(), MAX_HEADERS) if isinstance(given, dict) else ():
        if not isinstance(name, str):
            continue
        value = _secret_text(raw) if isinstance(raw, Secret) else raw
        problem = header_name_problem(name, taken)
        if problem is None and isinstance(value, str):
            problem = header_value_problem(value)
        if problem is None and name.lower() in seen:
            problem = "given twice (names are the same in either case): keep one"
        if problem is not None:
            yield name, problem
        seen.add(name.lower())


def _secret_text(secret: Secret) -> str:
    return secret.reveal().decode("ascii", "replace")  # the check of header values refuses other characters


def _error_at(key: str, problem: str) -> InitErrorDetails:
    return InitErrorDetails(type="value_error", loc=(key,), input=None, ctx={"error": ValueError(problem)})


def _too_many(count: int) -> InitErrorDetails:
    context = {"field_type": "Dictionary", "max_length": MAX_HEADERS, "actual_length": count}
    return InitErrorDetails(type="too_long", loc=(), input=None, ctx=context)


def _repeated(error: ErrorDetails) -> InitErrorDetails:
    kind: str | PydanticCustomError = error["type"]
    if kind in ("secret_inline", "secret_reference", "secret_file", "secret_env", "secret_scope"):
        kind = PydanticCustomError(error["type"], "{problem}", {"problem": error["msg"]})
    return InitErrorDetails(type=kind, loc=error["loc"], input=error["input"], ctx=error.get("ctx", {}))


def origin_of(url: str) -> str:
    """Returns the origin of a valid URL, `https://host[:port]`, without the scheme's default port."""
    parts = split_url(url)
    host = parts.hostname or ""
    bracketed = f"[{host}]" if ":" in host else host
    own = 443 if parts.scheme == "https" else 80
    return f"{parts.scheme}://{bracketed}" + (f":{parts.port}" if parts.port not in (None, own) else "")


def split_url(url: str) -> SplitResult:
    """Returns the parts of an endpoint's URL.

    Raises:
        ValueError: it can't be an endpoint; the message says what to change.
    """
    if len(url) > MAX_URL:
        raise ValueError(f"longer than {MAX_URL} characters: shorten the path or the query")
    if not re.fullmatch(r"[\x21-\x7e]+", url) or "\\" in url:
        raise ValueError(
            "only visible ASCII, no spaces and no backslash: percent-encode the path, write the host as xn--…"
        )
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:  # its message quotes the URL
        raise ValueError(
            "not a URL: write https://host/path, a port as a number up to 65535, an IPv6 address in brackets"
        ) from None
    if parts.scheme not in ("https", "http"):
        raise ValueError("must begin with https://")
    if "@" in parts.netloc:
        raise ValueError("must not carry a user name or password: use authentication or a header parameter")
    if "#" in url:
        raise ValueError("must not carry a fragment (#…): it is never sent")
    if not parts.hostname or port == 0 or parts.netloc.endswith(":"):
        raise ValueError("names no host, or an empty port: write https://host/path")
    return parts


def _checked_url(url: str) -> str:
    split_url(url)
    return url


def _header_value(value: object, info: ValidationInfo) -> str | Secret:
    if isinstance(value, str):
        return value
    if isinstance(value, dict | Secret):
        secret = resolve_secret(value, info)
        problem = header_value_problem(_secret_text(secret))
        if problem is not None:
            raise ValueError(f"the secret is {problem}")
        return secret
    raise PydanticKnownError("string_type")


def _header_reference(value: str | Secret) -> object:
    return (value.reference or "<secret>") if isinstance(value, Secret) else value


HeaderValue = Annotated[
    str | Secret,
    PlainValidator(_header_value, json_schema_input_type=str | Secret),
    PlainSerializer(_header_reference),
]
"""The value of a header parameter: text exactly as it is written, or a secret by reference."""


_EMAIL = re.compile(
    r"[A-Za-z0-9.!#$%&'*+/=?^_`{|}~-]{1,64}@(?:[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?\.)*[A-Za-z0-9-]{1,63}"
)


def _checked_email(address: str) -> str:
    if len(address) > 254 or not _EMAIL.fullmatch(address) or ".." in address:
        raise ValueError("not an e-mail address: write name@host, at most 254 characters")
    return address


EmailAddress = Annotated[str, AfterValidator(_checked_email), StringConstraints(max_length=254)]
"""An address without display name and quotes: it can go into a header as it is."""


class Notify(_Model):
    """Contacts that learn of trouble with the webhook."""

    emails: Annotated[tuple[EmailAddress, ...], Field(max_length=MAX_CONTACTS)] = ()
    """E-mail addresses, at most 10. Each has to be confirmed by the link that is sent to it."""


class WebhookConfig(_Model):
    """The webhook of one organisation and sandbox."""

    name: Name
    """Name that is shown to people."""
    org: Name
    """Organisation id, as in the event's `imsOrgId`."""
    sandbox: Name
    """Sandbox name, `prod`."""
    sandbox_id: Name | None = None
    """If it is given, the event's sandbox id must match too."""
    channels: Annotated[tuple[Channel, ...], Field(min_length=1, max_length=len(Channel))] = (
        Channel.EMAIL,
        Channel.SMS,
    )
    """Channels whose feedback is sent."""
    url: Annotated[str, AfterValidator(_checked_url), Field(repr=False)]
    """HTTPS endpoint that receives the feedback, at most 2,048 characters."""
    auth: Auth = NoAuth()
    """Authentication: `{type: none}` or `{type: jwt, …}`."""
    headers: dict[str, HeaderValue] = Field(default_factory=dict, max_length=MAX_HEADERS, repr=False)
    """Header parameters, sent with each request: at most 20. A value is text, sent exactly as it is written, or a
    secret: `{file: luma.key}`."""
    signing: Signing | None = None
    """Standard Webhooks signatures."""
    tls: ClientTls = ClientTls()
    """CA and client certificate of this endpoint."""
    events: Annotated[tuple[Name, ...], Field(min_length=1, max_length=MAX_STATUSES)] = (
        "sent",
        "delivered",
        "bounce",
        "error",
    )
    """Feedback statuses that are sent."""
    campaigns: Literal["all"] | Annotated[tuple[Name, ...], Field(max_length=MAX_CAMPAIGNS)] = "all"
    """`all`, or the ids of the campaigns whose feedback is sent: at most 1,000."""
    payload: Literal[1, 2] = 1
    """Version of the feedback payload."""
    timeout: Annotated[Seconds, Field(ge=1, le=30)] | None = None
    """Time for one attempt, everything included: 1 s to 30 s; by default the operator's `delivery.timeout`."""
    connect_timeout: Annotated[Seconds, Field(ge=0.1, le=30)] | None = None
    """Time to connect, TLS included: 100 ms to 30 s, within the attempt's time; by default the operator's
    `delivery.connect_timeout`."""
    rate_limit: PerSecond | None = None
    """Maximum rate of requests, `100/s`; by default limited only by the endpoint's own speed."""
    enabled: bool = True
    """`false` switches the webhook off: its events are skipped, not kept."""
    paused: bool = False
    """`true` holds the webhook's events: they are delivered after it is `false` again, or dead at the age limit."""
    notify: Notify = Notify()
    """Who is notified of trouble: `{emails: [ops@luma.example]}`."""

    @field_validator("headers", mode="wrap")
    @classmethod
    def _header_parameters(
        cls, given: object, handler: ValidatorFunctionWrapHandler, info: ValidationInfo
    ) -> dict[str, str | Secret]:
        """Reports every mistake at the name of its header parameter."""
        auth = info.data.get("auth")  # absent if it has a mistake itself
        taken = frozenset({auth.header, "authorization"}) if isinstance(auth, JwtAuth) else frozenset[str]()
        found = [_error_at(name, problem) for name, problem in header_problems(given, taken)]
        headers: dict[str, str | Secret] = {}
        if isinstance(given, dict) and len(given) > MAX_HEADERS:
            found.append(_too_many(len(given)))
        else:
            try:
                headers = handler(given)
            except ValidationError as error:
                found += [_repeated(one) for one in error.errors(include_url=False)]
        if found:
            raise ValidationError.from_exception_data(cls.__name__, found, hide_input=True)
        return headers

    @property
    def signed_token(self) -> SignedToken | None:
        """The token that we sign: for the endpoint, or as assertion for its token endpoint."""
        if not isinstance(self.auth, JwtAuth):
            return None
        return self.auth.sign or (None if self.auth.fetch is None else self.auth.fetch.assertion)

    def with_signed_token(self, token: SignedToken) -> Self:
        """Returns the same with another token in the place of the one that we sign.

        Raises:
            ValueError: we sign none.
        """
        auth = self.auth
        if not isinstance(auth, JwtAuth) or self.signed_token is None:
            raise ValueError("the webhook has no token that the dispatcher signs")
        if auth.sign is not None:
            auth = auth.model_copy(update={"sign": token})
        elif auth.fetch is not None:
            auth = auth.model_copy(update={"fetch": auth.fetch.model_copy(update={"assertion": token})})
        return self.model_copy(update={"auth": auth})

    def settled(self) -> Self:
        """Returns the same after everything dated: without secrets that have an end, signed by the next key."""
        found = self
        if self.signing is not None and self.signing.ends:
            found = found.model_copy(update={"signing": self.signing.without_dated()})
        token = self.signed_token
        return found if token is None or token.next is None else found.with_signed_token(token.followed())

    @cached_property
    def tenant(self) -> TenantKey:
        return TenantKey(self.org, self.sandbox)

    @cached_property
    def origin(self) -> str:
        """Origin of the endpoint, `https://host[:port]` (RFC 6454, section 6.2): the default audience of a token."""
        return origin_of(self.url)

    def header_texts(self) -> dict[str, str]:
        """Returns the header parameters as they are sent, with secrets revealed."""
        return {
            name: _secret_text(value) if isinstance(value, Secret) else value for name, value in self.headers.items()
        }

    def secrets(self) -> list[Secret]:
        """Returns every secret of the webhook, so that a store can watch their files."""
        return list(_secrets_in(self))


def _secrets_in(model: BaseModel) -> list[Secret]:
    found: list[Secret] = []
    for name in type(model).model_fields:
        value = getattr(model, name)
        for item in value if isinstance(value, list) else value.values() if isinstance(value, dict) else [value]:
            if isinstance(item, Secret):
                found.append(item)
            elif isinstance(item, BaseModel):
                found += _secrets_in(item)
    return found


@dataclass(frozen=True, slots=True, eq=False)
class Webhook:
    """A webhook in a store. It is compared by identity; a store creates a new one only when something changed."""

    config: WebhookConfig
    source: str
    """Origin of the configuration: `file:line`, or the id of a row."""
    revision: str
    """Hash that changes with the configuration or one of its secrets, and reveals neither."""
    tenant: TenantKey = field(init=False)
    """Tenant of the configuration."""

    @classmethod
    def of(cls, config: WebhookConfig, source: str) -> Self:
        digest = hashlib.blake2b(orjson.dumps(config.model_dump(mode="json")), digest_size=8)
        for secret in config.secrets():
            digest.update(secret.fingerprint().encode())
        return cls(config, source, digest.hexdigest())

    def __post_init__(self) -> None:
        object.__setattr__(self, "tenant", self.config.tenant)


class WebhookFile(_Model):
    """A mounted file of webhooks (`webhooks.d/*.yaml`)."""

    apiVersion: Literal["dispatcher/v1"]  # noqa: N815  (the Kubernetes spelling)
    webhooks: list[WebhookConfig] = Field(default_factory=list)
