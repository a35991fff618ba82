"""The monitors for the Prometheus operator: each process whose series the alerts need is scraped by exactly one of them."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deploy.metric_names import known_metrics
from tests.deploy.rendering import Object, pod_template
from tests.deploy.tools import CHART, run, tool

MONITORS = ("podMonitor", "serviceMonitor")
HISTORY: Object = {"url": {"file": "/run/secrets/history/url"}}
SQL: Object = {"store": "sql", "url": {"file": "/run/secrets/database/url"}}
BASE: Object = {"config": {"kafka": {"bootstrap_servers": "kafka:9092"}, "webhooks": SQL}}
SCRAPING: Object = {
    "interval": "17s",
    "scrapeTimeout": "7s",
    "relabelings": [{"sourceLabels": ["__meta_kubernetes_pod_node_name"], "targetLabel": "node"}],
    "metricRelabelings": [{"sourceLabels": ["__name__"], "regex": "python_gc_.*", "action": "drop"}],
    "labels": {"release": "kube-prometheus-stack"},
}
WAYS: dict[str, tuple[Object, set[str]]] = {
    "no history": ({"console": {"enabled": True}}, {"dispatcher"}),
    "pods of its own": ({"history": {"enabled": True}, "config": {"history": HISTORY}}, {"dispatcher", "history"}),
    "pods of its own beside a console": (
        {"history": {"enabled": True}, "console": {"enabled": True}, "config": {"history": HISTORY}},
        {"dispatcher", "history"},
    ),
    "in the console": (
        {"console": {"enabled": True}, "config": {"history": HISTORY}},
        {"dispatcher", "console"},
    ),
    "in a console whose settings the chart does not know": (
        {"console": {"enabled": True}, "existingConfigMap": "settings"},
        {"dispatcher", "console"},
    ),
    "elsewhere": (
        {"console": {"enabled": True}, "config": {"history": HISTORY | {"embedded": False}}},
        {"dispatcher"},
    ),
    "a sink of the operator's": (
        {"console": {"enabled": True}, "config": {"history": HISTORY | {"store": "none"}}},
        {"dispatcher"},
    ),
}
"""Ways to run the history worker: values, and components that are scraped then."""


def render(tmp_path: Path, *values: Object) -> list[Object]:
    options: list[str | Path] = []
    for number, given in enumerate((BASE, *values)):
        file = tmp_path / f"{number}.yaml"
        file.write_text(json.dumps(given))
        options += ["-f", file]
    done = run(tool("helm4"), "template", "r", CHART, *options)
    assert done.returncode == 0, done.stderr
    return [one for one in yaml.safe_load_all(done.stdout) if one]


def scraped(made: list[Object]) -> dict[str, Object]:
    """Returns the endpoint that is scraped of each component, after its way from monitor to container was checked."""
    found: dict[str, Object] = {}
    for monitor in made:
        if monitor["kind"] not in ("PodMonitor", "ServiceMonitor"):
            continue
        key = "podMetricsEndpoints" if monitor["kind"] == "PodMonitor" else "endpoints"
        (endpoint,) = monitor["spec"][key]
        component, container = _target(made, monitor, endpoint)
        assert endpoint["port"] in {port["name"] for port in container["ports"]}
        assert component not in found, "scraped twice"
        found[component] = endpoint | {"monitor": monitor}
    return found


def _target(made: list[Object], monitor: Object, endpoint: Object) -> tuple[str, Object]:
    selector = monitor["spec"]["selector"]["matchLabels"]
    if monitor["kind"] == "ServiceMonitor":
        services = [one for one in made if one["kind"] == "Service"]
        (service,) = [one for one in services if selector.items() <= one["metadata"]["labels"].items()]
        assert endpoint["port"] in {port["name"] for port in service["spec"]["ports"]}
        assert monitor["spec"]["jobLabel"] in service["metadata"]["labels"]
        selector = service["spec"]["selector"]
    workloads = [one for one in made if one["kind"] in ("Deployment", "StatefulSet")]
    pods = [template for one in workloads if (template := pod_template(one)) is not None]
    (pod,) = [one for one in pods if selector.items() <= one["metadata"]["labels"].items()]
    (container,) = pod["spec"]["containers"]
    return pod["metadata"]["labels"]["app.kubernetes.io/component"], container


def monitoring(monitor: str, **more: Any) -> Object:
    metrics = {"podMonitor": SCRAPING | more, "serviceMonitor": {}}
    metrics[monitor]["enabled"] = True
    return {"metrics": metrics}


@pytest.mark.parametrize("monitor", MONITORS)
@pytest.mark.parametrize("way", WAYS)
def test_the_pods_of_the_history_worker_are_scraped(way: str, monitor: str, tmp_path: Path) -> None:
    values, expected = WAYS[way]
    found = scraped(render(tmp_path, values, monitoring(monitor)))
    assert found.keys() == expected
    assert {one["monitor"]["kind"].lower() for one in found.values()} == {monitor.lower()}


@pytest.mark.parametrize("monitor", MONITORS)
@pytest.mark.parametrize("way", ["pods of its own", "in the console"])
def test_only_what_the_worker_measures_is_kept(way: str, monitor: str, tmp_path: Path) -> None:
    found = scraped(render(tmp_path, WAYS[way][0], monitoring(monitor)))
    del found["dispatcher"]
    ((keep, *others),) = [one["metricRelabelings"] for one in found.values()]
    assert keep["action"] == "keep"
    assert others == SCRAPING["metricRelabelings"]
    kept = {name for name in known_metrics() if re.fullmatch(keep["regex"], name)}
    assert {"dispatcher_history_lag_records", "dispatcher_notifications_total", "dispatcher_build_info"} <= kept
    assert not any(name.startswith(("dispatcher_kafka", "dispatcher_config", "dispatcher_delivery")) for name in kept)


@pytest.mark.parametrize("monitor", MONITORS)
@pytest.mark.parametrize("way", ["pods of its own", "in the console"])
def test_every_monitor_has_the_values_of_scraping(way: str, monitor: str, tmp_path: Path) -> None:
    for endpoint in scraped(render(tmp_path, WAYS[way][0], monitoring(monitor, sampleLimit=1234))).values():
        for key in ("interval", "scrapeTimeout", "relabelings"):
            assert endpoint[key] == SCRAPING[key]
        assert endpoint["monitor"]["spec"]["sampleLimit"] == 1234
        assert SCRAPING["labels"].items() <= endpoint["monitor"]["metadata"]["labels"].items()


@pytest.mark.parametrize("monitor", MONITORS)
@pytest.mark.parametrize("way", ["pods of its own", "in the console"])
def test_the_console_is_scraped_without_what_the_ops_port_needs(way: str, monitor: str, tmp_path: Path) -> None:
    ops = {"tls": {"certificate": "/c", "key": "/k"}, "token": {"file": "/t"}}
    more = {"authorization": {"credentials": {"name": "ops", "key": "token"}}, "tlsConfig": {"serverName": "x"}}
    found = scraped(render(tmp_path, WAYS[way][0], {"config": {"ops": ops}}, monitoring(monitor, **more)))
    for component, endpoint in found.items():
        is_ops = component != "console"
        assert endpoint["port"] == ("ops" if is_ops else "http")
        assert ("tlsConfig" in endpoint, "authorization" in endpoint, endpoint.get("scheme", "http") == "https") == (
            is_ops, is_ops, is_ops
        )  # fmt: skip


@pytest.mark.parametrize("way", ["pods of its own", "in the console"])
def test_the_network_policies_admit_prometheus(way: str, tmp_path: Path) -> None:
    prometheus, people = ({"namespaceSelector": {"matchLabels": {"name": name}}} for name in ("monitoring", "people"))
    policy = {"enabled": True, "metricsFrom": [prometheus], "consoleFrom": [people]}
    made = render(tmp_path, WAYS[way][0], monitoring("podMonitor"), {"networkPolicy": policy})
    for component, endpoint in scraped(made).items():
        (found,) = [
            one["spec"]
            for one in made
            if one["kind"] == "NetworkPolicy"
            and one["spec"]["podSelector"]["matchLabels"]["app.kubernetes.io/component"] == component
        ]
        admitted = [
            rule.get("from", [prometheus])
            for rule in found["ingress"]
            if {"port": endpoint["port"], "protocol": "TCP"} in rule["ports"]
        ]
        assert any(prometheus in peers for peers in admitted)
