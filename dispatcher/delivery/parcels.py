"""An event on its way to its endpoint: the parcel, what it carries, and what came of a go at it. Values only."""

import re
from dataclasses import field
from typing import Final, Self

from dispatcher.auth.authenticator import Header
from dispatcher.auth.signatures import Signer
from dispatcher.delivery.slots import Kind, Refusal
from dispatcher.delivery.verdicts import DELIVERED, Judgement, Verdict, reason_of
from dispatcher.events import DeliveryEvent
from dispatcher.outcomes import Attempt, DeadReason, Delivered, ParkReason
from dispatcher.records import Origin, Turn
from dispatcher.transport.request import Headers
from dispatcher.values import fast_value
from dispatcher.webhooks import TenantKey, Webhook

_FIT_FOR_A_HEADER = re.compile(r"[\x21-\x7e]{1,256}")
"""What an event says of itself may not inject a header, nor swell one past what receivers take."""


@fast_value
class Parcel:
    """An event that is some webhook's business, with the body to send.

    Of the event it keeps what every attempt tells again, and no more: many parcels wait.
    """

    webhook_id: str
    event_time: str | None
    traceparent: str | None
    channel: str
    status: str
    """What became of the message."""
    webhook: Webhook
    body: bytes = field(repr=False)
    attempts: int
    """POSTs made before, on earlier hops."""
    kind: Kind
    turn: Turn
    origin: Origin | None = None
    """Where the event first stood: for the attempt log, by which it can be found again."""

    @classmethod
    def of(
        cls, event: DeliveryEvent, webhook: Webhook, body: bytes, attempts: int, kind: Kind, turn: Turn,
        origin: Origin | None = None,
    ) -> Self:  # fmt: skip
        """The parcel of an event."""
        return cls(
            event.webhook_id, event.timestamp, event.traceparent, event.channel, event.status, webhook, body, attempts,
            kind, turn, origin,
        )  # fmt: skip

    @property
    def tenant(self) -> TenantKey:
        return self.webhook.tenant


@fast_value
class NotNow:
    """To be parked."""

    reason: ParkReason
    attempts: int
    """POSTs made so far, over all hops."""
    for_s: float = 0.0
    """Seconds for which it makes no sense to come back."""
    status: int | None = None
    detail: str = ""


@fast_value
class Never:
    """To be dead-lettered."""

    reason: DeadReason
    attempts: int
    status: int | None = None
    detail: str = ""


@fast_value
class Changed:
    """The webhook was edited or removed while the event waited: decide about it again."""

    attempts: int
    """POSTs made so far, over all hops."""


Delivery = Delivered | NotNow | Never | Changed


@fast_value
class Tried:
    """One go at an event: an attempt with its judgement, or the refusal of a slot."""

    number: int
    attempt: Attempt | None = None
    judgement: Judgement | None = None
    refusal: Refusal | None = None
    hold_s: float | None = None
    changed: bool = False
    """The webhook is another by now."""

    @property
    def again_soon(self) -> bool:
        judgement = self.judgement
        soon = judgement is not None and judgement.verdict is Verdict.AGAIN_SOON
        return soon and self.hold_s is None and self.refusal is None and not self.changed

    def concluded(self) -> Delivery:
        """What becomes of the parcel, where this was the last go at it."""
        attempt, judgement = self.attempt, self.judgement
        if self.changed:
            return Changed(self.number)
        if attempt is None or judgement is None:
            refusal = self.refusal or Refusal(ParkReason.LANE_FULL, 0)
            return NotNow(refusal.reason, self.number, refusal.for_s)
        match judgement.verdict:
            case Verdict.DELIVERED:
                return Delivered(self.number)
            case Verdict.DEAD:
                reason = judgement.dead_reason or DeadReason.REJECTED
                return Never(reason, self.number, attempt.status, _told_in_words(attempt))
            case Verdict.SUSPEND:
                return NotNow(ParkReason.SUSPENDED, self.number, 0, attempt.status, _told_in_words(attempt))
            case _:
                hold = self.hold_s or (self.refusal.for_s if self.refusal else 0.0)
                return NotNow(ParkReason.ATTEMPT_FAILED, self.number, hold, attempt.status, _told_in_words(attempt))


GOOD: Final = Tried(1, judgement=DELIVERED)
"""The first attempt, when it delivered: nothing more is asked of it."""


def request_headers(parcel: Parcel, number: int, now: float, signer: Signer | None, token: Header | None) -> Headers:
    """What a request carries beside the tenant's header parameters, in order."""
    timestamp = int(now)
    headers = [("webhook-id", parcel.webhook_id), ("webhook-timestamp", str(timestamp))]
    if signer is not None:
        headers.append(("webhook-signature", signer.sign(parcel.webhook_id, timestamp, parcel.body)))
    headers.append(("webhook-attempt", str(number)))
    if parcel.event_time is not None and _FIT_FOR_A_HEADER.fullmatch(parcel.event_time):
        headers.append(("webhook-event-time", parcel.event_time))
    if parcel.traceparent is not None and _FIT_FOR_A_HEADER.fullmatch(parcel.traceparent):
        headers.append(("traceparent", parcel.traceparent))
    if token is not None:
        headers.append(token)
    return tuple(headers)


def _told_in_words(attempt: Attempt) -> str:
    return attempt.detail or (f"answered {attempt.status}" if attempt.status else reason_of(attempt))
