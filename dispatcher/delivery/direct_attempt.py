"""Makes an event's first attempt without a task: the lane starts it, and the connection reports how it ended.

Nearly every event is delivered by one POST on an idle connection, or waits in its lane for one. Such an event needs no
coroutine, which would cost time to switch to and memory to keep. Everything else (a refused permit, a webhook edited
meanwhile, a failed attempt) calls `on_fallback`, and the event takes the slow path, `Deliverer.deliver`.
"""

import asyncio
from abc import ABC, abstractmethod
from contextvars import Context
from typing import Final

import structlog

from dispatcher.contract.outcomes import Attempt
from dispatcher.delivery.deliverer import Deliverer
from dispatcher.delivery.lane_scheduler import Lane
from dispatcher.delivery.pending_delivery import AttemptResult, PendingDelivery
from dispatcher.delivery.permits import LaneRefusal, Permit, Priority
from dispatcher.delivery.verdicts import DELIVERED
from dispatcher.errors import Draining
from dispatcher.telemetry import metrics
from dispatcher.transport.request import Exchange

log = structlog.get_logger(__name__)


class DirectAttempt(ABC):
    """A first attempt without a task of its own.

    Call `start` once; then exactly one of `on_delivered`, `on_fallback` and `on_cancelled` is called.
    """

    __slots__ = ("_deliverer", "_exchange", "_lane", "_permit", "_task", "is_over", "pending", "since")

    priority: Final = Priority.NEW

    def __init__(self, deliverer: Deliverer, pending: PendingDelivery) -> None:
        self.pending = pending
        self.since = 0.0
        self.is_over = False
        self._deliverer = deliverer
        self._lane: Lane
        self._permit: Permit | None = None
        self._exchange: Exchange | None = None
        self._task: asyncio.Task[None] | None = None

    @abstractmethod
    def on_delivered(self) -> None:
        """Reports that the first attempt delivered the event."""

    @abstractmethod
    def on_fallback(self, result: AttemptResult | None) -> None:
        """Reports that the event needs the slow path, after this attempt or refusal. None: nothing has happened yet."""

    @abstractmethod
    def on_cancelled(self) -> None:
        """Reports that the task of a cancelled attempt has ended."""

    @property
    def task(self) -> "asyncio.Task[None] | None":
        """Task that makes the attempt, if one is needed: to open a connection or to fetch a token."""
        return self._task

    def start(self) -> None:
        """Enters the tenant's lane."""
        self._lane, entry = self._deliverer.acquire(self.pending)
        if entry is None:
            self.since = self._deliverer.now()
            self._lane.queue(self)
        else:
            self.decide(entry)

    def decide(self, entry: Permit | LaneRefusal) -> None:
        """Takes the lane's answer: sends now, or falls back to the slow path."""
        pending = self.pending
        if isinstance(entry, LaneRefusal):
            self._fall_back(AttemptResult(pending.attempts, refusal=entry))
            return
        self._permit = entry
        try:
            if not self._deliverer.is_current(pending.webhook):
                self._release_and_fall_back()
                return
            pending.processing.start()
            self._exchange = self._deliverer.start_attempt(pending, self._answered)
        except Draining:
            self._release_and_fall_back()
            return
        except Exception as error:  # noqa: BLE001  (reported there)
            self._fail(error)
            return
        if self._exchange is None:
            # In a context of its own: the current task may be another event's, whose span is not this one's.
            self._task = asyncio.get_running_loop().create_task(self._post(), name="direct attempt", context=Context())
            self._task.add_done_callback(self._task_ended)

    def cancel(self) -> None:
        """Cancels the attempt. If it has a `task`, `on_cancelled` is called once that has ended; else it ends now."""
        if self._task is not None:
            self._task.cancel()
            return
        self.is_over = True
        if self._exchange is not None and self._permit is not None:
            self._exchange.abort()
            self._lane.cancel(self._permit)

    async def _post(self) -> None:
        try:
            attempt = await self._deliverer.post(self.pending, self.pending.attempts + 1)
        except Exception as error:  # noqa: BLE001  (reported there)
            self._fail(error)
        else:
            self._answered(attempt)

    def _task_ended(self, task: "asyncio.Task[None]") -> None:
        if task.cancelled():  # handled here, because a task that is cancelled before its first step never runs
            self._release()
            self.on_cancelled()

    def _answered(self, attempt: Attempt) -> None:
        permit = self._permit
        if permit is None:
            return  # unreachable: without a permit nothing was sent
        try:
            result = self._deliverer.conclude(self._lane, self.pending, permit, self.pending.attempts + 1, attempt)
        except Exception as error:  # noqa: BLE001  (reported there)
            self._fail(error)
            return
        self._task = self._exchange = None
        self.is_over = True
        if result.judgement is DELIVERED:
            self.on_delivered()
        else:
            self.on_fallback(result)

    def _release_and_fall_back(self) -> None:
        self._release()
        self.on_fallback(None)

    def _fail(self, error: Exception) -> None:
        metrics.ERRORS.labels("lanes").inc()
        log.error("event falls back to the slow path because of a bug", tenant=str(self.pending.tenant), exc_info=error)
        self._release_and_fall_back()

    def _release(self) -> None:
        self._task = self._exchange = None
        self.is_over = True
        if self._permit is not None:
            self._lane.cancel(self._permit)

    def _fall_back(self, result: AttemptResult) -> None:
        self.is_over = True
        self.on_fallback(result)
