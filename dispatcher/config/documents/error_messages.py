"""Converts pydantic's errors to problems that say what to change. Never quotes a value, which may be a secret."""

import difflib
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from enum import Enum
from typing import Literal, NamedTuple, get_args, get_origin

from pydantic import BaseModel, BeforeValidator, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from dispatcher.config.documents.locations import Loc, Located, literals, locate
from dispatcher.config.documents.yaml_reader import Document
from dispatcher.config.units import bounded_duration, format_duration
from dispatcher.errors import Problem, ProblemCode

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
_EMPTY = {"string_too_short": ProblemCode.EMPTY_TEXT, "too_short": ProblemCode.EMPTY_LIST}
_BOUNDS = {
    "greater_than": ("gt", "above"),
    "greater_than_equal": ("ge", "at least"),
    "less_than": ("lt", "below"),
    "less_than_equal": ("le", "at most"),
}

_WITHOUT_CONTROLS = re.compile(r"\^\[\^(.?)\\x00-\\x1f[^]]*\]")
r"""Begins a pattern that excludes control characters, and perhaps one other: `^[^:\x00-\x1f\x7f]+$`."""


class _Fault(NamedTuple):
    """A mistake that pydantic found at one place of the document."""

    path: Loc
    message: str
    wanted: str = ""
    """Requirement that the value fails, if it can be stated without the value."""
    code: ProblemCode | None = None
    subject: str = ""
    """As in `Problem`."""


def problems_from(
    error: ValidationError, document: Document, model: type[BaseModel], at: Loc = (), most: int | None = None
) -> list[Problem]:
    """Returns the errors as problems with file, line and key, in order of lines.

    Args:
        model: the model of the document; its fields are suggested for misspelt keys.
        at: place of the part that was validated, if it was not the whole document. The errors' places start there.
        most: maximum number of errors to return; None: all.
    """
    found: list[_Fault] = []
    choices: dict[Loc, list[_Fault]] = defaultdict(list)
    for details in error.errors(include_url=False)[:most]:
        at_error = locate(model, (*at, *details["loc"]))
        (found if at_error.choice is None else choices[at_error.choice]).append(_fault(details, at_error))
    for at_choice, alternatives in choices.items():
        found += _of_a_choice(at_choice, alternatives)
    lists_with_faults = {fault.path[:-1] for fault in found if fault.path}
    problems = [
        document.problem(fault.path, fault.message, fault.code, fault.subject)
        for fault in dict.fromkeys(found)
        if fault.code is not ProblemCode.EMPTY_LIST or fault.path not in lists_with_faults
    ]  # pydantic doesn't count invalid items
    problems.sort(key=lambda problem: problem.line or 0)
    return problems


def _of_a_choice(choice: Loc, alternatives: list[_Fault]) -> Iterable[_Fault]:
    """Returns the deepest errors of a union: pydantic reports one for each type, and the deepest fits best."""
    deeper = [fault for fault in alternatives if len(fault.path) > len(choice)]
    if deeper:
        return deeper
    if all(fault.wanted for fault in alternatives):
        return [_must_be(choice, ", or ".join(dict.fromkeys(fault.wanted for fault in alternatives)))]
    return [_Fault(choice, "; or ".join(dict.fromkeys(fault.message for fault in alternatives)))]


def _must_be(path: Loc, wanted: str, remark: str = "") -> _Fault:
    return _Fault(path, f"must be {wanted}{remark}", wanted)


def _fault(details: ErrorDetails, at: Located) -> _Fault:
    kind = details["type"]
    context: Mapping[str, object] = details.get("ctx", {})
    match kind:
        case "union_tag_not_found" | "union_tag_invalid":
            return _union_tag(kind, at)
        case "extra_forbidden":
            return _Fault(at.path, _unknown_key(at))
        case "missing":
            return _missing(at.path, _description(at))
        case "literal_error" | "enum":
            return _one_of(at.path, _allowed(at), details["input"])
        case "value_error":
            return _Fault(at.path, str(context.get("error", details["msg"])))
        case "string_type" if isinstance(details["input"], bool | int | float):
            return _must_be(at.path, "text", ": put it in quotes")
        case "string_too_short" | "string_too_long" | "too_short" | "too_long":
            return _length(at.path, kind, context)
        case "string_pattern_mismatch":
            return _Fault(at.path, _pattern_requirement(str(context.get("pattern"))))
        case "finite_number":
            return _must_be(at.path, "a finite number")
    if kind in _BOUNDS:
        name, word = _BOUNDS[kind]
        return _must_be(at.path, f"{word} {_bound(context.get(name), at.field)}")
    wanted = _TYPES.get(kind.partition("_")[0]) if kind.endswith(("_type", "_parsing", "_from_float")) else None
    if wanted is not None:
        return _must_be(at.path, wanted, f", not {_kind(details['input'])}")
    return _Fault(at.path, details["msg"][:1].lower() + details["msg"][1:])


