"""Runs every query of the dashboards against a Prometheus and plots what comes back: a picture for each dashboard.

    python -m deploy.dashboards.preview --prometheus http://127.0.0.1:9090 --out build/previews [--minutes 15]

Not Grafana, but its data: what is empty here is empty there. Prints which queries returned nothing. Needs matplotlib.
"""

import argparse
import json
import math
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.dates as mdates
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm

from deploy.dashboards.grafana import COLOURS
from deploy.dashboards.queries import DASHBOARDS, filled, panels

Series = list[tuple[dict[str, str], list[tuple[float, float]]]]
CELLS = 24
UNITS = {
    "s": "s",
    "percentunit": "share",
    "bytes": "bytes",
    "short": "",
    "eps": "events/s",
    "reqps": "req/s",
    "ops": "ops/s",
}


class Prometheus:
    """Range queries, and nothing else."""

    def __init__(self, url: str, minutes: float) -> None:
        self._url = url.rstrip("/")
        self._end = time.time()
        self._start = self._end - minutes * 60
        self._step = max(1.0, minutes * 60 / 240)

    def ask(self, expr: str) -> Series:
        """Returns the expression's values over the time shown; fails if Prometheus refuses it."""
        interval = f"{max(10, math.ceil(4 * self._step))}s"
        query = {
            "query": filled(expr, interval, f"{int(self._end - self._start)}s"),
            "start": self._start,
            "end": self._end,
            "step": self._step,
        }
        url = f"{self._url}/api/v1/query_range?{urllib.parse.urlencode(query)}"
        try:
            with urllib.request.urlopen(url, timeout=30) as answer:  # noqa: S310  (the operator's own Prometheus)
                result = json.load(answer)["data"]["result"]
        except urllib.error.HTTPError as error:
            sys.exit(f"{expr}\n  {error.read().decode()}")
        return [(one["metric"], [(float(at), float(value)) for at, value in one["values"]]) for one in result]


def _named(legend: str, labels: dict[str, str]) -> str:
    for key, value in labels.items():
        legend = legend.replace("{{" + key + "}}", value)
    return legend or ", ".join(f"{key}={value}" for key, value in labels.items())


def _latest(found: Series) -> list[tuple[str, float]]:
    rows = [(_named("", labels), values[-1][1]) for labels, values in found if values]
    return sorted(rows, key=lambda row: -row[1])


def _lines(axes: Axes, panel: dict[str, Any], answers: list[tuple[str, Series]]) -> None:
    lines = [(_named(legend, labels), values) for legend, found in answers for labels, values in found]
    lines = [line for line in lines if any(value for _, value in line[1])] or lines[:1]  # not what is zero all the time
    stacked = "stacking" in panel["fieldConfig"]["defaults"]["custom"]
    below: dict[float, float] = {}
    for index, (name, values) in enumerate(sorted(lines)):
        at = [time_ for time_, _ in values]
        dates = np.array(at) / 86400
        heights = [value for _, value in values]
        colour = COLOURS.get(name)
        if stacked:
            floor = [below.get(time_, 0.0) for time_ in at]
            tops = [low + (0 if math.isnan(value) else value) for low, value in zip(floor, heights, strict=True)]
            axes.fill_between(dates, floor, tops, label=name, alpha=0.6, color=colour or f"C{index}", linewidth=0.5)
            below |= dict(zip(at, tops, strict=True))
        else:
            axes.plot(dates, heights, label=name, linewidth=1.1, color=colour)
    steps = panel["fieldConfig"]["defaults"].get("thresholds", {}).get("steps", [])
    limit = steps[-1]["value"] if panel["type"] == "timeseries" and steps else None
    if limit is not None and axes.get_ylim()[1] > limit / 3:
        axes.axhline(limit, color="red", linestyle="--", linewidth=0.8)
    axes.xaxis.set_major_formatter(mdates.DateFormatter("%H:%M"))
    axes.set_ylim(bottom=0)
    axes.set_ylabel(UNITS[panel["fieldConfig"]["defaults"]["unit"]], fontsize=6)
    if lines:
        axes.legend(fontsize=5, loc="upper left", ncols=2, frameon=False)


