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
        "podDisruptionBudget: minAvailable and maxUnavailable exclude each other",
    ),
    "ingress and route": (
        (
            *MINIMAL,
            "--set",
            "console.ingress.enabled=true,console.ingress.hosts={a.example},console.httpRoute.enabled=true",
            "--set-json",
            'console.httpRoute.parentRefs=[{"name":"public"}]',
        ),
        "console.ingress.enabled and console.httpRoute.enabled exclude each other",
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
        "console.podDisruptionBudget: minAvailable and maxUnavailable exclude each other",
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
    "probes that reach no pod": ((*MINIMAL, "--set", "config.ops.host=127.0.0.1"), "config.ops.host: 127.0.0.1"),
    "probes that reach no pod, by an override": (
        (*MINIMAL, "--set", "extraEnv[0].name=DISPATCHER_OPS__HOST,extraEnv[0].value=localhost"),
        "extraEnv: DISPATCHER_OPS__HOST: localhost",
    ),
    "a console that no one reaches": (
        (*SQL, "--set", "console.enabled=true,config.console.host=127.0.0.1"),
        "config.console.host: 127.0.0.1",
    ),
    "a free port for probes": ((*MINIMAL, "--set", "config.ops.port=0"), "config.ops.port: 0"),
    "a free port for the console": (
        (*SQL, "--set", "console.enabled=true,config.console.port=0"),
        "config.console.port: 0",
    ),
    "a group that names no topics": (
        (*MINIMAL, "--set", "config.kafka.group_id=a b"),
        "config.kafka.group_id: the dispatcher's own topics are named after it",
    ),
    "a topic that Kafka refuses": ((*MINIMAL, "--set", "config.kafka.topic=a b"), "pattern"),
    "a prefix of no topics": ((*MINIMAL, "--set", "config.kafka.topic_prefix=a/b"), "pattern"),
    "one static member for all pods": (
        (*MINIMAL, "--set", "config.kafka.group_instance_id=a"),
        "workload.kind: StatefulSet",
    ),
    "names that Kubernetes refuses": ((*MINIMAL, "--set", "fullnameOverride=Foo_Bar"), "set fullnameOverride"),
    "names of Services that Kubernetes refuses": (
        (*MINIMAL, "--set", "fullnameOverride=1.foo,service.enabled=true"),
        "set fullnameOverride",
    ),
    "a name that labels refuse": ((*MINIMAL, "--set", "nameOverride=a b"), "nameOverride"),
    "a namespace that is none": ((*MINIMAL, "--set", "namespaceOverride=Foo"), "namespaceOverride"),
    "an account that is none": ((*MINIMAL, "--set", "serviceAccount.name=Foo"), "serviceAccount"),
    "a registry with a slash at its end": ((*MINIMAL, "--set", "image.registry=reg.example/"), "image"),
    "a registry for all with a slash at its end": ((*MINIMAL, "--set", "global.imageRegistry=reg/"), "imageRegistry"),
    "a registry with a scheme": ((*MINIMAL, "--set", "image.registry=https://reg.example"), "image"),
    "a repository with a tag": ((*MINIMAL, "--set", "image.repository=fd:1.0"), "image"),
    "a tag that is none": ((*MINIMAL, "--set-string", "image.tag=a/b"), "image"),
    "a grace period shorter than the drain": (
        (*MINIMAL, "--set", "terminationGracePeriodSeconds=40,config.delivery.drain_timeout=40s"),
        "at least 60",
    ),
}


@pytest.mark.parametrize("helm", HELMS)
@pytest.mark.parametrize("what", sorted(REFUSED))
def test_wrong_values_are_refused(helm: str, what: str) -> None:
    options, message = REFUSED[what]
    done = run(tool(helm), "template", "r", CHART, *options)
    assert done.returncode != 0, f"{what} went through"
    assert message in done.stderr


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
ONLY_CHECKED = {
    "kafka.bootstrap_servers", "kafka.group_instance_id", "console.session_key", "webhooks.url", "notifications.smtp",
    "ops.host",
}  # fmt: skip
"""Settings that templates read to refuse or warn, and compute nothing with."""


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
    texts = {path.name: path.read_text() for path in (CHART / "templates").rglob("*") if path.is_file()}
    pairs = re.findall(r'"group" "(\w+)" "key" "(\w+)"|dig "(\w+)" "(\w+)" ', "\n".join(texts.values()))
    read = {f"{group or dug}.{key or dug_key}" for group, key, dug, dug_key in pairs} - ONLY_CHECKED
    guarded = re.search(r"\$computed := list\s([^}]*)}}", texts["checks.yaml"])
    assert guarded is not None
    assert len(read) > 10
    assert read <= set(json.loads(f"[{','.join(guarded[1].split())}]"))


# Values that look odd and are right


RIGHT = {
    "hosts of all pods": (*SQL, "--set-json", 'config.ops={"host":"::"}', "--set", "console.enabled=true"),
    "hosts that say null": (*SQL, "--set-json", 'config.ops={"host":null}', "--set", "console.enabled=true"),
    "a host that the pod knows": (
        *MINIMAL,
        "--set-json",
        'extraEnv=[{"name":"DISPATCHER_OPS__HOST","valueFrom":{"fieldRef":{"fieldPath":"status.podIP"}}}]',
    ),
    "a group in words": (*MINIMAL, "--set", "config.kafka.group_id=a b,config.kafka.topic_prefix=a-b"),
    "one static member": (*MINIMAL, "--set", "config.kafka.group_instance_id=a,replicaCount=1"),
    "a registry with a port and a path": (*MINIMAL, "--set", "image.registry=reg:5000/team"),
    "a repository with a registry": (*MINIMAL, "--set", "image.repository=reg:5000/team/fd,global.imageRegistry="),
    "a name with a dot, without a Service": (*MINIMAL, "--set", "fullnameOverride=1.foo"),
}


@pytest.mark.parametrize("what", RIGHT)
def test_right_values_are_rendered(what: str) -> None:
    done = run(tool("helm4"), "template", "r", CHART, *RIGHT[what])
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("helm", HELMS)
def test_a_prefix_of_null_is_the_group(helm: str) -> None:
    """Settings may say null for what they leave out, and a mapping is given as it is written."""
    strimzi = ("--set", "topics.create=strimzi,topics.partitions=3,topics.strimzi.cluster=c")
    settings = '{"bootstrap_servers":"kafka:9092","group_id":"mine","topic_prefix":null}'
    done = run(tool(helm), "template", "r", CHART, "--set-json", f"config.kafka={settings}", *strimzi)
    assert done.returncode == 0, done.stderr
    assert "topicName: mine.held" in done.stdout
    assert "topicName: null" not in done.stdout
