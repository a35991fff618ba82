"""Reads request bodies (JSON and forms) and numbers, with limits on their size, without blocking other requests.

The client chooses how long a body is and how many values it has. Before authentication a body may have 16 KiB,
afterwards 2 MiB. A JSON document has at most 5,000 values, a form 2,000 fields. Anything larger than 16 KiB is parsed
in a thread. Compressed bodies are refused: they would grow past every limit.
"""

import asyncio
import json
from collections.abc import Iterable, Iterator
from typing import Final
from urllib.parse import parse_qsl

import orjson
from aiohttp import web
from multidict import MultiDict, MultiDictProxy
from pydantic import JsonValue

from dispatcher.config.documents import key_of
from dispatcher.console.api_errors import ApiError, refused_fields
from dispatcher.console.services import PERSON
from dispatcher.errors import Problem

MAX_BODY: Final = 2 * 1024 * 1024
"""Bytes of a request: a draft of 1 MiB and its secrets."""
MAX_PUBLIC_BODY: Final = 16 * 1024
"""The same before authentication: a token, and the page to continue with."""
MAX_KEPT_BODY: Final = 128 * 1024
"""The same of a form that is kept while its author signs in again: sealed, it is larger than when it was typed."""
MAX_VALUES: Final = 5_000
"""Values of a JSON document, nested ones included. A webhook has at most 1,000 campaigns, and a request as many ids."""
MAX_FIELDS: Final = 2_000
"""Fields of a form."""
MAX_NUMBER: Final = 10**18 - 1
"""The largest number in a parameter: every database has larger integers."""
MAX_WORDS: Final = 20
"""Words of a filter."""
FORM_TYPE: Final = "application/x-www-form-urlencoded"

INLINE: Final = 16 * 1024
"""Bytes that are parsed at once: it takes less time than going to a thread."""
_FORM: Final = web.RequestKey("form", MultiDictProxy[str])

_LONGEST_INTEGER: Final = 20
"""Characters of an integer of 64 bits."""
_WIDE: Final = object()
"""Stands for an integer of more than 64 bits."""
_TOO_WIDE: Final = "this number has more than 64 bits: put it in quotes if it is text"

Form = MultiDictProxy[str]


async def json_body(request: web.Request) -> JsonValue:
    """Returns the JSON document of a request.

    Raises:
        ApiError: 400 if it is none, 413 if it is too large, 415 if it is compressed or of another type.
    """
    if request.content_type != "application/json":
        headers = {"Accept": "application/json"}
        raise ApiError(415, "media_type", "Send JSON: Content-Type: application/json.", headers=headers)
    body = await _body(request)
    return _json(body) if len(body) <= INLINE else await asyncio.to_thread(_json, body)


async def form_body(request: web.Request, *, before_sign_in: int = MAX_PUBLIC_BODY) -> Form:
    """Returns the form of a request; empty if it is of another type. May be called more than once.

    Args:
        before_sign_in: most bytes of a request without authentication.

    Raises:
        ApiError: 400 if it can't be read, 413 if it is too large, 415 if it is compressed.
    """
    if _FORM in request:
        return request[_FORM]
    if request.content_type != FORM_TYPE:
        form = MultiDictProxy(MultiDict[str]())
    else:
        body = await _body(request, before_sign_in)
        form = _form(body) if len(body) <= INLINE else await asyncio.to_thread(_form, body)
    request[_FORM] = form
    return form


async def _body(request: web.Request, before_sign_in: int = MAX_PUBLIC_BODY) -> bytes:
    limit = MAX_BODY if PERSON in request else before_sign_in
    if request.headers.get("Content-Encoding", "identity").strip().lower() not in ("identity", ""):
        headers = {"Accept-Encoding": "identity"}
        raise ApiError(415, "encoding", "Send the body without Content-Encoding, not compressed.", headers=headers)
    if (request.content_length or 0) > limit:
        raise _too_large(limit)
    body = bytearray()
    try:
        async for chunk in request.content.iter_any():
            body += chunk
            if len(body) > limit:
                raise _too_large(limit)
    except (web.RequestPayloadError, ConnectionError, EOFError):
        raise ApiError(400, "body", "The body can't be read: its end or its framing is missing.") from None
    return bytes(body)


