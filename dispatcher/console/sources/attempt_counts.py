"""Counts a tenant's attempts by outcome, and their latencies, over the last hour, day and week. Pure.

Each window has a ring of counters and a few histograms of latencies: about 8 KB per tenant for any number of
attempts. Times are Unix seconds.
"""

import math
from array import array
from collections import deque
from functools import lru_cache
from itertools import accumulate
from typing import Final, NamedTuple

from dispatcher.console.model import AttemptModel, BucketModel, Outcomes, Window

SPANS: Final[dict[Window, tuple[int, float]]] = {"1h": (60, 60.0), "24h": (96, 900.0), "7d": (168, 3600.0)}
"""Buckets of each window, and the seconds of one."""
RECENT: Final = 40
"""Latest attempts from which `failing` is computed."""

_DELIVERED, _FAILED, _DEAD = range(3)
_SLICES = 4  # histograms of a window: the oldest attempts leave it a quarter at a time
_FINEST_MS, _GROWTH, _STEPS = 1.0, 1.3, 41  # 1 ms to 36 s; a quantile is right within 15 %


class Ring:
    """Rows of counters for consecutive spans of time, of which the newest `length` are kept."""

    __slots__ = ("_counts", "_length", "_newest", "_span_s", "_width")

    def __init__(self, length: int, span_s: float, width: int) -> None:
        self._length = length
        self._span_s = span_s
        self._width = width
        self._newest = 0
        self._counts = array("I", bytes(4 * length * width))

    def add(self, at: float, column: int) -> None:
        """Counts one attempt; ignores one that is older than the ring."""
        span = int(at // self._span_s)
        if span > self._newest:
            self._advance(span)
        if span > self._newest - self._length:
            self._counts[span % self._length * self._width + column] += 1

    def rows(self, now: float) -> list[tuple[float, "array[int]"]]:
        """Returns start and counters of each span up to now, the oldest first."""
        last = int(now // self._span_s)
        nothing = array("I", bytes(4 * self._width))
        rows: list[tuple[float, array[int]]] = []
        for span in range(last - self._length + 1, last + 1):
            at = span % self._length * self._width
            is_kept = self._newest - self._length < span <= self._newest
            rows.append((span * self._span_s, self._counts[at : at + self._width] if is_kept else nothing))
        return rows

    def _advance(self, to: int) -> None:
        empty = array("I", bytes(4 * self._width))
        for span in range(max(self._newest + 1, to - self._length + 1), to + 1):
            at = span % self._length * self._width
            self._counts[at : at + self._width] = empty
        self._newest = to


class Failing(NamedTuple):
    """How a tenant's latest attempts failed."""

    attempt: AttemptModel
    """The latest, which failed."""
    alike: int
    """Recent attempts that failed for its reason and with its status."""
    failed: int
    """Recent attempts that failed in any way."""
    seen: int
    """Recent attempts in all."""


class TenantCounts:
    """Counters of one tenant."""

    __slots__ = ("_began", "_latencies", "_outcomes", "_recent", "last_delivery", "last_failure")

    def __init__(self) -> None:
        self._outcomes = {window: Ring(length, span_s, 3) for window, (length, span_s) in SPANS.items()}
        self._latencies = {
            window: Ring(_SLICES, length * span_s / _SLICES, _STEPS) for window, (length, span_s) in SPANS.items()
        }
        self._recent: deque[tuple[str, int | None] | None] = deque(maxlen=RECENT)  # how each failed; None: delivered
        self._began: deque[float] = deque(maxlen=RECENT)  # when each of them began
        self.last_delivery: float | None = None
        self.last_failure: AttemptModel | None = None

    def add(self, attempt: AttemptModel) -> None:
        """Counts one attempt."""
        is_delivered = attempt.verdict == "delivered"
        column = _DELIVERED if is_delivered else _DEAD if attempt.verdict == "dead" else _FAILED
        for ring in self._outcomes.values():
            ring.add(attempt.at, column)
        if attempt.status is not None:
            for ring in self._latencies.values():
                ring.add(attempt.at, _step(attempt.elapsed_ms))
        self._began.append(attempt.began_at)
        self._recent.append(None if is_delivered else _way(attempt.reason, attempt.status))
        if is_delivered:
            self.last_delivery = max(attempt.at, self.last_delivery or 0.0)
        else:
            self.last_failure = attempt

    def outcomes(self, window: Window, now: float) -> Outcomes:
        """Returns the counts and latencies of a window."""
        rows = self._outcomes[window].rows(now)
        buckets = tuple(BucketModel(start, row[_DELIVERED], row[_FAILED], row[_DEAD]) for start, row in rows)
        latencies = [sum(step) for step in zip(*(row for _, row in self._latencies[window].rows(now)), strict=True)]
        return Outcomes(window, SPANS[window][1], buckets, _quantile(latencies, 0.5), _quantile(latencies, 0.95))

    def failing(self, since: float) -> Failing | None:
        """Returns how the recent attempts that began after `since` failed.

        None if the latest attempt was delivered or began earlier, or none is known.
        """
        last = self.last_failure
        if last is None or last.began_at < since or self._recent[-1] is None:
            return None
        recent = [way for began, way in zip(self._began, self._recent, strict=True) if began >= since]
        return Failing(last, recent.count(self._recent[-1]), len(recent) - recent.count(None), len(recent))


@lru_cache(maxsize=1024)
def _way(reason: str, status: int | None) -> tuple[str, int | None]:
    """Returns reason and status as one object, which the attempts of all tenants share."""
    return reason, status


def no_outcomes(window: Window, now: float) -> Outcomes:
    """Returns the counts of a tenant without attempts."""
    length, span_s = SPANS[window]
    last = int(now // span_s)
    return Outcomes(window, span_s, tuple(BucketModel(span * span_s) for span in range(last - length + 1, last + 1)))


def _step(elapsed_ms: float) -> int:
    return 0 if elapsed_ms <= _FINEST_MS else min(_STEPS - 1, math.ceil(math.log(elapsed_ms / _FINEST_MS, _GROWTH)))


def _quantile(counts: list[int], share: float) -> float | None:
    """Returns the middle, in milliseconds, of the histogram step that contains the quantile; None without counts."""
    wanted = math.ceil(sum(counts) * share)
    for step, reached in enumerate(accumulate(counts)):
        if reached >= wanted > 0:
            return round(float(_FINEST_MS * _GROWTH ** (step - 0.5)), 2)
    return None
