"""Converts pydantic's errors to problems that say what to change. Never quotes a value, which may be a secret."""

import difflib
from collections import defaultdict
from collections.abc import Iterable, Mapping
from enum import Enum
from typing import Literal, get_args, get_origin

from pydantic import BaseModel, BeforeValidator, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from dispatcher.config.documents.locations import Loc, Located, literals, locate
from dispatcher.config.documents.yaml_reader import Document
from dispatcher.config.units import format_duration, parse_duration
from dispatcher.errors import Problem

_TYPES = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "string": "text",
    "model": "a mapping (key: value)",
    "dict": "a mapping (key: value)",
    "list": "a list",
    "tuple": "a list",
    "path": "a path, as text",
}
_TOO_FEW = "must have at least 1 entry"
_BOUNDS = {
    "greater_than": ("gt", "above"),
    "greater_than_equal": ("ge", "at least"),
    "less_than": ("lt", "below"),
    "less_than_equal": ("le", "at most"),
}


def problems_from(
    error: ValidationError, document: Document, model: type[BaseModel], at: Loc = (), most: int | None = None
) -> list[Problem]:
    """Returns the errors as problems with file, line and key, in order of lines.

    Args:
        model: the model of the document; its fields are suggested for misspelt keys.
        at: place of the part that was validated, if it was not the whole document. The errors' places start there.
        most: maximum number of errors to return; None: all.
    """
    found: list[tuple[Loc, str]] = []
    choices: dict[Loc, list[tuple[Loc, str]]] = defaultdict(list)
    for details in error.errors(include_url=False)[:most]:
        at_error = locate(model, (*at, *details["loc"]))
        path, message = _worded(details, at_error)
        (found if at_error.choice is None else choices[at_error.choice]).append((path, message))
    for at_choice, alternatives in choices.items():
        found += _of_a_choice(at_choice, alternatives)
    paths = {path for path, _ in found}
    problems = [
        document.problem(path, message)
        for path, message in dict.fromkeys(found)
        if not (
            message == _TOO_FEW and any(inner[:-1] == path for inner in paths)
        )  # pydantic doesn't count invalid items
    ]
    problems.sort(key=lambda problem: problem.line or 0)
    return problems


def _of_a_choice(choice: Loc, alternatives: list[tuple[Loc, str]]) -> Iterable[tuple[Loc, str]]:
    """Returns the deepest errors of a union: pydantic reports one for each type, and the deepest fits best."""
    deeper = [(path, message) for path, message in alternatives if len(path) > len(choice)]
    if deeper:
        return deeper
    wanted = dict.fromkeys(message.removeprefix("must be ").partition(",")[0] for _, message in alternatives)
    return [(choice, "must be " + ", or ".join(wanted))]


def _worded(details: ErrorDetails, at: Located) -> tuple[Loc, str]:
    kind = details["type"]
    context: Mapping[str, object] = details.get("ctx", {})
    if kind in ("union_tag_not_found", "union_tag_invalid"):
        return _union_tag(kind, at)
    match kind:
        case "extra_forbidden":
            return at.path, _unknown_key(at)
        case "missing":
            return at.path, _missing(at)
        case "literal_error" | "enum":
            return at.path, _one_of(_allowed(at), details["input"])
        case "value_error":
            return at.path, str(context.get("error", details["msg"]))
        case "string_type" if isinstance(details["input"], bool | int | float):
            return at.path, "must be text: put it in quotes"
        case "string_too_short" | "string_too_long" | "too_short" | "too_long":
            return at.path, _length(kind, context)
        case "string_pattern_mismatch":
            return at.path, f"must match {context.get('pattern')}"
        case "finite_number":
            return at.path, "must be a finite number"
    if kind in _BOUNDS:
        name, word = _BOUNDS[kind]
        return at.path, f"must be {word} {_bound(context.get(name), at.field)}"
    wanted = _TYPES.get(kind.partition("_")[0]) if kind.endswith(("_type", "_parsing", "_from_float")) else None
    if wanted is not None:
        return at.path, f"must be {wanted}, not {_kind(details['input'])}"
    return at.path, details["msg"][:1].lower() + details["msg"][1:]


