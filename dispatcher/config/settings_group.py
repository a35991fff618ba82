"""The base of every group of settings."""

from pydantic import BaseModel, ConfigDict


class SettingsGroup(BaseModel):
    """A group of settings: frozen, and a misspelt key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)
