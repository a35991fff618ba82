"""Reads configuration documents, YAML 1.2 or JSON, with positions, and reports mistakes in them.

Every mounted file is read here, so that each mistake is a `Problem` with file, line and key. The models define what a
document means. The only I/O is reading the file; any bytes are safe.
"""

from dispatcher.config.documents.error_messages import nearest, problems_from
from dispatcher.config.documents.locations import Loc, key_of, locate, path_of
from dispatcher.config.documents.scalars import is_null
from dispatcher.config.documents.yaml_reader import (
    MAX_BYTES,
    MAX_DEPTH,
    MAX_VALUES,
    Document,
    Mistake,
    Repetition,
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
    "Repetition",
    "is_null",
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
