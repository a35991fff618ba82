"""The circuit breaker of one tenant's endpoint. Pure: time is an argument, in seconds of any steady clock."""

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final


class BreakerState(StrEnum):
    """State of a breaker: closed lets all attempts pass, open none, half open one probe at a time."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


@dataclass(frozen=True, slots=True)
class BreakerPolicy:
    """When a breaker opens, for how long, and what closes it."""

    window_s: float = 60.0
    min_attempts: int = 10
    failing_share: float = 0.7
    connect_failures: int = 5
    """Connect failures in a row that open it: an endpoint that can't be reached need not fail ten times."""
    open_s: float = 30.0
    """Seconds that it stays open at first; doubled each time that a probe fails, up to `max_open_s`."""
    max_open_s: float = 900.0
    successes_to_close: int = 2


_BUCKETS: Final = 6


@dataclass(slots=True)
class Breaker:
    """One breaker. Call `admits` before an attempt, `began` when it begins, and `record` or `cancel` after it."""

    policy: BreakerPolicy = BreakerPolicy()
    state: BreakerState = BreakerState.CLOSED
    opened_until: float = 0.0
    _open_s: float = 0.0
    _past: list[tuple[int, int, int]] = field(default_factory=list)
    """(bucket number, attempts, failures) of the last minute, without the newest."""
    _newest: int = -_BUCKETS
    _attempts: int = 0
    _failures: int = 0
    _newest_ends: float = float("-inf")
    """Time until which attempts count in the newest bucket."""
    _connect_failures: int = 0
    _probing: bool = False
    _probe_successes: int = 0

    def admits(self, now: float) -> bool:
        """Returns True if an attempt may begin."""
        if self.state is BreakerState.CLOSED:
            return True
        if self.state is BreakerState.OPEN:
            if now < self.opened_until:
                return False
            self.state = BreakerState.HALF_OPEN
            self._probing = False
            self._probe_successes = 0
        return not self._probing

    def began(self) -> bool:
        """Notes that an admitted attempt begins. Returns True if it is the probe of a half-open breaker."""
        if self.state is BreakerState.HALF_OPEN:
            self._probing = True
        return self.state is BreakerState.HALF_OPEN

    def cancel(self, *, probe: bool) -> None:
        """Notes that the attempt was cancelled, which proves nothing."""
        if probe:
            self._probing = False

    def record(
        self, now: float, *, failed: bool, connect_failure: bool = False, probe: bool = False
    ) -> BreakerState | None:
        """Records how an attempt ended, with the result of its `began`. Returns the new state if it changed."""
        if self.state is not BreakerState.CLOSED and not probe:
            return None  # it began before the breaker opened: nothing new
        if self.state is BreakerState.HALF_OPEN:
            return self._record_probe(now, failed)
        self._connect_failures = self._connect_failures + 1 if connect_failure else 0
        attempts, failures = self._count(now, failed)
        if not failed:
            return None
        many = attempts >= self.policy.min_attempts and failures >= self.policy.failing_share * attempts
        if many or self._connect_failures >= self.policy.connect_failures:
            return self._open(now, self.policy.open_s)
        return None

    def retry_in_s(self, now: float) -> float:
        """Returns the seconds until a probe may be sent; 0 if one may be sent now."""
        return max(0.0, self.opened_until - now) if self.state is BreakerState.OPEN else 0.0

    def is_quiet(self, now: float) -> bool:
        """Returns True if it can be forgotten: it is closed without recent attempts, or its pause ended long ago."""
        if self.state is not BreakerState.CLOSED:
            return now - self.opened_until >= self.policy.max_open_s
        return self._bucket(now) - self._newest >= _BUCKETS

    def _record_probe(self, now: float, failed: bool) -> BreakerState | None:
        self._probing = False
        if failed:
            return self._open(now, min(self._open_s * 2, self.policy.max_open_s))
        self._probe_successes += 1
        if self._probe_successes < self.policy.successes_to_close:
            return None
        self.state = BreakerState.CLOSED
        self._past.clear()
        self._newest, self._attempts, self._failures, self._newest_ends = -_BUCKETS, 0, 0, float("-inf")
        self._connect_failures = 0
        return self.state

    def _open(self, now: float, seconds: float) -> BreakerState:
        self.state = BreakerState.OPEN
        self._open_s = seconds
        self.opened_until = now + seconds
        return self.state

    def _bucket(self, now: float) -> int:
        return int(now / self.policy.window_s * _BUCKETS)

    def _count(self, now: float, failed: bool) -> tuple[int, int]:
        if now >= self._newest_ends:
            self._begin_bucket(now)
        self._attempts += 1
        if not failed:
            return 0, 0  # a success can't open it: the sums are not worth their time
        self._failures += 1
        recent = [one for one in self._past if self._newest - one[0] < _BUCKETS]
        return self._attempts + sum(one[1] for one in recent), self._failures + sum(one[2] for one in recent)

    def _begin_bucket(self, now: float) -> None:
        if self._attempts:
            self._past.append((self._newest, self._attempts, self._failures))
            del self._past[: 1 - _BUCKETS]
        self._newest = self._bucket(now)
        self._newest_ends = (self._newest + 1) * self.policy.window_s / _BUCKETS
        self._attempts = self._failures = 0
