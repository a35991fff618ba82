"""Schedules all lanes: one a tenant, sharing the process's permits fairly; a bad endpoint slows its own tenant only.

A lane grants at most as many permits as its endpoint handles (`endpoint_state`, which is pure); all lanes together
grant what `permits` allows. Permits are granted in rounds: every lane with a waiting event gets one before any lane
gets a second. In a lane new events go before retries; of four permits granted while both wait, one goes to a retry.

A waiting event that has no prospect of a permit is parked, so that it doesn't hold up the events behind it. Two kinds
are parked: an event that waited longer than `lane_max_wait`, and a new event of a lane that holds far more than its
share while the process has no room to read on. If there is only one lane, or if every lane is busy, nothing is parked:
then it is better to stop reading.

Everything here runs on the event loop without awaiting, except `Lane.acquire`, which waits for a permit.
"""

import asyncio
from collections import deque
from collections.abc import Iterator
from typing import Final

from dispatcher.config.settings import DeliverySettings
from dispatcher.contract.outcomes import ParkReason
from dispatcher.contract.tenant import TenantKey
from dispatcher.delivery.endpoint_state import EndpointState
from dispatcher.delivery.permits import LaneRefusal, Permit, Permits, Priority, ReadAhead, Waiter, WaitingTask
from dispatcher.delivery.verdicts import Judgement
from dispatcher.telemetry import metrics

IDLE_S = 60.0
"""Time without activity after which a lane is freed, unless it remembers failures of its endpoint."""
_RETRY_TURN: Final = 4  # of this many permits of a lane, one goes to a retry
_CROWDED: Final = 0.8  # share of the read-ahead limit from which on the process has no room
_MOST_OF_ROOM: Final = 0.75  # share of that limit that one of two lanes may hold
_TICK_S: Final = 1.0
_SAME_TIME_S: Final = 0.001
"""Timers that differ by less are not set again: what is left of a wait is computed again each time."""


