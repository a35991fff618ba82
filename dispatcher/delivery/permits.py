"""Permits, each the right to have one POST in flight, and how they are shared between lanes and priorities.

All lanes together have `max_in_flight` of them. Retries never hold more than a quarter, the last quarter is for lanes
that have less than their share, and one turn of the event loop grants a few at most. Pure arithmetic: whose turn it is
is decided by `lane_scheduler`.
"""

import asyncio
from dataclasses import dataclass
from enum import Enum, auto
from typing import Final, Protocol

from dispatcher.contract.outcomes import ParkReason

PERMITS_A_TURN: Final = 16
"""Permits granted in one turn of the event loop. On a busy core more requests in flight gain nothing: answers wait,
each on a connection of its own, and turn the processor's caches over. So what has come is read before more is sent. A
slow endpoint still gets all the permits it can use, within some turns: milliseconds."""
_RETRY_SHARE: Final = 4  # retries hold at most one such part of all permits
_SCARCE_SHARE: Final = 4  # the last such part is for lanes that have less than their share


class Priority(Enum):
    """Whether an event comes fresh from its topic or was tried before."""

    NEW = auto()
    RETRY = auto()


@dataclass(frozen=True, slots=True)
class LaneRefusal:
    """Refusal of a permit: the event is parked without using up an attempt."""

    reason: ParkReason
    for_s: float
    """Seconds for which another try makes no sense."""


@dataclass(slots=True)
class Permit:
    """The right to one POST, from the lane's grant until `Lane.release` or `Lane.cancel`."""

    priority: Priority
    began_at: float
    was_full: bool
    probe: bool
    """The one attempt that a half-open breaker lets through."""
    generation: int
    """Generation of the endpoint's state when it was granted; see `EndpointState.generation`."""


class Waiter(Protocol):
    """Waits in a lane: a task, or a `DirectAttempt`, which has none.

    `decide` is called once, with the permit or the reason why the event should be parked.
    """

    @property
    def priority(self) -> Priority: ...
    @property
    def since(self) -> float:
        """When it began to wait: seconds of the loop's clock."""
        ...

    @property
    def is_over(self) -> bool:
        """True if it waits no longer: decided, or cancelled."""
        ...

    def decide(self, entry: Permit | LaneRefusal) -> None: ...


@dataclass(slots=True)
class WaitingTask:
    """A task that waits in a lane, on a future."""

    future: "asyncio.Future[Permit | LaneRefusal]"
    priority: Priority
    since: float

    @property
    def is_over(self) -> bool:
        return self.future.done()

    def decide(self, entry: Permit | LaneRefusal) -> None:
        self.future.set_result(entry)


class ReadAhead(Protocol):
    """Number of unfinished records that were read. Implemented by `kafka.read_ahead.ReadAheadLimit`, a layer above."""

    @property
    def records(self) -> int: ...
    @property
    def limit(self) -> int: ...


class Permits:
    """Counts the permits of the process."""

    __slots__ = ("_left", "_most_retries", "_scarce_from", "fair_share", "is_busy", "most", "taken", "taken_by_retries")

    def __init__(self, most: int) -> None:
        self.most = most
        self.taken = 0
        self.taken_by_retries = 0
        self.fair_share = max(1, most)
        """Permits of each lane if they were divided evenly; at least one."""
        self.is_busy = False
        """True if a turn had too few permits for all waiting events since the last reset: they wait for the core."""
        self._left = PERMITS_A_TURN
        self._scarce_from = most - most // _SCARCE_SHARE
        self._most_retries = max(1, most // _RETRY_SHARE)

    @property
    def is_full(self) -> bool:
        """True if every permit is taken."""
        return self.taken >= self.most

    @property
    def is_scarce(self) -> bool:
        """True if only the permits that are kept for lanes below their share are left."""
        return self.taken >= self._scarce_from

    @property
    def is_turn_over(self) -> bool:
        """True if this iteration of the event loop has granted as many permits as it may."""
        return self._left <= 0

    def has_free(self, priority: Priority) -> bool:
        """Returns whether a permit is free for an event of this priority."""
        return self.taken < self.most and (priority is Priority.NEW or self.taken_by_retries < self._most_retries)

    def may_take(self, priority: Priority, in_use: int) -> bool:
        """Returns whether a lane with `in_use` permits may take another one for an event of this priority."""
        return self.has_free(priority) and (self.taken < self._scarce_from or in_use < self.fair_share)

    def take(self, priority: Priority) -> None:
        """Counts a permit that is granted."""
        self.taken += 1
        self._left -= 1
        if priority is Priority.RETRY:
            self.taken_by_retries += 1

    def release(self, priority: Priority) -> None:
        """Counts a permit that is released."""
        self.taken -= 1
        if priority is Priority.RETRY:
            self.taken_by_retries -= 1

    def share_among(self, lanes: int) -> None:
        """Sets the fair share of each lane, for this number of lanes."""
        self.fair_share = max(1, self.most // lanes)

    def next_turn(self, *, are_waiting: bool) -> None:
        """Begins the event loop's next iteration. `are_waiting`: True if lanes wait for a permit."""
        if self._left <= 0 and are_waiting:
            self.is_busy = True
        self._left = PERMITS_A_TURN