def _pattern_requirement(pattern: str) -> str:
    found = _WITHOUT_CONTROLS.match(pattern)
    if found is None:
        return f"must match {pattern}"
    return f"must have no {found[1]!r} and no control characters" if found[1] else "must have no control characters"


def _bound(value: object, field: FieldInfo | None) -> str:
    """Formats a bound as its setting is written: `5m` for a duration."""
    is_duration = field is not None and any(map(_parses_duration, (*field.metadata, field.annotation)))
    return format_duration(value) if is_duration and isinstance(value, int | float) and value else _number(value)


def _parses_duration(part: object) -> bool:
    if isinstance(part, BeforeValidator):
        return part.func is bounded_duration
    return any(map(_parses_duration, get_args(part)))


def _unknown_key(at: Located) -> str:
    known = [name for model in at.models for name in model.model_fields]
    near = nearest(str(at.path[-1]), known)
    if near:
        return f"unknown key; did you mean {near!r}?"
    return f"unknown key; known here: {', '.join(dict.fromkeys(known))}"


def _missing(path: Loc, subject: str) -> _Fault:
    message = f"missing; {subject}" if subject else "missing"
    return _Fault(path, message, code=ProblemCode.NOT_GIVEN, subject=subject)


def _description(at: Located) -> str:
    """Returns what a missing value has to be; empty if the model doesn't say."""
    name = str(at.path[-1])
    for model in at.models:
        allowed = literals(model, name)
        if len(allowed) == 1:
            return f"write {name}: {allowed[0]}"
    about = (at.field.description or "").split("\n\n")[0] if at.field is not None else ""
    about = " ".join(about.split()).rstrip(".")
    return about[:1].lower() + about[1:] if about[1:2].islower() else about


def _union_tag(kind: str, at: Located) -> _Fault:
    name = str(at.field.discriminator) if at.field is not None else "type"
    models = [t for t in at.types if isinstance(t, type) and issubclass(t, BaseModel)]
    allowed = [value for model in models for value in literals(model, name)]
    fault = _must_be((*at.path, name), "one of " + ", ".join(map(str, allowed)))
    return _missing(fault.path, fault.message) if kind == "union_tag_not_found" else fault


def _allowed(at: Located) -> list[str | int]:
    allowed: list[str | int] = []
    for inner in at.types:
        if get_origin(inner) is Literal:
            allowed += get_args(inner)
        elif isinstance(inner, type) and issubclass(inner, Enum):
            allowed += [member.value for member in inner]
    return allowed


def _one_of(path: Loc, allowed: list[str | int], value: object) -> _Fault:
    wanted = f"{'one of ' if len(allowed) > 1 else ''}{', '.join(map(str, allowed))}"
    if isinstance(value, str) and value in [str(one) for one in allowed]:
        return _must_be(path, wanted, ": a number, without quotes")
    near = nearest(value, [str(one) for one in allowed]) if isinstance(value, str) and len(allowed) > 1 else None
    return _must_be(path, wanted, f"; did you mean {near!r}?" if near else "")


def _length(path: Loc, kind: str, context: Mapping[str, object]) -> _Fault:
    word = "at least" if kind.endswith("short") else "at most"
    count = context.get("min_length" if kind.endswith("short") else "max_length")
    thing = "character" if kind.startswith("string") else "entry"
    plural = {"character": "characters", "entry": "entries"}[thing]
    code = _EMPTY.get(kind) if count == 1 else None
    return _Fault(path, f"must have {word} {count} {thing if count == 1 else plural}", code=code)


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
