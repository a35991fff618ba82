"""The history worker as the chart runs it: its command and settings fit the program, and its ways out are open."""

from pathlib import Path
from typing import Any

import yaml
from typer.testing import CliRunner

from dispatcher.cli.commands import app
from dispatcher.config.loader import load_settings
from tests.deploy.rendering import objects, only, settings_of
from tests.deploy.test_console import SECRET, _secret_files
from tests.deploy.tools import CHART, run, tool


def container() -> dict[str, Any]:
    (found,) = only("history", "Deployment", "-history")["spec"]["template"]["spec"]["containers"]
    made: dict[str, Any] = found
    return made


def test_its_command_and_settings_are_the_programs(tmp_path: Path) -> None:
    command, *options = container()["args"]
    shown = CliRunner(env={"COLUMNS": "200"}).invoke(app, [command, "--help"])
    assert shown.exit_code == 0
    assert all(option.partition("=")[0] in shown.stdout for option in options)
    text = settings_of("history")
    for mounted in _secret_files(yaml.safe_load(text)):
        path = tmp_path / mounted.lstrip("/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(SECRET)
        text = text.replace(mounted, str(path))
    (tmp_path / "webhooks.d").mkdir()
    file = tmp_path / "dispatcher.yaml"
    file.write_text(text.replace("/etc/webhooks.d", str(tmp_path / "webhooks.d")))
    settings = load_settings(file, {one["name"]: one["value"] for one in container()["env"]})
    assert settings.history.is_on
    assert settings.notifications.is_on
    assert settings.notifications.smtp is not None
    assert settings.console.public_url == "https://console.example"


def test_its_probes_reach_the_ops_port() -> None:
    (port,) = container()["ports"]
    assert (port["name"], port["containerPort"]) == ("ops", 9090)
    for probe, path in (("startupProbe", "/livez"), ("livenessProbe", "/livez"), ("readinessProbe", "/readyz")):
        assert container()[probe]["httpGet"] == {"path": path, "port": "ops"}


def test_its_network_policy_opens_the_ways_to_mail_server_and_database() -> None:
    policies = {one["metadata"]["name"]: one["spec"] for one in objects("history", "NetworkPolicy")}
    worker = next(spec for name, spec in policies.items() if name.endswith("-history"))
    dispatcher = next(spec for name, spec in policies.items() if not name.endswith("-history"))
    ports = {port["port"] for rule in worker["egress"] for port in rule["ports"]}
    assert {53, 9092, 5432, 587, 443} <= ports
    assert 587 not in {port["port"] for rule in dispatcher["egress"] for port in rule["ports"]}
    (mail,) = [rule for rule in worker["egress"] if rule["ports"] == [{"port": 587, "protocol": "TCP"}]]
    assert mail["to"] == [{"ipBlock": {"cidr": "192.0.2.25/32"}}]


def test_no_worker_is_missed_if_none_is_wanted() -> None:
    values = ("-f", str(CHART / "ci/monitoring-values.yaml"))
    for store, is_alert in (("sql", True), ("none", False)):
        _, text = rendered(*values, "--set", f"config.history.store={store}")
        assert ("alert: DispatcherHistoryWorkerGone" in text) is is_alert
        assert "alert: DispatcherHistoryLosing" in text


def rendered(*options: str) -> tuple[int, str]:
    done = run(tool("helm4"), "template", "r", CHART, *options)
    return done.returncode, done.stdout + done.stderr


def test_the_console_leaves_the_work_to_it_and_finds_its_mail_server_without_it() -> None:
    values = ("-f", str(CHART / "ci/console-ingress-values.yaml"), "--set-json", "networkPolicy.smtp.ports=[587]")
    with_url = (*values, "--set", "history.enabled=true", "--set", "config.history.url.file=/run/secrets/x")
    _, text = rendered(*with_url)
    made = [one for one in yaml.safe_load_all(text) if one]
    (console,) = [one for one in made if one["kind"] == "Deployment" and one["metadata"]["name"].endswith("-console")]
    environment = {one["name"]: one["value"] for one in console["spec"]["template"]["spec"]["containers"][0]["env"]}
    assert environment["DISPATCHER_HISTORY__EMBEDDED"] == "false"
    (worker,) = [one for one in made if one["kind"] == "Deployment" and one["metadata"]["name"].endswith("-history")]
    environment = {one["name"]: one["value"] for one in worker["spec"]["template"]["spec"]["containers"][0]["env"]}
    assert environment["DISPATCHER_CONSOLE__PUBLIC_URL"] == "https://console.example"
    _, text = rendered(*values)
    (policy,) = [
        one
        for one in yaml.safe_load_all(text)
        if one and one["kind"] == "NetworkPolicy" and one["metadata"]["name"].endswith("-console")
    ]
    assert {"port": 587, "protocol": "TCP"} in [port for rule in policy["spec"]["egress"] for port in rule["ports"]]


def test_without_a_database_it_is_refused() -> None:
    status, text = rendered("--set", "history.enabled=true", "--set", "config.kafka.bootstrap_servers=k:1")
    assert status != 0
    assert "history.enabled needs config.history.url" in text
