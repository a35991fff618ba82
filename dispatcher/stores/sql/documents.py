"""Converts a webhook's configuration to JSON without its secrets, and back. Pure.

A stored or shown document has `{"fingerprint": "…"}` in the place of a secret. In a draft, which an editor sends, the
place has one of
- `{"value": "…"}`: a new secret, as text;
- `{"fingerprint": "…"}`: the stored secret with that fingerprint in the same field. In a list it may have another
  index, so a rotation is `[{"value": …}, {"fingerprint": …}]`;
- `{"keep": true}`: the stored secret at exactly this place.
A secret that is left out is removed. A client secret and the secret of a header parameter are sent in clear text, so
stored ones are kept only for the same scheme, host and port: otherwise an editor of the webhook could send them to a
host of their own. References (`{"file": …}`) are refused, because they would read this machine's files.
"""

from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Final, get_args, get_origin

import orjson
from pydantic import BaseModel, JsonValue, ValidationError

from dispatcher.config.documents import Loc, key_of, parse_document, problems_from
from dispatcher.config.endpoint_urls import origin_of
from dispatcher.config.secret_scope import MAX_SECRET_BYTES
from dispatcher.config.secrets import Secret
from dispatcher.config.webhooks import WebhookConfig
from dispatcher.errors import MAX_PROBLEMS, ConfigError, Problem, first_problems

MAX_DRAFT_BYTES: Final = 1024 * 1024
"""Maximum size of a draft as JSON, without secrets."""

_NOT_STORED: Final = "no such secret is stored here: give it again"
_NOWHERE = parse_document(b"{}", "")  # a document without lines, for problems that have none
_HEADERS: Final = "headers"
"""The field whose values are texts or secrets."""
_CLIENT_SECRET: Final[Loc] = ("auth", "fetch", "client_secret")
_SIGNING: Final[Loc] = ("signing",)
_TOKEN_URL: Final[Loc] = ("auth", "fetch", "token_url")
_ELSEWHERE: Final = "it would be sent to another host than the one it was given for: give the secret again"
_Put = Callable[[Loc, JsonValue], object]


@dataclass(frozen=True, slots=True)
class StoredSecret:
    """A secret in the database."""

    path: str
    fingerprint: str
    secret: Secret | None
    """None if no configured key decrypts it."""
    added_at: datetime | None = None
    """None if a version before 0005 stored it."""


def extract_secrets(config: WebhookConfig) -> tuple[dict[str, JsonValue], dict[str, Secret]]:
    """Returns the configuration as JSON without secrets, and the secrets by path (`signing.secrets.0`).

    Raises:
        ConfigError: a value can't be stored. The error names its key.
    """
    document: dict[str, JsonValue] = config.model_dump(mode="json")
    _raise_what_can_not_be_stored(document)
    secrets: dict[str, Secret] = {}
    for path, secret in secrets_of(config):
        secrets[path_text(path)] = secret
        _put_at(document, path, {"fingerprint": secret.fingerprint()})
    return document, secrets


def restore_secrets(document: JsonValue, secrets: Mapping[str, Secret]) -> WebhookConfig:
    """Returns the complete configuration, to deliver with.

    Raises:
        ConfigError: the document isn't a valid configuration in this version, or one of its secrets is missing. The
            error names every problem.
    """
    missing: list[Problem] = []

    def secret_at(path: Loc, _: JsonValue) -> Secret:
        secret = secrets.get(path_text(path))
        if secret is None:
            missing.append(Problem(_NOT_STORED, key_of(path)))
        return secret or Secret(b"")

    config = _validated(_walk(document, (), secret_at))
    if missing:
        raise ConfigError(missing)
    return config


def without_secrets(document: JsonValue) -> WebhookConfig:
    """Returns the configuration with empty secrets: to show, never to deliver with.

    Raises:
        ConfigError: the document isn't a valid configuration in this version. The error names every problem.
    """
    return _validated(_walk(document, (), lambda _, __: Secret(b"")))


def resolve_draft(draft: JsonValue, stored: Mapping[str, StoredSecret], document: JsonValue = None) -> WebhookConfig:
    """Returns the configuration that a draft describes, with its secrets.

    Args:
        stored: secrets of the webhook that is being edited, by path.
        document: the stored document of the webhook that is being edited.

    Raises:
        ConfigError: the draft can't be used. The error names every problem by its key and quotes no value.
    """
    problems: list[Problem] = []

    def secret_at(path: Loc, value: JsonValue) -> Secret:
        try:
            return _drafted(path, value, stored)
        except ValueError as error:
            problems.append(Problem(str(error), key_of(path)))
            return Secret(b"")

    _raise_what_can_not_be_stored(draft)
    problems += [Problem(_ELSEWHERE, key_of(place)) for place in _kept_elsewhere(draft, document)]
    full = _walk(draft, (), secret_at)
    try:
        config = _validated(full)
    except ConfigError as error:
        raise ConfigError([*problems, *error.problems]) from None
    if problems:
        raise ConfigError(problems)
    if len(orjson.dumps(config.model_dump(mode="json"))) > MAX_DRAFT_BYTES:
        raise ConfigError([Problem(f"the whole configuration has more than {MAX_DRAFT_BYTES // 1024} KiB")])
    return config


