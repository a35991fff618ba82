"""Reasons why a database does not answer: the first line of the driver's message, or what is wrong with its file."""

import os
import sqlite3
from pathlib import Path
from typing import Final

_VALUE_CLASSES: Final = ("22", "54")
"""Classes of SQLSTATE: data exceptions, and limits of the program, as that of an index row's size."""
_OF_OTHER_SESSIONS: Final = frozenset({"26000", "42P05"})
"""SQLSTATEs of a prepared statement that is missing, or there already: the driver's sessions are mixed up."""
_OF_THE_FILE: Final = tuple(
    f"SQLITE_{name}" for name in ("CANTOPEN", "READONLY", "PERM", "IOERR", "FULL", "NOTADB", "CORRUPT")
)


def is_about_values(error: Exception) -> bool:
    """Returns True if the database refused a value, so that the same statement would fail again."""
    origin = getattr(error, "orig", None) or error
    return isinstance(origin, sqlite3.DataError) or str(getattr(origin, "sqlstate", "")).startswith(_VALUE_CLASSES)


def reason_of(error: Exception, *, maker: str, setting: str, file: Path | None) -> str:
    """Returns why a database failed, and what to do: no statement, no parameters.

    Args:
        maker: the command that makes what is missing.
        setting: the setting that names the database.
        file: the file of a SQLite database.
    """
    origin = getattr(error, "orig", None) or error
    # Of the SQLSTATE class 28, a wrong password among others; SQLAlchemy's own exceptions have the code, too.
    if str(getattr(origin, "sqlstate", "")).startswith("28"):
        return f"{str(origin)[:200]}: correct the user or the password in {setting}"
    if getattr(origin, "sqlstate", None) in _OF_OTHER_SESSIONS:
        return f"a pooler pools by transaction: it must pool by session (PgBouncer: pool_mode); or correct {setting}"
    lines = str(origin).splitlines()
    text = lines[0][:200] if lines else type(origin).__name__
    kind = str(getattr(origin, "sqlite_errorname", ""))
    if file is not None and kind.startswith(_OF_THE_FILE):
        return _problem_of_file(file, kind, text, maker, setting)
    if (
        "no such table" in text
        or "no such column" in text
        or (("column " in text or 'relation "' in text) and "does not exist" in text)
    ):
        text += f": run `{maker}`"
    return text


def _problem_of_file(file: Path, kind: str, text: str, maker: str, setting: str) -> str:
    directory = file.parent
    if os.path.isdir(file):
        return f"it is a directory: name a file in {setting}"
    if not os.path.isdir(directory):
        return f"there is no directory {directory}: create it, or correct {setting}"
    if kind.startswith("SQLITE_NOTADB"):
        return f"the file is not a SQLite database: restore a backup, or correct {setting}"
    if kind.startswith("SQLITE_CORRUPT"):
        return f"{text}: restore a backup"
    status = os.statvfs(directory)
    # SQLite keeps its log and an index of it beside the file, also to read.
    needed = {directory: os.R_OK | os.W_OK | os.X_OK, file: os.R_OK | os.W_OK}
    denied = next(
        (path for path, access in needed.items() if os.path.exists(path) and not os.access(path, access)), None
    )
    if denied is not None and status.f_flag & os.ST_RDONLY:
        return f"{directory} is on a read-only file system: mount it for writing, or correct {setting}"
    if denied is not None:
        return f"user {os.geteuid()} can't read and write {denied}: change its owner or its permissions"
    if kind.startswith("SQLITE_FULL") or not status.f_bavail:
        return f"the disk is full: free space in {directory}"
    if not os.path.exists(file):
        return f"there is no such file: run `{maker}`"
    return f"{text}: check the file and its disk"
