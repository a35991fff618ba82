"""Sends e-mails: STARTTLS or TLS with a verified certificate, authentication, and a deadline on everything."""

import asyncio
import re
import ssl
from email.message import EmailMessage
from typing import Final

import aiosmtplib
import structlog

from dispatcher.config.notification_settings import SmtpSettings
from dispatcher.config.secrets import reread
from dispatcher.connecting import connect_socket
from dispatcher.contract.redaction import in_text
from dispatcher.notifications.content import clean
from dispatcher.transport.tls import operator_context

CLOSE_WITHIN_S: Final = 3.0
"""Time for the end of a session, after the message was accepted."""

_ENHANCED: Final = re.compile(r"#?(\d\.\d{1,3}\.\d{1,3})(?![\d.])", re.ASCII)
"""The status code of RFC 3463 that follows the code of most answers."""
_NO_SUCH_RECIPIENT: Final = frozenset({"5.1.1", "5.1.2", "5.1.3", "5.1.6", "5.1.10"})
"""Those that concern the recipient's address itself: 5.1.7 and 5.1.8 concern the sender's."""
_NO_SUCH_MAILBOX: Final = frozenset({550, 551, 553})
_ABOUT_US: Final = re.compile(r"relay|authenti|sender|polic|block|listed|spam", re.IGNORECASE)
"""Words of servers that give no status code and refuse the client, for any recipient."""

log = structlog.get_logger(__name__)


_NOT_USABLE: Final = "the mail server can't be used right now"


class NotSent(Exception):
    """A message was not accepted. The text says why, for the operator."""

    def __init__(self, problem: str, *, is_final: bool, where: str = "", for_tenants: str = "") -> None:
        """Creates the error. `problem` follows `where`, which names the server; `for_tenants` replaces both."""
        super().__init__(f"{where}{problem}")
        self.for_tenants = for_tenants or f"the mail server{problem}" if where else problem
        """Message that is safe to show tenants: it reveals nothing about the operator's services."""
        self.is_final = is_final
        """True if another try would end the same way: the recipient is refused."""


class MailSender:
    """Sends one e-mail per connection: notifications are rare."""

    def __init__(self, settings: SmtpSettings) -> None:
        self._settings = settings

    async def send(self, mail: EmailMessage) -> None:
        """Sends an e-mail.

        Raises:
            NotSent: the server can't be reached or didn't take it within `smtp.timeout`.
        """
        settings = self._settings
        client: aiosmtplib.SMTP | None = None
        try:
            async with asyncio.timeout(settings.timeout):
                context, password = await asyncio.to_thread(self._credentials)
                client = self._client(context)
                await self._transmit(client, password, mail)
            await _quit(client)
        except TimeoutError:
            raise self._not_sent(f": no answer within {settings.timeout:g} s") from None
        except aiosmtplib.SMTPRecipientsRefused as error:
            raise self._refusal(error) from None
        except aiosmtplib.SMTPAuthenticationError as error:
            raise self._not_sent(f" refuses username or password ({error.code})", _NOT_USABLE) from None
        except aiosmtplib.SMTPResponseException as error:
            is_answer = error.code > 0  # aiosmtplib gives -1 to what isn't an answer, as one without end
            problem = f" answers {error.code} {_shown(error.message)}" if is_answer else f": {_shown(error.message)}"
            raise self._not_sent(problem) from None
        except (aiosmtplib.SMTPException, OSError, ValueError) as error:
            raise self._not_sent(f": {_shown(str(error))}", _NOT_USABLE) from None
        finally:
            if client is not None:
                client.close()

    @property
    def _where(self) -> str:
        return f"mail server {self._settings.host}:{self._settings.port_in_use}"

    def _not_sent(self, problem: str, for_tenants: str = "") -> NotSent:
        return NotSent(problem, is_final=False, where=self._where, for_tenants=for_tenants)

    def _refusal(self, error: aiosmtplib.SMTPRecipientsRefused) -> NotSent:
        """Returns what the answer to RCPT means: most servers refuse there whatever they don't like, us included."""
        code, text = next(((one.code, one.message) for one in error.recipients), (0, ""))
        answer = f"{code} {_shown(text)}"
        if _is_unknown_recipient(code, text):
            return NotSent(f" refuses the recipient: {answer}", is_final=True, where=self._where)
        return self._not_sent(f" answers {answer}")

    def _client(self, context: ssl.SSLContext | None) -> aiosmtplib.SMTP:
        settings = self._settings
        return aiosmtplib.SMTP(
            hostname=settings.host,
            use_tls=settings.security == "tls",
            start_tls=settings.security == "starttls",
            tls_context=context,
            timeout=settings.timeout,
        )

    async def _transmit(self, client: aiosmtplib.SMTP, password: str | None, mail: EmailMessage) -> None:
        sock = await connect_socket(self._settings.host, self._settings.port_in_use, self._settings.timeout)
        try:
            await client.connect(sock=sock)
        except BaseException:
            sock.close()
            raise
        if self._settings.username is not None and password is not None:
            await client.login(self._settings.username, password)
        # By default it would take the addresses out of their quotes
        await client.send_message(mail, sender=str(mail["From"]), recipients=[str(mail["To"])])

    def _credentials(self) -> tuple[ssl.SSLContext | None, str | None]:
        """Reads CA and password again, so that both can rotate."""
        settings = self._settings
        context = None if settings.security == "none" else operator_context(settings.ca)
        return context, None if settings.password is None else reread(settings.password).reveal_text()


async def _quit(client: aiosmtplib.SMTP) -> None:
    """Ends the session. The message was accepted already, so a failure doesn't matter."""
    try:
        async with asyncio.timeout(CLOSE_WITHIN_S):
            await client.quit()
    except (aiosmtplib.SMTPException, OSError, TimeoutError) as error:
        log.debug("a mail server did not end the session properly", problem=_shown(repr(error)))


def _is_unknown_recipient(code: int, text: str) -> bool:
    """Returns True if another try would end the same way: there is no such address."""
    if enhanced := _ENHANCED.match(text):
        return enhanced[1] in _NO_SUCH_RECIPIENT
    return code in _NO_SUCH_MAILBOX and not _ABOUT_US.search(text)


def _shown(text: str) -> str:
    """Returns what a server said, on one line, with addresses masked."""
    return in_text(clean(text, 200))
