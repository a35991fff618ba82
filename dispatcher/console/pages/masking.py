"""Personal data, hidden from whoever may not see it. Pure."""

import re
from typing import Final

from pydantic import JsonValue

_ADDRESS: Final = re.compile(r"([^\s@<>\"'(),;:]{1,64})@([^\s@<>\"'(),;:]+\.[^\s@<>\"'(),;:.]+)")
_NUMBER: Final = re.compile(r"\+\d[\d ()/-]{5,}\d")
_PERSONAL: Final = frozenset({"identityMap", "channelContext"})
"""Members of a payload in which every text tells of a person."""
_DOTS: Final = "•••"


def recipient(text: str) -> str:
    """`j•••@luma.com`, `+4•••12`, `a•••`."""
    if _ADDRESS.fullmatch(text):
        return _ADDRESS.sub(_masked_address, text)
    if _NUMBER.fullmatch(text):
        return _NUMBER.sub(_masked_number, text)
    return f"{text[:1]}{_DOTS}"


def in_text(text: str) -> str:
    """The text with every e-mail address and international number in it masked."""
    return _NUMBER.sub(_masked_number, _ADDRESS.sub(_masked_address, text))


def payload(value: JsonValue, *, is_personal: bool = False) -> JsonValue:
    """A feedback payload with its identities and recipients masked."""
    if isinstance(value, dict):
        return {key: payload(inner, is_personal=is_personal or key in _PERSONAL) for key, inner in value.items()}
    if isinstance(value, list):
        return [payload(inner, is_personal=is_personal) for inner in value]
    if isinstance(value, str):
        return recipient(value) if is_personal else in_text(value)
    return value


def _masked_address(match: re.Match[str]) -> str:
    return f"{match[1][:1]}{_DOTS}@{match[2]}"


def _masked_number(match: re.Match[str]) -> str:
    return f"{match[0][:2]}{_DOTS}{match[0][-2:]}"
