"""Everything that is known about one tenant's endpoint, and whether a request may be sent to it now.

Pure: time comes in as seconds of the event loop's clock, and nothing is sent, scheduled or counted here.
"""

from dataclasses import dataclass
from typing import Final

from dispatcher.contract.outcomes import ParkReason
from dispatcher.delivery.breaker import Breaker, BreakerState
from dispatcher.delivery.concurrency import AdaptiveLimit
from dispatcher.delivery.endpoint_health import EndpointHealth, TenantState
from dispatcher.delivery.permits import LaneRefusal, Permit
from dispatcher.delivery.rate import TokenBucket
from dispatcher.delivery.verdicts import Judgement, Verdict

FAILING_AFTER: Final = 4
"""Failed attempts in a row after which a tenant counts as failing: as many as one refused payload gets."""
FAILING_KEPT_S: Final = 1800.0
"""Time since its last attempt for which a failing lane is kept, so that its alert doesn't flap between retry tiers."""


@dataclass(frozen=True, slots=True)
class LastFailure:
    """The latest failed attempt of a tenant."""

    at: float
    """Seconds of the scheduler's clock."""
    reason: str
    """A `FailureReason`, or the class of the status."""
    status: int | None
    detail: str


class EndpointState:
    """Limit, breaker, rate, holds and failures of one tenant's endpoint."""

    __slots__ = (
        "_revision",
        "breaker",
        "disabled_revision",
        "failures_in_a_row",
        "generation",
        "health",
        "last_failure",
        "last_success",
        "limit",
        "paused_until",
        "rate",
        "suspended",
    )  # fmt: skip

    def __init__(self, start: int, most: int) -> None:
        """Begins without evidence. `start` and `most`: the initial and the highest limit of concurrent requests."""
        self.limit = AdaptiveLimit(limit=float(min(start, most)), most=most)
        self.breaker = Breaker()
        self.health = EndpointHealth()
        self.rate: TokenBucket | None = None
        self.paused_until = 0.0
        self.generation = 0
        """Number of times that the evidence was forgotten. An attempt of an earlier generation proves nothing: it went
        to the webhook of before an edit, or began before an operator enabled the tenant."""
        self.suspended = False
        """True if the endpoint answered 410, until the webhook is edited."""
        self.disabled_revision: str | None = None
        """Revision of the webhook that was disabled because nearly every attempt failed for 24 hours."""
        self.last_success: float | None = None
        """Time of the last delivery."""
        self.last_failure: LastFailure | None = None
        self.failures_in_a_row = 0
        """Failed attempts since the last delivery, for whatever reason; what isn't evidence against the endpoint counts
        too: a redirect, a refused payload, a failure of our own side."""
        self._revision: str | None = None
        """Revision of the webhook that was used last."""

    @property
    def is_stopped(self) -> bool:
        """True if events wait until the webhook is edited, or the tenant enabled by hand."""
        return self.suspended or self.disabled_revision is not None

    @property
    def is_failing(self) -> bool:
        """True if nothing arrives: the last attempts have all failed."""
        return self.failures_in_a_row >= FAILING_AFTER

    def is_ready(self, now: float) -> bool:
        """Returns whether a request may be sent now; `refusal` and `ready_in_s` say what stops it if not."""
        return (
            self.paused_until <= now
            and not self.suspended
            and self.disabled_revision is None
            and (self.breaker.state is BreakerState.CLOSED or self.breaker.admits(now))
            and (self.rate is None or self.rate.wait_s(now) <= 0)
        )

    def ready_in_s(self, now: float) -> float:
        """Returns the seconds until the hold or the rate limit lets the next request pass; 0 or less if both do now."""
        return max(self.paused_until - now, self.rate.wait_s(now) if self.rate is not None else 0.0)

    def refusal(self, now: float, most_wait_s: float) -> LaneRefusal | None:
        """Returns why all events are refused now, or None. A hold of up to `most_wait_s` makes events wait instead."""
        if self.suspended:
            return LaneRefusal(ParkReason.SUSPENDED, most_wait_s)
        if self.disabled_revision is not None:
            return LaneRefusal(ParkReason.TENANT_DISABLED, most_wait_s)
        if not self.breaker.admits(now):
            return LaneRefusal(ParkReason.BREAKER_OPEN, self.breaker.retry_in_s(now))
        if self.paused_until - now > most_wait_s:
            return LaneRefusal(ParkReason.RETRY_AFTER, self.paused_until - now)
        return None

    def is_quiet(self, now: float, last_active: float) -> bool:
        """Returns whether the state can be forgotten, because nothing in it matters for later requests."""
        return (
            now >= self.paused_until
            and (not self.is_failing or now - last_active >= FAILING_KEPT_S)
            and not self.suspended
            and (self.rate is None or self.rate.wait_s(now) <= 0)
            and self.breaker.is_quiet(now)
            and self.health.is_quiet(now)
        )

    def begin(self, now: float) -> bool:
        """Notes that a request begins. Returns True if it is the probe of a half-open breaker."""
        probe = self.breaker.state is not BreakerState.CLOSED and self.breaker.began()
        if self.rate is not None:
            self.rate.take(now)
        return probe

    def record(self, now: float, permit: Permit, judgement: Judgement, hold_s: float | None) -> BreakerState | None:
        """Learns from an attempt. Returns the breaker's new state if that changed.

        Args:
            hold_s: seconds of pause that the endpoint asked for.
        """
        failed = judgement.failing
        if judgement.verdict is Verdict.DELIVERED:
            self.last_success = now
            self.failures_in_a_row = 0
        if judgement.throttled:
            self.limit.overloaded(permit.began_at, now)
        elif not failed:
            self.limit.succeeded(now - permit.began_at, was_full=permit.was_full)
        if hold_s is not None:
            self.paused_until = max(self.paused_until, now + hold_s)
        changed = self.breaker.record(now, failed=failed, connect_failure=judgement.connect_failure, probe=permit.probe)
        if changed is BreakerState.CLOSED:
            self.limit.ramp()
        if failed or self.health.failing_since is not None:  # otherwise there is nothing to learn
            self.health.record(now, failed=failed)
        return changed

    def note_failure(self, now: float, reason: str, status: int | None, detail: str) -> None:
        """Records why an attempt failed, for operators. Changes nothing about what is sent."""
        self.failures_in_a_row += 1
        self.last_failure = LastFailure(now, reason, status, detail)

    def apply_webhook(self, revision: str, per_second: float | None) -> bool:
        """Applies the webhook that is about to be used. Returns True if it was edited, which lifts all holds."""
        is_edited = self._revision not in (None, revision)
        if is_edited:
            self.enable()
        self._revision = revision
        if per_second is None:
            self.rate = None
        elif self.rate is None or self.rate.per_second != per_second:
            self.rate = TokenBucket(per_second)
        if self.health.state is TenantState.DISABLED and self.disabled_revision is None:
            self.disabled_revision = revision
        return is_edited

    def enable(self) -> None:
        """Forgets the evidence against the endpoint, by hand or because the webhook was edited.

        What is still in flight is of an earlier `generation` from now on. The limit of concurrent requests stays.
        """
        self.generation += 1
        self.health = EndpointHealth()
        self.breaker = Breaker()
        self.failures_in_a_row = 0
        self.disabled_revision = None
        self.suspended = False
        self.paused_until = 0.0
