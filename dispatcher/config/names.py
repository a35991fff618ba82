"""The texts that identify something: organisations, sandboxes, statuses, topics."""

import re
import unicodedata
from typing import Annotated, Final

from pydantic import AfterValidator, StringConstraints

MAX_NAME: Final = 200
"""Characters."""
_INVISIBLE: Final = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
"""Categories of characters that a reader doesn't see, or that begin a new line."""
_PLACEHOLDER: Final = re.compile(r"None|.*[<>{}$].*", re.DOTALL)
_FOREIGN: Final = re.compile(r"://|[\t\n\v\f\r\"`\[\];|\\*]")
"""What no organisation or sandbox has, but a slip leaves: a part of a URL, if a line continues the one above it, or a
part of YAML's own syntax."""
_JOINERS: Final = "\u200c\u200d"
"""Used inside words of some scripts, and in emoji."""


def stripped(text: str) -> str:
    """Returns the text without invisible characters, and without blanks around it."""
    return "".join(character for character in text if not _is_invisible(character)).strip()


def problem_of_tenant_name(text: str) -> str:
    """Returns why an organisation or sandbox can't have this text, or an empty text if it can.

    A template leaves `<no value>`, `${SANDBOX}` or `None` in place of a missing value.
    """
    if _PLACEHOLDER.fullmatch(text) is not None:
        return "looks like a placeholder that a template didn't replace: write the value itself"
    if (foreign := _FOREIGN.search(text)) is not None:
        shown = "a line end or tab" if foreign[0].isspace() else foreign[0]
        return f"contains {shown}, as no organisation or sandbox does: correct it, and look at the next lines"
    return ""


def _is_invisible(character: str) -> bool:
    return not character.isprintable() and unicodedata.category(character) in _INVISIBLE


def _plain(text: str) -> str:
    for character in text:
        if _is_invisible(character):
            raise ValueError(f"contains the invisible character U+{ord(character):04X}: remove it")
    if text != text.strip():
        raise ValueError("begins or ends with a blank: remove it")
    return text


def _readable(text: str) -> str:
    _plain("".join(character for character in text if character not in _JOINERS))
    return text


def _tenant_name(text: str) -> str:
    if problem := problem_of_tenant_name(text):
        raise ValueError(problem)
    return text


Name = Annotated[str, StringConstraints(min_length=1, max_length=MAX_NAME), AfterValidator(_plain)]
"""A short text that identifies something. It has no invisible characters, and no blanks around it."""
TenantName = Annotated[Name, AfterValidator(_tenant_name)]
"""An organisation or sandbox. Placeholders and recognisable slips are refused, because they would be another tenant."""
DisplayName = Annotated[str, StringConstraints(min_length=1, max_length=MAX_NAME), AfterValidator(_readable)]
"""A short text that is shown to people. Unlike a `Name` it may contain U+200C and U+200D."""
