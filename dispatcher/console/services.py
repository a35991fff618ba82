"""What the console is put together from, and what its pages give to the server.

`dispatcher.cli.console` builds the parts; `server.build` hands them to the API and to the pages.
"""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Final, Protocol

from aiohttp import web
from pydantic import JsonValue

from dispatcher.config.settings import Settings
from dispatcher.console.model import Attempts, DeadEvents, LaneStates, Person, TestEvents, Waiting
from dispatcher.contract.tenant import TenantKey
from dispatcher.stores.sql.audit import AuditLog
from dispatcher.stores.sql.repository import WebhookRepository
from dispatcher.stores.sql.tokens import ApiTokens


class PublicKeys(Protocol):
    """The public halves of the keys that our tokens are signed with, for receivers to verify them."""

    async def document(self, tenant: TenantKey) -> Mapping[str, JsonValue]:
        """A JWKS document (RFC 7517, section 5) of this tenant's keys, and of no other's.

        Raises:
            StoreUnavailable: the database did not answer, and nothing is known from before.
        """
        ...


@dataclass(frozen=True, slots=True)
class Services:
    """Everything that the API and the pages ask."""

    settings: Settings
    webhooks: WebhookRepository
    audit: AuditLog
    tokens: ApiTokens
    attempts: Attempts
    lanes: LaneStates
    waiting: Waiting
    dead_events: DeadEvents
    test_events: TestEvents
    keys: PublicKeys


@dataclass(frozen=True, slots=True)
class SignIn:
    """What the sign-in page shows.

    Its form posts `token` and `next` to `/sign-in`; OIDC begins at `/sign-in/oidc?next=…`.
    """

    next: str
    """A local path: where to go afterwards."""
    with_token: bool
    with_oidc: bool
    problem: str = ""
    """Why the last try failed, as a sentence; empty at the first visit."""
    status: int = 200
    """HTTP status of the page: 401 or 429 after a failed try."""


@dataclass(frozen=True, slots=True)
class Failure:
    """What an error page shows."""

    status: int
    title: str
    """`Not found`"""
    detail: str
    """A sentence, without anybody's data."""
    request_id: str
    """To be told to the operator, who finds it in the log."""


@dataclass(frozen=True, slots=True)
class Renderers:
    """What the pages render for the server. `pages.add_to` sets `app[RENDERERS]`; without it plain text is sent.

    The server sets status, `Retry-After` and cookies; a renderer's own status is replaced.
    """

    sign_in: Callable[[web.Request, SignIn], Awaitable[web.Response]]
    failure: Callable[[web.Request, Failure], Awaitable[web.Response]]


RENDERERS: Final = web.AppKey("renderers", Renderers)

# What the server has found out before a handler is called. Not plain strings: aiohttp warns about those.

PERSON: Final = web.RequestKey("person", Person)
CSRF_TOKEN: Final = web.RequestKey("csrf_token", str)
REQUEST_ID: Final = web.RequestKey("request_id", str)


def person_of(request: web.Request) -> Person:
    """Who asks. Handlers of paths that are not public always have one."""
    return request[PERSON]


def csrf_token_of(request: web.Request) -> str:
    """For the field `csrf_token` of every form that posts, or the header `X-CSRF-Token`; empty while nobody is
    signed in by a cookie."""
    token: str = request.get(CSRF_TOKEN, "")
    return token
