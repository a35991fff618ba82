"""Computes the bars of charts. Pure; the template writes the SVG.

Coordinates are in the chart's own units, and the browser stretches the chart to the available width. Labels are text
beside the chart, which is not stretched.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from dispatcher.config.units import format_duration
from dispatcher.console.formatting import clock, count, day, exact
from dispatcher.console.model import BucketModel, Outcomes

HEIGHT: Final = 200.0
STEP: Final = 10.0
"""Width of a bucket, including the gap between bars."""
GAP: Final = 2.0
SPARK_HEIGHT: Final = 24.0
SPARK_BARS: Final = 24
LEAST: Final = 1.5
"""Least height of a count above zero, so that one dead event among thousands is visible."""
_KINDS: Final = ("delivered", "failed", "dead")


@dataclass(frozen=True, slots=True)
class Piece:
    """A rectangle of one colour."""

    kind: str
    """`delivered`, `failed` or `dead`"""
    x: float
    y: float
    height: float


@dataclass(frozen=True, slots=True)
class Bar:
    """The bar of one bucket: its pieces, from below, and its label."""

    x: float
    label: str
    pieces: tuple[Piece, ...]


@dataclass(frozen=True, slots=True)
class Chart:
    """A stacked bar chart."""

    bars: tuple[Bar, ...]
    width: float
    height: float
    bar_width: float
    top: int
    """Number of attempts at the upper edge."""
    labels: tuple[str, ...]
    """Labels below the chart, at equal distances from left to right."""
    unit: str = ""
    """The axis's unit: `Requests in 15m`."""
    alone: str = ""
    """When all of it was, if only one bar isn't empty: `at 14:00`, or `since 14:00` for the last one."""


def chart_of(outcomes: Outcomes) -> Chart:
    """Returns the chart of a window's outcomes."""
    buckets = outcomes.buckets
    top = _round_up(max((_size(bucket) for bucket in buckets), default=0))
    bars = tuple(_bar(bucket, index, top, HEIGHT, outcomes.bucket_s) for index, bucket in enumerate(buckets))
    unit = f"Requests in {format_duration(outcomes.bucket_s)}"
    return Chart(bars, max(1, len(buckets)) * STEP, HEIGHT, STEP - GAP, top, _labels(outcomes), unit)


def sparkline_of(outcomes: Outcomes) -> Chart:
    """Returns a small chart without labels, with as many bars as are legible in a table's cell."""
    each = max(1, -(-len(outcomes.buckets) // SPARK_BARS))
    groups = [outcomes.buckets[at : at + each] for at in range(0, len(outcomes.buckets), each)]
    buckets = [
        BucketModel(
            group[0].start,
            sum(one.delivered for one in group),
            sum(one.failed for one in group),
            sum(one.dead for one in group),
        )
        for group in groups
    ]
    top = max((_size(bucket) for bucket in buckets), default=0) or 1
    bars = tuple(_bar(bucket, index, top, SPARK_HEIGHT, 0) for index, bucket in enumerate(buckets))
    return Chart(bars, max(1, len(buckets)) * STEP, SPARK_HEIGHT, STEP - GAP, top, (), alone=_alone(buckets))


def _alone(buckets: Sequence[BucketModel]) -> str:
    filled = [bucket for bucket in buckets if _size(bucket)]
    if len(filled) != 1:
        return ""
    return f"{'since' if filled[0] is buckets[-1] else 'at'} {clock(filled[0].start)}"


def _bar(bucket: BucketModel, index: int, top: int, height: float, bucket_s: float) -> Bar:
    at, pieces = height, []
    for kind in _KINDS:
        number = getattr(bucket, kind)
        if number:
            tall = max(LEAST, number / top * height)
            at = max(0.0, at - tall)
            pieces.append(Piece(kind, round(index * STEP + GAP / 2, 2), round(at, 2), round(tall, 2)))
    label = (
        f"{exact(bucket.start)} to {clock(bucket.start + bucket_s)}: {count(bucket.delivered)} delivered, "
        f"{count(bucket.failed)} to be tried again, {count(bucket.dead)} refused for good"
    )
    return Bar(index * STEP, label, tuple(pieces))


def _labels(outcomes: Outcomes) -> tuple[str, ...]:
    buckets = outcomes.buckets
    if not buckets:
        return ()
    end = buckets[-1].start + outcomes.bucket_s
    begin = buckets[0].start
    marks = [begin + (end - begin) * part / 4 for part in range(4)]
    return (*(_mark(mark, outcomes) for mark in marks), "now")


def _mark(at: float, outcomes: Outcomes) -> str:
    return day(at) if outcomes.window == "7d" else clock(at)


def _size(bucket: BucketModel) -> int:
    return bucket.delivered + bucket.failed + bucket.dead


def _round_up(number: int) -> int:
    """Returns the next round number for the axis, an even one because the axis has a line in its middle."""
    if number <= 4:
        return 4
    size = 1
    while size * 10 < number:
        size *= 10
    return next(int(size * step) for step in (2, 4, 6, 8, 10) if size * step >= number)
