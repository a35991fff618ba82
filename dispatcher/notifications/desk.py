"""The console's actions on notifications: send a test, list what was sent, confirm and stop addresses."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal

from dispatcher.config.settings import Settings
from dispatcher.config.webhook_revision import Webhook
from dispatcher.config.webhooks import WebhookConfig
from dispatcher.contract.tenant import TenantKey
from dispatcher.errors import BadLink, NotFound, NotSetUp, TooSoon
from dispatcher.notifications.composing import AskLimits, Composer
from dispatcher.notifications.confirmation import Link, Purpose
from dispatcher.notifications.content import Content, Section, clean, encode
from dispatcher.notifications.news import NewsKind
from dispatcher.notifications.notifier import composer_of
from dispatcher.stores.sql.audit import AuditLog
from dispatcher.stores.sql.contacts import Contacts
from dispatcher.stores.sql.notification_store import OPERATOR, Changes, Message, NotificationStore
from dispatcher.stores.sql.records import AuditAction, Orgs

TESTS_A_MINUTE: Final = 1
TESTS_AN_HOUR: Final = 5
ASK_AGAIN_S: Final = 86_400.0
MAX_ASKS: Final = 3
"""Confirmation messages that one address of one webhook receives in all."""


@dataclass(frozen=True, slots=True)
class ContactStatus:
    """One contact of a webhook."""

    address: str
    status: Literal["new", "asked", "confirmed", "stopped"]
    """`new`: its confirmation message is not on its way yet."""
    changed_at: float | None


class NotificationDesk:
    """The console's side of notifications. The history worker sends what it stores."""

    def __init__(
        self,
        settings: Settings,
        store: NotificationStore,
        audit: AuditLog | None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._composer: Final[Composer] = composer_of(settings)
        self._settings = settings.notifications
        self._store = store
        self._audit = audit
        self._clock = clock

    @property
    def problem(self) -> str | None:
        """Why contacts of webhooks are not notified, for people; None if they are."""
        if self._settings.smtp is None:
            return "No e-mail is sent: the operator sets notifications.smtp."
        if self._composer.links is None:
            return "Contacts can't confirm: the operator sets notifications.link_key and console.public_url."
        return None

    @property
    def reaches_operator(self) -> bool:
        """True if the operator has addresses or an endpoint."""
        return self._composer.reaches_operator

    async def contacts(self, config: WebhookConfig) -> list[ContactStatus]:
        """Returns the contacts of a webhook, in the order of its configuration.

        Raises:
            StoreUnavailable: the database did not answer in time.
        """
        known = await self._store.contacts_of(config.tenant)
        found = []
        for address in config.notify.emails:
            one = known.get(self._composer.contact_of(address))
            found.append(
                ContactStatus(address, "new", None)
                if one is None
                else ContactStatus(address, one.status, one.changed_at)
            )
        return found

    async def recent(
        self, *, orgs: Orgs, tenant: TenantKey | None = None, before: str | None = None, limit: int = 50
    ) -> Sequence[Message]:
        """Returns sent and waiting messages, newest first; see `NotificationStore.recent`.

        Only a caller who sees all organisations learns the address of the operator's endpoint.
        """
        found = await self._store.recent(orgs=orgs, tenant=tenant, before=before, limit=limit)
        if orgs is None:
            return found
        return [one if one.channel == "email" else replace(one, recipient="the operator") for one in found]

    async def send_test(self, config: WebhookConfig | None, by: str) -> int:
        """Sends a test to the confirmed contacts of a webhook, or to the operator if `config` is None.

        Returns:
            The number of messages.

        Raises:
            TooSoon: there was a test a moment ago, or five within the hour.
            NotFound: there is nowhere to send it.
            StoreUnavailable: the database did not answer in time.
        """
        tenant = OPERATOR if config is None else config.tenant
        messages = await self._tests(config, tenant, clean(by, 100), self._clock())
        if not messages:
            raise NotFound(
                "no contact has confirmed its address" if config is not None else "the operator has no address"
            )
        limits = {60.0: TESTS_A_MINUTE, 3600.0: TESTS_AN_HOUR * len(messages)}
        match await self._store.add(Changes({}, [], messages), limits):
            case 60.0:
                raise TooSoon("a test was sent within the last minute: wait a moment")
            case 3600.0:
                raise TooSoon("five tests were sent within the last hour: wait an hour")
        return len(messages)

    async def _tests(self, config: WebhookConfig | None, tenant: TenantKey, by: str, now: float) -> list[Message]:
        title = "A test of notifications"
        if config is None:
            content = Content("test", title, asked_by=by)
            about = [Section(title, NewsKind.TEST.value, advice=f"{by} sent this test.", since=int(now))]
            of_webhook = self._composer.to_webhook(about, "test")
            return [*self._composer.to_operator(content, "test", ("test",)), *of_webhook]
        stored = await self._store.read()
        webhook = Webhook.of(config, "test")
        return [
            Message(
                tenant, "test", ("test",), "email", address,
                encode(Content(
                    "test", title, asked_by=by, stop_link=self._composer.url_of(Purpose.STOP, tenant, address, now)
                )),
                title,
            )
            for address in self._composer.recipients(webhook, stored.contacts)
        ]  # fmt: skip

    async def ask_again(self, config: WebhookConfig, address: str) -> None:
        """Sends the confirmation message to a contact once more.

        Raises:
            NotFound: the webhook has no such contact, or it needs no confirmation.
            TooSoon: it was sent within the last day, or three times already, or a limit of all messages is reached.
            NotSetUp: contacts can't confirm; `problem` says why.
            StoreUnavailable: the database did not answer in time.
        """
        if self.problem is not None:
            raise NotSetUp(self.problem)
        changes = await self._store.plan(lambda stored: self._asking_again(config, address, stored.contacts))
        if changes is None:
            raise TooSoon("other messages are being planned: try again in a moment")

    def _asking_again(self, config: WebhookConfig, address: str, contacts: Contacts) -> Changes:
        contact, now = self._composer.contact_of(address), self._clock()
        known = contacts.get((config.tenant, contact))
        if address not in config.notify.emails or known is None or known.status == "confirmed":
            raise NotFound("there is no such contact that has to confirm")
        if now - known.asked_at < ASK_AGAIN_S:
            raise TooSoon("the last message was sent within a day: look into the spam folder")
        if known.asks >= MAX_ASKS:
            raise TooSoon("three messages were not answered: enter another address")
        if not AskLimits(contacts, now).take(config.tenant, contact):
            raise TooSoon("too many confirmation messages were sent within a day: try again tomorrow")
        message = self._composer.confirmation(Webhook.of(config, "ask"), address, now)
        return Changes({}, [(config.tenant, contact)], [message])

    def link(self, token: str) -> Link:
        """Returns what a link in an e-mail would do, without doing it, because mail scanners open links.

        Raises:
            BadLink: the link can't be used.
        """
        if self._composer.links is None:
            raise BadLink("Such links are switched off: ask the operator.")
        return self._composer.links.link(token, self._clock())

    async def use(self, token: str) -> Link:
        """Does what a link says: confirms an address, or stops its notifications.

        Raises:
            BadLink: the link can't be used.
            StoreUnavailable: the database did not answer in time: try again.
        """
        link = self.link(token)
        is_known = await self._store.set_contact(
            link.tenant,
            self._composer.keyed(link.contact),
            "confirmed" if link.purpose is Purpose.CONFIRM else "stopped",
        )
        if not is_known:
            raise BadLink("This link is of a webhook that doesn't exist any more.")
        if self._audit is not None:
            details = {"contact": link.contact[:12], "purpose": link.purpose.value}
            await self._audit.record(AuditAction.CONTACT, by="a contact", tenant=link.tenant, details=details)
        return link
