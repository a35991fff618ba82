"""A parcel's first attempt without a task: the lane says when, the connection says how it ended.

Nearly every event is delivered by one POST on a connection that rests, or waits in its lane for that. Such an event
needs no coroutine, which costs time to switch to and memory to keep. Whatever else may happen (a slot refused, a
webhook edited meanwhile, an attempt that failed) is `diverted`: it goes the full way, `Deliveries.deliver`.
"""

import asyncio
from abc import ABC, abstractmethod
from typing import Final

import structlog

from dispatcher import metrics
from dispatcher.delivery.deliveries import Deliveries
from dispatcher.delivery.lane import Lane
from dispatcher.delivery.parcels import Parcel, Tried
from dispatcher.delivery.slots import Kind, Refusal, Slot
from dispatcher.delivery.verdicts import DELIVERED
from dispatcher.errors import Draining
from dispatcher.outcomes import Attempt
from dispatcher.transport.request import Exchange

log = structlog.get_logger(__name__)


class Flight(ABC):
    """One parcel under way. `depart` once; then exactly one of `landed`, `diverted`, `released` is called."""

    __slots__ = ("_deliveries", "_exchange", "_lane", "_slot", "_task", "is_over", "parcel", "since")

    kind: Final = Kind.NEW

    def __init__(self, deliveries: Deliveries, parcel: Parcel) -> None:
        self.parcel = parcel
        self.since = 0.0
        self.is_over = False
        self._deliveries = deliveries
        self._lane: Lane
        self._slot: Slot | None = None
        self._exchange: Exchange | None = None
        self._task: asyncio.Task[None] | None = None

    @abstractmethod
    def landed(self) -> None:
        """Delivered, by the first attempt."""

    @abstractmethod
    def diverted(self, tried: Tried | None) -> None:
        """Needs the full way, after this attempt or refusal; None: nothing has happened yet."""

    @abstractmethod
    def released(self) -> None:
        """Was cancelled while its task ran, and that has ended now."""

    @property
    def task(self) -> "asyncio.Task[None] | None":
        """The task that makes the attempt, where it needs one: to open a connection, to fetch a token."""
        return self._task

    def depart(self) -> None:
        """Enter the tenant's lane."""
        self._lane, entry = self._deliveries.enter(self.parcel)
        if entry is None:
            self.since = self._deliveries.now()
            self._lane.queue(self)
        else:
            self.decide(entry)

    def decide(self, entry: Slot | Refusal) -> None:
        """The lane's word: send now, or go the full way."""
        parcel = self.parcel
        if isinstance(entry, Refusal):
            self._divert(Tried(parcel.attempts, refusal=entry))
            return
        self._slot = entry
        try:
            if not self._deliveries.is_current(parcel.webhook):
                self._turn_back()
                return
            parcel.turn.start()
            self._exchange = self._deliveries.begin(parcel, self._answered)
        except Draining:
            self._turn_back()
            return
        except Exception as error:  # noqa: BLE001  (told there)
            self._fail(error)
            return
        if self._exchange is None:
            self._task = asyncio.get_running_loop().create_task(self._post(), name="flight")
            self._task.add_done_callback(self._task_ended)

    def cancel(self) -> None:
        """Let it go. Where it has a `task`, `released` is called once that has ended; else it is over now."""
        if self._task is not None:
            self._task.cancel()
            return
        self.is_over = True
        if self._exchange is not None and self._slot is not None:
            self._exchange.abort()
            self._lane.abandon(self._slot)

    async def _post(self) -> None:
        try:
            attempt = await self._deliveries.post(self.parcel, self.parcel.attempts + 1)
        except Exception as error:  # noqa: BLE001  (told there)
            self._fail(error)
        else:
            self._answered(attempt)

    def _task_ended(self, task: "asyncio.Task[None]") -> None:
        if task.cancelled():  # told here, since one that is cancelled before its first step never runs
            self._give_back()
            self.released()

    def _answered(self, attempt: Attempt) -> None:
        slot = self._slot
        if slot is None:
            return  # unreachable: who has no slot has sent nothing
        try:
            tried = self._deliveries.concluded(self._lane, self.parcel, slot, self.parcel.attempts + 1, attempt)
        except Exception as error:  # noqa: BLE001  (told there)
            self._fail(error)
            return
        self._task = self._exchange = None
        self.is_over = True
        if tried.judgement is DELIVERED:
            self.landed()
        else:
            self.diverted(tried)

    def _turn_back(self) -> None:
        self._give_back()
        self.diverted(None)

    def _fail(self, error: Exception) -> None:
        metrics.ERRORS.labels("lanes").inc()
        log.error("event goes the full way because of a bug", tenant=str(self.parcel.tenant), exc_info=error)
        self._turn_back()

    def _give_back(self) -> None:
        self._task = self._exchange = None
        self.is_over = True
        if self._slot is not None:
            self._lane.abandon(self._slot)

    def _divert(self, tried: Tried) -> None:
        self.is_over = True
        self.diverted(tried)
