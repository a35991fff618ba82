"""Finds the place that a pydantic error's `loc` means, in the user's document and in the model.

pydantic puts the tags and labels of unions into a `loc`, though the document doesn't contain them. Following the `loc`
through the model removes them, and finds the fields that a misspelt key may have meant.
"""

import re
import types
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Final, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

Loc = tuple[str | int, ...]
"""Keys and list indices from a document's root: `("webhooks", 2, "url")`."""

MAX_STEP: Final = 80
"""Maximum number of characters of a key in a message."""

_PLAIN_KEY = re.compile(r"[^\s.\[\]'\"]+")
_STEP = re.compile(r"\[(\d+)\]|\['([^']*)'\]|([^.\[\]]+)")


@dataclass(frozen=True, slots=True)
class Located:
    """A place in a document, with its fields and types in the model."""

    path: Loc
    """The place in the user's document."""
    models: tuple[type[BaseModel], ...] = ()
    """Models that may contain the last key of the path."""
    field: FieldInfo | None = None
    """The last field on the path."""
    types: tuple[object, ...] = ()
    """Types that the value may have, with unions split."""
    choice: Loc | None = None
    """Place at which the path entered one of several types of a union; None if it did not."""


def key_of(path: Loc) -> str:
    """Returns the path as text: `webhooks[2].url`. A key that is not one word is quoted: `headers['a b']`."""
    text = ""
    for step in path:
        if isinstance(step, int):
            text += f"[{step}]"
        elif len(step) <= MAX_STEP and _PLAIN_KEY.fullmatch(step):
            text += f".{step}" if text else step
        else:
            text += f"[{step[:MAX_STEP]!r}]"
    return text


def path_of(key: str) -> Loc:
    """Returns the path that `key_of` wrote as `key`, for keys without quotes in them."""
    return tuple(int(index) if index else quoted or plain for index, quoted, plain in _STEP.findall(key))


def locate(model: type[BaseModel], loc: Sequence[str | int]) -> Located:
    """Returns the place that a pydantic error's `loc` means in a document of this model."""
    at = Located((), types=(model,))
    for step in loc:
        at = _next(at, step)
    return at


def _next(at: Located, step: str | int) -> Located:
    path = (*at.path, step)
    if isinstance(step, int):
        items = tuple(t for inner in at.types for t in _item_types(inner))
        return Located(path, field=at.field, types=items, choice=at.choice)
    models = tuple(t for t in at.types if isinstance(t, type) and issubclass(t, BaseModel))
    if at.field is not None and at.field.discriminator is not None and len(at.types) > 1:
        chosen = tuple(m for m in models if step in _tags(m, str(at.field.discriminator)))
        if chosen:
            return Located(at.path, at.models, at.field, chosen, at.choice)
    owners = tuple(m for m in models if step in m.model_fields)
    if owners:
        found = owners[0].model_fields[step]
        return Located(path, owners, found, tuple(members(found.annotation)), at.choice)
    values = tuple(t for inner in at.types if get_origin(inner) is dict for t in members(get_args(inner)[1]))
    if values:
        return Located(path, field=at.field, types=values, choice=at.choice)
    if models:  # an unknown key
        return Located(path, models, None, (), at.choice)
    if step == "[key]":
        return at
    return Located(at.path, at.models, at.field, at.types, at.path)  # the label of a union's type


def members(annotation: object) -> list[object]:
    """Returns the types in a union, or the type itself if it isn't a union; `Annotated` is removed."""
    origin = get_origin(annotation)
    if origin is Annotated:
        return members(get_args(annotation)[0])
    if origin in (Union, types.UnionType):
        return [inner for part in get_args(annotation) for inner in members(part)]
    return [annotation]


def literals(model: type[BaseModel], name: str) -> tuple[str | int, ...]:
    """Returns the values that a field of `Literal` type can have."""
    return tuple(
        value
        for inner in members(model.model_fields[name].annotation)
        if get_origin(inner) is Literal
        for value in get_args(inner)
    )


def _tags(model: type[BaseModel], discriminator: str) -> tuple[str | int, ...]:
    return literals(model, discriminator) if discriminator in model.model_fields else ()


def _item_types(annotation: object) -> list[object]:
    if get_origin(annotation) not in (list, tuple, set, frozenset):
        return []
    return [inner for part in get_args(annotation) if part is not Ellipsis for inner in members(part)]
