"""Checks the header parameters of a webhook: their names, values and number. Each error says what to change."""

import re
from collections.abc import Iterator
from itertools import islice
from typing import Annotated

from pydantic import (
    PlainSerializer,
    PlainValidator,
    ValidationError,
    ValidationInfo,
    ValidatorFunctionWrapHandler,
)
from pydantic_core import ErrorDetails, InitErrorDetails, PydanticCustomError, PydanticKnownError

from dispatcher.config.secrets import Secret, resolve_secret

MAX_HEADERS = 20
MAX_HEADER_NAME = 64
MAX_HEADER_VALUE = 4096
_TOKEN = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")  # RFC 9110, section 5.6.2
_VISIBLE = re.compile(r"[\x20-\x7e]*")
_RESERVED = frozenset(
    {
        "host", "connection", "transfer-encoding", "te", "trailer", "trailers", "upgrade", "keep-alive", "expect",
        "user-agent", "cookie", "traceparent",
    }
)  # fmt: skip
_RESERVED_PREFIXES = ("content-", "proxy-", "webhook-")


def header_name_problem(name: str, taken: frozenset[str]) -> str | None:
    """Returns why a header parameter can't have this name, or None if it can. `taken`: further reserved names."""
    lower = name.lower()
    if not _TOKEN.fullmatch(name) or len(name) > MAX_HEADER_NAME:
        return f"not a header name: use up to {MAX_HEADER_NAME} letters, digits and any of !#$%&'*+-.^_`|~"
    if lower in _RESERVED or lower in taken or lower.startswith(_RESERVED_PREFIXES):
        return f"{lower} is set by the dispatcher and can't be replaced: choose another name"
    return None


def header_value_problem(value: str) -> str | None:
    """Returns why a header parameter can't have this value, or None if it can."""
    if not _VISIBLE.fullmatch(value) or value != value.strip():
        return "not a header value: use visible ASCII characters, no space at either end, no line break"
    if len(value) > MAX_HEADER_VALUE:
        return f"longer than {MAX_HEADER_VALUE} characters: shorten it"
    return None


def header_problems(given: object, taken: frozenset[str]) -> Iterator[tuple[str, str]]:
    """Yields name and reason of each header parameter that can't be sent. The model checks the values' types.

    Checks only the first `MAX_HEADERS`, which bounds the work: more than that are refused anyway.
    """
    seen: set[str] = set()
    for name, raw in islice(given.items(), MAX_HEADERS) if isinstance(given, dict) else ():
        if not isinstance(name, str):
            continue
        value = header_text(raw) if isinstance(raw, Secret) else raw
        problem = header_name_problem(name, taken)
        if problem is None and isinstance(value, str):
            problem = header_value_problem(value)
        if problem is None and name.lower() in seen:
            problem = "given twice (names are the same in either case): keep one"
        if problem is not None:
            yield name, problem
        seen.add(name.lower())


def header_text(secret: Secret) -> str:
    return secret.reveal().decode("ascii", "replace")  # the check of header values refuses other characters


def _error_at(key: str, problem: str) -> InitErrorDetails:
    return InitErrorDetails(type="value_error", loc=(key,), input=None, ctx={"error": ValueError(problem)})


def _too_many(count: int) -> InitErrorDetails:
    context = {"field_type": "Dictionary", "max_length": MAX_HEADERS, "actual_length": count}
    return InitErrorDetails(type="too_long", loc=(), input=None, ctx=context)


def _repeated(error: ErrorDetails) -> InitErrorDetails:
    kind: str | PydanticCustomError = error["type"]
    if kind in ("secret_inline", "secret_reference", "secret_file", "secret_env", "secret_scope"):
        kind = PydanticCustomError(error["type"], "{problem}", {"problem": error["msg"]})
    return InitErrorDetails(type=kind, loc=error["loc"], input=error["input"], ctx=error.get("ctx", {}))


def _header_value(value: object, info: ValidationInfo) -> str | Secret:
    if isinstance(value, str):
        return value
    if isinstance(value, dict | Secret):
        secret = resolve_secret(value, info)
        problem = header_value_problem(header_text(secret))
        if problem is not None:
            raise ValueError(f"the secret is {problem}")
        return secret
    raise PydanticKnownError("string_type")


def _header_reference(value: str | Secret) -> object:
    return (value.reference or "<secret>") if isinstance(value, Secret) else value


HeaderValue = Annotated[
    str | Secret,
    PlainValidator(_header_value, json_schema_input_type=str | Secret),
    PlainSerializer(_header_reference),
]
"""The value of a header parameter: text exactly as it is written, or a secret by reference."""


def validated_headers(
    given: object, auth_header: str | None, handler: ValidatorFunctionWrapHandler, title: str
) -> dict[str, str | Secret]:
    """Returns the header parameters of a webhook. Every mistake is reported at the name of its header parameter.

    Args:
        given: the value in the configuration.
        auth_header: the header of the webhook's token; None without one.
        handler: validates the values' types.
        title: name of the model, for the error.

    Raises:
        ValidationError: some can't be sent, or there are too many.
    """
    taken = frozenset[str]() if auth_header is None else frozenset({auth_header, "authorization"})
    found = [_error_at(name, problem) for name, problem in header_problems(given, taken)]
    headers: dict[str, str | Secret] = {}
    if isinstance(given, dict) and len(given) > MAX_HEADERS:
        found.append(_too_many(len(given)))
    else:
        try:
            headers = handler(given)
        except ValidationError as error:
            found += [_repeated(one) for one in error.errors(include_url=False)]
    if found:
        raise ValidationError.from_exception_data(title, found, hide_input=True)
    return headers
