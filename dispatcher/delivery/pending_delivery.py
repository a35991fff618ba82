"""An event on its way to its endpoint, and the result of an attempt. Values only."""

import re
from dataclasses import field
from typing import Final

from dispatcher.auth.signatures import Signer
from dispatcher.config.webhook_revision import Webhook
from dispatcher.contract.events import DeliveryEvent
from dispatcher.contract.history import EventIds
from dispatcher.contract.outcomes import Attempt, DeadReason, Delivered, ParkReason
from dispatcher.contract.records import Origin, ProcessingAttempt
from dispatcher.contract.tenant import TenantKey
from dispatcher.contract.values import HttpHeader, HttpHeaders, slots_dataclass
from dispatcher.delivery.permits import LaneRefusal, Priority
from dispatcher.delivery.verdicts import DELIVERED, Judgement, Verdict, reason_of

_FIT_FOR_A_HEADER: Final = re.compile(r"[\x21-\x7e]{1,256}")
"""Values of the event that are safe in a header: nothing that injects one, or makes it too long for receivers."""
_TRACEPARENT: Final = re.compile(
    r"(?!ff)([0-9a-f]{2})-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}(-[\x21-\x7e]{1,200})?"
)
"""A version after 00 begins with the fields of version 00, and more may follow."""


@slots_dataclass
class PendingDelivery:
    """An event that a webhook wants, with the body to send.

    It keeps only what every attempt of the event repeats, because many of them wait in memory.
    """

    webhook_id: str
    event_time: str | None
    traceparent: str | None
    channel: str
    status: str
    """The message's status, such as `delivered` or `bounce`."""
    webhook: Webhook
    body: bytes = field(repr=False)
    attempts: int
    """POSTs made before, on earlier hops."""
    priority: Priority
    processing: ProcessingAttempt
    origin: Origin | None = None
    """Place of the event's record in Kafka before any hop."""
    refusals: int = 0
    """POSTs before whose payload the endpoint refused."""
    first_seen: float | None = None
    """Unix seconds from which the age limit counts; None if it counts from now."""
    ids: EventIds | None = None
    """The event's ids for the history; None without a history."""
    has_waited: bool = False
    """The event was parked, held or sent again before."""

    @staticmethod
    def of(
        event: DeliveryEvent, webhook: Webhook, body: bytes, attempts: int, priority: Priority,
        processing: ProcessingAttempt, origin: Origin | None = None, refusals: int = 0, first_seen: float | None = None,
        ids: EventIds | None = None, *, has_waited: bool = False,
    ) -> "PendingDelivery":  # fmt: skip
        """Returns the pending delivery of an event."""
        return PendingDelivery(
            event.webhook_id, event.timestamp, event.traceparent, event.channel, event.status, webhook, body, attempts,
            priority, processing, origin, refusals, first_seen, ids, has_waited,
        )  # fmt: skip

    @property
    def tenant(self) -> TenantKey:
        return self.webhook.tenant


@slots_dataclass
class Deferred:
    """The event has to be parked."""

    reason: ParkReason
    attempts: int
    """POSTs made so far, over all hops."""
    for_s: float = 0.0
    """Seconds for which it makes no sense to come back."""
    status: int | None = None
    detail: str = ""
    payload_refused: bool = False
    """The endpoint refused the payload: such an event ends within minutes."""


@slots_dataclass
class Undeliverable:
    """The event has to be dead-lettered."""

    reason: DeadReason
    attempts: int
    status: int | None = None
    detail: str = ""


@slots_dataclass
class WebhookChanged:
    """The webhook was edited or removed while the event waited, so the event has to be decided again."""

    attempts: int
    """POSTs made so far, over all hops."""


Delivery = Delivered | Deferred | Undeliverable | WebhookChanged


@slots_dataclass
class AttemptResult:
    """Result of trying to send an event: an attempt with its judgement, or the refusal of a permit."""

    number: int
    attempt: Attempt | None = None
    judgement: Judgement | None = None
    refusal: LaneRefusal | None = None
    hold_s: float | None = None
    changed: bool = False
    """The webhook was edited since, or enabled by hand: the event is decided again."""

    @property
    def is_retried_soon(self) -> bool:
        judgement = self.judgement
        soon = judgement is not None and judgement.verdict is Verdict.RETRY_SOON
        return soon and self.hold_s is None and self.refusal is None and not self.changed

    @property
    def is_final(self) -> bool:
        """True if an attempt was made that no quick try follows: its outcome is known."""
        return self.attempt is not None and not self.is_retried_soon

    def as_delivery(self) -> Delivery:
        """Returns what happens to the event if this was its last attempt for now."""
        attempt, judgement = self.attempt, self.judgement
        if self.changed:
            return WebhookChanged(self.number)
        if attempt is None or judgement is None:
            refusal = self.refusal or LaneRefusal(ParkReason.LANE_FULL, 0)
            return Deferred(refusal.reason, self.number, refusal.for_s)
        match judgement.verdict:
            case Verdict.DELIVERED:
                return Delivered(self.number)
            case Verdict.DEAD:
                reason = judgement.dead_reason or DeadReason.REJECTED
                return Undeliverable(reason, self.number, attempt.status, _in_words(attempt))
            case Verdict.DISABLE_ENDPOINT:
                return Deferred(ParkReason.SUSPENDED, self.number, 0, attempt.status, _in_words(attempt))
            case _:
                hold = self.hold_s or (self.refusal.for_s if self.refusal else 0.0)
                return Deferred(
                    ParkReason.ATTEMPT_FAILED, self.number, hold, attempt.status, _in_words(attempt),
                    judgement.payload_refused,
                )  # fmt: skip


GOOD: Final = AttemptResult(1, judgement=DELIVERED)
"""The result of a first attempt that delivered; shared, because it carries nothing else."""


def request_headers(
    pending: PendingDelivery, number: int, now: float, signer: Signer | None, token: HttpHeader | None
) -> HttpHeaders:
    """Returns a request's headers in order, without the tenant's header parameters."""
    timestamp = int(now)
    headers = [("webhook-id", pending.webhook_id), ("webhook-timestamp", str(timestamp))]
    if signer is not None:
        headers.append(("webhook-signature", signer.sign(pending.webhook_id, timestamp, pending.body)))
    headers.append(("webhook-attempt", str(number)))
    if pending.event_time is not None and _FIT_FOR_A_HEADER.fullmatch(pending.event_time):
        headers.append(("webhook-event-time", pending.event_time))
    if pending.traceparent is not None and is_traceparent(pending.traceparent):
        headers.append(("traceparent", pending.traceparent))
    if token is not None:
        headers.append(token)
    return tuple(headers)


def is_traceparent(text: str) -> bool:
    """Returns True if the text is a valid `traceparent` (W3C Trace Context, section 3.2); others are dropped."""
    match = _TRACEPARENT.fullmatch(text)
    return match is not None and (match[1] != "00" or match[2] is None)


def _in_words(attempt: Attempt) -> str:
    return attempt.detail or (f"answered {attempt.status}" if attempt.status else reason_of(attempt))