def _json(body: bytes) -> JsonValue:
    try:
        data: JsonValue = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        at = f"line {error.lineno}, column {error.colno}" if error.doc else "it is empty"
        raise ApiError(400, "not_json", f"The body isn't a JSON document: {at}.") from None
    if _has_more_values(data, MAX_VALUES):
        raise ApiError(413, "too_large", f"The document has more than {MAX_VALUES:,} values.")
    if wide := wide_integers_in(body, data):
        raise refused_fields(wide)
    return data


def wide_integers_in(text: bytes | str, data: JsonValue) -> list[Problem]:
    """Returns the integers of more than 64 bits in a JSON document, which would be rounded.

    Args:
        data: the document as orjson reads it, with numbers of floating point instead of them.
    """
    if not any(isinstance(value, float) and abs(value) >= 1 << 63 for _, value in _leaves(data)):
        return []
    try:
        exact = json.loads(text, parse_int=_integer)
    except RecursionError:  # no document of ours is that deep
        return []
    return [Problem(_TOO_WIDE, key_of(path)) for path, value in _leaves(exact) if value is _WIDE]


def _integer(text: str) -> object:
    is_short = len(text) <= _LONGEST_INTEGER
    return number if is_short and -(1 << 63) <= (number := int(text)) < 1 << 64 else _WIDE


def _leaves(data: object) -> Iterator[tuple[tuple[str | int, ...], object]]:
    """Yields all values of a document but objects and lists, each with its path."""
    todo: list[tuple[tuple[str | int, ...], object]] = [((), data)]
    while todo:
        path, value = todo.pop()
        if isinstance(value, dict):
            todo += [((*path, key), one) for key, one in value.items()]
        elif isinstance(value, list):
            todo += [((*path, number), one) for number, one in enumerate(value)]
        else:
            yield path, value


def _has_more_values(data: JsonValue, most: int) -> bool:
    count, todo = 1, [data]
    while todo and count <= most:
        value = todo.pop()
        if isinstance(value, dict):
            count += len(value)
            todo += value.values() if count <= most else ()
        elif isinstance(value, list):
            count += len(value)
            todo += value if count <= most else ()
    return count > most


def _form(body: bytes) -> Form:
    if body.count(b"&") >= MAX_FIELDS:
        raise ApiError(413, "too_large", f"The form has more than {MAX_FIELDS:,} fields.")
    try:
        pairs = parse_qsl(body.decode(), keep_blank_values=True)
    except ValueError:
        raise ApiError(400, "not_a_form", "The form can't be read: send it as UTF-8.") from None
    return MultiDictProxy(MultiDict(pairs))


def number_in(text: str, most: int = MAX_NUMBER) -> int | None:
    """Returns the number in a parameter or field; None if it isn't a number from 0 to `most`, or has more digits."""
    is_number = text.isascii() and text.isdecimal() and len(text) <= len(str(most))
    return int(text) if is_number and int(text) <= most else None


def _too_large(limit: int) -> ApiError:
    return ApiError(413, "too_large", f"The request's body is larger than {limit // 1024:,} KiB.")


def words_in(text: str) -> frozenset[str]:
    """Returns the words of a filter, separated by commas or blanks, for a search in any case.

    At most `MAX_WORDS` of them: more are refused before (`known_values.too_many_words`).
    """
    return in_any_case(split_words(text)[:MAX_WORDS])


def split_words(text: str) -> list[str]:
    """Returns the words of a filter as they were typed."""
    return text.replace(",", " ").split()


def in_any_case(words: Iterable[str]) -> frozenset[str]:
    """Returns the words as they are, and in lower case.

    The words of this program are in lower case; those of events may be in any.
    """
    given = frozenset(words)
    return given | frozenset(map(str.lower, given))


def as_typed(words: frozenset[str]) -> list[str]:
    """Returns words of which `in_any_case` makes these."""
    added = {word.lower() for word in words if word != word.lower()}
    return sorted(words - added)
