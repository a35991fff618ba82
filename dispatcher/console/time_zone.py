"""The time zone in which a person reads times: chosen in the account menu, kept in a cookie, UTC by default."""

from collections.abc import Sequence
from contextvars import ContextVar
from datetime import UTC, datetime, tzinfo
from functools import lru_cache
from typing import Final
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

ZONE_COOKIE: Final = "dispatcher-zone"
MAX_NAME: Final = 64
OFFERED: Final = (
    "UTC", "Africa/Cairo", "Africa/Johannesburg", "Africa/Lagos", "America/Argentina/Buenos_Aires", "America/Bogota",
    "America/Chicago", "America/Denver", "America/Halifax", "America/Los_Angeles", "America/Mexico_City",
    "America/New_York", "America/Phoenix", "America/Sao_Paulo", "America/Toronto", "Asia/Dubai", "Asia/Hong_Kong",
    "Asia/Jakarta", "Asia/Jerusalem", "Asia/Karachi", "Asia/Kolkata", "Asia/Seoul", "Asia/Shanghai", "Asia/Singapore",
    "Asia/Tokyo", "Australia/Brisbane", "Australia/Perth", "Australia/Sydney", "Europe/Amsterdam", "Europe/Athens",
    "Europe/Berlin", "Europe/Bucharest", "Europe/Dublin", "Europe/Helsinki", "Europe/Istanbul", "Europe/Kyiv",
    "Europe/Lisbon", "Europe/London", "Europe/Madrid", "Europe/Paris", "Europe/Prague", "Europe/Rome",
    "Europe/Stockholm", "Europe/Warsaw", "Europe/Zurich", "Pacific/Auckland", "Pacific/Honolulu",
)  # fmt: skip
"""Zones that the menu offers. A script adds the browser's own; the cookie may name any zone of the tz database."""

_LAST_S: Final = datetime(9999, 12, 31, tzinfo=UTC).timestamp()
"""Unix seconds of the last day that every zone has."""

_zone: ContextVar[tzinfo] = ContextVar("zone", default=UTC)


@lru_cache(maxsize=256)
def zone_named(name: str) -> tzinfo | None:
    """Returns the zone of this name in the tz database; None if there is none."""
    if name == "UTC":
        return UTC
    if not name or len(name) > MAX_NAME:
        return None
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):  # OSError: the name of a directory
        return None


def use_zone(name: str) -> None:
    """Formats the times of the current request in this zone; in UTC if there is no such zone."""
    _zone.set(zone_named(name) or UTC)


def zone_name() -> str:
    """Returns the name of the current request's zone: `Europe/Berlin`."""
    zone = _zone.get()
    return zone.key if isinstance(zone, ZoneInfo) else "UTC"


def local(seconds: float) -> datetime:
    """Returns the time in the current request's zone; of the last day that there is, its beginning in UTC."""
    return datetime.fromtimestamp(min(seconds, _LAST_S), _zone.get())


def with_zone(at: datetime, *, is_end: bool = False) -> datetime:
    """Returns the time with the current request's zone, unless it has one.

    When clocks are set back, an hour of local time comes twice, and one is missing when they are set forward. Of the
    two times that such a local time may mean, the earlier one is returned, or the later one if it is the end of a
    range, so that the range has all that may be meant.
    """
    if at.tzinfo is not None:
        return at
    meant = [at.replace(tzinfo=_zone.get(), fold=fold) for fold in (0, 1)]
    return sorted(meant, key=datetime.timestamp)[int(is_end)]


def abbreviation(at: datetime) -> str:
    """Returns the zone's short name at that time: `UTC`, `CET`; `UTC-03` if it has none."""
    name = at.tzname() or "UTC"
    return f"UTC{name}" if name[0] in "+-" else name


def choices() -> Sequence[str]:
    """Returns the zones that the menu offers, the current one among them."""
    offered = [name for name in OFFERED if zone_named(name) is not None]
    return offered if zone_name() in offered else [*offered, zone_name()]
