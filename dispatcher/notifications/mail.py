"""Sends e-mails: STARTTLS or TLS with a verified certificate, authentication, and a deadline on everything."""

import asyncio
import ssl
from email.message import EmailMessage
from typing import Final

import aiosmtplib

from dispatcher.config.notification_settings import SmtpSettings
from dispatcher.config.secrets import reread
from dispatcher.contract.redaction import in_text
from dispatcher.transport.tls import operator_context

CLOSE_WITHIN_S: Final = 3.0


class NotSent(Exception):
    """A message was not accepted. The text says why, for the operator."""

    def __init__(self, problem: str, *, is_final: bool) -> None:
        super().__init__(problem)
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
        try:
            async with asyncio.timeout(settings.timeout):
                await self._send(mail)
        except TimeoutError:
            raise NotSent(f"{self._where}: no answer within {settings.timeout:g} s", is_final=False) from None
        except aiosmtplib.SMTPRecipientsRefused as error:
            code = error.recipients[0].code if error.recipients else 0
            raise NotSent(f"{self._where} refuses the recipient ({code})", is_final=500 <= code < 600) from None
        except aiosmtplib.SMTPAuthenticationError as error:
            raise NotSent(f"{self._where} refuses username or password ({error.code})", is_final=False) from None
        except aiosmtplib.SMTPResponseException as error:
            raise NotSent(f"{self._where} answers {error.code} {_shown(error.message)}", is_final=False) from None
        except (aiosmtplib.SMTPException, OSError, ValueError) as error:
            raise NotSent(f"{self._where}: {_shown(str(error))}", is_final=False) from None

    @property
    def _where(self) -> str:
        return f"mail server {self._settings.host}:{self._settings.port_in_use}"

    async def _send(self, mail: EmailMessage) -> None:
        settings = self._settings
        context, password = await asyncio.to_thread(self._credentials)
        client = aiosmtplib.SMTP(
            hostname=settings.host,
            port=settings.port_in_use,
            use_tls=settings.security == "tls",
            start_tls=settings.security == "starttls",
            tls_context=context,
            timeout=settings.timeout,
        )
        try:
            await client.connect()
            if settings.username is not None and password is not None:
                await client.login(settings.username, password)
            await client.send_message(mail)
            await _quit(client)
        finally:
            client.close()

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
    except (aiosmtplib.SMTPException, OSError, TimeoutError):
        return


def _shown(text: str) -> str:
    """Returns what a server said, on one line, with addresses masked."""
    return in_text(" ".join(text.split())[:200])
