"""A lane: one tenant's queue, and everything that is known about its endpoint.

A lane grants at most as many permits as its endpoint handles; `lane_scheduler` shares the process's permits between
lanes. New events go before retries; of four permits granted while both wait, one goes to a retry.

Everything here runs on the event loop without awaiting, except `Lane.acquire`, which waits for a permit.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from dispatcher.config.settings import DeliverySettings
from dispatcher.contract.outcomes import ParkReason
from dispatcher.contract.tenant import TenantKey
from dispatcher.delivery.breaker import Breaker, BreakerState
from dispatcher.delivery.concurrency import AdaptiveLimit
from dispatcher.delivery.endpoint_health import EndpointHealth, TenantState
from dispatcher.delivery.permits import LaneRefusal, Permit, Permits, Priority, Waiter
from dispatcher.delivery.rate import TokenBucket
from dispatcher.delivery.verdicts import Judgement, Verdict
from dispatcher.telemetry import metrics

IDLE_S = 60.0
"""A lane that nothing happened in for so long, and that remembers nothing bad, is freed."""
FAILING_AFTER = 4
"""Failed attempts in a row after which a tenant counts as failing: as many as one refused payload gets."""
FAILING_KEPT_S = 1800.0
"""A failing lane is kept for so long after its last attempt, so that its alert doesn't flap between the retry tiers."""
_RETRY_TURN = 4


class Sharing(Protocol):
    """What a lane needs of the scheduler of all lanes, `LaneScheduler`."""

    settings: DeliverySettings
    permits: Permits

    @property
    def loop(self) -> asyncio.AbstractEventLoop: ...
    @property
    def now(self) -> Callable[[], float]: ...
    @property
    def is_others_turn(self) -> bool: ...
    def is_crowded_by(self, lane: "Lane") -> bool: ...
    def took(self, priority: Priority) -> None: ...
    def gave_back(self, priority: Priority) -> None: ...
    def enqueue(self, lane: "Lane") -> None: ...
    def tick_later(self) -> None: ...


@dataclass(frozen=True, slots=True)
class LastFailure:
    """The latest failed attempt of a tenant."""

    at: float
    """Seconds of the scheduler's clock."""
    reason: str
    """A `FailureReason`, or the class of the status."""
    status: int | None
    detail: str


@dataclass(slots=True)
class _WaitingTask:
    future: "asyncio.Future[Permit | LaneRefusal]"
    priority: Priority
    since: float

    @property
    def is_over(self) -> bool:
        return self.future.done()

    def decide(self, entry: Permit | LaneRefusal) -> None:
        self.future.set_result(entry)


