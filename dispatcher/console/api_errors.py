"""Errors as HTTP responses: problem documents (RFC 9457) for the API, `Failure` for pages.

Handlers raise errors, and this module maps each to a status. An error that it doesn't know is a bug: the response is a
500 that contains nothing but the request's id.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Final

import orjson
from aiohttp import web
from pydantic import BaseModel, ConfigDict, JsonValue

from dispatcher.config.documents import path_of
from dispatcher.errors import (
    AlreadyExists,
    AlreadyRunning,
    BrokerUnavailable,
    Busy,
    ConfigError,
    DispatcherError,
    EditConflict,
    IssuerUnavailable,
    NotAllowed,
    NotFound,
    NotSetUp,
    NotWritten,
    Problem,
    StoreUnavailable,
    TooSoon,
    ValuesRefused,
    WouldBeSkipped,
    first_problems,
)

CONTENT_TYPE = "application/problem+json"
_STATUSES: Final[tuple[tuple[type[DispatcherError], int, str, int | None], ...]] = (
    (NotFound, 404, "not_found", None),
    (NotAllowed, 403, "not_allowed", None),
    (WouldBeSkipped, 409, "would_be_skipped", None),
    (NotSetUp, 422, "not_set_up", None),
    (ValuesRefused, 422, "invalid", None),
    (TooSoon, 429, "too_soon", None),
    (IssuerUnavailable, 503, "unavailable", 5),
    (BrokerUnavailable, 503, "unavailable", 5),
    (NotWritten, 503, "unavailable", 5),
    (Busy, 503, "busy", 60),
)
"""Status, code and `Retry-After` of errors that need no other word."""


class FieldError(BaseModel):
    """One mistake in what was sent."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    field: str
    """Dotted path of the value, `auth.sign.key` or `headers['X-A']`; a parameter's name; empty for the whole."""
    pointer: str
    """JSON pointer (RFC 6901) of the value in the request's body; empty for the whole body and for parameters."""
    detail: str
    """The mistake, and what to change. Quotes no value."""


class ProblemDocument(BaseModel):
    """The body of an error answer: a problem document (RFC 9457)."""

    model_config = ConfigDict(extra="allow", use_attribute_docstrings=True)

    type: str
    """`urn:dispatcher:problem:` and a word that stays the same."""
    title: str
    status: int
    detail: str
    request_id: str
    """As in the header `X-Request-ID`, and in the operator's log."""
    errors: list[FieldError] | None = None
    """Every mistake in the request, if that is the cause."""
    existing: str | None = None
    """With 409 for a second webhook: the path of the first. With 409 for a second job: the path of the running one."""


@dataclass(eq=False)
class ApiError(Exception):
    """An error response. Handlers and middlewares raise it; `answer_errors` sends it."""

    status: int
    code: str
    """The last word of the problem's type."""
    detail: str
    errors: tuple[FieldError, ...] = ()
    headers: Mapping[str, str] = field(default_factory=dict)
    existing: str | None = None

    @property
    def title(self) -> str:
        return HTTPStatus(self.status).phrase


def field_error(key: str, detail: str, *, below: str = "") -> FieldError:
    """Returns the entry for a mistake at a dotted path of the request's body.

    Args:
        below: the member of the body that the path starts from; empty for the body itself.
    """
    full = ".".join(part for part in (below, key) if part)
    pointer = "".join(f"/{str(step).replace('~', '~0').replace('/', '~1')}" for step in path_of(full))
    return FieldError(field=full, pointer=pointer, detail=detail)


def refused_fields(problems: Iterable[Problem], *, below: str = "") -> ApiError:
    """Returns a 422 with one entry for each problem."""
    errors = tuple(field_error(one.key, one.message, below=below) for one in first_problems(tuple(problems)))
    return ApiError(422, "invalid", "Some values can't be used: see errors.", errors)


def refused_parameter(name: str, detail: str) -> ApiError:
    """Returns a 422 for a query parameter."""
    error = FieldError(field=name, pointer="", detail=detail)
    return ApiError(422, "invalid", "Some parameters can't be used: see errors.", (error,))


def api_error_of(error: DispatcherError, *, may_have_changed: bool) -> ApiError:
    """Returns the response to an error of the dispatcher, with a message that is safe to show tenants.

    Only what passes by itself is a 503 with Retry-After: clients obey it, and repeat the request unchanged.

    Args:
        may_have_changed: whether the request was one to change something.
    """
    for kind, status, code, retry_after_s in _STATUSES:
        if isinstance(error, kind):
            headers = {} if retry_after_s is None else {"Retry-After": str(retry_after_s)}
            return ApiError(status, code, _sentence(error), headers=headers)
    match error:
        case AlreadyExists(existing_id=webhook_id):
            return _conflict("already_exists", error, f"/api/v1/webhooks/{webhook_id}")
        case AlreadyRunning(job_id=job_id):
            return _conflict("already_running", error, f"/api/v1/redrives/{job_id}")
        case EditConflict(current_version=version):
            return ApiError(412, "edit_conflict", _sentence(error), headers={"ETag": f'"{version}"'})
        case ConfigError(problems=problems):
            return refused_fields(problems)
        case StoreUnavailable():  # its message names the database: for the log
            advice = "Check whether the change was made, then try again." if may_have_changed else "Try again."
            return ApiError(503, "store_unavailable", f"{_sentence(error)} {advice}", headers={"Retry-After": "2"})
    return ApiError(409, "refused", _sentence(error))


def _conflict(code: str, error: DispatcherError, path: str) -> ApiError:
    """Returns a 409 that names the object which is in the way."""
    return ApiError(409, code, _sentence(error), headers={"Link": f'<{path}>; rel="related"'}, existing=path)


def api_error_of_http(error: web.HTTPException) -> ApiError:
    """Returns the response to an error that aiohttp raised: an unknown path, a wrong method, too large a body."""
    words = {
        404: ("not_found", "There is nothing at this address."),
        405: ("wrong_method", "This address does not take that method; the header Allow names those that it takes."),
        413: ("too_large", "The request's body is too large."),
    }
    code, detail = words.get(error.status, ("refused", f"{error.reason}."))
    kept = {name: value for name, value in error.headers.items() if name in ("Allow", "Retry-After")}
    return ApiError(error.status, code, detail, headers=kept)


def problem_response(error: ApiError, request_id: str) -> web.Response:
    """Returns the error as a problem document."""
    document: dict[str, JsonValue] = {
        "type": f"urn:dispatcher:problem:{error.code}",
        "title": error.title,
        "status": error.status,
        "detail": error.detail,
        "request_id": request_id,
    }
    if error.errors:
        document["errors"] = [error.model_dump() for error in error.errors]
    if error.existing is not None:
        document["existing"] = error.existing
    return web.Response(
        status=error.status, body=orjson.dumps(document), content_type=CONTENT_TYPE, headers=error.headers
    )


def _sentence(error: DispatcherError) -> str:
    text = error.for_tenants.removesuffix(".")
    return f"{text[:1].upper()}{text[1:]}." if text else "It could not be done."
