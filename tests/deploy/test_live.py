"""The chart's configuration in the real program, and the real program under a real Prometheus with the real rules."""

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme

from deploy.dashboards.queries import filled, queries
from dispatcher.cli.options import counted
from dispatcher.config.loader import load_settings
from tests.deploy.metric_names import known_metrics
from tests.deploy.prometheus import answered, broken_rules, free_port, get, query, scraping
from tests.deploy.rendering import NAMES, only, settings_of
from tests.deploy.tools import run, tool

LOADED = [name for name in NAMES if name != "existing-configmap"]


def _mounted(name: str, root: Path) -> Path:
    """What the pod would see below `root`: settings, webhooks, and a file for every secret that is named."""
    settings = settings_of(name)
    for place in ("/etc/webhooks.d", "/run/secrets"):
        settings = settings.replace(place, f"{root}{place}")
    (root / "etc/dispatcher").mkdir(parents=True)
    (root / "etc/webhooks.d").mkdir()
    for path in re.findall(rf"{re.escape(str(root))}/run/secrets/\S+", settings):
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        pem = trustme.CA().cert_pem.bytes().decode()
        Path(path).write_text(pem if path.endswith(".crt") else "a secret as long as a session key has to be\n")
    file = root / "etc/dispatcher/dispatcher.yaml"
    file.write_text(settings)
    return file


@pytest.mark.parametrize("name", LOADED)
def test_the_rendered_settings_are_what_the_dispatcher_reads(name: str, tmp_path: Path) -> None:
    settings = load_settings(_mounted(name, tmp_path), {})
    assert settings.apiVersion == "dispatcher/v1"


@pytest.mark.parametrize("name", ["minimal", "secured", "webhooks"])
def test_dispatcher_check_approves_of_what_is_mounted(name: str, tmp_path: Path) -> None:
    """What `helm test` runs, the program itself."""
    file = _mounted(name, tmp_path)
    webhooks = only(name, "ConfigMap", "-webhooks")["data"]
    for key, text in webhooks.items():
        (tmp_path / "etc/webhooks.d" / key).write_text(text)
    (tmp_path / "etc/webhooks.d/luma.whsec").write_text("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSwMfKQ9r8GKYo=\n")
    done = run(sys.executable, "-m", "dispatcher", "check", "-c", file)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{counted(len(webhooks), 'webhook')}, no problems" in done.stdout


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, "subprocess.Popen[bytes]"]]:
    """The dispatcher with the chart's settings, and a broker that is not there."""
    file = _mounted("minimal", tmp_path_factory.mktemp("daemon"))
    port = free_port()
    environment = os.environ | {
        "DISPATCHER_KAFKA__BOOTSTRAP_SERVERS": "127.0.0.1:1",
        "DISPATCHER_OPS__HOST": "127.0.0.1",
        "DISPATCHER_OPS__PORT": str(port),
    }
    command = [sys.executable, "-m", "dispatcher", "run", "-c", str(file)]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        answered(f"http://127.0.0.1:{port}/livez")
        yield f"127.0.0.1:{port}", process
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()


