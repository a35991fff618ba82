"""What a platform puts on every object: labels, annotations, registries, pod settings; and what the chart derives."""

import pytest
import yaml

from dispatcher.config.secrets import Secret
from dispatcher.config.settings import Settings
from dispatcher.kafka.topic_permissions import kafka_user
from tests.deploy.rendering import objects, only, pod_template, rendered_text
from tests.deploy.tools import CHART

OWNER = {"example.com/owner": "messaging"}


def test_every_pod_has_the_platforms_settings() -> None:
    pods = [template for one in objects("placed") if (template := pod_template(one)) is not None]
    assert len(pods) == 5, "dispatcher, console, two jobs, the test"
    for pod in pods:
        spec = pod["spec"]
        assert spec["schedulerName"] == "packing"
        assert spec["dnsPolicy"] == "ClusterFirst"
        assert spec["dnsConfig"] == {"options": [{"name": "ndots", "value": "1"}]}
        assert spec["hostAliases"] == [{"ip": "10.0.0.9", "hostnames": ["hooks.internal.example"]}]
        assert spec["runtimeClassName"] == "gvisor"
        assert spec["imagePullSecrets"] == [{"name": "own"}, {"name": "platform"}]
        assert all(one["image"].startswith("registry.example/feedback-dispatcher:") for one in spec["containers"])
        assert spec["securityContext"]["runAsNonRoot"], "the rest of the spec is as before"


def test_objects_have_their_own_labels_and_annotations() -> None:
    for suffix in ("dispatcher", "-console"):
        metadata = only("placed", "Deployment", suffix)["metadata"]
        assert metadata["labels"].items() >= OWNER.items()
        assert metadata["annotations"]["example.com/reload"] == "true"
    assert only("placed", "Service", "-ops")["metadata"]["labels"]["example.com/scrape"] == "yes"
    assert only("placed", "Service", "-console")["metadata"]["labels"]["example.com/web"] == "yes"
    assert only("placed", "ServiceAccount")["metadata"]["labels"].items() >= OWNER.items()
    assert only("placed", "Ingress")["metadata"]["labels"]["example.com/public"] == "yes"
    for job in objects("placed", "Job"):
        assert job["metadata"]["labels"].items() >= OWNER.items()
        assert job["metadata"]["annotations"]["example.com/hook"] == "true"
        assert job["metadata"]["annotations"]["helm.sh/hook"] == "pre-install,pre-upgrade"
        template = job["spec"]["template"]["metadata"]
        assert template["labels"]["sidecar.istio.io/inject"] == "false"
        assert template["annotations"] == {"example.com/inject": "false"}
    test = only("placed", "Pod")["metadata"]
    assert test["labels"].items() >= (OWNER | {"sidecar.istio.io/inject": "false"}).items()
    assert test["annotations"]["helm.sh/hook"] == "test"


def test_a_label_of_an_object_is_not_in_its_selector() -> None:
    """A selector can't be changed later."""
    for one in objects("placed", "Deployment"):
        assert not any(key.startswith("example.com") for key in one["spec"]["selector"]["matchLabels"])


def test_the_console_is_placed_on_its_own() -> None:
    console = only("placed", "Deployment", "-console")["spec"]
    spec = console["template"]["spec"]
    assert console["strategy"]["rollingUpdate"] == {"maxSurge": 1, "maxUnavailable": 0}
    assert spec["nodeSelector"] == {"kubernetes.io/arch": "arm64"}
    assert [one["key"] for one in spec["tolerations"]] == ["web"]
    assert spec["affinity"]["podAntiAffinity"]
    assert [one["whenUnsatisfiable"] for one in spec["topologySpreadConstraints"]] == ["DoNotSchedule"]
    assert only("placed", "PodDisruptionBudget", "-console")["spec"]["minAvailable"] == 2
    dispatcher = only("placed", "Deployment", "dispatcher")["spec"]["template"]["spec"]
    assert "affinity" not in dispatcher
    assert "nodeSelector" not in dispatcher


def test_the_ingress_has_its_path() -> None:
    (path,) = only("placed", "Ingress")["spec"]["rules"][0]["http"]["paths"]
    assert (path["path"], path["pathType"]) == ("/feedback", "ImplementationSpecific")


def test_the_network_policy_opens_the_ports_that_the_settings_name() -> None:
    ports = [
        {port["port"] for port in rule["ports"]}
        for rule in only("placed", "NetworkPolicy", "dispatcher")["spec"]["egress"]
    ]
    assert ports == [{53}, {9094}, {443, 9443}]


def test_sqlite_has_a_volume_that_outlives_the_release_and_no_hook_that_could_not_have_it() -> None:
    claim = only("sqlite", "PersistentVolumeClaim")
    assert claim["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep"
    assert claim["spec"]["storageClassName"] == "fast"
    assert not objects("sqlite", "Job")
    dispatcher, console = (only("sqlite", "Deployment", suffix) for suffix in ("dispatcher", "-console"))
    for one in (dispatcher, console):
        spec = one["spec"]["template"]["spec"]
        assert {"name": "data", "persistentVolumeClaim": {"claimName": claim["metadata"]["name"]}} in spec["volumes"]
        mounts = spec["containers"][0]["volumeMounts"]
        assert {"name": "data", "mountPath": "/var/lib/dispatcher"} in mounts
    (migration,) = dispatcher["spec"]["template"]["spec"]["initContainers"]
    assert migration["args"][:2] == ["webhooks", "migrate"]
    assert {"name": "data", "mountPath": "/var/lib/dispatcher"} in migration["volumeMounts"]


def _strimzi_settings(**history: object) -> Settings:
    values = yaml.safe_load((CHART / "ci/topics-strimzi-values.yaml").read_text())
    config = {"apiVersion": "dispatcher/v1", "webhooks": {"path": "/x"}} | values["config"]
    return Settings.model_validate(config | {"history": config["history"] | history})


def test_strimzis_user_has_the_permissions_that_the_program_prints() -> None:
    printed = yaml.safe_load(kafka_user(_strimzi_settings(), "dispatcher"))
    user = only("topics-strimzi", "KafkaUser")
    assert user["spec"]["authorization"] == printed["spec"]["authorization"]
    assert user["spec"]["authentication"] == {"type": "tls"}
    assert (user["metadata"]["name"], user["metadata"]["namespace"]) == ("dispatcher", "kafka")
    assert user["metadata"]["labels"]["strimzi.io/cluster"] == "events"


@pytest.mark.parametrize("store", ["sql", "none"])
def test_strimzis_user_may_join_the_historys_group_if_there_is_a_store(store: str) -> None:
    settings = _strimzi_settings(store=store, url=Secret(b"postgresql+asyncpg://db/history"))
    options = ("--set", f"config.history.store={store}", "--set", "config.history.url.file=/run/secrets/url")
    documents = yaml.safe_load_all(rendered_text("helm4", "topics-strimzi", *options))
    (user,) = [one for one in documents if one and one["kind"] == "KafkaUser"]
    printed = yaml.safe_load(kafka_user(settings, "dispatcher"))
    assert user["spec"]["authorization"] == printed["spec"]["authorization"]
    names = {one["resource"]["name"] for one in user["spec"]["authorization"]["acls"]}
    assert ("feedback-dispatcher.history" in names) is (store == "sql")
