"""Processes one record: reads it, looks up its webhook, decides, maps, delivers, and returns the outcome.

The law: `process` returns an `Outcome`, and then the record's offset is done; or it raises, and then it is not, and
the record is tried again. Nothing else acknowledges anything.
"""

import logging
import random
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Protocol, assert_never

import structlog

from dispatcher.config.webhook_lookup import WebhookLookup
from dispatcher.contract.events import DeliveryEvent, OtherEvent
from dispatcher.contract.feedback import MAX_WARNED
from dispatcher.contract.outcomes import (
    HELD_REASONS,
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
from dispatcher.contract.records import Origin, ProcessingAttempt, Record, RetryState
from dispatcher.contract.tenant import TenantKey
from dispatcher.delivery.deliverer import Deliverer
from dispatcher.delivery.history_recorder import HistoryRecorder
from dispatcher.delivery.pending_delivery import (
    AttemptResult,
    Deferred,
    PendingDelivery,
    Undeliverable,
    WebhookChanged,
)
from dispatcher.delivery.permits import Priority
from dispatcher.delivery.retry_policy import RetryPolicy
from dispatcher.errors import (
    BrakeEngaged,
    RecordTooLarge,
    StillHeld,
    UnreadableEvent,
    WebhookUndecided,
    WebhookUnusable,
)
from dispatcher.flow.dead_letter_brake import DeadLetterBrake
from dispatcher.flow.decision import decide, read_record
from dispatcher.telemetry import metrics
from dispatcher.telemetry.event_log import EventLog

log = structlog.get_logger(__name__)


class RetrySink(Protocol):
    """Keeps events that can't be delivered now: `kafka.retry_topics`, a layer above."""

    @property
    def topics(self) -> Sequence[str]:
        """The topics that parked events are read from: `feedback-*` headers are believed there only."""
        ...

    async def park(self, record: Record, retry_state: RetryState, tier: int) -> None:
        """Returns when the broker has it; raises RecordTooLarge, NotWritten."""
        ...


class HeldSink(Protocol):
    """Keeps events that wait for a change of configuration: `kafka.held_topic`, a layer above."""

    @property
    def topic(self) -> str: ...

    async def hold(self, record: Record, retry_state: RetryState, tenant: TenantKey) -> None:
        """Returns when the broker has it; raises NotWritten."""
        ...


class DeadLetterSink(Protocol):
    """Keeps events that will never be delivered: `kafka.dead_letters`, a layer above."""

    async def dead_letter(self, record: Record, retry_state: RetryState, reason: DeadReason, detail: str) -> None:
        """Returns when the broker has it; raises NotWritten."""
        ...


class Pipeline:
    """Takes each record from reading to its outcome."""

    def __init__(
        self,
        webhooks: WebhookLookup,
        deliveries: Deliverer,
        retry_topics: RetrySink,
        dead_letters: DeadLetterSink,
        policy: RetryPolicy,
        max_body: int,
        max_record_bytes: int,
        brake: int,
        tenants: metrics.TenantMetrics,
        history: HistoryRecorder | None = None,
        clock: Callable[[], float] = time.time,
        chance: Callable[[], float] = random.random,
        event_log: EventLog | None = None,
        held_topic: HeldSink | None = None,
    ) -> None:
        """`held_topic`: where events wait for a change of configuration; None: in the retry tiers."""
        self._event_log = event_log or EventLog()
        self._webhooks = webhooks
        self._deliveries = deliveries
        self._retry_topics = retry_topics
        self._own_topics = frozenset(retry_topics.topics) | ({held_topic.topic} if held_topic is not None else set())
        self._held_topic = held_topic
        self._dead_letters = dead_letters
        self._policy = policy
        self._max_body = max_body
        self._max_record_bytes = max_record_bytes
        self._brakes: defaultdict[tuple[str, int], DeadLetterBrake] = defaultdict(lambda: DeadLetterBrake(brake))
        self._tenants = tenants
        self._history = history
        self._finished = {result: metrics.EVENTS_FINISHED.labels(result.value) for result in FinishedResult}
        self._seconds_at_once = metrics.END_TO_END_SECONDS.labels("no")
        self._clock = clock
        self._chance = chance
        self._tells_all = log.is_enabled_for(logging.DEBUG)  # evaluated once: most events are logged at this level only

    @property
    def brakes(self) -> dict[tuple[str, int], DeadLetterBrake]:
        """The brake of each (topic, partition) that was seen."""
        return self._brakes

    async def process(
        self, record: Record, processing: ProcessingAttempt, first_result: AttemptResult | None = None
    ) -> Outcome:
        """Processes the record to its outcome; its offset is then done.

        Args:
            first_result: the first attempt, if `fast_path` made it already.

        Raises:
            StoreUnavailable, NotWritten, BrakeEngaged: not now; the record is processed again.
            StillHeld: a record of the topic of held events still has to wait.
            Draining: the partition was revoked, and nothing has happened.
        """
        retry_state = self._retry_state(record, first_result)
        try:
            event = read_record(record, retry_state.origin, self._max_record_bytes)
        except UnreadableEvent as error:
            return await self._die(record, retry_state, processing, DeadReason.UNREADABLE, str(error), None)
        except Exception as error:  # noqa: BLE001  (it dies with a reason and a traceback in the log)
            return await self._die_of_a_bug(record, retry_state, processing, error, None)
        if isinstance(event, OtherEvent):
            return self.skipped(record, SkipReason.NOT_FEEDBACK, None, retry_state.origin)
        return await self._process_event(record, retry_state, processing, event, first_result)

    def _retry_state(self, record: Record, first_result: AttemptResult | None) -> RetryState:
        """Returns the kept state of a parked record; of a fresh one, the state that begins now.

        A time that is missing or in the future counts as now.
        """
        now = self._clock()
        if record.topic in self._own_topics:
            retry_state = RetryState.of(record)
            return retry_state if 0 < retry_state.first_seen <= now else replace(retry_state, first_seen=round(now, 3))
        attempt = None if first_result is None else first_result.attempt
        return RetryState.fresh(record, now if attempt is None else now - attempt.elapsed_s)

    async def _process_event(
        self,
        record: Record,
        retry_state: RetryState,
        processing: ProcessingAttempt,
        event: DeliveryEvent,
        first_result: AttemptResult | None,
    ) -> Outcome:
        while True:
            try:
                webhook = await self._webhooks.get(event.tenant)
            except (WebhookUnusable, WebhookUndecided) as error:
                why = ParkReason.UNUSABLE if isinstance(error, WebhookUnusable) else ParkReason.UNDECIDED
                deferred = Deferred(why, retry_state.attempts, detail=str(error))
                return await self._park(record, retry_state, processing, event, deferred)
            try:
                decided = decide(event, webhook)
            except Exception as error:  # noqa: BLE001
                return await self._die_of_a_bug(record, retry_state, processing, error, event)
            if not isinstance(decided, tuple):
                if isinstance(decided, SkipReason):
                    return self.skipped(record, decided, event, retry_state.origin)
                deferred = Deferred(decided, retry_state.attempts, detail=f"the webhook is {decided}")
                return await self._park(record, retry_state, processing, event, deferred)
            wanting, body = decided
            if len(body) > self._max_body:
                detail = f"the payload has {len(body)} bytes, over the limit of {self._max_body}"
                return await self._die(record, retry_state, processing, DeadReason.TOO_LARGE, detail, event)
            if len(body) > MAX_WARNED:
                log.warning("large payload", tenant=str(event.tenant), webhook_id=event.webhook_id, size=len(body))
            priority = Priority.RETRY if retry_state.parks else Priority.NEW
            ids = None if self._history is None else self._history.ids_of(event)
            pending = PendingDelivery.of(
                event, wanting, body, retry_state.attempts, priority, processing, retry_state.origin,
                retry_state.refusals, retry_state.first_seen if retry_state.parks else None, ids,
            )  # fmt: skip
            delivery, first_result = await self._deliveries.deliver(pending, first_result), None
            match delivery:
                case Delivered():
                    return self._record_delivery(record, retry_state, event, delivery)
                case Deferred():
                    return await self._park(record, retry_state, processing, event, delivery)
                case Undeliverable():
                    retry_state = _after(retry_state, delivery.attempts, delivery.status, delivery.reason)
                    return await self._die(record, retry_state, processing, delivery.reason, delivery.detail, event)
                case WebhookChanged():
                    retry_state = replace(
                        retry_state, attempts=delivery.attempts
                    )  # the webhook was edited: decide anew
                case _:
                    assert_never(delivery)

    def record_direct_delivery(self, record: Record, pending: PendingDelivery, outcome: Delivered) -> None:
        """Counts and logs an event that its first attempt delivered, fresh from its topic."""
        self._seconds_at_once.observe(self._age_s(record))
        self._note_delivered(record, pending.tenant, pending.webhook_id, outcome)

    def _age_s(self, record: Record) -> float:
        now, seen = self._clock(), record.timestamp / 1000
        return now - seen if 0 < seen <= now else 0.0

    def _record_delivery(
        self, record: Record, retry_state: RetryState, event: DeliveryEvent, outcome: Delivered
    ) -> Outcome:
        if retry_state.parks:
            seconds = max(0.0, self._clock() - retry_state.first_seen)
            metrics.END_TO_END_SECONDS.labels("yes").observe(seconds)
            self._tenants.worst.ended(event.tenant, retry_state.first_seen)
        else:
            self._seconds_at_once.observe(self._age_s(record))
        self._note_delivered(record, event.tenant, event.webhook_id, outcome)
        return outcome

    def _note_delivered(self, record: Record, tenant: TenantKey, webhook_id: str, outcome: Delivered) -> None:
        self._record_end(record, FinishedResult.DELIVERED, tenant)
        if self._tells_all:
            log.debug("event delivered", tenant=str(tenant), webhook_id=webhook_id, attempt=outcome.attempts)

    def skipped(self, record: Record, reason: SkipReason, event: DeliveryEvent | None, origin: Origin) -> Outcome:
        """Counts an event that no webhook wants."""
        metrics.EVENTS_SKIPPED.labels(reason.value).inc()
        self._record_end(record, FinishedResult.SKIPPED, None if event is None else event.tenant)
        if event is not None and reason is SkipReason.NO_WEBHOOK:
            self._event_log.no_webhook(event.tenant)
        if event is not None and self._history is not None:
            self._history.record_skipped(event, origin, reason)
        if event is not None and self._tells_all:
            log.debug("event skipped", tenant=str(event.tenant), webhook_id=event.webhook_id, reason=reason.value)
        return Skipped(reason)

    def _record_end(self, record: Record, result: FinishedResult, tenant: TenantKey | None) -> None:
        self._finished[result].inc()
        if tenant is not None:
            self._tenants.count(tenant, result)
        self._brakes[record.topic, record.partition].record_success()

    async def _park(
        self,
        record: Record,
        retry_state: RetryState,
        processing: ProcessingAttempt,
        event: DeliveryEvent,
        deferred: Deferred,
    ) -> Outcome:
        now = self._clock()
        held = self._held_topic
        if held is not None and record.topic == held.topic and deferred.attempts == retry_state.attempts:
            return await self._keep_held(record, retry_state, processing, event, deferred)
        if held is not None and deferred.reason in HELD_REASONS:
            return await self._hold(held, record, retry_state, processing, event, deferred)
        # A payload that is refused goes through the first tiers, however long its event waited for other reasons.
        step = retry_state.refusals if deferred.payload_refused else retry_state.parks
        tier = self._policy.tier(step, deferred.for_s)
        due_at = now + self._policy.due_in_s(tier, self._chance())
        retry_state = _after(retry_state, deferred.attempts, deferred.status, deferred.reason, due_at)
        retry_state = replace(retry_state, refusals=retry_state.refusals + deferred.payload_refused)
        if self._policy.expired(retry_state.first_seen, due_at):
            return await self._expire(record, retry_state, processing, event, deferred)
        processing.start()
        try:
            await self._retry_topics.park(record, retry_state, tier)
        except RecordTooLarge as error:
            retry_state = replace(retry_state, parks=retry_state.parks - 1, not_before=0.0)
            return await self._die(record, retry_state, processing, DeadReason.TOO_LARGE, str(error), event)
        self._note_parked(record, retry_state, event, deferred, tier, due_at)
        return Parked(tier, deferred.reason)

    async def _hold(
        self,
        held: HeldSink,
        record: Record,
        retry_state: RetryState,
        processing: ProcessingAttempt,
        event: DeliveryEvent,
        deferred: Deferred,
    ) -> Outcome:
        """Writes the event to the topic of held events: only a change of configuration can help it."""
        now = self._clock()
        if self._policy.expired(retry_state.first_seen, now):
            return await self._expire(record, retry_state, processing, event, deferred)
        state = _after(retry_state, deferred.attempts, deferred.status, deferred.reason)
        state = replace(state, parks=max(1, state.parks))
        processing.start()
        try:
            await held.hold(record, state, event.tenant)
        except RecordTooLarge as error:
            return await self._die(record, retry_state, processing, DeadReason.TOO_LARGE, str(error), event)
        self._note_parked(record, state, event, deferred, None, state.first_seen + self._policy.max_age_s)
        return Parked(None, deferred.reason)

    async def _keep_held(
        self,
        record: Record,
        retry_state: RetryState,
        processing: ProcessingAttempt,
        event: DeliveryEvent,
        deferred: Deferred,
    ) -> Outcome:
        """Keeps a held event in its topic, unless it has reached the age limit.

        Raises:
            StillHeld: it stays.
        """
        if not self._policy.expired(retry_state.first_seen, self._clock()):
            raise StillHeld(deferred.detail or deferred.reason, deferred.for_s)
        return await self._expire(record, retry_state, processing, event, deferred)

    async def _expire(
        self,
        record: Record,
        retry_state: RetryState,
        processing: ProcessingAttempt,
        event: DeliveryEvent,
        deferred: Deferred,
    ) -> Outcome:
        detail = deferred.detail or deferred.reason.value
        return await self._die(record, retry_state, processing, DeadReason.EXPIRED, detail, event)

    def _note_parked(
        self,
        record: Record,
        retry_state: RetryState,
        event: DeliveryEvent,
        deferred: Deferred,
        tier: int | None,
        until: float,
    ) -> None:
        metrics.EVENTS_PARKED.labels(deferred.reason.value).inc()
        self._tenants.count(event.tenant, "parked")
        self._tenants.worst.parked(event.tenant, retry_state.first_seen, until)
        self._brakes[record.topic, record.partition].record_success()
        if self._history is not None:
            self._history.record_parked(
                event, retry_state.origin, deferred.reason, retry_state.attempts, until, deferred.detail
            )
        if self._event_log.sampled("event parked", event.tenant, deferred.reason.value):
            log.info(
                "event parked", tenant=str(event.tenant), webhook_id=event.webhook_id, reason=deferred.reason.value,
                tier=tier, attempts=retry_state.attempts, status=deferred.status, detail=deferred.detail,
            )  # fmt: skip

    async def _die_of_a_bug(
        self,
        record: Record,
        retry_state: RetryState,
        processing: ProcessingAttempt,
        error: Exception,
        event: DeliveryEvent | None,
    ) -> Outcome:
        """Dead-letters a record that a bug of ours can't process, so that it doesn't stop the others."""
        metrics.ERRORS.labels("pipeline").inc()
        log.error("record dies because of a bug", origin=str(retry_state.origin), exc_info=error)
        return await self._die(record, retry_state, processing, DeadReason.INTERNAL, type(error).__name__, event)

    async def _die(
        self,
        record: Record,
        retry_state: RetryState,
        processing: ProcessingAttempt,
        reason: DeadReason,
        detail: str,
        event: DeliveryEvent | None,
    ) -> Outcome:
        brake = self._brakes[record.topic, record.partition]
        ours = reason in (DeadReason.UNREADABLE, DeadReason.INTERNAL)
        processing.start()
        if ours and not brake.permit():
            raise BrakeEngaged(f"{record.topic}/{record.partition}: most records would die: {detail}")
        try:
            await self._dead_letters.dead_letter(record, retry_state, reason, detail)
        except BaseException:
            if ours:
                brake.not_dead()
            raise
        if not ours:
            brake.record_success()
        metrics.DEAD_LETTERS.labels(reason.value).inc()
        self._finished[FinishedResult.DEAD_LETTERED].inc()
        if event is not None:
            self._tenants.count(event.tenant, FinishedResult.DEAD_LETTERED.value)
            self._tenants.worst.ended(event.tenant, retry_state.first_seen)
        if self._history is not None:
            self._history.record_dead(event, retry_state.origin, reason, retry_state.attempts, detail)
        tenant = None if event is None else event.tenant
        if self._event_log.sampled("event dead-lettered", tenant, reason.value):
            log.warning(
                "event dead-lettered", origin=str(retry_state.origin), tenant=None if tenant is None else str(tenant),
                webhook_id=None if event is None else event.webhook_id, reason=reason.value, detail=detail,
            )  # fmt: skip
        return Dead(reason)

    def observe(self) -> None:
        """Sets the gauges, for a scrape."""
        metrics.BRAKE_ENGAGED.set(sum(brake.engaged for brake in self._brakes.values()))


def _after(retry_state: RetryState, attempts: int, status: int | None, reason: str, due_at: float = 0.0) -> RetryState:
    parks = retry_state.parks + (1 if due_at else 0)
    last_status = status if status is not None else retry_state.last_status
    return replace(
        retry_state, attempts=attempts, parks=parks, not_before=due_at, last_status=last_status, reason=str(reason)
    )
