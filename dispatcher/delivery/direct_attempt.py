"""A parcel's first attempt without a task: the lane says when, the connection says how it ended.

Nearly every event is delivered by one POST on a connection that rests, or waits in its lane for that. Such an event
needs no coroutine, which costs time to switch to and memory to keep. Whatever else may happen (a slot refused, a
webhook edited meanwhile, an attempt that failed) is `on_fallback`: it goes the full way, `Deliverer.deliver`.
"""

import asyncio
from abc import ABC, abstractmethod
from contextvars import Context
from typing import Final

import structlog

from dispatcher.contract.outcomes import Attempt
from dispatcher.delivery.deliverer import Deliverer
from dispatcher.delivery.lane import Lane
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

    __slots__ = ("_deliveries", "_exchange", "_lane", "_permit", "_task", "is_over", "pending", "since")

    priority: Final = Priority.NEW

    def __init__(self, deliveries: Deliverer, pending: PendingDelivery) -> None:
        self.pending = pending
        self.since = 0.0
        self.is_over = False
        self._deliveries = deliveries
        self._lane: Lane
        self._permit: Permit | None = None
        self._exchange: Exchange | None = None
        self._task: asyncio.Task[None] | None = None

    @abstractmethod
    def on_delivered(self) -> None:
        """Delivered, by the first attempt."""

    @abstractmethod
    def on_fallback(self, result: AttemptResult | None) -> None:
        """Needs the full way, after this attempt or refusal; None: nothing has happened yet."""

    @abstractmethod
    def on_cancelled(self) -> None:
        """Was cancelled while its task ran, and that has ended now."""

    @property
    def task(self) -> "asyncio.Task[None] | None":
        """The task that makes the attempt, where it needs one: to open a connection, to fetch a token."""
        return self._task

    def start(self) -> None:
        """Enter the tenant's lane."""
        self._lane, entry = self._deliveries.acquire(self.pending)
        if entry is None:
            self.since = self._deliveries.now()
            self._lane.queue(self)
        else:
            self.decide(entry)

    def decide(self, entry: Permit | LaneRefusal) -> None:
        """The lane's word: send now, or go the full way."""
        pending = self.pending
        if isinstance(entry, LaneRefusal):
            self._divert(AttemptResult(pending.attempts, refusal=entry))
            return
        self._permit = entry
        try:
            if not self._deliveries.is_current(pending.webhook):
                self._turn_back()
                return
            pending.processing.start()
            self._exchange = self._deliveries.begin(pending, self._answered)
        except Draining:
            self._turn_back()
            return
        except Exception as error:  # noqa: BLE001  (told there)
            self._fail(error)
            return
        if self._exchange is None:
            # In a context of its own: the current task may be another event's, whose span is not this one's.
            self._task = asyncio.get_running_loop().create_task(self._post(), name="flight", context=Context())
            self._task.add_done_callback(self._task_ended)

    def cancel(self) -> None:
        """Let it go. Where it has a `task`, `on_cancelled` is called once that has ended; else it is over now."""
        if self._task is not None:
            self._task.cancel()
            return
        self.is_over = True
        if self._exchange is not None and self._permit is not None:
            self._exchange.abort()
            self._lane.cancel(self._permit)

    async def _post(self) -> None:
        try:
            attempt = await self._deliveries.post(self.pending, self.pending.attempts + 1)
        except Exception as error:  # noqa: BLE001  (told there)
            self._fail(error)
        else:
            self._answered(attempt)

    def _task_ended(self, task: "asyncio.Task[None]") -> None:
        if task.cancelled():  # told here, since one that is cancelled before its first step never runs
            self._give_back()
            self.on_cancelled()

    def _answered(self, attempt: Attempt) -> None:
        permit = self._permit
        if permit is None:
            return  # unreachable: who has no slot has sent nothing
        try:
            result = self._deliveries.concluded(self._lane, self.pending, permit, self.pending.attempts + 1, attempt)
        except Exception as error:  # noqa: BLE001  (told there)
            self._fail(error)
            return
        self._task = self._exchange = None
        self.is_over = True
        if result.judgement is DELIVERED:
            self.on_delivered()
        else:
            self.on_fallback(result)

    def _turn_back(self) -> None:
        self._give_back()
        self.on_fallback(None)

    def _fail(self, error: Exception) -> None:
        metrics.ERRORS.labels("lanes").inc()
        log.error("event goes the full way because of a bug", tenant=str(self.pending.tenant), exc_info=error)
        self._turn_back()

    def _give_back(self) -> None:
        self._task = self._exchange = None
        self.is_over = True
        if self._permit is not None:
            self._lane.cancel(self._permit)

    def _divert(self, result: AttemptResult) -> None:
        self.is_over = True
        self.on_fallback(result)
