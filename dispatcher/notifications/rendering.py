"""Renders messages as e-mails: plain text and HTML from the templates beside this file."""

from datetime import UTC, datetime
from email.headerregistry import Address, HeaderRegistry
from email.message import EmailMessage
from email.policy import SMTP, EmailPolicy, Policy
from email.utils import format_datetime
from typing import Final

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

from dispatcher.notifications.content import Content, clean
from dispatcher.stores.sql.notification_store import Message

MAX_SUBJECT: Final = 150
MAX_LINK: Final = 900
"""Characters of a URL in a header, whose line may have 998."""
_PRODUCT: Final = "Feedback dispatcher"


class VerbatimHeader:
    """A field for programs, written on one line as it is.

    Folding would break a long URL or id into encoded words, and take an address out of its quotes.
    """

    max_count = 1
    name: str

    @classmethod
    def parse(cls, value: str, kwds: dict[str, object]) -> None:
        """Takes the value as it is. Called by `email`, as is `fold`."""
        kwds["parse_tree"], kwds["decoded"] = None, value

    def fold(self, *, policy: Policy) -> str:
        """Returns the field as it is sent."""
        return f"{self.name}: {self}{policy.linesep}"


def _policy() -> "EmailPolicy[EmailMessage]":
    """Returns the policy of RFC 5321 with the fields that programs read."""
    registry = HeaderRegistry()
    for name in ("From", "To", "Message-ID", "List-Unsubscribe", "List-Unsubscribe-Post"):
        registry.map_to_type(name, VerbatimHeader)  # type: ignore[arg-type]  # it is mixed into a BaseHeader
    return SMTP.clone(header_factory=registry)


_POLICY: Final = _policy()


def written(address: str) -> str:
    """Returns an address as mail has it: with quotes if it has dots that aren't between other characters (RFC 5321)."""
    name, _, host = address.rpartition("@")
    return f'"{name}"@{host}' if "" in name.split(".") else address


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

        Raises:
            ValueError: the recipient isn't an address.
        """
        host = self._sender.rpartition("@")[2]
        mail = EmailMessage(policy=_POLICY)
        mail["From"], mail["To"] = f"{_PRODUCT} <{written(self._sender)}>", written(message.recipient)
        Address(addr_spec=mail["To"])  # raises for a text that isn't an address
        mail["Subject"] = clean(content.title, MAX_SUBJECT)
        mail["Date"] = format_datetime(datetime.fromtimestamp(message.created_at, UTC))
        mail["Message-ID"] = f"<{message.id}@{host}>"
        mail["Auto-Submitted"] = "auto-generated"  # RFC 3834: no vacation message answers it
        if content.stop_link and len(content.stop_link) <= MAX_LINK:
            mail["List-Unsubscribe"] = f"<{content.stop_link}>"
            mail["List-Unsubscribe-Post"] = "List-Unsubscribe=One-Click"  # RFC 8058
        values = {"content": content, "product": _PRODUCT}
        name = content.kind
        mail.set_content(self._templates.get_template(f"{name}.txt").render(values))
        mail.add_alternative(self._templates.get_template(f"{name}.html").render(values), subtype="html")
        return mail
