"""The parts of dashboards: panels, rows, variables, and their arrangement.

Plain dicts, no SDK. Every panel has a title, a description that says what to look for, a unit and queries by the
variables; nothing names a data source.
"""

from dataclasses import dataclass, field
from typing import Any

Panel = dict[str, Any]

SOURCE = {"type": "prometheus", "uid": "${datasource}"}
HERE = 'namespace=~"$namespace", job=~"$job"'
PODS = f'{HERE}, pod=~"$pod"'
TENANT = f'{HERE}, org=~"$org", sandbox=~"$sandbox"'
CONTAINER = 'namespace=~"$namespace", pod=~"$pod", container="dispatcher"'

WIDTH = 24
"""Of Grafana's grid."""
GOOD, FAIR, BAD, CALM = "green", "orange", "red", "blue"
COLOURS = {
    "delivered": GOOD, "skipped": CALM, "parked": FAIR, "dead_lettered": BAD, "dead": BAD,
    "success": GOOD, "retryable": FAIR, "permanent": BAD,
}  # fmt: skip


def _target(expr: str, legend: str, *, kind: str = "", exemplars: bool = False) -> dict[str, Any]:
    made: dict[str, Any] = {
        "datasource": SOURCE,
        "expr": expr,
        "legendFormat": legend,
        "refId": "A",
        "editorMode": "code",
    }
    if kind == "instant":
        made |= {"instant": True, "range": False}
    else:
        made |= {"range": True, "exemplar": exemplars}
    if kind == "table":
        made |= {"instant": True, "range": False, "format": "table"}
    if kind == "heatmap":
        made |= {"format": "heatmap"}
    return made


def _panel(
    kind: str,
    title: str,
    description: str,
    unit: str,
    *queries: tuple[str, str],
    size: tuple[int, int] = (8, 8),
    options: dict[str, Any] | None = None,
    custom: dict[str, Any] | None = None,
    defaults: dict[str, Any] | None = None,
    target_kind: str = "",
    exemplars: bool = False,
    transformations: list[dict[str, Any]] | None = None,
) -> Panel:
    targets = [_target(expr, legend, kind=target_kind, exemplars=exemplars) for expr, legend in queries]
    for index, target in enumerate(targets):
        target["refId"] = chr(ord("A") + index)
    legends = {legend for _, legend in queries}
    overrides = [
        {
            "matcher": {"id": "byName", "options": name},
            "properties": [{"id": "color", "value": {"mode": "fixed", "fixedColor": colour}}],
        }
        for name, colour in COLOURS.items()
        if legends & {"{{result}}", "{{outcome}}"}
    ]
    panel: Panel = {
        "type": kind,
        "title": title,
        "description": description,
        "datasource": SOURCE,
        "gridPos": {"w": size[0], "h": size[1]},
        "targets": targets,
        "fieldConfig": {"defaults": {"unit": unit, "custom": custom or {}} | (defaults or {}), "overrides": overrides},
        "options": options or {},
    }
    if transformations:
        panel["transformations"] = transformations
    return panel


def graph(
    title: str, description: str, unit: str, *queries: tuple[str, str], width: int = 8, stacked: bool = False,
    threshold: float | None = None, exemplars: bool = False, top: float | None = None,
) -> Panel:  # fmt: skip
    """Lines over time; stacked areas where the parts make a whole."""
    custom: dict[str, Any] = {"drawStyle": "line", "lineWidth": 1, "showPoints": "never", "fillOpacity": 8}
    defaults: dict[str, Any] = {"min": 0}
    if stacked:
        custom |= {"fillOpacity": 40, "stacking": {"mode": "normal", "group": "A"}}
    if threshold is not None:
        custom |= {"thresholdsStyle": {"mode": "dashed"}}
        defaults["thresholds"] = {
            "mode": "absolute",
            "steps": [{"color": "transparent", "value": None}, {"color": BAD, "value": threshold}],
        }
    if top is not None:
        defaults["max"] = top
    options = {
        "legend": {"displayMode": "table", "placement": "bottom", "calcs": ["mean", "max"]},
        "tooltip": {"mode": "multi", "sort": "desc"},
    }
    return _panel(
        "timeseries", title, description, unit, *queries,
        size=(width, 8), options=options, custom=custom, defaults=defaults, exemplars=exemplars,
    )  # fmt: skip


def stat(
    title: str, description: str, unit: str, query: str, *, steps: tuple[tuple[str, float | None], ...],
    width: int = 4, legend: str = "", decimals: int | None = None,
) -> Panel:  # fmt: skip
    """One number with a colour that says whether it is good; its words say it too."""
    defaults: dict[str, Any] = {
        "thresholds": {"mode": "absolute", "steps": [{"color": colour, "value": value} for colour, value in steps]},
        "color": {"mode": "thresholds"},
        "noValue": "no data",
    }
    if decimals is not None:
        defaults["decimals"] = decimals
    options = {"reduceOptions": {"calcs": ["lastNotNull"]}, "graphMode": "area", "colorMode": "value"}
    return _panel(
        "stat", title, description, unit, (query, legend), size=(width, 5), options=options, defaults=defaults
    )


def heatmap(title: str, description: str, unit: str, query: str, *, width: int = 16) -> Panel:
    """Buckets over time."""
    options = {
        "calculate": False,
        "yAxis": {"unit": unit},
        "color": {"scheme": "Oranges", "mode": "scheme"},
        "exemplars": {"color": "rgba(255,0,255,0.7)"},
        "cellGap": 1,
        "tooltip": {"mode": "single", "yHistogram": True},
    }
    return _panel(
        "heatmap", title, description, unit, (query, "{{le}}"),
        size=(width, 8), options=options, target_kind="heatmap", exemplars=True,
    )  # fmt: skip


