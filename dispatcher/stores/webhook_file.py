"""Reads the webhooks of one file. A mistake costs the webhook that it is in.

Organisation and sandbox are read even from an entry that can't be used, so that the tenant's events are held instead of
skipped. The same is done for every other part of the file that may be a webhook.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import structlog
from pydantic import JsonValue, ValidationError

from dispatcher.config.documents import Document, Loc, Mistake, key_of, nearest, path_of, problems_from
from dispatcher.config.secret_scope import SecretScope
from dispatcher.config.secrets import SecretSource
from dispatcher.config.webhook_lookup import CheckWebhook
from dispatcher.config.webhook_revision import Webhook
from dispatcher.config.webhooks import WebhookConfig, WebhookFile
from dispatcher.contract.tenant import TenantKey
from dispatcher.errors import Problem
from dispatcher.stores.claimed_tenants import ClaimedTenants, tenant_text_at, text_at

API_VERSION: Final = "dispatcher/v1"
MAX_PROBLEMS: Final = 20
"""Maximum number of problems of a file that are named; the others are counted."""
MAX_ENTRIES: Final = 2_000
"""Maximum number of entries of a list or mapping in a webhook. It bounds the cost of a file with many mistakes."""

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class WebhookEntry:
    """One webhook of a file, or a part of the file that may be intended as one."""

    key: str
    """Its place in the file: `webhooks[2]`."""
    line: int
    tenant: TenantKey | None
    """None if organisation or sandbox can't be read, or if an earlier entry of the file has the same ones."""
    webhook: Webhook | None = None
    """None if it can't be used."""
    why: str = ""
    """Reason why it can't be used: its first problem."""
    name: str = ""
    """Name of a webhook that can't be used, if it can be read. It shows which webhook an entry without tenant is."""
    url: str = ""
    """Like `name`."""
    is_repeat: bool = False
    """An earlier entry of the file has the same tenant."""
    is_guess: bool = False
    """The part doesn't clearly say that it is a webhook of this tenant."""

    @property
    def is_nameless(self) -> bool:
        """True if it is the webhook of an unknown tenant."""
        return self.tenant is None and not self.is_repeat


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
    plain_fingerprint: bytes = b""
    """Hash of those parts, content or secret files, that are plain files: they may be read while they are written.
    Empty if all are of generations, which appear and change in one step."""
    written_at: float = 0.0
    """Unix time at which the newest of the plain files was last written when it was read; 0 if unknown."""

    @property
    def webhooks(self) -> tuple[Webhook, ...]:
        """The webhooks that can be used."""
        return tuple(entry.webhook for entry in self.entries or () if entry.webhook is not None)

    @property
    def has_unknown_tenants(self) -> bool:
        """True if the file has a webhook whose tenant can't be read, or may have one."""
        return self.entries is None or any(entry.is_nameless for entry in self.entries)


@dataclass(frozen=True, slots=True)
class Rules:
    """Checks and limits for reading a webhook file."""

    check: CheckWebhook
    scope: SecretScope


