"""Numbers among the chart's values: Helm reads them as float64 from files and as int64 from --set."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from deploy.helm.values import FREE, values
from tests.deploy.rendering import Object
from tests.deploy.tools import CHART, run, tool

HELMS = ("helm4", "helm3")
STRIMZI: Object = {"create": "strimzi", "partitions": 3, "strimzi": {"cluster": "events"}}
LARGE = 2_000_000
"""Go writes a float64 with an exponent from a million on."""


def render(helm: str, given: Object, tmp_path: Path, *options: str) -> str:
    file = tmp_path / "values.yaml"
    file.write_text(json.dumps(given))
    done = run(tool(helm), "template", "r", CHART, "-f", file, *options)
    assert done.returncode == 0, done.stderr
    return done.stdout


def add_value(given: Object, path: str, value: object) -> None:
    *parents, name = path.split(".")
    for parent in parents:
        given = given.setdefault(parent, {})
    given[name] = value


def topic_configs(text: str) -> dict[str, Any]:
    made = [one for one in yaml.safe_load_all(text) if one]
    return {one["spec"]["topicName"]: one["spec"]["config"] for one in made if one["kind"] == "KafkaTopic"}


@pytest.mark.parametrize("helm", HELMS)
@pytest.mark.parametrize(
    ("setting", "number", "text"),
    [
        ("retry.max_age", 2_592_000, "30d"),
        ("retry.max_age", 1_000_000, "1000000s"),
        ("retry.max_age", 86_400.5, "86400500ms"),
        ("kafka.max_record_bytes", 2 * LARGE, "4MB"),
        ("kafka.max_record_bytes", 1_048_576, "1 MiB"),
        ("retry.tiers", [30, 86_400], ["30s", "1d"]),
        ("delivery.drain_timeout", 600, "10m"),
    ],
)
def test_a_number_and_a_text_render_the_same(
    helm: str, setting: str, number: object, text: object, tmp_path: Path
) -> None:
    group, _, key = setting.partition(".")

    def made(value: object, *options: str) -> str:
        config: Object = {"kafka": {"bootstrap_servers": "kafka:9092"}}
        if not options:
            config.setdefault(group, {})[key] = value
        shown = render(helm, {"config": config, "topics": STRIMZI}, tmp_path, *options)
        topics = topic_configs(shown)
        (grace,) = {line for line in shown.splitlines() if "terminationGracePeriodSeconds" in line}
        return json.dumps([topics, grace])

    assert made(number) == made(text)
    assert made(number, "--set-json", f"config.{setting}={json.dumps(number)}") == made(text)
    if isinstance(number, int):
        assert made(number, "--set", f"config.{setting}={number}") == made(text)


def test_a_month_of_retries_is_kept_for_a_month(tmp_path: Path) -> None:
    given = {"config": {"kafka": {"bootstrap_servers": "kafka:9092"}, "retry": {"max_age": 2_592_000}}}
    topics = topic_configs(render("helm4", given | {"topics": STRIMZI}, tmp_path))
    assert topics["feedback-dispatcher.held"]["retention.ms"] == (30 + 3) * 86_400_000


def _whole_numbers() -> list[str]:
    return [
        value.path
        for value in values()
        if isinstance(value.default, int)
        and not isinstance(value.default, bool)
        and not value.path.endswith("port")
        and not any(value.path.startswith(f"{free}.") for free in FREE)
    ]


EVERYTHING: Object = {
    "config": {
        "kafka": {"bootstrap_servers": "kafka:9092"},
        "webhooks": {"store": "sql", "url": {"file": "/a"}},
        "history": {"url": {"file": "/b"}},
        "console": {"session_key": {"file": "/c"}},
    },
    "metrics": {"podMonitor": {"enabled": True}, "serviceMonitor": {"enabled": True}},
    "console": {"enabled": True, "podDisruptionBudget": {"minAvailable": LARGE}},
    "history": {"enabled": True},
    "podDisruptionBudget": {"minAvailable": LARGE},
    "terminationGracePeriodSeconds": LARGE,
    "autoscaling": {"keda": {"serverAddress": "http://prometheus:9090"}},
    "topics": {"strimzi": {"cluster": "events"}},
}


@pytest.mark.parametrize(("scaling", "topics"), [("none", "job"), ("hpa", "strimzi"), ("keda", "none")])
def test_no_number_is_written_with_an_exponent(scaling: str, topics: str, tmp_path: Path) -> None:
    base = tmp_path / "base.yaml"
    base.write_text(json.dumps(EVERYTHING))
    numbers: Object = {"autoscaling": {"type": scaling}, "topics": {"create": topics}}
    for path in _whole_numbers():
        add_value(numbers, path, 2 * LARGE)
    text = render("helm4", numbers, tmp_path, "-f", str(base))
    assert [line for line in text.splitlines() if re.search(r"\de\+\d", line)] == []


PORTS = {
    "networkPolicy.kafka.ports": [9092],
    "networkPolicy.webhooks.ports": [443, 9443],
    "networkPolicy.database.ports": [5432],
    "networkPolicy.smtp.ports": [587],
    "config.egress.ports": [443, 9443],
}


@pytest.mark.parametrize("helm", HELMS)
@pytest.mark.parametrize("set_on_the_command_line", [(), *((path,) for path in PORTS), tuple(PORTS)])
def test_ports_are_the_same_from_a_file_and_from_the_command_line(
    helm: str, set_on_the_command_line: tuple[str, ...], tmp_path: Path
) -> None:
    given: Object = {"config": {"kafka": {"bootstrap_servers": "kafka:9092"}, "history": {"url": {"file": "/b"}}}}
    given |= {"history": {"enabled": True}, "networkPolicy": {"enabled": True}}
    options: list[str] = []
    for path, ports in PORTS.items():
        if path in set_on_the_command_line:
            options += ["--set", f"{path}={{{','.join(map(str, ports))}}}"]
        else:
            add_value(given, path, ports)
    text = render(helm, given, tmp_path, *options)
    (policy,) = [
        one
        for one in yaml.safe_load_all(text)
        if one and one["kind"] == "NetworkPolicy" and one["metadata"]["name"].endswith("-history")
    ]
    opened = [port["port"] for rule in policy["spec"]["egress"] for port in rule["ports"]]
    assert sorted(opened) == [53, 53, 443, 587, 5432, 9092, 9443]
