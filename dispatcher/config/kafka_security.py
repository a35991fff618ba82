"""Settings of the connection to the brokers: `kafka.security`."""

from pathlib import Path
from typing import Annotated, Final, Literal, Self

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    PlainSerializer,
    StringConstraints,
    WithJsonSchema,
    model_validator,
)

from dispatcher.config.names import Name
from dispatcher.config.secrets import PaddedTextSecret, Secret, TextSecret
from dispatcher.config.settings_group import SettingsGroup
from dispatcher.config.web_addresses import protected_url

ExtensionName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z]+$", max_length=64)]
ExtensionValue = Annotated[str, StringConstraints(pattern=r"^[\x20-\x7e]+$", max_length=512)]

MAX_USERNAME: Final = 200


def _text_as_secret(value: object) -> object:
    if isinstance(value, str):
        if not 0 < len(value) <= MAX_USERNAME:
            raise ValueError(f"must have 1 to {MAX_USERNAME} characters")
        return Secret(value.encode())
    if not isinstance(value, dict | Secret):
        raise ValueError("write it as text, in quotes if it is a number, or as {file: PATH} or {env: NAME}")  # noqa: TRY004  (pydantic)
    return value


TextOrSecret = Annotated[
    TextSecret,
    BeforeValidator(_text_as_secret),
    PlainSerializer(lambda secret: secret.reference or secret.reveal_text()),
    WithJsonSchema(
        {
            "description": "A text, or a reference to a file or an environment variable that holds it.",
            "oneOf": [
                {"type": "string", "minLength": 1, "maxLength": MAX_USERNAME},
                *(
                    {
                        "type": "object",
                        "properties": {kind: {"type": "string", "minLength": 1}},
                        "required": [kind],
                        "additionalProperties": False,
                    }
                    for kind in ("file", "env")
                ),
            ],
        }
    ),
]
"""A short text, or a reference to one. It is not secret."""


class KafkaOauth(SettingsGroup):
    """Source of the token for SASL OAUTHBEARER: token_url, token or aws_region."""

    token_url: Annotated[str, AfterValidator(protected_url)] | None = None
    """Token endpoint for client credentials (RFC 6749, section 4.4). The egress rules don't apply to it, because it is
    the operator's own."""
    client_id: Name | None = None
    client_secret: TextSecret | None = None
    """Sent by HTTP Basic authentication; read again for each token."""
    scope: Name | None = None
    audience: Name | None = None
    """Parameter `audience`, which some authorisation servers require."""
    ca: Path | None = None
    """PEM bundle to verify the token endpoint with; the system's by default."""
    token: PaddedTextSecret | None = None
    """A file with a token that another program renews, such as a projected service account token. It is read again for
    every connection."""
    aws_region: Name | None = None
    """Region of an Amazon MSK cluster with IAM authentication; the token is signed with the pod's AWS credentials.
    Needs the extra `msk-iam`."""
    extensions: dict[ExtensionName, ExtensionValue] = Field(default_factory=dict, max_length=20)
    """SASL extensions (RFC 7628), such as `logicalCluster` and `identityPoolId` of Confluent Cloud."""

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if sum(one is not None for one in (self.token_url, self.token, self.aws_region)) != 1:
            raise ValueError("give one of token_url (a token endpoint), token (a file with a token) and aws_region")
        if self.token_url is not None and (self.client_id is None or self.client_secret is None):
            raise ValueError("token_url needs client_id and client_secret: give both")
        return self


class KafkaSecurity(SettingsGroup):
    """Protocol, credentials and certificates of the connection to the brokers."""

    protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = "PLAINTEXT"
    mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "OAUTHBEARER"] | None = None
    """SASL mechanism, for the SASL_ protocols. Kerberos (GSSAPI) is not supported."""
    username: TextOrSecret | None = None
    """User name: text, or a reference like the password."""
    password: TextSecret | None = None
    """Password. It is read again for every new connection, like the files below: a rotation needs no restart."""
    oauth: KafkaOauth | None = None
    """Source of the token for mechanism OAUTHBEARER."""
    ca: Path | None = None
    """PEM bundle to verify the brokers with; the system's by default."""
    certificate: Path | None = None
    """Client certificate chain (mTLS), PEM."""
    key: Path | None = None
    """The client certificate's private key, PEM."""

    @model_validator(mode="after")
    def _what_the_protocol_needs(self) -> Self:
        if self.protocol.startswith("SASL"):
            if self.mechanism is None:
                raise ValueError(
                    f"protocol {self.protocol} needs mechanism, username and password; or OAUTHBEARER and oauth"
                )
            if self.mechanism == "OAUTHBEARER":
                if self.oauth is None:
                    raise ValueError("mechanism OAUTHBEARER needs oauth, the source of the token")
            elif self.username is None or self.password is None:
                raise ValueError(f"protocol {self.protocol} needs mechanism, username and password")
        if (self.certificate is None) != (self.key is None):
            raise ValueError("certificate and key belong together: give both")
        return self

    @model_validator(mode="after")
    def _no_plaintext_by_omission(self) -> Self:
        if self.unused and "protocol" not in self.model_fields_set:
            secured = "SSL" if {"ca", "certificate", "key"}.issuperset(self.unused) else "SASL_SSL"
            names = ", ".join(self.unused)
            raise ValueError(f"without protocol, nothing is encrypted and {names} not used: write protocol: {secured}")
        return self

    @property
    def unused(self) -> tuple[str, ...]:
        """Names of the settings given here that protocol and mechanism don't use."""
        used = {"protocol"}
        if self.protocol.endswith("SSL"):
            used |= {"ca", "certificate", "key"}
        if self.protocol.startswith("SASL"):
            used |= {"mechanism"} | ({"oauth"} if self.mechanism == "OAUTHBEARER" else {"username", "password"})
        given = (name for name in type(self).model_fields if getattr(self, name) is not None)
        return tuple(name for name in given if name not in used)
