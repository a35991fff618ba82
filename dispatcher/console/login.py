"""Signing in and out with a browser: by token, by one-time link, by OIDC.

What went wrong is told on the sign-in page, in words that help who is meant to get in and nobody else. Failures are
throttled by client address and all together.
"""

from math import ceil
from time import monotonic

import structlog
from aiohttp import web

from dispatcher.config.settings import ConsoleSettings
from dispatcher.console import measures
from dispatcher.console.access import LINK, Access, is_local_path
from dispatcher.console.api_errors import ApiError
from dispatcher.console.login_throttle import Throttle, client_address
from dispatcher.console.model import Person
from dispatcher.console.oidc import IssuerUnavailable, Oidc, TokenRefused
from dispatcher.console.services import PERSON, RENDERERS, SignIn
from dispatcher.console.sessions import CookieTooLarge, Session, Sessions

log = structlog.get_logger(__name__)

_LOST = "That sign-in took too long, or was begun in another browser. Please begin again."
_AWAY = "The sign-in service does not answer right now. Please try again in a moment."


class SigningIn:
    """The handlers of `/sign-in…` and `/sign-out`."""

    def __init__(
        self, settings: ConsoleSettings, access: Access, sessions: Sessions, oidc: Oidc | None, throttle: Throttle
    ) -> None:
        self._settings = settings
        self._access = access
        self._sessions = sessions
        self._oidc = oidc
        self._throttle = throttle

    def add_to(self, app: web.Application) -> None:
        """Add the routes."""
        app.router.add_get("/sign-in", self._page)
        app.router.add_post("/sign-in", self._by_token)
        app.router.add_get("/sign-in/link/{link}", self._by_link, allow_head=False)  # a look must not use it up
        app.router.add_get("/sign-in/oidc", self._to_issuer, allow_head=False)
        app.router.add_get("/sign-in/oidc/callback", self._from_issuer, allow_head=False)
        app.router.add_post("/sign-out", self._out)

    async def _page(self, request: web.Request) -> web.StreamResponse:
        if PERSON in request:
            return _to(_next(request.query.get("next", "/")))
        return await self._shown(request, _next(request.query.get("next", "/")))

    async def _by_token(self, request: web.Request) -> web.StreamResponse:
        form = await request.post()
        next_path = _next(form.get("next", "/"))
        refused = await self._throttled(request, "token", next_path)
        if refused is not None:
            return refused
        text = form.get("token", "")
        person = await self._access.person_of_token(text.strip()) if isinstance(text, str) else None
        if person is None:
            self._failed(request, "token")
            why = "This token is unknown, has expired or was revoked."
            return await self._shown(request, next_path, problem=why, status=401)
        session = self._sessions.begin("token", person.id.partition(":")[2])
        return self._in(request, "token", session, next_path)

    async def _by_link(self, request: web.Request) -> web.StreamResponse:
        refused = await self._throttled(request, "link", "/")
        if refused is not None:
            return refused
        if not self._sessions.use_link(request.match_info["link"]):
            self._failed(request, "link")
            why = "This link was used already, or is too old: links are good once, for ten minutes."
            return await self._shown(request, "/", problem=why, status=401)
        return self._in(request, "link", self._sessions.begin("link", LINK.id), "/")

    async def _to_issuer(self, request: web.Request) -> web.StreamResponse:
        oidc = self._oidc_client()
        response = _to("/")
        handshake = self._sessions.put_handshake(response, _next(request.query.get("next", "/")))
        try:
            response.headers["Location"] = await oidc.sign_in_url(handshake)
        except IssuerUnavailable as error:
            log.warning("OIDC sign-in could not begin", why=str(error))
            return await self._shown(request, handshake.next, problem=_AWAY, status=503)
        return response

    async def _from_issuer(self, request: web.Request) -> web.StreamResponse:
        oidc = self._oidc_client()
        handshake = self._sessions.handshake_of(request)
        refused = await self._throttled(request, "oidc", "/" if handshake is None else handshake.next)
        if refused is not None:
            return refused
        issuer = self._settings.oidc.issuer if self._settings.oidc is not None else ""
        query = request.query
        if handshake is None or query.get("state") != handshake.state or query.get("iss", issuer) != issuer:
            self._failed(request, "oidc")
            return await self._shown(request, "/", problem=_LOST, status=401)
        response: web.StreamResponse
        if "code" not in query:
            # An error of the issuer's: `access_denied` and the like. Its text is not ours to show.
            self._failed(request, "oidc")
            response = await self._shown(
                request, handshake.next, problem="The sign-in service did not let you in.", status=401
            )
        else:
            response = await self._redeemed(request, oidc, query["code"], handshake.next)
        self._sessions.drop_handshake(response)
        return response

    async def _redeemed(self, request: web.Request, oidc: Oidc, code: str, next_path: str) -> web.StreamResponse:
        handshake = self._sessions.handshake_of(request)
        if handshake is None:
            return await self._shown(request, next_path, problem=_LOST, status=401)
        try:
            person = await oidc.redeem(code[:4096], handshake)
        except TokenRefused as error:
            self._failed(request, "oidc")
            log.warning("OIDC sign-in refused", why=str(error))
            why = f"The sign-in service's answer can't be used: {error}."
            return await self._shown(request, next_path, problem=why, status=401)
        except IssuerUnavailable as error:
            log.warning("OIDC sign-in could not end", why=str(error))
            return await self._shown(request, next_path, problem=_AWAY, status=503)
        try:
            return self._in(request, "oidc", self._session_of(person), next_path)
        except CookieTooLarge as error:
            self._failed(request, "oidc")
            return await self._shown(request, next_path, problem=f"{str(error).capitalize()}.", status=401)

    def _session_of(self, person: Person) -> Session:
        subject = person.id.partition(":")[2]
        return self._sessions.begin("oidc", subject, person.name, person.role.value, person.orgs)

    async def _out(self, request: web.Request) -> web.StreamResponse:
        response = _to("/sign-in")
        self._sessions.end(response, self._sessions.of(request))
        return response

    def _in(self, request: web.Request, way: str, session: Session, next_path: str) -> web.StreamResponse:
        response = _to(next_path)
        self._sessions.put(response, session)
        self._throttle.succeeded(self._client(request))
        measures.SIGN_INS.labels(way, "ok").inc()
        log.info("signed in", way=way)
        return response

    def _failed(self, request: web.Request, way: str) -> None:
        self._throttle.failed(self._client(request), monotonic())
        measures.SIGN_INS.labels(way, "refused").inc()
        log.warning("sign-in refused", way=way)

    async def _throttled(self, request: web.Request, way: str, next_path: str) -> web.Response | None:
        wait_s = self._throttle.wait_s(self._client(request), monotonic())
        if wait_s <= 0:
            return None
        measures.SIGN_INS.labels(way, "throttled").inc()
        seconds = ceil(wait_s)
        why = f"Too many sign-ins have failed. Please wait {seconds} s, then try again."
        response = await self._shown(request, next_path, problem=why, status=429)
        response.headers["Retry-After"] = str(seconds)
        return response

    async def _shown(
        self, request: web.Request, next_path: str, *, problem: str = "", status: int = 200
    ) -> web.Response:
        with_oidc = self._oidc is not None and self._oidc.can_sign_in
        shown = SignIn(next_path, self._settings.tokens, with_oidc, problem, status)
        renderers = request.app.get(RENDERERS)
        if renderers is None:
            return web.Response(status=status, text=f"{problem or 'Sign in: POST token and next to /sign-in.'}\n")
        response = await renderers.sign_in(request, shown)
        response.set_status(status)
        return response

    def _client(self, request: web.Request) -> str:
        forwarded = request.headers.getall("X-Forwarded-For", [])
        return client_address(request.remote, forwarded, self._settings.trusted_proxies)

    def _oidc_client(self) -> Oidc:
        if self._oidc is None or not self._oidc.can_sign_in:
            raise ApiError(404, "not_found", "Signing in with OpenID Connect is not configured.")
        return self._oidc


def _next(value: object) -> str:
    return value if isinstance(value, str) and is_local_path(value) else "/"


def _to(path: str) -> web.Response:
    return web.Response(status=303, headers={"Location": path})
