"""Slots: the right to have one POST under way, and how many there are for whom.

All lanes together have `max_in_flight` of them. Retries never hold more than a quarter, the last quarter is for lanes
that have less than their share, and one turn of the event loop gives a few at most. Pure arithmetic: whose turn it is,
`lanes` knows.
"""

from dataclasses import dataclass
from enum import Enum, auto
from typing import Final, Protocol

from dispatcher.contract.outcomes import ParkReason

SLOTS_A_TURN: Final = 16
"""Slots given in one turn of the event loop. On a busy core more requests under way bring nothing: their answers wait
here, each on a connection of its own, and turn the processor's caches over. So what has come is read before more is
sent. A slow endpoint still gets all the permits it can use, within some turns: milliseconds."""
_RETRY_SHARE: Final = 4
_SCARCE_SHARE: Final = 4


class Priority(Enum):
    """Whether an event comes fresh from its topic or was tried before."""

    NEW = auto()
    RETRY = auto()


@dataclass(frozen=True, slots=True)
class LaneRefusal:
    """No slot: the event is to be parked, without having used up an attempt."""

    reason: ParkReason
    for_s: float
    """Seconds for which it makes no sense to come back."""


@dataclass(slots=True)
class Permit:
    """The right to one POST, from `Lane.enter` until `Lane.leave` or `Lane.abandon`."""

    priority: Priority
    began_at: float
    was_full: bool
    probe: bool
    """The one attempt that a half-open breaker lets through."""


class Waiter(Protocol):
    """Waits in a lane. `decide` is called once, with its slot or the reason why it should be parked."""

    @property
    def priority(self) -> Priority: ...
    @property
    def since(self) -> float:
        """When it began to wait: seconds of the loop's clock."""
        ...

    @property
    def is_over(self) -> bool:
        """It waits no more: decided, or cancelled."""
        ...

    def decide(self, entry: Permit | LaneRefusal) -> None: ...


class Permits:
    """The count of them. One for the process."""

    __slots__ = ("_left", "_most_retries", "_scarce_from", "fair_share", "is_busy", "most", "taken", "taken_by_retries")

    def __init__(self, most: int) -> None:
        self.most = most
        self.taken = 0
        self.taken_by_retries = 0
        self.fair_share = max(1, most)
        """Slots of each lane, were they divided evenly; at least one."""
        self.is_busy = False
        """A turn had too few slots for all who waited, since that was last asked: they wait for the core."""
        self._left = SLOTS_A_TURN
        self._scarce_from = most - most // _SCARCE_SHARE
        self._most_retries = max(1, most // _RETRY_SHARE)

    @property
    def is_full(self) -> bool:
        """Every slot is taken."""
        return self.taken >= self.most

    @property
    def is_scarce(self) -> bool:
        """Only the slots that are kept for lanes below their share are left."""
        return self.taken >= self._scarce_from

    @property
    def is_turn_over(self) -> bool:
        """As many were given as one turn of the event loop has."""
        return self._left <= 0

    def has_free(self, priority: Priority) -> bool:
        """Whether a slot is free for such an event."""
        return self.taken < self.most and (priority is Priority.NEW or self.taken_by_retries < self._most_retries)

    def may_take(self, priority: Priority, held: int) -> bool:
        """Whether a lane that holds so many may have another one for such an event."""
        return self.has_free(priority) and (self.taken < self._scarce_from or held < self.fair_share)

    def take(self, priority: Priority) -> None:
        """One is given."""
        self.taken += 1
        self._left -= 1
        if priority is Priority.RETRY:
            self.taken_by_retries += 1

    def give_back(self, priority: Priority) -> None:
        """One comes back."""
        self.taken -= 1
        if priority is Priority.RETRY:
            self.taken_by_retries -= 1

    def share_among(self, lanes: int) -> None:
        """There are so many lanes now."""
        self.fair_share = max(1, self.most // lanes)

    def next_turn(self, *, somebody_waits: bool) -> None:
        """The event loop's next turn has begun."""
        if self._left <= 0 and somebody_waits:
            self.is_busy = True
        self._left = SLOTS_A_TURN
