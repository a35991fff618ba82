"""Reads what a person types to find a message or a recipient: an id or an address, and what came with it. Pure."""

import re
from typing import Final
from unicodedata import category
from urllib.parse import unquote

_AROUND: Final = " \t\r\n\u00a0\"'`,;<>[]{}“”„‘’«»"
_IN_BRACKETS: Final = re.compile(r"<([^<>]*@[^<>]*)>")
_ALL_IN_BRACKETS: Final = re.compile(r"<[^<>\s]+>")
_LABELLED: Final = re.compile(r"""([A-Za-z_][\w .-]*)["'”]?\s*[:=]\s*(.+)""", re.DOTALL)
_ADDRESS: Final = re.compile(r"""[^\s<>,;"']+@[^\s<>,;"']+""")
_OF_LINKS: Final = frozenset({"mailto", "tel", "sms"})


def readings(text: str) -> list[str]:
    """Returns what the text may stand for, the most literal reading first; empty if nothing is left of it.

    Quotation marks, commas, brackets and invisible characters around it are dropped, as are parentheses and dots around
    an address. The address is taken out of `Name <address>`; an id may have angle brackets, as a Message-ID does. The
    last reading lacks a label, as of `requestId: …`, because ids may contain colons, and the `%40` of a link.
    """
    visible = "".join(char for char in text if category(char) != "Cf")
    literal = _ALL_IN_BRACKETS.fullmatch(visible.strip())
    plain = visible.strip(_AROUND)
    if (address := _IN_BRACKETS.search(text)) is not None:
        plain = address[1].strip(_AROUND)
    found = [plain] if literal is None else [literal[0], plain]
    if (labelled := _LABELLED.fullmatch(plain)) is not None:
        value = labelled[2]
        if labelled[1].strip().lower() in _OF_LINKS:
            value = unquote(re.split("[?;]", value, maxsplit=1)[0])
        found.append(value.strip(_AROUND))
    if "%40" in found[-1]:
        found.append(unquote(found[-1]).strip(_AROUND))
    if "@" in found[-1]:
        found.append(found[-1].strip(_AROUND + "()").rstrip("."))
    return [_with_plain_dashes(one) for one in dict.fromkeys(found) if one]


def has_several_addresses(text: str) -> bool:
    """Returns True if the text has more than one e-mail address, as a line of recipients has."""
    return len({one.casefold() for one in _ADDRESS.findall(text)}) > 1


def _with_plain_dashes(text: str) -> str:
    """Returns a number with hyphens for the dashes that programs format it with; any other text unchanged."""
    if any(char.isalpha() for char in text):
        return text
    return "".join("-" if category(char) == "Pd" else char for char in text)
