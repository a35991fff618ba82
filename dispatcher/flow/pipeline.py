"""Processes one record: reads it, looks up its webhook, decides, maps, delivers, and returns the outcome.

If `process` returns an `Outcome`, the record's offset is done. If it raises, the offset isn't done, and the record is
processed again. Nothing else acknowledges anything.
"""

import logging
import random
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Final, assert_never

import structlog

from dispatcher.config.webhook_lookup import WebhookLookup
from dispatcher.config.webhook_revision import Webhook
from dispatcher.contract.events import DeliveryEvent, OtherEvent
from dispatcher.contract.feedback import MAX_WARNED
from dispatcher.contract.outcomes import (
    DeadReason,
    Delivered,
    FinishedResult,
    Outcome,
    ParkReason,
    Skipped,
    SkipReason,
)
from dispatcher.contract.records import Origin, ProcessingAttempt, Record, RetryState, event_time
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
from dispatcher.errors import DispatcherError, UnreadableEvent, WebhookUndecided, WebhookUnusable
from dispatcher.flow.dead_letter_brake import DeadLetterBrake
from dispatcher.flow.decision import decide, read_record
from dispatcher.flow.undelivered import (
    DeadLetterSink,
    HeldSink,
    RetrySink,
    Undelivered,
    UndeliveredEvents,
    after_attempts,
)
from dispatcher.telemetry import metrics
from dispatcher.telemetry.event_log import EventLog
from dispatcher.telemetry.tenant_metrics import TenantMetrics

MAX_CHANGES: Final = 20
"""Times that a webhook may turn out to be outdated before its event is held: the store contradicts itself, or the cache
is far too small."""

log = structlog.get_logger(__name__)


