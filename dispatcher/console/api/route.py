"""A route of the API as a value: method, path, role, request model, response model and handler.

This module does what all routes have in common, before and after the handler: content types, JSON, models, roles,
versions in If-Match. The OpenAPI document is built from the same values.
"""

import asyncio
import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Generic, TypeVar, get_origin

from aiohttp import web
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from dispatcher.config.documents import parse_document, problems_from
from dispatcher.console.api_errors import ApiError, FieldError, refused_fields
from dispatcher.console.model import ApiValue, Person
from dispatcher.console.request_body import INLINE, MAX_BODY, json_body
from dispatcher.console.services import Services, person_of
from dispatcher.errors import MAX_PROBLEMS, EditConflict, first_problems
from dispatcher.stores.sql.records import Role

PREFIX: Final = "/api/v1"

_NOWHERE = parse_document(b"{}", "")  # a document without lines, for problems that have none
IF_MATCH: Final = r'^(\*|"[0-9]{1,18}"(, ?"[0-9]{1,18}")*)$'
"""One version, several, or any."""

_ETAG = re.compile(r'"(\d{1,18})"')


class Empty(BaseModel):
    """No parameters, or no body."""

    model_config = ConfigDict(extra="forbid")


Query = TypeVar("Query", bound=BaseModel)
RequestBody = TypeVar("RequestBody", bound=BaseModel)


@dataclass(frozen=True, slots=True)
class Call(Generic[Query, RequestBody]):
    """One request, parsed and authorised."""

    services: Services
    person: Person
    path: Mapping[str, str]
    """Values of the path's parameters, such as `id`."""
    query: Query
    body: RequestBody
    request: web.Request

    @property
    def id(self) -> str:
        """The value of `{id}` in the path."""
        return self.path["id"]

    def next_page(self, **parameters: str | int) -> str:
        """Returns the path of the same request with other query parameters."""
        return self.request.rel_url.update_query(parameters).raw_path_qs

    @property
    def takes_any_version(self) -> bool:
        """True for `If-Match: *`."""
        return self._if_match.strip() == "*"

    @property
    def _if_match(self) -> str:
        return ", ".join(self.request.headers.getall("If-Match", []))

    def wanted_version(self, current: int) -> int:
        """Returns the version that If-Match names: `current` if it is one of several, or for `*`.

        Raises:
            ApiError: 428 if the header is missing.
            EditConflict: the header contains no version.
        """
        header = self._if_match
        if not header:
            why = 'Send If-Match with the ETag that you have read (`"3"`): it may have been changed since.'
            raise ApiError(428, "version_needed", why)
        if self.takes_any_version:
            return current
        named = [int(text) for text in _ETAG.findall(header)]
        if current in named:
            return current
        if not named:
            raise EditConflict("If-Match names no version of it", current)
        return named[0]


@dataclass(frozen=True, slots=True)
class Reply:
    """A handler's response."""

    content: BaseModel | ApiValue | None = None
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class PathParameter:
    """A parameter in a path."""

    pattern: str
    description: str


@dataclass(frozen=True, slots=True)
class Route(Generic[Query, RequestBody]):
    """One method of one path."""

    method: str
    path: str
    """Below `/api/v1`; may contain parameters such as `{id}`, which `path_parameters` describes."""
    name: str
    """The operation's id in the OpenAPI document."""
    summary: str
    role: Role
    """The least role that the caller needs."""
    handler: Callable[[Call[Query, RequestBody]], Awaitable[Reply]]
    query: type[Query]
    body: type[RequestBody]
    answer: type[BaseModel] | type[ApiValue] | None
    """None: no content."""
    status: int = 200
    path_parameters: Mapping[str, PathParameter] = field(default_factory=dict)
    """The parameters in the path, by name."""
    is_for_all_orgs: bool = False
    """True if only callers with access to all organisations are allowed."""
    wants_version: bool = False
    """True if the request must have If-Match."""
    gives_version: bool = False
    """True if the response has an ETag."""
    error_statuses: frozenset[int] = frozenset()
    """Statuses of errors besides those that follow from the other fields."""

    @property
    def full_path(self) -> str:
        """The path with the API's prefix."""
        return PREFIX + self.path

    def add_to(self, app: web.Application, services: Services) -> None:
        """Adds the route to the application."""
        path = self.full_path
        for name, parameter in self.path_parameters.items():
            path = path.replace(f"{{{name}}}", f"{{{name}:{parameter.pattern}}}")

        model: type[object] = self.answer or type(None)
        answers = TypeAdapter(model)

        async def handle(request: web.Request) -> web.StreamResponse:
            return await self._respond(request, services, answers)

        app.router.add_route(self.method, path, handle)

    async def _respond(
        self, request: web.Request, services: Services, answers: TypeAdapter[object]
    ) -> web.StreamResponse:
        person = person_of(request)
        self._check_role(person)
        body = await _body(request, self.body)
        call = Call(services, person, request.match_info, _query(request, self.query), body, request)
        reply = await self.handler(call)
        if reply.content is None:
            return web.Response(status=204, headers=reply.headers)
        text = answers.dump_json(reply.content)
        return web.Response(body=text, status=self.status, content_type="application/json", headers=reply.headers)

    def _check_role(self, person: Person) -> None:
        if self.role is Role.ADMIN and not person.is_admin:
            raise ApiError(403, "role", "Your role is viewer; this needs role admin.")
        if self.is_for_all_orgs and person.orgs is not None:
            raise ApiError(403, "role", "This is for admins of all organisations.")


AnyRoute = Route[Any, Any]


async def _body(request: web.Request, model: type[RequestBody]) -> RequestBody:
    if issubclass(model, Empty):
        return model()
    data = await json_body(request)
    if (request.content_length or MAX_BODY) <= INLINE:
        return _validated(model, data)
    return await asyncio.to_thread(_validated, model, data)


def _query(request: web.Request, model: type[Query]) -> Query:
    data: dict[str, object] = {}
    repeated = []
    for name in dict.fromkeys(request.query):
        values = request.query.getall(name)
        known = model.model_fields.get(name)
        if known is not None and get_origin(known.annotation) in (tuple, frozenset):
            data[name] = values
        else:
            data[name] = values[0]
            repeated += [name] if len(values) > 1 else []
    if repeated:
        errors = tuple(FieldError(field=name, pointer="", detail="given more than once") for name in repeated)
        raise ApiError(422, "invalid", "Some parameters can't be used: see errors.", errors)
    try:
        return model.model_validate(data)
    except ValidationError as error:
        problems = first_problems(problems_from(error, _NOWHERE, model, most=MAX_PROBLEMS), error.error_count())
    errors = tuple(FieldError(field=problem.key, pointer="", detail=problem.message) for problem in problems)
    raise ApiError(422, "invalid", "Some parameters can't be used: see errors.", errors)


def _validated(model: type[RequestBody], data: object) -> RequestBody:
    try:
        return model.model_validate(data)
    except ValidationError as error:
        problems = first_problems(problems_from(error, _NOWHERE, model, most=MAX_PROBLEMS), error.error_count())
    except RecursionError:
        raise ApiError(422, "invalid", "The document is nested too deep.") from None
    raise refused_fields(problems)
