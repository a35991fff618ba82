"""The chart with TLS on the ops port: everything that asks the port speaks TLS, and contradictions are refused."""

import json

import pytest
import yaml

from tests.deploy.rendering import objects, only, pod_template
from tests.deploy.tools import CHART, run, tool


def test_every_probe_of_the_ops_port_uses_https() -> None:
    probes = [
        container[name]["httpGet"]
        for one in objects("ops-tls", "Deployment")
        for container in one["spec"]["template"]["spec"]["containers"]
        for name in ("startupProbe", "livenessProbe", "readinessProbe")
    ]
    schemes = {(probe["port"], probe.get("scheme")) for probe in probes}
    assert schemes == {("ops", "HTTPS"), ("http", None)}
    assert len(probes) == 9, "dispatcher, history worker, console"


def test_prometheus_verifies_the_pods_of_dispatcher_and_history_and_sends_the_token() -> None:
    for suffix in ("dispatcher", "-history"):
        (endpoint,) = only("ops-tls", "PodMonitor", suffix)["spec"]["podMetricsEndpoints"]
        assert endpoint["scheme"] == "https"
        assert endpoint["tlsConfig"]["serverName"] == "dispatcher.example"
        assert endpoint["authorization"] == {"credentials": {"name": "dispatcher-ops", "key": "token"}}


def test_the_console_and_the_test_pod_ask_by_https() -> None:
    (container,) = only("ops-tls", "Deployment", "-console")["spec"]["template"]["spec"]["containers"]
    (urls,) = [one["value"] for one in container["env"] if one["name"] == "DISPATCHER_CONSOLE__DISPATCHERS"]
    assert [url.partition(":")[0] for url in json.loads(urls)] == ["https"]
    (asked,) = [
        part
        for template in map(pod_template, objects("ops-tls", "Pod"))
        if template is not None
        for part in template["spec"]["containers"][0]["args"]
        if part.startswith("--ops=")
    ]
    assert asked.startswith("--ops=https://")


@pytest.mark.parametrize("monitor", ["podMonitor", "serviceMonitor"])
@pytest.mark.parametrize(
    ("ops", "cure"),
    [
        ({"tls": {"certificate": "/c", "key": "/k"}}, "metrics.podMonitor.tlsConfig"),
        ({"token": {"file": "/t"}}, "metrics.podMonitor.authorization"),
    ],
)
def test_a_monitor_that_could_not_scrape_is_refused(monitor: str, ops: object, cure: str) -> None:
    settings = ("--set", "config.kafka.bootstrap_servers=kafka:9092", "--set-json", f"config.ops={json.dumps(ops)}")
    done = run(tool("helm4"), "template", "r", CHART, *settings, "--set", f"metrics.{monitor}.enabled=true")
    assert done.returncode != 0
    assert f"needs {cure}" in done.stderr
    done = run(tool("helm4"), "template", "r", CHART, *settings)
    assert done.returncode == 0, "without a monitor there is nothing to contradict"


@pytest.mark.parametrize("tls", [None, {}])
def test_without_tls_nothing_mentions_https(tls: object) -> None:
    done = run(
        tool("helm4"), "template", "r", CHART, "--set", "config.kafka.bootstrap_servers=kafka:9092", "--set",
        "metrics.podMonitor.enabled=true", "--set-json", f"config.ops.tls={json.dumps(tls)}", "--skip-schema-validation",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (deployment,) = [one for one in yaml.safe_load_all(done.stdout) if one and one["kind"] == "Deployment"]
    assert "HTTPS" not in str(deployment)
