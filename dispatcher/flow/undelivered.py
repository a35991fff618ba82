"""Writes a record that is not delivered now to a retry tier, the held events or the dead letters.

Each method returns the outcome once the broker has the record. If it raises, nothing was written, and the record is
processed again: from here, if an attempt was judged, so that only the write is repeated.
"""

from collections import defaultdict
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol

import structlog

from dispatcher.contract.events import DeliveryEvent
from dispatcher.contract.outcomes import CONFIGURATION_REASONS, Dead, DeadReason, FinishedResult, Outcome, Parked
from dispatcher.contract.reason_texts import WAITING
from dispatcher.contract.records import ProcessingAttempt, Record, RetryState
from dispatcher.contract.tenant import TenantKey
from dispatcher.delivery.history_recorder import HistoryRecorder
from dispatcher.delivery.pending_delivery import Deferred
from dispatcher.delivery.retry_policy import RetryPolicy
from dispatcher.errors import BrakeEngaged, RecordTooLarge, StillHeld
from dispatcher.flow.dead_letter_brake import DeadLetterBrake
from dispatcher.telemetry import metrics
from dispatcher.telemetry.event_log import EventLog
from dispatcher.telemetry.tenant_metrics import TenantMetrics

log = structlog.get_logger(__name__)


class RetrySink(Protocol):
    """Keeps events that can't be delivered now. Implemented by `kafka.retry_topics`, a layer above."""

    @property
    def topics(self) -> Sequence[str]:
        """The topics that parked events are read from: `feedback-*` headers are believed there only."""
        ...

    async def park(self, record: Record, retry_state: RetryState, tier: int) -> None:
        """Returns when the broker has it; raises RecordTooLarge, NotWritten."""
        ...


class HeldSink(Protocol):
    """Keeps events that wait for a change of configuration. Implemented by `kafka.held_topic`, a layer above."""

    @property
    def topic(self) -> str: ...

    async def hold(self, record: Record, retry_state: RetryState, tenant: TenantKey) -> None:
        """Returns when the broker has it; raises RecordTooLarge, NotWritten."""
        ...


class DeadLetterSink(Protocol):
    """Keeps events that will never be delivered. Implemented by `kafka.dead_letters`, a layer above."""

    async def dead_letter(self, record: Record, retry_state: RetryState, reason: DeadReason, detail: str) -> None:
        """Returns when the broker has it; raises NotWritten."""
        ...


@dataclass(slots=True)
class Undelivered:
    """A record that is not delivered now, with everything known about it."""

    record: Record
    retry_state: RetryState
    processing: ProcessingAttempt
    event: DeliveryEvent | None
    """None if the record can't be read."""


