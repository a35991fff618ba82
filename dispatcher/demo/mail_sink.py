"""The mail server of the demo: takes every e-mail on the loopback, and shows the last ones on a page."""

import asyncio
import html
import re
import time
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from email import message_from_bytes, policy
from typing import Final

from aiohttp import web
from aiosmtpd.smtp import SMTP, Envelope, Session

HOST: Final = "127.0.0.1"
_KEPT: Final = 50
_LINK: Final = re.compile(r"https?://[^\s<>\"]+")
_PAGE: Final = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>E-mails of the demo</title>
<style>body{{font:16px sans-serif;margin:2rem auto;max-width:50rem;padding:0 1rem}}pre{{white-space:pre-wrap}}
article{{border:1px solid #767676;border-radius:6px;margin:1rem 0;padding:0 1rem}}</style>
<main><h1>E-mails of the demo</h1><p>Nothing leaves this machine. The last {kept} e-mails, the newest first; reload the
page for newer ones.</p>{mails}</main></html>"""
_HEADERS: Final = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'",
    "Referrer-Policy": "no-referrer",
}


@dataclass(frozen=True, slots=True)
class ReceivedMail:
    """One e-mail."""

    at: float
    """Unix seconds."""
    recipients: tuple[str, ...]
    subject: str
    text: str


class MailSink:
    """Keeps the last e-mails that were sent to it."""

    def __init__(self) -> None:
        self._mails: deque[ReceivedMail] = deque(maxlen=_KEPT)

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:  # noqa: N802, ARG002  (aiosmtpd's)
        """Accepts an e-mail."""
        content = envelope.content or b""
        mail = message_from_bytes(content if isinstance(content, bytes) else content.encode(), policy=policy.default)
        body = mail.get_body(("plain",))
        text = "" if body is None else body.get_content()
        self._mails.appendleft(ReceivedMail(time.time(), tuple(envelope.rcpt_tos), str(mail["Subject"]), text))
        return "250 OK"

    async def show(self, _: web.Request) -> web.Response:
        """Answers with the page."""
        mails = "".join(map(_article, self._mails)) or "<p>No e-mail was sent yet.</p>"
        return web.Response(text=_PAGE.format(kept=_KEPT, mails=mails), content_type="text/html", headers=_HEADERS)


def _article(mail: ReceivedMail) -> str:
    at = time.strftime("%H:%M:%S", time.localtime(mail.at))
    text, end = "", 0
    for link in _LINK.finditer(mail.text):
        address = html.escape(link[0])
        text += html.escape(mail.text[end : link.start()]) + f'<a href="{address}" target="_blank">{address}</a>'
        end = link.end()
    text += html.escape(mail.text[end:])
    about = html.escape(f"{at} to {', '.join(mail.recipients)}")
    return f"<article><h2>{html.escape(mail.subject)}</h2><p>{about}</p><pre>{text}</pre></article>"


@asynccontextmanager
async def mail_sink(smtp_port: int, page_port: int) -> AsyncIterator[str]:
    """Listens for e-mails, and yields the URL of the page that shows them."""
    sink = MailSink()
    app = web.Application()
    app.router.add_get("/", sink.show)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.5)
    await runner.setup()
    try:
        await web.TCPSite(runner, HOST, page_port).start()
        server = await asyncio.get_running_loop().create_server(lambda: SMTP(sink, hostname=HOST), HOST, smtp_port)
        async with server:
            yield f"http://{HOST}:{page_port}/"
    finally:
        await runner.cleanup()
