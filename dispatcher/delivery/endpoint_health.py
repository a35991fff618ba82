"""Judges a tenant's endpoint over hours: active, unstable, disabled. Pure; seconds of any steady clock."""

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

UNSTABLE_WINDOW_S: Final = 30 * 60.0
DISABLED_WINDOW_S: Final = 24 * 3600.0
MIN_ATTEMPTS: Final = 10
FAILING_SHARE: Final = 0.8

_FINE_S: Final = 60.0
_COARSE_S: Final = 3600.0


class TenantState(StrEnum):
    """State of a tenant's endpoint, in the words that customers know from the reference product's other events."""

    ACTIVE = "active"
    UNSTABLE = "unstable"
    """Over 80 % of at least 10 attempts failed in 30 minutes."""
    DISABLED = "disabled"
    """The same over 24 hours: events are parked, not sent, until the webhook is edited or enabled by hand."""


@dataclass(slots=True)
class _Window:
    seconds: float
    step_s: float
    counts: list[list[float]] = field(default_factory=list)
    """[step number, attempts, failures]: a few dozen at most. A list, since a deque begins with half a kilobyte."""

    def add(self, now: float, failed: bool) -> None:
        step = int(now / self.step_s)
        if not self.counts or self.counts[-1][0] != step:
            self.counts.append([step, 0, 0])
        self.counts[-1][1] += 1
        self.counts[-1][2] += failed
        self.forget(now)

    def forget(self, now: float) -> None:
        oldest = int((now - self.seconds) / self.step_s)
        while self.counts and self.counts[0][0] < oldest:
            del self.counts[0]

    def attempts(self) -> float:
        return sum(one[1] for one in self.counts)

    def failing(self) -> bool:
        attempts = self.attempts()
        return attempts >= MIN_ATTEMPTS and sum(one[2] for one in self.counts) > FAILING_SHARE * attempts


@dataclass(slots=True)
class EndpointHealth:
    """Counts of one tenant; nothing is kept of a tenant that never fails."""

    state: TenantState = TenantState.ACTIVE
    failing_since: float | None = None
    """First failure without a time of good health since."""
    _fine: _Window = field(default_factory=lambda: _Window(UNSTABLE_WINDOW_S, _FINE_S))
    _coarse: _Window = field(default_factory=lambda: _Window(DISABLED_WINDOW_S, _COARSE_S))

    def record(self, now: float, *, failed: bool) -> TenantState:
        """Counts one attempt and returns the state that follows."""
        if self.state is TenantState.DISABLED:
            return self.state  # for good: what was under way changes nothing
        if not failed and self.failing_since is None:
            return self.state
        self._coarse.forget(now)
        if not self._coarse.counts:
            self.failing_since = None  # nothing was sent for a day: the next failure is a first one
        if self.failing_since is None:
            if not failed:
                return self.state
            self.failing_since = now
        self._fine.add(now, failed)
        self._coarse.add(now, failed)
        if now - self.failing_since >= DISABLED_WINDOW_S and self._coarse.failing():
            self.state = TenantState.DISABLED
        elif self._fine.failing():
            self.state = TenantState.UNSTABLE
        elif not failed or self._fine.attempts() >= MIN_ATTEMPTS:
            self.state = TenantState.ACTIVE  # a few failed probes of an open breaker don't prove a recovery
            if not failed and not self._coarse.failing():
                self._begin_anew()
        return self.state

    def is_quiet(self, now: float) -> bool:
        """Returns True if nothing is worth keeping."""
        self._fine.forget(now)
        return self.state is not TenantState.DISABLED and not self._fine.counts

    def _begin_anew(self) -> None:
        # Only once the bad minutes have left the short window: one success between failures doesn't prove a recovery.
        if not any(failures for _, _, failures in self._fine.counts):
            self.failing_since = None
            self._fine.counts.clear()
            self._coarse.counts.clear()
