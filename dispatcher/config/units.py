"""Reads numbers, durations, sizes and rates from YAML: `3`, `10s`, `64MiB`, `100/s`."""

import re
from typing import Annotated, Final

from pydantic import BeforeValidator, Field, WithJsonSchema

MAX_DURATION_S: Final = 36_500 * 86_400.0
"""Longest duration of a setting: 100 years, so that dates and databases can hold the result."""

_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_BYTES = {"B": 1, "kB": 1000, "KiB": 1024, "MB": 1000**2, "MiB": 1024**2, "GB": 1000**3, "GiB": 1024**3}

_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)", re.ASCII)
_SIZE = re.compile(r"(\d+)\s?(B|kB|KiB|MB|MiB|GB|GiB)?", re.ASCII)
_RATE = re.compile(r"(\d+(?:\.\d+)?)/(s|m|h)", re.ASCII)


def _no_switch(value: object) -> object:
    """Refuses true and false, which pydantic would read as 1 and 0."""
    if isinstance(value, bool):
        raise ValueError("must be a number, not true or false")  # noqa: TRY004  (pydantic)
    return value


def parse_duration(value: object) -> object:
    """Returns the seconds in `10s`, `1h30m`, `250ms` or a plain number. Other types are returned unchanged."""
    if not isinstance(value, str):
        return _no_switch(value)
    parts = _DURATION.findall(value)
    if not parts or "".join(number + unit for number, unit in parts) != value:
        raise ValueError("write a duration as 250ms, 10s, 5m, 24h, or 1h30m")
    return sum(float(number) * _SECONDS[unit] for number, unit in parts)


def bounded_duration(value: object) -> object:
    """Returns what `parse_duration` does. Raises ValueError for more than `MAX_DURATION_S`."""
    seconds = parse_duration(value)
    if isinstance(seconds, int | float) and seconds > MAX_DURATION_S:
        raise ValueError("must be at most 36500d (100 years)")
    return seconds


def parse_size(value: object) -> object:
    """Returns the bytes in `64MiB`, `256kB` or a plain number. Other types are returned unchanged."""
    if not isinstance(value, str):
        return _no_switch(value)
    match = _SIZE.fullmatch(value)
    if match is None:
        raise ValueError("write a size as 20kB, 64KiB, 128MiB, or a number of bytes")
    return int(match[1]) * _BYTES[match[2] or "B"]


def parse_rate(value: object) -> object:
    """Returns the events a second in `100/s`, `600/m` or a plain number. Other types are returned unchanged."""
    if not isinstance(value, str):
        return _no_switch(value)
    match = _RATE.fullmatch(value)
    if match is None:
        raise ValueError("write a rate as 100/s, 600/m, or 1000/h")
    return float(match[1]) / _SECONDS[match[2]]


def format_duration(seconds: float) -> str:
    """Returns the shortest text that `parse_duration` reads back: 30.0 is `30s`, 5400.0 is `1h30m`.

    The names of retry topics contain it.
    """
    if seconds <= 0:
        return "0s"
    if seconds < 1 or seconds != int(seconds):
        return f"{round(seconds * 1000)}ms"
    rest, text = int(seconds), ""
    for unit in ("h", "m", "s"):  # no days: retry schedules are written with 24h, not 1d
        count, rest = divmod(rest, int(_SECONDS[unit]))
        if count:
            text += f"{count}{unit}"
    return text


def _written(pattern: str, examples: list[str]) -> WithJsonSchema:
    return WithJsonSchema(
        {"anyOf": [{"type": "string", "pattern": f"^{pattern}$"}, {"type": "number"}], "examples": examples}
    )


NO_SWITCH = BeforeValidator(_no_switch)

Seconds = Annotated[
    float,
    BeforeValidator(bounded_duration),
    Field(gt=0, allow_inf_nan=False),
    _written(r"([0-9]+(\.[0-9]+)?(ms|s|m|h|d))+", ["10s", "5m", "24h"]),
]
"""A duration in seconds, above 0, at most 100 years."""

Bytes = Annotated[
    int,
    BeforeValidator(parse_size),
    Field(gt=0),
    _written(r"[0-9]+ ?(B|kB|KiB|MB|MiB|GB|GiB)?", ["256kB", "64MiB"]),
]
"""A size in bytes, above 0."""

PerSecond = Annotated[
    float,
    BeforeValidator(parse_rate),
    Field(gt=0, allow_inf_nan=False),
    _written(r"[0-9]+(\.[0-9]+)?/(s|m|h)", ["100/s", "600/m"]),
]
"""A rate in events a second, above 0."""
