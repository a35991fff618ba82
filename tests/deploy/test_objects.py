"""The objects that the chart makes: what Kubernetes and the operators accept, and how the parts fit together."""

import json
from collections.abc import Iterator

import jsonschema
import kubernetes_validate
import pytest
import yaml

from dispatcher.config.settings import Settings
from dispatcher.kafka.topics import planned_topics
from tests.deploy.rendering import (
    CUSTOM,
    KUBERNETES,
    NAMES,
    WITHOUT_SCHEMA,
    Object,
    crd_schema,
    objects,
    only,
    pod_template,
    rendered_text,
)
from tests.deploy.tools import CHART, python_tool, run, tool

# What Kubernetes accepts


@pytest.mark.parametrize("version", KUBERNETES)
def test_every_object_is_valid_in(version: str) -> None:
    seen: set[str] = set()
    for name in NAMES:
        for one in objects(name):
            text = json.dumps(one, sort_keys=True)
            if text in seen or one["kind"] in {*CUSTOM, *WITHOUT_SCHEMA}:
                continue
            seen.add(text)
            try:
                kubernetes_validate.validate(one, version, strict=True)
            except kubernetes_validate.ValidationError as error:
                pytest.fail(f"{name}: {one['kind']} {one['metadata']['name']} on {version}: {error}")
    assert len(seen) > 40


@pytest.mark.parametrize("kind", sorted(CUSTOM))
def test_a_custom_resource_is_what_its_operator_knows(kind: str) -> None:
    validator = jsonschema.Draft202012Validator(crd_schema(*CUSTOM[kind]))
    found = [one for name in NAMES for one in objects(name, kind)]
    assert found
    for one in found:
        assert [error.message for error in validator.iter_errors(one)] == []


def test_the_custom_resources_schemas_are_strict() -> None:
    """The judge itself: a misspelt field does not pass it."""
    monitor = only("monitoring", "PodMonitor")
    monitor["spec"]["podMetricsEndpoints"][0]["intervall"] = "30s"
    assert list(jsonschema.Draft202012Validator(crd_schema(*CUSTOM["PodMonitor"])).iter_errors(monitor))


def test_a_service_monitor_differs_from_the_pod_monitor_only_in_its_endpoints() -> None:
    service = only("servicemonitor", "ServiceMonitor")
    service["kind"] = "PodMonitor"
    service["spec"]["podMetricsEndpoints"] = service["spec"].pop("endpoints")
    validator = jsonschema.Draft202012Validator(crd_schema(*CUSTOM["PodMonitor"]))
    assert [error.message for error in validator.iter_errors(service)] == []


def test_the_yaml_is_tidy() -> None:
    config = (
        "{extends: default, rules: {line-length: disable, document-start: disable, braces: disable, brackets: disable, "
        "comments: {min-spaces-from-content: 1}, indentation: {indent-sequences: whatever}, "
        "truthy: {check-keys: false}%s}}"
    )
    files = [CHART / "Chart.yaml", CHART / "values.yaml", *CHART.glob("ci/*.yaml"), *CHART.glob("files/rules/*.yaml")]
    done = run(python_tool("yamllint"), "--strict", "-d", config % "", *files)
    assert done.returncode == 0, done.stdout
    made_by_helm = ", trailing-spaces: disable, empty-lines: disable, comments-indentation: disable"
    without_dashboards = set(NAMES) - {"monitoring", "servicemonitor"}  # JSON in it, and long
    everything = "".join(rendered_text("helm4", name) for name in sorted(without_dashboards))
    done = run(python_tool("yamllint"), "--strict", "-d", config % made_by_helm, "-", stdin=everything)
    assert done.returncode == 0, done.stdout


# How the parts fit together


def _pods(name: str) -> Iterator[tuple[Object, Object]]:
    for one in objects(name):
        if (template := pod_template(one)) is not None:
            yield one, template


@pytest.mark.parametrize("name", NAMES)
def test_pods_meet_the_restricted_pod_security_standard(name: str) -> None:
    for one, template in _pods(name):
        spec = template["spec"]
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["seccompProfile"]["type"] == "RuntimeDefault"
        assert not any(spec.get(key) for key in ("hostNetwork", "hostPID", "hostIPC"))
        assert all(not volume.keys() & {"hostPath", "nfs"} for volume in spec["volumes"])
        for container in [*spec["containers"], *spec.get("initContainers", [])]:
            context = container["securityContext"]
            assert context["allowPrivilegeEscalation"] is False
            assert context["readOnlyRootFilesystem"] is True
            assert context["capabilities"] == {"drop": ["ALL"]}
            assert not any("hostPort" in port for port in container.get("ports", []))
        assert spec["automountServiceAccountToken"] is False
        assert spec["enableServiceLinks"] is False, "DISPATCHER_… of a Service would read as settings"
        if one["kind"] != "Pod" or "test" in one["metadata"]["annotations"]["helm.sh/hook"]:
            ours = [container for container in spec["containers"] if container["name"] not in ("side",)]
            assert all(container["resources"]["limits"]["memory"] for container in ours)
            assert all("cpu" not in container["resources"]["limits"] for container in ours), (
                "throttling stalls the loop"
            )


