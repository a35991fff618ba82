"""Counters and histograms for the hot path: one observation costs one addition and takes no lock.

They have the interface of the Prometheus client's metrics, and the client exposes them. The difference: only the event
loop's thread may count. A scrape may read in another thread, and reads each number as it is at that moment.
"""

import time
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final

from prometheus_client import REGISTRY
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector
from prometheus_client.samples import Exemplar
from prometheus_client.utils import floatToGoString

_Labels = tuple[str, ...]


class Count:
    """One series of a counter."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 0

    def inc(self, amount: int = 1) -> None:
        """Adds to the counter."""
        self.value += amount


class HistogramSeries:
    """One series of a histogram."""

    __slots__ = ("_bounds", "counts", "exemplars", "sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        """Observations per bucket, not cumulated; the last bucket has no upper bound."""
        self.sum = 0.0
        self.exemplars: dict[int, Exemplar] = {}

    def observe(self, amount: float, exemplar: Mapping[str, str] | None = None) -> None:
        """Counts one observation, and keeps `exemplar` as the example of its bucket."""
        bucket = bisect_left(self._bounds, amount)
        self.counts[bucket] += 1
        self.sum += amount
        if exemplar is not None:
            self.exemplars[bucket] = Exemplar(dict(exemplar), amount, time.time())

    def cumulated(self) -> Iterator[tuple[str, float, Exemplar | None]]:
        """Yields the upper bound of each bucket, the number of observations up to it, and an exemplar or None."""
        total = 0
        for number, (bound, count) in enumerate(zip((*self._bounds, float("inf")), tuple(self.counts), strict=True)):
            total += count
            yield floatToGoString(bound), total, self.exemplars.get(number)  # type: ignore[no-untyped-call]


class Counter(Collector):
    """A counter with labels."""

    def __init__(self, name: str, help_: str, labels: Sequence[str]) -> None:
        self._name, self._help = name, help_
        self._label_names: Final = tuple(labels)
        self._series: dict[_Labels, Count] = {}
        REGISTRY.register(self)

    def labels(self, *values: str) -> Count:
        """Returns the series of these label values; creates it if necessary. Hot paths keep the result."""
        series = self._series.get(values)
        if series is None:
            series = self._series[_checked(values, self._label_names)] = Count()
        return series

    def remove(self, *values: str) -> None:
        """Removes every series whose first labels have these values."""
        for labels in [labels for labels in self._series if labels[: len(values)] == values]:
            del self._series[labels]

    def describe(self) -> Iterable[CounterMetricFamily]:
        """Returns the metric without samples; called by the registry."""
        return [CounterMetricFamily(self._name, self._help, labels=self._label_names)]

    def collect(self) -> Iterable[CounterMetricFamily]:
        """Returns the metric with every series; called by the registry."""
        family = CounterMetricFamily(self._name, self._help, labels=self._label_names)
        for labels, series in list(self._series.items()):
            family.add_metric(labels, series.value)
        return [family]


class Histogram(Collector):
    """A histogram with labels."""

    def __init__(self, name: str, help_: str, labels: Sequence[str], buckets: Sequence[float]) -> None:
        self._name, self._help = name, help_
        self._label_names: Final = tuple(labels)
        self._buckets: Final = tuple(map(float, buckets))
        self._series: dict[_Labels, HistogramSeries] = {}
        REGISTRY.register(self)
        if not labels:
            self.labels()

    def labels(self, *values: str) -> HistogramSeries:
        """Returns the series of these label values; creates it if necessary. Hot paths keep the result."""
        series = self._series.get(values)
        if series is None:
            series = self._series[_checked(values, self._label_names)] = HistogramSeries(self._buckets)
        return series

    def describe(self) -> Iterable[HistogramMetricFamily]:
        """Returns the metric without samples; called by the registry."""
        return [HistogramMetricFamily(self._name, self._help, labels=self._label_names)]

    def collect(self) -> Iterable[HistogramMetricFamily]:
        """Returns the metric with every series; called by the registry."""
        family = HistogramMetricFamily(self._name, self._help, labels=self._label_names)
        for labels, series in list(self._series.items()):
            family.add_metric(labels, list(series.cumulated()), series.sum)  # type: ignore[arg-type]
        return [family]


def _checked(values: _Labels, names: _Labels) -> _Labels:
    if len(values) != len(names):
        raise ValueError(f"{len(values)} label values for {len(names)} labels")
    return values
