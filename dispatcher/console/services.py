"""The services that the console depends on, and the renderers that its pages provide to the server.

`dispatcher.cli.console_process` builds the services; `ConsoleServer.build` passes them to the API and to the pages.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Final

from aiohttp import web

from dispatcher.config.settings import Settings
from dispatcher.console import csrf
from dispatcher.console.model import Person
from dispatcher.console.sources.attempts import AttemptReader
from dispatcher.console.sources.dead_events import DeadLetterReader
from dispatcher.console.sources.delivered_events import DeliveredEvents
from dispatcher.console.sources.history import HistoryLookup
from dispatcher.console.sources.jwks import PublishedKeys
from dispatcher.console.sources.lanes import RunningLanes
from dispatcher.console.sources.redrive_jobs import RedriveJobs
from dispatcher.console.sources.retry_backlog import RetryBacklog
from dispatcher.console.sources.test_sender import SampleSender
from dispatcher.notifications.desk import NotificationDesk
from dispatcher.stores.sql.audit import AuditLog
from dispatcher.stores.sql.ended_sessions import EndedSessions
from dispatcher.stores.sql.repository import WebhookRepository
from dispatcher.stores.sql.tokens import ApiTokens


@dataclass(frozen=True, slots=True)
class Services:
    """Everything that the API and the pages read or change."""

    settings: Settings
    webhooks: WebhookRepository
    audit: AuditLog
    tokens: ApiTokens
    ended_sessions: EndedSessions
    attempts: AttemptReader
    lanes: RunningLanes
    waiting: RetryBacklog
    dead_events: DeadLetterReader
    jobs: RedriveJobs
    """Those that send dead events again, and delivered ones."""
    test_events: SampleSender
    keys: PublishedKeys
    history: HistoryLookup | None = None
    """None without a history store."""
    resends: DeliveredEvents | None = None
    """None without a history store."""
    notifications: NotificationDesk | None = None
    """None without a history store."""


@dataclass(frozen=True, slots=True)
class SignIn:
    """Content of the sign-in page.

    Its form posts `token` and `next` to `/sign-in`; OIDC begins at `/sign-in/oidc?next=…`.
    """

    next: str
    """Local path of the page to continue with."""
    with_token: bool
    with_oidc: bool
    problem: str = ""
    """Why the last sign-in failed, as a sentence; empty at the first visit."""
    status: int = 200
    """HTTP status of the page: 401 or 429 after a failed sign-in."""
    kept: str = field(default="", repr=False)
    """A form that is kept until the person has signed in again, encrypted; empty if there is none."""
    has_ended: bool = False
    """True if an action led here, because its session had ended; nothing was changed."""


@dataclass(frozen=True, slots=True)
class Failure:
    """Content of an error page."""

    status: int
    title: str
    """`Not found`"""
    detail: str
    """A sentence without personal data."""
    code: str
    """Why, as in the API's problem documents: `not_allowed`, `csrf`."""
    request_id: str
    """Reference for the operator, who finds it in the log."""


@dataclass(frozen=True, slots=True)
class Renderers:
    """Functions with which the pages render content of the server. `pages.add_to` sets `app[RENDERERS]`.

    Without renderers the server sends plain text. The server sets status, `Retry-After` and cookies; it replaces the
    renderer's own status.
    """

    sign_in: Callable[[web.Request, SignIn], Awaitable[web.Response]]
    failure: Callable[[web.Request, Failure], Awaitable[web.Response]]
    keep_form: Callable[[web.Request], Awaitable[web.Response | None]]
    """Page that keeps a form whose session has ended; None if the request isn't such a form."""
    continue_form: Callable[[web.Request, str], web.Response]
    """Page after a sign-in, which leads back to the kept form."""


KEPT_FORM_PATH: Final = "/webhooks/kept-form"
"""Path that shows a kept form again. It changes nothing, and needs no CSRF token: the form is sealed for its author."""
RENDERERS: Final = web.AppKey("renderers", Renderers)

# Set by the server before a handler is called. Not plain strings: aiohttp warns about those.

PERSON: Final = web.RequestKey("person", Person)
CSRF_TOKEN: Final = web.RequestKey("csrf_token", str)
REQUEST_ID: Final = web.RequestKey("request_id", str)


def person_of(request: web.Request) -> Person:
    """Returns the authenticated caller. Every request to a path that is not public has one."""
    return request[PERSON]


def csrf_token_of(request: web.Request) -> str:
    """Returns the value for the field `csrf_token` of forms, or the header `X-CSRF-Token`. Empty without a session.

    It is another text in each answer.
    """
    token: str = request.get(CSRF_TOKEN, "")
    return csrf.mask(token)
