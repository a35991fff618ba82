"""The chart, rendered by both helms and held against what Kubernetes and the operators accept."""

import json
import re
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import yaml

from deploy.helm import values
from dispatcher.config.kafka_settings import KafkaSettings
from dispatcher.config.loader import load_settings
from tests.deploy import rendered
from tests.deploy.rendering import (
    BROKERS,
    CUSTOM,
    FROM_A_SECRET,
    HELMS,
    KUBERNETES,
    MINIMAL,
    NAMES,
    WITHOUT_SCHEMA,
    comparable,
    objects,
    only,
    pod_template,
    rendered_text,
)
from tests.deploy.tools import CHART, DEPLOY, ROOT, run, tool


def test_there_are_values_for_every_feature() -> None:
    assert len(NAMES) >= 12
    kinds = {one["kind"] for name in NAMES for one in objects(name)}
    assert kinds >= {*CUSTOM, *WITHOUT_SCHEMA, "Deployment", "StatefulSet", "Job", "Pod", "Ingress", "NetworkPolicy",
                     "PodDisruptionBudget", "HorizontalPodAutoscaler", "ServiceAccount", "Service",
                     "ConfigMap"}  # fmt: skip


# Helm


@pytest.mark.parametrize("helm", HELMS)
@pytest.mark.parametrize("name", NAMES)
def test_helm_lints_it(helm: str, name: str) -> None:
    done = run(tool(helm), "lint", "--strict", "--quiet", CHART, "-f", CHART / f"ci/{name}-values.yaml")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("name", NAMES)
def test_both_helms_render_the_same(name: str) -> None:
    assert comparable(rendered_text("helm3", name)) == comparable(rendered_text("helm4", name))


@pytest.mark.parametrize("version", [KUBERNETES[0], KUBERNETES[-1]])
def test_no_version_of_kubernetes_gets_anything_else(version: str) -> None:
    """Nor a cluster that has said which operators it has: what is made depends on the values alone."""
    everywhere = ("--kube-version", version, "--api-versions", "monitoring.coreos.com/v1,keda.sh/v1alpha1")
    for name in ("minimal", "monitoring", "keda"):
        assert rendered_text("helm4", name, *everywhere) == rendered_text("helm4", name)


def test_an_older_kubernetes_is_refused() -> None:
    done = run(tool("helm4"), "template", "r", CHART, *MINIMAL, "--kube-version", "1.28.9")
    assert done.returncode != 0
    assert "1.28.9" in done.stderr
    assert run(tool("helm4"), "template", "r", CHART, *MINIMAL, "--kube-version", "v1.29.4-gke.100").returncode == 0


# Rules and dashboards in it


def test_the_rules_are_the_files_word_for_word() -> None:
    files = [yaml.safe_load(path.read_text())["groups"] for path in sorted(CHART.glob("files/rules/*.yaml"))]
    assert only("servicemonitor", "PrometheusRule")["spec"]["groups"] == list(chain(*files))


def test_values_change_the_rules() -> None:
    rules = [rule for group in only("monitoring", "PrometheusRule")["spec"]["groups"] for rule in group["rules"]]
    alerts = {rule["alert"]: rule for rule in rules if "alert" in rule}
    records = {rule["record"]: rule["expr"] for rule in rules if "record" in rule}
    assert "DispatcherTenantSeriesCollapsed" not in alerts
    assert records["slo:dispatcher_delivery_objective:ratio"] == "vector(0.98)"
    assert records["slo:dispatcher_freshness_objective:ratio"] == "vector(0.9995)"
    assert "job:dispatcher_up:count" in records
    for name, alert in alerts.items():
        assert alert["labels"]["team"] == "messaging"
        assert alert["annotations"]["escalation"] == "messaging on call"
        assert alert["annotations"]["runbook_url"] == f"https://runbooks.example/dispatcher/{name}.md"
        assert alert["annotations"]["dashboard_url"].startswith("https://grafana.example/d/dispatcher-")
        assert "{{ $" in alert["annotations"]["description"] or name == "DispatcherAbsent"