class Lane:
    """One tenant's queue. It grants at most as many permits as the tenant's endpoint handles."""

    __slots__ = (
        "_new",
        "_permits",
        "_retries",
        "_scheduler",
        "_since_retry",
        "_timer",
        "endpoint",
        "in_flight",
        "last_active",
        "queued",
        "tenant",
    )  # fmt: skip

    def __init__(self, tenant: TenantKey, scheduler: "LaneScheduler") -> None:
        settings = scheduler.settings
        self.tenant = tenant
        self.endpoint = EndpointState(settings.lane_start, settings.lane_max)
        self.in_flight = 0
        self.last_active = scheduler.now()
        self.queued = False
        """True while the lane is in the scheduler's ring of lanes that wait for a permit."""
        self._scheduler = scheduler
        self._permits = scheduler.permits
        self._new: deque[Waiter] = deque()
        self._retries: deque[Waiter] = deque()
        self._since_retry = 0
        """Permits granted to new events since a retry last got one."""
        self._timer: asyncio.TimerHandle | None = None

    def __repr__(self) -> str:
        endpoint = self.endpoint
        return (
            f"<Lane {self.tenant} {endpoint.breaker.state} {self.in_flight}/{endpoint.limit.now} in flight, "
            f"{self.waiting} waiting>"
        )

    @property
    def waiting(self) -> int:
        """Number of events that wait for a permit."""
        return len(self._new) + len(self._retries)

    @property
    def is_at_limit(self) -> bool:
        """True if as many requests are in flight as the limit allows; the lane continues when one of them ends."""
        return self.in_flight >= self.endpoint.limit.now

    @property
    def wants_permit(self) -> bool:
        """True if an event waits and the endpoint can take one more request."""
        return bool(self._new or self._retries) and not self.is_at_limit

    async def acquire(self, priority: Priority) -> Permit | LaneRefusal:
        """Waits for a permit. Returns it, or the reason why the event should be parked."""
        return self.try_acquire(priority) or await self.wait(priority)

    async def wait(self, priority: Priority) -> Permit | LaneRefusal:
        """Waits for a permit or a refusal, after `try_acquire` has just returned None."""
        waiter = WaitingTask(self._scheduler.loop.create_future(), priority, self._scheduler.now())
        self.queue(waiter)
        try:
            return await waiter.future
        except asyncio.CancelledError:
            if waiter.future.done() and not waiter.future.cancelled() and isinstance(waiter.future.result(), Permit):
                self.cancel(waiter.future.result())  # type: ignore[arg-type]  # just checked
            raise

    def queue(self, waiter: Waiter) -> None:
        """Adds a waiter, after `try_acquire` has just returned None."""
        (self._new if waiter.priority is Priority.NEW else self._retries).append(waiter)
        if self.is_at_limit:
            self._scheduler.tick_later()
        else:
            self._scheduler.enqueue(self)

    def try_acquire(self, priority: Priority) -> Permit | LaneRefusal | None:
        """Returns a permit or a refusal if that can be decided at once, or None if the event would have to wait."""
        scheduler, endpoint = self._scheduler, self.endpoint
        now = self.last_active = scheduler.now()
        is_ready = endpoint.is_ready(now)
        if not is_ready:
            refusal = endpoint.refusal(now, scheduler.settings.lane_max_wait)
            if refusal is not None:
                return refusal
        if self._new or self._retries:
            if priority is Priority.NEW and scheduler.is_crowded_by(self):
                return LaneRefusal(ParkReason.LANE_FULL, 0.0)
            return None
        if priority is Priority.NEW and scheduler.is_others_turn:
            return None
        in_use = self.in_flight
        if is_ready and in_use < endpoint.limit.now and self._permits.may_take(priority, in_use):
            return self._begin(priority, now)
        return None

    def release(self, permit: Permit, judgement: Judgement, hold_s: float | None = None) -> None:
        """Releases the permit and learns from the attempt. `hold_s`: seconds of pause that the endpoint asked for."""
        now = self.last_active = self._scheduler.now()
        changed = self.endpoint.record(now, permit, judgement, hold_s)
        if changed is not None:
            metrics.BREAKER_TRANSITIONS.labels(changed.value).inc()
        if self._new or self._retries:
            self.refuse_if_needed(now)
        self._release(permit)

    def cancel(self, permit: Permit) -> None:
        """Releases the permit without learning: the attempt was cancelled, not made, or proves nothing."""
        self.endpoint.breaker.cancel(probe=permit.probe and not self.is_outdated(permit))
        self._release(permit)

    def is_outdated(self, permit: Permit) -> bool:
        """Returns whether the permit's attempt proves nothing: the webhook was edited since, or enabled by hand."""
        return permit.generation != self.endpoint.generation

    def note_failure(self, reason: str, status: int | None, detail: str) -> None:
        """Records why an attempt failed, for operators. Changes nothing about what is sent."""
        self.last_active = self._scheduler.now()
        self.endpoint.note_failure(self.last_active, reason, status, detail)

    def suspend(self) -> None:
        """Stops sending until the webhook is edited, because the endpoint asked for that."""
        self.endpoint.suspended = True
        self._refuse_all(LaneRefusal(ParkReason.SUSPENDED, self._scheduler.settings.lane_max_wait))

    def apply_webhook(self, revision: str, per_second: float | None) -> None:
        """Applies the webhook that is about to be used. An edit lifts all holds."""
        if self.endpoint.apply_webhook(revision, per_second) and self.waiting:
            self._scheduler.enqueue(self)

    def enable(self) -> None:
        """Forgets the evidence against the endpoint, by hand or because the webhook was edited."""
        self.endpoint.enable()
        if self.waiting:
            self._scheduler.enqueue(self)

    def is_idle(self, now: float) -> bool:
        """Returns whether the lane can be freed without losing anything that matters."""
        return (
            not self.in_flight
            and not self.waiting
            and now - self.last_active >= IDLE_S
            and self.endpoint.is_quiet(now, self.last_active)
        )

    def grant_next(self, now: float) -> bool:
        """Grants a permit to the next waiter. Returns False if none can have one now."""
        waiters = self._next_queue()
        if waiters is None or not self._can_send(waiters[0].priority, now):
            return False
        waiter = waiters.popleft()
        self._since_retry = 0 if waiter.priority is Priority.RETRY else self._since_retry + 1
        waiter.decide(self._begin(waiter.priority, now))
        return True

    def refuse_if_needed(self, now: float) -> None:
        """Refuses all waiting events if the lane can't send for a while."""
        refusal = self.endpoint.refusal(now, self._scheduler.settings.lane_max_wait)
        if refusal is not None:
            self._refuse_all(refusal)

    def refuse_stale(self, now: float) -> None:
        """Refuses the events that waited too long because of this lane, not because the process is busy."""
        if self._permits.is_full and self.in_flight < self._permits.fair_share:
            return  # the process as a whole is busy
        if self._permits.is_busy and not self.is_at_limit and self.endpoint.is_ready(now):
            return  # the core is busy
        longest = self._scheduler.settings.lane_max_wait
        for queue in (self._new, self._retries):
            while queue and (queue[0].is_over or now - queue[0].since > longest):
                waiter = queue.popleft()
                if not waiter.is_over:
                    waiter.decide(LaneRefusal(ParkReason.LANE_FULL, 0.0))

    def sleep_until_ready(self, now: float) -> None:
        """Sets a timer for the moment at which the hold or the rate limit lets the next request pass."""
        wait = self.endpoint.ready_in_s(now)
        if wait <= 0 or not self.waiting:
            return
        if self._timer is not None:
            if self._timer.when() <= now + wait + _SAME_TIME_S:
                return
            self._timer.cancel()  # it was set for a hold or rate that an edit has lifted
        self._timer = asyncio.get_running_loop().call_later(wait, self._wake)

    def _wake(self) -> None:
        self._timer = None
        self._scheduler.enqueue(self)

    def _begin(self, priority: Priority, now: float) -> Permit:
        in_use = self.in_flight = self.in_flight + 1
        probe = self.endpoint.begin(now)
        self._scheduler.note_acquired(priority)
        return Permit(priority, now, in_use >= self.endpoint.limit.now, probe, self.endpoint.generation)

    def _release(self, permit: Permit) -> None:
        self.in_flight -= 1
        self._scheduler.note_released(permit.priority)
        if self._new or self._retries:
            self._scheduler.enqueue(self)

    def _can_send(self, priority: Priority, now: float) -> bool:
        in_use, endpoint = self.in_flight, self.endpoint
        return in_use < endpoint.limit.now and self._permits.may_take(priority, in_use) and endpoint.is_ready(now)

    def _next_queue(self) -> deque[Waiter] | None:
        while self._new and self._new[0].is_over:
            self._new.popleft()  # cancelled while it waited
        while self._retries and self._retries[0].is_over:
            self._retries.popleft()
        retries = self._retries if self._retries and self._permits.has_free(Priority.RETRY) else None
        if not self._new:
            return retries
        return retries if retries and self._since_retry >= _RETRY_TURN - 1 else self._new

    def _refuse_all(self, refusal: LaneRefusal) -> None:
        for queue in (self._new, self._retries):
            while queue:
                waiter = queue.popleft()
                if not waiter.is_over:
                    waiter.decide(refusal)


