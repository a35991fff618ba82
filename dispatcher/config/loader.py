"""Reads `dispatcher.yaml` and the environment into `Settings`. All mistakes are reported together before the start.

An environment variable overrides any setting: `DISPATCHER_KAFKA__BOOTSTRAP_SERVERS=kafka:9092` (groups and keys joined
by two underscores, in either case). If the setting is text, the variable's text is used unchanged; otherwise it is read
as YAML (`10s`, `true`, `[30s, 2m]`, `{file: x}`). `null` unsets an optional setting. A variable can set a whole group,
and variables of its settings override that one. Otherwise, two variables of which one would be ignored are refused.
Relative paths, also those in variables, start from the directory of the file.
"""

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Final, Literal, get_origin

from pydantic import BaseModel, JsonValue, ValidationError

from dispatcher.config.documents import (
    Document,
    Loc,
    locate,
    nearest,
    parse_value,
    path_of,
    problems_from,
    read_document,
)
from dispatcher.config.secret_scope import DEFAULT_SECRETS_DIRECTORY, SecretScope, resolved
from dispatcher.config.secrets import Secret, SecretSource
from dispatcher.config.settings import Settings
from dispatcher.errors import ConfigError, Problem

PREFIX = "DISPATCHER_"
NOT_SETTINGS = frozenset({"DISPATCHER_CONFIG"})
"""Variables with the prefix that belong to the command line: `DISPATCHER_CONFIG` replaces `-c`."""

# Variables that Kubernetes sets in a pod for every Service named dispatcher or dispatcher-…
_SERVICE_LINK = re.compile(
    r"DISPATCHER(_[A-Z0-9]+)*_(SERVICE_HOST|SERVICE_PORT(_[A-Z0-9]+)*|PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)"
)
_SERVICE_LINK_URL = re.compile(r"DISPATCHER(_[A-Z0-9]+)*_PORT")


def load_settings(path: Path, environ: Mapping[str, str]) -> Settings:
    """Returns the settings in the file at `path`, overridden by `environ`.

    The files that the settings name exist, and `webhooks.path` is a directory. The users of the files check their
    content.

    Raises:
        ConfigError: the settings can't be used. It names every problem with its file and line, or its variable.
    """
    document = read_document(path)
    if document.data is None:
        raise ConfigError([Problem("empty: write at least apiVersion, kafka and webhooks", file=document.file)])
    if not isinstance(document.data, dict):
        raise ConfigError([document.problem((), "must be a mapping (key: value) of the settings' groups")])
    overrides = _Overrides(environ, exempt=_named_in_references(document.data))
    data = _merged(document.data, overrides.values)
    base = path.parent.absolute()
    problems = [*overrides.problems, *_absolute_paths(data, base, document)]
    context = SecretSource(base, environ=environ).as_context()
    settings = None
    try:
        settings = Settings.model_validate(data, context=context)
    except ValidationError as error:
        problems = [*problems_from(error, document, Settings), *problems]
    if settings is not None:
        problems += _own_secrets_in_reach(settings, document)
    if problems or settings is None:
        raise ConfigError(overrides.placed(problem, document) for problem in problems)
    return settings


def with_place(problem: Problem, path: Path, environ: Mapping[str, str]) -> Problem:
    """Returns a problem of a setting, found after the settings were loaded, with the place of the setting's value.

    Problems that have a place, or concern no setting, are returned as they are.
    """
    loc = path_of(problem.key)
    if problem.file or not loc or loc[0] not in Settings.model_fields:
        return problem
    try:
        document = read_document(path)
    except ConfigError:  # it was changed meanwhile
        return problem
    overrides = _Overrides(environ, exempt=_named_in_references(document.data))
    return overrides.placed(replace(problem, file=document.file, line=document.line(loc)), document)


