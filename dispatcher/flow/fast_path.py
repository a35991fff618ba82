"""Fast path: delivers a record without creating a task when nothing has to be awaited.

It does what `Pipeline.process` does, for new, readable events whose webhook is in memory and which are skipped or
delivered by their first attempt. Everything else falls back to the slow path, from the start or after the attempt
that was made. As in the pipeline, a record is done only with an outcome, which the owner's `on_finished` receives.
"""

from collections.abc import Callable
from typing import Final, Protocol

from dispatcher.contract.events import OtherEvent
from dispatcher.contract.feedback import MAX_WARNED
from dispatcher.contract.outcomes import Delivered, Outcome, SkipReason
from dispatcher.contract.records import Origin, ProcessingAttempt, Record
from dispatcher.delivery.deliverer import Deliverer
from dispatcher.delivery.direct_attempt import DirectAttempt
from dispatcher.delivery.history_recorder import HistoryRecorder
from dispatcher.delivery.pending_delivery import AttemptResult, PendingDelivery
from dispatcher.delivery.permits import Priority
from dispatcher.flow.decision import decide, read_record
from dispatcher.flow.pipeline import Pipeline
from dispatcher.stores.cache import NOT_CACHED, WebhookStore

_AT_ONCE: Final = Delivered(1)


class RecordListener(Protocol):
    """Receives how a record leaves the fast path: exactly one of these is called, within `start` or later.

    Implemented by `kafka.partition.InFlightRecord`, a layer above.
    """

    def on_finished(self, outcome: Outcome, /) -> None:
        """Reports that the record has its outcome."""

    def on_fallback(self, result: AttemptResult | None) -> None:
        """Reports that the record needs `Pipeline.process`, with the result of the attempt that was made already."""

    def on_cancelled(self) -> None:
        """Reports that a cancelled attempt has ended."""


class FastPath:
    """Processes records without an asyncio task for each. There is one per process."""

    def __init__(
        self,
        pipeline: Pipeline,
        webhooks: WebhookStore,
        deliverer: Deliverer,
        max_record_bytes: int,
        max_body: int,
        is_sampled: Callable[[Record], bool] | None = None,
        history: HistoryRecorder | None = None,
    ) -> None:
        """Builds the fast path around the pipeline that is its slow path.

        Args:
            is_sampled: returns whether tracing follows a record; such records take the slow path, which has spans.
        """
        self._pipeline = pipeline
        self._history = history
        self._webhooks = webhooks
        self._deliverer = deliverer
        self._max_record_bytes = max_record_bytes
        self._largest = min(max_body, MAX_WARNED)
        self._is_sampled = is_sampled

    def start(self, record: Record, processing: ProcessingAttempt, owner: RecordListener) -> DirectAttempt | None:
        """Delivers or skips the record without awaiting, or calls `on_fallback`. Never raises for a record's content.

        Returns the attempt in progress, or None if the record is finished or fell back.
        """
        try:
            decided = self._decide(record, processing)
        except Exception:  # noqa: BLE001  (the slow path meets the same error, and reports it)
            decided = None
        if decided is None:
            owner.on_fallback(None)
        elif isinstance(decided, PendingDelivery):
            direct_attempt = _EventAttempt(self._deliverer, decided, self._pipeline, record, owner)
            direct_attempt.start()
            return None if direct_attempt.is_over else direct_attempt
        else:
            owner.on_finished(decided)
        return None

    async def resume(self, record: Record, processing: ProcessingAttempt, first_result: AttemptResult) -> Outcome:
        """Runs the slow path for a record whose first attempt was made. Raises what `Pipeline.process` raises."""
        return await self._pipeline.process(record, processing, first_result)

    def _decide(self, record: Record, processing: ProcessingAttempt) -> PendingDelivery | Outcome | None:
        """Returns what to send, or the outcome if nothing is sent, or None if the record needs the slow path."""
        if self._is_sampled is not None and self._is_sampled(record):
            return None
        origin = Origin(record.topic, record.partition, record.offset)
        event = read_record(record, origin, self._max_record_bytes)
        if isinstance(event, OtherEvent):
            return self._pipeline.skipped(record, SkipReason.NOT_FEEDBACK, None, origin)
        webhook = self._webhooks.get_cached(event.tenant)
        if webhook is NOT_CACHED or self._deliverer.is_busy_closing:
            return None
        decided = decide(event, webhook)
        if not isinstance(decided, tuple):
            if not isinstance(decided, SkipReason):
                return None
            return self._pipeline.skipped(record, decided, event, origin, has_webhook=webhook is not None)
        wanting, body = decided
        if len(body) > self._largest:
            return None
        ids = None if self._history is None else self._history.ids_of(event)
        return PendingDelivery.of(event, wanting, body, 0, Priority.NEW, processing, origin, ids=ids)


class _EventAttempt(DirectAttempt):
    """A direct attempt whose result is the outcome of its record."""

    __slots__ = ("_owner", "_pipeline", "_record")

    def __init__(
        self, deliverer: Deliverer, pending: PendingDelivery, pipeline: Pipeline, record: Record, owner: RecordListener
    ) -> None:
        super().__init__(deliverer, pending)
        self._pipeline = pipeline
        self._record = record
        self._owner = owner

    def on_delivered(self) -> None:
        self._pipeline.record_direct_delivery(self._record, self.pending, _AT_ONCE)
        self._owner.on_finished(_AT_ONCE)

    def on_fallback(self, result: AttemptResult | None) -> None:
        self._owner.on_fallback(result)

    def on_cancelled(self) -> None:
        self._owner.on_cancelled()