@pytest.fixture(scope="module")
def prometheus(
    daemon: tuple[str, "subprocess.Popen[bytes]"], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """A Prometheus that has scraped it a few times and evaluated every rule."""
    url, process = scraping(daemon[0], tmp_path_factory.mktemp("prometheus"))
    try:
        answered(f"{url}/-/ready")
        end = time.monotonic() + 60
        while not query(url, 'count_over_time(up{job="feedback-dispatcher"}[1m]) > 4'):
            assert time.monotonic() < end
            time.sleep(0.25)
        yield url
    finally:
        process.terminate()
        process.wait()


def test_without_a_broker_it_lives_and_is_not_ready(daemon: tuple[str, "subprocess.Popen[bytes]"]) -> None:
    """Startup and liveness pass: a broker outage restarts no pod, not even a new one."""
    assert get(f"http://{daemon[0]}/livez")[0] == 200
    status, text = get(f"http://{daemon[0]}/readyz")
    assert status == 503
    assert "nothing listens there" in text


def test_a_check_that_asks_an_instance_says_why_it_is_not_ready(
    daemon: tuple[str, "subprocess.Popen[bytes]"], tmp_path: Path
) -> None:
    """What `helm test` runs if the chart has a Service."""
    file = _mounted("minimal", tmp_path)
    done = run(sys.executable, "-m", "dispatcher", "check", "-c", file, "--ops", f"http://{daemon[0]}")
    assert done.returncode == 1
    assert f"the instance at http://{daemon[0]} is not ready: " in done.stderr
    assert "kafka: not connected yet" in done.stderr
    done = run(sys.executable, "-m", "dispatcher", "check", "-c", file, "--ops", "http://127.0.0.1:1")
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "does not answer /readyz" in done.stderr


@pytest.mark.parametrize("broken", ["a webhook file", "the settings"])
def test_a_check_of_a_broken_file_asks_the_instance_all_the_same(
    daemon: tuple[str, "subprocess.Popen[bytes]"], tmp_path: Path, broken: str
) -> None:
    file = _mounted("minimal", tmp_path)
    if broken == "the settings":
        file.write_text(file.read_text() + "nonsense: 1\n")
    else:
        (tmp_path / "etc/webhooks.d/luma.yaml").write_text("apiVersion: dispatcher/v1\nwebhooks: [{name: x}]\n")
    done = run(sys.executable, "-m", "dispatcher", "check", "-c", file, "--ops", f"http://{daemon[0]}")
    assert done.returncode == 78
    assert f"the instance at http://{daemon[0]} is not ready: " in done.stderr
    assert ("nonsense" if broken == "the settings" else "luma.yaml:2") in done.stderr


def test_every_query_of_every_dashboard_runs(prometheus: str) -> None:
    """Even before anything has happened; with data in test_live_data.py."""
    for one in queries():
        query(prometheus, filled(one.expr))


def test_every_rule_evaluates(prometheus: str) -> None:
    assert broken_rules(prometheus) == {}


def test_the_right_alert_is_on_its_way(prometheus: str) -> None:
    """Nothing is read here, and no webhook is configured: only what is true is pending."""
    pending = {one["metric"]["alertname"] for one in query(prometheus, "ALERTS")}
    assert "DispatcherNoActiveConsumers" in pending
    assert "DispatcherKafkaUnavailable" in pending
    assert pending <= {
        "DispatcherNoActiveConsumers", "DispatcherKafkaUnavailable", "DispatcherEventLoopLag",
        "DispatcherFreshnessBudgetBurnFast", "DispatcherFreshnessBudgetBurnSlow",
    }  # fmt: skip


def test_the_scrape_is_small_and_what_the_tests_think_it_is(daemon: tuple[str, "subprocess.Popen[bytes]"]) -> None:
    text = answered(f"http://{daemon[0]}/metrics")
    samples = [line for line in text.splitlines() if not line.startswith("#")]
    assert len(samples) < 1000, "the chart's sampleLimit is 5000, with 200 tenants"
    names = {re.split(r"[{ ]", line)[0] for line in samples}
    assert names <= known_metrics()
    done = run(tool("promtool"), "check", "metrics", stdin=text)
    assert [line for line in done.stdout.splitlines() + done.stderr.splitlines() if "dispatcher_" in line] == []


def test_sigterm_ends_it_well_within_the_grace_period(
    prometheus: str, daemon: tuple[str, "subprocess.Popen[bytes]"]
) -> None:
    del prometheus  # asked for so that it is looked at before its target goes
    grace = only("minimal", "Deployment")["spec"]["template"]["spec"]["terminationGracePeriodSeconds"]
    began = time.monotonic()
    daemon[1].terminate()
    assert daemon[1].wait(timeout=grace) == 0
    assert time.monotonic() - began < grace / 2
