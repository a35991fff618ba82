"""Reads the webhook files of a mounted directory in one consistent state. Blocks, so it is called in a thread.

Kubernetes mounts a ConfigMap or Secret as links through `..data`, a link that it swaps to a new directory: a
generation. All files of one reading are of one generation.
"""

import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Final

from pydantic import JsonValue

from dispatcher.config.documents import MAX_BYTES, parse_leniently
from dispatcher.config.secret_scope import OutOfScope, SecretScope, read_regular_file, read_secret_file, resolved
from dispatcher.errors import ConfigError, Problem
from dispatcher.stores.webhook_file import FileReader, Rules, WebhookFileReading, unreadable

SUFFIXES: Final = (".yaml", ".yml", ".json")
"""Ends of the names of webhook files, in upper or lower case."""
_TRIES = 5  # kubelet swaps a generation once a minute at most


def read_directory(
    directory: Path, known: Mapping[str, WebhookFileReading], rules: Rules
) -> dict[str, WebhookFileReading]:
    """Reads the webhook files of `directory`. Returns them by name, in order. Ignores dotfiles.

    Args:
        known: the previous readings; those of unchanged files are returned again.

    Raises:
        OSError: the directory can't be listed.
    """
    for _ in range(_TRIES):
        generation = _generation(directory)
        try:
            found = sorted(_files(directory, generation))
        except FileNotFoundError:
            if generation == _generation(directory):
                raise
            continue
        readings = {name: _read(directory, name, path, known.get(name), rules) for name, path in found}
        if generation == _generation(directory):
            return readings
    return dict(known)  # the directory changes all the time: the next scan tries again


def _generation(directory: Path) -> str | None:
    data = directory / "..data"
    return os.path.realpath(data) if data.is_symlink() else None


def _files(directory: Path, generation: str | None) -> Iterator[tuple[str, Path]]:
    # kubelet swaps ..data first and updates the links to the single files afterwards. The generation's own listing
    # is always right.
    if generation is not None:
        yield from _files(Path(generation), None)
    with os.scandir(directory) as entries:
        for entry in entries:
            if entry.name.startswith(".") or not entry.name.lower().endswith(SUFFIXES):
                continue
            if entry.is_symlink() and generation is not None and os.readlink(entry.path).startswith("..data/"):
                continue
            yield entry.name, Path(entry.path)


def _read(directory: Path, name: str, path: Path, known: WebhookFileReading | None, rules: Rules) -> WebhookFileReading:
    file = str(directory / name)
    try:
        content = _regular_bytes(directory, path)
    except (OSError, ValueError) as error:
        why = (error.strerror if isinstance(error, OSError) else None) or str(error)
        problem = Problem(f"can't be read ({why}): correct the file or its permissions", file=file)
        return _previous_if_same(known, _unreadable(file, path, why.encode(), [problem]))
    if known is not None and known.fingerprint == _fingerprint(content, known.secret_files, rules.scope):
        return known
    try:
        document, mistakes = parse_leniently(content, file)
    except ConfigError as error:
        return _unreadable(file, path, _fingerprint(content, (), rules.scope), error.problems)
    secret_files = frozenset(directory / where for where in _secret_files(document.data))
    # Before the secrets are read, so that a later change is noticed.
    fingerprint = _fingerprint(content, secret_files, rules.scope)
    plain_content = b"" if _is_swapped(path) else content
    plain_files = frozenset(one for one in secret_files if not _is_swapped(one))
    written_at = _last_written([path, *plain_files] if plain_content else plain_files)
    if plain_content and plain_files == secret_files:
        plain = fingerprint  # nothing is of a generation
    else:
        plain = _fingerprint(plain_content, plain_files, rules.scope) if plain_content or plain_files else b""
    reading = FileReader(directory, document, mistakes, rules).reading()
    return replace(
        reading, fingerprint=fingerprint, plain_fingerprint=plain, secret_files=secret_files, written_at=written_at
    )


def _last_written(paths: Iterable[Path]) -> float:
    """Returns the Unix time at which the newest of these files was last written; 0 if there is none."""
    newest = 0.0
    for path in paths:
        with suppress(OSError, ValueError):
            newest = max(newest, path.stat().st_mtime)
    return newest


def _is_swapped(path: Path) -> bool:
    """Returns True if the file is of a generation, also of another volume: it appears and changes in one step."""
    try:
        real = path.resolve()
        data = (parent / "..data" for parent in real.parents)
        return any(link.is_symlink() and real.is_relative_to(link.resolve()) for link in data)
    except (OSError, ValueError, RuntimeError):  # a loop of links is a RuntimeError before Python 3.13
        return False


def _unreadable(file: str, path: Path, fingerprint: bytes, problems: Iterable[Problem]) -> WebhookFileReading:
    reading = unreadable(file, fingerprint, problems)
    if _is_swapped(path):
        return reading
    return replace(reading, plain_fingerprint=fingerprint, written_at=_last_written([path]))


def _previous_if_same(known: WebhookFileReading | None, reading: WebhookFileReading) -> WebhookFileReading:
    return known if known is not None and known.fingerprint == reading.fingerprint else reading


def _fingerprint(content: bytes, secret_files: Iterable[Path], scope: SecretScope) -> bytes:
    digest = hashlib.blake2b(content, digest_size=16)
    for path in sorted(secret_files):
        digest.update(b"\0" + os.fsencode(path) + b"\0")
        try:
            digest.update(hashlib.blake2b(read_secret_file(path, scope)).digest())
        except (OSError, ValueError) as error:
            digest.update(type(error).__name__.encode())
    return digest.digest()


def _regular_bytes(directory: Path, path: Path) -> bytes:
    real, root = resolved(path), resolved(directory)
    if not real.is_relative_to(root):
        raise OutOfScope("it is a link that leaves the directory")
    return read_regular_file(real, MAX_BYTES + 1, must_be=real)


def _secret_files(value: JsonValue) -> Iterator[str]:
    if isinstance(value, list):
        for inner in value:
            yield from _secret_files(inner)
    elif isinstance(value, dict):
        where = value.get("file")
        if isinstance(where, str) and len(value) == 1 and "\0" not in where:
            yield where
        for inner in value.values():
            yield from _secret_files(inner)
