"""Reads the webhook files of a mounted directory in one consistent state. Blocks, so it is called in a thread.

Kubernetes mounts a ConfigMap or Secret as links through `..data`, a link that it swaps to a new directory: a
generation. All files of one reading are of one generation.

A mistake costs the webhook that it is in. Organisation and sandbox are read even from an entry that can't be used, so
that the tenant's events are held instead of skipped.
"""

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import structlog
from pydantic import JsonValue, ValidationError

from dispatcher.config.documents import (
    MAX_BYTES,
    Document,
    Loc,
    Mistake,
    nearest,
    parse_leniently,
    path_of,
    problems_from,
)
from dispatcher.config.secret_scope import OutOfScope, SecretScope, read_regular_file, read_secret_file, resolved
from dispatcher.config.secrets import SecretSource
from dispatcher.config.webhooks import Webhook, WebhookConfig, WebhookFile
from dispatcher.contract.tenant import TenantKey
from dispatcher.errors import ConfigError, Problem

SUFFIXES: Final = (".yaml", ".yml", ".json")
API_VERSION: Final = "dispatcher/v1"
MAX_PROBLEMS: Final = 20
"""Maximum number of problems of a file that are named; the others are counted."""
MAX_ENTRIES: Final = 2_000
"""Maximum number of entries of a list or mapping in a webhook. It bounds the cost of a file with many mistakes."""
_TRIES = 5  # kubelet swaps a generation once a minute at most

log = structlog.get_logger(__name__)

Check = Callable[[WebhookConfig], list[tuple[str, str]]]
"""Returns problems of a webhook that its model can't find, as (key, message): `("auth.sign.key", "…")`."""


@dataclass(frozen=True, slots=True, eq=False)
class WebhookEntry:
    """One webhook of a file."""

    line: int
    tenant: TenantKey | None
    """None if organisation or sandbox can't be read, or if an earlier entry of the file has the same ones."""
    webhook: Webhook | None
    """None if it can't be used."""
    why: str = ""
    """Reason why it can't be used: its first problem."""
    is_repeat: bool = False
    """An earlier entry of the file has the same tenant."""


@dataclass(frozen=True, slots=True, eq=False)
class WebhookFileReading:
    """Content of one file. The same object is returned again until the file or one of its secret files changes."""

    file: str
    """Path of the file in problems and sources."""
    fingerprint: bytes
    """Hash of the content and of the secret files that it refers to."""
    entries: tuple[WebhookEntry, ...] | None = ()
    """None if they can't be read, so that the file's tenants are unknown."""
    problems: tuple[Problem, ...] = ()
    """At most `MAX_PROBLEMS`, and one that counts the others."""
    secret_files: frozenset[Path] = frozenset()
    is_usable: bool = True
    """False if nothing in the file can be used: not readable, or of another version."""
    has_unknown_parts: bool = False
    """True if a part that is not a webhook may have been intended as one."""

    @property
    def webhooks(self) -> tuple[Webhook, ...]:
        """The webhooks that can be used."""
        return tuple(entry.webhook for entry in self.entries or () if entry.webhook is not None)

    @property
    def tenants(self) -> tuple[TenantKey, ...]:
        """The known tenants, each once."""
        return tuple(entry.tenant for entry in self.entries or () if entry.tenant is not None)

    @property
    def unknown_tenants(self) -> int:
        """Number of webhooks whose tenant can't be read."""
        nameless = sum(entry.tenant is None and not entry.is_repeat for entry in self.entries or ())
        return nameless + int(self.entries is None or self.has_unknown_parts)


@dataclass(frozen=True, slots=True)
class Rules:
    """Checks and limits for reading a webhook file."""

    check: Check
    scope: SecretScope


