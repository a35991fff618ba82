"""The dashboards: generated, consistent, and only about metrics that there are."""

import json
import re
from typing import Any

import promql_parser
import pytest

from deploy.dashboards.generate import generated
from deploy.dashboards.queries import Query, filled, panels, queries
from tests.deploy.metric_names import RECORDED, known_metrics, names_in
from tests.deploy.tools import DASHBOARDS, ROOT

FILES = sorted(DASHBOARDS.glob("*.json"))
EACH = pytest.mark.parametrize(
    "dashboard", [json.loads(path.read_text()) for path in FILES], ids=lambda one: one["uid"]
)
QUERIES = list(queries())


def test_the_committed_files_are_what_the_generator_writes() -> None:
    assert set(generated()) == set(FILES)
    for path, text in generated().items():
        assert path.read_text() == text, "run python -m deploy.dashboards.generate"


@EACH
def test_it_has_an_identity_and_its_variables(dashboard: dict[str, Any]) -> None:
    assert dashboard["uid"] in ("dispatcher-overview", "dispatcher-tenant"), "alerts link to these"
    assert dashboard["description"]
    assert dashboard["graphTooltip"] == 1, "a crosshair over all panels"
    variables = {one["name"]: one for one in dashboard["templating"]["list"]}
    assert variables.keys() >= {"datasource", "namespace", "job"}
    assert next(iter(variables)) == "datasource"
    used = set(re.findall(r"\$(?!__)\{?(\w+)", json.dumps(dashboard["panels"])))
    assert used == variables.keys(), "every variable is used, and nothing else"


@EACH
def test_a_panel_says_what_it_shows(dashboard: dict[str, Any]) -> None:
    titles = [panel["title"] for panel in panels(dashboard)]
    assert len(set(titles)) == len(titles)
    for panel in panels(dashboard):
        assert panel["title"]
        assert panel["description"].endswith(".")
        assert panel["fieldConfig"]["defaults"]["unit"]
        assert panel["datasource"]["uid"] == "${datasource}"
        assert panel["targets"]
        for target in panel["targets"]:
            assert target["datasource"]["uid"] == "${datasource}"
            assert len(panel["targets"]) == 1 or target["legendFormat"], "lines must be told apart"
        references = [target["refId"] for target in panel["targets"]]
        assert len(set(references)) == len(references)


@EACH
def test_panels_lie_side_by_side(dashboard: dict[str, Any]) -> None:
    taken: set[tuple[int, int]] = set()
    numbers = [panel["id"] for panel in dashboard["panels"]]
    assert len(set(numbers)) == len(numbers)
    for panel in dashboard["panels"]:
        at = panel["gridPos"]
        cells = {(at["x"] + x, at["y"] + y) for x in range(at["w"]) for y in range(at["h"])}
        assert not cells & taken
        taken |= cells
    assert len(taken) == 24 * (1 + max(y for _, y in taken)), "an empty place"


@pytest.mark.parametrize("query", QUERIES, ids=lambda query: f"{query.dashboard}-{query.panel}")
def test_a_query_is_sound(query: Query) -> None:
    promql_parser.parse(filled(query.expr))
    assert names_in(filled(query.expr)) <= known_metrics() | RECORDED
    for selector in re.findall(r"(\w+)\{([^}]*)\}", query.expr):
        name, matchers = selector
        if name not in ("ALERTS",) and not name.startswith(("container_", "kube_")):
            assert 'namespace=~"$namespace"' in matchers, f"{name} is not limited to what is chosen"
    ranges = re.findall(r"rate\([^[]*\[([^\]]+)\]", query.expr)
    assert all(one == "$__rate_interval" or query.kind == "table" for one in ranges), "a rate follows the zoom"


def test_every_metric_of_ours_is_shown_alerted_on_or_documented() -> None:
    """The console has no service-level objective: its metrics are for the operator's own dashboards."""
    from tests.deploy.test_rules import ALL

    shown = {name for query in QUERIES for name in names_in(filled(query.expr))}
    alerted = {name for rule in ALL for name in names_in(rule["expr"])}
    documented = set(re.findall(r"dispatcher_console_\w+", (ROOT / "docs" / "operating.md").read_text()))
    ours = {
        name.removesuffix("_bucket") if name.startswith("dispatcher_console_") else name
        for name in known_metrics()
        if name.startswith("dispatcher_") and not name.endswith(("_sum", "_count"))
    }
    assert {name for name in ours if name.startswith("dispatcher_console_")}
    assert ours - shown - alerted - documented == set()
