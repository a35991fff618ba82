"""A mail server and an HTTPS endpoint that keep what they receive."""

import asyncio
import ssl
import warnings
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from email import message_from_bytes, policy
from email.message import EmailMessage
from pathlib import Path
from typing import Any

import trustme
from aiohttp import web
from aiosmtpd.smtp import SMTP, AuthResult, Envelope, Session

USER, PASSWORD = "dispatcher", "canary-mail-password"


@dataclass
class Certificates:
    """An authority of our own, and a certificate of it."""

    ca: Path
    server: ssl.SSLContext


def certificates(directory: Path) -> Certificates:
    authority = trustme.CA()
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("localhost", "127.0.0.1").configure_cert(context)
    path = directory / "ca.pem"
    authority.cert_pem.write_to_path(path)
    return Certificates(path, context)


@dataclass
class MailServer:
    """Takes mail from one user. `answers` are sent in place of 250, one for each message."""

    port: int = 0
    received: list[EmailMessage] = field(default_factory=list)
    envelopes: list[Envelope] = field(default_factory=list)
    sessions: list[bool] = field(default_factory=list)
    """Whether each message came over TLS."""
    answers: list[str] = field(default_factory=list)
    refused: set[str] = field(default_factory=set)
    logins: list[str] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    """Addresses of sender and recipients as the client wrote them."""
    hold: asyncio.Event | None = None
    """If it is set, messages are answered only after it."""

    async def handle_RCPT(self, server: SMTP, session: Session, envelope: Envelope, address: str, _: Any) -> str:
        if address in self.refused:
            return "550 no such mailbox"
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:
        if self.hold is not None:
            await self.hold.wait()
        if self.answers:
            return self.answers.pop(0)
        assert isinstance(envelope.content, bytes)
        mail = message_from_bytes(envelope.content, policy=policy.default)
        assert isinstance(mail, EmailMessage)
        self.received.append(mail)
        self.envelopes.append(envelope)
        self.sessions.append(server.transport.get_extra_info("ssl_object") is not None)
        return "250 OK"

    def authenticate(
        self, _server: SMTP, _session: Session, _envelope: Envelope, _mechanism: str, data: Any
    ) -> AuthResult:
        login, password = data.login.decode(), data.password.decode()
        self.logins.append(login)
        return AuthResult(success=(login, password) == (USER, PASSWORD), handled=False)


@asynccontextmanager
async def mail_server(
    context: ssl.SSLContext, *, implicit: bool, handler: MailServer | None = None
) -> AsyncIterator[MailServer]:
    """A mail server on the loopback that requires TLS and a login."""
    handler = handler or MailServer()

    def protocol() -> SMTP:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that AUTH is allowed without STARTTLS, which implicit TLS has no use for
            return made()

    def made() -> SMTP:
        return Server(
            handler,
            hostname="localhost",
            tls_context=None if implicit else context,
            require_starttls=not implicit,
            auth_required=True,
            auth_require_tls=not implicit,
            authenticator=handler.authenticate,
        )

    class Server(SMTP):
        async def smtp_MAIL(self, arg: str | None) -> None:
            handler.paths.append(str(arg).removeprefix("FROM:").partition(" ")[0])
            await super().smtp_MAIL(arg)

        async def smtp_RCPT(self, arg: str | None) -> None:
            handler.paths.append(str(arg).removeprefix("TO:").partition(" ")[0])
            await super().smtp_RCPT(arg)

    server = await asyncio.get_running_loop().create_server(protocol, "127.0.0.1", 0, ssl=context if implicit else None)
    handler.port = server.sockets[0].getsockname()[1]
    try:
        yield handler
    finally:
        server.close()


@dataclass
class Endpoint:
    """An HTTPS endpoint. `statuses` are answered in place of 204."""

    url: str = ""
    requests: list[tuple[dict[str, str], bytes]] = field(default_factory=list)
    statuses: list[int] = field(default_factory=list)

    async def take(self, request: web.Request) -> web.Response:
        if self.statuses:
            return web.Response(status=self.statuses.pop(0))
        self.requests.append((dict(request.headers), await request.read()))
        return web.Response(status=204)


@asynccontextmanager
async def https_endpoint(context: ssl.SSLContext) -> AsyncIterator[Endpoint]:
    endpoint = Endpoint()
    app = web.Application()
    app.router.add_post("/ops", endpoint.take)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context)
    await site.start()
    endpoint.url = f"https://localhost:{runner.addresses[0][1]}/ops"
    try:
        yield endpoint
    finally:
        await runner.cleanup()