class LaneScheduler:
    """Keeps a lane for each tenant, and shares the process's permits fairly between them."""

    def __init__(self, settings: DeliverySettings, read_ahead: ReadAhead | None = None) -> None:
        """Creates a scheduler without lanes.

        Args:
            read_ahead: counts the records that were read ahead, and their limit; None if reading is never limited.
        """
        self.settings = settings
        self.permits = Permits(settings.max_in_flight)
        self._read_ahead = read_ahead
        self._ticking: asyncio.TimerHandle | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._lanes: dict[TenantKey, Lane] = {}
        self._ring: deque[Lane] = deque()
        """Lanes with waiting events, in the order in which they get permits."""
        self._starved: set[Lane] = set()
        """Lanes set aside while retries have their share, or permits are scarce."""
        self._awaits_turn = False
        self._swept_at = 0.0
        metrics.CONCURRENCY_LIMIT.set(settings.max_in_flight)

    def __repr__(self) -> str:
        return f"<LaneScheduler {len(self._lanes)} tenants, {self.permits.taken}/{self.permits.most} in flight>"

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
        """Returns the tenant's lane; creates it if the tenant has none."""
        lane = self._lanes.get(tenant)
        if lane is None:
            self._sweep()
            lane = self._lanes[tenant] = Lane(tenant, self)
            self.permits.share_among(len(self._lanes))
        return lane

    def is_crowded_by(self, lane: Lane) -> bool:
        """Returns whether the process has no room to read on, and this lane holds far more of it than its share."""
        ahead, lanes = self._read_ahead, len(self._lanes)
        if ahead is None or lanes < 2 or ahead.records < _CROWDED * ahead.limit:
            return False
        return lane.waiting > max(ahead.limit * min(_MOST_OF_ROOM, 2 / lanes), 2 * lane.endpoint.limit.now)

    @property
    def is_others_turn(self) -> bool:
        """True if a new event has to wait: others wait, or this turn of the event loop has granted its permits."""
        return bool(self._ring) or self.permits.is_turn_over

    def note_acquired(self, priority: Priority) -> None:
        """Counts a permit that a lane grants."""
        self.permits.take(priority)
        self._await_turn()

    def note_released(self, priority: Priority) -> None:
        """Counts a permit that a lane releases, and schedules a turn if another lane waits for one."""
        self.permits.release(priority)
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
        """Schedules a check, in one second, for events that have waited too long."""
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
                # A lane that was set aside because permits are scarce has no timer or answer that brings it back.
                self.enqueue(lane)
        self.permits.is_busy = False

    def _await_turn(self) -> None:
        if not self._awaits_turn:
            self._awaits_turn = True
            self.loop.call_soon(self._next_turn)

    def _next_turn(self) -> None:
        """Grants this turn's permits, in the order of the ring."""
        self._awaits_turn = False
        now, permits, ring = self.now(), self.permits, self._ring
        permits.next_turn(are_waiting=bool(ring))
        while ring and not permits.is_turn_over and not permits.is_full:
            lane = ring.popleft()
            lane.queued = False
            if lane.grant_next(now):
                self._look_again(lane)
            elif lane.waiting:
                self._set_aside(lane, now)

    def _look_again(self, lane: Lane) -> None:
        """Decides when a lane that was just granted a permit has its next turn."""
        if not lane.wants_permit:
            return
        if self.permits.is_scarce and lane.in_flight >= self.permits.fair_share:
            self._starved.add(lane)
        else:
            self.enqueue(lane)

    def _set_aside(self, lane: Lane, now: float) -> None:
        """Leaves the lane out of the ring until an answer, a timer or the end of a retry brings it back."""
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
