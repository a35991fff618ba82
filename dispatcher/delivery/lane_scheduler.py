"""Schedules all lanes: one a tenant, sharing the process's permits fairly; a bad endpoint slows its own tenant only.

A lane (`lane`) grants at most as many permits as its endpoint handles; all lanes together grant what `permits` allows.
Permits are granted in rounds: every lane with a waiting event gets one before any lane gets a second.

A waiting event that has no prospect of a permit is parked, so that it doesn't hold up the events behind it. Two kinds
are parked: an event that waited longer than `lane_max_wait`, and a new event of a lane that holds far more than its
share while the process has no room to read on. If there is only one lane, or if every lane is busy, nothing is parked:
then it is better to stop reading.

Everything here runs on the event loop without awaiting.
"""

import asyncio
from collections import Counter, deque
from collections.abc import Iterator
from typing import Protocol

from dispatcher.config.settings import DeliverySettings
from dispatcher.contract.tenant import TenantKey
from dispatcher.delivery.breaker import BreakerState
from dispatcher.delivery.endpoint_health import TenantState
from dispatcher.delivery.lane import IDLE_S, Lane
from dispatcher.delivery.permits import Permits, Priority
from dispatcher.telemetry import metrics

_CROWDED = 0.8
_MOST_OF_ROOM = 0.75
_TICK_S = 1.0


class ReadAhead(Protocol):
    """How much was read and is not finished yet: `kafka.partition.ReadAheadLimit`, a layer above."""

    @property
    def records(self) -> int: ...
    @property
    def limit(self) -> int: ...


