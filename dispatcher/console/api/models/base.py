"""Base classes and types of the models: unknown keys, and values in the form of query strings."""

import re
from typing import Annotated, Self

from pydantic import AwareDatetime, BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints, model_validator

from dispatcher.console.api_errors import refused_parameter
from dispatcher.contract.search_text import MAX_TYPED
from dispatcher.contract.tenant import TenantKey

_FLAGS = {"true": True, "false": False}
_WHOLE = re.compile(r"-?\d{1,15}", re.ASCII)
_TIME = re.compile(r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d(\.\d{1,9})?([Zz]|[+-]\d\d:?\d\d)", re.ASCII)


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
Word = Annotated[str, StringConstraints(min_length=1, max_length=256, pattern=r"^[^\x00-\x1f\x7f-\x9f]*$")]
Typed = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=MAX_TYPED)]
"""What a person pasted to find something, with line ends and what else came with it."""
AnyCase = BeforeValidator(lambda value: value.lower() if isinstance(value, str) else value)
"""Reads a value of an enumeration in any case."""
Flag = Annotated[bool, Field(strict=True), BeforeValidator(_flag)]
Moment = Annotated[AwareDatetime, BeforeValidator(_moment)]
Limit = Annotated[int, Field(strict=True, ge=1, le=200), BeforeValidator(whole_number)]
Cursor = Annotated[str, StringConstraints(max_length=500, pattern=r"^[!-~]+$")]
Id = Annotated[str, StringConstraints(min_length=1, max_length=64)]


class RequestModel(BaseModel):
    """Base of request models: an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class TimeFilter(RequestModel):
    """Base of filters by time: `until` is later than `since`."""

    since: Moment | None = None
    until: Moment | None = None

    @model_validator(mode="after")
    def _is_in_order(self) -> Self:
        if self.since is not None and self.until is not None and self.until <= self.since:
            raise ValueError("until must be later than since")
        return self


class TenantFilter(RequestModel):
    """Filter by tenant: give both `org` and `sandbox`, or neither."""

    org: Word | None = None
    """Needs `sandbox`."""
    sandbox: Word | None = None
    """Needs `org`."""

    @property
    def tenant(self) -> TenantKey | None:
        """The tenant; None for all.

        Raises:
            ApiError: 422 if only one of its two parts is given.
        """
        if self.org is not None and self.sandbox is not None:
            return TenantKey(self.org, self.sandbox)
        if self.org is None and self.sandbox is None:
            return None
        missing = "org" if self.org is None else "sandbox"
        raise refused_parameter(missing, "org and sandbox belong together: give both, or neither")


class PageQuery(RequestModel):
    """Size of a page."""

    limit: Limit = 50
    """Number of items in a page, at most 200."""


class CursorQuery(PageQuery):
    """A page of a list that goes on at a cursor."""

    before: Cursor | None = None
    """Cursor from `next` of the previous page."""


class ResponseModel(BaseModel):
    """Base of response models."""

    model_config = ConfigDict(
        frozen=True, use_attribute_docstrings=True, json_schema_serialization_defaults_required=True
    )

    @classmethod
    def of(cls, source: object, **values: object) -> Self:
        """Returns the model with the given values, and the source's attributes of the same names for the others."""
        names = cls.model_fields.keys() - values.keys()
        return cls.model_validate({name: getattr(source, name) for name in names} | values)
