"""Base classes and types of the models: unknown keys, and values in the form of query strings."""

import re
from typing import Annotated

from pydantic import AwareDatetime, BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints

_FLAGS = {"true": True, "false": False}
_WHOLE = re.compile(r"-?\d{1,15}", re.ASCII)
_TIME = re.compile(r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d(\.\d{1,9})?([Zz]|[+-]\d\d:\d\d)", re.ASCII)


class RequestModel(BaseModel):
    """Base of request models: an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class ResponseModel(BaseModel):
    """Base of response models."""

    model_config = ConfigDict(
        frozen=True, use_attribute_docstrings=True, json_schema_serialization_defaults_required=True
    )


def _flag(value: object) -> object:
    return _FLAGS.get(value, value) if isinstance(value, str) else value


def whole_number(value: object) -> object:
    """Converts the text of an integer, as query strings have it; returns other values unchanged."""
    return int(value) if isinstance(value, str) and _WHOLE.fullmatch(value) else value


def _moment(value: object) -> object:
    if value is not None and not (isinstance(value, str) and _TIME.fullmatch(value)):
        raise ValueError("write a time as 2026-07-22T08:00:00Z")
    return value


Text = Annotated[str, StringConstraints(max_length=200, pattern=r"^[^\x00-\x1f\x7f-\x9f]*$")]
"""Text without control characters."""
Word = Annotated[str, StringConstraints(max_length=200, pattern=r"^[^\x00-\x1f\x7f-\x9f]+$")]
Flag = Annotated[bool, Field(strict=True), BeforeValidator(_flag)]
Moment = Annotated[AwareDatetime, BeforeValidator(_moment)]
Limit = Annotated[int, Field(strict=True, ge=1, le=200), BeforeValidator(whole_number)]
Cursor = Annotated[str, StringConstraints(max_length=500, pattern=r"^[!-~]+$")]
Id = Annotated[str, StringConstraints(min_length=1, max_length=64)]
