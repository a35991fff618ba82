"""Decides every half minute what is reported, and sends what waits. Part of the history worker."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, contextmanager
from dataclasses import replace
from email.errors import MessageError
from functools import partial
from typing import Final, NoReturn, Self

import structlog

from dispatcher.config.settings import Settings
from dispatcher.config.webhook_lookup import ListWebhooks
from dispatcher.config.webhook_revision import Webhook
from dispatcher.contract.redaction import in_text
from dispatcher.contract.redaction import recipient as masked
from dispatcher.contract.tenant import TenantKey
from dispatcher.errors import ConfigError, DispatcherError, Problem, StoreUnavailable
from dispatcher.notifications.composing import EXPIRY_OF_OPERATOR, Composer, World, decide, planned
from dispatcher.notifications.confirmation import LinkSigner
from dispatcher.notifications.content import as_events, clean, decode
from dispatcher.notifications.expiry import expiries_of_settings, expiries_of_webhook
from dispatcher.notifications.mail import MailSender, NotSent
from dispatcher.notifications.news import Expiry
from dispatcher.notifications.operational_webhook import OperationalWebhook
from dispatcher.notifications.rendering import MailRenderer
from dispatcher.notifications.waiting_counts import WaitingCounts, count_waiting
from dispatcher.stores.sql.audit import AuditLog
from dispatcher.stores.sql.database import Database
from dispatcher.stores.sql.history_states import TenantStates
from dispatcher.stores.sql.notification_store import OPERATOR, Channel, Message, MessageStatus, NotificationStore
from dispatcher.stores.sql.records import AuditAction
from dispatcher.stores.sql.repeating import keep_trying
from dispatcher.tasks import Backoff, cancel_and_wait
from dispatcher.telemetry import metrics
from dispatcher.transport import open_transport

PLAN_EVERY_S: Final = 30.0
SEND_EVERY_S: Final = 5.0
AT_ONCE: Final = 4
"""Messages of a channel that are sent at once."""
CHANNELS: Final[tuple[Channel, ...]] = ("email", "webhook")
AGAIN_S: Final = (30.0, 120.0, 600.0, 1800.0, 3600.0)
"""Waits before another try of a message; the last one repeats."""
GIVE_UP_S: Final = 86_400.0
GRACE_S: Final = 5.0
"""Time that messages which are being sent have to be accepted when the worker is stopped."""
NOTE_FIRST_S: Final = 0.5
"""Wait before it is noted again how sending a message ended, if the database is away. It doubles each time."""
NOTE_LONGEST_S: Final = 5.0
NOTE_WITHIN_S: Final = 3600.0
"""Time after which that is given up: then the message is sent once more."""
EXPIRIES_EVERY_S: Final = 3600.0
HOUSEKEEPING_EVERY_S: Final = 3600.0

log = structlog.get_logger(__name__)


class Notifier:
    """Owns the sending of notifications. An async context manager; `run` is its task."""

    def __init__(
        self,
        settings: Settings,
        states: TenantStates,
        store: NotificationStore,
        webhooks: ListWebhooks,
        audit: AuditLog | None = None,
        count: Callable[[Settings], Awaitable[WaitingCounts | None]] = count_waiting,
        clock: Callable[[], float] = time.time,
        *,
        is_held: Callable[[TenantKey], bool],
    ) -> None:
        """Prepares a notifier without connecting.

        Args:
            audit: records what was sent; None if webhooks are files, because the history store then records it.
            is_held: returns True if a tenant that no webhook in use belongs to may have one that can't be used.
        """
        self._settings = settings
        self._states = states
        self._store = store
        self._webhooks = webhooks
        self._is_held = is_held
        self._audit = audit
        self._count_waiting = count
        self._clock = clock
        self._composer = composer_of(settings)
        smtp = settings.notifications.smtp
        self._mail = None if smtp is None else (MailRenderer(smtp.sender), MailSender(smtp))
        self._webhook: OperationalWebhook | None = None
        self._expiries: dict[TenantKey, tuple[Expiry, ...]] = {}
        self._expiries_at = float("-inf")
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        """Opens the transport.

        Raises:
            ConfigError: a signing secret can't sign.
        """
        webhook = self._settings.notifications.webhook
        if webhook is not None:
            opening = open_transport(self._settings.delivery, self._settings.egress)
            transport = await self._stack.enter_async_context(opening)
            try:
                self._webhook = OperationalWebhook(webhook, transport)
            except ValueError as error:
                await self._stack.aclose()
                raise ConfigError([Problem(str(error), "notifications.webhook.signing")]) from None
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    async def run(self) -> NoReturn:
        """Plans and sends until cancelled. What is being sent then, and not accepted soon, is sent again later."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(_repeat(self.plan_once, PLAN_EVERY_S), name="notification planning")
            for channel in CHANNELS:  # a mail server that hangs must not hold up the other channel
                sending = _repeat(partial(self.send_due, channel), SEND_EVERY_S)
                tasks.create_task(sending, name=f"notification sending: {channel}")
            tasks.create_task(_repeat(self.expire, HOUSEKEEPING_EVERY_S), name="notification retention")
        raise AssertionError("the tasks run until they are cancelled")

    async def plan_once(self) -> int:
        """Stores the messages that are due. Returns their number.

        Raises:
            StoreUnavailable: the database did not answer in time.
        """
        webhooks = self._webhooks()
        if webhooks is None:
            return 0
        reports = await self._states.all(orgs=None)
        if not reports or not all(report.is_current for report in reports.values()):
            return 0  # what is known is old
        by_tenant = {webhook.tenant: webhook for webhook in webhooks}
        world = World(by_tenant, reports, await self._expiries_of(webhooks, EXPIRIES_EVERY_S))
        made = planned(world, await self._store.read(), self._composer, self._clock())
        if made.has_expiries:  # a certificate may have been replaced within the hour
            world = replace(world, expiries=await self._expiries_of(webhooks, 0.0))
        if made.notices:
            world = replace(world, waiting=await self._count_waiting(self._settings))
        changes = await self._store.plan(lambda stored: decide(world, stored, self._composer, self._clock()))
        if changes is not None and changes.messages:
            log.info("notifications wait to be sent", messages=len(changes.messages))
        return 0 if changes is None else len(changes.messages)

    async def expire(self) -> None:
        """Removes old messages, and contacts that no webhook has named for long.

        Raises:
            StoreUnavailable: the database did not answer in time.
        """
        await self._store.expire()
        webhooks = self._webhooks()
        if webhooks is None or self._composer.links is None:  # without its key, a contact that is named can't be found
            return
        named = {
            one.tenant: {self._composer.contact_of(address) for address in one.config.notify.emails} for one in webhooks
        }
        await self._store.note_named(
            lambda tenant, contact: contact in named[tenant] if tenant in named else self._is_held(tenant)
        )

    async def send_due(self, *channels: Channel) -> int:
        """Sends the messages that are due on the channels, one channel after the other, and returns their number.

        Raises:
            StoreUnavailable: the database did not answer in time.
        """
        sent = 0
        for channel in channels:
            while claimed := await self._store.claim(AT_ONCE, channel):
                await self._send_all(claimed)
                sent += len(claimed)
        return sent

    async def _send_all(self, messages: Sequence[Message]) -> None:
        """Sends messages at once. Waits for each of them, also if another one has a bug or the worker is stopped."""
        sending = [asyncio.create_task(self._send_and_log(one), name="notification") for one in messages]
        try:
            await asyncio.wait(sending)
        except asyncio.CancelledError:
            await asyncio.wait(sending, timeout=GRACE_S)
            raise
        finally:
            await cancel_and_wait(*sending)

    async def _send_and_log(self, message: Message) -> None:
        try:
            await self._send(message)
        except DispatcherError as error:
            log.warning("a notification's end was not noted; it may be sent again", problem=str(error)[:300])
        except Exception:
            metrics.ERRORS.labels("notifications").inc()
            log.exception("a notification was not sent because of a bug; it is sent again", kind=message.kind)

    async def _send(self, message: Message) -> None:
        try:
            is_wanted = await self._is_wanted(message)
        except StoreUnavailable as error:  # sent later, it could be one that another worker has taken meanwhile
            metrics.HISTORY_STORE_FAILURES.inc()
            log.warning("a notification waits for the store", kind=message.kind, problem=str(error)[:300])
            return await self._finish(message, "waiting", "the history store did not answer", AGAIN_S[0])
        if not is_wanted:
            log.info("notification is not wanted any more", kind=message.kind, tenant=_shown(message.tenant))
            why = "the contact doesn't want it, or is no longer named"
            is_deleted = self._webhook_of(message.tenant) is None and not self._is_held(message.tenant)
            instead = [] if is_deleted else self._to_operator_instead(message, why)
            return await self._finish(message, "failed", why, instead=instead)
        try:
            await self._deliver(message)
        except NotSent as error:
            await self._note_failure(message, error)
        else:
            self._count_try(message, "sent")
            await self._finish(message, "sent")
            log.info("notification sent", kind=message.kind, channel=message.channel, tenant=_shown(message.tenant))
            await self._record(message)

    async def _is_wanted(self, message: Message) -> bool:
        """Returns False for a message to a contact who has stopped notifications, or is no longer named.

        Raises:
            StoreUnavailable: the database did not answer in time.
        """
        is_to_contact = message.channel == "email" and message.tenant != OPERATOR
        if not is_to_contact or self._composer.links is None:
            return True
        webhook, contact = self._webhook_of(message.tenant), self._composer.contact_of(message.recipient)
        if webhook is None:  # one that can't be used isn't deleted, and named the contact when it could be used last
            is_named = self._is_held(message.tenant)
        else:
            is_named = contact in map(self._composer.contact_of, webhook.config.notify.emails)
        if not is_named or message.kind == "confirm":
            return is_named
        known = (await self._store.contacts_of(message.tenant)).get(contact)
        return known is not None and known.status == "confirmed"

    def _webhook_of(self, tenant: TenantKey) -> Webhook | None:
        """Returns the tenant's webhook in use; None if it has none, or if its webhook can't be used."""
        return next((one for one in self._webhooks() or () if one.tenant == tenant), None)

    async def _deliver(self, message: Message) -> None:
        """Sends a message.

        Raises:
            NotSent: it was not accepted, or can't be sent.
        """
        if message.channel == "webhook":
            if self._webhook is None:
                raise NotSent("notifications.webhook is no longer set", is_final=True)
            with _rendering():
                events = as_events(decode(message.content), message.created_at)
            for event in events:
                await self._webhook.send(f"ntf_{message.id}", event, self._clock())
            return
        if self._mail is None:
            raise NotSent("notifications.smtp is no longer set", is_final=True)
        renderer, sender = self._mail
        with _rendering():
            mail = renderer.render(message, decode(message.content))
        await sender.send(mail)

    async def _note_failure(self, message: Message, error: NotSent) -> None:
        is_over = error.is_final or self._clock() - message.created_at > GIVE_UP_S
        self._count_try(message, "failed" if is_over else "retried")
        log.warning(
            "notification was not sent", kind=message.kind, channel=message.channel, tenant=_shown(message.tenant),
            problem=str(error), is_given_up=is_over,
        )  # fmt: skip
        shown = str(error) if message.tenant == OPERATOR else error.for_tenants
        if is_over:
            await self._finish(message, "failed", shown, instead=self._to_operator_instead(message, str(error)))
        else:
            wait_s = AGAIN_S[min(message.tries, len(AGAIN_S) - 1)]
            await self._finish(message, "waiting", shown, wait_s)

    def _to_operator_instead(self, message: Message, problem: str) -> list[Message]:
        """Returns the messages to the operator for a notice that no contact takes."""
        if message.kind != "notice" or message.channel != "email" or message.tenant == OPERATOR:
            return []
        try:
            content = decode(message.content)
        except ValueError:
            return []
        content.stop_link = ""
        why = clean(f"no contact of the webhook takes it; {masked(message.recipient)}: {problem}")
        for section in content.sections:
            section.facts.append(("Sent to the operator because", why))
        return self._composer.to_operator(content, "notice", message.kinds)

    async def _finish(
        self,
        message: Message,
        status: MessageStatus,
        problem: str = "",
        again_in_s: float | None = None,
        instead: Sequence[Message] = (),
    ) -> None:
        """Notes how sending a message ended, also if the database is away for a while: else it would be sent twice.

        Raises:
            StoreUnavailable: the database was away for an hour.
        """
        backoff, give_up_at = Backoff(NOTE_FIRST_S, NOTE_LONGEST_S), time.monotonic() + NOTE_WITHIN_S
        while True:
            try:
                return await self._store.finish(message, status, problem, again_in_s, instead)
            except StoreUnavailable as error:
                metrics.HISTORY_STORE_FAILURES.inc()
                log.warning("sending notifications waits for the store; kept trying", problem=str(error)[:300])
                if time.monotonic() > give_up_at:
                    raise
            await backoff.wait()

    def _count_try(self, message: Message, result: str) -> None:
        metrics.NOTIFICATIONS.labels(message.channel, result).inc()
        metrics.NOTIFICATION_TRIED.labels(message.channel, result).set(self._clock())

    async def _record(self, message: Message) -> None:
        """Adds a sent message to the audit. A failure is only logged, so that the message isn't sent again."""
        if self._audit is None:
            return
        tenant = None if message.tenant == OPERATOR else message.tenant
        webhook = self._webhook_of(message.tenant)
        source = "" if webhook is None else webhook.source
        try:
            await self._audit.record(
                AuditAction.NOTIFY,
                by="notifications",
                tenant=tenant,
                webhook_id=source.removeprefix("sql:") if source.startswith("sql:") else None,
                details={"kind": message.kind, "news": list(message.kinds), "channel": message.channel},
            )
        except DispatcherError as error:
            metrics.ERRORS.labels("notifications").inc()
            log.warning("a notification is missing in the audit", problem=str(error)[:300])

    async def _expiries_of(
        self, webhooks: Sequence[Webhook], max_age_s: float
    ) -> Mapping[TenantKey, tuple[Expiry, ...]]:
        now = self._clock()
        if now - self._expiries_at >= max_age_s:
            self._expiries = await asyncio.to_thread(_expiries, self._settings, webhooks)
            self._expiries_at = now
        return self._expiries


