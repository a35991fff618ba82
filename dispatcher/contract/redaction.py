"""Personal data in text: e-mail addresses and international numbers, masked or as a hash. Pure."""

import hashlib
import re
from typing import Final

MASK: Final = "•••"
_IN_ADDRESS: Final = r"[^\s@<>\"'(),;:]"
_NAME: Final = rf"(?:(?<!{_IN_ADDRESS})({_IN_ADDRESS}++)|\"([^\s\"]{{1,64}}+)\")"
"""Begins only at the start of a run of such characters and doesn't backtrack, so it reads a text once. Mail quotes a
name that begins or ends with a dot."""
_ADDRESS: Final = re.compile(rf"{_NAME}@({_IN_ADDRESS}+\.(?:(?!\.){_IN_ADDRESS})+)")
_NUMBER: Final = re.compile(r"\+\d[\d ()/-]{5,}\d")


def recipient(text: str) -> str:
    """Masks an address, a number or another identity: `j•••@luma.com`, `+4•••12`, `a•••`."""
    if _ADDRESS.fullmatch(text):
        return _ADDRESS.sub(_masked_address, text)
    if _NUMBER.fullmatch(text):
        return _NUMBER.sub(_masked_number, text)
    return f"{text[:1]}{MASK}"


def in_text(text: str) -> str:
    """Returns the text with every e-mail address and international number in it masked."""
    return _NUMBER.sub(_masked_number, _ADDRESS.sub(_masked_address, text))


def contact_of(address: str) -> str:
    """Returns the hash that identifies a contact's address. Its case doesn't matter."""
    return hashlib.blake2b(address.casefold().encode(), digest_size=16, person=b"contact").hexdigest()


def _masked_address(match: re.Match[str]) -> str:
    return f"{(match[1] or match[2])[:1]}{MASK}@{match[3]}"


def _masked_number(match: re.Match[str]) -> str:
    return f"{match[0][:2]}{MASK}{match[0][-2:]}"
