"""The webhook files of a mounted directory, read as of one moment. Blocking: called in a thread.

Kubernetes mounts a ConfigMap or Secret as links through `..data`, a link that it swaps to a new directory: a
generation. All files of one reading are of one generation. A file is good as a whole or bad as a whole.
"""

import hashlib
import os
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import structlog
from pydantic import JsonValue, ValidationError

from dispatcher.config.documents import MAX_BYTES, Document, parse_document, path_of, problems_from
from dispatcher.config.secrets import MAX_SECRET_BYTES, SecretSource
from dispatcher.config.webhooks import Webhook, WebhookConfig, WebhookFile
from dispatcher.contract.tenant import TenantKey
from dispatcher.errors import ConfigError, Problem

SUFFIXES: Final = (".yaml", ".yml", ".json")
_TRIES = 5  # kubelet swaps a generation once a minute at most

log = structlog.get_logger(__name__)

Check = Callable[[WebhookConfig], list[tuple[str, str]]]
"""What is wrong with a webhook beyond its model, as (key, message): `("url", "…")`, `("auth.sign.key", "…")`."""


@dataclass(frozen=True, slots=True, eq=False)
class WebhookFileReading:
    """One file, read. The same object is given again while neither it nor a secret file it names has changed."""

    file: str
    """The path that problems and sources name."""
    fingerprint: bytes
    """Of its content, and of the secret files it refers to."""
    webhooks: tuple[Webhook, ...] = ()
    lines: tuple[int, ...] = ()
    problems: tuple[Problem, ...] = ()
    """Anything here, and none of its webhooks is used."""
    secret_files: frozenset[Path] = frozenset()

    @property
    def is_good(self) -> bool:
        return not self.problems

    @property
    def tenants(self) -> tuple[TenantKey, ...]:
        return tuple(webhook.tenant for webhook in self.webhooks)


def read_directory(
    directory: Path, known: Mapping[str, WebhookFileReading], check: Check
) -> dict[str, WebhookFileReading]:
    """The webhook files of `directory`, by name in order of names. No sub-directories, no dotfiles.

    Args:
        known: the readings of last time, taken over for the files where nothing changed.

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
        readings = {name: _read(directory, name, path, known.get(name), check) for name, path in found}
        if generation == _generation(directory):
            return readings
    return dict(known)  # it never stands still: the next scan has another go


def _generation(directory: Path) -> str | None:
    data = directory / "..data"
    return os.path.realpath(data) if data.is_symlink() else None


def _files(directory: Path, generation: str | None) -> Iterator[tuple[str, Path]]:
    # kubelet swaps ..data first and mends the links to the single files afterwards: the generation's own listing
    # is right in between, too.
    if generation is not None:
        yield from _files(Path(generation), None)
    with os.scandir(directory) as entries:
        for entry in entries:
            if entry.name.startswith(".") or not entry.name.endswith(SUFFIXES) or entry.is_dir():
                continue
            if entry.is_symlink() and generation is not None and os.readlink(entry.path).startswith("..data/"):
                continue
            yield entry.name, Path(entry.path)


def _read(directory: Path, name: str, path: Path, known: WebhookFileReading | None, check: Check) -> WebhookFileReading:
    file = str(directory / name)
    try:
        content = _regular_bytes(path, MAX_BYTES + 1)
    except OSError as error:
        why = error.strerror or str(error)
        return _kept_if_same(known, WebhookFileReading(file, why.encode(), problems=(_unreadable(file, why),)))
    if known is not None and known.fingerprint == _fingerprint(content, known.secret_files):
        return known
    try:
        document = parse_document(content, file)
    except ConfigError as error:
        return WebhookFileReading(file, _fingerprint(content, ()), problems=error.problems)
    secret_files = frozenset(directory / where for where in _secret_files(document.data))
    fingerprint = _fingerprint(content, secret_files)  # before the secrets are read: a later change shows next time
    webhooks, lines, problems = _webhooks(document, directory, check)
    if problems:
        return WebhookFileReading(file, fingerprint, problems=problems, secret_files=secret_files)
    return WebhookFileReading(file, fingerprint, webhooks, lines, secret_files=secret_files)


def _kept_if_same(known: WebhookFileReading | None, reading: WebhookFileReading) -> WebhookFileReading:
    return known if known is not None and known.fingerprint == reading.fingerprint else reading


def _unreadable(file: str, why: str) -> Problem:
    return Problem(f"can't be read ({why}): mend the file or its permissions", file=file)


def _webhooks(
    document: Document, directory: Path, check: Check
) -> tuple[tuple[Webhook, ...], tuple[int, ...], tuple[Problem, ...]]:
    if document.data is None:
        return (), (), (Problem("empty: write apiVersion: dispatcher/v1 and webhooks", file=document.file),)
    try:
        parsed = WebhookFile.model_validate(document.data, context=SecretSource(directory).as_context())
    except ValidationError as error:
        return (), (), tuple(problems_from(error, document, WebhookFile))
    lines = tuple(document.line(("webhooks", index)) for index in range(len(parsed.webhooks)))
    problems = [*_twice(parsed.webhooks, lines, document)]
    for index, config in enumerate(parsed.webhooks):
        problems += [document.problem(("webhooks", index, *path_of(key)), why) for key, why in _checked(config, check)]
    webhooks = (
        Webhook.of(config, f"{document.file}:{line}") for config, line in zip(parsed.webhooks, lines, strict=True)
    )
    return tuple(webhooks), lines, tuple(problems)


def _checked(config: WebhookConfig, check: Check) -> list[tuple[str, str]]:
    try:
        return check(config)
    except Exception as error:  # a bug in a check costs this file its reload, not everybody the process
        log.exception("webhook check failed", tenant=str(config.tenant))
        return [("", f"could not be checked ({type(error).__name__}, see the log): please report this")]


def _twice(configs: Iterable[WebhookConfig], lines: tuple[int, ...], document: Document) -> Iterator[Problem]:
    first: dict[TenantKey, int] = {}
    for index, config in enumerate(configs):
        before = first.setdefault(config.tenant, index)
        if before != index:
            message = f"organisation and sandbox of webhooks[{before}], line {lines[before]}, once more: keep one"
            yield document.problem(("webhooks", index), message)


def _fingerprint(content: bytes, secret_files: Iterable[Path]) -> bytes:
    digest = hashlib.blake2b(content, digest_size=16)
    for path in sorted(secret_files):
        digest.update(b"\0" + os.fsencode(path) + b"\0")
        try:
            digest.update(hashlib.blake2b(_regular_bytes(path, MAX_SECRET_BYTES + 1)).digest())
        except (OSError, ValueError) as error:
            digest.update(type(error).__name__.encode())
    return digest.digest()


def _regular_bytes(path: Path, limit: int) -> bytes:
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError(f"{path} is no regular file")  # a pipe or a device would never end
    with path.open("rb") as stream:
        return stream.read(limit)


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