class Pipeline:
    """Takes each record from reading to its outcome."""

    def __init__(
        self,
        webhooks: WebhookLookup,
        deliverer: Deliverer,
        retry_topics: RetrySink,
        dead_letters: DeadLetterSink,
        policy: RetryPolicy,
        max_body: int,
        max_record_bytes: int,
        brake: int,
        tenants: TenantMetrics,
        history: HistoryRecorder | None = None,
        clock: Callable[[], float] = time.time,
        chance: Callable[[], float] = random.random,
        age_clock: Callable[[], float] | None = None,
        event_log: EventLog | None = None,
        held_topic: HeldSink | None = None,
    ) -> None:
        """Builds a pipeline of its parts.

        Args:
            age_clock: unix time up to which the ages of events count; `clock` by default.
            held_topic: topic of events that wait for a change of configuration; None: they wait in the retry tiers.
        """
        self._event_log = event_log or EventLog()
        self._webhooks = webhooks
        self._deliverer = deliverer
        self._own_topics = frozenset(retry_topics.topics) | ({held_topic.topic} if held_topic is not None else set())
        self._max_body = max_body
        self._max_record_bytes = max_record_bytes
        self._tenants = tenants
        self._history = history
        self._finished = {result: metrics.EVENTS_FINISHED.labels(result.value) for result in FinishedResult}
        self._seconds_at_once = metrics.END_TO_END_SECONDS.labels("no")
        self._clock = clock
        self._undelivered = UndeliveredEvents(
            retry_topics, dead_letters, policy, brake, tenants, history, self._event_log, held_topic, clock,
            age_clock or clock, chance,
        )  # fmt: skip
        self._brakes = self._undelivered.brakes
        # Looked up once: delivered and skipped events are logged at this level only.
        self._logs_each_event = log.is_enabled_for(logging.DEBUG)

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
            processing: what is left to do, if the record was processed before and an attempt was judged.

        Raises:
            StoreUnavailable, NotWritten, BrakeEngaged: it can't have an outcome now, and has to be processed again.
            StillHeld: a record of the topic of held events still has to wait.
            Draining: the partition is no longer ours or the process stops, and nothing was sent or written.
        """
        if processing.resume is not None:
            return await processing.resume()
        retry_state = self._retry_state(record, first_result)
        event = self._read(record, retry_state.origin)
        if isinstance(event, Exception):
            unread = Undelivered(record, retry_state, processing, None)
            if isinstance(event, UnreadableEvent):
                return await self._undelivered.dead_letter(unread, DeadReason.UNREADABLE, str(event))
            return await self._undelivered.die_of_a_bug(unread, event)
        if isinstance(event, OtherEvent):
            return self.skipped(record, SkipReason.NOT_FEEDBACK, None, retry_state.origin)
        return await self._process_event(record, retry_state, processing, event, first_result)

    def _read(self, record: Record, origin: Origin) -> DeliveryEvent | OtherEvent | Exception:
        """Returns the event in a record, or why it can't be read. Compiled code must not await in an `except`."""
        try:
            return read_record(record, origin, self._max_record_bytes)
        except Exception as error:  # noqa: BLE001  (it is dead-lettered with a reason, and logged with a traceback)
            return error

    def _retry_state(self, record: Record, first_result: AttemptResult | None) -> RetryState:
        """Returns the stored state of a parked record, or a new state for a record from the topic of events.

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
        if first_result is not None and first_result.attempt is not None:
            processing.resume = partial(self._process_event, record, retry_state, processing, event, first_result)
        changes = 0
        while True:
            undelivered = Undelivered(record, retry_state, processing, event)
            if first_result is not None and first_result.is_final:
                delivery = first_result.as_delivery()
            else:
                made = retry_state.attempts if first_result is None else first_result.number
                prepared = await self._prepared(undelivered, event, made)
                if not isinstance(prepared, PendingDelivery):
                    return prepared
                delivery = await self._deliverer.deliver(prepared, first_result)
            first_result = None
            match delivery:
                case Delivered():
                    return self._record_delivery(record, retry_state, event, delivery, processing.read_at)
                case Deferred():
                    return await self._undelivered.park(undelivered, event, delivery)
                case Undeliverable():
                    status, reason = delivery.status, delivery.reason
                    undelivered.retry_state = after_attempts(retry_state, delivery.attempts, status, reason)
                    return await self._undelivered.dead_letter(undelivered, reason, delivery.detail)
                case WebhookChanged():  # it was edited meanwhile: decide again
                    changes += 1
                    if changes == MAX_CHANGES:
                        why = f"the webhook was outdated {changes} times as soon as it had been read"
                        deferred = Deferred(ParkReason.UNUSABLE, delivery.attempts, detail=why)
                        return await self._undelivered.park(undelivered, event, deferred)
                    retry_state = replace(retry_state, attempts=delivery.attempts)
                    processing.resume = partial(self._process_event, record, retry_state, processing, event, None)
                case _:
                    assert_never(delivery)

    async def _prepared(self, undelivered: Undelivered, event: DeliveryEvent, made: int) -> PendingDelivery | Outcome:
        """Returns what to send, or the outcome of an event that is not sent now. `made`: POSTs made so far."""
        record, retry_state = undelivered.record, undelivered.retry_state
        webhook = await self._webhook_of(event.tenant)
        if isinstance(webhook, DispatcherError):
            why = ParkReason.UNUSABLE if isinstance(webhook, WebhookUnusable) else ParkReason.UNDECIDED
            return await self._undelivered.park(undelivered, event, Deferred(why, made, detail=str(webhook)))
        decided = _decided(event, webhook)
        if isinstance(decided, Exception):
            undelivered.retry_state = replace(retry_state, attempts=made)
            return await self._undelivered.die_of_a_bug(undelivered, decided)
        if not isinstance(decided, tuple):
            if isinstance(decided, SkipReason):
                return self.skipped(
                    record, decided, event, retry_state.origin, has_webhook=webhook is not None, attempts=made
                )
            deferred = Deferred(decided, made, detail=f"the webhook is {decided}")
            return await self._undelivered.park(undelivered, event, deferred)
        wanting, body = decided
        if len(body) > self._max_body:
            detail = f"the payload has {len(body)} bytes, over the limit of {self._max_body}"
            undelivered.retry_state = replace(retry_state, attempts=made)
            return await self._undelivered.dead_letter(undelivered, DeadReason.TOO_LARGE, detail)
        if len(body) > MAX_WARNED:
            log.warning("large payload", tenant=str(event.tenant), webhook_id=event.webhook_id, size=len(body))
        return self._pending(undelivered, event, wanting, body)

    async def _webhook_of(self, tenant: TenantKey) -> Webhook | DispatcherError | None:
        """Returns the tenant's webhook, None if it has none, or why it can't be used now."""
        try:
            return await self._webhooks.get(tenant)
        except (WebhookUnusable, WebhookUndecided) as error:
            return error

    def _pending(
        self, undelivered: Undelivered, event: DeliveryEvent, webhook: Webhook, body: bytes
    ) -> PendingDelivery:
        retry_state, processing = undelivered.retry_state, undelivered.processing
        priority = Priority.RETRY if retry_state.parks else Priority.NEW
        ids = None if self._history is None else self._history.ids_of(event)
        return PendingDelivery.of(
            event, webhook, body, retry_state.attempts, priority, processing, retry_state.origin, retry_state.refusals,
            retry_state.first_seen if retry_state.parks else None, ids,
            has_waited=undelivered.record.topic in self._own_topics,
        )  # fmt: skip

    def record_direct_delivery(self, record: Record, pending: PendingDelivery, outcome: Delivered) -> None:
        """Counts and logs an event that its first attempt delivered, fresh from its topic."""
        self._seconds_at_once.observe(self._age_s(record, pending.processing.read_at))
        self._note_delivered(record, pending.tenant, pending.webhook_id, outcome)

    def _age_s(self, record: Record, read_at: float) -> float:
        now = self._clock()
        return now - event_time(record, read_at, now)

    def _record_delivery(
        self, record: Record, retry_state: RetryState, event: DeliveryEvent, outcome: Delivered, read_at: float
    ) -> Outcome:
        if retry_state.parks:
            seconds = max(0.0, self._clock() - retry_state.first_seen)
            metrics.END_TO_END_SECONDS.labels("yes").observe(seconds)
            self._tenants.worst.ended(event.tenant, retry_state.first_seen)
        else:
            self._seconds_at_once.observe(self._age_s(record, read_at))
        self._note_delivered(record, event.tenant, event.webhook_id, outcome)
        return outcome

    def _note_delivered(self, record: Record, tenant: TenantKey, webhook_id: str, outcome: Delivered) -> None:
        self._record_end(record, FinishedResult.DELIVERED, tenant)
        if self._logs_each_event:
            log.debug("event delivered", tenant=str(tenant), webhook_id=webhook_id, attempt=outcome.attempts)

    def skipped(
        self,
        record: Record,
        reason: SkipReason,
        event: DeliveryEvent | None,
        origin: Origin,
        *,
        has_webhook: bool = False,
        attempts: int = 0,
    ) -> Outcome:
        """Counts an event that no webhook wants.

        Args:
            has_webhook: False if the event's tenant has none, or isn't known.
            attempts: POSTs made before.
        """
        metrics.EVENTS_SKIPPED.labels(reason.value).inc()
        self._record_end(record, FinishedResult.SKIPPED, None if event is None else event.tenant)
        if event is not None and reason is SkipReason.NO_WEBHOOK:
            self._event_log.no_webhook(event.tenant)
        if self._history is not None:
            if event is None:
                self._history.count_other_event()
            else:
                has_earlier = attempts > 0 or record.topic in self._own_topics
                self._history.record_skipped(event, origin, reason, has_webhook=has_webhook, has_earlier=has_earlier)
        if event is not None and self._logs_each_event:
            log.debug("event skipped", tenant=str(event.tenant), webhook_id=event.webhook_id, reason=reason.value)
        return Skipped(reason)

    def _record_end(self, record: Record, result: FinishedResult, tenant: TenantKey | None) -> None:
        self._finished[result].inc()
        if tenant is not None:
            self._tenants.count(tenant, result)
        self._brakes[record.topic, record.partition].put_back_token()

    def observe(self) -> None:
        """Sets the gauges, for a scrape."""
        metrics.BRAKE_ENGAGED.set(sum(brake.engaged for brake in self.brakes.values()))


def _decided(
    event: DeliveryEvent, webhook: Webhook | None
) -> tuple[Webhook, bytes] | SkipReason | ParkReason | Exception:
    """Returns what `decide` returns, or the bug that it met."""
    try:
        return decide(event, webhook)
    except Exception as error:  # noqa: BLE001  (it is dead-lettered with a reason, and logged with a traceback)
        return error