def replace_secrets(document: Mapping[str, JsonValue], placeholder: JsonValue) -> dict[str, JsonValue]:
    """Returns a copy of a draft or stored document with the placeholder for each secret."""
    replaced: Any = _walk(dict(document), (), lambda *_: deepcopy(placeholder))
    return dict(replaced)


def erased_secrets(draft: JsonValue, stored: Mapping[str, StoredSecret], document: JsonValue) -> list[str]:
    """Returns the keys of secrets that a draft keeps, but that the store has replaced or erased meanwhile.

    These are signing keys and signing secrets: `erasing` changes them without a new version.
    """
    erased: list[str] = []
    parts = [part for part in (*SIGNED_TOKENS, _SIGNING) if _at(document, part) is not None]

    def look(path: Loc, value: JsonValue) -> None:
        is_dated = any(path[: len(part)] == part for part in parts)
        if is_dated and _is_kept(value) and _kept(path, value, stored) is None:
            erased.append(key_of(path))

    _walk(draft, (), look)
    return erased


def secrets_of(model: BaseModel, before: Loc = ()) -> Iterator[tuple[Loc, Secret]]:
    """Yields place and value of every secret in a configuration."""
    for name in type(model).model_fields:
        value = getattr(model, name)
        for path, item in _items((*before, name), value):
            if isinstance(item, Secret):
                yield path, item
            elif isinstance(item, BaseModel):
                yield from secrets_of(item, path)


def path_text(path: Loc) -> str:
    """Returns a secret's place as the database has it: `signing.secrets.0`."""
    return ".".join(map(str, path))


def is_secret_place(path: tuple[str, ...]) -> bool:
    """Returns True if a stored document can have a secret in this place: `("signing", "secrets", "0")`."""
    place = tuple("*" if step.isdecimal() else step for step in path)
    return place in _SECRET_PLACES or (place[:1] == (_HEADERS,) and len(place) == 2)


def fingerprint_in(value: JsonValue) -> str | None:
    """Returns the fingerprint in a secret's place of a stored document; None if there is something else."""
    if isinstance(value, dict) and value.keys() == {"fingerprint"}:
        fingerprint = value["fingerprint"]
        return fingerprint if isinstance(fingerprint, str) else None
    return None


def stored_signing(document: Mapping[str, JsonValue]) -> tuple[list[str], dict[str, datetime]]:
    """Returns the fingerprints of a stored document's signing secrets, the newest first, and the ends of some."""
    signing = document.get("signing")
    given = signing if isinstance(signing, dict) else {}
    listed, ends = given.get("secrets"), given.get("ends")
    fingerprints = [fingerprint_in(one) for one in listed] if isinstance(listed, list) else []
    dated = ends.items() if isinstance(ends, dict) else ()
    return (
        [one for one in fingerprints if one is not None],
        {fingerprint: datetime.fromisoformat(str(end)) for fingerprint, end in dated},
    )


SIGNED_TOKENS: Final[tuple[Loc, ...]] = (("auth", "sign"), ("auth", "fetch", "assertion"))
"""Places of the token that we sign."""


def stored_next_key(document: Mapping[str, JsonValue]) -> tuple[Loc, datetime] | None:
    """Returns which token of a stored document has a next key, and when that starts; None if none has one."""
    for place in SIGNED_TOKENS:
        starts = _at(dict(document), (*place, "next", "starts"))
        if isinstance(starts, str):
            return place, datetime.fromisoformat(starts)
    return None


