"""Values that the chart refuses, and what it says."""

import json
import re
from typing import Any

import pytest

from tests.deploy.rendering import FROM_A_SECRET, HELMS, MINIMAL, SQL
from tests.deploy.tools import CHART, run, tool

REFUSED = {
    "no bootstrap servers": ((), "config.kafka.bootstrap_servers is missing: set it, or DISPATCHER_KAFKA__BOOTSTRAP"),
    "other environment": (("--set", "extraEnv[0].name=HTTPS_PROXY"), "config.kafka.bootstrap_servers is missing"),
    "brokers from a Secret, and a policy that does not know their port": (
        (*FROM_A_SECRET, "--set", "networkPolicy.enabled=true"),
        "networkPolicy.kafka.ports is empty",
    ),
    "an unknown value": ((*MINIMAL, "--set", "replicas=3"), "replicas"),
    "a misspelt setting": ((*MINIMAL, "--set", "config.delivery.max_inflight=3"), "max_inflight"),
    "a setting out of range": ((*MINIMAL, "--set", "config.delivery.timeout=ten"), "timeout"),
    "a secret in the open": ((*MINIMAL, "--set", "config.kafka.security.password=hunter2"), "password"),
    "both budgets": (
        (*MINIMAL, "--set", "podDisruptionBudget.minAvailable=1,podDisruptionBudget.maxUnavailable=1"),
        "podDisruptionBudget",
    ),
    "ingress and route": (
        (*MINIMAL, "--set", "console.ingress.enabled=true", "--set", "console.httpRoute.enabled=true"),
        "console",
    ),
    "an ingress without a host": ((*SQL, "--set", "console.enabled=true,console.ingress.enabled=true"), "hosts"),
    "a route without a gateway": ((*SQL, "--set", "console.enabled=true,console.httpRoute.enabled=true"), "parentRefs"),
    "a console for files": ((*MINIMAL, "--set", "console.enabled=true"), "config.webhooks.store: sql"),
    "two consoles that don't know each other's sessions": (
        (*SQL, "--set", "console.enabled=true,console.replicaCount=2"),
        "config.console.session_key",
    ),
    "a database without an address": ((*MINIMAL, "--set", "config.webhooks.store=sql"), "config.webhooks.url"),
    "a budget that lets no pod go": (
        (*MINIMAL, "--set", "replicaCount=2,podDisruptionBudget.minAvailable=2"),
        "podDisruptionBudget.minAvailable",
    ),
    "a budget that lets no pod of the fewest go": (
        (*MINIMAL, "--set", "autoscaling.type=hpa,autoscaling.minReplicas=3,podDisruptionBudget.minAvailable=3"),
        "podDisruptionBudget.minAvailable",
    ),
    "a budget of everything": (
        (*MINIMAL, "--set-string", "podDisruptionBudget.minAvailable=100%"),
        "podDisruptionBudget.minAvailable",
    ),
    "more pods at least than at most": (
        (*MINIMAL, "--set", "autoscaling.type=hpa,autoscaling.minReplicas=7"),
        "autoscaling.minReplicas",
    ),
    "an unknown kind of workload": ((*MINIMAL, "--set", "workload.kind=DaemonSet"), "workload"),
    "a policy that closes the brokers' port": (
        (
            "--set",
            "config.kafka.bootstrap_servers=kafka:9094,networkPolicy.enabled=true,networkPolicy.kafka.ports={9092}",
        ),
        "networkPolicy.kafka.ports lacks 9094",
    ),
    "a policy that closes the port of a broker without one": (
        (
            "--set",
            "config.kafka.bootstrap_servers=kafka,networkPolicy.enabled=true,networkPolicy.kafka.ports={9094}",
        ),
        "networkPolicy.kafka.ports lacks 9092",
    ),
    "brokers with a scheme": (("--set", "config.kafka.bootstrap_servers=SSL://kafka:9093"), "is not host:port"),
    "a broker's port that is none": (
        ("--set", "config.kafka.bootstrap_servers=kafka:abc"),
        '"kafka:abc" is not host:port',
    ),
    "a broker's port that is too high": (("--set", "config.kafka.bootstrap_servers=kafka:99999"), "from 1 to 65535"),
    "an IPv6 broker without brackets": (
        ("--set-string", "config.kafka.bootstrap_servers=fe80::1%eth0:9092"),
        "[address]:port",
    ),
    "a policy that closes a port of the guard": (
        (
            *MINIMAL,
            "--set",
            "networkPolicy.enabled=true,networkPolicy.webhooks.ports={443},config.egress.ports={443,9443}",
        ),
        "networkPolicy.webhooks.ports lacks 9443",
    ),
    "files that no ConfigMap holds": (
        (
            *MINIMAL,
            "--set-string",
            f"webhooks.files.a\\.yaml={'#' * 90_000}",
            *(
                part
                for letter in "bcdefghijk"
                for part in ("--set-string", f"webhooks.files.{letter}\\.yaml={'#' * 90_000}")
            ),
        ),
        "webhooks.existingConfigMaps",
    ),
    "SQLite for two pods": ((*SQL, "--set", "persistence.enabled=true"), "replicaCount: 1"),
    "a volume of one node for two consoles": (
        (
            *SQL,
            "--set",
            "replicaCount=1,persistence.enabled=true,console.enabled=true,console.replicaCount=2,"
            "config.console.session_key.file=/run/secrets/key",
        ),
        "console.replicaCount: 1",
    ),
    "a volume of one node for two history workers": (
        (
            *SQL,
            "--set",
            "replicaCount=1,persistence.enabled=true,history.enabled=true,history.replicaCount=2,"
            "config.history.url.file=/run/secrets/history-url",
        ),
        "history.replicaCount: 1",
    ),
    "a user of no cluster": ((*MINIMAL, "--set", "topics.strimzi.user.create=true"), "topics.strimzi.cluster"),
    "a console's budget twice": (
        (*SQL, "--set", "console.podDisruptionBudget.minAvailable=1,console.podDisruptionBudget.maxUnavailable=1"),
        "podDisruptionBudget",
    ),
    "a path that is none": ((*SQL, "--set", "console.ingress.path=feedback"), "path"),
    "keda without a server": ((*MINIMAL, "--set", "autoscaling.type=keda"), "serverAddress"),
    "strimzi without a cluster": ((*MINIMAL, "--set", "topics.create=strimzi,topics.partitions=3"), "cluster"),
    "a webhook without a URL": (
        (*MINIMAL, "--set-json", 'webhooks.files={"a.yaml":{"apiVersion":"dispatcher/v1","webhooks":[{"name":"x"}]}}'),
        "webhooks",
    ),
    "an objective of all": ((*MINIMAL, "--set", "prometheusRule.objectives.delivery=1"), "objectives"),
    "a digest that is none": ((*MINIMAL, "--set", "image.digest=latest"), "digest"),
    "a grace period shorter than the drain": (
        (*MINIMAL, "--set", "terminationGracePeriodSeconds=40,config.delivery.drain_timeout=40s"),
        "at least 60",
    ),
}


