"""Interprets plain scalars by the core schema of YAML 1.2.2, section 10.3.2.

`no`, `on` and `yes` are text; octal numbers are written `0o17`. Numbers that JSON can't represent everywhere are
refused.
"""

import math
import re

from pydantic import JsonValue

_NULL = re.compile(r"null|Null|NULL|~|")
_BOOLEAN = re.compile(r"true|True|TRUE|false|False|FALSE")
_INTEGER = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_NOT_FINITE = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
_CORE = "tag:yaml.org,2002:"
_KINDS: dict[str, tuple[type, ...]] = {"null": (type(None),), "bool": (bool,), "int": (int,), "float": (int, float)}
_LONGEST_INTEGER = 40  # characters; 64 bits need 20, or 24 in octal


def is_null(text: str) -> bool:
    """Returns True if a plain scalar is null: `null`, `~`, or nothing."""
    return _NULL.fullmatch(text) is not None


def plain(text: str) -> JsonValue:
    """Returns the value of a plain scalar.

    Raises:
        ValueError: a number that is not finite, or an integer beyond 64 bits.
    """
    if is_null(text):
        return None
    if _BOOLEAN.fullmatch(text):
        return text[0] in "tT"
    if _INTEGER.fullmatch(text):
        number = int(text, 0 if text[:2] in ("0o", "0x") else 10) if len(text) <= _LONGEST_INTEGER else None
        if number is None or not -(1 << 63) <= number < 1 << 64:
            raise ValueError("this number has more than 64 bits: put it in quotes if it is text")
        return number
    if _NOT_FINITE.fullmatch(text):
        raise ValueError("must be a finite number: put it in quotes if it is text")
    if _FLOAT.fullmatch(text):
        value = float(text)
        if not math.isfinite(value):
            raise ValueError("must be a finite number: put it in quotes if it is text")
        return value
    return text


def scalar(text: str, tag: str | None, is_plain: bool) -> JsonValue:
    """Returns the value of a scalar. `tag`: None if there is none; `is_plain`: written without quotes.

    Raises:
        ValueError: as for `plain`, or the tag is not in the core schema or doesn't fit the text.
    """
    if tag in ("!", _CORE + "str"):
        return text
    if tag is None:
        return plain(text) if is_plain else text
    value = plain(text)
    kinds = _KINDS.get(tag.removeprefix(_CORE), ()) if tag.startswith(_CORE) else ()
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
        raise ValueError("this tag can't be used here: leave it out")
    return value


def is_collection_tag(tag: str | None, kind: str) -> bool:
    """Returns True if a list (`seq`) or mapping (`map`) can have this tag."""
    return tag in (None, "!", _CORE + kind)