def _places(annotation: object, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Returns the places of secrets in a type; `*` means any index."""
    if annotation is Secret:
        yield path
    elif isinstance(annotation, type) and issubclass(annotation, BaseModel):
        for name, field in annotation.model_fields.items():
            if name != _HEADERS:
                yield from _places(field.annotation, (*path, name))
    else:
        inside = (*path, "*") if get_origin(annotation) is list else path
        for part in get_args(annotation):
            yield from _places(part, inside)


_SECRET_PLACES: Final = frozenset(_places(WebhookConfig))
_ABOVE_SECRETS: Final = frozenset(place[:end] for place in _SECRET_PLACES for end in range(len(place)))


def _items(path: Loc, value: object) -> Iterator[tuple[Loc, object]]:
    if isinstance(value, dict):
        yield from (((*path, key), item) for key, item in value.items())
    elif isinstance(value, list):
        yield from (((*path, index), item) for index, item in enumerate(value))
    else:
        yield path, value


def _walk(value: JsonValue, path: Loc, put: _Put) -> object:
    """Returns a copy of `value` in which `put` has replaced the values in the places of secrets."""
    place = tuple("*" if isinstance(step, int) else step for step in path)
    if place in _SECRET_PLACES and value is not None:
        return put(path, value)
    if place == (_HEADERS,) and isinstance(value, dict):
        return {name: put((*path, name), one) if isinstance(one, dict) else one for name, one in value.items()}
    if place in _ABOVE_SECRETS:
        if isinstance(value, dict):
            return {key: _walk(inner, (*path, key), put) for key, inner in value.items()}
        if isinstance(value, list):
            return [_walk(inner, (*path, index), put) for index, inner in enumerate(value)]
    return value


def _validated(data: object) -> WebhookConfig:
    try:
        return WebhookConfig.model_validate(data)
    except ValidationError as error:
        found = first_problems(problems_from(error, _NOWHERE, WebhookConfig, most=MAX_PROBLEMS), error.error_count())
    raise ConfigError(replace(problem, line=None) for problem in found)


def _drafted(path: Loc, value: JsonValue, stored: Mapping[str, StoredSecret]) -> Secret:
    match value:
        case {"value": str(text), **others} if not others:
            return _given(text)
        case {"keep": True, **others} | {"fingerprint": str(), **others} if not others:
            kept = _kept(path, value, stored)
        case _:
            raise ValueError('write {"value": "…"} for a new secret, or {"keep": true} for the one that is stored')
    if kept is None:
        raise ValueError(_NOT_STORED)
    if kept.secret is None:
        raise ValueError("what is stored can't be decrypted with the configured keys: give it again")
    return kept.secret


def _kept(path: Loc, value: JsonValue, stored: Mapping[str, StoredSecret]) -> StoredSecret | None:
    """Returns the stored secret that a draft keeps at this place; None if it is not stored."""
    if not isinstance(value, dict) or "fingerprint" not in value:
        return stored.get(path_text(path))
    alike = [one for one in stored.values() if one.fingerprint == value["fingerprint"] and _same_field(one.path, path)]
    return next((one for one in alike if one.secret is not None), alike[0] if alike else None)


def _is_kept(value: JsonValue) -> bool:
    """Returns True if a draft has this value in the place of a secret in order to keep it."""
    return isinstance(value, dict) and bool(value.keys() & {"keep", "fingerprint"})


def _kept_elsewhere(draft: JsonValue, document: JsonValue) -> Iterator[Loc]:
    """Yields the places of stored secrets that a draft keeps, but would send to another host."""
    headers = _at(draft, (_HEADERS,))
    names = headers if isinstance(headers, dict) else ()
    for url, places in ((_TOKEN_URL, [_CLIENT_SECRET]), (("url",), [(_HEADERS, name) for name in names])):
        if document is not None and is_elsewhere(_at(draft, url), _at(document, url)):
            yield from (place for place in places if _is_kept(_at(draft, place)))


def is_elsewhere(url: JsonValue, stored: JsonValue) -> bool:
    """Returns True if a valid URL has another scheme, host or port than the stored one."""
    origin = _origin_in(url)
    return origin is not None and origin != _origin_in(stored)


def _origin_in(url: JsonValue) -> str | None:
    try:
        return origin_of(str(url))
    except ValueError:
        return None


def _at(document: JsonValue, path: Loc) -> JsonValue:
    for step in path:
        document = document.get(step) if isinstance(document, dict) and isinstance(step, str) else None
    return document


def _same_field(stored: str, path: Loc) -> bool:
    """Returns True if a stored secret's place is `path`, or in the same list."""
    if isinstance(path[-1], int):
        return stored.rpartition(".")[0] == path_text(path[:-1])
    return stored == path_text(path)


def _given(text: str) -> Secret:
    try:
        value = text.encode().removesuffix(b"\n").removesuffix(b"\r")
    except UnicodeEncodeError:
        raise ValueError("not text that can be written as UTF-8") from None
    if not value:
        raise ValueError("empty: write the secret, or leave it out")
    if len(value) > MAX_SECRET_BYTES:
        raise ValueError("over 64 KiB: is it the right file?")
    return Secret(value)


def _put_at(document: dict[str, JsonValue], path: Loc, value: JsonValue) -> None:
    at: JsonValue = document
    for step in path[:-1]:
        at = at[step]  # type: ignore[index]  # the model's own dump has this shape
    at[path[-1]] = value  # type: ignore[index]


def _raise_what_can_not_be_stored(document: JsonValue) -> None:
    parts = document if isinstance(document, dict) else {"": document}
    problems = [Problem(why, key) for key, value in parts.items() if (why := _storing_problem([key, value]))]
    if problems:
        raise ConfigError(problems)


def _storing_problem(value: JsonValue) -> str | None:
    """Returns why the databases can't store this value, or None if they can."""
    try:
        text = orjson.dumps(value)
    except (TypeError, RecursionError):  # a lone surrogate, a number over 64 bits, nested too deep
        return "can't be stored: text must be Unicode, numbers at most 64 bits"
    # PostgreSQL's texts can't contain U+0000. In JSON it is \u0000, unless the backslash is an escaped one. No regular
    # expression: one search of a text of 2 MB would stop every thread for a tenth of a second.
    return "must not contain the character U+0000" if b"\\u0000" in text.replace(b"\\\\", b"") else None
