"""Limits the files and environment variables that secret references in webhook files may name.

Tenants write webhook files, so a reference in one must not reach the dispatcher's own secrets: the dispatcher would
send them to the tenant's own token endpoint. The settings file belongs to the operator and may name anything.
"""

import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Final

MAX_SECRET_BYTES: Final = 64 * 1024
DEFAULT_SECRETS_DIRECTORY: Final = Path("/run/secrets/webhooks")
"""Default directory of webhook secrets, besides the webhooks' own directory."""
SETTINGS_PREFIX: Final = "DISPATCHER_"
"""Prefix of the variables that override settings. Webhooks may never refer to them, whatever prefixes are listed."""


class OutOfScope(ValueError):
    """A reference names something that webhook files may not read; the message says what to change."""


@dataclass(frozen=True, slots=True)
class SecretScope:
    """The operator's limits for references in webhook files."""

    roots: tuple[Path, ...]
    """Directories of webhook secrets. A file counts as inside if its path with all links resolved is."""
    prefixes: tuple[str, ...]
    """Prefixes of names of environment variables."""
    own_files: frozenset[Path] = frozenset()
    """Files that the settings refer to, links resolved. They are refused wherever they are."""
    own_variables: frozenset[str] = frozenset()
    """Environment variables that the settings refer to. They are refused whatever their names."""

    def allowed_file(self, path: Path) -> Path:
        """Returns `path` with all links resolved. The file need not exist.

        Raises:
            OutOfScope: webhook files may not refer to it. The message doesn't reveal whether the file exists.
        """
        try:
            real = resolved(path)
            is_inside = any(real.is_relative_to(resolved(root)) for root in self.roots)
        except (OSError, ValueError):  # a NUL in it
            raise OutOfScope(f"secret file {path} is not a usable path: correct it") from None
        if not is_inside:
            listed = ", ".join(map(str, self.roots)) or "none"
            raise OutOfScope(
                f"secret file {path} is outside the directories of webhook secrets ({listed}): "
                "move it into one, or list its directory under webhooks.secrets.files"
            )
        if real in self.own_files:
            raise OutOfScope(f"secret file {path} belongs to the dispatcher's settings: give the webhook its own")
        return real

    def allows(self, path: Path) -> bool:
        """Returns True if webhook files may refer to this file."""
        try:
            self.allowed_file(path)
        except OutOfScope:
            return False
        return True

    def problem_of_variable(self, name: str) -> str | None:
        """Returns why a webhook file may not refer to this environment variable, or None if it may."""
        if name in self.own_variables or name.upper().startswith(SETTINGS_PREFIX):
            return f"environment variable {name} belongs to the dispatcher's settings: give the webhook its own"
        if not name.startswith(self.prefixes):
            listed = ", ".join(f"{prefix}*" for prefix in self.prefixes) or "none"
            return (
                f"environment variable {name} is not one of those for webhook secrets ({listed}): "
                "rename it, or list its name under webhooks.secrets.env"
            )
        return None


def resolved(path: Path) -> Path:
    """Returns the path with all links resolved, as far as it exists. Loops of links stay; opening them fails."""
    return Path(os.path.realpath(path))


def read_secret_file(path: Path, scope: SecretScope | None = None) -> bytes:
    """Returns the content of a secret file, cut one byte after `MAX_SECRET_BYTES`.

    Raises:
        OutOfScope: webhook files may not refer to it.
        OSError: it can't be read, or it is something other than a regular file.
    """
    if scope is None:
        return read_regular_file(path, MAX_SECRET_BYTES + 1)
    real = scope.allowed_file(path)
    return read_regular_file(real, MAX_SECRET_BYTES + 1, must_be=real)


def read_regular_file(path: Path, limit: int, *, must_be: Path | None = None) -> bytes:
    """Returns at most `limit` bytes of a regular file. Never waits for a pipe or a device.

    Args:
        must_be: the path that the opened file must have. It protects against a link that is swapped meanwhile.

    Raises:
        OSError: it can't be read, or it is something other than a regular file.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a pipe would wait for its writer
    with open(descriptor, "rb") as stream:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError("it is not a regular file")
        opened = Path(f"/proc/self/fd/{descriptor}")
        if must_be is not None and opened.exists() and Path(os.readlink(opened)) != must_be:
            raise OSError("its path changed while it was read")
        return stream.read(limit)
