"""Browser sessions: signed cookies and their CSRF tokens.

The cookie contains the person and the expiry, signed with the session key, so that every console with the key accepts
it. The webhook database has the ids of sessions that ended early. The cookie is SameSite=Lax, not Strict: after OIDC
the redirect comes from another site, and browsers would leave a strict cookie out of that navigation. Lax permits
reading only; every change needs a CSRF token besides.
"""

import hashlib
import hmac
import secrets
import time
import zlib
from collections.abc import Callable, Mapping
from typing import Final

import orjson
from aiohttp import web
from pydantic import BaseModel, ConfigDict, JsonValue, ValidationError

from dispatcher.contract import base64url
from dispatcher.errors import DispatcherError
from dispatcher.stores.sql.ended_sessions import EndedSessions

MAX_COOKIE: Final = 4000
"""Bytes; browsers drop a cookie with more than 4,096, its name and attributes counted."""
LINK_LIFE_S: Final = 600.0
"""Seconds for which a sign-in link can be used, once."""
HANDSHAKE_LIFE_S: Final = 600.0
"""Seconds that signing in at the issuer may take."""
MAX_REMEMBERED: Final = 10_000
"""Handshakes that are remembered as used; the oldest are forgotten first."""


class CookieTooLarge(DispatcherError):
    """A session's content does not fit into a cookie."""


class Session(BaseModel):
    """The content of a session cookie."""

    model_config = ConfigDict(frozen=True)

    id: str
    kind: str
    """`token`, `oidc`, `link` or `local`."""
    subject: str
    """The API token's id, or the issuer's `sub`."""
    expires: float
    """Unix seconds; never moved."""
    name: str = ""
    role: str = ""
    """Empty for kind `token`: name, role and organisations are then read from the database."""
    orgs: tuple[str, ...] | None = None


class Handshake(BaseModel):
    """A sign-in at the issuer that has not finished yet."""

    model_config = ConfigDict(frozen=True)

    state: str
    nonce: str
    verifier: str
    next: str
    expires: float


