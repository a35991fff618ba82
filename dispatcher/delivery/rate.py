"""A token bucket for tenants that set a rate limit. Pure."""

from dataclasses import dataclass


@dataclass(slots=True)
class TokenBucket:
    """Limits requests to `per_second` on average. Bursts may have as many as are allowed in a fifth of a second."""

    per_second: float
    _tokens: float = 1.0
    _at: float = float("-inf")

    def wait_s(self, now: float) -> float:
        """Returns the seconds until a request may pass; 0 if one may pass now."""
        self._refill(now)
        return 0.0 if self._tokens >= 1.0 else (1.0 - self._tokens) / self.per_second

    def take(self, now: float) -> None:
        """Counts a request that passes."""
        self._refill(now)
        self._tokens -= 1.0

    def _refill(self, now: float) -> None:
        burst = max(1.0, self.per_second / 5)
        elapsed = max(0.0, now - self._at)
        self._tokens = min(burst, self._tokens + elapsed * self.per_second)
        self._at = max(now, self._at)