def test_the_dashboards_arrive_whole() -> None:
    maps = [one for one in objects("monitoring", "ConfigMap") if "dashboard" in one["metadata"]["name"]]
    assert len(maps) == len(list(CHART.glob("files/dashboards/*.json"))) > 0
    for one in maps:
        assert one["metadata"]["namespace"] == "monitoring"
        assert one["metadata"]["labels"]["grafana_dashboard"] == "1"
        ((name, text),) = one["data"].items()
        assert json.loads(text) == json.loads((CHART / "files" / "dashboards" / name).read_text())


# Generated files and notes


def test_generated_files_are_current() -> None:
    for path, text in values.generated().items():
        assert path.read_text() == text, f"run python -m deploy.helm.values: {path.name} is not what values.yaml says"


@pytest.mark.parametrize("name", NAMES)
def test_the_committed_charts_are_what_helm_renders(name: str) -> None:
    assert rendered.path(name).read_text() == rendered.text(name), "run python -m tests.deploy.rendered, read the diff"


def test_nothing_is_kept_of_values_that_are_gone() -> None:
    assert {path.stem for path in rendered.OUT.iterdir()} == set(NAMES)


def test_every_value_is_described() -> None:
    ours = [one for one in values.values() if not one.path.startswith(tuple(f"{free}." for free in values.FREE))]
    undescribed = [one.path for one in ours if not one.description and not isinstance(one.default, dict)]
    assert undescribed == []


def test_the_notes_warn_of_what_is_missing() -> None:
    def notes(*options: str) -> str:
        done = run(tool("helm4"), "install", "r", CHART, "--dry-run=client", *MINIMAL, *options)
        assert done.returncode == 0, done.stderr
        return done.stdout.partition("NOTES:")[2]

    assert "NO WEBHOOKS ARE CONFIGURED" in notes()
    assert "NO WEBHOOKS" not in notes("--set", "webhooks.existingConfigMaps={x}")
    assert re.search(r"dispatcher topics$", notes(), re.MULTILINE)

    assert re.search(r"curl -s localhost:9090/readyz ", notes())
    with_tls = (
        "--set",
        "config.ops.tls.certificate=/run/secrets/ops/tls.crt,config.ops.tls.key=/run/secrets/ops/tls.key",
    )
    assert "curl -sk https://localhost:9090/readyz " in notes(*with_tls)
    console = ("--set", "console.enabled=true,config.webhooks.store=sql,config.webhooks.url.file=/run/secrets/url")
    forwards = re.findall(r"kubectl .* port-forward .*", notes(*console))
    assert len(forwards) == 2
    assert all(line.endswith(" &") for line in forwards), "the commands after it would not run"

    history = ("--set", "config.history.url.file=/run/secrets/history-url")
    assert "retries, held events and dead letters" in notes()
    assert "retries, held events, history and dead letters" in notes(*history)
    nothing_fills_it = "NOTHING FILLS THE HISTORY STORE"
    assert nothing_fills_it not in notes()
    assert nothing_fills_it in notes(*history)
    assert nothing_fills_it not in notes(*history, "--set", "config.history.store=none")
    assert nothing_fills_it not in notes(*history, "--set", "history.enabled=true")
    assert nothing_fills_it not in notes(*history, *console)
    assert nothing_fills_it in notes(*history, *console, "--set", "config.history.embedded=false")

    policy = ("--set", "networkPolicy.enabled=true")
    for needs, port, setting in (
        ((*history, "--set", "history.enabled=true"), 5432, "networkPolicy.database.ports"),
        (
            (
                "--set",
                "config.notifications.smtp.host=mail.example,config.notifications.smtp.sender=noreply@mail.example",
            ),
            587,
            "networkPolicy.smtp.ports",
        ),
    ):
        closed = f"{setting} IS EMPTY"
        assert closed not in notes(*policy)
        assert closed not in notes(*needs)
        assert closed in notes(*needs, *policy)
        assert closed not in notes(*needs, *policy, "--set", f"{setting}={{{port}}}")
        other = f'networkPolicy.extraEgress=[{{"ports":[{{"port":{port}}}]}}]'
        assert closed not in notes(*needs, *policy, "--set-json", other)
    database = "networkPolicy.database.ports IS EMPTY"
    assert database in notes(*console, *policy)
    assert database not in notes(*console, *policy, "--set", "replicaCount=1,persistence.enabled=true")