def read_directory(
    directory: Path, known: Mapping[str, WebhookFileReading], rules: Rules
) -> dict[str, WebhookFileReading]:
    """Reads the webhook files of `directory`. Returns them by name, in order. Ignores sub-directories and dotfiles.

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
            if entry.name.startswith(".") or not entry.name.endswith(SUFFIXES) or _is_directory(entry):
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
        return _previous_if_same(known, _unreadable(file, why.encode(), [problem]))
    if known is not None and known.fingerprint == _fingerprint(content, known.secret_files, rules.scope):
        return known
    try:
        document, mistakes = parse_leniently(content, file)
    except ConfigError as error:
        return _unreadable(file, _fingerprint(content, (), rules.scope), error.problems)
    secret_files = frozenset(directory / where for where in _secret_files(document.data))
    fingerprint = _fingerprint(
        content, secret_files, rules.scope
    )  # before the secrets are read, so that a later change is noticed
    reading = _FileReader(directory, document, mistakes, rules).reading()
    return replace(reading, fingerprint=fingerprint, secret_files=secret_files)


def _unreadable(file: str, fingerprint: bytes, problems: Iterable[Problem]) -> WebhookFileReading:
    return WebhookFileReading(file, fingerprint, None, _capped(list(problems), 0, file), is_usable=False)


def _previous_if_same(known: WebhookFileReading | None, reading: WebhookFileReading) -> WebhookFileReading:
    return known if known is not None and known.fingerprint == reading.fingerprint else reading


def _is_directory(entry: "os.DirEntry[str]") -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a loop of links counts as a file that can't be read
        return False


class _FileReader:
    """Reads the webhooks of one document independently of each other."""

    def __init__(self, directory: Path, document: Document, mistakes: Iterable[Mistake], rules: Rules) -> None:
        self._document = document
        self._rules = rules
        self._context = SecretSource(directory, scope=rules.scope).as_context()
        self._problems: list[Problem] = []
        self._uncounted = 0
        self._mistakes: dict[Loc, list[Problem]] = {}
        """Mistakes by entry; those outside of any entry under `()`."""
        for mistake in mistakes:
            if not _is_header_value(mistake.path) or not document.written(mistake.path):
                at = mistake.path[:2] if mistake.path[:1] == ("webhooks",) and len(mistake.path) > 2 else ()
                self._mistakes.setdefault(at, []).append(mistake.problem)

    def reading(self) -> WebhookFileReading:
        """Returns the file's webhooks and problems. The caller sets fingerprint and secret files."""
        document, data = self._document, self._document.data
        if data is None:
            empty = Problem(f"empty: write apiVersion: {API_VERSION} and webhooks", file=document.file)
            return _unreadable(document.file, b"", [empty])
        if not isinstance(data, dict):
            return _unreadable(document.file, b"", [document.problem((), "must be a mapping (key: value)")])
        self._note(self._mistakes.pop((), []))
        is_ours = self._check_version(data)
        unknown = self._check_keys(data)
        given = data.get("webhooks", [])
        if not isinstance(given, list):
            kind = "empty" if given is None else "a mapping" if isinstance(given, dict) else "text"
            self._note([document.problem(("webhooks",), f"must be a list, not {kind}")])
            return replace(self._result(None), is_usable=False)
        if unknown and "webhooks" not in data:
            return replace(self._result(None), is_usable=False)
        entries = self._entries(given, is_ours=is_ours)
        has_unknown_parts = any(isinstance(data[key], list | dict) for key in unknown)
        return replace(self._result(entries), is_usable=is_ours, has_unknown_parts=has_unknown_parts)

    def _result(self, entries: tuple[WebhookEntry, ...] | None) -> WebhookFileReading:
        problems = _capped(self._problems, self._uncounted, self._document.file)
        return WebhookFileReading(self._document.file, b"", entries, problems)

    def _check_version(self, data: Mapping[str, JsonValue]) -> bool:
        version = data.get("apiVersion")
        if version == API_VERSION:
            return True
        message = f"missing; write apiVersion: {API_VERSION}" if version is None else f"must be {API_VERSION}"
        self._note([self._document.problem(("apiVersion",), message)])
        return False

    def _check_keys(self, data: Mapping[str, JsonValue]) -> list[str]:
        known = list(WebhookFile.model_fields)
        unknown = [key for key in data if key not in known]
        for key in unknown[: MAX_PROBLEMS + 1]:
            near = nearest(key, known)
            message = f"unknown key; did you mean {near!r}?" if near else f"unknown key; known here: {', '.join(known)}"
            self._note([self._document.problem((key,), message)])
        self._uncounted += len(unknown[MAX_PROBLEMS + 1 :])
        return unknown

    def _entries(self, given: list[JsonValue], *, is_ours: bool) -> tuple[WebhookEntry, ...]:
        first: dict[TenantKey, int] = {}
        entries: list[WebhookEntry] = []
        for index, raw in enumerate(given):
            entry = self._entry(index, raw)
            if not is_ours:
                entry = replace(entry, webhook=None, why=entry.why or f"its file is not of {API_VERSION}")
            before = first.setdefault(entry.tenant, index) if entry.tenant is not None else index
            if before != index:
                where = f"webhooks[{before}], line {entries[before].line}"
                message = f"the same organisation and sandbox as {where}: keep one"
                self._note([self._document.problem(("webhooks", index), message)])
                entry = replace(entry, tenant=None, webhook=None, why=message, is_repeat=True)
            entries.append(entry)
        return tuple(entries)

    def _entry(self, index: int, raw: JsonValue) -> WebhookEntry:
        at: Loc = ("webhooks", index)
        line = self._document.line(at)
        data = self._with_written_headers(raw, at)
        problems, too_large = self._mistakes.pop(at, []), self._sizes(data, at)
        problems += too_large
        config = None if too_large else self._validated(data, at, problems)
        if config is not None:
            found = _checked(config, self._rules.check)
            problems += [self._document.problem((*at, *path_of(key)), why) for key, why in found]
        self._note(problems)
        if config is None or problems:
            place = problems[0].key.partition(".")[2]
            why = f"{place}: {problems[0].message}" if place else problems[0].message
            return WebhookEntry(line, self._tenant(data, at), None, why)
        return WebhookEntry(line, config.tenant, Webhook.of(config, f"{self._document.file}:{line}"))

    def _validated(self, data: JsonValue, at: Loc, problems: list[Problem]) -> WebhookConfig | None:
        """Returns the webhook of an entry, or None if it can't be used. Adds the reasons to `problems`."""
        room = MAX_PROBLEMS - len(self._problems) - len(problems)
        if problems and room <= 0:
            return None
        try:
            return WebhookConfig.model_validate(data, context=self._context)
        except ValidationError as error:
            if room <= 0:  # enough problems are named already: further ones only cost time
                self._uncounted += error.error_count() - 1
                problems.append(self._document.problem(at, "has mistakes"))
                return None
            found = problems_from(error, self._document, WebhookFile, at, most=room)
            self._uncounted += max(0, error.error_count() - room)
            found += [self._document.problem((*at, *path), why) for path, why in _refused_urls(data, self._rules.check)]
            named = {problem.key for problem in problems}
            problems += sorted((one for one in found if one.key not in named), key=lambda problem: problem.line or 0)
            return None

    def _with_written_headers(self, raw: JsonValue, at: Loc) -> JsonValue:
        """Returns the entry with header parameters as the file spells them: 2.10 and 00012345 are texts there."""
        headers = raw.get("headers") if isinstance(raw, dict) else None
        if not isinstance(raw, dict) or not isinstance(headers, dict):
            return raw
        written = {
            name: (self._document.written((*at, "headers", name)) or value) if not isinstance(value, str) else value
            for name, value in headers.items()
        }
        return raw | {"headers": written}

    def _sizes(self, value: JsonValue, at: Loc) -> list[Problem]:
        """Returns problems for lists and mappings that are too large, before the model reports each entry."""
        if not isinstance(value, dict | list):
            return []
        if len(value) > MAX_ENTRIES:
            return [self._document.problem(at, f"must have at most {MAX_ENTRIES:,} entries")]
        inner: Iterable[tuple[str | int, JsonValue]] = value.items() if isinstance(value, dict) else enumerate(value)
        return [problem for key, item in inner for problem in self._sizes(item, (*at, key))]

    def _tenant(self, data: JsonValue, at: Loc) -> TenantKey | None:
        """Returns the tenant of an entry that can't be used, or None if it can't be read."""
        if not isinstance(data, dict):
            return None
        org, sandbox = (self._text(data.get(name), (*at, name)) for name in ("org", "sandbox"))
        return TenantKey(org, sandbox) if org and sandbox else None

    def _text(self, value: JsonValue, at: Loc) -> str:
        return value if isinstance(value, str) else self._document.written(at)

    def _note(self, problems: Iterable[Problem]) -> None:
        for problem in problems:
            if len(self._problems) < MAX_PROBLEMS:
                self._problems.append(problem)
            else:
                self._uncounted += 1


