"""Composes messages: decides who receives what, and which contacts receive a confirmation message. Pure."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from dispatcher.config.notification_settings import NotificationSettings
from dispatcher.config.webhook_revision import Webhook
from dispatcher.contract.redaction import contact_of
from dispatcher.contract.tenant import TenantKey
from dispatcher.notifications.confirmation import Link, LinkSigner, Purpose
from dispatcher.notifications.content import (
    Content,
    Known,
    Section,
    clean,
    content_of,
    encode,
    fleet_section,
    section,
)
from dispatcher.notifications.memory import decode_fleet_memory, decode_memory, encode_memory
from dispatcher.notifications.news import Expiry, Notice, Subject
from dispatcher.notifications.planning import Pace, Plan, plan
from dispatcher.notifications.waiting_counts import WaitingCounts
from dispatcher.stores.sql.contacts import Contacts
from dispatcher.stores.sql.history_states import StateReport
from dispatcher.stores.sql.notification_store import OPERATOR, Changes, Message, Stored

DAY_S: Final = 86_400.0
ASKS_A_TENANT: Final = 20
"""Confirmation messages that the contacts of one webhook cause in a day."""
ASKS_AN_ADDRESS: Final = 3
"""Confirmation messages that one address receives in a day, whatever webhooks name it."""
ASKS_IN_ALL: Final = 500
"""Confirmation messages in an hour."""
EXPIRY_OF_OPERATOR: Final = TenantKey("", "operator")
"""Under this key it is remembered which of the operator's own certificates were reported."""


@dataclass(frozen=True, slots=True)
class Composer:
    """The settings that messages depend on."""

    settings: NotificationSettings
    public_url: str | None
    links: LinkSigner | None
    """None without a key or a public URL: then contacts can't confirm."""

    @property
    def reaches_operator(self) -> bool:
        """True if the operator has addresses or an endpoint."""
        return self.settings.webhook is not None or bool(self.settings.smtp and self.settings.operator)

    def keyed(self, contact: str) -> str:
        """Returns the form of a contact's hash that is stored."""
        return contact if self.links is None else self.links.keyed(contact)

    def contact_of(self, address: str) -> str:
        """Returns the stored form of an address of a contact."""
        return self.keyed(contact_of(address))

    def recipients(self, webhook: Webhook | None, contacts: Contacts) -> list[str]:
        """Returns the confirmed addresses of a webhook, each once."""
        if webhook is None or self.settings.smtp is None or self.links is None:
            return []
        found: dict[str, str] = {}
        for address in webhook.config.notify.emails:
            contact = self.contact_of(address)
            known = contacts.get((webhook.tenant, contact))
            if known is not None and known.status == "confirmed":
                found.setdefault(contact, address)
        return list(found.values())

    def url_of(self, purpose: Purpose, tenant: TenantKey, address: str, now: float) -> str:
        """Returns the link that confirms an address or stops its notifications; empty if there can be none."""
        if self.links is None or self.public_url is None:
            return ""
        token = self.links.token(Link(purpose, tenant, self.contact_of(address)), now)
        return f"{self.public_url}/notifications/link?token={token}"

    def to_operator(self, content: Content, kind: str, kinds: tuple[str, ...]) -> list[Message]:
        """Returns the e-mails to the operator's addresses, one to each."""
        if self.settings.smtp is None:
            return []
        text, addresses = encode(content), {contact_of(address): address for address in self.settings.operator}
        return [Message(OPERATOR, kind, kinds, "email", one, text, content.title) for one in addresses.values()]

    def to_webhook(self, sections: Sequence[Section], kind: str = "notice") -> list[Message]:
        """Returns an operational webhook for each section: if one fails, only that one is repeated."""
        webhook = self.settings.webhook
        if webhook is None:
            return []
        return [
            Message(
                TenantKey(one.org, one.sandbox), kind, (one.kind,), "webhook", _origin(webhook.url),
                encode(Content(kind, one.title, [one])), one.title,
            )
            for one in sections
        ]  # fmt: skip

    def confirmation(self, webhook: Webhook, address: str, now: float) -> Message:
        """Returns the message that asks an address to confirm."""
        tenant, name = webhook.tenant, clean(webhook.config.name, 100)
        title = "Confirm this address for notifications"
        about = Section(title, "confirm", clean(tenant.org), clean(tenant.sandbox), name)
        content = Content("confirm", title, [about], link=self.url_of(Purpose.CONFIRM, tenant, address, now))
        return Message(tenant, "confirm", (), "email", address, encode(content), title)


@dataclass(frozen=True, slots=True)
class World:
    """Everything that messages are composed from."""

    webhooks: Mapping[TenantKey, Webhook]
    reports: Mapping[TenantKey, StateReport]
    expiries: Mapping[TenantKey, tuple[Expiry, ...]] = field(default_factory=dict)
    """Of the webhooks, and of the operator under `EXPIRY_OF_OPERATOR`."""
    waiting: WaitingCounts | None = None