def _bound(value: object, field: FieldInfo | None) -> str:
    """Formats a bound as its setting is written: `5m` for a duration."""
    is_duration = field is not None and any(map(_parses_duration, (*field.metadata, field.annotation)))
    return format_duration(value) if is_duration and isinstance(value, int | float) and value else _number(value)


def _parses_duration(part: object) -> bool:
    if isinstance(part, BeforeValidator):
        return part.func is parse_duration
    return any(map(_parses_duration, get_args(part)))


def _unknown_key(at: Located) -> str:
    known = [name for model in at.models for name in model.model_fields]
    near = nearest(str(at.path[-1]), known)
    if near:
        return f"unknown key; did you mean {near!r}?"
    return f"unknown key; known here: {', '.join(dict.fromkeys(known))}"


def _missing(at: Located) -> str:
    name = str(at.path[-1])
    for model in at.models:
        allowed = literals(model, name)
        if len(allowed) == 1:
            return f"missing; write {name}: {allowed[0]}"
    about = (at.field.description or "").split("\n\n")[0] if at.field is not None else ""
    about = " ".join(about.split()).rstrip(".")
    return f"missing; {about[:1].lower() + about[1:] if about[1:2].islower() else about}" if about else "missing"


def _union_tag(kind: str, at: Located) -> tuple[Loc, str]:
    name = str(at.field.discriminator) if at.field is not None else "type"
    models = [t for t in at.types if isinstance(t, type) and issubclass(t, BaseModel)]
    allowed = [value for model in models for value in literals(model, name)]
    message = "must be one of " + ", ".join(map(str, allowed))
    return (*at.path, name), f"missing; {message}" if kind == "union_tag_not_found" else message


def _allowed(at: Located) -> list[str | int]:
    allowed: list[str | int] = []
    for inner in at.types:
        if get_origin(inner) is Literal:
            allowed += get_args(inner)
        elif isinstance(inner, type) and issubclass(inner, Enum):
            allowed += [member.value for member in inner]
    return allowed


def _one_of(allowed: list[str | int], value: object) -> str:
    message = f"must be {'one of ' if len(allowed) > 1 else ''}{', '.join(map(str, allowed))}"
    if isinstance(value, str) and value in [str(one) for one in allowed]:
        return f"{message}: a number, without quotes"
    near = nearest(value, [str(one) for one in allowed]) if isinstance(value, str) and len(allowed) > 1 else None
    return f"{message}; did you mean {near!r}?" if near else message


def _length(kind: str, context: Mapping[str, object]) -> str:
    word = "at least" if kind.endswith("short") else "at most"
    count = context.get("min_length" if kind.endswith("short") else "max_length")
    thing = "character" if kind.startswith("string") else "entry"
    plural = {"character": "characters", "entry": "entries"}[thing]
    return f"must have {word} {count} {thing if count == 1 else plural}"


def nearest(word: str, known: Iterable[str]) -> str | None:
    """Returns the known name closest to a misspelt word, or None if no name is close."""
    spelt = {name.lower().replace("-", "_"): name for name in known}
    near = difflib.get_close_matches(word.lower().replace("-", "_")[:100], spelt, n=1, cutoff=0.6)
    return spelt[near[0]] if near else None


def _number(bound: object) -> str:
    return f"{bound:,g}" if isinstance(bound, float) and abs(bound) < 1e6 else str(bound)


def _kind(value: object) -> str:
    if value is None:
        return "empty"
    if isinstance(value, bool):
        return "true or false"
    if isinstance(value, int | float):
        return "a number" if value == int(value) else "a number with a fraction"
    if isinstance(value, str):
        return "text"
    return "a list" if isinstance(value, list) else "a mapping"