def table(title: str, description: str, unit: str, query: str, *, hide: tuple[str, ...] = (), width: int = 8) -> Panel:
    """Rows of labels, with a value."""
    hidden = dict.fromkeys(("Time", "__name__", "instance", "job", "namespace", "container", "endpoint", *hide), True)
    return _panel(
        "table", title, description, unit, (query, ""),
        size=(width, 8), target_kind="table",
        transformations=[{"id": "organize", "options": {"excludeByName": hidden}}],
        options={"showHeader": True, "sortBy": [{"displayName": "Value", "desc": True}]},
    )  # fmt: skip


@dataclass(frozen=True)
class Row:
    """Panels side by side under a heading."""

    title: str
    panels: list[Panel]
    collapsed: bool = False


@dataclass(frozen=True)
class Variable:
    """A choice at the top of a dashboard."""

    name: str
    label: str
    query: str
    everything: bool = True

    def as_json(self) -> dict[str, Any]:
        """The variable as Grafana stores it."""
        made: dict[str, Any] = {
            "name": self.name,
            "label": self.label,
            "type": "query",
            "datasource": SOURCE,
            "query": {"query": self.query, "refId": self.name},
            "definition": self.query,
            "refresh": 2,
            "sort": 1,
            "includeAll": self.everything,
            "multi": self.everything,
        }
        if self.everything:
            made |= {"allValue": ".*", "current": {"text": "All", "value": "$__all"}}
        return made


@dataclass(frozen=True)
class Dashboard:
    """A page of rows."""

    uid: str
    title: str
    description: str
    variables: list[Variable]
    rows: list[Row]
    annotations: list[tuple[str, str, str]] = field(default_factory=list)
    """Name, query, colour."""

    def as_json(self) -> dict[str, Any]:
        """The dashboard as Grafana imports it."""
        return {
            "uid": self.uid,
            "title": self.title,
            "description": self.description,
            "tags": ["feedback-dispatcher"],
            "schemaVersion": 39,
            "version": 1,
            "editable": False,
            "graphTooltip": 1,
            "refresh": "30s",
            "timezone": "",
            "time": {"from": "now-6h", "to": "now"},
            "links": [
                {
                    "type": "dashboards",
                    "title": "Feedback dispatcher",
                    "tags": ["feedback-dispatcher"],
                    "asDropdown": False,
                    "includeVars": True,
                    "keepTime": True,
                }
            ],
            "templating": {
                "list": [
                    {
                        "name": "datasource",
                        "label": "Data source",
                        "type": "datasource",
                        "query": "prometheus",
                        "refresh": 1,
                    },
                    *(variable.as_json() for variable in self.variables),
                ]
            },
            "annotations": {
                "list": [
                    {
                        "name": name,
                        "datasource": SOURCE,
                        "enable": True,
                        "iconColor": colour,
                        "expr": query,
                        "step": "60s",
                        "titleFormat": name,
                    }
                    for name, query, colour in self.annotations
                ]
            },
            "panels": self._placed(),
        }

    def _placed(self) -> list[Panel]:
        made: list[Panel] = []
        y = number = 0
        for row in self.rows:
            number += 1
            head: Panel = {
                "id": number,
                "type": "row",
                "title": row.title,
                "collapsed": row.collapsed,
                "gridPos": {"x": 0, "y": y, "w": WIDTH, "h": 1},
                "panels": [],
            }
            made.append(head)
            y += 1
            for line in _lines(row.panels):
                x = 0
                for panel, width in zip(line, _widths(line), strict=True):
                    number += 1
                    place = {"x": x, "y": y, "w": width, "h": panel["gridPos"]["h"]}
                    (head["panels"] if row.collapsed else made).append({"id": number} | panel | {"gridPos": place})
                    x += width
                y += max(panel["gridPos"]["h"] for panel in line)
        return made


def _lines(panels: list[Panel]) -> list[list[Panel]]:
    """Side by side as many as there is room for."""
    lines: list[list[Panel]] = [[]]
    for panel in panels:
        if sum(one["gridPos"]["w"] for one in [*lines[-1], panel]) > WIDTH:
            lines.append([])
        lines[-1].append(panel)
    return lines


def _widths(line: list[Panel]) -> list[int]:
    """A line that leaves room is stretched: nothing stands alone beside emptiness."""
    spare, count = WIDTH - sum(panel["gridPos"]["w"] for panel in line), len(line)
    return [panel["gridPos"]["w"] + spare // count + (index < spare % count) for index, panel in enumerate(line)]


def quantile(q: float, histogram: str, matchers: str, by: str = "le") -> str:
    """Of a histogram, over the zoom's interval."""
    return f"histogram_quantile({q}, sum by ({by}) (rate({histogram}_bucket{{{matchers}}}[$__rate_interval])))"


def rate(metric: str, matchers: str, by: str = "") -> str:
    """A second, summed, over the zoom's interval."""
    grouped = f"sum by ({by}) " if by else "sum"
    inner = f"rate({metric}{{{matchers}}}[$__rate_interval])"
    return f"{grouped}({inner})"


PLACE = [
    Variable("namespace", "Namespace", "label_values(dispatcher_build_info, namespace)"),
    Variable("job", "Job", 'label_values(dispatcher_build_info{namespace=~"$namespace"}, job)'),
]
POD = Variable("pod", "Pod", f"label_values(dispatcher_build_info{{{HERE}}}, pod)")
E2E = "dispatcher_event_end_to_end_duration_seconds"