class Lane:
    """One tenant's queue, and everything that is known about its endpoint."""

    __slots__ = (
        "_lanes",
        "_new",
        "_permits",
        "_retries",
        "_revision",
        "_since_retry",
        "_timer",
        "breaker",
        "disabled_revision",
        "evidence",
        "failures_in_a_row",
        "held_until",
        "in_flight",
        "last_active",
        "last_failure",
        "last_success",
        "limit",
        "queued",
        "rate",
        "suspended",
        "tenant",
    )  # fmt: skip

    def __init__(self, tenant: TenantKey, lanes: Sharing, settings: DeliverySettings) -> None:
        self.tenant = tenant
        self.limit = AdaptiveLimit(limit=float(min(settings.lane_start, settings.lane_max)), most=settings.lane_max)
        self.breaker = Breaker()
        self.evidence = EndpointHealth()
        self.rate: TokenBucket | None = None
        self.in_flight = 0
        self.held_until = 0.0
        self.suspended: str | None = None
        """Revision of the webhook whose endpoint answered 410."""
        self.disabled_revision: str | None = None
        self.last_active = 0.0
        self.last_success: float | None = None
        """Time of the last delivery, in seconds of the scheduler's clock."""
        self.last_failure: LastFailure | None = None
        self.failures_in_a_row = 0
        """Failed attempts since the last delivery, for whatever reason; what is no evidence against the endpoint counts
        too: a redirect, a refused payload, a failure of our own side."""
        self.queued = False
        """True while the lane is in the scheduler's ring of lanes that wait for a permit."""
        self._revision: str | None = None
        """Revision of the webhook that was used last."""
        self._lanes = lanes
        self._permits = lanes.permits
        self._new: deque[Waiter] = deque()
        self._retries: deque[Waiter] = deque()
        self._since_retry = 0
        self._timer: asyncio.TimerHandle | None = None

    def __repr__(self) -> str:
        return (
            f"<Lane {self.tenant} {self.breaker.state} {self.in_flight}/{self.limit.now} in flight, "
            f"{self.waiting} waiting>"
        )

    @property
    def waiting(self) -> int:
        """Number of events that wait for a permit."""
        return len(self._new) + len(self._retries)

    @property
    def wants_permit(self) -> bool:
        """True if an event waits and the endpoint can take one more request."""
        return bool(self._new or self._retries) and self.in_flight < self.limit.now

    @property
    def is_at_limit(self) -> bool:
        """True if as many requests are in flight as the limit allows; the lane continues when one of them ends."""
        return self.in_flight >= self.limit.now

    @property
    def is_held(self) -> bool:
        """Its events wait until the webhook is edited, or the tenant enabled by hand."""
        return self.suspended is not None or self.disabled_revision is not None

    @property
    def is_failing(self) -> bool:
        """True if nothing arrives: the last attempts have all failed."""
        return self.failures_in_a_row >= FAILING_AFTER

    def note_failure(self, reason: str, status: int | None, detail: str) -> None:
        """Records why an attempt failed, for operators. Changes nothing about what is sent."""
        now = self.last_active = self._lanes.now()
        self.failures_in_a_row += 1
        self.last_failure = LastFailure(now, reason, status, detail)

    async def acquire(self, priority: Priority) -> Permit | LaneRefusal:
        """Waits for a permit. Returns it, or the reason why the event should be parked."""
        return self.try_enter(priority) or await self.wait(priority)

    async def wait(self, priority: Priority) -> Permit | LaneRefusal:
        """Does what `acquire` does, after `try_enter` has just returned None."""
        waiter = _WaitingTask(self._lanes.loop.create_future(), priority, self._lanes.now())
        self.queue(waiter)
        try:
            return await waiter.future
        except asyncio.CancelledError:
            if waiter.future.done() and not waiter.future.cancelled() and isinstance(waiter.future.result(), Permit):
                self.cancel(waiter.future.result())  # type: ignore[arg-type]  # just checked
            raise

    def queue(self, waiter: Waiter) -> None:
        """Adds a waiter, after `try_enter` has just returned None."""
        (self._new if waiter.priority is Priority.NEW else self._retries).append(waiter)
        if self.is_at_limit:
            self._lanes.tick_later()
        else:
            self._lanes.enqueue(self)

    def try_enter(self, priority: Priority) -> Permit | LaneRefusal | None:
        """Returns a permit or a refusal if that can be decided at once, or None if the event would have to wait."""
        lanes = self._lanes
        now = self.last_active = lanes.now()
        if self._is_blocked(now):
            refusal = self._standing_refusal(now)
            if refusal is not None:
                return refusal
        if self._new or self._retries:
            if priority is Priority.NEW and lanes.is_crowded_by(self):
                return LaneRefusal(ParkReason.LANE_FULL, 0.0)
            return None
        if priority is Priority.NEW and lanes.is_others_turn:
            return None
        return self._begin(priority, now) if self._can_send(priority, now) else None

    def release(self, permit: Permit, judgement: Judgement, hold_s: float | None = None) -> None:
        """Releases the permit and learns from the attempt. `hold_s`: seconds of pause that the endpoint asked for."""
        now = self.last_active = self._lanes.now()
        if judgement.verdict is Verdict.DELIVERED:
            self.last_success = now
            self.failures_in_a_row = 0
        if judgement.throttled:
            self.limit.overloaded(permit.began_at, now)
        elif not judgement.failing:
            self.limit.succeeded(now - permit.began_at, was_full=permit.was_full)
        if hold_s is not None:
            self.held_until = max(self.held_until, now + hold_s)
        self._learn(now, judgement, permit)
        self._release(permit)

    def cancel(self, permit: Permit) -> None:
        """Releases the permit without learning: the attempt was cancelled, or not made."""
        self.breaker.abandoned(probe=permit.probe)
        self._release(permit)

    def suspend(self, revision: str) -> None:
        """Stops sending until the webhook has another revision, because the endpoint asked for that."""
        if self._revision not in (None, revision):
            return  # the webhook was edited meanwhile: this answered an older request
        self.suspended = revision
        self._refuse_all(LaneRefusal(ParkReason.SUSPENDED, self._lanes.settings.lane_max_wait))

    def apply_webhook(self, revision: str, per_second: float | None) -> None:
        """Applies the webhook that is about to be used. An edit lifts what held its predecessor."""
        if self._revision not in (None, revision):
            self.enable()
        self._revision = revision
        if per_second is None:
            self.rate = None
        elif self.rate is None or self.rate.per_second != per_second:
            self.rate = TokenBucket(per_second)
        if self.evidence.state is TenantState.DISABLED and self.disabled_revision is None:
            self.disabled_revision = revision

    def enable(self) -> None:
        """Forgets the evidence against the endpoint, by hand or because the webhook was edited."""
        self.evidence = EndpointHealth()
        self.breaker = Breaker()
        self.failures_in_a_row = 0
        self.disabled_revision = None
        self.suspended = None
        self.held_until = 0.0
        if self.waiting:
            self._lanes.enqueue(self)

    def is_idle(self, now: float) -> bool:
        """Returns whether the lane can be freed without losing anything that matters."""
        return (
            not self.in_flight
            and not self.waiting
            and now - self.last_active >= IDLE_S
            and now >= self.held_until
            and (not self.is_failing or now - self.last_active >= FAILING_KEPT_S)
            and self.suspended is None
            and self.breaker.is_quiet(now)
            and self.evidence.is_quiet(now)
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
        refusal = self._standing_refusal(now)
        if refusal is not None:
            self._refuse_all(refusal)

    def refuse_stale(self, now: float) -> None:
        """Refuses the events that waited too long because of this lane, not because the process is busy."""
        if self._permits.is_full and self.in_flight < self._permits.fair_share:
            return  # the process as a whole is busy
        if self._permits.is_busy and not self.is_at_limit and self._is_ready(now):
            return  # the core is busy
        longest = self._lanes.settings.lane_max_wait
        for queue in (self._new, self._retries):
            while queue and (queue[0].is_over or now - queue[0].since > longest):
                waiter = queue.popleft()
                if not waiter.is_over:
                    waiter.decide(LaneRefusal(ParkReason.LANE_FULL, 0.0))

    def sleep_until_ready(self, now: float) -> None:
        """Sets a timer for the moment at which the hold or the rate limit lets the next request pass."""
        wait = max(self.held_until - now, self.rate.wait_s(now) if self.rate else 0.0)
        if wait > 0 and self._timer is None and self.waiting:
            self._timer = asyncio.get_running_loop().call_later(wait, self._wake)

    def _wake(self) -> None:
        self._timer = None
        self._lanes.enqueue(self)

    def _begin(self, priority: Priority, now: float) -> Permit:
        held = self.in_flight = self.in_flight + 1
        probe = self.breaker.state is not BreakerState.CLOSED and self.breaker.began()
        if self.rate is not None:
            self.rate.take(now)
        self._lanes.took(priority)
        return Permit(priority, now, held >= self.limit.now, probe)

    def _release(self, permit: Permit) -> None:
        self.in_flight -= 1
        self._lanes.gave_back(permit.priority)
        if self._new or self._retries:
            self._lanes.enqueue(self)

    def _is_blocked(self, now: float) -> bool:
        """Cheap pre-check; `_standing_refusal` finds the exact reason."""
        return (
            self.breaker.state is not BreakerState.CLOSED
            or self.held_until > now
            or self.suspended is not None
            or self.disabled_revision is not None
        )

    def _can_send(self, priority: Priority, now: float) -> bool:
        held = self.in_flight
        return held < self.limit.now and self._permits.may_take(priority, held) and self._is_ready(now)

    def _is_ready(self, now: float) -> bool:
        """Returns whether hold, breaker and rate limit all let a request pass."""
        return (
            self.held_until <= now
            and (self.breaker.state is BreakerState.CLOSED or self.breaker.admits(now))
            and (self.rate is None or self.rate.wait_s(now) <= 0)
        )

    def _next_queue(self) -> deque[Waiter] | None:
        while self._new and self._new[0].is_over:
            self._new.popleft()  # cancelled while it waited
        while self._retries and self._retries[0].is_over:
            self._retries.popleft()
        retries = self._retries if self._retries and self._permits.has_free(Priority.RETRY) else None
        if not self._new:
            return retries
        return retries if retries and self._since_retry >= _RETRY_TURN - 1 else self._new

    def _standing_refusal(self, now: float) -> LaneRefusal | None:
        """Returns the reason that refuses every event for now, or None."""
        wait = self._lanes.settings.lane_max_wait
        if self.suspended is not None:
            return LaneRefusal(ParkReason.SUSPENDED, wait)
        if self.disabled_revision is not None:
            return LaneRefusal(ParkReason.TENANT_DISABLED, wait)
        if not self.breaker.admits(now):
            return LaneRefusal(ParkReason.BREAKER_OPEN, self.breaker.retry_in_s(now))
        if self.held_until - now > wait:
            return LaneRefusal(ParkReason.HELD, self.held_until - now)
        return None

    def _learn(self, now: float, judgement: Judgement, permit: Permit) -> None:
        failed, evidence = judgement.failing, self.evidence
        changed = self.breaker.record(now, failed=failed, connect_failure=judgement.connect_failure, probe=permit.probe)
        if changed is not None:
            metrics.BREAKER_TRANSITIONS.labels(changed.value).inc()
            if changed is BreakerState.CLOSED:
                self.limit.ramp()
        if failed or evidence.failing_since is not None:  # otherwise there is nothing to learn
            evidence.record(now, failed=failed)
        if (self._new or self._retries) and self._is_blocked(now):
            self.refuse_if_needed(now)

    def _refuse_all(self, refusal: LaneRefusal) -> None:
        for queue in (self._new, self._retries):
            while queue:
                waiter = queue.popleft()
                if not waiter.is_over:
                    waiter.decide(refusal)
