"""The alerts and recording rules, judged by promtool; their runbooks, one a page."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deploy.alert_cases import CASES, Case, Series
from tests.deploy.metric_names import RECORDED, known_metrics, names_in
from tests.deploy.tools import ROOT, RULES, RUNBOOKS, run, tool

PLACE = {"namespace": "messaging", "job": "feedback-dispatcher", "instance": "10.0.0.7:9090", "pod": "dispatcher-0"}
FILES = sorted(RULES.glob("*.yaml"))
RECORDING = ("feedback-dispatcher-objectives", "feedback-dispatcher-indicators", "feedback-dispatcher-slo-")
GROUPS = [group["name"] for path in FILES for group in yaml.safe_load(path.read_text())["groups"]]
ORDER = [*sorted(GROUPS, key=lambda name: not name.startswith(RECORDING)), "alert"]
ALL = [rule for path in FILES for group in yaml.safe_load(path.read_text())["groups"] for rule in group["rules"]]
ALERTS: dict[str, dict[str, Any]] = {rule["alert"]: rule for rule in ALL if "alert" in rule}


def _written(values: str) -> str:
    """The cases' notation in promtool's, where `5+0x3` are four samples."""
    steps = []
    for step in values.split():
        match = re.fullmatch(r"(_|[\d.]+)([-+][\d.]+)?x(\d+)", step)
        if match is None:
            steps.append(step)
        elif match[1] == "_":
            steps.append(f"_x{match[3]}")
        else:
            steps.append(f"{match[1]}{match[2] or '+0'}x{int(match[3]) - 1}")
    return " ".join(steps)


def _placed(series: Series) -> list[dict[str, str]]:
    written = []
    for selector, values in series.items():
        name, _, rest = selector.partition("{")
        own = rest.removesuffix("}")
        labels = ",".join(filter(None, [own, *(f'{key}="{PLACE[key]}"' for key in PLACE if f'{key}="' not in own)]))
        written.append({"series": f"{name}{{{labels}}}", "values": _written(values)})
    return written


def _firing(name: str, ticks: int, case: Case, labels: dict[str, str], *, expected: bool) -> dict[str, Any]:
    matchers = "".join(f',{key}="{value}"' for key, value in labels.items())
    minutes = ticks * int(case.tick.removesuffix("m"))
    return {
        "expr": f'count(ALERTS{{alertname="{name}",alertstate="firing"{matchers}}}) or vector(0)',
        "eval_time": f"{minutes}m",
        "exp_samples": [{"labels": "{}", "value": int(expected)}],
    }


def _promtool(tmp_path: Path, tick: str, *tests: dict[str, Any], only: str | None = None) -> None:
    """Run the tests, on all rules or, which is quicker, on one alert and the series recorded for it."""
    path = tmp_path / "test.yaml"
    files = FILES
    if only is not None:
        alert = tmp_path / "alert.yaml"
        alert.write_text(yaml.safe_dump({"groups": [{"name": "alert", "rules": [ALERTS[only]]}]}))
        recorded = RECORDED & names_in(ALERTS[only]["expr"])
        files = [alert, *(file for file in FILES if recorded and file.stem != "alerts")]
    document = {
        "rule_files": [str(file) for file in files],
        "evaluation_interval": tick,
        "group_eval_order": ORDER,  # else it is left to chance
        "tests": list(tests),
    }
    path.write_text(yaml.safe_dump(document))
    done = run(tool("promtool"), "test", "rules", path)
    assert done.returncode == 0, done.stdout + done.stderr


def test_promtool_finds_the_rules_sound() -> None:
    done = run(tool("promtool"), "check", "rules", "--lint=all", "--lint-fatal", *FILES)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("name", sorted(CASES))
def test_an_alert_fires_stays_silent_and_resolves(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    labels = {"severity": ALERTS[name]["labels"]["severity"]} | case.labels | {key: PLACE[key] for key in case.place}
    story = [_firing(name, case.at, case, labels, expected=True), _firing(name, case.over, case, {}, expected=False)]
    moments = (case.at, (case.at + case.over) // 2, case.over)
    silence = [_firing(name, ticks, case, {}, expected=False) for ticks in moments]
    tests = [
        {"interval": case.tick, "input_series": _placed(series), "promql_expr_test": expected}
        for one in (case, *case.others)
        for series, expected in ((one.fires, story), (one.quiet, silence))
    ]
    _promtool(tmp_path, case.tick, *tests, only=name)


def test_topics_without_a_reader_are_one_alert(tmp_path: Path) -> None:
    test = {
        "expr": 'count(ALERTS{alertname="DispatcherNoActiveConsumers",alertstate="firing"})',
        "eval_time": "18m",
        "exp_samples": [{"labels": "{}", "value": 1}],
    }
    series = _placed(CASES["DispatcherNoActiveConsumers"].fires)
    only = "DispatcherNoActiveConsumers"
    _promtool(tmp_path, "1m", {"interval": "1m", "input_series": series, "promql_expr_test": [test]}, only=only)


def test_with_no_series_at_all_only_absence_fires(tmp_path: Path) -> None:
    test = {
        "expr": 'count by (alertname) (ALERTS{alertstate="firing"})',
        "eval_time": "90m",
        "exp_samples": [{"labels": '{alertname="DispatcherAbsent"}', "value": 1}],
    }
    _promtool(tmp_path, "1m", {"interval": "1m", "input_series": [], "promql_expr_test": [test]})


def test_every_alert_has_a_case() -> None:
    assert CASES.keys() == ALERTS.keys()


@pytest.mark.parametrize("name", sorted(ALERTS))
def test_an_alert_has_a_summary_a_description_and_a_runbook(name: str) -> None:
    alert, case = ALERTS[name], CASES[name]
    assert alert["labels"]["severity"] in ("critical", "warning", "info")
    texts = alert["annotations"]
    assert texts.keys() == {"summary", "description", "runbook_url", "dashboard_url"}
    assert texts["runbook_url"] == f"docs/runbooks/{name}.md"
    assert texts["dashboard_url"] in ("/d/dispatcher-overview", "/d/dispatcher-tenant")
    assert "$" not in texts["summary"], "a summary is the same for every instance: it groups them"
    named = set(re.findall(r"\$labels\.(\w+)", texts["description"]))
    assert named <= {*case.labels, *case.place}, "a label that the alert is not shown to carry"


def test_every_metric_in_a_rule_exists() -> None:
    unknown = {name for rule in ALL for name in names_in(rule["expr"])} - known_metrics() - RECORDED
    assert not unknown


def test_every_recording_rule_is_used_or_shown() -> None:
    names = {rule["record"] for rule in ALL if "record" in rule}
    assert names == RECORDED
    levels = re.compile(r"(namespace_job(_topic|_result)?|slo):dispatcher_[a-z_]+:[a-z0-9_]+")
    assert all(levels.fullmatch(name) for name in names)


def test_alerts_and_runbooks_are_one_to_one() -> None:
    assert {path.stem for path in RUNBOOKS.glob("Dispatcher*.md")} == set(ALERTS)


@pytest.mark.parametrize("name", sorted(ALERTS))
def test_a_runbook_begins_with_the_customer_and_ends_with_commands(name: str) -> None:
    text = (RUNBOOKS / f"{name}.md").read_text()
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    assert headings == [name, "What the customer feels", "What it means", "What to do", "Commands"]
    assert re.search(r"^    \S", text.split("## Commands")[1], re.MULTILINE), "no command"


def test_no_link_in_the_documents_is_dead() -> None:
    for path in [*RUNBOOKS.glob("*.md"), *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", path.read_text()):
            assert target.startswith("https://") or (path.parent / target).exists(), f"{path.name}: {target}"
