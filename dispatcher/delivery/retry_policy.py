"""Decides when an event that could not be delivered is tried again. Pure: time and randomness are arguments."""

import math
import re
from dataclasses import dataclass
from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import Final, Self

from dispatcher.config.settings import RetrySettings

SOON_BASE_S: Final = 0.5
JITTER: Final = 0.2
"""A tier's delay varies by this share, so that events parked together don't return together."""
MIN_HOLD_S: Final = 1.0
MAX_HOLD_OF_4XX_S: Final = 3600.0
_SECONDS: Final = re.compile(r"[0-9]+(\.[0-9]*)?|\.[0-9]+", re.ASCII)


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """The operator's schedule."""

    tiers: tuple[float, ...]
    """Delays in seconds, rising; the last one repeats."""
    max_age_s: float
    soon_attempts: int
    soon_within_s: float

    @classmethod
    def of(cls, settings: RetrySettings) -> Self:
        return cls(settings.tiers, settings.max_age, settings.soon_attempts, settings.soon_within)

    def soon_wait_s(self, tried: int, *, at_once: bool, jitter: float) -> float:
        """Returns the seconds before the next quick try: exponential with full jitter.

        Args:
            tried: quick tries made so far, from 0.
            at_once: the last one ended in a reset of a reused connection; the first quick try then has no wait.
            jitter: 0 to 1.
        """
        if at_once and tried == 0:
            return 0.0
        return float(min(self.soon_within_s / 2, SOON_BASE_S * 2**tried) * jitter)

    def tier(self, parks: int, at_least_s: float = 0.0) -> int:
        """Returns the index of the tier for an event that was parked `parks` times before.

        A hold (Retry-After) of `at_least_s` picks the longest tier within it, never one beyond: a record that waits
        much longer than its tier would hold up the records behind it in the topic.
        """
        tier = min(parks, len(self.tiers) - 1)
        while tier + 1 < len(self.tiers) and self.tiers[tier + 1] <= at_least_s:
            tier += 1
        return tier

    def due_in_s(self, tier: int, jitter: float) -> float:
        """Returns the seconds until an event parked in the tier is due. `jitter`: 0 to 1."""
        return self.tiers[tier] * (1 - JITTER + 2 * JITTER * jitter)

    def longest_wait_s(self, tier_s: float) -> float:
        """Returns the longest wait of a record that is parked in a tier with this delay."""
        return tier_s * (1 + JITTER)

    def max_hold_s(self, status: int | None, first_seen: float | None, now: float) -> float:
        """Returns the longest time, in seconds, for which a Retry-After with this status may hold a tenant's events.

        That is the time until the event's age limit, at most an hour for a 4xx other than 429, because that is usually
        a set-up mistake. Times are Unix seconds. If `first_seen` is None, the age counts from now.
        """
        left_s = self.max_age_s if first_seen is None else first_seen + self.max_age_s - now
        if status is not None and 400 <= status < 500 and status != 429:
            left_s = min(left_s, MAX_HOLD_OF_4XX_S)
        return max(MIN_HOLD_S, left_s)

    def expired(self, first_seen: float, due_at: float) -> bool:
        """Returns True if an event will have exceeded the age limit when it is due. Times are Unix seconds."""
        return due_at - first_seen > self.max_age_s


def retry_after_s(value: str | None, now: float, most_s: float) -> float | None:
    """Returns the seconds that a Retry-After header asks for (RFC 9110, section 10.2.3), from 1 s to `most_s`.

    Reads a number of any length, even with a fraction, or a date. Returns None if the value is missing or unreadable.
    `now`: Unix seconds.
    """
    if value is None:
        return None
    value = value.strip()
    if _SECONDS.fullmatch(value):
        asked = min(float(value), most_s)  # of any length: what is too long for a float is infinite
    else:
        try:
            date = parsedate_to_datetime(value)
            asked = date.replace(tzinfo=date.tzinfo or UTC).timestamp() - now  # an HTTP date without a zone is GMT
        except (ValueError, TypeError, OverflowError):
            return None
    if not math.isfinite(asked):
        return None
    return max(MIN_HOLD_S, min(asked, most_s))
