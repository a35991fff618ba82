"""Configuration documents: YAML 1.2 or JSON read with positions, and mistakes in them said for people.

Every mounted file goes through here, so that a mistake in any of them is a `Problem` with file, line and key. What
a document means is its model's question. No I/O but reading the one file; safe on any bytes whatsoever.
"""

from dispatcher.config.documents.error_messages import nearest, problems_from
from dispatcher.config.documents.locations import Loc, key_of, locate, path_of
from dispatcher.config.documents.yaml_reader import (
    MAX_BYTES,
    MAX_DEPTH,
    MAX_VALUES,
    Document,
    Mistake,
    parse_document,
    parse_leniently,
    parse_value,
    read_document,
)

__all__ = [
    "MAX_BYTES",
    "MAX_DEPTH",
    "MAX_VALUES",
    "Document",
    "Loc",
    "Mistake",
    "key_of",
    "locate",
    "nearest",
    "parse_document",
    "parse_leniently",
    "parse_value",
    "path_of",
    "problems_from",
    "read_document",
]
