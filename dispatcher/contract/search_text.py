"""Reads what a person types to find a message or a recipient: an id or an address, and what came with it. Pure."""

import re
from collections.abc import Container, Iterator
from typing import Final
from unicodedata import category
from urllib.parse import unquote
from uuid import UUID

MAX_TYPED: Final = 1000
"""Characters that a person may type to find something: an id, and what was pasted with it."""
MAX_READINGS: Final = 12
"""Readings of one text, each of which may be looked up."""
_AROUND: Final = " \t\r\n\u00a0\"'`,;<>[]{}*\\“”„‘’«»"
_IN_BRACKETS: Final = re.compile(r"<([^<>]*@[^<>]*)>")
_ALL_IN_BRACKETS: Final = re.compile(r"<[^<>\s]+>")
_LABELLED: Final = re.compile(r"""([A-Za-z_][\w .-]*)\\?["'”]?\s*[:=](?!=|//)\s*(.+)""", re.DOTALL)
_ENCODED: Final = re.compile("%[0-9A-Fa-f]{2}")
_ADDRESS: Final = re.compile(r"""[^\s<>,;"']+@[^\s<>,;"']+""")
_OF_LINKS: Final = frozenset({"mailto", "tel", "sms"})
_WEBHOOK_ID: Final = re.compile(r"msg_[0-9a-f]+", re.IGNORECASE | re.ASCII)
_HASH: Final = re.compile(r"[0-9a-f]{32}", re.IGNORECASE | re.ASCII)
_UUID: Final = re.compile(
    r"(?:urn:)?(?:uuid:)?\{?([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}|[0-9a-f]{32})\}?", re.IGNORECASE | re.ASCII
)


def readings(text: str) -> list[str]:
    """Returns what the text may stand for, the most literal reading first; empty if nothing is left of it.

    The order in which they are looked up: the text as it is without surrounding white space; without invisible
    characters; an id in angle brackets, as a Message-ID has them, or the address of `Name <address>`; without quotation
    marks, brackets, backticks, commas and the like around it; without a label (`requestId: …`), because ids may contain
    colons; with percent-encoding decoded; without parentheses around it and dots or colons after it; then webhook-ids
    and UUIDs in their other case, and UUIDs with or without hyphens and `urn:uuid:`.
    """
    found = [_with_plain_dashes(one) for one in _as_written(text) if one.strip()]
    found += [other for one in found for other in _other_spellings(one)]
    return list(dict.fromkeys(found))[:MAX_READINGS]


def first_known(text: str, known: Container[str | None]) -> str | None:
    """Returns the first of a text's readings that is known; None if none is."""
    return next((one for one in readings(text) if one in known), None)


def recipient_hash_in(text: str) -> str | None:
    """Returns the keyed hash of a recipient, 32 hexadecimal digits, if the text is one; else None."""
    return next((one.lower() for one in _as_written(text) if _HASH.fullmatch(one)), None)


def has_several_addresses(text: str) -> bool:
    """Returns True if the text has more than one e-mail address, as a line of recipients has."""
    return len({one.casefold() for one in _ADDRESS.findall(text)}) > 1


def _as_written(text: str) -> Iterator[str]:
    yield text.strip()
    visible = "".join(char for char in text if category(char) != "Cf")
    if (literal := _ALL_IN_BRACKETS.fullmatch(visible.strip())) is not None:
        yield literal[0]
    address = _IN_BRACKETS.search(visible)
    plain = (visible if address is None else address[1]).strip(_AROUND)
    yield plain
    if (labelled := _LABELLED.fullmatch(plain)) is not None:
        plain = labelled[2]
        if labelled[1].strip().lower() in _OF_LINKS:
            plain = unquote(re.split("[?;]", plain, maxsplit=1)[0])
        yield (plain := plain.strip(_AROUND))
    if _ENCODED.search(plain) is not None:
        yield (plain := unquote(plain).strip(_AROUND))
    yield plain.strip(_AROUND + "()").rstrip(".:")


def _other_spellings(text: str) -> Iterator[str]:
    """Yields the other spellings of an id whose case and hyphens have no meaning: databases and tools change them."""
    if _WEBHOOK_ID.fullmatch(text) is not None:
        yield text.lower()
    elif (known := _UUID.fullmatch(text)) is not None:
        plain = str(UUID(known[1]))
        for one in (text.lower(), plain, plain.replace("-", "")):
            yield from (one, one.upper())


def _with_plain_dashes(text: str) -> str:
    """Returns a number with hyphens for the dashes that programs format it with; any other text unchanged."""
    if any(char.isalpha() for char in text):
        return text
    return "".join("-" if category(char) == "Pd" else char for char in text)
