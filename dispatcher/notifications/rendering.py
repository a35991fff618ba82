"""Renders messages as e-mails: plain text and HTML from the templates beside this file."""

from datetime import UTC, datetime
from email.headerregistry import Address
from email.message import EmailMessage
from email.policy import SMTP
from email.utils import format_datetime
from typing import Final

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

from dispatcher.notifications.content import Content, clean
from dispatcher.stores.sql.notification_store import Message

MAX_SUBJECT: Final = 150
_PRODUCT: Final = "Feedback dispatcher"


class MailRenderer:
    """Renders e-mails from one sender."""

    def __init__(self, sender: str) -> None:
        self._sender = sender
        self._templates = Environment(
            loader=PackageLoader("dispatcher.notifications"),
            autoescape=select_autoescape(("html",)),
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )

    def render(self, message: Message, content: Content) -> EmailMessage:
        """Returns the e-mail of a message. Repeats of one message have the same Message-ID.

        No header takes a line break: texts are cleaned, and the addresses were checked when the settings were read.
        """
        host = self._sender.rpartition("@")[2]
        mail = EmailMessage(policy=SMTP)
        mail["From"] = Address(_PRODUCT, addr_spec=self._sender)
        mail["To"] = Address(addr_spec=message.recipient)
        mail["Subject"] = clean(content.title, MAX_SUBJECT)
        mail["Date"] = format_datetime(datetime.fromtimestamp(message.created_at, UTC))
        mail["Message-ID"] = f"<{message.id}@{host}>"
        mail["Auto-Submitted"] = "auto-generated"  # RFC 3834: no vacation message answers it
        if content.stop_link:
            mail["List-Unsubscribe"] = f"<{content.stop_link}>"
        values = {"content": content, "product": _PRODUCT}
        name = content.kind
        mail.set_content(self._templates.get_template(f"{name}.txt").render(values))
        mail.add_alternative(self._templates.get_template(f"{name}.html").render(values), subtype="html")
        return mail