@pytest.mark.parametrize("helm", HELMS)
@pytest.mark.parametrize("what", sorted(REFUSED))
def test_wrong_values_are_refused(helm: str, what: str) -> None:
    options, told = REFUSED[what]
    done = run(tool(helm), "template", "r", CHART, *options)
    assert done.returncode != 0, f"{what} went through"
    assert told in done.stderr


# Overrides that the chart doesn't see

OVERRIDES = {
    "DISPATCHER_DELIVERY__DRAIN_TIMEOUT": "config.delivery.drain_timeout",
    "DISPATCHER_DELIVERY": "config.delivery",
    "DISPATCHER_OPS__PORT": "config.ops.port",
    "dispatcher_ops__token": "config.ops.token",
    "DISPATCHER_OPS__TLS__CERTIFICATE": "config.ops.tls",
    "DISPATCHER_CONSOLE__PORT": "config.console.port",
    "DISPATCHER_KAFKA__GROUP_ID": "config.kafka.group_id",
    "DISPATCHER_RETRY__TIERS": "config.retry.tiers",
    "DISPATCHER_WEBHOOKS__STORE": "config.webhooks.store",
    "DISPATCHER_HISTORY__URL__FILE": "config.history.url",
    "DISPATCHER_EGRESS__PORTS": "config.egress.ports",
    "DISPATCHER_CONFIG": "existingConfigMap",
}
READ_FOR_WARNINGS_ONLY = {"kafka.bootstrap_servers", "console.session_key", "webhooks.url", "notifications.smtp"}
"""Settings that templates only look for, to refuse or warn if they are missing."""


def with_environment(where: str, *variables: dict[str, Any]) -> tuple[str, ...]:
    return (*MINIMAL, "--set-json", f"{where}={json.dumps(variables)}")


@pytest.mark.parametrize(
    ("name", "where"),
    [(name, "extraEnv") for name in OVERRIDES]
    + [("DISPATCHER_OPS__PORT", "console.extraEnv"), ("DISPATCHER_OPS__PORT", "history.extraEnv")],
)
def test_an_override_of_what_the_chart_computes_with_is_refused(name: str, where: str) -> None:
    done = run(tool("helm4"), "template", "r", CHART, *with_environment(where, {"name": name, "value": "300s"}))
    assert done.returncode != 0
    assert f"{where}: {name}" in done.stderr
    assert f"set {OVERRIDES[name]} instead" in done.stderr


def test_other_environment_is_taken_as_it_is() -> None:
    """Settings that the chart doesn't read, and variables that settings refer to."""
    names = ("DISPATCHER_DELIVERY__MAX_IN_FLIGHT", "DISPATCHER_LOG__LEVEL", "HTTPS_PROXY", "DISPATCHER_HISTORY__URL")
    variables = with_environment("extraEnv", *({"name": name, "value": "x"} for name in names))
    referred = ("--set", "config.history.url.env=DISPATCHER_HISTORY__URL")
    done = run(tool("helm4"), "template", "r", CHART, *variables, *referred)
    assert done.returncode == 0, done.stderr
    assert all(f"name: {name}" in done.stdout for name in names)


def test_every_setting_that_templates_read_is_guarded() -> None:
    """Fails if a template begins to compute with a setting and an override of it would go unseen."""
    text = "\n".join(
        path.read_text() for path in sorted((CHART / "templates").rglob("*")) if path.suffix in (".yaml", ".tpl")
    )
    pairs = re.findall(r'"group" "(\w+)" "key" "(\w+)"|dig "(\w+)" "(\w+)" ', text)
    read = {f"{group or dug}.{key or dug_key}" for group, key, dug, dug_key in pairs} - READ_FOR_WARNINGS_ONLY
    assert len(read) > 10
    for setting in sorted(read):
        name = f"DISPATCHER_{setting.replace('.', '__').upper()}"
        done = run(tool("helm4"), "template", "r", CHART, *with_environment("extraEnv", {"name": name, "value": "x"}))
        assert f"set config.{setting} instead" in done.stderr, setting
