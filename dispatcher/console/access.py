"""Authentication and CSRF protection: bearer tokens, session cookies, origins.

An API request with `Authorization: Bearer` is authenticated by that header alone, every other request by its cookie.
If neither tokens nor OIDC are configured, which only a loopback address allows, every request acts as the admin.
"""

import hmac
from collections.abc import Callable
from datetime import UTC, datetime
from ipaddress import ip_address
from time import monotonic
from typing import Final
from urllib.parse import SplitResult, urlsplit

import structlog
from aiohttp import web
from aiohttp.typedefs import Handler
from yarl import URL

from dispatcher.config.console_settings import ConsoleSettings
from dispatcher.console import csrf, measures
from dispatcher.console.api_errors import ApiError
from dispatcher.console.model import Person
from dispatcher.console.oidc import Oidc, TokenRefused
from dispatcher.console.request_body import form_body
from dispatcher.console.services import CSRF_TOKEN, KEPT_FORM_PATH, PERSON, RENDERERS
from dispatcher.console.sessions import Session, Sessions
from dispatcher.errors import ConfigError, Problem
from dispatcher.stores.sql.records import ApiToken, Role
from dispatcher.stores.sql.tokens import ApiTokens

TOKENS_FRESH_S: Final = 30.0
"""Seconds for which a verified token is cached: a session outlives its revoked token by at most as long."""
MAX_BEARER: Final = 16_384
UNSAFE: Final = frozenset({"POST", "PUT", "PATCH", "DELETE"})

LOCAL: Final = Person("local", "local admin", Role.ADMIN, None)
LINK: Final = Person("link", "operator (sign-in link)", Role.ADMIN, None)
_LOCAL_SESSION = "local"

_TOO_OLD: Final = "The page is too old, or this came from elsewhere: go back, load it again, and try again."
_IMPERSONAL = frozenset(
    {"/livez", "/readyz", "/metrics", "/favicon.ico", "/.well-known/jwks.json", "/api/v1/openapi.json"}
)
_IMPERSONAL_BELOW = ("/static/", "/.well-known/jwks/")
_PUBLIC = frozenset({"/sign-in", "/notifications/link"})  # the link's token is the permission
_PUBLIC_BELOW = ("/sign-in/",)

log = structlog.get_logger(__name__)


def is_api(path: str) -> bool:
    """Returns True if errors at this path are problem documents and never redirect to the sign-in page."""
    return path == "/api" or path.startswith("/api/")


def is_impersonal(path: str) -> bool:
    """Returns True if the response is the same for everyone, signed in or not."""
    return path in _IMPERSONAL or path.startswith(_IMPERSONAL_BELOW)


def is_public(path: str) -> bool:
    """Returns True if the path needs no authentication."""
    return path in _PUBLIC or path.startswith(_PUBLIC_BELOW) or is_impersonal(path)


def is_local_path(text: str) -> bool:
    """Returns True if a redirect to this text stays on the console, however a browser parses it."""
    return (
        text.startswith("/")
        and not text.startswith("//")
        and len(text) <= 2048
        and text.isascii()
        and text.isprintable()
        and not set(text) & set("\\ ")
        and not text.partition("?")[0].startswith(("/sign-in", "/sign-out"))
    )


def is_open_console(settings: ConsoleSettings) -> bool:
    """Returns True if the console needs no authentication, which is allowed on loopback addresses only.

    Raises:
        ConfigError: neither tokens nor OIDC are configured, and other hosts can reach the address.
    """
    if settings.tokens or settings.oidc is not None:
        return False
    host = "all addresses" if settings.host is None else settings.host
    try:
        is_loopback = host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        is_loopback = False
    if not is_loopback:
        message = (
            f"{host} can be reached by others, and the console would need no sign-in: "
            "set console.tokens to true, configure console.oidc, or listen on 127.0.0.1"
        )
        raise ConfigError([Problem(message, "console.host")])
    return True


