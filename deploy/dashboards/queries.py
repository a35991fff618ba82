"""The queries of the committed dashboards, as Grafana would send them: for the tests and for previews."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

DASHBOARDS = Path(__file__).parents[1] / "helm" / "feedback-dispatcher" / "files" / "dashboards"


class Query(NamedTuple):
    """One query of one panel."""

    dashboard: str
    panel: str
    kind: str
    unit: str
    expr: str
    legend: str


def panels(dashboard: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Every panel that shows data, those in folded rows too."""
    for panel in dashboard["panels"]:
        if panel["type"] == "row":
            yield from panel["panels"]
        else:
            yield panel


def queries() -> Iterator[Query]:
    """Every query of every dashboard, the annotations' too."""
    for path in sorted(DASHBOARDS.glob("*.json")):
        dashboard = json.loads(path.read_text())
        for panel in panels(dashboard):
            unit = panel["fieldConfig"]["defaults"]["unit"]
            for target in panel["targets"]:
                yield Query(path.stem, panel["title"], panel["type"], unit, target["expr"], target["legendFormat"])
        for annotation in dashboard["annotations"]["list"]:
            yield Query(path.stem, annotation["name"], "annotation", "short", annotation["expr"], "")


def filled(expr: str, interval: str = "1m", span: str = "15m") -> str:
    """The expression with its variables filled in: everything chosen."""
    expr = expr.replace("$__rate_interval", interval).replace("$__range", span)
    return re.sub(r"\$(namespace|job|pod|topic|org|sandbox)\b", ".*", expr)