@pytest.mark.parametrize("name", NAMES)
def test_every_name_leads_somewhere(name: str) -> None:
    """Mounts have volumes, probes have ports, volumes have the objects that the release makes."""
    made = {(one["kind"], one["metadata"]["name"]) for one in objects(name)}
    for one, template in _pods(name):
        spec = template["spec"]
        volumes = {volume["name"]: volume for volume in spec["volumes"]}
        for container in spec["containers"]:
            assert {mount["name"] for mount in container.get("volumeMounts", [])} <= volumes.keys()
            assert not any("subPath" in mount for mount in container.get("volumeMounts", [])), "never updated"
            paths = [mount["mountPath"] for mount in container.get("volumeMounts", [])]
            assert not any(a != b and b.startswith(f"{a}/") for a in paths for b in paths), "a mount within a mount"
            ports = {port["name"] for port in container.get("ports", [])}
            for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
                if probe in container:
                    assert container[probe]["httpGet"]["port"] in ports
        if name != "existing-configmap":
            assert ("ConfigMap", volumes["settings"]["configMap"]["name"]) in made
        for source in volumes.get("webhooks", {}).get("projected", {}).get("sources", [])[:1]:
            assert ("ConfigMap", source["configMap"]["name"]) in made
        account = spec.get("serviceAccountName")
        hook = one["metadata"].get("annotations", {}).get("helm.sh/hook", "")
        assert account is None or ("ServiceAccount", account) in made or name == "extras"
        if "pre-install" in hook:
            assert account is None, "the account does not exist yet when the hook runs"


@pytest.mark.parametrize("name", NAMES)
def test_the_helm_test_queries_a_dispatcher_if_a_service_leads_to_one(name: str) -> None:
    (pod,) = [one for one in objects(name, "Pod") if one["metadata"]["annotations"]["helm.sh/hook"] == "test"]
    asked = [part for part in pod["spec"]["containers"][0]["args"] if part.startswith("--ops=")]
    services = [one for one in objects(name, "Service") if one["metadata"]["name"].endswith("-ops")]
    scheme = "https" if name == "ops-tls" else "http"
    assert asked == [
        f"--ops={scheme}://{one['metadata']['name']}:{one['spec']['ports'][0]['port']}" for one in services
    ]
    if asked:
        for policy in objects(name, "NetworkPolicy"):
            ops = [rule for rule in policy["spec"]["ingress"] if rule["ports"] == [{"port": "ops", "protocol": "TCP"}]]
            peers = [
                peer.get("podSelector", {}).get("matchLabels", {}) for rule in ops for peer in rule.get("from", [])
            ]
            assert not peers or any(labels.items() <= pod["metadata"]["labels"].items() for labels in peers if labels)


@pytest.mark.parametrize("name", NAMES)
def test_selectors_select_their_own_pods_and_never_change(name: str) -> None:
    pods = {}
    for one, template in _pods(name):
        pods[one["metadata"]["name"]] = template["metadata"]["labels"]
        if one["kind"] in ("Deployment", "StatefulSet"):
            selector = one["spec"]["selector"]["matchLabels"]
            assert selector.keys() == {f"app.kubernetes.io/{key}" for key in ("name", "instance", "component")}
            assert selector.items() <= template["metadata"]["labels"].items()
    for one in objects(name):
        spec = one.get("spec", {})
        match one["kind"]:
            case "Service":
                selector = spec["selector"]
            case "PodDisruptionBudget" | "PodMonitor":
                selector = spec["selector"]["matchLabels"]
            case "NetworkPolicy":
                selector = spec["podSelector"]["matchLabels"]
            case _:
                continue
        selected = [pod for pod, labels in pods.items() if selector.items() <= labels.items()]
        assert len(selected) == 1, f"{one['kind']} {one['metadata']['name']} selects {selected}"


@pytest.mark.parametrize("name", NAMES)
def test_objects_are_named_placed_and_labelled(name: str) -> None:
    keys = {f"app.kubernetes.io/{key}" for key in ("name", "instance", "version", "managed-by", "component", "part-of")}
    seen = set()
    for one in objects(name):
        metadata = one["metadata"]
        identity = (one["kind"], metadata.get("namespace"), metadata["name"])
        assert identity not in seen
        seen.add(identity)
        if name == "extras" and metadata["name"] in ("feedback-extra", "feedback-text"):
            continue
        assert metadata["namespace"]
        assert metadata["labels"].keys() >= {*keys, "helm.sh/chart"}
        assert len(metadata["name"]) <= (63 if one["kind"] != "KafkaTopic" else 253)