class FileReader:
    """Reads the webhooks of one document independently of each other."""

    def __init__(self, directory: Path, document: Document, mistakes: Sequence[Mistake], rules: Rules) -> None:
        self._document = document
        self._rules = rules
        self._context = SecretSource(directory, scope=rules.scope).as_context()
        self._problems: list[Problem] = []
        self._uncounted = 0
        self._claimed = ClaimedTenants(document, mistakes)
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
            return unreadable(document.file, b"", [empty])
        if not isinstance(data, dict):
            return unreadable(document.file, b"", [document.problem((), "must be a mapping (key: value)")])
        self._note(self._mistakes.pop((), []))
        is_ours = self._check_version(data)
        unknown = self._check_keys(data)
        given = data.get("webhooks", [])
        if not isinstance(given, list):
            kind = "empty" if given is None else "a mapping" if isinstance(given, dict) else "text"
            self._note([document.problem(("webhooks",), f"must be a list, not {kind}")])
            return replace(self._result(None), is_usable=False)
        if "webhooks" not in data:
            if not unknown:
                self._note([document.problem(("webhooks",), "missing: write webhooks: [] if there are none")])
            return replace(self._result(None), is_usable=False)
        entries = self._entries(given, is_ours=is_ours)
        known = {entry.tenant for entry in entries}
        guessed = (entry for entry in self._guesses(data, unknown) if entry.tenant is None or entry.tenant not in known)
        return replace(self._result((*entries, *guessed)), is_usable=is_ours)

    def _guesses(self, data: dict[str, JsonValue], unknown: Iterable[str]) -> Iterator[WebhookEntry]:
        """Yields the parts outside of the list of webhooks that may be webhooks."""
        yield from self._guessed(self._claimed.of_mapping(data, ()), ())
        yield from self._guessed(self._claimed.in_repeated((), "webhooks"), ("webhooks",))
        for key in unknown:
            if isinstance(data[key], list | dict):
                yield from self._guessed([None, *self._claimed.within(data[key], (key,))], (key,))

    def _guessed(self, tenants: Iterable[TenantKey | None], at: Loc, why: str = "") -> Iterator[WebhookEntry]:
        for tenant in tenants:
            reason = why or "its place in the file is wrong"
            yield WebhookEntry(key_of(at), self._document.line(at), tenant, why=reason, is_guess=True)

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
        guesses: list[WebhookEntry] = []
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
            if entry.webhook is None:
                claimed = list(self._claimed.within(raw, ("webhooks", index)))
                if entry.is_nameless and None in claimed:
                    claimed.remove(None)  # the entry itself
                guesses += self._guessed(claimed, ("webhooks", index), entry.why)
        return (*entries, *(guess for guess in guesses if guess.tenant is None or guess.tenant not in first))

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
            name, url = (self._text(data, at, key, text_at) for key in ("name", "url"))
            return WebhookEntry(key_of(at), line, self._tenant(data, at), why=why, name=name, url=url)
        return WebhookEntry(key_of(at), line, config.tenant, Webhook.of(config, f"{self._document.file}:{line}"))

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
        org, sandbox = (self._text(data, at, key, tenant_text_at) for key in ("org", "sandbox"))
        return TenantKey(org, sandbox) if org and sandbox else None

    def _text(self, data: JsonValue, at: Loc, key: str, read: Callable[[JsonValue, Document, Loc], str]) -> str:
        return read(data[key], self._document, (*at, key)) if isinstance(data, dict) and key in data else ""

    def _note(self, problems: Iterable[Problem]) -> None:
        for problem in problems:
            if len(self._problems) < MAX_PROBLEMS:
                self._problems.append(problem)
            else:
                self._uncounted += 1


def unreadable(file: str, fingerprint: bytes, problems: Iterable[Problem]) -> WebhookFileReading:
    """Returns the reading of a file that can't be read."""
    return WebhookFileReading(file, fingerprint, None, _capped(list(problems), 0, file), is_usable=False)


def _capped(problems: list[Problem], uncounted: int, file: str) -> tuple[Problem, ...]:
    """Returns the first `MAX_PROBLEMS`, and one that counts the others."""
    rest = len(problems[MAX_PROBLEMS:]) + uncounted
    more = [Problem(f"{rest:,} more problems in this file", file=file)] if rest else []
    return (*problems[:MAX_PROBLEMS], *more)


def _is_header_value(path: Loc) -> bool:
    return len(path) == 4 and path[0] == "webhooks" and path[2] == "headers"


def _refused_urls(data: JsonValue, check: CheckWebhook) -> Iterator[tuple[Loc, str]]:
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


def _checked(config: WebhookConfig, check: CheckWebhook) -> list[tuple[str, str]]:
    try:
        return check(config)
    except Exception as error:  # a bug in a check costs this webhook only
        log.exception("webhook check failed", tenant=str(config.tenant))
        return [("", f"could not be checked ({type(error).__name__}, see the log): please report this")]
