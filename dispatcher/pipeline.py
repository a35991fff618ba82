"""One record, straight through: read, look up, decide, map, deliver, and what became of it.

The law: `process` returns an `Outcome`, and then the record's offset is done; or it raises, and then it is not, and
the record is tried again. Nothing else acknowledges anything.
"""

import logging
import random
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from typing import Protocol, assert_never

import structlog

from dispatcher import metrics
from dispatcher.brake import DeadLetterBrake
from dispatcher.delivery.parcels import Changed, Delivery, Never, NotNow, Parcel, Tried
from dispatcher.delivery.retry_policy import RetryPolicy
from dispatcher.delivery.slots import Kind
from dispatcher.errors import BrakeEngaged, UnreadableEvent, WebhookUnusable
from dispatcher.events import DeliveryEvent, OtherEvent, read_event
from dispatcher.feedback import MAX_WARNED, encode_feedback
from dispatcher.outcomes import (
    Dead,
    DeadReason,
    Delivered,
    FinishedResult,
    Outcome,
    Parked,
    ParkReason,
    Skipped,
    SkipReason,
)
from dispatcher.records import Journey, Origin, Record, Turn
from dispatcher.webhooks import TenantKey, Webhook, WebhookConfig

log = structlog.get_logger(__name__)

API_TRIGGERED = "ApiTriggered"


class Webhooks(Protocol):
    """The webhook of a tenant."""

    async def find(self, tenant: TenantKey) -> Webhook | None:
        """Raises StoreUnavailable where nobody can tell, WebhookUnusable where it is there, and can't be used."""
        ...


class Deliveries(Protocol):
    """Sends a parcel."""

    async def deliver(self, parcel: Parcel, begun: Tried | None = None) -> Delivery: ...


class RetryTopics(Protocol):
    """Keeps events that can't be delivered now."""

    async def park(self, record: Record, journey: Journey, tier: int) -> None:
        """Returns when the broker has it; raises NotWritten."""
        ...


class DeadLetters(Protocol):
    """Keeps events that will never be delivered."""

    async def bury(self, record: Record, journey: Journey, reason: DeadReason, detail: str) -> None:
        """Returns when the broker has it; raises NotWritten."""
        ...


def eligibility(event: DeliveryEvent, webhook: Webhook | None) -> SkipReason | None:
    """Why the event is none of the webhook's business, None where it is. In the order of the design, section 3."""
    if event.profile.get("isTestExecution"):
        return SkipReason.TEST_EXECUTION
    if webhook is None:
        return SkipReason.NO_WEBHOOK
    config = webhook.config
    if is_of_another_sandbox(event, config):
        return SkipReason.NO_WEBHOOK
    if not config.enabled:
        return SkipReason.WEBHOOK_DISABLED
    if event.channel not in config.channels:
        return SkipReason.CHANNEL
    if event.status not in config.events:
        return SkipReason.STATUS
    return SkipReason.CAMPAIGN if campaign_objection(event, config) is not None else None


def is_of_another_sandbox(event: DeliveryEvent, config: WebhookConfig) -> bool:
    """The names are the same, but both sides give an id too, and the ids differ."""
    return config.sandbox_id is not None and event.sandbox_id is not None and config.sandbox_id != event.sandbox_id


def campaign_objection(event: DeliveryEvent, config: WebhookConfig) -> str | None:
    """Why the event's campaign is not wanted, in words; None where it is."""
    campaign, kind = event.execution.get("campaignID"), event.execution.get("campaignType")
    if not campaign:
        return "the message belongs to no campaign"
    if kind is not None and kind != API_TRIGGERED:
        return f"the campaign is {kind}, not {API_TRIGGERED}"
    if event.webhooks_enabled is False:
        return "the campaign has feedback webhooks switched off"
    if config.campaigns != "all" and campaign not in config.campaigns:
        return f"campaign {campaign} is none of the {len(config.campaigns)} that are wanted"
    return None


def read_record(record: Record, origin: Origin, max_record_bytes: int) -> DeliveryEvent | OtherEvent:
    """The event in a record.

    Raises:
        UnreadableEvent: it is too large, or can't be read as one.
    """
    if record.value is not None and len(record.value) > max_record_bytes:
        raise UnreadableEvent(f"the record has {len(record.value)} bytes, over the limit of {max_record_bytes}")
    return read_event(record, origin)