def _buckets(axes: Axes, _panel: dict[str, Any], answers: list[tuple[str, Series]]) -> None:
    rows = sorted(((float(labels["le"]), values) for labels, values in answers[0][1]), key=lambda row: row[0])
    times = sorted({at for _, values in rows for at, _ in values})
    if not times:
        return
    grid = np.zeros((len(rows), len(times)))
    for index, (_, values) in enumerate(rows):
        for at, value in values:
            grid[index, times.index(at)] = 0 if math.isnan(value) else value
    grid[1:] -= grid[:-1].copy()
    grid[grid <= 0] = math.nan
    axes.pcolormesh(
        np.array(times) / 86400, range(len(rows)), grid, cmap="Oranges", norm=PowerNorm(0.4), shading="nearest"
    )
    axes.set_yticks(range(len(rows)), [f"{bound:g} s" for bound, _ in rows], fontsize=5)
    axes.xaxis.set_major_formatter(mdates.DateFormatter("%H:%M"))


def _number(axes: Axes, panel: dict[str, Any], answers: list[tuple[str, Series]]) -> None:
    axes.axis("off")
    rows = _latest(answers[0][1])
    share = panel["fieldConfig"]["defaults"]["unit"] == "percentunit"
    text = "\n".join(f"{value:.3%}" if share else f"{value:.4g}" for _, value in rows[:3]) or "no data"
    axes.text(0.5, 0.5, text, ha="center", va="center", fontsize=16, transform=axes.transAxes)


def _rows(axes: Axes, _panel: dict[str, Any], answers: list[tuple[str, Series]]) -> None:
    axes.axis("off")
    rows = _latest(answers[0][1])[:12]
    text = "\n".join(f"{value:10.4g}  {name}" for name, value in rows) or "no data"
    axes.text(0, 1, text, ha="left", va="top", fontsize=6, family="monospace", transform=axes.transAxes)


DRAWN: dict[str, Callable[[Axes, dict[str, Any], list[tuple[str, Series]]], None]] = {
    "timeseries": _lines,
    "heatmap": _buckets,
    "stat": _number,
    "table": _rows,
}


def preview(path: Path, prometheus: Prometheus, out: Path) -> list[str]:
    """Draws one dashboard. Returns the panels and queries without data."""
    dashboard = json.loads(path.read_text())
    bottom = max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in dashboard["panels"])
    height = bottom * 0.42
    figure = plt.figure(figsize=(20, height), dpi=80)
    top = 1 - 0.7 / height
    grid = figure.add_gridspec(bottom, CELLS, hspace=1.2, wspace=5, left=0.03, right=0.98, top=top, bottom=0.01)
    empty: list[str] = []
    for panel in dashboard["panels"]:
        at = panel["gridPos"]
        if panel["type"] == "row":
            axes = figure.add_subplot(grid[at["y"], :])
            axes.axis("off")
            axes.text(0, 0, panel["title"], fontsize=13, weight="bold", transform=axes.transAxes)
    for panel in panels(dashboard):
        at = panel["gridPos"]
        axes = figure.add_subplot(grid[at["y"] : at["y"] + at["h"] - 1, at["x"] : at["x"] + at["w"]])
        axes.set_title(panel["title"], fontsize=8, loc="left")
        axes.tick_params(labelsize=6)
        answers = []
        for target in panel["targets"]:
            found = prometheus.ask(target["expr"])
            answers.append((target["legendFormat"], found))
            if not any(values for _, values in found):
                empty.append(f"{path.stem} / {panel['title']}: {target['expr']}")
        DRAWN[panel["type"]](axes, panel, answers)
    title = f"{dashboard['title']} (a preview from query results, not Grafana)"
    figure.suptitle(title, fontsize=15, y=1 - 0.2 / height)
    figure.savefig(out / f"{path.stem}.png")
    plt.close(figure)
    return empty


def main() -> None:
    """Draw all dashboards."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--prometheus", required=True, metavar="URL")
    parser.add_argument("--out", required=True, type=Path, metavar="DIR")
    parser.add_argument("--minutes", type=float, default=15)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    prometheus = Prometheus(options.prometheus, options.minutes)
    empty = [line for path in sorted(DASHBOARDS.glob("*.json")) for line in preview(path, prometheus, options.out)]
    sys.stdout.write(f"{len(empty)} queries without data\n" + "".join(f"  {line}\n" for line in empty))


if __name__ == "__main__":
    main()