class LaneScheduler:
    """All lanes, and the slots that they share."""

    def __init__(self, settings: DeliverySettings, read_ahead: ReadAhead | None = None) -> None:
        """`read_ahead`: says whether there is room to read on. None: there always is."""
        self.settings = settings
        self.permits = Permits(settings.max_in_flight)
        self._read_ahead = read_ahead
        self._ticking: asyncio.TimerHandle | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._lanes: dict[TenantKey, Lane] = {}
        self._ring: deque[Lane] = deque()
        """Lanes with waiting events, in the order in which they get permits."""
        self._starved: set[Lane] = set()
        """Lanes set aside while retries have their share, or slots are scarce."""
        self._awaits_turn = False
        self._swept_at = 0.0
        metrics.CONCURRENCY_LIMIT.set(settings.max_in_flight)

    def __repr__(self) -> str:
        return f"<Lanes {len(self._lanes)} tenants, {self.permits.taken}/{self.permits.most} in flight>"

    def now(self) -> float:
        """Returns the seconds of the loop's monotonic clock."""
        return self.loop.time()

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The event loop, looked up once: the lookup is a system call each time (getpid, until Python 3.12)."""
        if self._loop is None:
            self._loop = asyncio.get_running_loop()
        return self._loop

    def __len__(self) -> int:
        return len(self._lanes)

    def __iter__(self) -> Iterator[Lane]:
        return iter(self._lanes.values())

    def get(self, tenant: TenantKey) -> Lane | None:
        """Returns the tenant's lane, if it has one."""
        return self._lanes.get(tenant)

    def lane(self, tenant: TenantKey) -> Lane:
        """The tenant's lane, made if need be."""
        lane = self._lanes.get(tenant)
        if lane is None:
            self._sweep()
            lane = self._lanes[tenant] = Lane(tenant, self, self.settings)
            lane.last_active = self.now()
            self.permits.share_among(len(self._lanes))
        return lane

    def is_crowded_by(self, lane: Lane) -> bool:
        """Whether the process has no room to read on, and this lane holds far more of it than its share."""
        ahead, lanes = self._read_ahead, len(self._lanes)
        if ahead is None or lanes < 2 or ahead.records < _CROWDED * ahead.limit:
            return False
        return lane.waiting > max(ahead.limit * min(_MOST_OF_ROOM, 2 / lanes), 2 * lane.limit.now)

    @property
    def is_others_turn(self) -> bool:
        """True if a new event has to wait: others wait, or this turn of the event loop has granted its permits."""
        return bool(self._ring) or self.permits.is_turn_over

    def took(self, priority: Priority) -> None:
        """A slot was given."""
        self.permits.take(priority)
        self._await_turn()

    def gave_back(self, priority: Priority) -> None:
        """A slot came back: the next in turn gets it."""
        self.permits.give_back(priority)
        if self._starved and not self.permits.is_scarce:
            for lane in self._starved:
                self.enqueue(lane)
            self._starved.clear()
        if self._ring:
            self._await_turn()

    def enqueue(self, lane: Lane) -> None:
        """Puts a lane with waiting events into the ring."""
        if not lane.queued:
            lane.queued = True
            self._ring.append(lane)
        self._await_turn()
        self.tick_later()

    def tick_later(self) -> None:
        """Schedules a look in a second at whether an event has waited too long."""
        if self._ticking is None:
            self._ticking = asyncio.get_running_loop().call_later(_TICK_S, self._tick)

    def _tick(self) -> None:
        """Runs once a second while events wait; `enqueue` schedules the next run."""
        self._ticking = None
        now = self.now()
        for lane in self._lanes.values():
            if lane.waiting:
                lane.refuse_stale(now)
            if lane.waiting:
                # What was set aside for want of a share of slots has no event of its own that brings it back.
                self.enqueue(lane)
        self.permits.is_busy = False

    def observe(self) -> None:
        """Set the gauges, for a scrape."""
        states = [lane.evidence.state for lane in self]
        metrics.IN_FLIGHT.set(self.permits.taken)
        metrics.LANES.set(len(self))
        metrics.WAITING.set(sum(lane.waiting for lane in self))
        metrics.BREAKERS_OPEN.set(sum(lane.breaker.state is not BreakerState.CLOSED for lane in self))
        failing = Counter(
            lane.last_failure.reason for lane in self if lane.is_failing and lane.last_failure is not None
        )
        for reason in metrics.FAILED_ATTEMPT_REASONS:
            metrics.TENANTS_FAILING.labels(reason).set(failing[reason])
        metrics.TENANT_STATES.labels("unstable").set(states.count(TenantState.UNSTABLE))
        metrics.TENANT_STATES.labels("disabled").set(states.count(TenantState.DISABLED))
        metrics.TENANT_STATES.labels("suspended").set(sum(lane.suspended is not None for lane in self))

    def _await_turn(self) -> None:
        if not self._awaits_turn:
            self._awaits_turn = True
            self.loop.call_soon(self._next_turn)

    def _next_turn(self) -> None:
        """Give this turn's slots, in the order of the ring."""
        self._awaits_turn = False
        now, permits, ring = self.now(), self.permits, self._ring
        permits.next_turn(somebody_waits=bool(ring))
        while ring and not permits.is_turn_over and not permits.is_full:
            lane = ring.popleft()
            lane.queued = False
            if lane.grant_next(now):
                self._look_again(lane)
            elif lane.waiting:
                self._set_aside(lane, now)

    def _look_again(self, lane: Lane) -> None:
        """After a slot for it: its next turn, or why there is none yet."""
        if not lane.wants_permit:
            return
        if self.permits.is_scarce and lane.in_flight >= self.permits.fair_share:
            self._starved.add(lane)
        else:
            self.enqueue(lane)

    def _set_aside(self, lane: Lane, now: float) -> None:
        """Takes the lane out of the ring. What blocks it brings it back: an answer, a timer, a retry's end."""
        lane.refuse_if_needed(now)
        lane.sleep_until_ready(now)
        if not self.permits.has_free(Priority.RETRY) or self.permits.is_scarce:
            self._starved.add(lane)

    def _sweep(self) -> None:
        now = self.now()
        if now - self._swept_at < IDLE_S / 4:
            return
        self._swept_at = now
        for tenant in [tenant for tenant, lane in self._lanes.items() if lane.is_idle(now)]:
            del self._lanes[tenant]
