"""Settings of the console and of signing in to it: `console`."""

from pathlib import Path
from typing import Annotated, Self

from pydantic import AfterValidator, Field, model_validator

from dispatcher.config.names import Name
from dispatcher.config.secrets import TextSecret
from dispatcher.config.settings_group import ListenHost, LongKey, Network, Port, SettingsGroup
from dispatcher.config.units import Seconds
from dispatcher.config.web_addresses import checked_url, protected_url, split_web_address


def _origin(url: str) -> str:
    parts = split_web_address(url)
    if parts.path.rstrip("/") or parts.query:
        raise ValueError("write scheme, host and port only: https://console.example")
    return f"{parts.scheme}://{parts.netloc.lower()}"


class OidcSettings(SettingsGroup):
    """OpenID Connect issuer for sign-in and access tokens. Its URLs need https unless they are on the loopback."""

    issuer: Annotated[str, AfterValidator(protected_url)]
    """The issuer, exactly as in the claim `iss` of its tokens."""
    audience: Name
    """Claim `aud` that an access token for the admin API must have."""
    jwks_url: Annotated[str, AfterValidator(protected_url)] | None = None
    """URL of the issuer's keys; by default the one in its discovery document."""
    client_id: Name | None = None
    """The console's client id at the issuer, for signing in with a browser. Without it only the API accepts tokens."""
    client_secret: TextSecret | None = None
    """The client's secret; none for a public client, which PKCE protects."""
    scopes: Annotated[tuple[Name, ...], Field(min_length=1)] = ("openid", "profile")
    """Scopes that are requested when a user signs in."""
    role_claim: Name = "roles"
    """Claim with a user's roles: its name, or a dotted path (`realm_access.roles`). A text is also split at blanks."""
    admin_values: tuple[Name, ...] = ("admin",)
    """Roles that make a user an admin; every other user with an organisation is a viewer."""
    orgs_claim: Name = "orgs"
    """Claim with the organisations that a user may see, `*` for all. A user without any has no access."""
    name_claim: Name = "name"
    """Claim with the user's name for the audit; if it is missing, the subject."""
    ca: Path | None = None
    """PEM bundle to verify the issuer with; the system's by default."""

    @model_validator(mode="after")
    def _what_signing_in_needs(self) -> Self:
        if self.client_secret is not None and self.client_id is None:
            raise ValueError("client_secret belongs to client_id: give both, or neither")
        if self.client_id is not None and "openid" not in self.scopes:
            raise ValueError("scopes must contain openid")
        return self


class ConsoleSettings(SettingsGroup):
    """Address, sign-in and sources of the console and the admin API."""

    host: ListenHost | None = "127.0.0.1"
    """Address to listen on; null: all addresses, IPv4 and IPv6. Beyond the loopback it starts only with `tokens` or
    `oidc`."""
    port: Port = 8080
    public_url: Annotated[str, AfterValidator(_origin)] | None = None
    """URL for browsers, `https://console.example`; by default http://host:port. With https, cookies are secure."""
    session_key: LongKey | None = None
    """Key that signs browser sessions: at least 32 bytes, the same in every replica. By default new at each start."""
    session_lifetime: Annotated[Seconds, Field(ge=60, le=604_800)] = 28_800
    """Time after which a user has to sign in again: 1 min to 7 d."""
    tokens: bool = True
    """Accepts tokens of `dispatcher tokens create`, for the API and for signing in."""
    oidc: OidcSettings | None = None
    """OpenID Connect, in addition to tokens or instead of them."""
    dispatchers: tuple[Annotated[str, AfterValidator(checked_url)], ...] = ()
    """Ops endpoints of running dispatchers, `http://dispatcher:9090`, for the state of lanes. If a name has several
    addresses, each is a dispatcher."""
    trusted_proxies: tuple[Network, ...] = ()
    """CIDR blocks of proxies whose X-Forwarded-For is trusted, so that failed sign-ins are counted by client."""