class Access:
    """Authenticates requests and checks where changes come from."""

    def __init__(
        self,
        settings: ConsoleSettings,
        tokens: ApiTokens,
        sessions: Sessions,
        oidc: Oidc | None,
        *,
        public_url: str,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self._settings = settings
        self._tokens = tokens
        self._sessions = sessions
        self._oidc = oidc
        self._clock = clock
        self._public = urlsplit(public_url)
        self.is_open: Final = is_open_console(settings)
        """True if no authentication is configured: every request acts as the admin."""
        self._known: dict[str, ApiToken] = {}
        self._known_at: float | None = None

    @web.middleware
    async def authenticate(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Sets `PERSON` and `CSRF_TOKEN` of an authenticated request. Rejects others unless the path is public."""
        if self.is_open:
            self._refuse_other_names(request)
        person = None if is_impersonal(request.path) else await self._person(request)
        if person is not None:
            request[PERSON] = person
        elif not is_public(request.path):
            if is_api(request.path):
                raise ApiError(
                    401,
                    "not_authenticated",
                    "Send `Authorization: Bearer` with a token of yours.",
                    headers={"WWW-Authenticate": "Bearer"},
                )
            if request.method in UNSAFE:
                self._refuse_other_origins(request)
                kept = await keep_form(request)
                if kept is not None:
                    return kept
            raise await self._redirect_to_sign_in(request)
        return await handler(request)

    @web.middleware
    async def protect(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Rejects changes that were caused by a page of another origin (CSRF)."""
        if request.method in UNSAFE:
            self._refuse_other_origins(request)
            # Signing in needs no CSRF token: the form carries its own credential, and the origin was checked above.
            is_exempt = request.path in ("/sign-in", KEPT_FORM_PATH) or (self.is_open and is_api(request.path))
            if CSRF_TOKEN in request and not is_exempt:
                given = request.headers.get("X-CSRF-Token") or (await form_body(request)).get("csrf_token") or ""
                if not hmac.compare_digest(request[CSRF_TOKEN].encode(), csrf.unmask(given).encode(errors="replace")):
                    kept = await keep_form(request)  # of an earlier session of the same person
                    if kept is not None:
                        return kept
                    raise ApiError(403, "csrf", _TOO_OLD)
        return await handler(request)

    async def person_of_token(self, text: str) -> Person | None:
        """Returns the holder of a token of `dispatcher tokens create`, or None if the token isn't valid."""
        token = await self._tokens.verify(text) if self._settings.tokens else None
        return None if token is None else _holder(token)

    async def _person(self, request: web.Request) -> Person | None:
        if is_api(request.path) and (header := request.headers.get("Authorization")) is not None:
            return await self._bearer(header)
        if self.is_open:
            request[CSRF_TOKEN] = self._sessions.csrf_token(_LOCAL_SESSION)
            return LOCAL
        session = await self._sessions.of(request)
        person = None if session is None else await self._of_session(session)
        if session is not None and person is not None:
            request[CSRF_TOKEN] = self._sessions.csrf_token(session.id)
        return person

    async def _bearer(self, header: str) -> Person:
        scheme, _, text = header.partition(" ")
        text = text.strip()
        why = "write `Authorization: Bearer <token>`"
        if scheme.lower() == "bearer" and text and len(text) <= MAX_BEARER:
            why = "it is unknown, expired or revoked"
            if text.startswith("fdt_"):
                person = await self.person_of_token(text)
                if person is not None:
                    return person
            elif self._oidc is not None:
                try:
                    return await self._oidc.person_of_access_token(text)
                except TokenRefused as error:
                    why = str(error)
        measures.REFUSED_TOKENS.inc()
        challenge = 'Bearer error="invalid_token"'
        raise ApiError(401, "invalid_token", f"The token was refused: {why}.", headers={"WWW-Authenticate": challenge})

    async def _of_session(self, session: Session) -> Person | None:
        match session.kind:
            case "token" if self._settings.tokens:
                token = await self._token(session.subject)
                return None if token is None else _holder(token)
            case "oidc" if self._oidc is not None:
                orgs = None if session.orgs is None else frozenset(session.orgs)
                return Person(f"oidc:{session.subject}", session.name, Role(session.role), orgs)
            case "link":
                return LINK
        return None

    async def _token(self, token_id: str) -> ApiToken | None:
        """Returns the token if it is valid, as of at most 30 s ago. A token that isn't cached is fetched at once."""
        now = self._clock()
        if self._known_at is None or now - self._known_at >= TOKENS_FRESH_S or token_id not in self._known:
            self._known = {token.id: token for token in await self._tokens.list_all()}
            self._known_at = now
        token = self._known.get(token_id)
        is_over = token is None or token.revoked_at is not None or _has_expired(token)
        return None if is_over else token

    async def _redirect_to_sign_in(self, request: web.Request) -> web.HTTPSeeOther:
        """Returns a redirect to the sign-in page, which leads back to the requested page.

        If the request is an action on one of our pages, it leads back to that page and says that nothing was changed.
        """
        wanted, ended = request.path_qs, {}
        if request.method not in ("GET", "HEAD"):
            before = _parts(request.headers.get("Referer", "")[:4096])
            wanted = "/"
            if before.scheme in ("http", "https") and self._is_ours(before, request):
                page = f"{before.path}?{before.query}" if before.query else before.path
                ended = {"ended": "1"}
                wanted = page if is_local_path(page) and await _is_page(request, page) else "/"
        query = {"next": wanted if is_local_path(wanted) else "/"} | ended
        return web.HTTPSeeOther(request.rel_url.with_path("/sign-in").with_query(query))

    def _is_ours(self, origin: SplitResult, request: web.Request) -> bool:
        return origin.netloc.lower() in (self._public.netloc, request.host.lower())

    def invalidate_tokens(self) -> None:
        """Drops the cached tokens after one was created or revoked in this process."""
        self._known_at = None

    def _refuse_other_names(self, request: web.Request) -> None:
        # A page elsewhere can give its own name our address (DNS rebinding) and would be the admin.
        host = _parts(f"//{request.host}").hostname or ""
        if host not in ("localhost", "127.0.0.1", "::1", self._public.hostname):
            raise ApiError(403, "wrong_host", "Ask for it under the name that it is configured with.")

    def _refuse_other_origins(self, request: web.Request) -> None:
        site = request.headers.get("Sec-Fetch-Site")
        origin = request.headers.get("Origin")
        if site is not None:
            is_ours = site in ("same-origin", "none")
        elif origin is not None:
            parts = _parts(origin)
            is_ours = parts.scheme in ("http", "https") and self._is_ours(parts, request)
        else:
            is_ours = True  # no browser
        if not is_ours:
            raise ApiError(403, "cross_origin", "Changes are not taken from pages of another origin.")


def _parts(url: str) -> SplitResult:
    """Returns the parts of a URL that a client sent; empty ones if it isn't a URL."""
    try:
        return urlsplit(url)
    except ValueError:
        return SplitResult("", "", "", "", "")


async def keep_form(request: web.Request) -> web.Response | None:
    """Returns a page that keeps the posted form after its session has ended; None if the form can't be kept."""
    renderers = request.app.get(RENDERERS)
    return None if renderers is None else await renderers.keep_form(request)


async def _is_page(request: web.Request, path: str) -> bool:
    """Returns True if a GET of the path isn't refused for its path or method."""
    found = await request.app.router.resolve(request.clone(method="GET", rel_url=URL(path)))
    return found.http_exception is None


def _holder(token: ApiToken) -> Person:
    return Person(f"token:{token.id}", token.name, token.role, token.orgs)


def _has_expired(token: ApiToken) -> bool:
    return token.expires_at is not None and token.expires_at <= datetime.now(UTC)
