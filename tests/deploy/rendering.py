"""The chart rendered, as objects, and the schemas they are held against."""

import json
import re
from copy import deepcopy
from functools import cache
from typing import Any

import yaml

from tests.deploy.tools import CHART, run, tool
from tests.published import published

Object = dict[str, Any]

VALUES = sorted(CHART.glob("ci/*-values.yaml"))
NAMES = [path.name.removesuffix("-values.yaml") for path in VALUES]
KUBERNETES = ("1.29", "1.30", "1.31", "1.32", "1.33", "1.34", "1.35", "1.36", "1.37")
"""Every minor version from the chart's kubeVersion on that there are schemas for."""
CUSTOM = {
    "PodMonitor": ("podmonitors", "v1"),
    "PrometheusRule": ("prometheusrules", "v1"),
    "ScaledObject": ("scaledobjects", "v1alpha1"),
}
WITHOUT_SCHEMA = {"ServiceMonitor", "HTTPRoute", "KafkaTopic", "KafkaUser"}
"""Kinds whose definitions are not at hand; tests look at their fields."""
RELEASE = ("--namespace", "messaging", "feedback")

MINIMAL = ("--set", "config.kafka.bootstrap_servers=kafka:9092")
SQL = (*MINIMAL, "--set", "config.webhooks.store=sql,config.webhooks.url.file=/run/secrets/database/url")
HELMS = ("helm4", "helm3")
BROKERS = {
    "name": "DISPATCHER_KAFKA__BOOTSTRAP_SERVERS",
    "valueFrom": {"secretKeyRef": {"name": "kafka", "key": "bootstrap"}},
}
FROM_A_SECRET = ("--set-json", f"extraEnv=[{json.dumps(BROKERS)}]")


def rendered_text(helm: str, name: str, *options: str) -> str:
    """What `helm template` prints for one of the ci values."""
    done = run(
        tool(helm), "template", *RELEASE[2:], CHART, *RELEASE[:2], "-f", CHART / f"ci/{name}-values.yaml", *options
    )
    assert done.returncode == 0, f"{helm} {name}: {done.stderr}"
    return done.stdout


@cache
def _objects(helm: str, name: str) -> tuple[Object, ...]:
    return tuple(one for one in yaml.safe_load_all(rendered_text(helm, name)) if one)


def objects(name: str, kind: str | None = None, helm: str = "helm4") -> list[Object]:
    """The objects of one of the ci values, all or those of a kind."""
    return [deepcopy(one) for one in _objects(helm, name) if kind in (None, one["kind"])]


def only(name: str, kind: str, suffix: str = "") -> Object:
    """The one object of a kind whose name ends so."""
    (one,) = [one for one in objects(name, kind) if one["metadata"]["name"].endswith(suffix)]
    return one


def settings_of(name: str) -> str:
    """dispatcher.yaml as it is mounted."""
    maps = [one for one in objects(name, "ConfigMap") if re.search(r"(?<!-hook)-settings$", one["metadata"]["name"])]
    (found,) = maps
    text: str = found["data"]["dispatcher.yaml"]
    return text


def pod_template(one: Object) -> Object | None:
    """The pod that an object makes, with metadata and spec."""
    match one["kind"]:
        case "Pod":
            return one
        case "Deployment" | "StatefulSet" | "Job":
            template: Object = one["spec"]["template"]
            return template
        case _:
            return None


@cache
def crd_schema(plural: str, version: str) -> Object:
    """JSON Schema of a custom resource, strict: a field that the operator does not know is an error."""
    text = "\n".join(line.rstrip() for line in published(f"crds/{plural}.yaml").read_text().splitlines())
    (crd,) = [one for one in yaml.safe_load_all(text) if one]
    (found,) = [one for one in crd["spec"]["versions"] if one["name"] == version]
    schema: Object = _strict(found["schema"]["openAPIV3Schema"])
    schema["properties"]["metadata"] = {"type": "object"}
    return schema


def _strict(node: Any) -> Any:
    if isinstance(node, list):
        return [_strict(item) for item in node]
    if not isinstance(node, dict):
        return node
    made = {key: _strict(value) for key, value in node.items() if key not in ("description", "default", "format")}
    if node.get("x-kubernetes-int-or-string"):
        made.pop("type", None)
        made["anyOf"] = [{"type": "integer"}, {"type": "string"}]
    properties = node.get("properties")
    if isinstance(properties, dict) and node.get("type") == "object":
        made["properties"] = {key: _strict(value) for key, value in properties.items()}
        if not node.get("x-kubernetes-preserve-unknown-fields") and "additionalProperties" not in node:
            made["additionalProperties"] = False
    return made


def comparable(text: str) -> str:
    """Without comments and blank lines, in which the two helms differ."""
    return re.sub(r"\n\s*\n", "\n", re.sub(r"^#.*$", "", text, flags=re.MULTILINE)).strip()
