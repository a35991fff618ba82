"""Limits how many requests run at once. The limit grows while latency holds, and halves on overload. Pure."""

from dataclasses import dataclass, field
from typing import Final

_SLOWER: Final = 2.0
"""Latency over this many times its usual value is no longer holding."""
_NOISE_S: Final = 0.05
"""Differences below this are noise, not load."""


@dataclass(slots=True)
class AdaptiveLimit:
    """A tenant's concurrency limit. It doubles with each round trip at first; later it grows by one with each."""

    limit: float
    most: int
    least: int = 1
    usual_s: float = 0.0
    """Moving average of the latency of successes; 0 until the first."""
    now: int = field(init=False)
    """Requests allowed at once."""
    _starting: bool = True
    _halved_at: float = float("-inf")

    def __post_init__(self) -> None:
        self.now = int(self.limit)

    def succeeded(self, elapsed_s: float, *, was_full: bool) -> None:
        """Records a success. `was_full`: the limit was reached; if not, a success doesn't raise the limit."""
        usual = self.usual_s
        if usual == 0.0:
            self.usual_s = usual = elapsed_s
        else:
            # Slow to believe that an endpoint has become slower, quick to believe that it has become faster.
            self.usual_s = usual + (elapsed_s - usual) * (0.02 if elapsed_s > usual else 0.2)
        if not was_full or self.limit >= self.most:
            return
        if elapsed_s <= usual + _NOISE_S or elapsed_s <= usual * _SLOWER:
            self._set(self.limit + (1.0 if self._starting else 1.0 / self.limit))
        else:
            self._starting = False

    def overloaded(self, began_at: float, now: float) -> None:
        """Halves the limit after a 429, 503 or timeout: once for all requests that were in progress together."""
        if began_at < self._halved_at:
            return
        self._starting = False
        self._halved_at = now
        self._set(self.limit / 2)

    def ramp(self) -> None:
        """Starts again from one request: the endpoint has just come back."""
        self._set(float(self.least))
        self._starting = True

    def _set(self, limit: float) -> None:
        self.limit = max(float(self.least), min(float(self.most), limit))
        self.now = int(self.limit)