class _Overrides:
    """The settings in the environment, by place, and the mistakes in them."""

    def __init__(self, environ: Mapping[str, str], exempt: frozenset[str]) -> None:
        names = [
            name
            for name, value in environ.items()
            if name.upper().startswith(PREFIX) and not _is_not_ours(name.upper(), value) and name not in exempt
        ]
        self._names: dict[Loc, str] = {}
        self.problems: list[Problem] = []
        for name in names:
            loc = _loc_of(name.lower())
            first = self._names.setdefault(loc, name)
            if first is not name:
                self.problems.append(_of_variable(name, f"sets the same as {first}, {_CASE}"))
            elif loc[0] not in _GROUPS:
                self.problems.append(_of_variable(name, _unknown_group(loc)))
        for loc, name in self._names.items():
            around = [loc[:depth] for depth in range(1, len(loc)) if loc[:depth] in self._names]
            values = [self._names[at] for at in around if not _is_group(at, environ[self._names[at]])]
            if values:
                message = f"lies below {values[0]}, which sets a whole value: unset one of the two"
                self.problems.append(_of_variable(name, message))
        self.values: dict[str, JsonValue] = {}
        known = [loc for loc in self._names if loc[0] in _GROUPS]
        for loc in sorted(known, key=len):  # a group comes before its settings, which it would replace otherwise
            self.values = _merged(self.values, _at(loc, _value_of(environ[self._names[loc]], loc)))

    def placed(self, problem: Problem, document: Document) -> Problem:
        """Returns the problem, with the variable instead of file and line if its value came from a variable."""
        at = path_of(problem.key)
        around = [loc for loc in self._names if at[: len(loc)] == loc]
        inside = [loc for loc in self._names if loc[: len(at)] == at and at and not document.holds(at)]
        for loc in sorted(around, key=len, reverse=True) + sorted(inside, key=str):
            return replace(problem, file=f"environment variable {self._names[loc]}", line=None)
        return problem


_GROUPS = {name.lower(): name for name in Settings.model_fields}
_CASE: Final = "because the case of letters doesn't count: unset one of the two"


def _loc_of(lower_name: str) -> Loc:
    group, *rest = lower_name.removeprefix(PREFIX.lower()).split("__")
    return (_GROUPS.get(group, group), *rest)


def _is_not_ours(name: str, value: str) -> bool:
    if name in NOT_SETTINGS:
        return True
    if "__" in name:
        return False
    return bool(_SERVICE_LINK.fullmatch(name) or (_SERVICE_LINK_URL.fullmatch(name) and "://" in value))


def _of_variable(name: str, message: str) -> Problem:
    return Problem(message, file=f"environment variable {name}")


def _is_group(loc: Loc, value: str) -> bool:
    """Returns True if a variable sets a mapping of settings, to which deeper variables add."""
    types = locate(Settings, loc).types
    is_open = any(get_origin(t) is dict or (isinstance(t, type) and issubclass(t, BaseModel)) for t in types)
    return is_open and isinstance(_parsed(value), dict)


def _unknown_group(loc: Loc) -> str:
    near = nearest("__".join(map(str, loc)), set(_variables(Settings)) - {"apiVersion"})
    hint = f"did you mean {PREFIX}{near.upper()}?" if near else "rename it, or unset it"
    return f"names no setting, and {PREFIX}… is for settings; {hint}"


def _variables(model: type[BaseModel]) -> list[str]:
    names = []
    for name in model.model_fields:
        groups = [t for t in locate(model, (name,)).types if isinstance(t, type) and issubclass(t, BaseModel)]
        names += [f"{name}__{inner}" for group in groups for inner in _variables(group)] or [name]
    return names


def _value_of(text: str, loc: Loc) -> JsonValue:
    """Returns the value of a variable: its text if its setting is text, otherwise what it is in YAML."""
    types = locate(Settings, loc).types
    if text == "null" and type(None) in types:
        return None
    return text if any(map(_is_text, types)) and not _is_group(loc, text) else _parsed(text)


def _at(loc: Loc, value: JsonValue) -> dict[str, JsonValue]:
    """Returns settings that have nothing but this value, at this place."""
    return {str(loc[0]): _at(loc[1:], value) if len(loc) > 1 else value}


def _is_text(annotation: object) -> bool:
    return annotation in (str, Path) or get_origin(annotation) in (Literal, Annotated)


def _parsed(text: str) -> JsonValue:
    try:
        return parse_value(text)
    except ValueError:
        return text  # the field's own error says what it must be


