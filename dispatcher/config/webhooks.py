"""The configuration of one tenant's webhook, with every check that needs no network.

Each error message says what the tenant has to change. The egress guard (`transport.egress`) decides whether the
address of the URL may be connected to.
"""

import re
from enum import StrEnum
from functools import cached_property
from typing import Annotated, Final, Literal, Self

from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    Field,
    StringConstraints,
    ValidationInfo,
    ValidatorFunctionWrapHandler,
    field_validator,
    model_validator,
)

from dispatcher.config.endpoint_urls import EndpointUrl, origin_of
from dispatcher.config.names import DisplayName, Name, TenantName
from dispatcher.config.secrets import Secret
from dispatcher.config.settings_group import ConfidentialGroup
from dispatcher.config.units import PerSecond, Seconds
from dispatcher.config.webhook_auth import Auth, JwtAuth, NoAuth, SignedToken
from dispatcher.config.webhook_headers import MAX_HEADERS, HeaderValue, header_text, validated_headers
from dispatcher.contract.tenant import TenantKey

MAX_STATUSES = 50
MAX_CONTACTS = 10
MAX_SIGNING_SECRETS = 4
MAX_CAMPAIGNS = 1000
"""Maximum number of campaign ids: each event is compared with them on the event loop."""


MESSAGE_STATUSES: Final = (
    "sent", "delivered", "bounce", "error", "exclude", "delay", "duplicate", "denylist", "read", "unknown",
)  # fmt: skip
"""Statuses of message feedback, as the published schemas list them. A webhook may name others: some may be added."""


class Channel(StrEnum):
    """A channel whose feedback a webhook can receive."""

    EMAIL = "email"
    SMS = "sms"


class Signing(ConfidentialGroup):
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

    def secrets_at(self, now: float) -> list[Secret]:
        """Returns the secrets that sign at `now`, in Unix seconds."""
        return [one for one in self.secrets if (end := self.end_of(one)) is None or end > now]

    def count_at(self, now: float) -> int:
        """Returns how many secrets sign at `now`, in Unix seconds."""
        return len(self.secrets) - sum(end.timestamp() <= now for end in self.ends.values())

    def without_dated(self) -> Self:
        """Returns a copy without the secrets that have an end."""
        secrets = [self.secrets[0], *(one for one in self.secrets[1:] if one.fingerprint() not in self.ends)]
        return self.model_copy(update={"secrets": secrets, "ends": {}})


class ClientTls(ConfidentialGroup):
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


_EMAIL = re.compile(
    r"[A-Za-z0-9.!#$%&'*+/=?^_`{|}~-]{1,64}@(?:[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?(?:\.(?!$)|$))+"
)


def _checked_email(address: str) -> str:
    if not address.isascii():
        raise ValueError("not an e-mail address in ASCII: write a host like bücher.example as xn--bcher-kva.example")
    if len(address) > 254 or not _EMAIL.fullmatch(address) or "=?" in address:  # RFC 2047: it would be decoded
        raise ValueError("not an e-mail address: write name@host, at most 254 characters")
    return address


EmailAddress = Annotated[str, AfterValidator(_checked_email), StringConstraints(max_length=254)]
"""An address without display name and quotes. Its dots may be anywhere before the @, as mobile providers had them."""


class Notify(ConfidentialGroup):
    """Contacts that are notified of trouble with the webhook."""

    emails: Annotated[tuple[EmailAddress, ...], Field(max_length=MAX_CONTACTS)] = ()
    """E-mail addresses, at most 10. Each has to be confirmed by the link that is sent to it."""


Campaigns = Literal["all"] | Annotated[tuple[Name, ...], Field(max_length=MAX_CAMPAIGNS)]
"""All campaigns, or those with the ids."""


class WebhookConfig(ConfidentialGroup):
    """The webhook of one organisation and sandbox."""

    name: DisplayName
    """Name that is shown to people."""
    org: TenantName
    """Organisation id, as in the event's `imsOrgId`."""
    sandbox: TenantName
    """Sandbox name, `prod`."""
    sandbox_id: TenantName | None = None
    """If it is given, the event's sandbox id must match too."""
    channels: Annotated[tuple[Channel, ...], Field(min_length=1, max_length=len(Channel))] = (
        Channel.EMAIL,
        Channel.SMS,
    )
    """Channels whose feedback is sent."""
    url: EndpointUrl
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
    campaigns: Campaigns = "all"
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
        auth = info.data.get("auth")  # absent if it has a mistake itself
        return validated_headers(given, auth.header if isinstance(auth, JwtAuth) else None, handler, cls.__name__)

    @property
    def signed_token(self) -> SignedToken | None:
        """The token that we sign, for the endpoint or as the assertion for its token endpoint; None if we sign none."""
        if not isinstance(self.auth, JwtAuth):
            return None
        return self.auth.sign or (None if self.auth.fetch is None else self.auth.fetch.assertion)

    def with_signed_token(self, token: SignedToken) -> Self:
        """Returns a copy with `token` in place of the token that the dispatcher signs.

        Raises:
            ValueError: the dispatcher signs no token for this webhook.
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
        """Returns a copy as it will be after all rotations: without dated secrets, and with the next signing key."""
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
            name: header_text(value) if isinstance(value, Secret) else value for name, value in self.headers.items()
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


class WebhookFile(ConfidentialGroup):
    """A mounted file of webhooks (`webhooks.d/*.yaml`)."""

    apiVersion: Literal["dispatcher/v1"]  # noqa: N815  (the Kubernetes spelling)
    webhooks: list[WebhookConfig]
