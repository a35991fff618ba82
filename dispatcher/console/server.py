"""The console's HTTP server: one application that serves the API and the pages.

A request passes, in this order: request id and access log, compression, error responses, authentication, CSRF
protection; then its handler. Security headers are set when a response is prepared, so that none is sent without them.
"""

import secrets
from collections.abc import Callable
from contextlib import AsyncExitStack
from ipaddress import ip_network
from types import TracebackType
from typing import Final, Self

import structlog
from aiohttp import web

from dispatcher.config.console_settings import ConsoleSettings
from dispatcher.console import api, measures
from dispatcher.console.access import Access
from dispatcher.console.compression import compress
from dispatcher.console.login import Login
from dispatcher.console.login_throttle import LoginThrottle
from dispatcher.console.middleware import SecurityHeaders, answer_errors, observe
from dispatcher.console.oidc import Oidc
from dispatcher.console.pages import assembly
from dispatcher.console.probes import Probes
from dispatcher.console.request_body import MAX_BODY
from dispatcher.console.services import Services
from dispatcher.console.sessions import Sessions
from dispatcher.listener import Listener
from dispatcher.telemetry import metrics

log = structlog.get_logger(__name__)


class ConsoleServer:
    """The console's server. An async context manager: entering starts it, leaving waits for running requests."""

    def __init__(
        self, services: Services, add_pages: Callable[[web.Application, Services], None] = assembly.add_to
    ) -> None:
        """Builds the server without starting it.

        Args:
            add_pages: adds the pages; tests replace it.

        Raises:
            ConfigError: neither tokens nor OIDC are configured, and other hosts can reach the address.
        """
        settings = services.settings.console
        self._settings = settings
        self._services = services
        self._stack = AsyncExitStack()
        self.public_url: Final = public_url_of(settings)
        is_https = self.public_url.startswith("https://")
        self._sessions = Sessions(
            _session_key(settings), settings.session_lifetime, services.ended_sessions, is_https=is_https
        )
        self._oidc = None if settings.oidc is None else Oidc(settings.oidc, f"{self.public_url}/sign-in/oidc/callback")
        self._access = Access(settings, services.tokens, self._sessions, self._oidc, public_url=self.public_url)
        self._probes = Probes(services)
        self._add_pages = add_pages
        self.port = settings.port
        """The port in use once the server has started."""

    def new_sign_in_link(self) -> str:
        """Returns a URL that signs one browser in as admin of all organisations, once, within ten minutes."""
        return f"{self.public_url}/sign-in/link/{self._sessions.new_link()}"

    def drain(self) -> None:
        """Makes /readyz fail while requests are still answered."""
        self._probes.is_draining = True

    def build(self) -> web.Application:
        """Returns the application with middlewares, API and pages."""
        app = web.Application(
            middlewares=[observe, compress, answer_errors, self._access.authenticate, self._access.protect],
            client_max_size=MAX_BODY,
        )
        app.on_response_prepare.append(SecurityHeaders(is_https=self.public_url.startswith("https://")))
        self._probes.add_to(app)
        Login(self._settings, self._access, self._sessions, self._oidc, LoginThrottle()).add_to(app)
        api.add_to(app, self._services, tokens_changed=self._access.invalidate_tokens)
        self._add_pages(app, self._services)
        return app

    async def __aenter__(self) -> Self:
        metrics.initialise()
        measures.initialise()
        if self._access.is_open:
            log.warning("no authentication is configured: every user of this machine is the console's admin")
        async with AsyncExitStack() as stack:
            if self._oidc is not None:
                await stack.enter_async_context(self._oidc)
            drain_s = self._services.settings.delivery.drain_timeout
            host = None if self._settings.host is None else self._settings.host.strip("[]")
            listener = Listener(
                self.build(),
                setting="console",
                host=host,
                port=self._settings.port,
                trusted=[ip_network(block) for block in self._settings.trusted_proxies],
                shutdown_s=drain_s,
            )
            await stack.enter_async_context(listener)
            self.port = listener.port
            self._stack = stack.pop_all()
        log.info("console listens", host=host or "all addresses", port=self.port, url=self.public_url)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._stack.aclose()


def public_url_of(settings: ConsoleSettings) -> str:
    """Returns the URL at which browsers reach the console."""
    host = "localhost" if settings.host is None else settings.host.strip("[]")
    return settings.public_url or f"http://{f'[{host}]' if ':' in host else host}:{settings.port}"


def _session_key(settings: ConsoleSettings) -> bytes:
    if settings.session_key is not None:
        return settings.session_key.reveal()
    log.warning("console.session_key is not set: a restart ends all sessions, and replicas don't share them")
    return secrets.token_bytes(32)