def _capped(problems: list[Problem], uncounted: int, file: str) -> tuple[Problem, ...]:
    rest = len(problems[MAX_PROBLEMS:]) + uncounted
    more = [Problem(f"{rest:,} more problems in this file", file=file)] if rest else []
    return (*problems[:MAX_PROBLEMS], *more)


def _is_header_value(path: Loc) -> bool:
    return len(path) == 4 and path[0] == "webhooks" and path[2] == "headers"


def _refused_urls(data: JsonValue, check: Check) -> Iterator[tuple[Loc, str]]:
    """Yields problems with the URLs of an entry that has other mistakes, so that all are reported together."""
    entry = data if isinstance(data, dict) else {}
    auth = entry.get("auth")
    fetch = auth.get("fetch") if isinstance(auth, dict) else None
    url, token_url = entry.get("url"), fetch.get("token_url") if isinstance(fetch, dict) else None
    for path, value in ((("url",), url), (("auth", "fetch", "token_url"), token_url)):
        try:
            config = WebhookConfig.model_validate({"name": "x", "org": "x", "sandbox": "x", "url": value})
        except ValidationError:
            continue  # absent, or the model has already reported it
        yield from ((path, why) for key, why in _checked(config, check) if key == "url")


def _checked(config: WebhookConfig, check: Check) -> list[tuple[str, str]]:
    try:
        return check(config)
    except Exception as error:  # a bug in a check costs this webhook only
        log.exception("webhook check failed", tenant=str(config.tenant))
        return [("", f"could not be checked ({type(error).__name__}, see the log): please report this")]


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
