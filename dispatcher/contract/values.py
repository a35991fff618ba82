"""Value classes of the hot path, which creates a few of each for every event."""

from dataclasses import dataclass, field
from typing import TypeVar, dataclass_transform

_T = TypeVar("_T")

HttpHeader = tuple[str, str]
"""Name and value of one HTTP header."""
HttpHeaders = tuple[HttpHeader, ...]


@dataclass_transform(frozen_default=True, field_specifiers=(field,))
def slots_dataclass(cls: type[_T]) -> type[_T]:
    """Makes a dataclass that the type checker treats as immutable. At run time it has slots and no guard.

    A frozen dataclass sets each field by `object.__setattr__`, which makes one of ten fields three times as expensive.
    """
    return dataclass(slots=True, unsafe_hash=True)(cls)
