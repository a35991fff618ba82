"""Middlewares of every request: request id, access log, error responses, and security headers.

The access log contains the route's template, status and duration, but no path, query, name or address.
"""

import asyncio
import re
import time
from typing import Final
from uuid import uuid4

import structlog
from aiohttp import web
from aiohttp.typedefs import Handler
from structlog.contextvars import bound_contextvars

from dispatcher.console import measures
from dispatcher.console.access import UNSAFE, is_api
from dispatcher.console.api_errors import ApiError, api_error_of, api_error_of_http, problem_response
from dispatcher.console.services import PERSON, RENDERERS, REQUEST_ID, Failure
from dispatcher.errors import DispatcherError
from dispatcher.telemetry import metrics

GONE: Final = 499
"""Status in log and metric of a request whose client disconnected before the response, or that shutdown cancelled."""

_READS: Final = frozenset({
    "/search", "/webhooks/preview", "/dead-events/confirm",
    "/api/v1/history/search", "/api/v1/webhooks/preview", "/api/v1/webhooks/{id}/resend/check",
})  # fmt: skip
"""Routes whose POST changes nothing: it keeps what was typed out of the URL, or checks it."""
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_CSP = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
)
_HEADERS: Final = {
    "Content-Security-Policy": _CSP,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=(), payment=()",
    "Server": "feedback-dispatcher",
}

log = structlog.get_logger(__name__)


@web.middleware
async def observe(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Sets the request's id, counts the request and logs it."""
    given = request.headers.get("X-Request-ID", "")
    request_id = given if _REQUEST_ID.fullmatch(given) else uuid4().hex
    request[REQUEST_ID] = request_id
    began = time.monotonic()
    status = GONE
    with bound_contextvars(request_id=request_id):
        try:
            response = await handler(request)
            status = response.status
        except web.HTTPException as error:
            status = error.status
            raise
        finally:
            _tell(request, status, time.monotonic() - began)
    return response


def _tell(request: web.Request, status: int, took_s: float) -> None:
    resource = request.match_info.route.resource
    route = "_unknown" if resource is None else resource.canonical
    method = request.method if request.method in measures.METHODS else "_other"
    measures.REQUESTS.labels(route, method, str(status)).inc()
    measures.REQUEST_SECONDS.observe(took_s)
    person = request.get(PERSON)
    way = "nobody" if person is None else person.id.partition(":")[0]
    write = log.debug if route in ("/livez", "/readyz", "/metrics") or route.startswith("/static") else log.info
    write("request answered", route=route, method=method, status=status, ms=round(took_s * 1000, 1), by=way)


def _may_change(request: web.Request) -> bool:
    resource = request.match_info.route.resource
    return request.method in UNSAFE and (resource is None or resource.canonical not in _READS)


@web.middleware
async def answer_errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Converts any exception to a response: a problem document below /api, a page elsewhere."""
    try:
        return await handler(request)
    except ApiError as raised:
        refusal = raised
    except DispatcherError as error:
        refusal = api_error_of(error, may_have_changed=_may_change(request))
        if refusal.status >= 500:
            log.warning("request could not be answered", why=str(error))
    except web.HTTPException as error:
        if error.status < 400:
            raise
        refusal = api_error_of_http(error)
    except asyncio.CancelledError:
        raise
    except Exception:
        metrics.ERRORS.labels("console").inc()
        log.exception("request failed because of a bug")
        refusal = ApiError(500, "internal", "Something went wrong on our side; the operator's log has it.")
    return await _answer(request, refusal)


async def _answer(request: web.Request, refusal: ApiError) -> web.StreamResponse:
    request_id = request.get(REQUEST_ID, "")
    if is_api(request.path):
        return problem_response(refusal, request_id)
    response = web.Response(text=f"{refusal.detail}\n")
    renderers = request.app.get(RENDERERS)
    if renderers is not None:
        try:
            failure = Failure(refusal.status, refusal.title, refusal.detail, refusal.code, request_id)
            response = await renderers.failure(request, failure)
        except Exception:
            metrics.ERRORS.labels("console").inc()
            log.exception("an error's page could not be made because of a bug")
    response.set_status(refusal.status)
    response.headers.update(refusal.headers)
    return response


class SecurityHeaders:
    """Sets the headers that every response has, when it is prepared."""

    def __init__(self, *, is_https: bool) -> None:
        self._headers = _HEADERS | ({"Strict-Transport-Security": "max-age=31536000"} if is_https else {})

    async def __call__(self, request: web.Request, response: web.StreamResponse) -> None:
        """Called by aiohttp."""
        response.headers.update(self._headers)
        response.headers["X-Request-ID"] = request.get(REQUEST_ID, "")
        response.headers.setdefault("Cache-Control", "no-store")