def test_the_application_and_the_chart_have_the_same_version() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    text = (DEPLOY.parent / "pyproject.toml").read_text()
    assert f'version = "{chart["appVersion"]}"' in text


def test_the_annotations_for_artifact_hub_are_what_it_reads() -> None:
    """Each list is YAML in a text; a change has one of six kinds (https://artifacthub.io/docs/topics/annotations/helm)."""
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    notes = {key.removeprefix("artifacthub.io/"): value for key, value in chart["annotations"].items()}
    assert all(isinstance(value, str) for value in notes.values())
    changes = yaml.safe_load(notes["changes"])
    assert {one["kind"] for one in changes} <= {"added", "changed", "deprecated", "removed", "fixed", "security"}
    assert all(one["description"] for one in changes)
    (image,) = yaml.safe_load(notes["images"])
    assert image["image"].rpartition(":")[2] == str(chart["appVersion"])
    linked = [*yaml.safe_load(notes["links"]), *(link for one in changes for link in one.get("links", ()))]
    for link in linked:
        path = link["url"].partition("/main/")[2]
        assert (ROOT / path).exists(), path
    metadata = yaml.safe_load((CHART.parent / "artifacthub-repo.yml").read_text())
    assert all(set(owner) == {"name", "email"} for owner in metadata["owners"])


@pytest.mark.parametrize(
    ("servers", "ports"),
    [
        ("kafka", [9092]),
        ("a:9093, b", [9093, 9092]),
        ("a:9093,b:9093,", [9093]),
        ("[2001:db8::1]:9094,[::1]", [9094, 9092]),
        ("::1", [9092]),
    ],
)
def test_the_policy_opens_the_ports_that_the_dispatcher_dials(servers: str, ports: list[int]) -> None:
    options = (
        "--set",
        "networkPolicy.enabled=true",
        "--set-string",
        f"config.kafka.bootstrap_servers={servers}".replace(",", "\\,"),
    )
    done = run(tool("helm4"), "template", "r", CHART, *options, "--show-only", "templates/networkpolicy.yaml")
    assert done.returncode == 0, done.stderr
    (policy,) = [one for one in yaml.safe_load_all(done.stdout) if one]
    opened = [[one["port"] for one in rule["ports"]] for rule in policy["spec"]["egress"]]
    assert ports in opened
    loaded = KafkaSettings.model_validate({"bootstrap_servers": servers}).bootstrap_servers
    assert [int(one.rsplit(":", 1)[1]) for one in loaded.split(",")][: len(ports)] == ports


@pytest.mark.parametrize("helm", HELMS)
def test_brokers_from_a_secret_reach_every_pod(helm: str) -> None:
    more = ("--set", "topics.create=job,topics.partitions=3,console.enabled=true,history.enabled=true")
    urls = ("--set", "config.webhooks.store=sql,config.webhooks.url.file=/a,config.history.url.file=/b")
    done = run(tool(helm), "template", "r", CHART, *FROM_A_SECRET, *more, *urls)
    assert done.returncode == 0, done.stderr
    made = [one for one in yaml.safe_load_all(done.stdout) if one]
    pods = [template for one in made if (template := pod_template(one)) is not None]
    assert len(pods) >= 5
    for pod in pods:
        assert all(BROKERS in container["env"] for container in pod["spec"]["containers"]), pod
    texts = [one["data"]["dispatcher.yaml"] for one in made if "dispatcher.yaml" in one.get("data", {})]
    assert len(texts) == 2, "the release's, and the hooks' own"
    assert {read_brokers(text, {BROKERS["name"]: "kafka:9093"}) for text in texts} == {"kafka:9093"}


def read_brokers(text: str, environment: dict[str, str]) -> str:
    with TemporaryDirectory() as directory:
        file = Path(directory) / "dispatcher.yaml"
        settings = yaml.safe_load(text)
        settings["webhooks"], settings["history"] = {"path": directory}, {"store": "none"}
        file.write_text(yaml.safe_dump(settings))
        return load_settings(file, environment).kafka.bootstrap_servers
