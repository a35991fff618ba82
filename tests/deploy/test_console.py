"""The console as the chart runs it: its settings fit the program, and the addresses it calls exist."""

import json
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml
from typer.testing import CliRunner

from dispatcher.cli.commands import app
from dispatcher.config.loader import load_settings
from tests.deploy.rendering import NAMES, objects, only, settings_of
from tests.deploy.tools import CHART, run, tool

CONSOLES = [name for name in NAMES if name.startswith("console-")]
SECRET = "a secret that is longer than thirty-two bytes"


def container(name: str) -> dict[str, Any]:
    (found,) = only(name, "Deployment", "-console")["spec"]["template"]["spec"]["containers"]
    made: dict[str, Any] = found
    return made


def environment(name: str) -> dict[str, str]:
    return {one["name"]: one["value"] for one in container(name)["env"]}


@pytest.mark.parametrize("name", CONSOLES)
def test_its_command_and_settings_are_the_programs(name: str, tmp_path: Path) -> None:
    command, *options = container(name)["args"]
    shown = CliRunner(env={"COLUMNS": "200"}).invoke(app, [command, "--help"])
    assert shown.exit_code == 0
    assert all(option.partition("=")[0] in shown.stdout for option in options)

    text = settings_of(name)
    for mounted in _secret_files(yaml.safe_load(text)):
        path = tmp_path / mounted.lstrip("/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(SECRET)
        text = text.replace(mounted, str(path))
    file = tmp_path / "dispatcher.yaml"
    file.write_text(text)
    settings = load_settings(file, environment(name))
    assert settings.webhooks.store == "sql"
    assert (settings.console.host, settings.console.public_url) == (None, "https://console.example")
    assert len(settings.console.dispatchers) == 1


def _secret_files(node: Any) -> list[str]:
    if isinstance(node, list):
        return [path for item in node for path in _secret_files(item)]
    if not isinstance(node, dict):
        return []
    own = [node["file"]] if node.keys() == {"file"} else []
    return own + [path for item in node.values() for path in _secret_files(item)]


@pytest.mark.parametrize("name", CONSOLES)
def test_it_asks_each_dispatcher_of_the_release(name: str) -> None:
    (url,) = json.loads(environment(name)["DISPATCHER_CONSOLE__DISPATCHERS"])
    parts = urlsplit(url)
    service = only(name, "Service", "-ops")
    assert (parts.scheme, parts.hostname) == ("http", service["metadata"]["name"])
    assert service["spec"]["clusterIP"] == "None", "each pod has an address of its own behind it"
    (port,) = service["spec"]["ports"]
    assert port["port"] == parts.port
    workloads = [one for one in objects(name, "Deployment") if not one["metadata"]["name"].endswith("-console")]
    (dispatcher,) = workloads
    labels = dispatcher["spec"]["template"]["metadata"]["labels"]
    assert service["spec"]["selector"].items() <= labels.items()
    ports = {
        one["name"]: one["containerPort"] for one in dispatcher["spec"]["template"]["spec"]["containers"][0]["ports"]
    }
    assert ports[port["targetPort"]] == parts.port


def test_dispatchers_that_are_named_in_the_settings_are_left_alone() -> None:
    values = ("-f", CHART / "ci/console-httproute-values.yaml")
    done = run(
        tool("helm4"), "template", "r", CHART, *values, "--set-json", 'config.console.dispatchers=["http://x:9090"]'
    )
    assert done.returncode == 0, done.stderr
    assert "DISPATCHER_CONSOLE__DISPATCHERS" not in done.stdout


@pytest.mark.parametrize("name", CONSOLES)
def test_its_probes_are_routes_that_need_no_sign_in(name: str) -> None:
    served = (CHART.parents[2] / "dispatcher/console/probes.py").read_text()
    for probe, path in (("startupProbe", "/livez"), ("livenessProbe", "/livez"), ("readinessProbe", "/readyz")):
        assert container(name)[probe]["httpGet"] == {"path": path, "port": "http"}
        assert f'"{path}"' in served


def test_the_network_policy_lets_it_reach_the_ops_port() -> None:
    policies = {one["metadata"]["name"]: one["spec"] for one in objects("console-ingress", "NetworkPolicy")}
    console = next(spec for name, spec in policies.items() if name.endswith("-console"))
    dispatcher = next(spec for name, spec in policies.items() if not name.endswith("-console"))
    labels = dispatcher["podSelector"]["matchLabels"]
    ways = [rule for rule in console["egress"] if {"podSelector": {"matchLabels": labels}} in rule.get("to", [])]
    assert [port["port"] for way in ways for port in way["ports"]] == ["ops"]
    (metrics,) = [rule for rule in dispatcher["ingress"] if {"port": "ops", "protocol": "TCP"} in rule["ports"]]
    allowed = metrics.get("from")
    own = {"podSelector": {"matchLabels": console["podSelector"]["matchLabels"]}}
    assert allowed is None or own in allowed


def test_ingress_and_route_lead_to_its_service() -> None:
    service = only("console-ingress", "Service", "-console")
    ((rule,), (port,)) = only("console-ingress", "Ingress")["spec"]["rules"], service["spec"]["ports"]
    (path,) = rule["http"]["paths"]
    assert path["backend"]["service"] == {"name": service["metadata"]["name"], "port": {"name": port["name"]}}

    service = only("console-httproute", "Service", "-console")
    route = only("console-httproute", "HTTPRoute")
    assert route["apiVersion"] == "gateway.networking.k8s.io/v1"
    assert route["spec"].keys() == {"parentRefs", "hostnames", "rules"}
    assert route["spec"]["parentRefs"] == [{"name": "public", "namespace": "gateways"}]
    (rule,) = route["spec"]["rules"]
    assert rule["matches"] == [{"path": {"type": "PathPrefix", "value": "/"}}]
    (port,) = service["spec"]["ports"]
    assert rule["backendRefs"] == [{"name": service["metadata"]["name"], "port": port["port"]}]