class Sessions:
    """Creates and verifies sessions, links and handshakes, all signed with the session key."""

    def __init__(
        self,
        key: bytes,
        lifetime_s: float,
        ended: EndedSessions,
        *,
        is_https: bool,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._key = key
        self._lifetime_s = lifetime_s
        self._ended = ended
        self._clock = clock
        self._is_https = is_https
        self._used: dict[str, float] = {}  # states of handshakes that were used, with their expiry
        # `__Host-`: only from this host, over https, for every path; no other host of the domain can set one.
        prefix = "__Host-" if is_https else ""
        self.cookie: Final = f"{prefix}dispatcher-session"
        self.handshake_cookie: Final = f"{prefix}dispatcher-sign-in"

    def create(
        self, kind: str, subject: str, name: str = "", role: str = "", orgs: frozenset[str] | None = None
    ) -> Session:
        """Returns a new session with the configured lifetime."""
        return Session(
            id=secrets.token_urlsafe(18),
            kind=kind,
            subject=subject,
            expires=self._clock() + self._lifetime_s,
            name=name,
            role=role,
            orgs=None if orgs is None else tuple(sorted(orgs)),
        )

    async def of(self, request: web.Request) -> Session | None:
        """Returns the session of a request's cookie, or None if it has no valid one.

        Raises:
            StoreUnavailable: the cookie is valid, and it can't be looked up whether its session ended early.
        """
        value = self._opened("session", request.cookies.get(self.cookie, ""))
        try:
            session = Session.model_validate(value)
        except ValidationError:
            return None
        if session.expires <= self._clock() or await self._ended.has(session.id):
            return None
        return session

    def put(self, response: web.StreamResponse, session: Session) -> None:
        """Sets the cookie.

        Raises:
            CookieTooLarge: the cookie is larger than browsers keep.
        """
        text = self._sealed("session", session.model_dump(mode="json"))
        if len(text) > MAX_COOKIE:
            raise CookieTooLarge("the issuer names too many organisations for a browser session: name a few, or *")
        self._set(response, self.cookie, text, session.expires - self._clock())

    async def end(self, response: web.StreamResponse, session: Session | None) -> None:
        """Ends the session: deletes the cookie, and makes every console reject copies of it.

        Raises:
            StoreUnavailable: the session goes on.
        """
        if session is not None:
            await self._ended.add(session.id, session.expires)
        self._drop(response, self.cookie)

    def csrf_token(self, session_id: str) -> str:
        """Returns the CSRF token that forms of this session have to send."""
        return base64url.encode(self._mac("csrf", session_id.encode()))

    # Sign-in links

    def new_link(self) -> str:
        """Returns a token for `/sign-in/link/<token>`. It works once, within `LINK_LIFE_S`, at any console."""
        return self._sealed("link", {"id": secrets.token_urlsafe(18), "expires": self._clock() + LINK_LIFE_S})

    async def use_link(self, text: str) -> bool:
        """Returns True if the link is valid, and invalidates it.

        Raises:
            StoreUnavailable: the link stays valid.
        """
        match self._opened("link", text):
            case {"id": str(link), "expires": float(expires)} if expires > self._clock():
                return await self._ended.add(link, expires)
        return False

    # Signing in at the issuer

    def put_handshake(self, response: web.StreamResponse, next_path: str) -> Handshake:
        """Starts a sign-in at the issuer and stores it in a cookie of its own."""
        state, nonce, verifier = (secrets.token_urlsafe(32) for _ in range(3))
        handshake = Handshake(
            state=state, nonce=nonce, verifier=verifier, next=next_path, expires=self._clock() + HANDSHAKE_LIFE_S
        )
        text = self._sealed("handshake", handshake.model_dump(mode="json"))
        self._set(response, self.handshake_cookie, text, HANDSHAKE_LIFE_S)
        return handshake

    def handshake_of(self, request: web.Request) -> Handshake | None:
        """Returns the handshake that this browser started, or None if there is none or it has expired."""
        try:
            handshake = Handshake.model_validate(
                self._opened("handshake", request.cookies.get(self.handshake_cookie, ""))
            )
        except ValidationError:
            return None
        return handshake if handshake.expires > self._clock() else None

    def use_handshake(self, handshake: Handshake) -> bool:
        """Returns True the first time in this process.

        The issuer redeems a code once; this only keeps a client from making the console send it the code repeatedly.
        """
        now = self._clock()
        if handshake.state in self._used:
            return False
        if len(self._used) >= MAX_REMEMBERED:
            self._used = {state: at for state, at in self._used.items() if at > now}
        while len(self._used) >= MAX_REMEMBERED:
            del self._used[next(iter(self._used))]
        self._used[handshake.state] = handshake.expires
        return True

    def drop_handshake(self, response: web.StreamResponse) -> None:
        self._drop(response, self.handshake_cookie)

    # Signing

    def _mac(self, purpose: str, data: bytes) -> bytes:
        # The purpose is part of the signed data, so that a link isn't a valid session.
        return hmac.digest(self._key, purpose.encode() + b"\0" + data, hashlib.sha256)

    def _sealed(self, purpose: str, value: Mapping[str, JsonValue]) -> str:
        data = zlib.compress(orjson.dumps(value), 9)
        return f"{base64url.encode(data)}.{base64url.encode(self._mac(purpose, data))}"

    def _opened(self, purpose: str, text: str) -> JsonValue:
        data, _, mac = text[: 2 * MAX_COOKIE].partition(".")
        try:
            raw = base64url.decode(data)
            if not hmac.compare_digest(self._mac(purpose, raw), base64url.decode(mac)):
                return None
        except ValueError:
            return None
        value: JsonValue = orjson.loads(zlib.decompress(raw))  # ours: the signature was right
        return value

    def _set(self, response: web.StreamResponse, name: str, value: str, life_s: float) -> None:
        response.set_cookie(
            name, value, max_age=max(0, round(life_s)), path="/", secure=self._is_https, httponly=True, samesite="Lax"
        )

    def _drop(self, response: web.StreamResponse, name: str) -> None:
        response.del_cookie(name, path="/", secure=self._is_https, httponly=True, samesite="Lax")