def decide(world: World, stored: Stored, composer: Composer, now: float) -> Changes:
    """Decides what is sent now. The caller stores all of it in one transaction."""
    made = planned(world, stored, composer, now)
    messages = []
    to_operator: list[Section] = []
    for notice in made.notices:
        sections = _sections(notice, world, composer, now)
        messages += composer.to_webhook(sections)
        recipients = composer.recipients(world.webhooks.get(notice.tenant), stored.contacts)
        messages += [_mail(notice, sections, address, composer, now) for address in recipients]
        if not recipients:
            to_operator += sections
    of_fleet = [fleet_section(news, composer.public_url, now) for news in made.fleet]
    messages += composer.to_webhook(of_fleet)
    if of_fleet or to_operator:
        content = content_of([*of_fleet, *to_operator])
        kinds = tuple(dict.fromkeys(one.kind for one in (*of_fleet, *to_operator)))
        messages += composer.to_operator(content, "notice", kinds)
    asked, asking = _confirmations(world, stored, composer, now)
    memories = {tenant: encode_memory(memory) for tenant, memory in made.memories.items()}
    fleet = encode_memory(made.fleet_memory)
    if fleet != stored.memories.get(OPERATOR):
        memories[OPERATOR] = fleet
    return Changes(memories, asked, [*messages, *asking])


def planned(world: World, stored: Stored, composer: Composer, now: float) -> Plan:
    """Returns what has to be reported now, before it is put into words."""
    settings = composer.settings
    subjects = []
    for tenant, report in world.reports.items():
        webhook = world.webhooks.get(tenant)
        if webhook is not None:
            has_contacts = bool(composer.recipients(webhook, stored.contacts))
            subjects.append(
                Subject(
                    tenant, report.state, report.since, report.dead_at, report.own_failure_at,
                    world.expiries.get(tenant, ()), webhook.revision, has_contacts,
                )
            )  # fmt: skip
    memories = {tenant: decode_memory(data) for tenant, data in stored.memories.items() if tenant != OPERATOR}
    fleet = decode_fleet_memory(stored.memories.get(OPERATOR, b""))
    pace = Pace(settings.every, settings.settle, settings.expires_within)
    own = world.expiries.get(EXPIRY_OF_OPERATOR, ())
    return plan(subjects, memories, fleet, now, pace, own, reaches_operator=composer.reaches_operator)


def _sections(notice: Notice, world: World, composer: Composer, now: float) -> list[Section]:
    webhook = world.webhooks.get(notice.tenant)
    known = Known(
        None if webhook is None else webhook.config,
        world.reports.get(notice.tenant),
        None if world.waiting is None else world.waiting.by_tenant.get(notice.tenant, 0),
        world.waiting is not None and world.waiting.is_at_least,
    )
    return [section(notice.tenant, news, known, composer.public_url, now) for news in notice.news]


def _mail(notice: Notice, sections: Sequence[Section], address: str, composer: Composer, now: float) -> Message:
    content = content_of(sections)
    content.stop_link = composer.url_of(Purpose.STOP, notice.tenant, address, now)
    kinds = tuple(news.kind.value for news in notice.news)
    return Message(notice.tenant, "notice", kinds, "email", address, encode(content), content.title)


class AskLimits:
    """Limits on confirmation messages, so that tenants can't have us write to other people's addresses."""

    def __init__(self, contacts: Contacts, now: float) -> None:
        self._by_tenant: Counter[TenantKey] = Counter()
        self._by_contact: Counter[str] = Counter()
        self._in_all = 0
        for (tenant, contact), known in contacts.items():
            if now - known.asked_at < DAY_S:
                self._by_tenant[tenant] += 1
                self._by_contact[contact] += 1
                self._in_all += now - known.asked_at < DAY_S / 24

    def take(self, tenant: TenantKey, contact: str) -> bool:
        """Counts one more message, and returns True, unless it would exceed a limit."""
        is_too_much = self._by_tenant[tenant] >= ASKS_A_TENANT or self._by_contact[contact] >= ASKS_AN_ADDRESS
        if is_too_much or self._in_all >= ASKS_IN_ALL:
            return False
        self._by_tenant[tenant] += 1
        self._by_contact[contact] += 1
        self._in_all += 1
        return True


def _confirmations(
    world: World, stored: Stored, composer: Composer, now: float
) -> tuple[list[tuple[TenantKey, str]], list[Message]]:
    """Asks new contacts to confirm."""
    if composer.links is None or composer.settings.smtp is None:
        return [], []
    limits = AskLimits(stored.contacts, now)
    asked: list[tuple[TenantKey, str]] = []
    messages: list[Message] = []
    for tenant, webhook in world.webhooks.items():
        for address in webhook.config.notify.emails:
            contact = composer.contact_of(address)
            is_known = (tenant, contact) in stored.contacts or (tenant, contact) in asked
            if not is_known and limits.take(tenant, contact):
                asked.append((tenant, contact))
                messages.append(composer.confirmation(webhook, address, now))
    return asked, messages


def _origin(url: str) -> str:
    return "/".join(url.split("/", 3)[:3])
