"""The base of every group of settings, and types that several groups have."""

from typing import Annotated, Final

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from dispatcher.config.secrets import PaddedTextSecret, Secret
from dispatcher.config.units import NO_SWITCH
from dispatcher.config.web_addresses import checked_listen_host, cidr_block

MIN_KEY_BYTES: Final = 32
"""Minimum length of a key: that of the hash that it is used with."""


def _network(text: str) -> str:
    return str(cidr_block(text))


def _long_enough(key: Secret) -> Secret:
    if key.reference is not None and not key.reveal():
        return key  # a check without secrets
    if len(key.reveal()) < MIN_KEY_BYTES:
        raise ValueError(f"has fewer than {MIN_KEY_BYTES} bytes: create one with `openssl rand -base64 48`")
    return key


Port = Annotated[int, Field(ge=0, le=65535), NO_SWITCH]
Network = Annotated[str, AfterValidator(_network)]
"""A CIDR block."""
LongKey = Annotated[Secret, AfterValidator(_long_enough)]
"""A key of at least 32 bytes."""
LongText = Annotated[PaddedTextSecret, AfterValidator(_long_enough)]
"""A token of at least 32 bytes, used without the blanks around it."""
ListenHost = Annotated[str, AfterValidator(checked_listen_host)]
"""An address to listen on, or a name of it."""


class SettingsGroup(BaseModel):
    """A group of settings: frozen, and a misspelt key is an error."""

    # Validators are built when they are first used: most groups are only a part of others, and never need their own.
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, defer_build=True)


class ConfidentialGroup(SettingsGroup):
    """Base of models that may hold secrets: errors never quote their values."""

    model_config = ConfigDict(hide_input_in_errors=True)
