"""Time ranges of filters: typed as local times, with an offset in URLs, so that a link means the same to everyone."""

import time
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final
from urllib.parse import urlencode

from aiohttp import web
from multidict import MultiMapping

from dispatcher.console.pages.known_values import unknown_value
from dispatcher.console.time_zone import local, with_zone

RANGES: Final = {"15m": 900, "1h": 3600, "24h": 86_400, "7d": 7 * 86_400, "30d": 30 * 86_400}
_UNTIL: Final = "until"
_TYPED: Final = ("since", _UNTIL)


@dataclass(frozen=True, slots=True)
class TimeRange:
    """A time range as text: one of `RANGES`, or a begin and an end."""

    range: str = ""
    since: str = ""
    until: str = ""

    @classmethod
    def of(cls, given: MultiMapping[object]) -> "TimeRange":
        """Reads a query or form; cuts long values."""
        return cls(*(str(given.get(name, "")).strip()[:64] for name in ("range", *_TYPED)))

    @property
    def problem(self) -> str:
        """A sentence about an unknown range, a time that can't be read, or an end before the begin; empty without."""
        if unknown := unknown_value("time range", [self.range], tuple(RANGES)):
            return unknown
        unreadable = next((text for text in (self.since, self.until) if text and time_in(text) is None), None)
        if unreadable is not None:
            return f"The time {unreadable} can't be read: write it as 2026-11-28T14:00."
        begin = self.begin(time.time())
        is_reversed = begin is not None and self.end is not None and self.end <= begin
        return "The time range ends before it begins: choose a later end." if is_reversed else ""

    @property
    def chosen(self) -> str:
        """The relative range that applies; empty if a begin is typed, which comes first."""
        return "" if self.since else self.range

    def begin(self, now: float) -> float | None:
        """Returns the typed begin, else that of the range; None if there is neither."""
        at = time_in(self.since)
        return now - RANGES[self.range] if at is None and self.range in RANGES else at

    @property
    def end(self) -> float | None:
        return time_in(self.until, is_end=True)

    @property
    def since_input(self) -> str:
        """The begin for an input of local times."""
        return _for_input(self.since)

    @property
    def until_input(self) -> str:
        """The end for an input of local times."""
        return _for_input(self.until, is_end=True)

    def as_of(self, now: float) -> "TimeRange":
        """Returns the range with fixed times as its begin (if it has one) and end: it means the same later."""
        begin = self.begin(now)
        since = self.since or ("" if begin is None else _text_of(begin))
        return TimeRange("", since, _text_of(now) if self.end is None or self.end > now else self.until)

    def fields(self) -> list[tuple[str, str]]:
        """Returns names and values for a URL or hidden fields."""
        named = (("range", self.chosen), ("since", self.since), ("until", self.until))
        return [(name, value) for name, value in named if value]


def _text_of(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat()


def time_in(text: str, *, is_end: bool = False) -> float | None:
    """Returns the Unix seconds of `2026-11-28T14:00`; None if it can't be read.

    The time is in the person's zone unless it has an offset: see `with_zone`, also for `is_end`.
    """
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        return None
    try:
        return with_zone(at, is_end=is_end).timestamp()
    except (OverflowError, ValueError):  # the year 1, east of Greenwich
        return None


def with_offsets(request: web.Request) -> str | None:
    """Returns the request's URL with an offset at each time; None if none lacks it.

    Browsers submit local times without an offset. In a link that another person opens they would mean other times.
    """
    given = [(name, _with_offset(name, value) if name in _TYPED else value) for name, value in request.query.items()]
    return None if given == list(request.query.items()) else f"{request.path}?{urlencode(given)}"


def _with_offset(name: str, text: str) -> str:
    if time_in(text.strip()) is None:
        return text
    at = datetime.fromisoformat(text.strip())
    if at.tzinfo is not None:
        return text
    return with_zone(at, is_end=name == _UNTIL).isoformat(timespec="seconds" if at.second else "minutes")


def _for_input(text: str, *, is_end: bool = False) -> str:
    at = time_in(text, is_end=is_end)
    try:
        shown = None if at is None else local(at)
    except (OverflowError, ValueError):  # the year 1, west of Greenwich
        shown = None
    if shown is None:
        return ""  # browsers log a warning about any other text
    return shown.replace(tzinfo=None).isoformat(timespec="seconds" if shown.second else "minutes")