@contextmanager
def _rendering() -> Iterator[None]:
    """Translates what a message of another version may raise, whose content or recipient this one doesn't accept."""
    try:
        yield
    except (ValueError, LookupError, MessageError) as error:
        why = in_text(clean(str(error), 200))
        raise NotSent(f"can't be rendered: {type(error).__name__}: {why}", is_final=True) from None


_repeat = partial(
    keep_trying,
    component="notifications",
    if_unavailable="notifications wait for the store",
    if_bug="a step of notifications failed because of a bug",
)


def composer_of(settings: Settings) -> Composer:
    """Returns the composer with the settings that messages depend on."""
    key, public_url = settings.notifications.link_key, settings.console.public_url
    links = LinkSigner(key.reveal()) if key is not None and public_url is not None else None
    return Composer(settings.notifications, public_url, links)


def notification_store(settings: Settings, database: Database) -> NotificationStore:
    """Returns the store of messages and contacts in a history database."""
    return NotificationStore(database, keyed=composer_of(settings).keyed)


def _expiries(settings: Settings, webhooks: Sequence[Webhook]) -> dict[TenantKey, tuple[Expiry, ...]]:
    found = {webhook.tenant: expiries_of_webhook(webhook.config) for webhook in webhooks}
    return {tenant: expiries for tenant, expiries in found.items() if expiries} | {
        EXPIRY_OF_OPERATOR: expiries_of_settings(settings)
    }


def _shown(tenant: TenantKey) -> str:
    return "all" if tenant == OPERATOR else str(tenant)