def _merged(below: dict[str, JsonValue], above: Mapping[str, JsonValue]) -> dict[str, JsonValue]:
    merged = dict(below)
    for key, value in above.items():
        old = merged.get(key)
        merged[key] = _merged(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return merged


def _absolute_paths(data: dict[str, JsonValue], base: Path, document: Document) -> list[Problem]:
    """Makes every path in `data` absolute. Returns the problems of paths that can't be used."""
    problems: list[Problem] = []
    for parent, loc in _paths(data, Settings, ()):
        last = loc[-1]
        value = parent[last]  # type: ignore[index]  # a list's index, or a mapping's key
        if value == "":
            problems.append(document.problem(loc, "must be a path, not empty: write one, or leave it out"))
            continue
        path = base / str(value)
        parent[last] = str(path)  # type: ignore[index]
        if loc[:3] == ("webhooks", "secrets", "files"):
            continue  # a directory may be mounted later, or never
        problem = _path_problem(path, wants_directory=loc == ("webhooks", "path"))
        if problem is not None:
            problems.append(document.problem(loc, problem))
    return problems


def _paths(
    data: dict[str, JsonValue], model: type[BaseModel], before: Loc
) -> Iterator[tuple[dict[str, JsonValue] | list[JsonValue], Loc]]:
    for name in model.model_fields:
        value = data.get(name)
        loc = (*before, name)
        types = locate(Settings, loc).types
        if isinstance(value, str) and Path in types:
            yield data, loc
        elif isinstance(value, list) and Path in locate(Settings, (*loc, 0)).types:
            items = data[name] = list(value)
            for index, item in enumerate(items):
                if isinstance(item, str):
                    yield items, (*loc, index)
        elif isinstance(value, dict):
            inner = data[name] = dict(value)  # the document keeps its own values
            for group in types:
                if isinstance(group, type) and issubclass(group, BaseModel):
                    yield from _paths(inner, group, loc)


def _path_problem(path: Path, *, wants_directory: bool) -> str | None:
    try:
        if wants_directory:
            if path.exists() and not path.is_dir():
                return f"is a file ({path}): name the directory"
            if not path.is_dir():
                return f"no such directory ({path}): create it, or correct the path"
            readable = os.access(path, os.R_OK | os.X_OK)
        else:
            if path.is_dir():
                return f"is a directory ({path}): name the file in it"
            if not path.exists():
                return f"no such file ({path}): create it, or correct the path"
            if not path.is_file():
                return f"is not a regular file ({path}): name a regular file, because reading others might never end"
            readable = os.access(path, os.R_OK)
    except (OSError, ValueError):  # too long, a NUL in it
        return "not a usable path"
    return None if readable else f"may not be read ({path}): correct its permissions"


def webhook_secret_scope(settings: Settings) -> SecretScope:
    """Returns the files and variables that secret references in webhook files may name."""
    listed = settings.webhooks.secrets
    own = (settings.webhooks.path,) if settings.webhooks.path is not None else ()
    roots = (*own, DEFAULT_SECRETS_DIRECTORY) if listed.files is None else listed.files
    used = list(_used(settings, ()))
    return SecretScope(
        roots=roots,
        prefixes=listed.env,
        own_files=frozenset(resolved(file) for _, file, _ in used if file is not None),
        own_variables=frozenset(name for _, _, name in used if name is not None),
    )


def _own_secrets_in_reach(settings: Settings, document: Document) -> Iterator[Problem]:
    """Yields a problem for each secret of the settings that lies in a directory of webhook secrets.

    Tenants may be able to name or replace the files there.
    """
    for root in webhook_secret_scope(settings).roots:
        for loc, file, _ in _used(settings, ()):
            is_public = loc[-1] in ("ca", "ca_bundle", "certificate")
            if file is not None and not is_public and resolved(file).is_relative_to(resolved(root)):
                message = f"{file} lies in {root}, a directory of webhook secrets: move it to a directory of its own"
                yield document.problem(loc, message)


def _used(value: object, loc: Loc) -> Iterator[tuple[Loc, Path | None, str | None]]:
    """Yields place, file and environment variable of each secret and file that the settings name."""
    if isinstance(value, Secret):
        yield loc, value.file, (value.reference or {}).get("env")
    elif isinstance(value, Path) and loc[:1] != ("webhooks",):
        yield loc, value, None
    elif isinstance(value, BaseModel):
        for name in type(value).model_fields:
            yield from _used(getattr(value, name), (*loc, name))
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from _used(item, (*loc, index))
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _used(item, (*loc, str(key)))


def _named_in_references(value: JsonValue) -> frozenset[str]:
    """Returns the variables that the file's secret references name. They don't override settings."""
    if isinstance(value, list):
        return frozenset(name for inner in value for name in _named_in_references(inner))
    if not isinstance(value, dict):
        return frozenset()
    named = value.get("env")
    own = {named} if isinstance(named, str) and len(value) == 1 else set()
    return frozenset(own).union(*map(_named_in_references, value.values()))
