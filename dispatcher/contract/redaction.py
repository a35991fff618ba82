"""Personal data in text: e-mail addresses and international numbers, masked. Pure."""

import re
from typing import Final

MASK: Final = "•••"
_ADDRESS: Final = re.compile(r"([^\s@<>\"'(),;:]{1,64})@([^\s@<>\"'(),;:]+\.[^\s@<>\"'(),;:.]+)")
_NUMBER: Final = re.compile(r"\+\d[\d ()/-]{5,}\d")


def recipient(text: str) -> str:
    """`j•••@luma.com`, `+4•••12`, `a•••`."""
    if _ADDRESS.fullmatch(text):
        return _ADDRESS.sub(_masked_address, text)
    if _NUMBER.fullmatch(text):
        return _NUMBER.sub(_masked_number, text)
    return f"{text[:1]}{MASK}"


def in_text(text: str) -> str:
    """The text with every e-mail address and international number in it masked."""
    return _NUMBER.sub(_masked_number, _ADDRESS.sub(_masked_address, text))


def _masked_address(match: re.Match[str]) -> str:
    return f"{match[1][:1]}{MASK}@{match[2]}"


def _masked_number(match: re.Match[str]) -> str:
    return f"{match[0][:2]}{MASK}{match[0][-2:]}"