class UndeliveredEvents:
    """Parks, holds and dead-letters records."""

    def __init__(
        self,
        retry_topics: RetrySink,
        dead_letters: DeadLetterSink,
        policy: RetryPolicy,
        brake: int,
        tenants: TenantMetrics,
        history: HistoryRecorder | None,
        event_log: EventLog,
        held_topic: HeldSink | None,
        clock: Callable[[], float],
        age_clock: Callable[[], float],
        chance: Callable[[], float],
    ) -> None:
        """Keeps the topics and rules for events that can't be delivered now.

        Args:
            brake: excess of unreadable and internal dead letters at which a partition stops; 0 if none stops.
            held_topic: topic of events that wait for a change of configuration; None: they wait in the retry tiers.
            age_clock: unix time up to which ages count. It isn't ahead of `clock`, and doesn't jump with it.
        """
        self.brakes: defaultdict[tuple[str, int], DeadLetterBrake] = defaultdict(lambda: DeadLetterBrake(brake))
        """The brake of each (topic, partition) that was seen."""
        self._retry_topics = retry_topics
        self._held_topic = held_topic
        self._dead_letters = dead_letters
        self._policy = policy
        self._tenants = tenants
        self._history = history
        self._event_log = event_log
        self._age_clock = age_clock
        self._clock = clock
        self._chance = chance

    async def park(self, undelivered: Undelivered, event: DeliveryEvent, deferred: Deferred) -> Outcome:
        """Writes the event to the tier where it waits next, or holds it. At the age limit, the event is dead-lettered.

        Raises:
            NotWritten: the broker has not got it.
            StillHeld: a record of the topic of held events still has to wait.
        """
        record, retry_state, held = undelivered.record, undelivered.retry_state, self._held_topic
        if deferred.attempts > retry_state.attempts:  # else it is decided again: the webhook may be another by then
            again = Undelivered(record, retry_state, undelivered.processing, event)
            undelivered.processing.resume = partial(self.park, again, event, deferred)
        if held is not None and record.topic == held.topic and deferred.attempts == retry_state.attempts:
            return await self._keep_held(undelivered, deferred)
        if held is not None and deferred.reason in CONFIGURATION_REASONS:
            return await self._hold(held, undelivered, event, deferred)
        # A payload that is refused goes through the first tiers, however long its event waited for other reasons.
        step = retry_state.refusals if deferred.payload_refused else retry_state.parks
        tier = self._policy.tier(step, deferred.for_s)
        due_in_s = self._policy.due_in_s(tier, self._chance())
        due_at = self._clock() + due_in_s
        retry_state = after_attempts(retry_state, deferred.attempts, deferred.status, deferred.reason, due_at)
        undelivered.retry_state = retry_state = replace(
            retry_state, refusals=retry_state.refusals + deferred.payload_refused
        )
        if self._policy.expired(retry_state.first_seen, self._age_clock() + due_in_s):
            return await self._expire(undelivered, deferred)
        undelivered.processing.start()
        if refused := await _refusal(self._retry_topics.park(record, retry_state, tier)):
            undelivered.retry_state = replace(retry_state, parks=retry_state.parks - 1, not_before=0.0)
            return await self.dead_letter(undelivered, DeadReason.TOO_LARGE, str(refused))
        self._note_parked(record, retry_state, event, deferred, tier, due_at)
        return Parked(tier, deferred.reason)

    async def _hold(
        self, held: HeldSink, undelivered: Undelivered, event: DeliveryEvent, deferred: Deferred
    ) -> Outcome:
        """Writes the event to the topic of held events: only a change of configuration can help it."""
        if self._policy.expired(undelivered.retry_state.first_seen, self._age_clock()):
            return await self._expire(undelivered, deferred)
        state = after_attempts(undelivered.retry_state, deferred.attempts, deferred.status, deferred.reason)
        state = replace(state, parks=max(1, state.parks))
        undelivered.processing.start()
        if refused := await _refusal(held.hold(undelivered.record, state, event.tenant)):
            return await self.dead_letter(undelivered, DeadReason.TOO_LARGE, str(refused))
        until = state.first_seen + self._policy.max_age_s
        self._note_parked(undelivered.record, state, event, deferred, None, until)
        return Parked(None, deferred.reason)

    async def _keep_held(self, undelivered: Undelivered, deferred: Deferred) -> Outcome:
        """Keeps a held event in its topic, unless it has reached the age limit.

        Raises:
            StillHeld: it stays.
        """
        if not self._policy.expired(undelivered.retry_state.first_seen, self._age_clock()):
            raise StillHeld(deferred.detail or WAITING[deferred.reason], deferred.for_s)
        return await self._expire(undelivered, deferred)

    async def _expire(self, undelivered: Undelivered, deferred: Deferred) -> Outcome:
        """Dead-letters an event at the age limit. If it was held, its detail begins with why."""
        why, detail = WAITING[deferred.reason], deferred.detail
        if deferred.reason in CONFIGURATION_REASONS and detail and detail != why:
            detail = f"{why}: {detail}"
        return await self.dead_letter(undelivered, DeadReason.EXPIRED, detail or why)

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
        self.brakes[record.topic, record.partition].put_back_token()
        if self._history is not None:
            self._history.record_parked(
                event, retry_state.origin, deferred.reason, retry_state.attempts, until, deferred.detail
            )
        if self._event_log.sampled("event parked", event.tenant, deferred.reason.value):
            log.info(
                "event parked", tenant=str(event.tenant), webhook_id=event.webhook_id, reason=deferred.reason.value,
                tier=tier, attempts=retry_state.attempts, status=deferred.status, detail=deferred.detail,
            )  # fmt: skip

    async def die_of_a_bug(self, undelivered: Undelivered, error: Exception) -> Outcome:
        """Dead-letters a record that a bug of ours can't process, so that it doesn't stop the others.

        Raises:
            NotWritten, BrakeEngaged: as `dead_letter`.
        """
        metrics.ERRORS.labels("pipeline").inc()
        log.error("record dies because of a bug", origin=str(undelivered.retry_state.origin), exc_info=error)
        return await self.dead_letter(undelivered, DeadReason.INTERNAL, type(error).__name__)

    async def dead_letter(self, undelivered: Undelivered, reason: DeadReason, detail: str) -> Outcome:
        """Writes the record to the dead letters.

        Raises:
            NotWritten: the broker has not got it.
            BrakeEngaged: most recent records of its partition died for a reason that is ours.
        """
        record, retry_state = undelivered.record, undelivered.retry_state
        undelivered.processing.resume = partial(self.dead_letter, undelivered, reason, detail)
        brake = self.brakes[record.topic, record.partition]
        ours = reason in (DeadReason.UNREADABLE, DeadReason.INTERNAL)
        undelivered.processing.start()
        if ours and not brake.take_token():
            raise BrakeEngaged(f"{record.topic}/{record.partition}: most records would die: {detail}")
        try:
            await self._dead_letters.dead_letter(record, retry_state, reason, detail)
        except BaseException:
            if ours:
                brake.put_back_token()
            raise
        if not ours:
            brake.put_back_token()
        self._note_dead(retry_state, undelivered.event, reason, detail)
        return Dead(reason)

    def _note_dead(self, retry_state: RetryState, event: DeliveryEvent | None, reason: DeadReason, detail: str) -> None:
        metrics.DEAD_LETTERS.labels(reason.value).inc()
        metrics.EVENTS_FINISHED.labels(FinishedResult.DEAD_LETTERED.value).inc()
        tenant = None if event is None else event.tenant
        if tenant is not None:
            self._tenants.count(tenant, FinishedResult.DEAD_LETTERED.value)
            self._tenants.worst.ended(tenant, retry_state.first_seen)
        if self._history is not None:
            self._history.record_dead(event, retry_state.origin, reason, retry_state.attempts, detail)
        if self._event_log.sampled("event dead-lettered", tenant, reason.value):
            log.warning(
                "event dead-lettered", origin=str(retry_state.origin), tenant=None if tenant is None else str(tenant),
                webhook_id=None if event is None else event.webhook_id, reason=reason.value, detail=detail,
            )  # fmt: skip


def after_attempts(
    retry_state: RetryState, attempts: int, status: int | None, reason: str, due_at: float = 0.0
) -> RetryState:
    """Returns the state after the event's latest attempts. `due_at`: when it is due, if it is parked; 0 if not."""
    parks = retry_state.parks + (1 if due_at else 0)
    last_status = status if status is not None else retry_state.last_status
    return replace(
        retry_state, attempts=attempts, parks=parks, not_before=due_at, last_status=last_status, reason=str(reason)
    )


async def _refusal(writing: Awaitable[None]) -> RecordTooLarge | None:
    """Awaits a write, and returns the error if the record is too large. Compiled code must not await in an `except`."""
    try:
        await writing
    except RecordTooLarge as error:
        return error
    return None