class Pipeline:
    """Takes each record from reading to its outcome."""

    def __init__(
        self,
        webhooks: Webhooks,
        deliveries: Deliveries,
        retry_topics: RetryTopics,
        dead_letters: DeadLetters,
        policy: RetryPolicy,
        max_body: int,
        max_record_bytes: int,
        brake: int,
        tenants: metrics.TenantMetrics,
        clock: Callable[[], float] = time.time,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._webhooks = webhooks
        self._deliveries = deliveries
        self._retry_topics = retry_topics
        self._dead_letters = dead_letters
        self._policy = policy
        self._max_body = max_body
        self._max_record_bytes = max_record_bytes
        self._brakes: defaultdict[tuple[str, int], DeadLetterBrake] = defaultdict(lambda: DeadLetterBrake(brake))
        self._tenants = tenants
        self._finished = {result: metrics.EVENTS_FINISHED.labels(result.value) for result in FinishedResult}
        self._seconds_at_once = metrics.END_TO_END_SECONDS.labels("no")
        self._clock = clock
        self._chance = chance
        self._tells_all = log.is_enabled_for(logging.DEBUG)  # asked once: most events are told at this level only

    @property
    def brakes(self) -> dict[tuple[str, int], DeadLetterBrake]:
        """The brake of each (topic, partition) that was seen."""
        return self._brakes

    async def process(self, record: Record, turn: Turn, begun: Tried | None = None) -> Outcome:
        """What became of the record; its offset is done then.

        Args:
            begun: the first attempt, where `express` made it already.

        Raises:
            StoreUnavailable, NotWritten, BrakeEngaged: not now; the record is to be tried again.
            Draining: the record is ours no more, and nothing has happened.
        """
        journey = self._journey(record)
        try:
            event = read_record(record, journey.origin, self._max_record_bytes)
        except UnreadableEvent as error:
            return await self._die(record, journey, turn, DeadReason.UNREADABLE, str(error), None)
        except Exception as error:  # noqa: BLE001  (it dies with a reason and a traceback in the log)
            return await self._die_of_a_bug(record, journey, turn, error, None)
        if isinstance(event, OtherEvent):
            return self.skipped(record, SkipReason.NOT_FEEDBACK, None)
        return await self._process_event(record, journey, turn, event, begun)

    def _journey(self, record: Record) -> Journey:
        """The record's journey. A timestamp that is missing or in the future counts as now: it says no age."""
        journey, now = Journey.of(record), self._clock()
        return journey if 0 < journey.first_seen <= now else replace(journey, first_seen=now)

    async def _process_event(
        self, record: Record, journey: Journey, turn: Turn, event: DeliveryEvent, begun: Tried | None
    ) -> Outcome:
        while True:
            try:
                webhook = await self._webhooks.find(event.tenant)
            except WebhookUnusable as error:
                not_now = NotNow(ParkReason.UNUSABLE, journey.attempts, detail=str(error))
                return await self._park(record, journey, turn, event, not_now)
            reason = eligibility(event, webhook)
            if reason is not None or webhook is None:
                return self.skipped(record, reason or SkipReason.NO_WEBHOOK, event)
            try:
                body = encode_feedback(event, webhook.config.payload)
            except Exception as error:  # noqa: BLE001
                return await self._die_of_a_bug(record, journey, turn, error, event)
            if len(body) > self._max_body:
                detail = f"the payload has {len(body)} bytes, over the limit of {self._max_body}"
                return await self._die(record, journey, turn, DeadReason.TOO_LARGE, detail, event)
            if len(body) > MAX_WARNED:
                log.warning("large payload", tenant=str(event.tenant), webhook_id=event.webhook_id, size=len(body))
            kind = Kind.RETRY if journey.parks else Kind.NEW
            parcel = Parcel.of(event, webhook, body, journey.attempts, kind, turn, journey.origin)
            delivery, begun = await self._deliveries.deliver(parcel, begun), None
            match delivery:
                case Delivered():
                    return self._delivered(record, journey, event, delivery)
                case NotNow():
                    return await self._park(record, journey, turn, event, delivery)
                case Never():
                    journey = _after(journey, delivery.attempts, delivery.status, delivery.reason)
                    return await self._die(record, journey, turn, delivery.reason, delivery.detail, event)
                case Changed():
                    journey = replace(journey, attempts=delivery.attempts)  # the webhook was edited: decide anew
                case _:
                    assert_never(delivery)

    def delivered_at_once(self, record: Record, parcel: Parcel, outcome: Delivered) -> None:
        """Note an event that was delivered by its first attempt, fresh from its topic."""
        now, seen = self._clock(), record.timestamp / 1000
        self._seconds_at_once.observe(now - seen if 0 < seen <= now else 0.0)
        self._note_delivered(record, parcel.tenant, parcel.webhook_id, outcome)

    def _delivered(self, record: Record, journey: Journey, event: DeliveryEvent, outcome: Delivered) -> Outcome:
        seconds = max(0.0, self._clock() - journey.first_seen)
        metrics.END_TO_END_SECONDS.labels("yes" if journey.parks else "no").observe(seconds)
        if journey.parks:
            self._tenants.worst.ended(event.tenant, journey.first_seen)
        self._note_delivered(record, event.tenant, event.webhook_id, outcome)
        return outcome

    def _note_delivered(self, record: Record, tenant: TenantKey, webhook_id: str, outcome: Delivered) -> None:
        self._ended(record, FinishedResult.DELIVERED, tenant)
        if self._tells_all:
            log.debug("event delivered", tenant=str(tenant), webhook_id=webhook_id, attempt=outcome.attempts)

    def skipped(self, record: Record, reason: SkipReason, event: DeliveryEvent | None) -> Outcome:
        """Note an event that is none of a webhook's business."""
        metrics.EVENTS_SKIPPED.labels(reason.value).inc()
        self._ended(record, FinishedResult.SKIPPED, None if event is None else event.tenant)
        if event is not None and self._tells_all:
            log.debug("event skipped", tenant=str(event.tenant), webhook_id=event.webhook_id, reason=reason.value)
        return Skipped(reason)

    def _ended(self, record: Record, result: FinishedResult, tenant: TenantKey | None) -> None:
        self._finished[result].inc()
        if tenant is not None:
            self._tenants.count(tenant, result)
        self._brakes[record.topic, record.partition].ended_well()

    async def _park(
        self, record: Record, journey: Journey, turn: Turn, event: DeliveryEvent, not_now: NotNow
    ) -> Outcome:
        now = self._clock()
        tier = self._policy.tier(journey.parks, not_now.for_s)
        due_at = now + self._policy.due_in_s(tier, self._chance())
        journey = _after(journey, not_now.attempts, not_now.status, not_now.reason, due_at)
        if self._policy.expired(journey.first_seen, due_at):
            detail = f"not delivered at the age limit; last: {not_now.detail or not_now.reason}"
            return await self._die(record, journey, turn, DeadReason.EXPIRED, detail, event)
        turn.start()
        await self._retry_topics.park(record, journey, tier)
        metrics.EVENTS_PARKED.labels(not_now.reason.value).inc()
        self._tenants.count(event.tenant, "parked")
        self._tenants.worst.parked(event.tenant, journey.first_seen, due_at)
        self._brakes[record.topic, record.partition].ended_well()
        log.info(
            "event parked", tenant=str(event.tenant), webhook_id=event.webhook_id, reason=not_now.reason.value,
            tier=tier, attempts=journey.attempts, status=not_now.status, detail=not_now.detail,
        )  # fmt: skip
        return Parked(tier, not_now.reason)

    async def _die_of_a_bug(
        self, record: Record, journey: Journey, turn: Turn, error: Exception, event: DeliveryEvent | None
    ) -> Outcome:
        """Whatever a record makes of us, it must not stop the others."""
        metrics.ERRORS.labels("pipeline").inc()
        log.error("record dies because of a bug", origin=str(journey.origin), exc_info=error)
        return await self._die(record, journey, turn, DeadReason.INTERNAL, type(error).__name__, event)

    async def _die(
        self, record: Record, journey: Journey, turn: Turn, reason: DeadReason, detail: str, event: DeliveryEvent | None
    ) -> Outcome:
        brake = self._brakes[record.topic, record.partition]
        ours = reason in (DeadReason.UNREADABLE, DeadReason.INTERNAL)
        turn.start()
        if ours and not brake.permit():
            raise BrakeEngaged(f"{record.topic}/{record.partition}: most records would die: {detail}")
        try:
            await self._dead_letters.bury(record, journey, reason, detail)
        except BaseException:
            if ours:
                brake.not_dead()
            raise
        if not ours:
            brake.ended_well()
        metrics.DEAD_LETTERS.labels(reason.value).inc()
        self._finished[FinishedResult.DEAD_LETTERED].inc()
        if event is not None:
            self._tenants.count(event.tenant, FinishedResult.DEAD_LETTERED.value)
            self._tenants.worst.ended(event.tenant, journey.first_seen)
        log.warning(
            "event dead-lettered", origin=str(journey.origin), tenant=None if event is None else str(event.tenant),
            webhook_id=None if event is None else event.webhook_id, reason=reason.value, detail=detail,
        )  # fmt: skip
        return Dead(reason)

    def observe(self) -> None:
        """Set the gauges, for a scrape."""
        metrics.BRAKE_ENGAGED.set(sum(brake.engaged for brake in self._brakes.values()))


def _after(journey: Journey, attempts: int, status: int | None, reason: str, due_at: float = 0.0) -> Journey:
    parks = journey.parks + (1 if due_at else 0)
    last_status = status if status is not None else journey.last_status
    return Journey(journey.origin, journey.first_seen, attempts, parks, due_at, last_status, str(reason))