def test_long_names_stay_within_the_limits() -> None:
    done = run(tool("helm4"), "template", "r" * 53, CHART, "--set", "config.kafka.bootstrap_servers=kafka:9092", "--set",
               "console.enabled=true,topics.create=job,config.webhooks.store=sql,config.webhooks.url.file=/x")  # fmt: skip
    assert done.returncode == 0, done.stderr
    for one in filter(None, yaml.safe_load_all(done.stdout)):
        assert len(one["metadata"]["name"]) <= 63
        assert all(len(value) <= 63 for value in one["metadata"]["labels"].values())


def test_webhooks_change_without_a_restart_and_settings_with_one() -> None:
    def hashes(*options: str) -> str:
        text = rendered_text("helm4", "webhooks", *options)
        return next(
            yaml.safe_dump(pod_template(one)) for one in yaml.safe_load_all(text) if one["kind"] == "Deployment"
        )

    before = hashes()
    assert hashes("--set-json", 'webhooks.files={"other.yaml":"apiVersion: dispatcher/v1"}') == before
    assert hashes("--set", "config.log.level=debug") != before


@pytest.mark.parametrize(("name", "seconds"), [("minimal", 25 + 10 + 10), ("extras", 150)])
def test_the_grace_period_outlasts_the_drain(name: str, seconds: int) -> None:
    (workload,) = objects(name, "Deployment")
    assert workload["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] == seconds


def test_liveness_asks_only_for_the_process_itself() -> None:
    container = only("minimal", "Deployment")["spec"]["template"]["spec"]["containers"][0]
    assert container["startupProbe"]["httpGet"]["path"] == "/livez"
    assert container["livenessProbe"]["httpGet"]["path"] == "/livez"
    assert container["readinessProbe"]["httpGet"]["path"] == "/readyz"


def test_a_rollout_never_adds_a_member() -> None:
    strategy = only("minimal", "Deployment")["spec"]["strategy"]["rollingUpdate"]
    assert (strategy["maxSurge"], strategy["maxUnavailable"]) == (0, 1)


def test_autoscaling_and_replicas_exclude_each_other() -> None:
    assert "replicas" not in only("hpa", "Deployment")["spec"]
    assert "replicas" not in only("keda", "Deployment")["spec"]
    assert only("minimal", "Deployment")["spec"]["replicas"] == 2


def test_one_pod_has_no_disruption_budget() -> None:
    assert not objects("standard-webhooks", "PodDisruptionBudget")
    assert only("minimal", "PodDisruptionBudget")["spec"]["unhealthyPodEvictionPolicy"] == "AlwaysAllow"


def test_stateful_pods_are_static_members() -> None:
    workload = only("statefulset", "StatefulSet")
    environment = {one["name"]: one for one in workload["spec"]["template"]["spec"]["containers"][0]["env"]}
    assert environment["DISPATCHER_KAFKA__GROUP_INSTANCE_ID"]["value"] == "$(POD_NAME)"
    assert list(environment).index("POD_NAME") < list(environment).index("DISPATCHER_KAFKA__GROUP_INSTANCE_ID")
    assert workload["spec"]["serviceName"] == only("statefulset", "Service")["metadata"]["name"]
    assert workload["spec"]["podManagementPolicy"] == "Parallel"


def test_the_network_policy_closes_private_ranges_to_webhooks() -> None:
    policy = only("secured", "NetworkPolicy")
    blocks = [peer["ipBlock"] for rule in policy["spec"]["egress"] for peer in rule.get("to", []) if "ipBlock" in peer]
    wide = {block["cidr"]: set(block.get("except", [])) for block in blocks if block["cidr"].endswith("/0")}
    assert wide["0.0.0.0/0"] >= {"10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "169.254.0.0/16"}
    assert wide["::/0"] >= {"fc00::/7", "fe80::/10"}
    assert set(policy["spec"]["policyTypes"]) == {"Ingress", "Egress"}


def test_strimzi_gets_the_topics_that_the_dispatcher_plans() -> None:
    for name in ("topics-strimzi", "standard-webhooks"):
        values = yaml.safe_load((CHART / f"ci/{name}-values.yaml").read_text())
        config = {"apiVersion": "dispatcher/v1", "webhooks": {"path": "/x"}} | values["config"]
        planned = planned_topics(
            Settings.model_validate(config), values["topics"]["partitions"], values["topics"].get("replicas", 3)
        )
        topics = {one["spec"]["topicName"]: one["spec"] for one in objects(name, "KafkaTopic")}
        assert topics.keys() == {plan.name for plan in planned}
        for plan in planned:
            spec = topics[plan.name]
            assert (spec["partitions"], spec["replicas"]) == (plan.partitions, plan.replication)
            assert {key: str(value) for key, value in spec["config"].items()} == dict(plan.config)


def test_the_ops_port_follows_the_setting() -> None:
    container = only("servicemonitor", "Deployment")["spec"]["template"]["spec"]["containers"][0]
    assert container["ports"] == [{"name": "ops", "containerPort": 9191, "protocol": "TCP"}]
