"""Models of notifications and their contacts."""

from typing import Annotated, Literal

from pydantic import StringConstraints

from dispatcher.console.api.models.base import CursorQuery, RequestModel, ResponseModel, TenantFilter
from dispatcher.console.model import Time


class ContactModel(ResponseModel):
    """A contact of a webhook; `notify.emails` of the configuration has the addresses."""

    address: str
    """Masked for viewers."""
    status: Literal["new", "asked", "confirmed", "stopped"]
    """`new`: the confirmation message is not sent yet. `asked`: it waits for an answer. Only `confirmed` contacts are
    notified."""
    changed_at: Time | None


class ContactList(ResponseModel):
    """The contacts of a webhook, in the order of its configuration."""

    items: tuple[ContactModel, ...]
    problem: str | None
    """Why contacts are not notified at all; null if they are."""


class ContactOrder(RequestModel):
    """Names a contact of the webhook."""

    address: Annotated[str, StringConstraints(min_length=3, max_length=320)]


class NotificationList(TenantFilter, CursorQuery):
    """Query parameters of the list of notifications."""


class NotificationModel(ResponseModel):
    """A message that was sent, or waits."""

    id: str
    org: str | None
    """null if it concerns more than one webhook."""
    sandbox: str | None
    kind: str
    """`notice`, `confirm` or `test`."""
    channel: Literal["email", "webhook"]
    recipient: str
    """Masked."""
    title: str
    status: Literal["waiting", "sending", "sent", "failed", "unknown"]
    tries: int
    problem: str
    created_at: Time
    changed_at: Time


class NotificationPage(ResponseModel):
    """A page of notifications, the newest first."""

    items: tuple[NotificationModel, ...]
    next: str | None
    """Path of the next page; null at the end. Also in the header Link."""


class SentTests(ResponseModel):
    """How many test messages are on their way."""

    messages: int
