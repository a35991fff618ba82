"""Signing in and out with a browser: by token, by one-time link, by OIDC.

The sign-in page says why a sign-in failed, without details that would help an attacker. Failures are throttled by
client address and in total.
"""

from math import ceil
from time import monotonic
from typing import Final

import structlog
from aiohttp import web

from dispatcher.config.console_settings import ConsoleSettings
from dispatcher.console import measures
from dispatcher.console.access import LINK, Access, is_local_path
from dispatcher.console.api_errors import ApiError
from dispatcher.console.login_throttle import LoginThrottle, client_address, is_trusted
from dispatcher.console.model import Person
from dispatcher.console.oidc import Oidc, TokenRefused
from dispatcher.console.request_body import MAX_KEPT_BODY, MAX_PUBLIC_BODY, form_body
from dispatcher.console.services import PERSON, RENDERERS, SignIn
from dispatcher.console.sessions import CookieTooLarge, Handshake, Session, Sessions
from dispatcher.errors import IssuerUnavailable

log = structlog.get_logger(__name__)

WARN_EVERY_S: Final = 3600.0

_LOST = "That sign-in took too long, or was begun in another browser. Please begin again."
_AWAY = "The sign-in service does not answer right now. Please try again in a moment."


class Login:
    """The handlers of `/sign-in…` and `/sign-out`."""

    def __init__(
        self, settings: ConsoleSettings, access: Access, sessions: Sessions, oidc: Oidc | None, throttle: LoginThrottle
    ) -> None:
        self._settings = settings
        self._access = access
        self._sessions = sessions
        self._oidc = oidc
        self._throttle = throttle
        self._warned_at: float | None = None

    def add_to(self, app: web.Application) -> None:
        """Adds this module's routes to the console."""
        app.router.add_get("/sign-in", self._page)
        app.router.add_post("/sign-in", self._by_token)
        app.router.add_get("/sign-in/link/{link}", self._by_link, allow_head=False)  # a look must not use it up
        app.router.add_get("/sign-in/oidc", self._to_issuer, allow_head=False)
        app.router.add_get("/sign-in/oidc/callback", self._from_issuer, allow_head=False)
        app.router.add_post("/sign-out", self._sign_out)

    async def _page(self, request: web.Request) -> web.StreamResponse:
        self._client(request)  # warns of a proxy that isn't trusted, before the first failure
        if PERSON in request:
            return _to(_next(request.query.get("next", "/")))
        return await self._respond_page(
            request, _next(request.query.get("next", "/")), has_ended="ended" in request.query
        )

    async def _by_token(self, request: web.Request) -> web.StreamResponse:
        form = await form_body(request, before_sign_in=MAX_KEPT_BODY if "kept" in request.query else MAX_PUBLIC_BODY)
        next_path, kept = _next(form.get("next", "/")), form.get("kept", "")
        # Looked at before the throttle: failures of others at the same address never refuse a token that holds.
        person = await self._access.person_of_token(form.get("token", "").strip())
        if person is None:
            why = "This token is unknown, has expired or was revoked."
            return await self._respond_refused(request, "token", next_path, why, kept)
        session = self._sessions.create("token", person.id.partition(":")[2])
        return self._finish_sign_in(request, "token", session, next_path, kept)

    async def _by_link(self, request: web.Request) -> web.StreamResponse:
        if not await self._sessions.use_link(request.match_info["link"]):
            why = "This link was used already, or is too old: links are good once, for ten minutes."
            return await self._respond_refused(request, "link", "/", why)
        return self._finish_sign_in(request, "link", self._sessions.create("link", LINK.id), "/")

    async def _to_issuer(self, request: web.Request) -> web.StreamResponse:
        oidc = self._oidc_client()
        response = _to("/")
        handshake = self._sessions.put_handshake(response, _next(request.query.get("next", "/")))
        try:
            response.headers["Location"] = await oidc.sign_in_url(handshake)
        except IssuerUnavailable as error:
            log.warning("OIDC sign-in could not begin", why=str(error))
            return await self._respond_page(request, handshake.next, problem=_AWAY, status=503)
        return response

    async def _from_issuer(self, request: web.Request) -> web.StreamResponse:
        oidc = self._oidc_client()
        handshake = self._sessions.handshake_of(request)
        issuer = self._settings.oidc.issuer if self._settings.oidc is not None else ""
        query = request.query
        is_ours = handshake is not None and query.get("state") == handshake.state and query.get("iss", issuer) == issuer
        # A handshake is redeemed once, so that a client can't make the console send the issuer one code after another.
        if handshake is None or not is_ours or not self._sessions.use_handshake(handshake):
            return await self._respond_refused(request, "oidc", "/", _LOST)
        response: web.StreamResponse
        if "code" not in query:
            # An error of the issuer's: `access_denied` and the like. Its text is not ours to show.
            why = "The sign-in service did not let you in."
            response = await self._respond_refused(request, "oidc", handshake.next, why)
        else:
            response = await self._redeem(request, oidc, query["code"], handshake)
        self._sessions.drop_handshake(response)
        return response

    async def _redeem(self, request: web.Request, oidc: Oidc, code: str, handshake: Handshake) -> web.StreamResponse:
        next_path = handshake.next
        try:
            person = await oidc.redeem(code[:4096], handshake)
        except TokenRefused as error:
            log.warning("OIDC sign-in refused", why=str(error))
            return await self._respond_refused(
                request, "oidc", next_path, f"The sign-in service's answer can't be used: {error}."
            )
        except IssuerUnavailable as error:
            log.warning("OIDC sign-in could not end", why=str(error))
            return await self._respond_page(request, next_path, problem=_AWAY, status=503)
        try:
            return self._finish_sign_in(request, "oidc", self._session_of(person), next_path)
        except CookieTooLarge as error:
            return await self._respond_refused(request, "oidc", next_path, f"{str(error).capitalize()}.")

    def _session_of(self, person: Person) -> Session:
        subject = person.id.partition(":")[2]
        return self._sessions.create("oidc", subject, person.name, person.role.value, person.orgs)

    async def _sign_out(self, request: web.Request) -> web.StreamResponse:
        response = _to("/sign-in")
        await self._sessions.end(response, await self._sessions.of(request))
        return response

    def _finish_sign_in(
        self, request: web.Request, way: str, session: Session, next_path: str, kept: str = ""
    ) -> web.StreamResponse:
        renderers = request.app.get(RENDERERS)
        response = renderers.continue_form(request, kept) if kept and renderers is not None else _to(next_path)
        self._sessions.put(response, session)
        self._throttle.succeeded(self._client(request))
        measures.SIGN_INS.labels(way, "ok").inc()
        log.info("signed in", way=way)
        return response

    async def _respond_refused(
        self, request: web.Request, way: str, next_path: str, why: str, kept: str = ""
    ) -> web.Response:
        """Responds to a failed sign-in: 401, or 429 while the client's address is throttled."""
        client, now = self._client(request), monotonic()
        wait_s = self._throttle.wait_s(client, now)
        if wait_s <= 0:
            self._throttle.failed(client, now)
            measures.SIGN_INS.labels(way, "refused").inc()
            log.warning("sign-in refused", way=way)
            return await self._respond_page(request, next_path, problem=why, status=401, kept=kept)
        measures.SIGN_INS.labels(way, "throttled").inc()
        seconds = ceil(wait_s)
        why = f"Too many sign-ins have failed. Please wait {seconds} s, then try again."
        response = await self._respond_page(request, next_path, problem=why, status=429, kept=kept)
        response.headers["Retry-After"] = str(seconds)
        return response

    async def _respond_page(
        self,
        request: web.Request,
        next_path: str,
        *,
        problem: str = "",
        status: int = 200,
        kept: str = "",
        has_ended: bool = False,
    ) -> web.Response:
        with_oidc = self._oidc is not None and self._oidc.can_sign_in
        shown = SignIn(next_path, self._settings.tokens, with_oidc, problem, status, kept, has_ended)
        renderers = request.app.get(RENDERERS)
        if renderers is None:
            return web.Response(status=status, text=f"{problem or 'Sign in: POST token and next to /sign-in.'}\n")
        response = await renderers.sign_in(request, shown)
        response.set_status(status)
        return response

    def _client(self, request: web.Request) -> str:
        forwarded = request.headers.getall("X-Forwarded-For", [])
        trusted = self._settings.trusted_proxies
        if forwarded and not is_trusted(request.remote, trusted):
            self._warn_of_proxy()
        return client_address(request.remote, forwarded, trusted)

    def _warn_of_proxy(self) -> None:
        """Logs, at most once an hour, that X-Forwarded-For of an untrusted proxy is ignored."""
        now = monotonic()
        if self._warned_at is None or now - self._warned_at >= WARN_EVERY_S:
            self._warned_at = now
            log.warning(
                "X-Forwarded-For from a peer that console.trusted_proxies doesn't name is ignored: all clients of a "
                "proxy share one count of failed sign-ins and one share of connections; set it to the proxy's addresses"
            )

    def _oidc_client(self) -> Oidc:
        if self._oidc is None or not self._oidc.can_sign_in:
            raise ApiError(404, "not_found", "Signing in with OpenID Connect is not configured.")
        return self._oidc


def _next(value: object) -> str:
    return value if isinstance(value, str) and is_local_path(value) else "/"


def _to(path: str) -> web.Response:
    return web.Response(status=303, headers={"Location": path})
